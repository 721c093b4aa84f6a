//! Numbers as people read them.

/// A byte count in binary units with three significant digits, e.g. `64 MiB` or `2.05 GiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{} {}", digits(value, unit == 0), UNITS[unit])
}

/// A count in thousands, millions and so on, e.g. `1.10 B`; plain below ten thousand.
pub fn count(count: u64) -> String {
    const UNITS: [&str; 5] = ["", " K", " M", " B", " T"];
    if count < 10_000 {
        return count.to_string();
    }
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{}{}", digits(value, false), UNITS[unit])
}

/// A duration, e.g. `4.2 s`, `3 min 05 s` or `2 h 07 min`.
pub fn seconds(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
    }
}

fn digits(value: f64, integer: bool) -> String {
    // Exact sizes such as 64 MiB read best without decimals.
    let decimals = match value {
        _ if integer || value.fract() == 0.0 || value >= 100.0 => 0,
        _ if value >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_numbers_as_people_read_them() {
        for (n, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (64 << 20, "64 MiB"),
            (2_200_000_000, "2.05 GiB"),
            ((1 << 20) - 1, "1.00 MiB"),
            (u64::MAX, "16777216 TiB"),
        ] {
            assert_eq!(bytes(n), text);
        }
        assert_eq!(count(9_999), "9999");
        assert_eq!(count(1_100_048_384), "1.10 B");
        assert_eq!(count(158_000), "158 K");
        assert_eq!(seconds(4.25), "4.2 s");
        assert_eq!(seconds(185.0), "3 min 05 s");
        assert_eq!(seconds(7_650.0), "2 h 07 min");
    }
}

//! Text in quotes, for YAML.

use std::fmt::Write as _;

/// A YAML string that holds any text. JSON strings are YAML, but for characters that JSON takes as they are and YAML
/// refuses or takes for the end of a line.
pub(crate) fn quoted(text: &str) -> String {
    let json = serde_json::Value::from(text).to_string();
    json.chars().fold(String::new(), |mut safe, c| {
        if c.is_control()
            || matches!(c, '\u{2028}' | '\u{2029}' | '\u{FEFF}' | '\u{FFFE}' | '\u{FFFF}')
        {
            let _infallible = write!(safe, "\\u{:04x}", c as u32);
        } else {
            safe.push(c);
        }
        safe
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_is_read_as_it_was() {
        let all: Vec<char> =
            (0..0x3000).chain(0xFE00..0x1_0010).filter_map(char::from_u32).collect();
        for some in all.chunks(97) {
            for text in [some.iter().collect::<String>(), some.iter().rev().collect()] {
                let read = serde_saphyr::from_str::<String>(&quoted(&text));
                assert_eq!(read.as_ref().ok(), Some(&text), "{read:?}");
            }
        }
        assert_eq!(quoted("a\u{85}\"é😀"), r#""a\u0085\"é😀""#);
    }
}

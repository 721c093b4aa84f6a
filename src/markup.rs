//! Text for HTML and SVG.

/// Text as it stands between tags and in quoted attributes. XML has no control characters, so these become spaces.
pub(crate) fn escape(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut safe, c| {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            // Marks that turn the direction of text would make other names of these.
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                safe.push('\u{fffd}');
            }
            '\u{fffe}' | '\u{ffff}' => safe.push('\u{fffd}'),
            c if c.is_control() => safe.push(' '),
            c => safe.push(c),
        }
        safe
    })
}

/// The first so many characters, with an ellipsis if there are more. Not escaped.
pub(crate) fn shorten(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['\u{2026}']).collect()
}

/// 1, 2 or 5 times a power of ten, at least as large.
pub(crate) fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.max(1e-300).log10().floor());
    let times = [1.0, 2.0, 5.0, 10.0].into_iter().find(|times| times * power >= step * 0.999);
    times.unwrap_or(10.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_name_is_markup() {
        assert_eq!(
            escape("<a href='x'>\"&\u{1b}\u{202e}\u{0}</a>\n"),
            "&lt;a href=&#39;x&#39;&gt;&quot;&amp; \u{fffd} &lt;/a&gt; "
        );
        assert_eq!(escape("layers.0.Größe 数"), "layers.0.Größe 数");
        assert_eq!(
            (shorten("abcdef", 6), shorten("äbcdefg", 6)),
            ("abcdef".into(), "äbcde…".into())
        );
        assert_eq!([0.013, 0.2, 3.0, 7.0].map(round_step), [0.02, 0.2, 5.0, 10.0]);
    }
}

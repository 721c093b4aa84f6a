//! "Did you mean ..?"

/// The word that was probably meant.
pub fn suggestion<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let typed = typed.to_lowercase().replace('-', "_");
    let most = typed.len().div_ceil(3).min(3);
    known
        .into_iter()
        .map(|word| (distance(&typed, word), word))
        .filter(|&(distance, _)| distance <= most)
        .min()
        .map(|(_, word)| word)
}

/// Edits (insert, delete, replace, swap neighbours) between two words.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_probably_meant() {
        let known = ["weight", "density", "lambda", "keep", "scope", "merge_method", "dare_ties"];
        for (typed, meant) in [
            ("wieght", Some("weight")),
            ("densty", Some("density")),
            ("Lambda", Some("lambda")),
            ("merge-method", Some("merge_method")),
            ("kep", Some("keep")),
            ("dare-ties", Some("dare_ties")),
            ("tokenizer", None),
        ] {
            assert_eq!(suggestion(typed, known), meant, "{typed}");
        }
    }
}

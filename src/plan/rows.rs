//! Rows of embeddings that move: which row of which table each row of the output is, where tokens have other numbers.

use std::collections::BTreeMap;

use crate::kernel::Float;

/// Numbers of tokens that a checkpoint does not have.
pub const NONE: u32 = u32::MAX;

/// Which token of each checkpoint is which of the output.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Vocabulary {
    /// For each checkpoint, and each number of the output: the token's number there, or [`NONE`]. Numbers of the
    /// output that no checkpoint has are those of padding.
    pub numbers: Vec<Vec<u32>>,
    /// For each checkpoint whether a number is that of a token there.
    pub taken: Vec<Vec<bool>>,
    /// The base, if there is one.
    pub base: Option<usize>,
    /// The checkpoint whose tokenizer is the output's, or the beginning of it.
    pub lender: usize,
    /// What the recipe says about single tokens, by their numbers in the output.
    pub rules: BTreeMap<u32, Rule>,
    /// How many rows the output has, if not those of the lender. Rows of no token are then the mean of all others.
    pub rows: Option<u64>,
}

/// Where the row of a token comes from in models that lack it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The token, for messages.
    pub token: String,
    /// A checkpoint and the row there; zeros if none.
    pub from: Option<(usize, u64)>,
    /// Whether models that have the token take this row, too.
    pub force: bool,
}

impl Vocabulary {
    /// The number that a token of the output has in a checkpoint.
    fn number(&self, checkpoint: usize, row: u64) -> Option<u64> {
        let number = *self.numbers.get(checkpoint)?.get(row as usize)?;
        (number != NONE).then_some(u64::from(number))
    }

    /// One more than the highest number of the output.
    pub fn end(&self) -> u64 {
        self.numbers.iter().map(Vec::len).max().unwrap_or(0) as u64
    }
}

/// A stored table.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// The checkpoint.
    pub checkpoint: usize,
    /// Index among the files of all checkpoints.
    pub file: u32,
    /// Absolute offset of the first element, in bytes.
    pub offset: u64,
    /// How elements are stored.
    pub float: Float,
    /// Its rows.
    pub rows: u64,
}

/// Rows of the output that follow each other in the tables, too.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// The first row of the output.
    pub first: u64,
    /// Number of rows.
    pub rows: u64,
    /// Tables and rows of which they are the mean; zeros if none.
    pub from: Vec<(u32, u64)>,
    /// Whether each of them is the mean of all rows of runs for which this is not so.
    pub mean: bool,
}

/// What the rows of one source of the output's tensor are made of.
#[derive(Clone, Debug, PartialEq)]
pub struct RowMap {
    /// Elements per row.
    pub columns: u64,
    /// The tables.
    pub tables: Vec<Table>,
    /// From the first row on, without gaps.
    pub runs: Vec<Run>,
}

impl RowMap {
    /// The rows of table `own` for `rows` rows of the output. A token has its own row where the model has it; else that
    /// of the base; else the mean of those of all that have it; unless a rule says otherwise. Padding stays, if it is
    /// padding there, or is the lender's, or the mean of all rows of tokens.
    pub(super) fn new(
        vocabulary: &Vocabulary,
        tables: &[Table],
        own: usize,
        rows: u64,
        columns: u64,
    ) -> Self {
        let at = |checkpoint: usize| tables.iter().position(|t| t.checkpoint == checkpoint);
        let (base, lender) = (vocabulary.base.and_then(at), at(vocabulary.lender));
        let has = |table: usize, row: u64| vocabulary.number(tables[table].checkpoint, row);
        let is_padding = |table: usize, row: u64| {
            let taken = vocabulary.taken.get(tables[table].checkpoint);
            let taken = taken.and_then(|taken| taken.get(row as usize)).copied().unwrap_or(false);
            row < tables[table].rows && !taken
        };
        let mut runs: Vec<Run> = Vec::new();
        let mut from: Vec<(u32, u64)> = Vec::new();
        for row in 0..rows {
            from.clear();
            let mut mean = false;
            let rule = u32::try_from(row).ok().and_then(|row| vocabulary.rules.get(&row));
            let one = match rule {
                Some(rule) if rule.force => None,
                _ => has(own, row).map(|at| (own, at)),
            };
            let one = one.or_else(|| match rule {
                Some(rule) => rule.from.and_then(|(of, at_row)| Some((at(of)?, at_row))),
                None => base.and_then(|base| Some((base, has(base, row)?))),
            });
            if let Some((table, at_row)) = one {
                from.push((table as u32, at_row));
            } else if rule.is_none() {
                from.extend((0..tables.len()).filter_map(|t| Some((t as u32, has(t, row)?))));
            }
            if from.is_empty() && rule.is_none() && vocabulary.rows.is_some() {
                mean = true;
            } else if from.is_empty() && rule.is_none() {
                let mut padding = [Some(own), lender].into_iter().flatten();
                from.extend(padding.find(|&t| is_padding(t, row)).map(|t| (t as u32, row)));
            }
            match runs.last_mut() {
                Some(run) if run.mean == mean && run.is_followed_by(&from) => run.rows += 1,
                _ => runs.push(Run { first: row, rows: 1, from: from.clone(), mean }),
            }
        }
        Self { columns, tables: tables.to_vec(), runs }
    }

    /// Rows that come to lie elsewhere than in table `own`, or are made of others.
    pub(super) fn moved(&self, own: usize) -> u64 {
        let stays = |run: &&Run| run.from[..] == [(own as u32, run.first)];
        self.runs.iter().filter(|run| !stays(run)).map(|run| run.rows).sum()
    }

    /// Rows of tokens that are zeros though nobody asked for that: none of the tables has them.
    pub(super) fn lost(&self, vocabulary: &Vocabulary) -> usize {
        let zeros = self.runs.iter().filter(|run| run.from.is_empty() && !run.mean);
        let is_token = |row: u64| {
            let ruled = u32::try_from(row).is_ok_and(|row| vocabulary.rules.contains_key(&row));
            !ruled && (0..vocabulary.numbers.len()).any(|of| vocabulary.number(of, row).is_some())
        };
        let rows = zeros.flat_map(|run| run.first..run.first + run.rows);
        rows.take_while(|&row| row < vocabulary.end()).filter(|&row| is_token(row)).count()
    }

    /// Whether some rows are means of all others.
    pub fn has_mean(&self) -> bool {
        self.runs.iter().any(|run| run.mean)
    }

    /// The runs that hold elements of `first..end`.
    pub fn runs(&self, first: u64, end: u64) -> &[Run] {
        let columns = self.columns.max(1);
        let from = self.runs.partition_point(|run| (run.first + run.rows) * columns <= first);
        let to = self.runs.partition_point(|run| run.first * columns < end);
        self.runs.get(from..to).unwrap_or_default()
    }
}

impl Run {
    fn is_followed_by(&self, from: &[(u32, u64)]) -> bool {
        let follows =
            |(&(a, row), &(b, next)): (&(u32, u64), &(u32, u64))| a == b && row + self.rows == next;
        self.from.len() == from.len() && self.from.iter().zip(from).all(follows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(checkpoint: usize, rows: u64) -> Table {
        Table { checkpoint, file: 0, offset: 0, float: Float::F32, rows }
    }

    #[test]
    fn rows_follow_their_tokens() {
        // Output: a b c x y, one row of padding. The base lacks x and y; one expert has x; both have y.
        let vocabulary = Vocabulary {
            numbers: vec![
                vec![0, 1, 2, NONE, NONE],
                vec![0, 2, 1, 3, 4],
                vec![0, 1, NONE, NONE, 2],
            ],
            taken: vec![vec![true; 3], vec![true; 5], vec![true; 3]],
            base: Some(0),
            ..Vocabulary::default()
        };
        let tables = [table(0, 6), table(1, 5), table(2, 3)];
        let map = |own| RowMap::new(&vocabulary, &tables, own, 6, 4);
        let run = |first, rows, from: &[(u32, u64)]| Run {
            first,
            rows,
            from: from.to_vec(),
            mean: false,
        };
        assert_eq!(
            map(0).runs,
            [
                run(0, 3, &[(0, 0)]),
                run(3, 1, &[(1, 3)]),
                run(4, 1, &[(1, 4), (2, 2)]),
                run(5, 1, &[(0, 5)])
            ]
        );
        assert_eq!(
            map(1).runs,
            [
                run(0, 1, &[(1, 0)]),
                run(1, 1, &[(1, 2)]),
                run(2, 1, &[(1, 1)]),
                run(3, 2, &[(1, 3)]),
                run(5, 1, &[(0, 5)])
            ]
        );
        assert_eq!(
            map(2).runs,
            [
                run(0, 2, &[(2, 0)]),
                run(2, 1, &[(0, 2)]),
                run(3, 1, &[(1, 3)]),
                run(4, 1, &[(2, 2)]),
                run(5, 1, &[(0, 5)])
            ]
        );
        assert_eq!(map(0).moved(0), 2);
        let map = map(1);
        assert_eq!(map.runs(0, 4).len(), 1);
        assert_eq!(map.runs(3, 9).iter().map(|run| run.first).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(map.runs(12, 20).iter().map(|run| run.first).collect::<Vec<_>>(), [3]);
        assert_eq!(map.runs(0, 24).len(), 5);
    }

    #[test]
    fn a_row_that_nobody_has_is_zero() {
        let vocabulary =
            Vocabulary { numbers: vec![vec![0]], taken: vec![vec![true]], ..Vocabulary::default() };
        let map = RowMap::new(&vocabulary, &[table(0, 1)], 0, 2, 4);
        assert_eq!(map.runs[1], Run { first: 1, rows: 1, from: Vec::new(), mean: false });
    }

    #[test]
    fn a_rule_says_where_a_row_comes_from() {
        // Tokens a b c d; the model lacks c and d, the base has all but d, which is x's.
        let rule = |from, force| Rule { token: String::new(), from, force };
        let mut vocabulary = Vocabulary {
            numbers: vec![vec![0, 1, 2, NONE], vec![0, 1, NONE, NONE], vec![0, 1, 2, 3]],
            taken: vec![vec![true; 3], vec![true; 2], vec![true; 4]],
            base: Some(0),
            ..Vocabulary::default()
        };
        vocabulary.rules = BTreeMap::from([
            (0, rule(Some((2, 3)), false)),
            (1, rule(Some((2, 3)), true)),
            (2, rule(None, false)),
            (3, rule(Some((0, 1)), false)),
        ]);
        let tables = [table(0, 4), table(1, 4), table(2, 4)];
        let of = |own: usize, vocabulary: &Vocabulary| -> Vec<Vec<(u32, u64)>> {
            let map = RowMap::new(vocabulary, &tables, own, 6, 4);
            let rows = |run: &Run| {
                let from = run.from.clone();
                (0..run.rows)
                    .map(move |k| from.iter().map(|&(t, row)| (t, row + k)).collect())
                    .collect()
            };
            map.runs.iter().flat_map(|run| -> Vec<Vec<(u32, u64)>> { rows(run) }).collect()
        };
        let none = Vec::<(u32, u64)>::new;
        let (zero, one, three) = (vec![(2, 3)], vec![(0, 1)], vec![(2, 3)]);
        // Its own a; b is forced; zeros for c; the base's b for d. Padding, if the tables have some.
        let own = vec![vec![(1, 0)], zero.clone(), none(), one.clone(), none(), none()];
        assert_eq!(of(1, &vocabulary), own);
        let base = vec![vec![(0, 0)], zero.clone(), vec![(0, 2)], one, none(), none()];
        assert_eq!(of(0, &vocabulary), base);
        assert_eq!(
            of(2, &vocabulary),
            vec![vec![(2, 0)], zero, vec![(2, 2)], three, none(), none()]
        );
        let map = RowMap::new(&vocabulary, &tables, 1, 6, 4);
        assert!(!map.has_mean());
        assert_eq!(map.lost(&vocabulary), 0);
        // Without its rule, d is in no table but x's.
        let mut bare = vocabulary.clone();
        let _rule = bare.rules.remove(&3);
        let narrow = [table(0, 3), table(1, 3)];
        assert_eq!(RowMap::new(&bare, &narrow, 1, 6, 4).lost(&bare), 1);
        // A row of padding stays as it is.
        assert_eq!(RowMap::new(&bare, &tables[..2], 1, 6, 4).lost(&bare), 0);
        vocabulary.rows = Some(6);
        let map = RowMap::new(&vocabulary, &tables, 1, 6, 4);
        let means: Vec<_> = map.runs.iter().filter(|run| run.mean).collect();
        assert_eq!(means, [&Run { first: 4, rows: 2, from: none(), mean: true }]);
    }
}

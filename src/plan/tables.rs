//! Tensors with a row for each token, where tokens have other numbers in the output.

use std::sync::Arc;

use super::align::{Alignment, Matcher, Part, row_len};
use super::evidence::Told;
use super::origin::Origin;
use super::problem::{Problem, Problems};
use super::rows::{RowMap, Rule, Table, Vocabulary};
use super::{Action, SourceRef};
use crate::checkpoint::TensorInfo;
use crate::kernel::Float;
use crate::recipe::Missing;

impl Matcher<'_> {
    /// The part that a tensor has in the output if its rows belong to tokens, and tokens move.
    pub(super) fn table(
        &self,
        origin: &Origin<'_>,
        merges: bool,
        found: &mut Alignment<'_>,
        problems: &mut Problems,
    ) -> Option<Part> {
        let vocabulary = self.inputs.vocabulary.as_ref()?;
        if !self.is_vocabulary(origin, origin.lent) {
            return None;
        }
        let columns = row_len(origin.lent);
        let (mut tables, mut own) = (Vec::new(), Vec::new());
        for source in &origin.sources {
            let Some(tensor) = source.tensor else {
                match self.recipe.missing {
                    Missing::Base => {
                        let label = self.label(source.checkpoint);
                        found.missing.push((label, source.name.to_string()));
                        own.push(None);
                    }
                    Missing::Error => problems.push(self.missing(source)),
                }
                continue;
            };
            let table = self.one_table(vocabulary, origin, source.checkpoint, tensor);
            match table {
                Ok(table) => {
                    own.push(Some(tables.len()));
                    tables.push(table);
                }
                Err(text) => problems.push(Problem::Token {
                    tensor: origin.name.to_string(),
                    expert: self.label(source.checkpoint),
                    text,
                }),
            }
        }
        let nothing = || Part {
            action: Action::Convert,
            elements: 0,
            sources: Vec::new(),
            told: Told::Nothing,
        };
        let donor = own.get(origin.donor).copied().flatten();
        let (true, Some(donor)) = (own.len() == origin.sources.len(), donor) else {
            // What is wrong has been told.
            return Some(nothing());
        };
        let rules = vocabulary.rules.values();
        let wrong: Vec<Problem> =
            rules.filter_map(|rule| self.cannot_follow(rule, &tables, origin)).collect();
        if !wrong.is_empty() {
            wrong.into_iter().for_each(|problem| problems.push(problem));
            return Some(nothing());
        }
        let lender = tables.iter().find(|table| table.checkpoint == vocabulary.lender);
        let rows = vocabulary
            .rows
            .unwrap_or_else(|| lender.unwrap_or(&tables[donor]).rows.max(vocabulary.end()));
        let source = |own: usize| {
            let map = RowMap::new(vocabulary, &tables, own, rows, columns);
            let Table { checkpoint, file, offset, .. } = tables[own];
            let rows = Some(Arc::new(map));
            SourceRef {
                checkpoint: checkpoint as u32,
                file,
                offset,
                float: Float::F32,
                low_rank: None,
                rows,
            }
        };
        let elements = rows * columns;
        let made = source(donor);
        let lost = made.rows.as_ref().map_or(0, |map| map.lost(vocabulary));
        if lost > 0 {
            found.warnings.push(format!(
                "{}: {lost} of {rows} rows are zeros, those of tokens that none of the models it is made of has",
                origin.name
            ));
        }
        if !merges {
            let sources = vec![made];
            return Some(Part { action: Action::Convert, elements, sources, told: Told::Nothing });
        }
        let sources: Vec<SourceRef> = own.iter().map(|own| source(own.unwrap_or(donor))).collect();
        for (own, of) in own.iter().zip(&sources) {
            let moved = of.rows.as_ref().map_or(0, |map| map.moved(own.unwrap_or(donor)));
            if moved > 0 {
                let label = self.label(of.checkpoint as usize);
                found.warnings.push(format!(
                    "{}: {moved} of {rows} rows of {label} are moved or made for the output's tokens",
                    origin.name
                ));
            }
        }
        Some(Part { action: Action::Merge, elements, sources, told: Told::Nothing })
    }

    /// The row that a rule names must be there.
    fn cannot_follow(&self, rule: &Rule, tables: &[Table], origin: &Origin<'_>) -> Option<Problem> {
        let (checkpoint, row) = rule.from?;
        let text = match tables.iter().find(|table| table.checkpoint == checkpoint) {
            Some(table) if row < table.rows => return None,
            Some(table) => {
                format!("the row for {:?} is number {row}, and it has {}", rule.token, table.rows)
            }
            None => format!("it is not merged here, and has the row for {:?}", rule.token),
        };
        let (tensor, expert) = (origin.name.to_string(), self.label(checkpoint));
        Some(Problem::Token { tensor, expert, text })
    }

    fn one_table(
        &self,
        vocabulary: &Vocabulary,
        origin: &Origin<'_>,
        checkpoint: usize,
        tensor: &TensorInfo,
    ) -> Result<Table, String> {
        let float = tensor.dtype.known().and_then(Float::from_dtype);
        let float = float.ok_or_else(|| format!("it is stored as {}", tensor.dtype))?;
        if tensor.shape.get(1..) != origin.lent.shape.get(1..) {
            let (shape, wanted) = (&tensor.shape, &origin.lent.shape);
            return Err(format!("it is {shape:?}, and {wanted:?} in the donor"));
        }
        if tensor.adapted.as_ref().is_some_and(|adapted| adapted.low_rank.is_some()) {
            return Err(
                "an adapter changes it; apply the adapter first (--method passthrough)".into()
            );
        }
        let rows = tensor.shape[0];
        let taken = vocabulary.taken.get(checkpoint).map_or(0, Vec::len) as u64;
        if taken > rows {
            return Err(format!(
                "its tokenizer has numbers up to {}, and it {rows} rows",
                taken - 1
            ));
        }
        let file = self.inputs.file_index(checkpoint, tensor.file);
        Ok(Table { checkpoint, file, offset: tensor.offset, float, rows })
    }
}

//! Opens the checkpoints of a recipe and settles which of their tensors are tied.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::Ties;
use crate::checkpoint::tokenizer::TOKENIZER;
use crate::checkpoint::{
    Adapter, Catalog, CheckpointError, OpenOptions, ShardFile, TensorInfo, display_name,
};
use crate::engine::EngineError;
use crate::engine::source::{Before, InputFile};
use crate::error::{Error, IoContext};
use crate::patience::patiently;
use crate::plan::Inputs;
use crate::plan::tied::{self, Tie};
use crate::recipe::{Recipe, reference};

/// Opens all checkpoints.
///
/// # Errors
/// The first checkpoint that is not one.
pub(super) fn open(recipe: &Recipe) -> Result<Inputs, Error> {
    let options = OpenOptions { lenient: recipe.lenient, ..OpenOptions::default() };
    let catalogs = recipe.checkpoints().map(|path| open_one(path, options));
    let mut catalogs: Vec<Catalog> = catalogs.collect::<Result<_, _>>()?;
    if recipe.tokenizer.is_some() {
        catalogs.iter_mut().try_for_each(|catalog| catalog.count_file(TOKENIZER))?;
    }
    let all = recipe.checkpoints().map(label);
    let all = all.chain(recipe.evidence.iter().map(|path| display_name(path)));
    let mut labels = distinct(all.collect());
    let measured = labels.split_off(catalogs.len());
    let inputs = Inputs::new(catalogs, recipe.has_base(), recipe.donor(), labels);
    let Some(evidence) = recipe.method.evidence else { return Ok(inputs) };
    let open = |path: &PathBuf| Catalog::open(path, options);
    let opened = recipe.evidence.iter().map(open).collect::<Result<_, _>>()?;
    Ok(inputs.with_evidence(evidence, opened, measured))
}

/// Opens a model with its adapter, if it has one.
fn open_one(path: &Path, options: OpenOptions) -> Result<Catalog, CheckpointError> {
    let (model, adapter) = reference::split(path);
    let mut catalog = Catalog::open(model, options)?;
    if let Some(adapter) = adapter {
        catalog.adapt(&Adapter::open(adapter, options)?)?;
    }
    Ok(catalog)
}

/// The name of a model for people, with that of its adapter.
fn label(path: &Path) -> String {
    match reference::split(path) {
        (model, Some(adapter)) => format!("{}+{}", display_name(model), display_name(adapter)),
        (model, None) => display_name(model),
    }
}

/// Numbers names that occur more than once, so that messages are clear.
fn distinct(names: Vec<String>) -> Vec<String> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut number = |name: String| {
        let count = seen.entry(name.clone()).or_default();
        *count += 1;
        if *count == 1 { name } else { format!("{name} ({count})") }
    };
    names.into_iter().map(&mut number).collect()
}

/// Decides which tensors are aliases and prepares the catalogs accordingly. `before` is told of what is read for that.
///
/// # Errors
/// If an input cannot be read.
pub(super) fn settle_ties(
    recipe: &Recipe,
    inputs: &mut Inputs,
    how: Ties<'_>,
    before: &Before,
) -> Result<Vec<Tie>, Error> {
    let mut ties = Vec::new();
    let candidates = tied::candidates(inputs);
    for candidate in &candidates {
        for catalog in &mut inputs.catalogs {
            tied::share_adapter(catalog, candidate)?;
        }
    }
    if recipe.count_aliases {
        return Ok(ties);
    }
    for candidate in candidates {
        let mut equal = true;
        for catalog in inputs.catalogs() {
            let Some((head, embedding)) = tied::pair(catalog, &candidate.name, &candidate.of)
            else {
                // A head of another form cannot be a copy.
                equal &= catalog.get(&candidate.name).is_none();
                continue;
            };
            let product = |t: &TensorInfo| t.adapted.clone().and_then(|a| a.low_rank);
            equal &= product(head) == product(embedding);
            equal &= match how {
                Ties::Assume => true,
                Ties::Compare(cancel) => same_bytes(catalog, (head, embedding), cancel, before)?,
            };
        }
        let tie = if equal { Tie::Alias(candidate) } else { Tie::Untied(candidate) };
        tied::apply(inputs, &tie);
        ties.push(tie);
    }
    Ok(ties)
}

/// A file as it was when its catalog was read.
pub(super) fn input_file(file: &ShardFile) -> InputFile {
    InputFile { path: file.path.clone(), len: file.len, inode: file.inode, mtime_ns: file.mtime_ns }
}

/// Compares two tensors of a checkpoint, a MiB at a time.
fn same_bytes(
    catalog: &Catalog,
    (a, b): (&TensorInfo, &TensorInfo),
    cancel: &AtomicBool,
    before: &Before,
) -> Result<bool, Error> {
    const STEP: u64 = 1 << 20;
    let open = |tensor: &TensorInfo| -> Result<(File, &ShardFile), Error> {
        let shard = &catalog.files[tensor.file as usize];
        let file = patiently(|| File::open(&shard.path)).at("open", &shard.path)?;
        before.look(&input_file(shard), &file, tensor.offset, tensor.len);
        Ok((file, shard))
    };
    let ((file_a, shard_a), (file_b, shard_b)) = (open(a)?, open(b)?);
    let mut buffers = [vec![0; STEP as usize], vec![0; STEP as usize]];
    for start in (0..a.len).step_by(STEP as usize) {
        if cancel.load(Ordering::Relaxed) {
            return Err(EngineError::Interrupted.into());
        }
        let len = STEP.min(a.len - start) as usize;
        let [buffer_a, buffer_b] = &mut buffers;
        let (buffer_a, buffer_b) = (&mut buffer_a[..len], &mut buffer_b[..len]);
        file_a.read_exact_at(buffer_a, a.offset + start).at("read", &shard_a.path)?;
        file_b.read_exact_at(buffer_b, b.offset + start).at("read", &shard_b.path)?;
        if buffer_a != buffer_b {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_are_numbered() {
        let names = ["a", "b", "a", "a"].map(String::from).to_vec();
        assert_eq!(distinct(names), ["a", "b", "a (2)", "a (3)"]);
    }
}

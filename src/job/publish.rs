//! Everything in an output directory that is not a shard.

use std::path::Path;

use super::Job;
use crate::checkpoint::{CardExpert, CardFile, ModelCard, config_json, side_files};
use crate::engine::sink::durable;
use crate::error::{Error, IoContext};
use crate::plan::tied::Tie;
use crate::recipe::OutputDtype;

const INDEX: &str = "model.safetensors.index.json";
const RECIPE: &str = "reflow_recipe.yml";
const CONFIG: &str = "config.json";
const CARD: &str = "README.md";

/// Whether `name` is a file that [`write()`] makes for this job.
pub(super) fn makes(job: &Job, name: &str) -> bool {
    [INDEX, RECIPE, CONFIG, CARD].contains(&name)
        || side_files(&job.inputs.base.root, job.recipe.copy_code).iter().any(|n| n == name)
}

/// Writes side files, model card, recipe, config and, last, the index.
pub(super) fn write(job: &Job, model: &Path) -> Result<(), Error> {
    let root = &job.inputs.base.root;
    for name in side_files(root, job.recipe.copy_code) {
        if name == CONFIG || name == CARD {
            continue;
        }
        let from = root.join(&name);
        let bytes = std::fs::read(&from).at("read", &from)?;
        durable::write_atomic(&model.join(&name), &bytes)?;
    }
    durable::write_atomic(&model.join(RECIPE), job.published_recipe().as_bytes())?;
    durable::write_atomic(&model.join(CARD), job.model_card().render().as_bytes())?;
    if let Some(config) = &job.inputs.base.config {
        let text = config_json(config, out_dtype(job), untied(job));
        durable::write_atomic(&model.join(CONFIG), text.as_bytes())?;
    }
    if let Some(index) = job.plan.layout.index_json() {
        durable::write_atomic(&model.join(INDEX), index.as_bytes())?;
    }
    Ok(())
}

/// The output type as configs call it, if the recipe changes it.
fn out_dtype(job: &Job) -> Option<&'static str> {
    match job.recipe.dtype {
        OutputDtype::Keep => None,
        OutputDtype::Bf16 => Some("bfloat16"),
        OutputDtype::F16 => Some("float16"),
        OutputDtype::F32 => Some("float32"),
    }
}

/// `Some(false)` if the output's head is no copy of its embedding any more.
fn untied(job: &Job) -> Option<bool> {
    job.plan.ties.iter().any(Tie::unties_head).then_some(false)
}

pub(super) fn model_card(job: &Job) -> ModelCard {
    let labels = &job.plan.labels;
    let lambda = |i: usize| job.recipe.experts[i].lambda;
    let files = job.inputs.catalogs().zip(labels).flat_map(|(catalog, label)| {
        catalog.files.iter().map(move |file| CardFile {
            checkpoint: label.clone(),
            file: file.name.clone(),
            bytes: file.len,
            header_sha256: file.header_sha256.clone(),
        })
    });
    ModelCard {
        base: labels[0].clone(),
        experts: (labels[1..].iter().enumerate())
            .map(|(i, name)| CardExpert { name: name.clone(), lambda: lambda(i) })
            .collect(),
        method: job.method.describe(),
        tag: job.recipe.method.name().to_owned(),
        recipe: job.published_recipe(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        files: files.collect(),
    }
}

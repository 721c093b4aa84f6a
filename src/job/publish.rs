//! Everything in an output directory that is not a shard, and the look at it before it is published.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::manifest::{self, Manifest, ManifestExtent, ManifestFile};
use super::output::Output;
use super::verify::{self, Depth};
use super::vocabulary::Tokenizer;
use super::{Job, components};
use crate::checkpoint::tokenizer::{
    TEMPLATE, TEMPLATE_JSON, TOKENIZER, TOKENIZER_CONFIG, config_with_tokens, is_tokenizer_file,
    list_with_tokens, with_template, with_tokens,
};
use crate::checkpoint::{
    CardExpert, CardFile, CheckpointError, LayerOrigin, ModelCard, STATISTICS, config_json, hex,
    relayered, side_files,
};
use crate::engine::EngineError;
use crate::engine::sink::durable;
use crate::error::{Error, IoContext};
use crate::method::registry::Preset;
use crate::patience::patiently;
use crate::plan::Layers;
use crate::plan::Segment;
use crate::plan::tied::Tie;
use crate::progress::{Progress, Silent};
use crate::recipe::{Model, OutputDtype};

const INDEX: &str = "model.safetensors.index.json";
const RECIPE: &str = "reflow_recipe.yml";
pub(super) const COEFFICIENTS: &str = "reflow_coefficients.json";
const CONFIG: &str = "config.json";
const CARD: &str = "README.md";

/// Names of the files that [`write()`] makes for this job.
///
/// # Errors
/// What the disk of the inputs says.
pub(super) fn names(job: &Job) -> Result<Vec<String>, Error> {
    if job.method.unifies() {
        let names = components::UNIFIED_NAMES.into_iter().chain([RECIPE, manifest::FILE]);
        return Ok(names.map(str::to_owned).collect());
    }
    let mut names = donated(job)?;
    names.extend([INDEX, RECIPE, CONFIG, CARD, manifest::FILE].map(str::to_owned));
    names.extend(job.recipe.coefficients.as_ref().map(|_| COEFFICIENTS.to_owned()));
    names.extend(job.settings.statistics.then(|| STATISTICS.to_owned()));
    names.sort();
    names.dedup();
    Ok(names)
}

/// Names of the side files that the output has from others: the donor's, or from where its tokenizer comes.
fn donated(job: &Job) -> Result<Vec<String>, Error> {
    let mut names = side_files(&job.inputs.donor().root, job.recipe.copy_code)?;
    if let Some(root) = &job.tokenizer.root {
        names.retain(|name| !is_tokenizer_file(name));
        names.extend(side_files(root, false)?.into_iter().filter(|name| is_tokenizer_file(name)));
    }
    if job.tokenizer.template.is_some() {
        names.push(TEMPLATE.to_owned());
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// A side file as the output has it.
fn side_file(job: &Job, name: &str) -> Result<Vec<u8>, Error> {
    let other = job.tokenizer.root.as_ref().filter(|_| is_tokenizer_file(name));
    let from = other.unwrap_or(&job.inputs.donor().root).join(name);
    let Tokenizer { added, template, .. } = &job.tokenizer;
    if let (TEMPLATE, Some(template)) = (name, template) {
        return Ok(template.clone().into_bytes());
    }
    let bytes = patiently(|| std::fs::read(&from)).at("read", &from)?;
    let with_added = |bytes: Vec<u8>| match name {
        _ if added.is_empty() => Ok(bytes),
        TOKENIZER => with_tokens(&bytes, added),
        TOKENIZER_CONFIG => config_with_tokens(&bytes, added),
        "added_tokens.json" => list_with_tokens(&bytes, added),
        _ => Ok(bytes),
    };
    let edited = with_added(bytes).and_then(|bytes| match (name, template) {
        // A processor's file, too: its loader looks there.
        (TOKENIZER_CONFIG | TEMPLATE_JSON, Some(template)) => with_template(&bytes, template),
        _ => Ok(bytes),
    });
    Ok(edited.map_err(|reason| CheckpointError::File { path: from, reason })?)
}

/// Sets the number of tokens to that of the rows of embeddings, if rows move.
fn resize(job: &Job, config: &mut Value) {
    let moved = |segment: &&Segment| segment.sources.iter().any(|source| source.rows.is_some());
    let table = job.plan.segments.iter().find(moved);
    let rows = table.and_then(|s| job.plan.tensors[s.tensor as usize].shape.first().copied());
    for place in ["/vocab_size", "/text_config/vocab_size"] {
        if let (Some(rows), Some(size)) = (rows, config.pointer_mut(place)) {
            *size = rows.into();
        }
    }
}

/// Writes side files, model card, recipe, config, index and manifest. `kept` are files that were made instead of shards:
/// these are no model, so there is nothing beside them that a loader would look for. `told` is one that was made beside shards.
pub(super) fn write(
    job: &Job,
    model: &Path,
    output: &Output<'_>,
    kept: Vec<ManifestFile>,
    told: Option<ManifestFile>,
) -> Result<(), Error> {
    let (mut files, is_model) = (shards(job, output)?, kept.is_empty());
    files.extend(kept.into_iter().chain(told));
    let mut write = |name: &str, bytes: &[u8]| -> Result<(), Error> {
        durable::write_atomic(&*job.storage, &model.join(name), bytes)?;
        let sha256 = hex(&Sha256::digest(bytes));
        let (name, bytes) = (name.to_owned(), bytes.len() as u64);
        files.push(ManifestFile { name, bytes, sha256, extents: Vec::new() });
        Ok(())
    };
    for name in if is_model { donated(job)? } else { Vec::new() } {
        if name == CONFIG || name == CARD || name == manifest::FILE {
            continue;
        }
        write(&name, &side_file(job, &name)?)?;
    }
    write(RECIPE, job.published_recipe().as_bytes())?;
    if let Some(coefficients) = &job.recipe.coefficients {
        write(COEFFICIENTS, coefficients.to_json().as_bytes())?;
    }
    if is_model {
        write(CARD, job.model_card().render().as_bytes())?;
    }
    if let Some((config, _)) = config(job).filter(|_| is_model) {
        write(CONFIG, config_json(&config, out_dtype(job), untied(job)).as_bytes())?;
    }
    if let Some(index) = job.plan.layout.index_json() {
        write(INDEX, index.as_bytes())?;
    }
    let text = Manifest::new(job.fingerprint(), files).render();
    Ok(durable::write_atomic(&*job.storage, &model.join(manifest::FILE), text.as_bytes())?)
}

/// The shards as the manifest lists them.
fn shards(job: &Job, output: &Output<'_>) -> Result<Vec<ManifestFile>, Error> {
    let hashes = output.hashes().ok_or(EngineError::Panicked("writer"))?;
    let shards = job.plan.layout.shards.iter().zip(hashes.shards).enumerate();
    let file = |(k, (shard, sha256)): (usize, (&crate::checkpoint::OutShard, String))| {
        let extents = output.extents().of_shard(k as u32).map(|(number, extent)| ManifestExtent {
            offset: extent.offset,
            bytes: extent.bytes,
            blake3: hashes.extents[number].to_hex().to_string(),
            tensor: extent.tensor.map(|t| job.plan.tensors[t as usize].name.to_string()),
        });
        ManifestFile {
            name: shard.file_name.clone(),
            bytes: shard.len,
            sha256,
            extents: extents.collect(),
        }
    };
    Ok(shards.map(file).collect())
}

/// Looks at the output once more before it is published: sizes, headers and index, or every byte.
///
/// # Errors
/// [`Error::Unsound`] if it is not what its manifest says.
pub(super) fn check(
    job: &Job,
    model: &Path,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<(), Error> {
    let depth = if job.settings.verify { Depth::Full } else { Depth::Quick };
    // A look at the form takes no time worth telling.
    let told: &dyn Progress = if depth == Depth::Full { progress } else { &Silent };
    let report = verify::finished(model, depth, told, cancel)?;
    report.tell(progress);
    report.sound(model)
}

/// The donor's config, for the output's layers; and what in it only a human can set right.
pub(super) fn config(job: &Job) -> Option<(serde_json::Value, Vec<String>)> {
    let mut config = job.inputs.donor().config.clone()?;
    resize(job, &mut config);
    let Some(layers) = &job.plan.layers else { return Some((config, Vec::new())) };
    let origin = |(checkpoint, layer): (usize, u64)| LayerOrigin {
        config: job.inputs.catalogs[checkpoint].config.as_ref(),
        layer: layer as usize,
    };
    let origins: Vec<LayerOrigin<'_>> = layers.lenders().map(origin).collect();
    let notes = relayered(&mut config, layers.donor, &origins);
    Some((config, notes))
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
    let files = job.inputs.catalogs().chain(&job.inputs.evidence).zip(labels).flat_map(
        |(catalog, label)| {
            catalog.files.iter().map(move |file| CardFile {
                checkpoint: label.clone(),
                file: file.name.clone(),
                bytes: file.len,
                header_sha256: file.header_sha256.clone(),
            })
        },
    );
    let experts = job.plan.experts().iter().zip(&job.recipe.models);
    ModelCard {
        base: job.plan.has_base.then(|| labels[0].clone()),
        experts: experts
            .map(|(name, model)| CardExpert {
                name: name.clone(),
                parameters: parameters(job, model),
            })
            .collect(),
        method: job.recipe.describe(),
        tag: job.recipe.method.name.to_owned(),
        recipe: job.published_recipe(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        files: files.collect(),
    }
}

/// Which layers of a model became which of the output.
fn part(job: &Job, layers: &Layers, model: &Model) -> String {
    let own = job.recipe.row_position(&model.path);
    let parts = layers.slices.iter().flat_map(|slice| {
        let sources = slice.sources.iter().filter(|source| Some(source.checkpoint) == own);
        sources.map(|source| {
            let run = |(first, end): (u64, u64)| match end.saturating_sub(1) {
                last if last == first => first.to_string(),
                last => format!("{first}-{last}"),
            };
            format!("layers {} as {}", run(source.layers), run(slice.layers))
        })
    });
    parts.collect::<Vec<_>>().join(", ")
}

/// What a model's part in the merge was: its own parameters, and the method's usual one in any case.
fn parameters(job: &Job, model: &Model) -> String {
    let mut shown: Vec<String> =
        model.parameters.iter().map(|(name, setting)| format!("{name} {setting}")).collect();
    if let Some(layers) = &job.plan.layers {
        return part(job, layers, model);
    }
    if let Some(name) = job.recipe.method.per_expert
        && model.parameters.get(name).is_none()
    {
        let preset = job.recipe.method.parameter(name).map(|parameter| parameter.preset);
        let common = job.recipe.parameters.get(name).map(ToString::to_string);
        let default = || match preset {
            Some(Preset::Number(number)) => Some(number.to_string()),
            _ => None,
        };
        let coefficients = job.recipe.coefficients.as_ref().map(|_| format!("by {COEFFICIENTS}"));
        if let Some(value) = coefficients.or(common).or_else(default) {
            shown.insert(0, format!("{name} {value}"));
        }
    }
    shown.join(", ")
}

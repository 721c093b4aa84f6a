//! The plan in numbers and names, for people and for `--json`.

use serde::Serialize;

use super::{Action, Budget, Layers, Plan, Run, tied::Tie};
use crate::method::Method;

/// One kind of pass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PassSummary {
    /// What it does.
    pub name: String,
    /// How many passes of this name there are (one per unit that is streamed).
    pub count: u64,
    /// Bytes read over all of them.
    pub read: u64,
    /// Bytes written over all of them.
    pub written: u64,
}

/// What an adapter does to its model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AdapterSummary {
    /// The model with its adapter, by display name.
    pub model: String,
    /// Tensors that a product of two small matrices is added to.
    pub low_rank: usize,
    /// The least and the greatest rank.
    pub ranks: Option<(u64, u64)>,
    /// Tensors that the adapter stores whole.
    pub whole: usize,
}

/// A shard of the output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ShardSummary {
    /// File name.
    pub file: String,
    /// File size in bytes.
    pub bytes: u64,
    /// Number of tensors.
    pub tensors: usize,
}

/// What would happen.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlanSummary {
    /// The method with its parameters.
    pub method: String,
    /// The base by display name, if there is one.
    pub base: Option<String>,
    /// The models besides it.
    pub experts: Vec<String>,
    /// Tensors that are merged.
    pub merged_tensors: usize,
    /// Their elements.
    pub merged_parameters: u64,
    /// Tensors taken from the base.
    pub copied_tensors: Vec<String>,
    /// (expert, tensor) that count as unchanged.
    pub missing: Vec<(String, String)>,
    /// (expert, tensor) left out.
    pub extra: Vec<(String, String)>,
    /// What was measured of the models: as recipes call it, and a file or directory for each by display name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evidence: Option<(&'static str, Vec<String>)>,
    /// What adapters do, model by model.
    pub adapters: Vec<AdapterSummary>,
    /// The layers of an output that is made of slices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<Layers>,
    /// Tied weights, as sentences.
    pub ties: Vec<String>,
    /// Sets of elements over which statistics are taken.
    pub units: usize,
    /// Passes in order of first appearance.
    pub passes: Vec<PassSummary>,
    /// Bytes read over all passes.
    pub read: u64,
    /// Bytes written.
    pub written: u64,
    /// Output shards.
    pub shards: Vec<ShardSummary>,
    /// Bytes, at most, of what is made instead of shards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unified: Option<u64>,
    /// Parameters of the output.
    pub parameters: u64,
    /// Memory by purpose.
    pub memory: Budget,
    /// Warnings.
    pub warnings: Vec<String>,
}

impl PlanSummary {
    /// Summarises a plan.
    pub fn new(plan: &Plan, method: &dyn Method) -> Self {
        let passes = passes(plan, method);
        let of = |wanted: fn(&Action) -> bool| {
            let mut tensors: Vec<u32> =
                plan.segments.iter().filter(|s| wanted(&s.action)).map(|s| s.tensor).collect();
            tensors.sort_unstable();
            tensors.dedup();
            tensors
        };
        let merged = of(|action| *action == Action::Merge);
        let copied = of(|action| *action != Action::Merge)
            .into_iter()
            .filter(|tensor| merged.binary_search(tensor).is_err())
            .map(|tensor| plan.tensors[tensor as usize].name.to_string())
            .collect();
        Self {
            method: plan.method.clone(),
            base: plan.has_base.then(|| plan.labels[0].clone()),
            experts: plan.experts().to_vec(),
            merged_tensors: merged.len(),
            merged_parameters: plan.units.iter().map(|u| u.view.elements).sum(),
            copied_tensors: copied,
            missing: plan.missing.clone(),
            extra: plan.extra.clone(),
            evidence: plan.evidence().map(|(key, labels)| (key, labels.to_vec())),
            adapters: plan.adapters.clone(),
            layers: plan.layers.clone(),
            ties: plan.ties.iter().map(describe).collect(),
            units: plan.units.len(),
            read: passes.iter().map(|p| p.read).sum(),
            written: passes.iter().map(|p| p.written).sum(),
            passes,
            shards: plan
                .layout
                .shards
                .iter()
                .map(|s| ShardSummary {
                    file: s.file_name.clone(),
                    bytes: s.len,
                    tensors: s.tensors.len(),
                })
                .collect(),
            unified: None,
            parameters: plan.layout.total_parameters,
            memory: plan.budget.clone(),
            warnings: plan.warnings.clone(),
        }
    }
}

fn describe(tie: &Tie) -> String {
    match tie {
        Tie::Alias(c) => {
            format!("{} is tied to {}: if all bytes agree, merged and counted once", c.name, c.of)
        }
        Tie::Untied(c) => format!("{} differs from {}: merged as its own tensor", c.name, c.of),
    }
}

/// All passes, those of the same name together.
fn passes(plan: &Plan, method: &dyn Method) -> Vec<PassSummary> {
    let mut passes: Vec<PassSummary> = Vec::new();
    let mut add = |name: &str, read: u64, written: u64| {
        let found = passes.iter_mut().find(|p| p.name == name);
        if let Some(pass) = found {
            pass.count += 1;
            pass.read += read;
            pass.written += written;
        } else {
            passes.push(PassSummary { name: name.to_owned(), count: 1, read, written });
        }
    };
    let written = |segments: &[u32]| -> u64 {
        let bytes = |&s: &u32| {
            let segment = &plan.segments[s as usize];
            segment.elements * u64::from(segment.out_size)
        };
        segments.iter().map(bytes).sum()
    };
    for run in &plan.runs {
        match run {
            Run::Copies(segments) => add("copy", plan.input_bytes(segments), written(segments)),
            Run::Whole(units) => {
                let segments: Vec<u32> =
                    units.iter().flat_map(|&u| plan.unit_segments(u)).copied().collect();
                add("all passes in memory", plan.input_bytes(&segments), written(&segments));
            }
            Run::Solved(unit) => {
                add("solve", plan.solve_bytes(*unit), written(plan.unit_segments(*unit)));
            }
            Run::Streamed(unit) => {
                let segments = plan.unit_segments(*unit);
                let view = plan.view(*unit);
                let (names, sampled) = (method.passes(view), method.sampled(view));
                for (i, name) in names.iter().enumerate() {
                    let writes = i + 1 == names.len();
                    let share = sampled.filter(|&(samples, _)| i < samples);
                    let share = share.map_or(1.0, |(_, sampling)| sampling.share());
                    let read = (plan.input_bytes(segments) as f64 * share) as u64;
                    add(name, read, if writes { written(segments) } else { 0 });
                }
            }
        }
    }
    passes
}

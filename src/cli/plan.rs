//! The plan as text.

use std::fmt::Write as _;

use crate::human::{bytes, count};
use crate::job::Space;
use crate::plan::{AdapterSummary, Layers, PlanSummary};

/// How many names of a list are shown before "and N more".
const SHOWN: usize = 8;

/// Renders a plan for a terminal. `io` says how inputs are read and why.
pub(super) fn render(plan: &PlanSummary, io: &str) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: String| {
        let _infallible = writeln!(text, "{label:>12}  {value}");
    };
    line("method", plan.method.clone());
    if let Some(base) = &plan.base {
        line("base", base.clone());
    }
    line(if plan.base.is_some() { "experts" } else { "models" }, plan.experts.join(", "));
    line(
        "merge",
        format!(
            "{} tensors, {} parameters, statistics over {}",
            plan.merged_tensors,
            count(plan.merged_parameters),
            units(plan.units),
        ),
    );
    if !plan.copied_tensors.is_empty() {
        line("copy", names(plan.copied_tensors.len(), plan.copied_tensors.iter().cloned()));
    }
    if let Some((key, files)) = &plan.evidence {
        line(key, files.join(", "));
    }
    for adapter in &plan.adapters {
        line("adapter", render_adapter(adapter));
    }
    for (label, text) in plan.layers.iter().flat_map(layers) {
        line(label, text);
    }
    for tie in &plan.ties {
        line("tied", tie.clone());
    }
    for (label, pairs) in [("missing", &plan.missing), ("left out", &plan.extra)] {
        if !pairs.is_empty() {
            let pairs_text = pairs.iter().map(|(expert, tensor)| format!("{tensor} ({expert})"));
            line(label, names(pairs.len(), pairs_text));
        }
    }
    for pass in &plan.passes {
        let times = if pass.count > 1 { format!("{} x ", pass.count) } else { String::new() };
        let written = match pass.written {
            0 => String::new(),
            written => format!(", writes {}", bytes(written)),
        };
        line("pass", format!("{times}{}: reads {}{written}", pass.name, bytes(pass.read)));
    }
    line("read", format!("{} in all, by {io}", bytes(plan.read)));
    line(
        "output",
        match plan.unified {
            None => format!(
                "{} parameters in {}",
                count(plan.parameters),
                shards(plan.shards.len(), plan.shards.iter().map(|s| s.bytes).sum()),
            ),
            Some(most) => format!(
                "no model: one task vector and {} masks, about {} if everything has moved; `reflow apply` makes models",
                plan.experts.len(),
                bytes(most),
            ),
        },
    );
    let memory = &plan.memory;
    line(
        "memory",
        format!("{} of {} ({})", bytes(memory.total()), bytes(memory.limit), memory.source),
    );
    line(
        "",
        format!(
            "{} for {} tiles of {} elements, {}{}{} for statistics ({}), {}{} for writing, {} for \
             program and headers",
            bytes(memory.input_bytes + memory.output_bytes),
            memory.tiles,
            count(memory.tile_elements.into()),
            match memory.adapter_bytes {
                0 => String::new(),
                adapters => format!("{} for adapters, ", bytes(adapters)),
            },
            match memory.solve_bytes {
                0 => String::new(),
                solve => format!("{} for solving, ", bytes(solve)),
            },
            bytes(memory.fold_bytes),
            workers(memory.workers),
            match memory.seen_bytes {
                0 => String::new(),
                seen => format!("{} for what --statistics sees, ", bytes(seen)),
            },
            bytes(memory.write_bytes),
            bytes(memory.fixed_bytes),
        ),
    );
    text
}

fn render_adapter(adapter: &AdapterSummary) -> String {
    let ranks = match adapter.ranks {
        Some((least, most)) if least == most => format!(" by rank {least}"),
        Some((least, most)) => format!(" by ranks {least} to {most}"),
        None => String::new(),
    };
    let whole = match adapter.whole {
        0 => String::new(),
        whole => format!(", {whole} stored whole"),
    };
    format!("{}: {} tensors changed{ranks}{whole}", adapter.model, adapter.low_rank)
}

/// The lines about slices: the stack, what each run of output layers is made of, what is in none.
fn layers(layers: &Layers) -> Vec<(&'static str, String)> {
    let others = match &layers.other_stacks[..] {
        [] => String::new(),
        others => format!("; {} as in its models", others.join(", ")),
    };
    let (count, donor) = (layers.output, layers.donor);
    let mut lines =
        vec![("layers", format!("{}: {count} (the donor has {donor}){others}", layers.stack))];
    for slice in &layers.slices {
        let sources = slice.sources.iter();
        let sources = sources.map(|source| format!("{} of {}", run(source.layers), source.model));
        let sources = sources.collect::<Vec<_>>().join(", ");
        lines.push(("slice", format!("{} from {sources}", run(slice.layers))));
    }
    for left in &layers.left_out {
        let runs = left.layers.iter().map(|&layers| run(layers)).collect::<Vec<_>>().join(", ");
        let mut parts = Vec::new();
        if left.tensors > 0 {
            parts.push(format!("layers {runs} ({} tensors)", left.tensors));
        }
        if !left.outside.is_empty() {
            parts.push(names(left.outside.len(), left.outside.iter().cloned()));
        }
        lines.push(("in no slice", format!("{}: {}", left.model, parts.join(", "))));
    }
    lines
}

/// A run of layers, by the first and the last.
fn run((first, end): (u64, u64)) -> String {
    if end == first + 1 { first.to_string() } else { format!("{first}-{}", end.saturating_sub(1)) }
}

/// The line about disk space.
pub(super) fn render_space(space: &Space) -> String {
    format!("{:>12}  {} needed, {} free\n", "disk", bytes(space.needed), bytes(space.free))
}

fn units(count: usize) -> String {
    if count == 1 { "the whole model".to_owned() } else { format!("{count} units") }
}

fn workers(count: usize) -> String {
    if count == 1 { "1 worker".to_owned() } else { format!("{count} workers") }
}

fn shards(count: usize, total: u64) -> String {
    let files = if count == 1 { "1 file".to_owned() } else { format!("{count} shards") };
    format!("{files}, {}", bytes(total))
}

fn names(total: usize, names: impl Iterator<Item = String>) -> String {
    let mut shown = names.take(SHOWN).collect::<Vec<_>>().join(", ");
    if total > SHOWN {
        let _infallible = write!(shown, " and {} more", total - SHOWN);
    }
    shown
}

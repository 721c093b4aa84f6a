//! What a checkpoint holds, as text and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use super::output::printable;
use crate::checkpoint::components::Kind;
use crate::checkpoint::{Adapter, Catalog, Product, TensorInfo};
use crate::human::{bytes, count};
use crate::job::{Components, Rescalers};

/// Renders a catalog for a terminal; `all` lists every tensor by itself.
pub(super) fn render(catalog: &Catalog, all: bool) -> String {
    let mut text = String::new();
    let total: u64 = catalog.tensors.iter().map(|t| t.len).sum();
    let _infallible = writeln!(
        text,
        "{}: {} tensors, {} parameters, {}",
        catalog.root.display(),
        catalog.tensors.len(),
        count(parameters(catalog)),
        bytes(total)
    );
    for (dtype, (tensors, size)) in by_type(catalog) {
        let _infallible = writeln!(text, "  {dtype}: {tensors} tensors, {}", bytes(size));
    }
    for (k, file) in catalog.files.iter().enumerate() {
        let tensors = catalog.tensors.iter().filter(|t| t.file as usize == k).count();
        let _infallible = writeln!(text, "  {}: {tensors} tensors, {}", file.name, bytes(file.len));
    }
    text.push('\n');
    let tensors = catalog.tensors.iter().map(|t| (t.name.to_string(), form(t)));
    table(&mut text, groups(tensors, all));
    printable(&text)
}

/// Renders an adapter for a terminal; `all` lists every tensor by itself.
pub(super) fn render_adapter(adapter: &Adapter, all: bool) -> String {
    let [file, _] = &adapter.files;
    let trained = adapter.base.as_deref().map_or_else(String::new, |base| format!(" of {base}"));
    let mut text = format!(
        "{}: a LoRA adapter{trained}: {} products, {} tensors stored whole, {}\n\n",
        adapter.root.display(),
        adapter.products.len(),
        adapter.whole.len(),
        bytes(file.len),
    );
    let products = adapter.products.iter().map(|(module, product)| {
        let Product { a, b, rank, scale, .. } = product;
        let dtype = if a.dtype == b.dtype {
            a.dtype.to_string()
        } else {
            format!("{}, {}", a.dtype, b.dtype)
        };
        (format!("{module}.weight"), format!("{dtype} rank {rank}, scale {scale}"))
    });
    let whole = adapter.whole.iter().map(|(name, tensor)| (name.clone(), form(tensor)));
    let rows = groups(products.chain(whole), all);
    table(&mut text, rows);
    printable(&text)
}

/// An adapter as JSON.
pub(super) fn adapter_json(adapter: &Adapter) -> Value {
    let tensor = |t: &TensorInfo| {
        json!({ "name": t.name, "dtype": t.dtype.to_string(), "shape": t.shape, "offset": t.offset,
                "bytes": t.len })
    };
    let products = adapter.products.iter().map(|(module, product)| {
        let Product { a, b, rank, scale, .. } = product;
        json!({ "module": module, "rank": rank, "scale": scale, "a": tensor(a), "b": tensor(b) })
    });
    let whole =
        adapter.whole.iter().map(|(name, t)| json!({ "stands_for": name, "tensor": tensor(t) }));
    json!({
        "path": adapter.root.display().to_string(),
        "kind": "lora",
        "base": adapter.base,
        "products": products.collect::<Vec<_>>(),
        "whole": whole.collect::<Vec<_>>(),
        "files": adapter.files.iter().map(|file| json!({ "name": file.name, "bytes": file.len }))
            .collect::<Vec<_>>(),
        "warnings": adapter.warnings,
    })
}

fn table(text: &mut String, rows: Vec<(String, String, usize)>) {
    let width = rows.iter().map(|row| row.0.chars().count()).max().unwrap_or(0);
    for (name, form, times) in rows {
        let times = if times > 1 { format!("  x {times}") } else { String::new() };
        let _infallible = writeln!(text, "{name:width$}  {form}{times}");
    }
}

/// Renders a directory of components; `all` lists every tensor by itself.
pub(super) fn components(path: &Path, components: &Components, all: bool) -> String {
    let elements: u64 = components.merged().map(|tensor| tensor.elements).sum();
    let mut text = String::new();
    let _infallible = writeln!(
        text,
        "{}: {} of {} experts in {} tensors, {} parameters, {}",
        path.display(),
        match components.kind() {
            Kind::Shares => "shares",
            Kind::Unified => "one task vector, with masks and rescalers,",
        },
        components.experts(),
        components.merged().count(),
        count(elements),
        bytes(components.bytes)
    );
    let mut labels = components.labels.iter();
    let base = labels.next().map_or("", String::as_str);
    let _infallible = writeln!(text, "  base: {base}, BLAKE3 {}", components.base);
    for (i, label) in labels.enumerate() {
        let entries: u64 = components.tensors.iter().filter_map(|t| t.entries.get(i)).sum();
        let share = 100.0 * entries as f64 / elements.max(1) as f64;
        let _infallible = match components.rescalers.get(i) {
            None => writeln!(text, "  {label}: {} shares, {share:.2} %", count(entries)),
            Some(Rescalers { tensor_mean, global_l1 }) => writeln!(
                text,
                "  {label}: mask of {} parameters, {share:.2} %, rescaler {tensor_mean} (tensor-mean), \
                 {global_l1} (global-l1)",
                count(entries)
            ),
        };
    }
    let _infallible = writeln!(text, "\n{}", components.recipe.trim_end());
    if all {
        let names = components.merged().map(|tensor| tensor.name.chars().count());
        let width = names.max().unwrap_or(0);
        text.push('\n');
        for tensor in components.merged() {
            let entries: Vec<String> = tensor.entries.iter().map(|&n| count(n)).collect();
            let (name, of) = (&tensor.name, count(tensor.elements));
            let _infallible = writeln!(text, "{name:width$}  {} of {of}", entries.join(", "));
        }
    }
    printable(&text)
}

/// A directory of components as JSON.
pub(super) fn components_json(components: &Components) -> Value {
    let tensors = components.tensors.iter().map(|tensor| {
        json!({ "name": tensor.name, "first": tensor.first, "elements": tensor.elements,
                "copied": tensor.copied, "base": tensor.base,
                "entries": tensor.entries, "offset": tensor.offset,
                "bytes": tensor.frames.iter().map(|&bytes| u64::from(bytes)).sum::<u64>() })
    });
    let mut value = json!({
        "reflow": components.reflow, "plan": components.plan, "recipe": components.recipe,
        "models": components.labels, "base": components.base, "bytes": components.bytes, "sha256": components.sha256,
        "tensors": tensors.collect::<Vec<_>>(),
    });
    if components.kind() == Kind::Unified {
        value["kind"] = json!("emr");
        value["rescalers"] = json!(components.rescalers);
    }
    value
}

/// A catalog as JSON.
pub(super) fn json(catalog: &Catalog) -> Value {
    let files = catalog.files.iter().map(|file| {
        json!({ "name": file.name, "bytes": file.len, "header_bytes": file.header_len,
                "header_sha256": file.header_sha256 })
    });
    let tensors = catalog.tensors.iter().map(|tensor| {
        json!({ "name": tensor.name, "dtype": tensor.dtype.to_string(), "shape": tensor.shape,
                "file": catalog.files[tensor.file as usize].name, "offset": tensor.offset,
                "bytes": tensor.len })
    });
    let types: BTreeMap<String, Value> = by_type(catalog)
        .into_iter()
        .map(|(dtype, (tensors, size))| (dtype, json!({ "tensors": tensors, "bytes": size })))
        .collect();
    json!({
        "path": catalog.root.display().to_string(),
        "parameters": parameters(catalog),
        "bytes": catalog.tensors.iter().map(|t| t.len).sum::<u64>(),
        "dtypes": types,
        "files": files.collect::<Vec<_>>(),
        "tensors": tensors.collect::<Vec<_>>(),
        "warnings": catalog.warnings,
    })
}

fn parameters(catalog: &Catalog) -> u64 {
    catalog.tensors.iter().map(TensorInfo::elements).sum()
}

fn by_type(catalog: &Catalog) -> BTreeMap<String, (usize, u64)> {
    let mut types: BTreeMap<String, (usize, u64)> = BTreeMap::new();
    for tensor in &catalog.tensors {
        let entry = types.entry(tensor.dtype.to_string()).or_default();
        entry.0 += 1;
        entry.1 += tensor.len;
    }
    types
}

fn form(tensor: &TensorInfo) -> String {
    format!("{} {:?}", tensor.dtype, tensor.shape)
}

/// Names and forms of tensors, each a row; or, unless `all` are wanted, those that differ in numbers inside their
/// names only as one row: `layers.{0..21}.up_proj`.
fn groups(
    tensors: impl Iterator<Item = (String, String)>,
    all: bool,
) -> Vec<(String, String, usize)> {
    if all {
        return tensors.map(|(name, form)| (name, form, 1)).collect();
    }
    let mut groups: BTreeMap<(String, String), Vec<Vec<u64>>> = BTreeMap::new();
    for (name, form) in tensors {
        let mut numbers = Vec::new();
        let pattern: Vec<String> = (name.split('.'))
            .map(|part| match part.parse::<u64>() {
                Ok(number) => {
                    numbers.push(number);
                    "{}".to_owned()
                }
                Err(_) => part.to_owned(),
            })
            .collect();
        groups.entry((pattern.join("."), form)).or_default().push(numbers);
    }
    let rows = groups.into_iter().map(|((pattern, form), members)| {
        let mut name = String::new();
        for (slot, part) in pattern.split("{}").enumerate() {
            if slot > 0 {
                let values = || members.iter().map(|numbers| numbers[slot - 1]);
                let (least, most) = (values().min().unwrap_or(0), values().max().unwrap_or(0));
                let _infallible = if least == most {
                    write!(name, "{least}")
                } else {
                    write!(name, "{{{least}..{most}}}")
                };
            }
            name.push_str(part);
        }
        (name, form, members.len())
    });
    rows.collect()
}

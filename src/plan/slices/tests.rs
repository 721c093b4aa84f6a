use super::*;
use crate::recipe::golden::{self, Case};
use crate::recipe::{Place, Recipe};

fn catalog(names: &[String]) -> Catalog {
    let tensor = |name: &String| TensorInfo {
        name: name.as_str().into(),
        dtype: crate::checkpoint::DType::Known(safetensors::Dtype::F32),
        shape: [1].into(),
        file: 0,
        offset: 0,
        len: 4,
        adapted: None,
    };
    let mut tensors: Vec<TensorInfo> = names.iter().map(tensor).collect();
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let root = "x".into();
    let (files, warnings) = (vec![], vec![]);
    Catalog { root, files, tensors, config: None, warnings, adapter: None }
}

fn inputs(recipe: &Recipe, names: &[String]) -> Inputs {
    let labels: Vec<String> = recipe.checkpoints().map(|p| p.display().to_string()).collect();
    let catalogs = labels.iter().map(|_| catalog(names)).collect();
    Inputs::new(catalogs, recipe.has_base(), recipe.donor(), labels)
}

/// A llama with the tensors that the goldens are about.
fn llama(layers: u64) -> Vec<String> {
    let parts = ["input_layernorm", "self_attn.q_proj", "mlp.up_proj", "mlp.down_proj"];
    let layer = |n: u64| parts.map(|part| format!("model.layers.{n}.{part}.weight"));
    let ends = ["model.embed_tokens", "model.norm", "lm_head"].map(|n| format!("{n}.weight"));
    (0..layers).flat_map(layer).chain(ends).collect()
}

/// What a recipe says about each tensor of its output, in mergekit's words.
fn agrees(case: &Case) -> Result<(), String> {
    let (recipe, _) = golden::parsed(&case.recipe).map_err(|error| error.to_string())?;
    let inputs = inputs(&recipe, &llama(case.layers));
    let sliced = Sliced::new(&recipe, &inputs).map_err(|error| error.to_string())?;
    let mut seen = 0;
    for origin in sliced.iter() {
        let at = case.tensors.iter().position(|name| *name == origin.name);
        let at = at.ok_or_else(|| format!("{} is not in mergekit's output", origin.name))?;
        let rows = &origin.sources[usize::from(recipe.has_base())..];
        let names: Vec<Box<str>> = rows.iter().map(|s| Box::from(&*s.name)).collect();
        for (model, sources) in &case.sources {
            let ours = origin.sources.iter().find(|s| inputs.labels[s.checkpoint] == *model);
            let ours = ours.map(|source| source.name.to_string());
            if ours.as_deref() != sources[at].as_deref() {
                return Err(format!(
                    "{} is {ours:?} of {model}, not {:?}",
                    origin.name, sources[at]
                ));
            }
        }
        let (tensor, t, slice) = (&*origin.name, origin.t, origin.slice);
        let values = recipe.values(Place { tensor, t, coefficients: None, slice, names: &names });
        let values = values.map_err(|error| error.to_string())?;
        let labels: Vec<&str> =
            rows.iter().map(|source| &*inputs.labels[source.checkpoint]).collect();
        case.compare(at, &values, &labels)?;
        seen += 1;
    }
    if seen == case.tensors.len() { Ok(()) } else { Err(format!("{seen} tensors")) }
}

#[test]
fn slices_are_what_mergekit_makes_of_them() {
    let cases = golden::cases();
    let sliced: Vec<&Case> = cases.iter().filter(|c| c.recipe.contains("slices:")).collect();
    for case in &sliced {
        assert_eq!(agrees(case), Ok(()), "{}", case.title);
    }
    assert_eq!(sliced.len(), 7);
}

fn planned(slices: &str, names: &[String]) -> Result<Vec<String>, String> {
    let text = format!("merge_method: passthrough\nslices:\n{slices}");
    let (recipe, _) = golden::parsed(&text).map_err(|error| error.to_string())?;
    let inputs = inputs(&recipe, names);
    let sliced = Sliced::new(&recipe, &inputs).map_err(|error| error.to_string())?;
    Ok(sliced.iter().map(|o| format!("{} < {}", o.name, o.sources[0].name)).collect())
}

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

const ONE: &str = "  - sources: [{model: a, layer_range: [1, 2]}]\n";

#[test]
fn any_stack_of_numbered_layers_is_found() {
    for (tensors, expected) in [
        (
            vec!["h.0.x", "h.1.x", "h.10", "h.2", "h.3", "h.4", "h.5", "h.6", "h.7", "h.8", "h.9"],
            "h.0.x < h.1.x",
        ),
        (vec!["0.w", "1.w"], "0.w < 1.w"),
        (
            vec!["e.block.0.layer.9.w", "e.block.1.layer.9.w"],
            "e.block.0.layer.9.w < e.block.1.layer.9.w",
        ),
        // The longer one; then the one that is no tower.
        (vec!["a.0.w", "a.1.w", "b.0.w", "b.1.w", "b.2.w"], "b.0.w < b.1.w"),
        (vec!["v.vision.0.w", "v.vision.1.w", "v.vision.2.w", "t.0.w", "t.1.w"], "t.0.w < t.1.w"),
    ] {
        let planned = planned(ONE, &names(&tensors)).unwrap();
        assert!(planned.iter().any(|line| line == expected), "{planned:?}");
    }
}

const MODULES: &str = "merge_method: linear\nmodules:\n  text_decoder:\n    slices:\n      - sources: [{model: a, layer_range: [1, 2], \
                       parameters: {weight: 1}}]\n      - sources: [{model: b, layer_range: [0, 2], parameters: {weight: 1}}]\n  \
                       vision_tower: {models: [{model: b, parameters: {weight: 2}}, {model: a, parameters: {weight: [1, 3]}}]}\n  \
                       multi_modal_projector: {models: [{model: a, parameters: {weight: 4}}]}\n";

#[test]
fn modules_have_models_layers_and_parameters_of_their_own() {
    let tensors = names(&[
        "model.embed_tokens",
        "model.layers.0.w",
        "model.layers.1.w",
        "model.norm",
        "lm_head",
        "visual.blocks.0.w",
        "visual.blocks.1.w",
        "visual.blocks.2.w",
        "visual.patch_embed",
        "visual.merger.mlp.0.w",
        "visual.merger.mlp.2.w",
    ]);
    // What lies in no module of the recipe is not lost without a word.
    let (recipe, _) = golden::parsed(MODULES).unwrap();
    let mut inputs_of_more = inputs(&recipe, &tensors);
    let more = names(&["audio_tower.x", "vision_model.x"]);
    inputs_of_more.catalogs[1] = catalog(&[tensors.clone(), more.clone()].concat());
    let label = inputs_of_more.labels[1].clone();
    let sliced = Sliced::new(&recipe, &inputs_of_more).unwrap();
    let extra = sliced.extra();
    let extra: Vec<_> =
        extra.map(|e| (inputs_of_more.labels[e.checkpoint].clone(), e.name.to_owned())).collect();
    assert_eq!(extra, more.iter().map(|name| (label.clone(), name.clone())).collect::<Vec<_>>());
    let told = |text: &str| -> Result<Vec<String>, String> {
        let (recipe, _) = golden::parsed(text).map_err(|error| error.to_string())?;
        let _warnings = recipe.validate().map_err(|error| error.to_string())?;
        let inputs = inputs(&recipe, &tensors);
        let sliced = Sliced::new(&recipe, &inputs).map_err(|error| error.to_string())?;
        assert_eq!(sliced.extra().count(), 0);
        let line = |origin: Origin<'_>| {
            let (tensor, t, slice) = (&*origin.name, origin.t, origin.slice);
            let values = Place { tensor, t, coefficients: None, slice, names: &[] };
            let weights = recipe.values(values).unwrap().each("weight");
            let of = |s: &Source<'_>| format!("{}/{}", inputs.labels[s.checkpoint], s.name);
            let sources: Vec<String> = origin.sources.iter().map(of).collect();
            format!("{tensor} < {} {weights:?}", sources.join(" "))
        };
        let mut lines: Vec<String> = sliced.iter().map(line).collect();
        lines.sort();
        Ok(lines)
    };
    assert_eq!(
        told(MODULES).unwrap(),
        [
            "lm_head < b/lm_head [1.0]",
            "model.embed_tokens < a/model.embed_tokens [1.0]",
            "model.layers.0.w < a/model.layers.1.w [1.0]",
            "model.layers.1.w < b/model.layers.0.w [1.0]",
            "model.layers.2.w < b/model.layers.1.w [1.0]",
            "model.norm < b/model.norm [1.0]",
            "visual.blocks.0.w < b/visual.blocks.0.w a/visual.blocks.0.w [2.0, 1.0]",
            "visual.blocks.1.w < b/visual.blocks.1.w a/visual.blocks.1.w [2.0, 2.0]",
            "visual.blocks.2.w < b/visual.blocks.2.w a/visual.blocks.2.w [2.0, 3.0]",
            "visual.merger.mlp.0.w < a/visual.merger.mlp.0.w [4.0]",
            "visual.merger.mlp.2.w < a/visual.merger.mlp.2.w [4.0]",
            "visual.patch_embed < b/visual.patch_embed a/visual.patch_embed [2.0, 1.0]",
        ]
    );
    let without = MODULES
        .replace("  multi_modal_projector: {models: [{model: a, parameters: {weight: 4}}]}\n", "");
    let error = told(&without).unwrap_err();
    assert!(
        error.contains("multi_modal_projector is not among them")
            && error.contains("visual.merger.mlp.0.w"),
        "{error}"
    );
    let all = "{models: [{model: a, parameters: {weight: 1}}]}";
    let halves = format!("encoder: {all}\n  decoder: {all}\n  shared: {all}\n");
    let error = told(&format!("merge_method: linear\nmodules:\n  {halves}")).unwrap_err();
    assert!(error.contains("belongs to none of the modules encoder, decoder, shared"), "{error}");
}

#[test]
fn what_lies_outside_the_stack_is_kept_whole() {
    let tensors =
        names(&["wte", "h.0.w", "h.1.w", "ln_f", "visual.blocks.0.w", "visual.blocks.1.w"]);
    let expected = ["visual.blocks.0.w", "visual.blocks.1.w", "wte"].map(|n| format!("{n} < {n}"));
    let mut planned = planned(ONE, &tensors).unwrap();
    assert_eq!(planned.split_off(3), ["h.0.w < h.1.w", "ln_f < ln_f"]);
    assert_eq!(planned, expected);
}

#[test]
fn layers_that_are_not_there_are_refused_by_name() {
    for (tensors, slice, parts) in [
        (vec!["h.0.w", "h.1.w"], "[1, 3]", vec!["layer_range of a in slice 1", "END is at most 2"]),
        (vec!["h.0.w", "h.2.w"], "[0, 3]", vec!["h.1", "no tensor"]),
        (vec!["w", "x"], "[0, 1]", vec!["no layers"]),
        (vec!["a.0.w", "b.0.w"], "[0, 1]", vec!["a.N and b.N of 1 layers"]),
        (vec!["h.00.w", "h.0.w"], "[0, 2]", vec!["END is at most 1"]),
        (vec!["h.18446744073709551615.w", "h.0.w"], "[0, 2]", vec!["h.1", "no tensor"]),
    ] {
        let slice = format!("  - sources: [{{model: a, layer_range: {slice}}}]\n");
        let error = planned(&slice, &names(&tensors)).unwrap_err();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
}

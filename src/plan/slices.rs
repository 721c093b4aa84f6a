//! The origins of an output that is made of slices: runs of layers of models, one after the other; or of modules, each made of
//! whole models or of slices.
//!
//! The output's layers are numbered anew. What lies outside the stack of layers comes from the sources of
//! the first slice, if models have it before their layers, else from those of the last.

use std::borrow::Cow;
use std::ops::Range;

use super::PlanError;
use super::inputs::Inputs;
use super::origin::{Extra, Origin, Source};
use super::stacks::{self, Stack};
use super::units::Positions;
use crate::checkpoint::{Catalog, TensorInfo};
use crate::recipe::modules::Kind;
use crate::recipe::{Recipe, RecipeError, SliceSource};

/// A run of layers of one checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// The checkpoint, by its position among all.
    pub(super) checkpoint: usize,
    /// Its first layer.
    pub(super) first: u64,
}

/// What meets in a slice.
#[derive(Clone, Debug)]
pub(super) struct Lineup {
    /// The base first, if experts are seen relative to one; then the models.
    pub(super) members: Vec<Member>,
    /// The output's layers.
    pub(super) layers: Range<u64>,
}

impl Lineup {
    /// The member that lends names and shapes: the base, or the first model.
    fn donor(&self) -> Member {
        self.members[0]
    }

    fn len(&self) -> u64 {
        self.layers.end - self.layers.start
    }
}

/// A module that is made of whole models.
struct Whole {
    name: String,
    /// The checkpoints, by their positions among all: the base first, if experts are seen relative to one.
    members: Vec<usize>,
    /// Its place among the recipe's slices.
    slice: usize,
}

/// Origins for runs of layers, and for modules.
pub(super) struct Sliced<'a> {
    inputs: &'a Inputs,
    /// What the modules are, if the recipe tells several apart, and the one that is sliced.
    kind: Option<Kind>,
    module: Option<String>,
    /// The others.
    wholes: Vec<Whole>,
    /// The stack that slices are about; none where no module is sliced.
    pub(super) stack: Option<Stack>,
    /// All other stacks of any checkpoint.
    pub(super) towers: Vec<Stack>,
    /// One for each slice that is a run of layers.
    pub(super) lineups: Vec<Lineup>,
    /// The first of those among the recipe's slices.
    first: usize,
    /// Positions of layers in other stacks.
    positions: Positions<'a>,
}

impl<'a> Sliced<'a> {
    /// Finds the stack of layers and all that slices ask for in it.
    ///
    /// # Errors
    /// If it is not there.
    pub(super) fn new(recipe: &Recipe, inputs: &'a Inputs) -> Result<Self, PlanError> {
        let kind = recipe.kind();
        if let Some(kind) = kind {
            check_modules(recipe, inputs, kind)?;
        }
        let cut = |slices: &Range<usize>| slices.clone().any(|slice| !recipe.slices[slice].whole);
        let sliced = recipe.modules.iter().find(|module| cut(&module.slices));
        let module = sliced.filter(|_| kind.is_some()).map(|module| module.name.clone());
        let own = |name: &str| match (kind, &module) {
            (Some(kind), Some(module)) => kind.module_of(name) == Some(module),
            _ => true,
        };
        let stack = if kind.is_some() && module.is_none() {
            None
        } else {
            let stack = stacks::text(inputs.donor(), own);
            let of = |why| value("slices", format!("{}: {why}", inputs.labels[inputs.donor]));
            Some(stack.map_err(of)?)
        };
        let all: Vec<Vec<Stack>> = inputs.catalogs().map(stacks::stacks).collect();
        let prefix = stack.as_ref().map(|stack| &stack.prefix);
        let others = all.iter().flatten().filter(|other| Some(&other.prefix) != prefix);
        let mut towers: Vec<Stack> = others.cloned().collect();
        towers.sort_by(|a, b| a.prefix.cmp(&b.prefix));
        towers.dedup_by(|a, b| a.prefix == b.prefix);
        let names = inputs.catalogs().flat_map(|catalog| &catalog.tensors);
        let positions = Positions::new(names.map(|tensor| &*tensor.name));
        let (mut lineups, mut wholes): (Vec<Lineup>, Vec<Whole>) = (Vec::new(), Vec::new());
        let mut first = None;
        for (number, slice) in recipe.slices.iter().enumerate() {
            let (base, rows) = recipe.lineup(slice);
            let place = |source: &SliceSource, checkpoint: Option<usize>| {
                let checkpoint = checkpoint.ok_or_else(|| {
                    value("slices", format!("{} is not opened", source.path.display()))
                })?;
                if let Some(stack) = stack.as_ref().filter(|_| !slice.whole) {
                    let name = recipe.slice_name(number);
                    check(inputs, &all[checkpoint], stack, &name, source, checkpoint)?;
                }
                Ok(Member { checkpoint, first: source.layers.start.into() })
            };
            let base = base.into_iter().map(|s| place(s, recipe.base_position(&s.path)));
            let rows = rows.map(|s| place(s, recipe.row_position(&s.path)));
            let members = base.chain(rows).collect::<Result<Vec<_>, PlanError>>()?;
            if slice.whole {
                let name = recipe.module_name(number).to_owned();
                let members = members.iter().map(|member| member.checkpoint).collect();
                wholes.push(Whole { name, members, slice: number });
                continue;
            }
            let _set = first.get_or_insert(number);
            let start = lineups.last().map_or(0, |lineup| lineup.layers.end);
            let len = slice.sources.first().map_or(0, |source| source.layers.len() as u64);
            lineups.push(Lineup { members, layers: start..start + len });
        }
        let first = first.unwrap_or(0);
        let sliced =
            Self { inputs, kind, module, wholes, stack, towers, lineups, first, positions };
        sliced.check_wholes()?;
        Ok(sliced)
    }

    /// All tensors of the output: what comes before the layers, layers, and what comes after them.
    pub(super) fn iter<'b>(&'b self) -> Box<dyn Iterator<Item = Origin<'a>> + 'b> {
        let last = self.lineups.len().saturating_sub(1);
        let layers = self.lineups.iter().enumerate().flat_map(move |(slice, lineup)| {
            (0..lineup.len()).flat_map(move |k| self.layer(slice, lineup, k))
        });
        let wholes = self.wholes.iter().flat_map(|whole| self.whole(whole));
        Box::new(self.outside(0, true).chain(layers).chain(self.outside(last, false)).chain(wholes))
    }

    /// The tensors of a module that is made of whole models.
    fn whole<'b>(&'b self, whole: &'b Whole) -> impl Iterator<Item = Origin<'a>> + 'b {
        let lent = self.of_module(whole.members[0], &whole.name);
        lent.map(move |lent| {
            let source = |&checkpoint: &usize| Source {
                checkpoint,
                name: Cow::Borrowed(&*lent.name),
                tensor: self.inputs.catalogs[checkpoint].get(&lent.name),
            };
            Origin {
                name: Cow::Borrowed(&*lent.name),
                sources: whole.members.iter().map(source).collect(),
                donor: 0,
                lent,
                slice: whole.slice,
                t: self.positions.of(&lent.name),
            }
        })
    }

    /// The tensors of a checkpoint that belong to a module.
    fn of_module<'b>(
        &'b self,
        checkpoint: usize,
        module: &'b str,
    ) -> impl Iterator<Item = &'a TensorInfo> + 'b {
        let tensors = self.inputs.catalogs[checkpoint].tensors.iter();
        tensors.filter(move |tensor| self.module_of(&tensor.name) == Some(module))
    }

    fn module_of(&self, tensor: &str) -> Option<&'static str> {
        self.kind.and_then(|kind| kind.module_of(tensor))
    }

    /// Refuses modules that the model that lends names has no tensors of.
    fn check_wholes(&self) -> Result<(), PlanError> {
        for Whole { name, members, .. } in &self.wholes {
            if self.of_module(members[0], name).next().is_none() {
                let label = &self.inputs.labels[members[0]];
                return Err(value(
                    "modules",
                    format!("{label} has no tensors of the module {name}"),
                ));
            }
        }
        Ok(())
    }

    /// The stack that slices are about: what comes before the number of a layer.
    fn prefix(&self) -> &str {
        self.stack.as_ref().map_or("", |stack| &stack.prefix)
    }

    /// The layer of the stack that a tensor belongs to.
    pub(super) fn layer_of(&self, tensor: &str) -> Option<u64> {
        let stack = self.stack.as_ref()?;
        stacks::place(tensor).filter(|&(prefix, _)| prefix == stack.prefix).map(|(_, layer)| layer)
    }

    /// The tensors of the `k`-th layer of a slice.
    fn layer<'b>(
        &'b self,
        slice: usize,
        lineup: &'b Lineup,
        k: u64,
    ) -> impl Iterator<Item = Origin<'a>> + 'b {
        let prefix = self.prefix();
        let donor = lineup.donor();
        let own = stacks::layer_name(prefix, donor.first + k);
        let name = stacks::layer_name(prefix, lineup.layers.start + k);
        let t = match lineup.len() {
            1 => 1.0,
            layers => k as f64 / (layers - 1) as f64,
        };
        stacks::layer(self.catalog(donor), prefix, donor.first + k).map(move |lent| {
            let rest = &lent.name[own.len()..];
            let source = |member: &Member| {
                let name = format!("{}{rest}", stacks::layer_name(prefix, member.first + k));
                let tensor = self.catalog(*member).get(&name);
                Source { checkpoint: member.checkpoint, name: Cow::Owned(name), tensor }
            };
            Origin {
                name: Cow::Owned(format!("{name}{rest}")),
                sources: lineup.members.iter().map(source).collect(),
                donor: 0,
                lent,
                slice: self.first + slice,
                t,
            }
        })
    }

    /// The tensors before or after the layers, which have the models of a slice.
    fn outside<'b>(&'b self, slice: usize, before: bool) -> impl Iterator<Item = Origin<'a>> + 'b {
        let lineup = self.lineups.get(slice).into_iter();
        lineup.flat_map(move |lineup| {
            let lent = self.catalog(lineup.donor()).tensors.iter();
            let lent = lent.filter(move |tensor| self.is_outside(&tensor.name, before));
            lent.map(move |lent| {
                let source = |member: &Member| Source {
                    checkpoint: member.checkpoint,
                    name: Cow::Borrowed(&*lent.name),
                    tensor: self.catalog(*member).get(&lent.name),
                };
                Origin {
                    name: Cow::Borrowed(&*lent.name),
                    sources: lineup.members.iter().map(source).collect(),
                    donor: 0,
                    lent,
                    slice: self.first + slice,
                    t: self.positions.of(&lent.name),
                }
            })
        })
    }

    /// Whether a tensor lies outside the stack, on that side of it.
    fn is_outside(&self, tensor: &str, before: bool) -> bool {
        let Some(stack) = &self.stack else { return false };
        let other = self.kind.is_some() && self.module_of(tensor) != self.module.as_deref();
        !other
            && self.layer_of(tensor).is_none()
            && stacks::comes_before(tensor, &stack.prefix, &self.towers) == before
    }

    /// Tensors of models that have no counterpart in the donor of their slice.
    pub(super) fn extra<'b>(&'b self) -> Box<dyn Iterator<Item = Extra<'a>> + 'b> {
        let layers = self.lineups.iter().flat_map(move |lineup| {
            (0..lineup.len()).flat_map(move |k| {
                lineup.members[1..].iter().flat_map(move |member| self.extra_in(lineup, *member, k))
            })
        });
        let ends = [(self.lineups.first(), true), (self.lineups.last(), false)];
        let outside = ends.into_iter().flat_map(move |(lineup, before)| {
            let lineup = lineup.into_iter();
            lineup.flat_map(move |lineup| {
                let others = lineup.members[1..].iter();
                others.flat_map(move |member| {
                    let all = self.catalog(*member).tensors.iter().map(|tensor| &*tensor.name);
                    let lacking = all.filter(move |name| {
                        self.is_outside(name, before)
                            && self.catalog(lineup.donor()).get(name).is_none()
                    });
                    let checkpoint = member.checkpoint;
                    lacking.map(move |name| Extra { checkpoint, name, output: Cow::Borrowed(name) })
                })
            })
        });
        let wholes = self.wholes.iter().flat_map(move |whole| {
            let donor = &self.inputs.catalogs[whole.members[0]];
            whole.members[1..].iter().flat_map(move |&checkpoint| {
                let all = self.of_module(checkpoint, &whole.name).map(|tensor| &*tensor.name);
                let lacking = all.filter(|name| donor.get(name).is_none());
                lacking.map(move |name| Extra { checkpoint, name, output: Cow::Borrowed(name) })
            })
        });
        Box::new(layers.chain(outside).chain(wholes))
    }

    fn extra_in<'b>(
        &'b self,
        lineup: &'b Lineup,
        member: Member,
        k: u64,
    ) -> impl Iterator<Item = Extra<'a>> + 'b {
        let prefix = self.prefix();
        let own = stacks::layer_name(prefix, member.first + k);
        let donor = stacks::layer_name(prefix, lineup.donor().first + k);
        let output = stacks::layer_name(prefix, lineup.layers.start + k);
        let tensors = stacks::layer(self.catalog(member), prefix, member.first + k);
        tensors.filter_map(move |tensor| {
            let rest = &tensor.name[own.len()..];
            let there = self.catalog(lineup.donor()).get(&format!("{donor}{rest}")).is_some();
            (!there).then(|| Extra {
                checkpoint: member.checkpoint,
                name: &tensor.name,
                output: Cow::Owned(format!("{output}{rest}")),
            })
        })
    }

    fn catalog(&self, member: Member) -> &'a Catalog {
        &self.inputs.catalogs[member.checkpoint]
    }

    /// Whether a tensor of a checkpoint is of a layer of some slice, or outside of layers and wanted.
    pub(super) fn takes(&self, checkpoint: usize, tensor: &TensorInfo) -> bool {
        let has = |lineup: &Lineup| lineup.members.iter().any(|m| m.checkpoint == checkpoint);
        let module = self.module_of(&tensor.name);
        let whole = self.wholes.iter().find(|whole| Some(&*whole.name) == module);
        if let Some(whole) = whole {
            return whole.members.contains(&checkpoint);
        }
        match self.layer_of(&tensor.name) {
            Some(layer) => self.lineups.iter().any(|lineup| {
                let mut members = lineup.members.iter().filter(|m| m.checkpoint == checkpoint);
                members.any(|member| (member.first..member.first + lineup.len()).contains(&layer))
            }),
            None => [(self.lineups.first(), true), (self.lineups.last(), false)].into_iter().any(
                |(lineup, before)| lineup.is_some_and(has) && self.is_outside(&tensor.name, before),
            ),
        }
    }
}

/// Whether a checkpoint has the layers that a slice wants of it.
fn check(
    inputs: &Inputs,
    stacks: &[Stack],
    stack: &Stack,
    name: &str,
    source: &SliceSource,
    checkpoint: usize,
) -> Result<(), PlanError> {
    let catalog = &inputs.catalogs[checkpoint];
    let label = &inputs.labels[checkpoint];
    let key = format!("layer_range of {label} in {name}");
    let (start, end) = (u64::from(source.layers.start), u64::from(source.layers.end));
    let range = format!("[{start}, {end}]");
    let shown = stacks::shown(&stack.prefix);
    let Some(own) = stacks.iter().find(|own| own.prefix == stack.prefix) else {
        let has: Vec<String> = stacks.iter().map(|own| stacks::shown(&own.prefix)).collect();
        let has = if has.is_empty() { "no layers".to_owned() } else { has.join(", ") };
        return Err(value(
            &key,
            format!(
                "it has no tensors named {shown}, only {has}; models of other names cannot meet"
            ),
        ));
    };
    if end > own.layers {
        let fix = format!("END is at most {}", own.layers);
        return Err(value(
            &key,
            format!(
                "{range} asks for layers that are not there: {shown} has {} layers; {fix}",
                own.layers
            ),
        ));
    }
    let empty = (start..end).find(|&n| stacks::layer(catalog, &stack.prefix, n).next().is_none());
    match empty {
        Some(n) => {
            let layer = stacks::layer_name(&stack.prefix, n);
            Err(value(&key, format!("{range} holds {layer}, of which there is no tensor")))
        }
        None => Ok(()),
    }
}

/// Demands that each tensor of the model that lends the config belongs to a module of the recipe: what does not would be lost.
fn check_modules(recipe: &Recipe, inputs: &Inputs, kind: Kind) -> Result<(), PlanError> {
    let label = &inputs.labels[inputs.donor];
    for tensor in &inputs.donor().tensors {
        let name = &tensor.name;
        let Some(module) = kind.module_of(name) else {
            let known = kind.names().join(", ");
            let reason = format!(
                "{name} of {label} belongs to none of the modules {known}, as far as its name tells; list the models \
                 under `models`, with filters by name where parameters differ"
            );
            return Err(value("modules", reason));
        };
        if recipe.modules.iter().all(|listed| listed.name != module) {
            let reason = format!(
                "{module} is not among them, and {name} of {label} belongs to it: the output would lack it; add \
                 {module}: {{models: [..]}}"
            );
            return Err(value("modules", reason));
        }
    }
    Ok(())
}

fn value(key: &str, reason: String) -> PlanError {
    RecipeError::Value { key: key.to_owned(), reason }.into()
}

#[cfg(test)]
mod tests {
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
            let values =
                recipe.values(Place { tensor, t, coefficients: None, slice, names: &names });
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
                vec![
                    "h.0.x", "h.1.x", "h.10", "h.2", "h.3", "h.4", "h.5", "h.6", "h.7", "h.8",
                    "h.9",
                ],
                "h.0.x < h.1.x",
            ),
            (vec!["0.w", "1.w"], "0.w < 1.w"),
            (
                vec!["e.block.0.layer.9.w", "e.block.1.layer.9.w"],
                "e.block.0.layer.9.w < e.block.1.layer.9.w",
            ),
            // The longer one; then the one that is no tower.
            (vec!["a.0.w", "a.1.w", "b.0.w", "b.1.w", "b.2.w"], "b.0.w < b.1.w"),
            (
                vec!["v.vision.0.w", "v.vision.1.w", "v.vision.2.w", "t.0.w", "t.1.w"],
                "t.0.w < t.1.w",
            ),
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
        let without = MODULES.replace(
            "  multi_modal_projector: {models: [{model: a, parameters: {weight: 4}}]}\n",
            "",
        );
        let error = told(&without).unwrap_err();
        assert!(
            error.contains("multi_modal_projector is not among them")
                && error.contains("visual.merger.mlp.0.w"),
            "{error}"
        );
        let all = "{models: [{model: a, parameters: {weight: 1}}]}";
        let halves = format!("encoder: {all}\n  decoder: {all}\n  shared: {all}\n");
        let error = told(&format!("merge_method: linear\nmodules:\n  {halves}")).unwrap_err();
        assert!(
            error.contains("belongs to none of the modules encoder, decoder, shared"),
            "{error}"
        );
    }

    #[test]
    fn what_lies_outside_the_stack_is_kept_whole() {
        let tensors =
            names(&["wte", "h.0.w", "h.1.w", "ln_f", "visual.blocks.0.w", "visual.blocks.1.w"]);
        let expected =
            ["visual.blocks.0.w", "visual.blocks.1.w", "wte"].map(|n| format!("{n} < {n}"));
        let mut planned = planned(ONE, &tensors).unwrap();
        assert_eq!(planned.split_off(3), ["h.0.w < h.1.w", "ln_f < ln_f"]);
        assert_eq!(planned, expected);
    }

    #[test]
    fn layers_that_are_not_there_are_refused_by_name() {
        for (tensors, slice, parts) in [
            (
                vec!["h.0.w", "h.1.w"],
                "[1, 3]",
                vec!["layer_range of a in slice 1", "END is at most 2"],
            ),
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
}

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
        Box::new(layers.chain(outside).chain(wholes).chain(self.strays()))
    }

    /// Tensors that belong to no module of the recipe, of the models that are told apart by module.
    fn strays<'b>(&'b self) -> impl Iterator<Item = Extra<'a>> + 'b {
        let listed = |module: &str| {
            self.module.as_deref() == Some(module)
                || self.wholes.iter().any(|whole| whole.name == module)
        };
        let catalogs = self.inputs.catalogs.iter().enumerate().filter(|_| self.kind.is_some());
        catalogs.flat_map(move |(checkpoint, catalog)| {
            let names = catalog.tensors.iter().map(|tensor| &*tensor.name);
            let strays = names.filter(move |name| !self.module_of(name).is_some_and(listed));
            strays.map(move |name| Extra { checkpoint, name, output: Cow::Borrowed(name) })
        })
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
mod tests;

//! One document: the schema of mergekit 0.1.5, and reflow's own keys beside it.

use std::ops::Range;

use super::fields::Fields;
use super::model::{Exists, ModelReference};
use super::node::{Node, Value};
use super::setting::Assignments;
use super::tokenizer::Tokenizer;
use super::{Complaint, Place};

/// Keys that mergekit has.
const SCHEMA: [&str; 12] = [
    "name",
    "merge_method",
    "base_model",
    "models",
    "slices",
    "modules",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer",
    "tokenizer_source",
    "chat_template",
];

/// Keys of reflow: what flags say beside the schema.
const OWN: [&str; 13] = [
    "include",
    "exclude",
    "shard_size",
    "missing",
    "vocab",
    "nonfinite",
    "lenient",
    "count_aliases",
    "copy_code",
    "coefficients",
    "coefficients_order",
    "fisher",
    "gram",
];

/// Those of them that are lists of paths.
const EVIDENCE: [&str; 2] = ["fisher", "gram"];

/// A recipe as it is written.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// The name by which later documents of the same file use its output.
    pub name: Option<String>,
    /// The method, and where it was written.
    pub merge_method: (String, Place),
    /// The inputs.
    pub body: Body,
    /// The base of all slices that name none.
    pub base_model: Option<ModelReference>,
    /// Parameters of all inputs.
    pub parameters: Assignments,
    /// Type in which mergekit computes.
    pub dtype: Option<Dtype>,
    /// Type of the output.
    pub out_dtype: Option<Dtype>,
    /// The output's vocabulary, if it is not simply the donor's.
    pub tokenizer: Option<Tokenizer>,
    /// The output's chat template, and where it was written.
    pub chat_template: Option<(String, Place)>,
    /// reflow's own keys.
    pub own: Own,
}

/// The inputs of a merge.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// Whole models.
    Models(Vec<Input>),
    /// Runs of layers, one after the other.
    Slices(Vec<Slice>),
    /// Parts of a multi-modal model, each merged by itself.
    Modules(Vec<Module>),
}

/// A model and its parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// The model.
    pub model: ModelReference,
    /// Its parameters.
    pub parameters: Assignments,
}

/// A run of output layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    /// Where it was written.
    pub at: Place,
    /// The layers it is made of.
    pub sources: Vec<SliceSource>,
    /// The base, if it is another than the document's.
    pub base_model: Option<ModelReference>,
    /// Parameters of all sources.
    pub parameters: Assignments,
}

/// A run of layers of one model.
#[derive(Clone, Debug, PartialEq)]
pub struct SliceSource {
    /// The model.
    pub model: ModelReference,
    /// Its layers: the first, and the one behind the last.
    pub layers: Range<u32>,
    /// Its parameters.
    pub parameters: Assignments,
}

/// A part of a multi-modal model.
#[derive(Clone, Debug, PartialEq)]
pub struct Module {
    /// Its name in mergekit's table of architectures.
    pub name: String,
    /// Where it was written.
    pub at: Place,
    /// Whole models or slices.
    pub body: Body,
    /// Parameters of all its inputs.
    pub parameters: Assignments,
}

/// Types that mergekit knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// bfloat16.
    Bf16,
    /// float16.
    F16,
    /// float32.
    F32,
}

/// reflow's own keys, as written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Own {
    /// Patterns of tensors to merge.
    pub include: Vec<String>,
    /// Patterns of tensors to take from the base.
    pub exclude: Vec<String>,
    /// What was measured of the models: the key, a path for each, and its place.
    pub evidence: Vec<(&'static str, Vec<String>, Place)>,
    /// Words for single keys: the key, its value and its place.
    pub words: Vec<(&'static str, String, Place)>,
}

impl Own {
    /// What is written for a key.
    pub fn get(&self, key: &str) -> Option<(&str, Place)> {
        self.words.iter().find(|(k, ..)| *k == key).map(|(_, text, at)| (text.as_str(), *at))
    }
}

impl Document {
    pub(super) fn new(node: &Node, exists: Exists<'_>) -> Result<Self, Complaint> {
        if node.is_null() {
            return Err(Complaint::new(node.at, "there is no recipe in it"));
        }
        let known: Vec<&str> = SCHEMA.into_iter().chain(OWN).collect();
        let fields = Fields::new(node, "the recipe", &known)?;
        let method = fields.need("merge_method")?;
        let text =
            |key: &str| fields.get(key).map(|node| Ok((node.text(key)?, node.at))).transpose();
        let dtype = |key: &str| text(key)?.map(|(name, at)| Dtype::new(key, &name, at)).transpose();
        let model =
            |key: &str| fields.get(key).map(|node| ModelReference::new(node, exists)).transpose();
        let tokenizer = match (fields.get("tokenizer_source"), fields.get("tokenizer")) {
            (Some(_), Some(node)) => {
                let text = "both `tokenizer` and `tokenizer_source` are there; keep one";
                return Err(Complaint::new(node.at, text));
            }
            (Some(node), None) => Some(Tokenizer::legacy(node, exists)?),
            (None, Some(node)) => Some(Tokenizer::new(node, exists)?),
            (None, None) => None,
        };
        Ok(Self {
            name: text("name")?.map(|(name, _)| name),
            merge_method: (method.text("merge_method")?, method.at),
            body: Body::new(&fields, node.at, exists)?,
            base_model: model("base_model")?,
            parameters: Assignments::new(fields.get("parameters"))?,
            dtype: dtype("dtype")?,
            out_dtype: dtype("out_dtype")?,
            tokenizer,
            chat_template: text("chat_template")?,
            own: Own::new(&fields)?,
        })
    }
}

impl Body {
    /// Exactly one of `models`, `slices` and, at the top, `modules`.
    fn new(fields: &Fields<'_>, at: Place, exists: Exists<'_>) -> Result<Self, Complaint> {
        let keys = ["models", "slices", "modules"];
        let given: Vec<(&str, &Node)> =
            keys.into_iter().filter_map(|key| fields.get(key).map(|node| (key, node))).collect();
        let [(key, node)] = given[..] else {
            let (at, what) = match given[..] {
                [] => (at, "none of them is there"),
                [_, (_, second), ..] => (second.at, "more than one is there"),
                [_] => (at, ""),
            };
            let text = format!("exactly one of `models`, `slices` and `modules` is needed: {what}");
            return Err(Complaint::new(at, text));
        };
        match key {
            "models" => Ok(Self::Models(inputs(node, exists)?)),
            "slices" => Ok(Self::Slices(slices(node, exists)?)),
            _ => Ok(Self::Modules(modules(node, exists)?)),
        }
    }
}

fn some<'a>(key: &str, node: &'a Node) -> Result<&'a [Node], Complaint> {
    match node.list(key)? {
        [] => Err(Complaint::new(node.at, format!("`{key}` is empty"))),
        items => Ok(items),
    }
}

fn inputs(node: &Node, exists: Exists<'_>) -> Result<Vec<Input>, Complaint> {
    let input = |node: &Node| {
        let fields = Fields::new(node, "an entry of `models`", &["model", "parameters"])?;
        Ok(Input {
            model: ModelReference::new(fields.need("model")?, exists)?,
            parameters: Assignments::new(fields.get("parameters"))?,
        })
    };
    some("models", node)?.iter().map(input).collect()
}

fn slices(node: &Node, exists: Exists<'_>) -> Result<Vec<Slice>, Complaint> {
    some("slices", node)?.iter().map(|node| Slice::new(node, exists)).collect()
}

impl Slice {
    fn new(node: &Node, exists: Exists<'_>) -> Result<Self, Complaint> {
        let known = ["sources", "base_model", "parameters", "residual_weight"];
        let fields = Fields::new(node, "an entry of `slices`", &known)?;
        if let Some(node) = fields.get("residual_weight") {
            let text = "`residual_weight` has no effect in mergekit; leave it out";
            return Err(Complaint::new(node.at, text));
        }
        let base = fields.get("base_model");
        let slice = Self {
            at: node.at,
            sources: some("sources", fields.need("sources")?)?
                .iter()
                .map(|node| SliceSource::new(node, exists))
                .collect::<Result<_, _>>()?,
            base_model: base.map(|node| ModelReference::new(node, exists)).transpose()?,
            parameters: Assignments::new(fields.get("parameters"))?,
        };
        slice.check()?;
        Ok(slice)
    }

    fn check(&self) -> Result<(), Complaint> {
        let first = &self.sources[0];
        for (i, source) in self.sources.iter().enumerate() {
            if source.layers.len() != first.layers.len() {
                return Err(Complaint::new(
                    source.model.at,
                    format!(
                        "all sources of a slice need the same number of layers: {} has {} and {} has {}",
                        first.model,
                        first.layers.len(),
                        source.model,
                        source.layers.len()
                    ),
                ));
            }
            if self.sources[..i].iter().any(|other| other.model == source.model) {
                let text = format!("{} is more than once in one slice", source.model);
                return Err(Complaint::new(source.model.at, text));
            }
        }
        Ok(())
    }
}

impl SliceSource {
    fn new(node: &Node, exists: Exists<'_>) -> Result<Self, Complaint> {
        let known = ["model", "layer_range", "parameters"];
        let fields = Fields::new(node, "a slice's source", &known)?;
        let range = fields.need("layer_range")?;
        let wrong = || {
            let text =
                "`layer_range` is [FIRST, END]: the first layer, and the one behind the last";
            Complaint::new(range.at, text)
        };
        let [first, end] = range.list("layer_range")? else { return Err(wrong()) };
        let number = |node: &Node| u32::try_from(node.count("layer_range")?).map_err(|_| wrong());
        let layers = number(first)?..number(end)?;
        if layers.is_empty() {
            return Err(wrong());
        }
        Ok(Self {
            model: ModelReference::new(fields.need("model")?, exists)?,
            layers,
            parameters: Assignments::new(fields.get("parameters"))?,
        })
    }
}

fn modules(node: &Node, exists: Exists<'_>) -> Result<Vec<Module>, Complaint> {
    let Value::Map(entries) = &node.value else {
        return Err(Complaint::new(node.at, "`modules` must be a mapping by module name"));
    };
    let module = |(key, node): &(super::node::Key, Node)| {
        let fields = Fields::new(node, "a module", &["models", "slices", "parameters"])?;
        Ok(Module {
            name: key.name.clone(),
            at: key.at,
            body: Body::new(&fields, node.at, exists)?,
            parameters: Assignments::new(fields.get("parameters"))?,
        })
    };
    entries.iter().map(module).collect()
}

impl Dtype {
    fn new(key: &str, name: &str, at: Place) -> Result<Self, Complaint> {
        match name.strip_prefix("torch.").unwrap_or(name) {
            "bfloat16" => Ok(Self::Bf16),
            "float16" => Ok(Self::F16),
            "float32" => Ok(Self::F32),
            "float64" | "int64" => {
                let text = format!("{key}: {name:?} is not supported; use float32");
                Err(Complaint::new(at, text))
            }
            _ => {
                let known = ["bfloat16", "float16", "float32"];
                let hint = match crate::recipe::suggestion(name, known) {
                    Some(meant) => format!("did you mean {meant}?"),
                    None => format!("known: {}", known.join(", ")),
                };
                Err(Complaint::new(at, format!("{key}: {name:?} is unknown; {hint}")))
            }
        }
    }
}

impl Own {
    fn new(fields: &Fields<'_>) -> Result<Self, Complaint> {
        let patterns = |key: &str| -> Result<Vec<String>, Complaint> {
            let Some(node) = fields.get(key) else { return Ok(Vec::new()) };
            node.list(key)?.iter().map(|item| item.text(key)).collect()
        };
        let mut words = Vec::new();
        let evidence =
            EVIDENCE.into_iter().filter_map(|key| fields.get(key).map(|node| (key, node)));
        let evidence = evidence.map(|(key, node)| Ok((key, patterns(key)?, node.at)));
        let evidence = evidence.collect::<Result<_, Complaint>>()?;
        let lists = |key: &&str| ["include", "exclude"].contains(key) || EVIDENCE.contains(key);
        for key in OWN.into_iter().filter(|key| !lists(key)) {
            let Some(node) = fields.get(key) else { continue };
            let text = match &node.value {
                Value::Bool(on) => on.to_string(),
                _ => node.text(key)?,
            };
            words.push((key, text, node.at));
        }
        Ok(Self { include: patterns("include")?, exclude: patterns("exclude")?, evidence, words })
    }
}

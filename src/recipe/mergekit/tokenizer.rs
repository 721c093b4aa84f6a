//! `tokenizer`, `tokenizer_source` and `chat_template` as they are written.

use super::fields::Fields;
use super::model::{Exists, ModelReference};
use super::node::{Node, Value};
use super::{Complaint, Place};

/// Where the output's vocabulary comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenizerSource {
    /// The base's.
    Base,
    /// The base's, and what the others have beyond it.
    Union,
    /// That of one model.
    Model(ModelReference),
}

/// What a recipe says about the tokenizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokenizer {
    /// Where it was written.
    pub at: Place,
    /// The output's vocabulary.
    pub source: TokenizerSource,
    /// Whether the source was named, or is mergekit's default.
    pub named: bool,
    /// Rules for single tokens.
    pub tokens: Vec<TokenRule>,
    /// The number of rows is rounded up to a multiple of this.
    pub pad_to_multiple_of: Option<u64>,
}

/// Where the row of one token comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRule {
    /// The token.
    pub token: String,
    /// Where it was written.
    pub at: Place,
    /// Where models that lack the token take its row from.
    pub source: Option<TokenRow>,
    /// Whether models that have the token take that row, too.
    pub force: bool,
}

/// A row of an embedding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenRow {
    /// Zeros.
    Zero,
    /// The row the token has in a model.
    Of(ModelReference),
    /// The row that another token has in a model.
    Other(ModelReference, OtherToken),
}

/// Another token of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OtherToken {
    /// By its text.
    Text(String),
    /// By its number.
    Id(u64),
}

impl Tokenizer {
    /// `tokenizer_source: WORD`.
    pub(super) fn legacy(node: &Node, exists: Exists<'_>) -> Result<Self, Complaint> {
        let source = TokenizerSource::new(node, exists)?;
        Ok(Self { at: node.at, source, named: true, tokens: Vec::new(), pad_to_multiple_of: None })
    }

    /// `tokenizer: {..}`.
    pub(super) fn new(node: &Node, exists: Exists<'_>) -> Result<Self, Complaint> {
        let fields = Fields::new(node, "`tokenizer`", &["source", "tokens", "pad_to_multiple_of"])?;
        let source = fields.get("source");
        let mut tokens = Vec::new();
        if let Some(node) = fields.get("tokens") {
            let Value::Map(entries) = &node.value else {
                return Err(Complaint::new(node.at, "`tokens` must be a mapping by token"));
            };
            for (key, node) in entries {
                tokens.push(TokenRule::new(&key.name, node, exists)?);
            }
        }
        let multiple = fields.get("pad_to_multiple_of");
        Ok(Self {
            at: node.at,
            named: source.is_some(),
            source: match source {
                Some(node) => TokenizerSource::new(node, exists)?,
                None => TokenizerSource::Union,
            },
            tokens,
            pad_to_multiple_of: multiple.map(|n| n.count("pad_to_multiple_of")).transpose()?,
        })
    }
}

impl TokenizerSource {
    fn new(node: &Node, exists: Exists<'_>) -> Result<Self, Complaint> {
        match &node.value {
            Value::Text(text) if text == "base" => Ok(Self::Base),
            Value::Text(text) if text == "union" => Ok(Self::Union),
            _ => Ok(Self::Model(ModelReference::new(node, exists)?)),
        }
    }
}

impl TokenRule {
    fn new(token: &str, node: &Node, exists: Exists<'_>) -> Result<Self, Complaint> {
        let mut rule = Self { token: token.to_owned(), at: node.at, source: None, force: false };
        if node.is_null() {
            return Ok(rule);
        }
        let fields = Fields::new(node, "a token's rule", &["source", "force"])?;
        if let Some(force) = fields.get("force") {
            rule.force = force.bool("force")?;
        }
        if let Some(source) = fields.get("source") {
            rule.source = Some(TokenRow::new(source, exists)?);
        }
        Ok(rule)
    }
}

impl TokenRow {
    fn new(node: &Node, exists: Exists<'_>) -> Result<Self, Complaint> {
        let is_kind = |entries: &[(super::node::Key, Node)]| {
            entries.iter().any(|(key, _)| key.name == "kind")
        };
        match &node.value {
            Value::Map(entries) if is_kind(entries) => {}
            _ => return Ok(Self::Of(ModelReference::new(node, exists)?)),
        }
        let fields =
            Fields::new(node, "a token's source", &["kind", "model", "token", "token_id"])?;
        match fields.need("kind")?.text("kind")?.as_str() {
            "zero" => Ok(Self::Zero),
            "model_token" => {
                let model = ModelReference::new(fields.need("model")?, exists)?;
                let token = match (fields.get("token"), fields.get("token_id")) {
                    (Some(token), None) => OtherToken::Text(token.text("token")?),
                    (None, Some(id)) => OtherToken::Id(id.count("token_id")?),
                    _ => {
                        let text = "a `model_token` has either `token` or `token_id`";
                        return Err(Complaint::new(node.at, text));
                    }
                };
                Ok(Self::Other(model, token))
            }
            other => {
                let text = format!("kind {other:?} is unknown; known: zero, model_token");
                Err(Complaint::new(node.at, text))
            }
        }
    }
}

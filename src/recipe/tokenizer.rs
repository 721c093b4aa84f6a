//! What a recipe says about tokens and conversations.

use std::path::PathBuf;

pub use super::mergekit::OtherToken;

/// Whose tokenizer an output has, and so which token each row of its embeddings belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenizerSource {
    /// The base's.
    Base,
    /// The base's, else the first model's, and the added tokens of the others.
    Union,
    /// That of one of the models.
    Model(PathBuf),
}

/// What the tokenizer of an output is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokenizer {
    /// Whose it is.
    pub source: TokenizerSource,
    /// Tokens that it has in any case, and their rows.
    pub rules: Vec<TokenRule>,
    /// The number of rows is that of tokens, rounded up to a multiple of this.
    pub multiple: Option<u64>,
}

/// A token of the output, and where its rows come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRule {
    /// The token.
    pub token: String,
    /// The row of models that lack the token, if not the usual one.
    pub row: Option<TokenRow>,
    /// Whether all models take that row.
    pub force: bool,
}

/// A row of an embedding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenRow {
    /// Zeros.
    Zero,
    /// The token's in this model.
    Own(PathBuf),
    /// That of another token of this model.
    Other(PathBuf, OtherToken),
}

/// How an output's tokenizer makes a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChatTemplate {
    /// As most of the models do.
    Auto,
    /// As one that is built in does, by its name.
    Named(&'static str),
    /// By this template in the language of Jinja.
    Text(String),
}

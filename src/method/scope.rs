//! Scopes: which tensors are merged by one statistic.

/// Over what statistics are taken. The coarsest comes first; each unit of a scope lies in one unit of a coarser one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// The whole model, as in the papers.
    #[default]
    Model,
    /// Each layer; tensors outside layers by themselves.
    Layer,
    /// Each tensor.
    Tensor,
}

impl Scope {
    /// The name of the unit that a tensor belongs to.
    pub fn unit_of(self, tensor: &str) -> &str {
        match self {
            Self::Model => "model",
            Self::Layer => layer(tensor).unwrap_or(tensor),
            Self::Tensor => tensor,
        }
    }
}

/// The layer that a tensor belongs to: its name up to the first component that is a number.
/// `None` for tensors outside layers (embeddings, final norm, head): each is a unit of its own.
pub fn layer(tensor: &str) -> Option<&str> {
    let mut end = 0;
    for component in tensor.split('.') {
        end += component.len();
        if !component.is_empty() && component.bytes().all(|b| b.is_ascii_digit()) {
            return Some(&tensor[..end]);
        }
        end += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_layer_in_any_naming() {
        for (name, expected) in [
            ("model.layers.12.mlp.up_proj.weight", Some("model.layers.12")),
            ("model.layers.3.mlp.experts.17.w1.weight", Some("model.layers.3")),
            ("h.0.attn.c_attn.weight", Some("h.0")),
            ("encoder.block.7.layer.1.weight", Some("encoder.block.7")),
            ("model.embed_tokens.weight", None),
            ("conv1d_2.weight", None),
            ("7", Some("7")),
            ("", None),
        ] {
            assert_eq!(layer(name), expected, "{name}");
        }
    }
}

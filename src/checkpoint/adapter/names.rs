//! What the name of a tensor says in an adapter's file.

use super::config::INSTEAD;

/// What a tensor is to the module that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    /// The matrix that inputs meet first.
    A,
    /// The other one.
    B,
    /// The same for an embedding.
    EmbeddingA,
    /// The other one.
    EmbeddingB,
    /// It stands for the model's tensor of this name.
    Whole,
}

/// Where PEFT puts the model that an adapter belongs to.
const PREFIX: &str = "base_model.model.";

/// The module and the role of a tensor; for [`Role::Whole`] the tensor that it stands for.
///
/// # Errors
/// What is wrong with the name, or not supported.
pub(super) fn parse(key: &str) -> Result<(String, Role), String> {
    let inner = key.strip_prefix(PREFIX).ok_or_else(|| {
        format!("has the tensor {key:?}, whose name does not begin with {PREFIX} as PEFT's do")
    })?;
    let parts: Vec<&str> = inner.split('.').collect();
    let at = |word: &str| parts.iter().position(|part| *part == word);
    for (word, what) in [
        ("lora_magnitude_vector", "DoRA"),
        ("trainable_tokens_delta", "single trained tokens"),
        ("token_adapter", "single trained tokens"),
    ] {
        if at(word).is_some() {
            return Err(format!(
                "has the tensor {key:?} of {what}, which is not supported; {INSTEAD}"
            ));
        }
    }
    for (word, role, weight) in [
        ("lora_A", Role::A, true),
        ("lora_B", Role::B, true),
        ("lora_embedding_A", Role::EmbeddingA, false),
        ("lora_embedding_B", Role::EmbeddingB, false),
    ] {
        let Some(at) = at(word) else { continue };
        let module = parts[..at].join(".");
        // `lora_A.weight`, or with the adapter's name as it is in memory: `lora_A.default.weight`.
        return match (&parts[at + 1..], weight) {
            (["weight"] | [_, "weight"], true) | ([] | [_], false) if !module.is_empty() => {
                Ok((module, role))
            }
            (["bias"] | [_, "bias"], true) => Err(format!(
                "has the tensor {key:?}, a bias of a LoRA layer, which is not supported; {INSTEAD}"
            )),
            _ => Err(format!("has the tensor {key:?}, which is none that LoRA knows")),
        };
    }
    if parts.iter().any(|part| part.starts_with("lora_")) {
        return Err(format!("has the tensor {key:?}, which is none that LoRA knows"));
    }
    let whole = match (at("modules_to_save"), at("base_layer")) {
        (Some(at), None) => {
            // Followed by the adapter's name, if it was saved as it is in memory.
            let rest = &parts[at + 1..];
            let rest = if rest.len() > 1 { &rest[1..] } else { rest };
            [&parts[..at], rest].concat()
        }
        (None, Some(at)) => [&parts[..at], &parts[at + 1..]].concat(),
        (None, None) => parts,
        (Some(_), Some(_)) => {
            return Err(format!("has the tensor {key:?}, which is none that LoRA knows"));
        }
    };
    Ok((whole.join("."), Role::Whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_peft_writes() {
        for (key, name, role) in [
            ("model.layers.0.q.lora_A.weight", "model.layers.0.q", Role::A),
            ("model.layers.0.q.lora_B.default.weight", "model.layers.0.q", Role::B),
            ("embed.lora_embedding_A", "embed", Role::EmbeddingA),
            ("embed.lora_embedding_B.default", "embed", Role::EmbeddingB),
            ("lm_head.weight", "lm_head.weight", Role::Whole),
            ("lm_head.modules_to_save.weight", "lm_head.weight", Role::Whole),
            ("lm_head.modules_to_save.default.weight", "lm_head.weight", Role::Whole),
            ("embed.base_layer.weight", "embed.weight", Role::Whole),
        ] {
            assert_eq!(parse(&format!("{PREFIX}{key}")), Ok((name.to_owned(), role)), "{key}");
        }
    }

    #[test]
    fn other_names_are_refused() {
        for (key, part) in [
            ("model.layers.0.q.lora_A.weight", "does not begin"),
            ("base_model.model.q.lora_magnitude_vector", "DoRA"),
            ("base_model.model.embed.token_adapter.trainable_tokens_delta", "single trained"),
            ("base_model.model.q.lora_B.bias", "bias of a LoRA"),
            ("base_model.model.q.lora_A.a.b.weight", "none that LoRA knows"),
            ("base_model.model.lora_A.weight", "none that LoRA knows"),
            ("base_model.model.q.lora_E", "none that LoRA knows"),
            ("base_model.model.q.lora_A", "none that LoRA knows"),
        ] {
            assert!(parse(key).unwrap_err().contains(part), "{key}");
        }
    }
}

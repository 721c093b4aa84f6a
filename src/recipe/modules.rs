//! The modules of models that have several: a text decoder and a vision tower, for example, or an encoder and a decoder.
//!
//! mergekit knows from its table of architectures which tensors belong to which. Here their names tell, in the layouts that the
//! models had when they were published and that transformers gives them now.

/// A module, as mergekit calls it, and what the names of its tensors begin with.
type Entry = (&'static str, &'static [&'static str]);

/// What models consist of: a text model and what feeds it, or two halves.
const KINDS: [&[Entry]; 2] = [
    &[
        (TEXT, &["language_model", "model.language_model", "model", "lm_head"]),
        ("vision_tower", &["vision_tower", "model.vision_tower", "visual", "model.visual"]),
        ("vision_model", &["vision_model", "model.vision_model"]),
        (
            "multi_modal_projector",
            &[
                "multi_modal_projector",
                "model.multi_modal_projector",
                "visual.merger",
                "model.visual.merger",
                "visual.deepstack_merger_list",
                "model.visual.deepstack_merger_list",
            ],
        ),
    ],
    &[
        ("encoder", &["encoder", "model.encoder"]),
        ("decoder", &["decoder", "model.decoder", "proj_out"]),
        ("shared", &["shared", "lm_head"]),
    ],
];

/// The only module of a model that is not told apart, as mergekit calls it.
pub(crate) const WHOLE: &str = "default";

/// The module whose layers slices may be about.
pub(crate) const TEXT: &str = "text_decoder";

/// What a model consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind(&'static [Entry]);

impl Kind {
    /// The kind that has a module of that name.
    pub(crate) fn with(module: &str) -> Option<Self> {
        KINDS.into_iter().find(|kind| kind.iter().any(|&(name, _)| name == module)).map(Self)
    }

    /// The module that a tensor belongs to: that with the longest beginning of its name.
    pub(crate) fn module_of(self, tensor: &str) -> Option<&'static str> {
        let begins = |prefix: &&&str| {
            tensor
                .strip_prefix(**prefix)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let longest = |&(name, prefixes): &Entry| {
            Some((prefixes.iter().filter(begins).map(|prefix| prefix.len()).max()?, name))
        };
        self.0.iter().filter_map(longest).max().map(|(_, name)| name)
    }

    /// Names of its modules.
    pub(crate) fn names(self) -> Vec<&'static str> {
        self.0.iter().map(|&(name, _)| name).collect()
    }
}

/// Names of all modules.
pub(crate) fn names() -> Vec<&'static str> {
    KINDS.iter().flat_map(|kind| kind.iter().map(|&(name, _)| name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_beginning_of_a_name_tells_its_module() {
        for (known, tensor, expected) in [
            // As mergekit's table of architectures has them: Gemma 3, Mistral 3, Llama 4, Qwen 2 and 2.5 VL, Qwen 3 VL.
            (TEXT, "language_model.model.layers.0.mlp.up_proj.weight", Some(TEXT)),
            (TEXT, "language_model.lm_head.weight", Some(TEXT)),
            (TEXT, "vision_tower.vision_model.encoder.layers.1.mlp.fc1.bias", Some("vision_tower")),
            (TEXT, "vision_tower.patch_conv.weight", Some("vision_tower")),
            (TEXT, "multi_modal_projector.mm_soft_emb_norm.weight", Some("multi_modal_projector")),
            (TEXT, "vision_model.vision_adapter.mlp.fc1.weight", Some("vision_model")),
            (TEXT, "model.layers.0.mlp.up_proj.weight", Some(TEXT)),
            (TEXT, "lm_head.weight", Some(TEXT)),
            (TEXT, "visual.blocks.0.attn.qkv.weight", Some("vision_tower")),
            (TEXT, "visual.merger.mlp.0.weight", Some("multi_modal_projector")),
            (TEXT, "model.language_model.embed_tokens.weight", Some(TEXT)),
            (TEXT, "model.visual.pos_embed.weight", Some("vision_tower")),
            (TEXT, "model.visual.merger.linear_fc1.weight", Some("multi_modal_projector")),
            (TEXT, "model.visual.deepstack_merger_list.2.norm.bias", Some("multi_modal_projector")),
            // As transformers writes them now.
            (TEXT, "model.vision_tower.embeddings.x", Some("vision_tower")),
            (TEXT, "model.multi_modal_projector.linear_1.weight", Some("multi_modal_projector")),
            (TEXT, "models.x", None),
            (TEXT, "audio_tower.x", None),
            // T5, Whisper.
            ("encoder", "encoder.block.0.layer.0.SelfAttention.q.weight", Some("encoder")),
            ("decoder", "model.decoder.layers.0.fc1.weight", Some("decoder")),
            ("encoder", "shared.weight", Some("shared")),
            ("shared", "lm_head.weight", Some("shared")),
            ("encoder", "model.layers.0.x", None),
        ] {
            let kind = Kind::with(known).unwrap();
            assert_eq!(kind.module_of(tensor), expected, "{tensor}");
        }
        assert_eq!(Kind::with(WHOLE), None);
    }
}

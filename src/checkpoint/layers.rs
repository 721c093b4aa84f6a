//! What a config says about layers, and what it must say once layers are others.

use serde_json::Value;

/// Keys that hold the number of a text model's layers.
const COUNTS: [&str; 5] =
    ["num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_transformer_layers"];
/// Configs of text models inside those of larger ones.
const TEXT: [&str; 4] = ["text_config", "llm_config", "language_config", "text_model_config"];
/// Lists of numbers of layers.
const NUMBERS: [&str; 3] = ["mlp_only_layers", "full_attn_idxs", "cross_attention_layers"];
/// Rules that count layers, and that no list of layers can follow.
const RULES: [&str; 14] = [
    "first_k_dense_replace",
    "num_nextn_predict_layers",
    "max_window_layers",
    "decoder_sparse_step",
    "interleave_moe_layer_step",
    "moe_layer_freq",
    "moe_layer_interval",
    "no_rope_layer_interval",
    "attn_layer_period",
    "attn_layer_offset",
    "expert_layer_period",
    "expert_layer_offset",
    "num_kv_shared_layers",
    "full_attention_interval",
];
/// Lists that may be as long as there are layers, and are about something else.
const UNRELATED: [&str; 4] = ["token", "architectures", "label", "modules"];

/// The numbers of layers that a config names for a text model.
pub fn layer_counts(config: &Value) -> Vec<u64> {
    let of = |config: &Value| COUNTS.iter().find_map(|key| config.get(key)?.as_u64());
    let inner = TEXT.iter().filter_map(|key| config.get(key)).filter_map(of);
    inner.chain(of(config)).collect()
}

/// Where an output's layer comes from: the config of its model, if there is one, and its number there.
#[derive(Clone, Copy, Debug)]
pub struct LayerOrigin<'a> {
    /// The model's config.
    pub config: Option<&'a Value>,
    /// The layer.
    pub layer: usize,
}

/// A config for other layers: their number, and lists with one entry for each. Returns what nobody but a human
/// can set right.
pub fn relayered(config: &mut Value, old: u64, layers: &[LayerOrigin<'_>]) -> Vec<String> {
    let moved = layers.len() as u64 != old || layers.iter().enumerate().any(|(k, l)| k != l.layer);
    let mut notes = Vec::new();
    let mut counted = false;
    let inner = TEXT.iter().find(|key| config.get(key).is_some_and(Value::is_object));
    if let Some(key) = inner {
        let of =
            layers.iter().map(|l| LayerOrigin { config: l.config.and_then(|c| c.get(key)), ..*l });
        let of: Vec<LayerOrigin<'_>> = of.collect();
        if let Some(config) = config.get_mut(key) {
            counted = one(config, old, &of, moved, &mut notes);
        }
    }
    counted |= one(config, old, layers, moved, &mut notes);
    if !counted && moved {
        let known = COUNTS.join(", ");
        notes.push(format!(
            "config.json has none of the keys {known}: whatever else says how many layers there are must \
             become {}",
            layers.len()
        ));
    }
    notes
}

/// The same for one level of a config; tells whether it has a number of layers.
fn one(
    config: &mut Value,
    old: u64,
    layers: &[LayerOrigin<'_>],
    moved: bool,
    notes: &mut Vec<String>,
) -> bool {
    let Value::Object(map) = config else { return false };
    let mut counted = false;
    for (key, value) in map.iter_mut() {
        if COUNTS.contains(&key.as_str()) && value.is_u64() {
            if moved {
                *value = Value::from(layers.len());
            }
            counted = true;
        } else if RULES.contains(&key.as_str()) && moved && value.as_u64().is_some_and(|n| n > 0) {
            notes.push(format!(
                "config.json: {key} is {value} and about numbers of layers, which are others now; check it"
            ));
        } else if NUMBERS.contains(&key.as_str()) && value.is_array() {
            *value = numbers(key, layers);
        } else if per_layer(key, value, old) {
            let entry = |k: usize| {
                let LayerOrigin { config, layer } = layers[k];
                let own = config.and_then(|config| config.get(key)?.as_array()?.get(layer));
                own.or_else(|| value.get(layer)).cloned().unwrap_or(Value::Null)
            };
            *value = Value::Array((0..layers.len()).map(entry).collect());
        }
    }
    counted
}

/// Whether a value has one entry for each layer.
fn per_layer(key: &str, value: &Value, old: u64) -> bool {
    let unrelated = UNRELATED.iter().any(|part| key.contains(part));
    value.as_array().is_some_and(|list| list.len() as u64 == old && old > 0) && !unrelated
}

/// The output's layers that come from layers whose numbers are in the list `key` of their model.
fn numbers(key: &str, layers: &[LayerOrigin<'_>]) -> Value {
    let listed = |origin: &LayerOrigin<'_>| {
        let list = origin.config.and_then(|config| config.get(key)?.as_array());
        list.is_some_and(|list| list.iter().any(|n| n.as_u64() == Some(origin.layer as u64)))
    };
    let found = layers.iter().enumerate().filter(|(_, origin)| listed(origin));
    Value::Array(found.map(|(k, _)| Value::from(k)).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn origins<'a>(layers: &[(&'a Value, usize)]) -> Vec<LayerOrigin<'a>> {
        layers.iter().map(|&(config, layer)| LayerOrigin { config: Some(config), layer }).collect()
    }

    #[test]
    fn numbers_and_lists_follow_the_layers() {
        let config = |types: [&str; 3], dense: Value| {
            json!({"num_hidden_layers": 3, "layer_types": types, "mlp_only_layers": dense,
                   "eos_token_id": [1, 2, 3], "hidden_size": 8})
        };
        let (a, b) = (config(["f", "s", "f"], json!([0])), config(["x", "y", "z"], json!([1, 2])));
        let mut out = a.clone();
        let layers = origins(&[(&a, 0), (&a, 1), (&b, 1), (&b, 2)]);
        assert!(relayered(&mut out, 3, &layers).is_empty());
        assert_eq!(
            out,
            json!({"num_hidden_layers": 4, "layer_types": ["f", "s", "y", "z"], "mlp_only_layers": [0, 2, 3],
                   "eos_token_id": [1, 2, 3], "hidden_size": 8})
        );
    }

    #[test]
    fn a_text_model_inside_another_is_found_and_towers_are_left_alone() {
        let config = json!({"text_config": {"num_hidden_layers": 2, "layer_types": ["a", "b"]},
                            "vision_config": {"num_hidden_layers": 2, "depth": 2}});
        assert_eq!(layer_counts(&config), [2]);
        let mut out = config.clone();
        assert!(relayered(&mut out, 2, &origins(&[(&config, 1)])).is_empty());
        assert_eq!(out["text_config"], json!({"num_hidden_layers": 1, "layer_types": ["b"]}));
        assert_eq!(out["vision_config"], config["vision_config"]);
    }

    #[test]
    fn layers_in_their_places_change_nothing() {
        let config = json!({"n_layer": 2, "first_k_dense_replace": 1, "x_types": [1, 2]});
        let mut out = config.clone();
        assert!(relayered(&mut out, 2, &origins(&[(&config, 0), (&config, 1)])).is_empty());
        assert_eq!(out, config);
    }

    #[test]
    fn what_cannot_be_set_right_is_told() {
        let config = json!({"num_hidden_layers": 2, "first_k_dense_replace": 1});
        let notes = relayered(&mut config.clone(), 2, &origins(&[(&config, 1)]));
        assert!(notes.len() == 1 && notes[0].contains("first_k_dense_replace is 1"), "{notes:?}");
        let config = json!({"depth_of_it": 2});
        let notes = relayered(&mut config.clone(), 2, &origins(&[(&config, 1)]));
        assert!(notes.len() == 1 && notes[0].contains("must become 1"), "{notes:?}");
    }
}

//! `adapter_config.json`: what PEFT was told to train.
//!
//! A key that changes what an adapter does and is not known here must not be passed over, so keys are known to
//! have no effect on weights, known and read, known and refused, or unknown and refused.

use regex_automata::meta::Regex;
use serde_json::Value;

use super::super::json::Entries;

/// Keys about training, saving and origin, and those that what is stored tells as well.
const HARMLESS: [&str; 18] = [
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "target_modules",
    "task_type",
];
/// Keys that ask for more than a product of two matrices, unless they are unset.
const REFUSED: [(&str, &str); 10] = [
    ("use_dora", "DoRA"),
    ("use_qalora", "QALoRA"),
    ("use_bdlora", "BD-LoRA"),
    ("alora_invocation_tokens", "activated LoRA, which depends on the tokens before,"),
    ("arrow_config", "Arrow routing"),
    ("layer_replication", "replicated layers"),
    ("lora_bias", "a bias of the LoRA layers"),
    ("megatron_config", "a Megatron layout"),
    ("target_parameters", "LoRA of parameters that are no linear layer"),
    ("trainable_token_indices", "single trained tokens"),
];
/// Ways to begin that take something away from the model's weights whenever the adapter is loaded.
const REWRITES: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];
/// What PEFT can merge and reflow cannot.
pub(super) const INSTEAD: &str =
    "merge the adapter into its model with PEFT (merge_and_unload), and name the result instead";

/// A configuration of a LoRA adapter.
#[derive(Clone, Debug)]
pub(super) struct Config {
    rank: u64,
    alpha: f64,
    ranks: Vec<(Regex, u64)>,
    alphas: Vec<(Regex, f64)>,
    rslora: bool,
    /// Whether adapted weights are stored with inputs as rows.
    pub(super) fan_in_fan_out: bool,
    /// Modules that are stored whole, by the ends of their names.
    pub(super) saved: Vec<String>,
    /// What the adapter says it was trained on.
    pub(super) base: Option<String>,
    /// What was let pass.
    pub(super) warnings: Vec<String>,
}

impl Config {
    /// Reads a configuration.
    ///
    /// # Errors
    /// What is wrong with it, or not supported.
    pub(super) fn parse(json: &[u8], lenient: bool) -> Result<Self, String> {
        let Entries::<Value>(entries) =
            serde_json::from_slice(json).map_err(|error| format!("is malformed: {error}"))?;
        let get = |key: &str| entries.iter().find(|(name, _)| name == key).map(|(_, value)| value);
        match get("peft_type").map(|kind| kind.as_str()) {
            Some(Some("LORA")) => {}
            Some(Some(other)) => {
                let other = other.escape_debug();
                return Err(format!(
                    "is of the type {other}, and only LORA is supported; {INSTEAD}"
                ));
            }
            _ => return Err("has no `peft_type`: it is no configuration of PEFT".to_owned()),
        }
        for (key, what) in REFUSED {
            if get(key).is_some_and(is_set) {
                return Err(format!(
                    "asks for {what} (`{key}`), which is not supported; {INSTEAD}"
                ));
            }
        }
        if let Some(Value::String(way)) = get("init_lora_weights")
            && REWRITES.iter().any(|name| way.to_lowercase().starts_with(name))
        {
            let way = way.escape_debug();
            return Err(format!(
                "was initialised as {way}, which changes the model's own weights when it is loaded; \
                 convert it to a plain LoRA when it is saved (path_initial_model_for_weight_conversion), or \
                 {INSTEAD}"
            ));
        }
        let read = ["peft_type", "init_lora_weights", "bias", "r", "lora_alpha", "use_rslora"];
        let read = read.into_iter().chain(["fan_in_fan_out", "modules_to_save"]);
        let known: Vec<&str> = read
            .chain(["rank_pattern", "alpha_pattern"])
            .chain(HARMLESS)
            .chain(REFUSED.map(|(key, _)| key))
            .collect();
        let mut warnings = Vec::new();
        for (key, value) in &entries {
            if known.contains(&key.as_str()) || !is_set(value) {
                continue;
            }
            let key = key.escape_debug();
            if !lenient {
                return Err(format!(
                    "has the key `{key}`, which reflow does not know and which may change what the adapter \
                     does; --lenient ignores it"
                ));
            }
            warnings.push(format!("the key `{key}` is unknown and ignored"));
        }
        let flag = |key: &str| match get(key) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(on)) => Ok(*on),
            Some(_) => Err(format!("has a `{key}` that is neither true nor false")),
        };
        let number = |key: &str| get(key).ok_or_else(|| format!("has no `{key}`"));
        Ok(Self {
            rank: rank("r", number("r")?)?,
            alpha: alpha("lora_alpha", number("lora_alpha")?)?,
            ranks: pattern("rank_pattern", get("rank_pattern"), rank)?,
            alphas: pattern("alpha_pattern", get("alpha_pattern"), alpha)?,
            rslora: flag("use_rslora")?,
            fan_in_fan_out: flag("fan_in_fan_out")?,
            saved: words("modules_to_save", get("modules_to_save"))?,
            base: get("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned),
            warnings,
        })
    }

    /// The rank that a module has by the configuration.
    pub(super) fn rank(&self, module: &str) -> u64 {
        find(&self.ranks, module).unwrap_or(self.rank)
    }

    /// What the product of a module's matrices is multiplied by.
    pub(super) fn scale(&self, module: &str) -> f32 {
        let alpha = find(&self.alphas, module).unwrap_or(self.alpha);
        let rank = self.rank(module) as f64;
        (alpha / if self.rslora { rank.sqrt() } else { rank }) as f32
    }
}

/// Whether a value says anything: not null, false, 0 or empty.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(on) => *on,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

fn rank(key: &str, value: &Value) -> Result<u64, String> {
    let number = value.as_u64().filter(|rank| (1..1 << 20).contains(rank));
    number.ok_or_else(|| format!("has {value} as `{key}`, which is no rank"))
}

fn alpha(key: &str, value: &Value) -> Result<f64, String> {
    let number = value.as_f64().filter(|alpha| alpha.is_finite());
    number.ok_or_else(|| format!("has {value} as `{key}`, which is no number"))
}

/// A value for each pattern, in the order of the file: the first that matches counts.
fn pattern<T>(
    key: &str,
    value: Option<&Value>,
    read: fn(&str, &Value) -> Result<T, String>,
) -> Result<Vec<(Regex, T)>, String> {
    let map = match value {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(map)) => map,
        Some(_) => return Err(format!("has a `{key}` that is no object")),
    };
    let entry = |(text, value): (&String, &Value)| {
        // As PEFT matches: the whole name of a module, or its end from a dot on.
        let regex = Regex::new(&format!(r"^(?:.*\.)?(?:{text})$")).map_err(|_| {
            let text = text.escape_debug();
            format!("has {text} in `{key}`, which is no pattern that reflow can read; {INSTEAD}")
        })?;
        Ok((regex, read(key, value)?))
    };
    map.iter().map(entry).collect()
}

fn find<T: Copy>(patterns: &[(Regex, T)], module: &str) -> Option<T> {
    patterns.iter().find(|(regex, _)| regex.is_match(module)).map(|&(_, value)| value)
}

fn words(key: &str, value: Option<&Value>) -> Result<Vec<String>, String> {
    let wrong = || format!("has a `{key}` that is no list of names");
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(items)) => {
            items.iter().map(|item| item.as_str().map(str::to_owned).ok_or_else(wrong)).collect()
        }
        Some(_) => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(extra: Value) -> Result<Config, String> {
        let mut all = json!({
            "peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "bias": "none",
            "use_dora": false, "layer_replication": null, "rank_pattern": {}, "init_lora_weights": true,
        });
        let (Value::Object(all), Value::Object(extra)) = (&mut all, extra) else { panic!() };
        all.extend(extra);
        Config::parse(json!(all).to_string().as_bytes(), false)
    }

    #[test]
    fn patterns_match_ends_of_names_as_in_peft() {
        let config = config(json!({
            "rank_pattern": {"q_proj": 4, "^layers.1.k_proj": 2, r"layers\.\d+\.mlp\.(up|down)_proj": 32},
            "alpha_pattern": {"q_proj": 2, "up_proj": 64.5}
        }))
        .unwrap();
        for (module, rank, scale) in [
            ("model.layers.0.q_proj", 4, 0.5),
            ("q_proj", 4, 0.5),
            ("model.xq_proj", 8, 2.0),
            ("layers.1.k_proj", 2, 8.0),
            ("layers.11.mlp.up_proj", 32, 64.5 / 32.0),
            ("layers.11.mlp.down_proj", 32, 0.5),
        ] {
            assert_eq!((config.rank(module), config.scale(module)), (rank, scale), "{module}");
        }
        let config = self::config(json!({"use_rslora": true, "r": 3})).unwrap();
        assert_eq!(config.scale("x"), (16.0 / 3f64.sqrt()) as f32);
    }

    #[test]
    fn what_would_change_the_meaning_is_refused_by_name() {
        for (extra, part) in [
            (json!({"peft_type": "LOHA"}), "type LOHA"),
            (json!({"peft_type": "IA3\u{1b}[31m"}), "type IA3\\u{1b}[31m"),
            (json!({"use_dora": true}), "DoRA"),
            (json!({"layer_replication": [[0, 4], [2, 5]]}), "replicated layers"),
            (json!({"target_parameters": ["experts.gate_up_proj"]}), "target_parameters"),
            (json!({"init_lora_weights": "pissa_niter_16"}), "pissa_niter_16"),
            (json!({"r": 0}), "0 as `r`"),
            (json!({"r": "8"}), "\"8\" as `r`"),
            (json!({"lora_alpha": null}), "null as `lora_alpha`"),
            (json!({"rank_pattern": {"(": 3}}), "( in `rank_pattern`"),
            (json!({"rank_pattern": {"a(?=b)": 3}}), "no pattern"),
            (json!({"rank_pattern": [1]}), "no object"),
            (json!({"use_rslora": 1}), "neither true nor false"),
            (json!({"modules_to_save": "lm_head"}), "no list"),
            (json!({"use_something_new": 3}), "use_something_new"),
        ] {
            let error = config(extra.clone()).unwrap_err();
            assert!(error.contains(part), "{extra}: {error}");
        }
        for extra in [json!({"use_something_new": false}), json!({"init_lora_weights": "gaussian"})]
        {
            assert!(config(extra).is_ok());
        }
        let twice = br#"{"peft_type": "LORA", "r": 8, "r": 16, "lora_alpha": 1}"#;
        assert!(Config::parse(twice, false).unwrap_err().contains("twice"));
        let unknown = br#"{"peft_type": "LORA", "r": 8, "lora_alpha": 1, "odd\n": 1}"#;
        assert!(Config::parse(unknown, false).unwrap_err().contains("odd\\n"));
        assert_eq!(Config::parse(unknown, true).unwrap().warnings.len(), 1);
    }
}

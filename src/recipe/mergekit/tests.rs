//! What is understood, and what is refused with which words.

use super::*;
use crate::method::Value;

fn parsed(text: &str) -> Result<Vec<Document>, String> {
    parse(text, &|_| false).map_err(|complaint| complaint.to_string())
}

fn one(text: &str) -> Document {
    let documents = parsed(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    assert_eq!(documents.len(), 1);
    documents.into_iter().next().unwrap()
}

/// The complaint about `text` has all of `parts`.
#[track_caller]
fn refused(text: &str, parts: &[&str]) {
    let error = parsed(text).expect_err(text);
    for part in parts {
        assert!(error.contains(part), "{error:?} lacks {part:?}\n{text}");
    }
}

const SMALL: &str = "merge_method: ties\nbase_model: b\nmodels:\n  - model: x\n";

fn models(document: &Document) -> &[Input] {
    let Body::Models(inputs) = &document.body else { panic!("not models: {document:?}") };
    inputs
}

fn slices(document: &Document) -> &[Slice] {
    let Body::Slices(slices) = &document.body else { panic!("not slices: {document:?}") };
    slices
}

fn one_value(document: &Document, name: &str) -> Value {
    match &document.parameters.get(name).unwrap().setting {
        Setting::One(value) => value.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_form_of_a_parameter_is_understood() {
    let text = "
merge_method: ties
base_model: org/base
models:
  - model: org/math
    parameters:
      density: [1, 0.7, 0.1]   # over the layers
      weight: 1.0
  - model: org/code
    parameters:
      weight:
        - filter: mlp
          value: [0, 0.5]
        - filter: '*'
          value: 0.25
        - value: 1e-5
  - model: org/chat
    parameters:
      weight: {filter: self_attn, value: 0.5}
parameters: {normalize: yes, int8_mask: off}
dtype: torch.bfloat16
out_dtype: float32
";
    let document = one(text);
    assert_eq!((document.dtype, document.out_dtype), (Some(Dtype::Bf16), Some(Dtype::F32)));
    assert_eq!(one_value(&document, "normalize"), Value::Flag(true));
    assert_eq!(one_value(&document, "int8_mask"), Value::Flag(false));
    let [math, code, chat] = models(&document) else { panic!() };
    let shown = |input: &Input, name: &str| input.parameters.get(name).unwrap().setting.to_string();
    assert_eq!(shown(math, "density"), "[1, 0.7, 0.1]");
    assert_eq!(
        shown(code, "weight"),
        "[{filter: \"mlp\", value: [0, 0.5]}, {value: 0.25}, {value: 0.00001}]"
    );
    assert_eq!(shown(chat, "weight"), "[{filter: \"self_attn\", value: 0.5}]");
    let at = code.parameters.get("weight").unwrap().at;
    assert_eq!((at.line, at.column), (11, 7));
}

#[test]
fn booleans_and_numbers_are_those_of_yaml_1_1() {
    for (text, value) in [
        ("yes", Value::Flag(true)),
        ("No", Value::Flag(false)),
        ("ON", Value::Flag(true)),
        ("off", Value::Flag(false)),
        ("true", Value::Flag(true)),
        ("1e-5", Value::Number(1e-5)),
        ("1E+2", Value::Number(100.0)),
        (".5", Value::Number(0.5)),
        ("-1", Value::Number(-1.0)),
        ("1_000", Value::Number(1000.0)),
        ("0x10", Value::Number(16.0)),
        ("'0.5'", Value::Word("0.5".to_owned())),
        ("topk", Value::Word("topk".to_owned())),
    ] {
        let document = one(&format!("{SMALL}parameters: {{p: {text}}}\n"));
        assert_eq!(one_value(&document, "p"), value, "{text}");
    }
}

#[test]
fn slices_have_sources_with_layers() {
    let document = one("
slices:
  - sources:
      - {model: a, layer_range: [0, 24]}
  - sources:
      - model: b
        layer_range: [20, 40]
        parameters: {scale: 0.5}
    base_model: c
    parameters: {t: 0.5}
merge_method: passthrough
dtype: float16
");
    let [first, second] = slices(&document) else { panic!() };
    assert_eq!((first.sources[0].layers.clone(), first.base_model.is_none()), (0..24, true));
    assert_eq!(second.sources[0].layers, 20..40);
    assert_eq!(second.base_model.as_ref().unwrap().to_string(), "c");
    assert!(second.parameters.get("t").is_some());
    assert!(second.sources[0].parameters.get("scale").is_some());
}

#[test]
fn modules_have_bodies_of_their_own() {
    let document = one("
merge_method: linear
modules:
  text_decoder:
    slices:
      - sources: [{model: a, layer_range: [0, 2]}]
  vision_tower:
    models: [{model: a, parameters: {weight: 1}}]
    parameters: {normalize: true}
");
    let Body::Modules(modules) = &document.body else { panic!() };
    assert_eq!(modules[0].name, "text_decoder");
    assert!(matches!(modules[0].body, Body::Slices(_)));
    assert!(matches!(modules[1].body, Body::Models(_)));
    refused("merge_method: linear\nmodules: {m: {modules: {}}}\n", &["line 2", "`modules`"]);
}

#[test]
fn model_references_have_revisions_and_adapters() {
    for (text, shown) in [
        ("a", ("a", None, None, None)),
        ("org/a@v1.0", ("org/a", Some("v1.0"), None, None)),
        ("org/a+org/l", ("org/a", None, Some("org/l"), None)),
        ("org/a@r+./l@s", ("org/a", Some("r"), Some("./l"), Some("s"))),
        ("{model: org/a@r, lora: l}", ("org/a", Some("r"), Some("l"), None)),
        ("{model: {path: 'a b', revision: r}}", ("a b", Some("r"), None, None)),
        ("{model: {path: a}, lora: {path: l, revision: s}}", ("a", None, Some("l"), Some("s"))),
    ] {
        let document = one(&SMALL.replace("model: x", &format!("model: {text}")));
        let ModelReference { model, lora, .. } = &models(&document)[0].model;
        let parts = (
            model.path.as_str(),
            model.revision.as_deref(),
            lora.as_ref().map(|l| l.path.as_str()),
            lora.as_ref().and_then(|l| l.revision.as_deref()),
        );
        assert_eq!(parts, shown, "{text}");
    }
    for (text, part) in [
        ("a@b@c", "more than one `@`"),
        ("a+b+c", "more than one `+`"),
        ("a@", "a part is empty"),
        ("+l", "a part is empty"),
        ("5", "is a number"),
        ("[a]", "not a list"),
        ("{path: a}", "unknown key `path`"),
        ("{model: a, override_architecture: L}", "`override_architecture` is not supported"),
    ] {
        refused(&SMALL.replace("model: x", &format!("model: {text}")), &["line 4", part]);
    }
}

#[test]
fn a_directory_may_have_a_plus_or_an_at_sign_in_its_name() {
    let text = SMALL.replace("model: x", "model: ./a+b@c");
    let documents = parse(&text, &|path| path == "./a+b@c").unwrap();
    let model = &models(&documents[0])[0].model;
    assert_eq!((model.model.path.as_str(), &model.lora), ("./a+b@c", &None));
}

#[test]
fn a_model_is_the_same_wherever_and_however_it_is_written() {
    let document = one(
        "merge_method: m\nmodels:\n  - model: a@r\n  - model: {model: {path: a, revision: r}}\n",
    );
    let [first, second] = models(&document) else { panic!() };
    assert_eq!(first.model, second.model);
}

#[test]
fn unknown_keys_are_named_with_place_and_suggestion() {
    for (text, parts) in [
        (format!("{SMALL}paramters: {{}}\n"), ["line 5, column 1", "`paramters`", "`parameters`?"]),
        (format!("{SMALL}merge-method: x\n"), ["line 5", "`merge-method`", "`merge_method`?"]),
        (
            SMALL.replace("model: x", "modle: x"),
            ["line 4, column 5", "`modle` in an entry of `models`", "`model`?"],
        ),
        (format!("{SMALL}tokenizer: {{sauce: base}}\n"), ["line 5", "`sauce`", "`source`?"]),
        (
            format!("{SMALL}input_model_parameters: {{}}\n"),
            ["line 5", "`input_model_parameters`", ""],
        ),
        (
            format!("{SMALL}parameters: {{t: [{{fliter: mlp, value: 1}}]}}\n"),
            ["line 5", "`fliter` in an entry with a filter", "`filter`?"],
        ),
        (
            "merge_method: m\nslices:\n  - sorces: []\n".to_owned(),
            ["line 3, column 5", "`sorces`", "`sources`?"],
        ),
        (
            "merge_method: m\nslices:\n  - sources: [{model: a, layers: [0, 1]}]\n".to_owned(),
            ["line 3", "`layers`", "a slice's source"],
        ),
    ] {
        refused(&text, &parts);
    }
}

#[test]
fn parameters_at_the_wrong_indentation_are_explained() {
    let beside = "merge_method: m\nmodels:\n  - model: x\n    parameters:\n    weight: 1\n";
    refused(beside, &["line 5, column 5", "`weight`", "`parameters` is empty: indent"]);
    let without = "merge_method: m\nmodels:\n  - model: x\n    weight: 1\n";
    refused(without, &["line 4", "`weight`", "belong below `parameters`"]);
    let empty = format!("{SMALL}parameters: {{t: }}\n");
    refused(&empty, &["line 5", "`t` has no value"]);
}

#[test]
fn exactly_one_kind_of_inputs_is_needed() {
    refused("merge_method: m\n", &["exactly one of", "none"]);
    refused(&format!("{SMALL}slices: []\n"), &["line 5", "exactly one of", "more than one"]);
    refused("merge_method: m\nmodels: []\n", &["line 2", "`models` is empty"]);
    refused("merge_method: m\nslices: [{sources: []}]\n", &["`sources` is empty"]);
    assert!(parsed("models: [{model: a}]\n").unwrap_err().contains("lacks `merge_method`"));
}

#[test]
fn slices_that_cannot_be_are_refused() {
    let slice = |text: &str| format!("merge_method: m\nslices:\n  - sources: [{text}]\n");
    for (text, part) in [
        ("{model: a, layer_range: [4, 4]}", "the one behind the last"),
        ("{model: a, layer_range: [4, 2]}", "the one behind the last"),
        ("{model: a, layer_range: [0, 1, 2]}", "the one behind the last"),
        ("{model: a, layer_range: [-1, 2]}", "a whole number"),
        ("{model: a, layer_range: 0-24}", "must be a list"),
        ("{model: a}", "lacks `layer_range`"),
        (
            "{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 3]}",
            "same number of layers: a has 2 and b has 3",
        ),
        (
            "{model: a, layer_range: [0, 2]}, {model: a, layer_range: [2, 4]}",
            "a is more than once in one slice",
        ),
    ] {
        refused(&slice(text), &["line 3", part]);
    }
    let weighted = "merge_method: m\nslices:\n  - sources: [{model: a, layer_range: [0, 2]}]\n    residual_weight: 1\n";
    refused(weighted, &["line 4", "`residual_weight`"]);
}

#[test]
fn tokenizers_are_read_in_both_forms() {
    let legacy = |text: &str| one(&format!("{SMALL}tokenizer_source: {text}\n")).tokenizer.unwrap();
    assert_eq!(legacy("base").source, TokenizerSource::Base);
    assert_eq!(legacy("union").source, TokenizerSource::Union);
    assert!(matches!(legacy("org/a@r").source, TokenizerSource::Model(_)));
    let full = one(&format!(
        "{SMALL}tokenizer:
  pad_to_multiple_of: 64
  tokens:
    <|im_start|>: {{source: org/a, force: true}}
    <|im_end|>: {{source: {{kind: model_token, model: org/a, token: </s>}}}}
    <|pad|>: {{source: {{kind: zero}}}}
    new: {{source: {{kind: model_token, model: org/a, token_id: 3}}}}
    plain:
"
    ));
    let tokenizer = full.tokenizer.unwrap();
    assert_eq!((&tokenizer.source, tokenizer.named), (&TokenizerSource::Union, false));
    assert_eq!(tokenizer.pad_to_multiple_of, Some(64));
    let rules: Vec<_> = tokenizer.tokens.iter().map(|r| (&*r.token, r.force)).collect();
    assert_eq!(rules[0], ("<|im_start|>", true));
    assert!(
        matches!(&tokenizer.tokens[1].source, Some(TokenRow::Other(_, OtherToken::Text(t))) if t == "</s>")
    );
    assert_eq!(tokenizer.tokens[2].source, Some(TokenRow::Zero));
    assert!(matches!(tokenizer.tokens[3].source, Some(TokenRow::Other(_, OtherToken::Id(3)))));
    assert_eq!((rules[4], &tokenizer.tokens[4].source), (("plain", false), &None));
    for (text, part) in [
        ("tokenizer_source: base\ntokenizer: {}", "both"),
        ("tokenizer: {tokens: {a: {source: {kind: nil}}}}", "known: zero, model_token"),
        ("tokenizer: {tokens: {a: {source: {kind: model_token, model: x}}}}", "either"),
        ("tokenizer: {tokens: [a]}", "a mapping"),
        ("tokenizer: {pad_to_multiple_of: 1.5}", "a whole number"),
    ] {
        refused(&format!("{SMALL}{text}\n"), &["line", part]);
    }
}

#[test]
fn a_file_may_hold_several_documents() {
    let text = "name: first\nmerge_method: linear\nmodels: [{model: a}]\n---\n\
                merge_method: slerp\nmodels: [{model: first}]\n";
    let documents = parsed(text).unwrap();
    assert_eq!(documents.len(), 2);
    assert_eq!(documents[0].name.as_deref(), Some("first"));
    assert_eq!(documents[1].name, None);
    refused(&text.replace("slerp", "slerp\nmodel: x"), &["line 6", "`model`"]);
}

#[test]
fn types_are_those_of_mergekit_or_refused_by_name() {
    for (name, part) in [
        ("int8", "known: bfloat16, float16, float32"),
        ("bfloat", "did you mean bfloat16?"),
        ("float64", "is not supported"),
        ("torch.int64", "is not supported"),
    ] {
        refused(&format!("{SMALL}dtype: {name}\n"), &["line 5", "dtype", part]);
        refused(&format!("{SMALL}out_dtype: {name}\n"), &["line 5", "out_dtype", part]);
    }
}

#[test]
fn text_that_is_no_recipe_is_refused_with_its_place() {
    for text in ["", "---\n", "# nothing\n", "- a\n- list\n", "just words\n"] {
        assert!(parsed(text).is_err(), "{text:?}");
    }
    refused(&format!("{SMALL}merge_method: again\n"), &["line 5", "merge_method"]);
    refused("merge_method: [\n", &["line"]);
    refused(&format!("{SMALL}dtype: {{}}\n"), &["line 5", "`dtype` must be a word"]);
    refused(&format!("{SMALL}parameters: [1]\n"), &["line 5", "must be a mapping"]);
    refused(&format!("{SMALL}parameters: {{t: [{{value: 1}}, 2]}}\n"), &["not both"]);
    refused(&format!("{SMALL}parameters: {{t: {{filter: mlp}}}}\n"), &["lacks `value`"]);
    refused(&format!("{SMALL}parameters: {{t: {{value: {{value: 1}}}}}}\n"), &["must be a value"]);
    refused(&format!("{SMALL}parameters: {{t: [[1]]}}\n"), &["must be a value here"]);
}

#[test]
fn anchors_and_merge_keys_are_followed() {
    let text = "merge_method: m\nmodels:\n  - model: a\n    parameters: &p {weight: 0.5}\n  - model: b\n    parameters: *p\n  - model: c\n    parameters: {<<: *p, density: 1}\n";
    let document = one(text);
    for input in models(&document) {
        assert!(input.parameters.get("weight").is_some(), "{input:?}");
    }
    // An alias bomb ends in an error, not in memory.
    let aliases = |i: usize| vec![format!("*x{i}"); 8].join(",");
    let lines = (0..30).map(|i| format!("y{i}: &x{} [{}]\n", i + 1, aliases(i)));
    let lines: Vec<String> = lines.collect();
    let bomb = format!("merge_method: m\nx: &x0 [1,1]\n{}", lines.join(""));
    assert!(parsed(&bomb).is_err());
}

#[test]
fn keys_of_reflow_stand_beside_the_schema() {
    let text = format!(
        "{SMALL}include: ['*.weight']\nexclude: ['a*', 'b']\nshard_size: 2GB\nlenient: true\nvocab: common\n"
    );
    let own = one(&text).own;
    assert_eq!((own.include.len(), own.exclude.len()), (1, 2));
    let get = |key| own.get(key).map(|(text, _)| text);
    assert_eq!((get("shard_size"), get("lenient")), (Some("2GB"), Some("true")));
    assert_eq!((get("vocab"), get("missing")), (Some("common"), None));
}

//! Recipe files: what becomes of them, what is refused and with which words, and round trips.

use std::path::{Path, PathBuf};

use super::golden;
use super::read::{self, Around};
use super::*;

fn read(text: &str) -> Result<(Recipe, Vec<String>), String> {
    let around = Around {
        exists: &|_| false,
        locate: &|name| Ok(PathBuf::from(name)),
        method: Recipe::method,
    };
    read::parse(Path::new("r.yml"), text, &around).map_err(|error| error.to_string())
}

fn parsed(text: &str) -> Result<Recipe, String> {
    read(text).map(|(recipe, _)| recipe)
}

/// With mergekit's own methods.
fn mergekits(text: &str) -> Result<(Recipe, Vec<String>), String> {
    golden::parsed(text).map_err(|error| error.to_string())
}

/// The error about `text` has all of `parts`.
#[track_caller]
fn refused<T: std::fmt::Debug>(read: Result<T, String>, parts: &[&str]) {
    let error = read.expect_err(&format!("{parts:?}"));
    for part in parts {
        assert!(error.contains(part), "{error:?} lacks {part:?}");
    }
}

const SMALL: &str = "merge_method: pcb\nbase_model: b\nmodels:\n  - model: x\n";
const TIES: &str =
    "merge_method: ties\nbase_model: b\nmodels:\n  - model: x\n    parameters: {weight: 1}\n";

fn pcb(base: &str, models: Vec<Model>) -> Recipe {
    Recipe::new(Recipe::method("pcb", None).unwrap(), Some(base.into()), models)
}

#[test]
fn defaults_are_filled_in() {
    assert_eq!(read(SMALL).unwrap(), (pcb("b", vec![Model::new("x")]), vec![]));
}

#[test]
fn everything_survives_a_round_trip() {
    let mut models = vec![Model::new("x: y").with("lambda", 1.25), Model::new("z")];
    for (model, text) in [
        (0, "[{filter: mlp, value: [-0.1, 2]}, {filter: '', value: []}, {value: 1e-7}]"),
        (1, "[0.1, '2', 1e30]"),
    ] {
        models[model].parameters.set("lambda", mergekit::setting("lambda", text).unwrap());
    }
    let mut recipe = pcb("dir/base model", models);
    recipe.parameters.set("variant", Setting::One(Value::Word("paper".to_owned())));
    recipe.parameters.set("keep", Setting::number(0.05));
    recipe.scope = Scope::Layer;
    recipe.include = vec!["*.weight".into()];
    recipe.exclude = vec!["*{a,b}*".into(), "\"quoted\"".into()];
    recipe.dtype = OutputDtype::F16;
    recipe.shard_size = 123_456;
    recipe.missing = Missing::Base;
    recipe.vocab = Vocab::Common;
    recipe.nonfinite = NonFinite::Base;
    recipe.lenient = true;
    recipe.count_aliases = true;
    recipe.copy_code = true;
    let text = recipe.to_yaml(|path| path.display().to_string());
    let again = parsed(&text).unwrap();
    assert_eq!(again.to_yaml(|path| path.display().to_string()), text);
    recipe.parameters = recipe.parameters.complete(recipe.method);
    assert_eq!(again, recipe, "{text}");
}

#[test]
fn the_habits_of_mergekit_recipes_are_understood() {
    let recipe = parsed(
        "merge_method: pcb\nbase_model: {model: b}\nmodels:\n  - model: b\n  - model: {model: {path: x}}\n    \
         parameters: {lambda: \"1.5\"}\n  - model: z\nparameters: {keep: 1e-1, lambda: 2}\nout_dtype: torch.float16\n\
         dtype: float32\nshard_size: 2GB\n",
    )
    .unwrap();
    let values = recipe.values(super::Place::whole("w", 0.0)).unwrap();
    assert_eq!(values.each("lambda"), [1.5, 2.0]);
    assert_eq!(recipe.merge_values().unwrap().number("keep"), 0.1);
    assert_eq!(recipe.dtype, OutputDtype::F16);
    assert_eq!(recipe.shard_size, 2_000_000_000);
}

#[test]
fn what_decides_about_the_whole_merge_stands_among_the_common_parameters() {
    let own = |text: &str| parsed(&format!("{SMALL}parameters: {{{text}}}\n"));
    assert_eq!(own("scope: layer").unwrap().scope, Scope::Layer);
    assert_eq!(own("seed: 7").unwrap().seed, 7);
    assert_eq!(own(&format!("seed: '{}'", u64::MAX)).unwrap().seed, u64::MAX);
    refused(own(&format!("seed: {}", u64::MAX)), &["line 5", "in quotes"]);
    refused(own("seed: 1.5"), &["line 5", "not a whole number"]);
    refused(own("scope: [layer, model]"), &["line 5", "one word or number"]);
    refused(own("scope: layers"), &["line 5", "known: model, layer, tensor"]);
    refused(own("scpoe: layer"), &["line 5", "did you mean `scope`?"]);
}

#[test]
fn unknown_names_are_refused_with_line_and_suggestion() {
    for (line, name, meant) in [
        ("paramters: {keep: 0.1}", "paramters", "parameters"),
        ("parameters: {kep: 0.1}", "kep", "keep"),
        ("    parameters: {lamda: 0.1}", "lamda", "lambda"),
    ] {
        let name = format!("`{name}`");
        let meant = format!("did you mean `{meant}`?");
        refused(parsed(&format!("{SMALL}{line}\n")), &["r.yml: line 5", &name, &meant]);
    }
    for (typed, meant) in [("wieght", "weight"), ("densty", "density"), ("lambd", "lambda")] {
        let meant = format!("did you mean `{meant}`?");
        refused(mergekits(&format!("{TIES}parameters: {{{typed}: 1}}\n")), &["line 6", &meant]);
    }
    refused(
        mergekits(&TIES.replace("weight: 1", "weight: {fliter: mlp, value: 1}")),
        &["line 5", "`fliter`", "did you mean `filter`?"],
    );
    refused(
        mergekits(&TIES.replace("    parameters: {weight: 1}", "    parameters:\n    weight: 1")),
        &["line 6", "`weight`", "indent"],
    );
}

#[test]
fn the_name_of_a_method_is_suggested() {
    for name in registry::names() {
        for typed in [name.to_uppercase(), format!("{name}s"), name.replace('_', "-")] {
            if registry::find(&typed, None).is_some() {
                continue;
            }
            refused(
                parsed(&SMALL.replace("pcb", &typed)),
                &[
                    "r.yml: line 1",
                    "merge_method: ",
                    "is unknown",
                    &format!("did you mean {name}?"),
                ],
            );
        }
    }
}

const SLICES: &str = "merge_method: ties\nbase_model: b\nslices:\n  - sources:\n      - {model: b, layer_range: [0, 2]}\n      \
                      - {model: x, layer_range: [1, 3], parameters: {weight: {filter: mlp, value: 1}}}\n    \
                      parameters: {weight: [0.5, 1]}\n  - sources:\n      - {model: b, layer_range: [1, 2]}\n      \
                      - {model: c, layer_range: [3, 4]}\n    base_model: b\nparameters: {weight: 2, density: 0.5}\n";

#[test]
fn slices_survive_a_round_trip_alone_and_below_a_module() {
    let below = SLICES.replace('\n', "\n    ").replacen("    base_model", "base_model", 1);
    let below = below.replacen("    slices:", "modules:\n  default:\n    slices:", 1);
    let below = below.replacen("    parameters: {weight: 2", "parameters: {weight: 2", 1);
    let below = below.replace(
        "modules:\n  default:\n",
        "modules:\n  default:\n    parameters: {lambda: [1, 2]}\n",
    );
    for text in [SLICES, &below] {
        let (recipe, warnings) = read(text).unwrap();
        assert_eq!((recipe.slices.len(), warnings.len()), (2, 0), "{text}");
        assert_eq!(recipe.validate(), Ok(vec![]));
        let written = recipe.to_yaml(|path| path.display().to_string());
        let again = parsed(&written).unwrap();
        assert_eq!(again.to_yaml(|path| path.display().to_string()), written);
        assert_eq!((again.slices, again.models), (recipe.slices, recipe.models), "{written}");
        assert_eq!((again.modules, again.base), (recipe.modules, recipe.base), "{written}");
    }
}

#[test]
fn slices_that_make_no_sense_are_refused_with_the_key() {
    let valid = |text: &str| {
        parsed(text).and_then(|recipe| recipe.validate().map_err(|error| error.to_string()))
    };
    for (from, to, parts) in [
        ("[1, 3]", "[1, 4]", vec!["line 6", "same number of layers"]),
        ("[1, 3]", "[3, 1]", vec!["line 6", "`layer_range` is [FIRST, END]"]),
        ("[1, 3]", "[1, 1]", vec!["line 6", "`layer_range` is [FIRST, END]"]),
        ("[1, 3]", "[-1, 1]", vec!["line 6", "whole number"]),
        ("[1, 3]", "[1, 2.5]", vec!["line 6", "whole number"]),
        ("[1, 3]", "[1, 2, 3]", vec!["line 6", "`layer_range` is [FIRST, END]"]),
        ("[1, 3]", "2", vec!["line 6", "list"]),
        ("[1, 3]", "[0, 99999999999]", vec!["line 6", "`layer_range` is [FIRST, END]"]),
        ("{model: x, layer", "{model: b, layer", vec!["line 6", "more than once in one slice"]),
        (", layer_range: [3, 4]", "", vec!["line 10", "`layer_range`"]),
        ("layer_range: [3, 4]", "layer_rang: [3, 4]", vec!["did you mean `layer_range`?"]),
        (
            "      - {model: b, layer_range: [1, 2]}\n",
            "",
            vec!["slices: slice 2", "ties needs its base_model", "b"],
        ),
        ("    base_model: b\n", "    base_model: z\n", vec!["slices: slice 2", "add z"]),
        ("{weight: 2, ", "{", vec!["weight", "c in slice 2"]),
        ("{weight: [0.5, 1]}", "{wieght: 1}", vec!["line 7", "did you mean `weight`?"]),
        ("{weight: [0.5, 1]}", "{scope: tensor}", vec!["line 7", "`scope`"]),
    ] {
        assert!(SLICES.contains(from), "{from}");
        let text = SLICES.replacen(from, to, 1);
        refused(valid(&text), &parts);
    }
    let slerp = SLICES.replace("ties", "slerp").replace("weight: 2, density: 0.5", "t: 0.5");
    let slerp = slerp
        .replace("{weight: [0.5, 1]}", "{t: 1}")
        .replace(", parameters: {weight: {filter: mlp, value: 1}}", "");
    assert_eq!(valid(&slerp), Ok(vec![]));
    let three =
        slerp.replace("- {model: c", "- {model: z, layer_range: [0, 1]}\n      - {model: c");
    refused(valid(&three), &["slices: slice 2", "slerp takes exactly 1 besides the base; 2 given"]);
}

const MODULES: &str = "merge_method: ties\nbase_model: b\nmodules:\n  text_decoder:\n    slices:\n      - sources:\n          \
                       - {model: b, layer_range: [0, 2]}\n          - {model: x, layer_range: [1, 3]}\n    \
                       parameters: {weight: 2}\n  vision_tower: {models: [{model: c}]}\n  multi_modal_projector: {models: \
                       [{model: b}, {model: x, parameters: {weight: 3}}]}\nparameters: {weight: 1}\n";

#[test]
fn modules_are_made_of_slices_or_of_whole_models_with_the_base() {
    let (recipe, warnings) = read(MODULES).unwrap();
    assert_eq!((recipe.validate(), warnings), (Ok(vec![]), vec![]));
    let models: Vec<_> = recipe.models.iter().map(|model| model.path.to_str().unwrap()).collect();
    assert_eq!((models, recipe.has_base()), (vec!["x", "c"], true));
    // The base of a module of whole models need not be listed.
    let weight = |slice| {
        let place = Place { tensor: "t", t: 0.0, coefficients: None, slice, names: &[] };
        recipe.values(place).unwrap().each("weight")
    };
    assert_eq!([0, 1, 2].map(weight), [[2.0], [1.0], [3.0]]);
    assert_eq!(recipe.slice_name(0), "slice 1 of text_decoder");
    assert_eq!(recipe.slice_name(2), "module multi_modal_projector");
    let written = recipe.to_yaml(|path| path.display().to_string());
    let again = parsed(&written).unwrap();
    assert_eq!(again.to_yaml(|path| path.display().to_string()), written);
    assert_eq!((again.slices, again.models), (recipe.slices, recipe.models), "{written}");
    assert_eq!((again.modules, again.base), (recipe.modules, recipe.base), "{written}");
    for (from, to, parts) in [
        (
            "vision_tower",
            "vision_towr",
            vec!["line 10", "\"vision_towr\" is unknown", "did you mean vision_tower?"],
        ),
        ("text_decoder", "txt", vec!["line 4", "\"txt\" is unknown"]),
        (
            "vision_tower",
            "encoder",
            vec!["line 10", "no model has both modules text_decoder and encoder"],
        ),
        (
            "{model: c}",
            "{model: c}, {model: c}",
            vec!["line 10", "c is more than once in one module"],
        ),
        ("[{model: c}]", "[]", vec!["line 10", "`models` is empty"]),
        (
            "{model: b}, {model: x, parameters: {weight: 3}}",
            "{model: b}",
            vec!["module multi_modal_projector", "at least one"],
        ),
        (
            "          - {model: b, layer_range: [0, 2]}\n",
            "",
            vec!["slice 1 of text_decoder", "ties needs its base_model"],
        ),
    ] {
        assert!(MODULES.contains(from), "{from}");
        let text = MODULES.replacen(from, to, 1);
        let valid =
            parsed(&text).and_then(|recipe| recipe.validate().map_err(|error| error.to_string()));
        refused(valid, &parts);
    }
}

#[test]
fn the_only_module_is_a_part_that_is_known_or_told_to_be_the_whole() {
    let only = |name: &str| {
        let body = "{models: [{model: a, parameters: {weight: 1}}]}";
        mergekits(&format!("merge_method: linear\nmodules:\n  {name}: {body}\n"))
    };
    for (name, parts, warned) in [("text_decoder", 1, 0), ("default", 0, 0), ("transformer", 0, 1)]
    {
        let (recipe, warnings) = only(name).unwrap();
        assert_eq!((recipe.slices.len(), warnings.len()), (parts, warned), "{name}: {warnings:?}");
        assert!(warnings.iter().all(|w| w.contains("transformer is none of the modules")));
    }
    for (name, meant) in
        [("text_decodr", "text_decoder"), ("Encoder", "encoder"), ("defalt", "default")]
    {
        let meant = format!("did you mean {meant}?");
        refused(only(name), &["line 3", &format!("the module {name:?} is unknown"), &meant]);
    }
}

#[test]
fn a_base_that_a_module_does_not_list_is_named_as_one_more_model() {
    let linear = "merge_method: linear\nbase_model: b\nmodules:\n  text_decoder: {models: [{model: b}, {model: x}]}\n  \
                  vision_tower: {models: [{model: x, parameters: {weight: 1}}]}\nparameters: {weight: 1}\n";
    let (recipe, warnings) = mergekits(linear).unwrap();
    assert_eq!(recipe.slices[1].sources.len(), 2);
    let [warning] = &warnings[..] else { panic!("{warnings:?}") };
    assert!(
        warning.contains("linear sees the base_model as one more model of module vision_tower"),
        "{warning}"
    );
    refused(
        mergekits(&linear.replace("\nparameters: {weight: 1}", "")),
        &["base_model: linear sees it as one more model of module vision_tower", "`weight`"],
    );
    // It is no model to methods that see experts relative to it.
    assert_eq!(mergekits(&linear.replace("linear", "ties")).unwrap().1, Vec::<String>::new());
}

#[test]
fn what_is_not_supported_is_refused_by_name_with_the_way_out() {
    for (text, parts) in [
        (
            MODULES.replacen("  vision_tower: {models: [{model: c}]}", "  vision_tower:\n    slices: [{sources: [{model: b, layer_range: [0, 1]}, {model: c, layer_range: [0, 1]}]}]", 1),
            ["line 10", "slices of the module vision_tower", "give this one `models`"],
        ),
        (
            format!("{SMALL}---\n{SMALL}"),
            ["a file with 2 merges", "is not supported", "read it as stages"],
        ),
    ] {
        refused(parsed(&text), &parts);
        refused(parsed(&text), &["is not supported by reflow; "]);
    }
}

#[test]
fn bad_values_name_the_key_and_what_is_known() {
    for (line, part) in [
        ("dtype: int8", "bfloat16"),
        ("shard_size: 5 parsecs", "shard_size"),
        ("merge_method: pcb", "column 1: duplicate mapping key: merge_method"),
        ("vocab: most", "known: error, common"),
        ("lenient: 3", "neither true nor false"),
        ("parameters: {variant: e}", "\"e\" is unknown; known: a, b, c, d, paper"),
        ("parameters: {keep: lots}", "`keep`: lots is not a fraction"),
        ("parameters: {keep: 1.5}", "`keep`: 1.5 is not a fraction between 0 and 1"),
        ("parameters: {keep: [0.1, 0.2]}", "no gradient"),
        ("    parameters: {keep: 0.1}", "it is one for all models"),
    ] {
        refused(parsed(&format!("{SMALL}{line}\n")), &["r.yml: line 5", part]);
    }
    refused(parsed("merge_method: pcb\nmodels: [{model: x}]\n"), &["base_model"]);
    refused(
        parsed("merge_method: pcb\nbase_model: b\nmodels: [{model: b}]\n"),
        &["besides the base"],
    );
    refused(parsed("merge_method: pcb\nmodels: []\n"), &["`models` is empty"]);
    assert!(parsed("- just\n- a list\n").is_err() && parsed("").is_err());
}

#[test]
fn the_base_counts_as_in_mergekit() {
    let paths = |recipe: &Recipe| -> Vec<String> {
        recipe.models.iter().map(|model| model.path.display().to_string()).collect()
    };
    // Experts are seen relative to it: listed or not, it is none of them.
    let listed = TIES.replace("models:\n", "models:\n  - model: b\n    parameters: {weight: 3}\n");
    let (recipe, warnings) = mergekits(&listed).unwrap();
    assert_eq!(paths(&recipe), ["x"]);
    assert!(
        warnings[0].contains("b is the base, so its parameters have no effect"),
        "{warnings:?}"
    );
    assert_eq!(recipe, mergekits(TIES).unwrap().0);
    // It is one more model: the last, if it is not listed.
    let linear = TIES.replace("ties", "linear");
    let (recipe, warnings) = mergekits(&format!("{linear}parameters: {{weight: 2}}\n")).unwrap();
    assert_eq!((paths(&recipe), recipe.donor()), (vec!["x".to_owned(), "b".to_owned()], 1));
    assert!(warnings[0].contains("linear sees the base_model as one more model"), "{warnings:?}");
    refused(mergekits(&linear), &["base_model: linear sees it as one more model", "`weight`"]);
    let (recipe, _) = mergekits(&listed.replace("ties", "linear")).unwrap();
    assert_eq!((paths(&recipe), recipe.donor()), (vec!["b".to_owned(), "x".to_owned()], 0));
    // Without a base, the first model lends config and tokenizer.
    let (recipe, _) = mergekits(&linear.replace("base_model: b\n", "")).unwrap();
    assert_eq!((paths(&recipe), recipe.donor()), (vec!["x".to_owned()], 0));
}

#[test]
fn what_has_no_effect_is_told() {
    let (_, warnings) = mergekits(&format!("{TIES}parameters: {{int8_mask: true}}\n")).unwrap();
    assert!(warnings[0].contains("line 6") && warnings[0].contains("int8_mask"), "{warnings:?}");
    let (_, warnings) = read(&format!("name: one\n{SMALL}")).unwrap();
    assert!(warnings[0].contains("`name` has no effect"), "{warnings:?}");
}

#[test]
fn a_chat_template_is_a_name_or_a_text() {
    let text = "{% for m in messages %}\n  {{ m.content }}\n{% endfor %}\n";
    for (written, template) in [
        ("auto", ChatTemplate::Auto),
        ("llama3", ChatTemplate::Named("llama3")),
        (
            "|\n  {% for m in messages %}\n    {{ m.content }}\n  {% endfor %}",
            ChatTemplate::Text(text.to_owned()),
        ),
    ] {
        let recipe = parsed(&format!("{SMALL}chat_template: {written}\n")).unwrap();
        assert_eq!(recipe.chat_template, Some(template), "{written}");
        let again = recipe.to_yaml(|path| path.display().to_string());
        assert_eq!(parsed(&again).unwrap().chat_template, recipe.chat_template, "{again}");
    }
    for (written, part) in [
        ("lama3", "did you mean llama3?"),
        ("'{{ messages }}'", "neither the name"),
        ("templates/of/mine/are/files.jinja", "(auto, alpaca, chatml, exaone, llama3, mistral)"),
    ] {
        refused(parsed(&format!("{SMALL}chat_template: {written}\n")), &["line 5", part]);
    }
}

#[test]
fn a_tokenizer_without_a_source_is_told() {
    let (_, warnings) = read(&format!("{SMALL}tokenizer: {{pad_to_multiple_of: 8}}\n")).unwrap();
    assert!(warnings[0].contains("line 5") && warnings[0].contains("union"), "{warnings:?}");
    assert_eq!(
        read(&format!("{SMALL}tokenizer: {{source: union}}\n")).unwrap().1,
        Vec::<String>::new()
    );
}

#[test]
fn a_tokenizer_is_that_of_the_base_of_all_or_of_one_of_the_models() {
    for (text, source) in [
        ("tokenizer_source: base", TokenizerSource::Base),
        ("tokenizer: {source: base}", TokenizerSource::Base),
        ("tokenizer_source: union", TokenizerSource::Union),
        ("tokenizer: {}", TokenizerSource::Union),
        ("tokenizer_source: x", TokenizerSource::Model("x".into())),
        ("tokenizer: {source: {model: {path: b}}}", TokenizerSource::Model("b".into())),
    ] {
        let recipe = parsed(&format!("{SMALL}{text}\n")).unwrap();
        let plain = |source| Some(Tokenizer { source, rules: Vec::new(), multiple: None });
        assert_eq!(recipe.tokenizer, plain(source), "{text}");
        let written = recipe.to_yaml(|path| path.display().to_string());
        assert_eq!(parsed(&written).unwrap().tokenizer, recipe.tokenizer, "{written}");
    }
    let named = SMALL.replace("model: x", "model: base");
    let recipe = parsed(&format!("{named}tokenizer_source: {{model: base}}\n")).unwrap();
    let written = recipe.to_yaml(|path| path.display().to_string());
    let source = parsed(&written).unwrap().tokenizer.unwrap().source;
    assert_eq!(source, TokenizerSource::Model("base".into()));
    assert_eq!(parsed(SMALL).unwrap().tokenizer, None);
    refused(
        parsed(&format!("{SMALL}tokenizer_source: q\n")),
        &["line 5", "q is none of the models"],
    );
    let full = format!(
        "{SMALL}tokenizer: {{source: base, pad_to_multiple_of: 64, tokens: {{a: {{source: x, force: true}}, \
         'b: \"c': {{source: {{kind: model_token, model: {{model: x}}, token: '1'}}}}, \
         d: {{source: {{kind: model_token, model: b, token_id: 7}}}}, e: {{source: {{kind: zero}}}}, f: }}}}\n"
    );
    let recipe = parsed(&full).unwrap();
    let rule = |token: &str, row, force| TokenRule { token: token.to_owned(), row, force };
    let rules = vec![
        rule("a", Some(TokenRow::Own("x".into())), true),
        rule("b: \"c", Some(TokenRow::Other("x".into(), OtherToken::Text("1".to_owned()))), false),
        rule("d", Some(TokenRow::Other("b".into(), OtherToken::Id(7))), false),
        rule("e", Some(TokenRow::Zero), false),
        rule("f", None, false),
    ];
    let wanted = Tokenizer { source: TokenizerSource::Base, rules, multiple: Some(64) };
    assert_eq!(recipe.tokenizer, Some(wanted));
    let written = recipe.to_yaml(|path| path.display().to_string());
    assert_eq!(parsed(&written).unwrap().tokenizer, recipe.tokenizer, "{written}");
    for (text, part) in [
        ("{tokens: {a: {source: q}}}", "the token \"a\": q is none of the models"),
        ("{tokens: {a: {force: true}}}", "`force` needs a `source`"),
        ("{tokens: {'': }}", "is empty"),
        ("{pad_to_multiple_of: 0}", "`pad_to_multiple_of` is from 1"),
        ("{pad_to_multiple_of: 1e8}", "`pad_to_multiple_of` is from 1"),
    ] {
        refused(parsed(&format!("{SMALL}tokenizer: {text}\n")), &["line 5", part]);
    }
    let none = mergekits("merge_method: karcher\nmodels: [{model: x}]\ntokenizer_source: base\n");
    refused(none, &["line 3", "needs a `base_model`"]);
}

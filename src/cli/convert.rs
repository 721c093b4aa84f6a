//! From what was typed to a recipe and settings.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::args::{RecipeArgs, RecipeFlags, RunArgs};
use crate::method::Value;
use crate::method::registry::BaseUse;
use crate::recipe::{
    Coefficients, Model, Parameters, Recipe, RecipeError, SHARD_SIZE, Setting, Settings, Stage,
    locate, mergekit, reference,
};

/// The merges that file or flags describe, the one that makes the output last. `out` is where that will be.
pub(super) fn stages(args: &RecipeArgs, out: &Path) -> Result<Vec<Stage>, RecipeError> {
    if let Some(file) = &args.file {
        return Recipe::stages(file, &stage_dir(args, out));
    }
    let (recipe, warnings) = (from_flags(args)?, Vec::new());
    Ok(vec![Stage { name: None, recipe, warnings, needs: Vec::new() }])
}

/// Where outputs lie that only other merges of the same recipe use.
pub(super) fn stage_dir(args: &RecipeArgs, out: &Path) -> PathBuf {
    args.intermediate_dir.clone().unwrap_or_else(|| {
        let mut name = out.components().as_path().as_os_str().to_owned();
        name.push(".stages");
        PathBuf::from(name)
    })
}

/// The recipe that flags describe.
fn from_flags(args: &RecipeArgs) -> Result<Recipe, RecipeError> {
    let flags = &args.flags;
    let name = flags.method.as_deref().unwrap_or("pcb");
    let method = Recipe::method(name, flags.dialect.as_deref()).map_err(flag)?;
    let models = flags.experts.iter().map(|text| expert(text, method.per_expert));
    let base =
        flags.base.as_deref().map(|base| base.to_str().map_or_else(|| base.to_owned(), place));
    let mut recipe = Recipe::new(method, base, models.collect());
    recipe.parameters = parameters(flags)?;
    if let Some(path) = flags.coefficients.clone() {
        let given = Coefficients::at(path, flags.coefficients_order.clone());
        recipe.coefficients = Some(given.read(recipe.models.len())?);
    }
    let evidence = [("fisher", flags.fisher.clone()), ("gram", flags.gram.clone())];
    recipe.take_evidence(evidence).map_err(flag)?;
    recipe.seed = flags.seed.unwrap_or(0);
    if let Some(scope) = flags.scope {
        recipe.scope = scope;
    }
    if method.base == BaseUse::Required && recipe.base.is_none() {
        let reason =
            format!("{name} needs one: the checkpoint that all experts were fine-tuned from");
        return Err(RecipeError::Value { key: "--base".to_owned(), reason });
    }
    recipe.include.clone_from(&flags.include);
    recipe.exclude.clone_from(&flags.exclude);
    recipe.dtype = flags.dtype.unwrap_or_default();
    recipe.shard_size = flags.shard_size.unwrap_or(SHARD_SIZE);
    recipe.missing = flags.missing.unwrap_or_default();
    recipe.vocab = flags.vocab.unwrap_or_default();
    recipe.nonfinite = flags.nonfinite.unwrap_or_default();
    recipe.lenient = flags.lenient;
    recipe.count_aliases = flags.count_aliases;
    recipe.copy_code = flags.copy_code;
    Ok(recipe)
}

/// How the merge is run.
pub(super) fn settings(args: &RunArgs) -> Settings {
    Settings {
        memory: args.memory,
        threads: args.threads.map(usize::from),
        io: args.io,
        write: args.write,
        strategy: args.selection,
        tile: args.tile.map(|tile| tile as usize),
        checkpoint: args.checkpoint,
        reread: args.reread,
        verify: args.verify,
        command: Some(command_line()),
        failpoint: args.failpoint,
        components: None,
        statistics: false,
        restart: args.restart,
    }
}

/// The command line as it can be typed again, wherever that is.
fn command_line() -> String {
    let line = std::env::args_os().map(|arg| quoted(&arg)).collect::<Vec<_>>().join(" ");
    // Paths may be relative, and so may be the name of the program.
    match std::env::current_dir() {
        Ok(here) => format!("cd {} && {line}", quoted(here.as_os_str())),
        Err(_) => line,
    }
}

/// An argument as shells read it.
fn quoted(arg: &OsStr) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    match arg.to_str() {
        Some(text) if !text.is_empty() && text.chars().all(plain) => text.to_owned(),
        Some(text) if !text.chars().any(char::is_control) => {
            format!("'{}'", text.replace('\'', r"'\''"))
        }
        // What cannot be shown is shown in bash's way.
        _ => {
            arg.as_bytes().escape_ascii().fold("$'".to_owned(), |mut shown, byte| {
                shown.push(char::from(byte));
                shown
            }) + "'"
        }
    }
}

/// Parameters for all models.
fn parameters(flags: &RecipeFlags) -> Result<Parameters, RecipeError> {
    let mut parameters = Parameters::default();
    if let Some(variant) = &flags.variant {
        parameters.set("variant", Setting::One(Value::Word(variant.clone())));
    }
    for (name, number) in [("keep", flags.keep), ("lambda", flags.lambda)] {
        if let Some(number) = number {
            parameters.set(name, Setting::number(number));
        }
    }
    for text in &flags.parameters {
        let Some((name, value)) = text.split_once('=') else {
            let reason = format!("{text:?} is not NAME=VALUE");
            return Err(RecipeError::Value { key: "--param".to_owned(), reason });
        };
        let setting = mergekit::setting(name, value).map_err(|complaint| {
            let reason = format!("{value:?}: {}", complaint.text);
            RecipeError::Value { key: format!("--param {name}"), reason }
        })?;
        parameters.set(name, setting);
    }
    Ok(parameters)
}

/// The same error about a flag.
fn flag(error: RecipeError) -> RecipeError {
    match error {
        RecipeError::Value { key, reason } => {
            RecipeError::Value { key: format!("--{key}"), reason }
        }
        other => other,
    }
}

/// `DIR` or `DIR=NUMBER`, which sets `parameter`: split at the last `=` if a number follows and no such
/// path exists.
fn expert(text: &str, parameter: Option<&str>) -> Model {
    let split = text.rsplit_once('=').and_then(|(path, number)| {
        Some((path, number.parse::<f64>().ok().filter(|n| n.is_finite())?))
    });
    match (split, parameter) {
        (Some((path, number)), Some(parameter)) if !std::path::Path::new(text).exists() => {
            Model::new(place(path)).with(parameter, number)
        }
        _ => Model::new(place(text)),
    }
}

/// The path of a checkpoint, perhaps with an adapter: the cache's for the name of a model on the hub that lies
/// there.
fn place(path: &str) -> PathBuf {
    let one = |path: &Path| {
        let located = path.to_str().and_then(|name| locate(name).ok());
        located.unwrap_or_else(|| path.to_owned())
    };
    match reference::split(Path::new(path)) {
        (model, Some(adapter)) => reference::join(&one(model), &one(adapter)),
        (path, None) => one(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_argument_is_read_by_a_shell_as_it_was() {
        for arg in
            ["plain", "", "two words", "it's", "$HOME", "new\nline", "\u{1b}[31m'\"", "ä\u{85}"]
                .map(str::as_bytes)
                .into_iter()
                .chain([b"\xff'\\'\t".as_slice()])
        {
            let shown = quoted(OsStr::from_bytes(arg));
            assert!(!shown.chars().any(char::is_control), "{shown:?}");
            let mut bash = std::process::Command::new("bash");
            let output = bash.arg("-c").arg(format!("printf %s {shown}")).output().unwrap();
            assert_eq!(output.stdout, arg, "{shown}");
        }
        assert_eq!(quoted(OsStr::new("--out=x")), "--out=x");
        assert_eq!(quoted(OsStr::new("it's")), r"'it'\''s'");
    }

    #[test]
    fn a_number_is_what_follows_the_last_equals_sign() {
        for (text, path, lambda) in [
            ("dir", "dir", None),
            ("dir=1.5", "dir", Some(1.5)),
            ("a=b=-0.5", "a=b", Some(-0.5)),
            ("run=final", "run=final", None),
            ("dir=", "dir=", None),
            ("dir=inf", "dir=inf", None),
        ] {
            let model = Model::new(path);
            let model = lambda.map_or(model.clone(), |number| model.with("lambda", number));
            assert_eq!(expert(text, Some("lambda")), model, "{text}");
        }
    }
}

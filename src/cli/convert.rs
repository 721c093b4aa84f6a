//! From what was typed to a recipe and settings.

use std::path::PathBuf;

use super::args::{RecipeArgs, RunArgs};
use crate::recipe::{
    Expert, Method, PcbOptions, Recipe, RecipeError, SHARD_SIZE, Settings, suggestion,
};

/// The recipe that file or flags describe.
pub(super) fn recipe(args: &RecipeArgs) -> Result<Recipe, RecipeError> {
    if let Some(file) = &args.file {
        return Recipe::from_file(file);
    }
    let flags = &args.flags;
    let lambda = flags.lambda.unwrap_or(1.0);
    let experts = flags.experts.iter().map(|text| expert(text, lambda)).collect();
    // clap demands the base unless there is a file.
    let mut recipe = Recipe::new(flags.base.clone().unwrap_or_default(), experts);
    let Method::Pcb(defaults) = &recipe.method;
    recipe.method = match flags.method.as_deref() {
        None | Some("pcb") => Method::Pcb(PcbOptions {
            variant: flags.variant.unwrap_or(defaults.variant),
            keep: flags.keep.unwrap_or(defaults.keep),
        }),
        Some(other) => return Err(unknown_method(other)),
    };
    recipe.scope = flags.scope.unwrap_or_default();
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
        tile: args.tile.map(|tile| tile as usize),
        checkpoint: args.checkpoint,
        reread: args.reread,
        verify: args.verify,
        command: Some(command_line()),
        failpoint: args.failpoint,
        restart: args.restart,
    }
}

/// The command line as it can be typed again.
fn command_line() -> String {
    let quoted = |arg: std::ffi::OsString| {
        let arg = arg.to_string_lossy().into_owned();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
        if !arg.is_empty() && arg.chars().all(plain) {
            arg
        } else {
            format!("'{}'", arg.replace('\'', r"'\''"))
        }
    };
    std::env::args_os().map(quoted).collect::<Vec<_>>().join(" ")
}

/// `DIR` or `DIR=LAMBDA`: split at the last `=` if a number follows and no such path exists.
fn expert(text: &str, default: f64) -> Expert {
    let split = text.rsplit_once('=').and_then(|(path, number)| {
        Some((path, number.parse::<f64>().ok().filter(|n| n.is_finite())?))
    });
    match split {
        Some((path, lambda)) if !std::path::Path::new(text).exists() => {
            Expert { path: PathBuf::from(path), lambda }
        }
        _ => Expert { path: PathBuf::from(text), lambda: default },
    }
}

fn unknown_method(name: &str) -> RecipeError {
    let meant = suggestion(name, ["pcb"]);
    let hint = meant.map_or_else(String::new, |meant| format!("; did you mean {meant}?"));
    RecipeError::Value {
        key: "--method".to_owned(),
        reason: format!("{name:?} is unknown; known: pcb{hint}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lambda_is_what_follows_the_last_equals_sign() {
        for (text, path, lambda) in [
            ("dir", "dir", 1.0),
            ("dir=1.5", "dir", 1.5),
            ("a=b=-0.5", "a=b", -0.5),
            ("run=final", "run=final", 1.0),
            ("dir=", "dir=", 1.0),
            ("dir=inf", "dir=inf", 1.0),
        ] {
            assert_eq!(expert(text, 1.0), Expert { path: path.into(), lambda }, "{text}");
        }
    }
}

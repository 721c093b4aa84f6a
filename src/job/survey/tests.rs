//! Surveys that are stopped, damaged, short of memory; and merges that are told what they found.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::job::scene::{Files, Heard, Scene, files};
use crate::method::Value;
use crate::plan::PlanError;
use crate::recipe::{Scope, Setting};

const SETTINGS: [(&str, f64); 5] = [("a", 0.1), ("a", 0.3), ("b", 0.1), ("c", 0.1), ("d", 0.2)];

/// A scene in which each layer has two tensors that are merged.
fn scene(scope: Scope) -> Scene {
    Scene::new(scope, false).other(|recipe| recipe.exclude.clear())
}

fn settings() -> Settings {
    Settings { memory: Some(512 << 20), ..Scene::settings() }
}

fn change(recipe: &mut Recipe, (variant, keep): (&str, f64)) {
    recipe.parameters.set("variant", Setting::One(Value::Word(variant.to_owned())));
    recipe.parameters.set("keep", Setting::number(keep));
}

fn plan(scene: &Scene, merges: usize, settings: Settings) -> Result<Survey, Error> {
    let recipes = SETTINGS[..merges].iter().map(|&setting| {
        let mut recipe = scene.recipe.clone();
        change(&mut recipe, setting);
        recipe
    });
    let go_on = AtomicBool::new(false);
    let recipes: Vec<Recipe> = recipes.collect();
    Survey::plan(&recipes, settings, Ties::Compare(&go_on), &Heard::default())
}

/// Where the findings of each merge go.
fn places(dir: &Path) -> Vec<PathBuf> {
    (0..SETTINGS.len()).map(|number| dir.join(format!("findings-{number}"))).collect()
}

/// Stops when so many passes have begun.
struct Stop(AtomicUsize, AtomicBool);

impl Progress for Stop {
    fn event(&self, event: &Event<'_>) {
        if let Event::PassStarted { .. } = event
            && self.0.fetch_sub(1, Ordering::Relaxed) == 1
        {
            self.1.store(true, Ordering::Relaxed);
        }
    }

    fn advance(&self, _bytes: u64) {}
}

fn run(survey: &Survey, dir: &Path, passes: usize) -> Result<u64, Error> {
    let stop = Stop(AtomicUsize::new(passes + 1), AtomicBool::new(false));
    let units = survey.job.streamed_units();
    survey.run(&units, &places(dir), &dir.join("survey"), &stop, &stop.1)
}

fn complete(scene: &Scene) -> (Survey, tempfile::TempDir, Files) {
    let survey = plan(scene, SETTINGS.len(), settings()).unwrap();
    let dir = scene.place();
    assert!(run(&survey, dir.path(), usize::MAX - 1).unwrap() > 0);
    let found = files(dir.path());
    assert_eq!(found.len(), SETTINGS.len(), "nothing else is left");
    (survey, dir, found)
}

#[test]
fn merges_that_are_told_what_one_scan_found_are_the_merges_themselves() {
    for scope in [Scope::Model, Scope::Layer] {
        let scene = scene(scope);
        let (survey, dir, _) = complete(&scene);
        for ((place, key), setting) in places(dir.path()).iter().zip(&survey.keys).zip(SETTINGS) {
            let scene = scene.other(|recipe| change(recipe, setting));
            let plain = scene.job(settings());
            assert_eq!(&plain.findings_key(&plain.recipe), key);
            let found = Findings::load(place, key).unwrap();
            assert!(found.are_of(&plain.streamed_units()));
            let out = scene.place();
            let stop = Stop(AtomicUsize::new(3), AtomicBool::new(false));
            let begun = plain.merge(&out.path().join("out"), &stop, &stop.1);
            assert!(matches!(begun, Err(Error::Interrupted { .. })));
            // What was begun without them has other stages.
            let knowing = scene.job(settings()).knowing(&found);
            let heard = Heard::default();
            let other = knowing.merge(&out.path().join("out"), &heard, &heard.cancel);
            assert!(matches!(other, Err(Error::OtherPlan { .. })));
            let out = scene.place();
            let report = knowing.merge(&out.path().join("out"), &heard, &heard.cancel).unwrap();
            assert!(report.passes.iter().all(|pass| pass.name != "scan"));
            assert_eq!(scene.finished(out.path()), Ok(()));
        }
    }
}

#[test]
fn a_survey_that_is_stopped_goes_on_behind_its_last_piece() {
    for scope in [Scope::Model, Scope::Layer] {
        let scene = scene(scope);
        let (survey, _, expected) = complete(&scene);
        let all: u64 = survey.job.streamed().map(|unit| survey.job.unit_bytes(unit)).sum();
        let dir = scene.place();
        assert!(matches!(run(&survey, dir.path(), 0), Err(Error::Interrupted { .. })));
        let (mut stops, mut before) = (0, 0);
        while let Err(error) = run(&survey, dir.path(), 1) {
            assert!(matches!(error, Error::Interrupted { .. }), "{error}");
            stops += 1;
            before = survey.job.bytes_before(&cursor(dir.path(), &survey));
        }
        let least = if scope == Scope::Model { 3 } else { 1 };
        assert!(stops >= least && before < all, "{stops}");
        assert!(files(dir.path()) == expected);
        assert_eq!(run(&survey, dir.path(), 9).unwrap(), 0, "nothing is left to do");
    }
}

/// How far the unit under way has come.
fn cursor(dir: &Path, survey: &Survey) -> Cursor {
    let name = blake3::hash(survey.keys.concat().as_bytes()).to_hex().to_string();
    let text = std::fs::read(dir.join("survey/journal")).unwrap();
    journal::parse(&text, &name).last().map(|(record, _)| record.cursor.clone()).unwrap_or_default()
}

#[test]
fn what_a_stopped_survey_has_left_counts_only_if_it_is_sound() {
    let scene = scene(Scope::Model);
    let (survey, _, expected) = complete(&scene);
    let all: u64 = survey.job.streamed().map(|unit| survey.job.unit_bytes(unit)).sum();
    let stopped = || {
        let dir = scene.place();
        assert!(run(&survey, dir.path(), 3).is_err());
        let left = files(&dir.path().join("survey"));
        assert!(left.keys().any(|name| name.to_string_lossy().starts_with("fold-")));
        assert!(left.keys().any(|name| name.to_string_lossy().starts_with("kept-")));
        (dir, left)
    };
    let (dir, left) = stopped();
    let before = survey.job.bytes_before(&cursor(dir.path(), &survey));
    assert!(before > 0);
    assert_eq!(run(&survey, dir.path(), 1 << 20).unwrap(), all - before);
    assert!(files(dir.path()) == expected);
    for name in left.keys() {
        let (dir, _) = stopped();
        let path = dir.path().join("survey").join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.len() / 2;
        bytes[at] ^= 4;
        std::fs::write(&path, bytes).unwrap();
        let read = run(&survey, dir.path(), 1 << 20).unwrap();
        assert!(read > all - before, "{}: {read}", name.display());
        assert!(files(dir.path()) == expected, "{}", name.display());
    }
    // That of other merges is not gone on with.
    let (dir, _) = stopped();
    let other = plan(&scene, 2, settings()).unwrap();
    assert_eq!(run(&other, dir.path(), 1 << 20).unwrap(), all);
}

#[test]
fn findings_that_are_damaged_or_of_something_else_do_not_count() {
    let scene = scene(Scope::Model);
    let (survey, dir, found) = complete(&scene);
    let place = &places(dir.path())[2];
    let whole = std::fs::read(place).unwrap();
    let key = &survey.keys[2];
    assert!(Findings::load(place, key).is_some());
    assert_eq!(Findings::load(place, &survey.keys[1]), None);
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        std::fs::write(place, &flipped).unwrap();
        assert_eq!(Findings::load(place, key), None, "{at}");
    }
    for len in 0..whole.len() {
        std::fs::write(place, &whole[..len]).unwrap();
        assert_eq!(Findings::load(place, key), None, "{len}");
    }
    assert!(run(&survey, dir.path(), 9).unwrap() > 0);
    assert!(files(dir.path()) == found, "they are made again");
    // Lambdas are no part of it; inputs are.
    let job = scene.job(settings());
    let key = |change: fn(&mut Recipe)| {
        let mut recipe = job.recipe.clone();
        change(&mut recipe);
        job.findings_key(&recipe)
    };
    let same = key(|_| {});
    assert_eq!(same, key(|recipe| recipe.models[0].parameters.set("lambda", Setting::number(3.0))));
    assert_ne!(same, key(|recipe| recipe.parameters.set("keep", Setting::number(0.3))));
    assert_ne!(same, key(|recipe| recipe.scope = Scope::Layer));
    assert_ne!(same, key(|recipe| recipe.exclude = vec!["*norm*".to_owned()]));
    std::fs::File::options()
        .write(true)
        .open(scene.inputs().join("expert1/model.safetensors"))
        .unwrap()
        .set_modified(std::time::SystemTime::UNIX_EPOCH)
        .unwrap();
    assert_ne!(same, scene.job(settings()).findings_key(&job.recipe));
    let found = Findings::load(&places(dir.path())[0], &survey.keys[0]).unwrap();
    assert!(scene.job(settings()).knowing(&found).findings.is_none());
}

#[test]
fn more_merges_at_once_take_more_memory_and_the_plan_says_so() {
    let scene = scene(Scope::Model);
    let least = |merges| {
        let fits = |mib: &u64| {
            let memory = Some(mib << 20);
            match plan(&scene, merges, Settings { memory, ..settings() }) {
                Ok(survey) => {
                    assert!(survey.job.plan.budget.total() <= mib << 20);
                    true
                }
                Err(Error::Plan(PlanError::Memory { .. })) => false,
                Err(other) => panic!("{other}"),
            }
        };
        (16..512).find(fits).unwrap()
    };
    assert!(least(1) < least(2) && least(2) < least(4), "{} {}", least(1), least(4));
}

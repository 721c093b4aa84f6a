//! Surveys that are stopped, damaged, short of memory; and merges that are told what they found.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::asked::Realm;
use super::company::Company;
use super::*;
use crate::job::journal::Cursor;
use crate::job::scene::{Files, Heard, Random, Scene, files, full_effort};
use crate::method::{Strategy, Value};
use crate::recipe::Setting;

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

/// The units of the scene's scope that are streamed.
fn streamed(scene: &Scene) -> BTreeSet<String> {
    scene.job(settings()).streamed_units().1.collect()
}

fn plan(scene: &Scene, merges: usize, settings: &Settings) -> Result<Survey, Error> {
    let recipes = SETTINGS[..merges].iter().map(|&setting| {
        let mut recipe = scene.recipe.clone();
        change(&mut recipe, setting);
        recipe
    });
    let go_on = AtomicBool::new(false);
    let recipes: Vec<Recipe> = recipes.collect();
    let units = Units::from([(scene.recipe.scope, streamed(scene))]);
    Survey::plan(&recipes, &units, settings, Ties::Compare(&go_on), &Heard::default())
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
    survey.run(&places(dir)[..survey.keys.len()], &dir.join("survey"), &stop, &stop.1)
}

/// Bytes that it reads.
fn bytes(survey: &Survey) -> u64 {
    survey.realms(&unknown(survey)).iter().map(|realm| survey.bytes(realm)).sum()
}

/// Bytes of those that were read up to a cursor.
fn bytes_done(survey: &Survey, cursor: &Cursor) -> u64 {
    let realms = survey.realms(&unknown(survey));
    realms.iter().map(|realm| survey.bytes_done(realm, cursor)).sum()
}

fn unknown(survey: &Survey) -> Vec<Findings> {
    survey.keys.iter().map(|key| Findings::new(key.clone())).collect()
}

fn complete(scene: &Scene) -> (Survey, tempfile::TempDir, Files) {
    let survey = plan(scene, SETTINGS.len(), &settings()).unwrap();
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
            assert!(found.are_of(&streamed(&scene)));
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
        let all = bytes(&survey);
        let dir = scene.place();
        assert!(matches!(run(&survey, dir.path(), 0), Err(Error::Interrupted { .. })));
        let (mut stops, mut before) = (0, 0);
        while let Err(error) = run(&survey, dir.path(), 1) {
            assert!(matches!(error, Error::Interrupted { .. }), "{error}");
            stops += 1;
            before = bytes_done(&survey, &cursor(dir.path(), &survey));
        }
        let least = if scope == Scope::Model { 3 } else { 1 };
        assert!(stops >= least && before < all, "{stops}");
        assert!(files(dir.path()) == expected);
        assert_eq!(run(&survey, dir.path(), 9).unwrap(), 0, "nothing is left to do");
    }
}

/// How far the unit under way has come.
fn cursor(dir: &Path, survey: &Survey) -> Cursor {
    let text = std::fs::read(dir.join("survey/journal")).unwrap();
    journal::parse(&text, &survey.name())
        .last()
        .map(|(record, _)| record.cursor.clone())
        .unwrap_or_default()
}

#[test]
fn what_a_stopped_survey_has_left_counts_only_if_it_is_sound() {
    let scene = scene(Scope::Model);
    let (survey, _, expected) = complete(&scene);
    let all = bytes(&survey);
    let stopped = || {
        let dir = scene.place();
        assert!(run(&survey, dir.path(), 3).is_err());
        let left = files(&dir.path().join("survey"));
        assert!(left.keys().any(|name| name.to_string_lossy().starts_with("fold-")));
        assert!(left.keys().any(|name| name.to_string_lossy().starts_with("kept-")));
        (dir, left)
    };
    let (dir, left) = stopped();
    let before = bytes_done(&survey, &cursor(dir.path(), &survey));
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
    let other = plan(&scene, 2, &settings()).unwrap();
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
    assert_eq!(same, key(|recipe| recipe.dtype = crate::recipe::OutputDtype::F32));
    assert_eq!(same, key(|recipe| recipe.shard_size = 1 << 20));
    assert_ne!(same, key(|recipe| recipe.nonfinite = crate::recipe::NonFinite::Base));
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
            match plan(&scene, merges, &Settings { memory, ..settings() }) {
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

const SCOPES: [Scope; 3] = [Scope::Model, Scope::Layer, Scope::Tensor];

/// All units of a scope.
fn every_unit(scene: &Scene, scope: Scope) -> BTreeSet<String> {
    let job = scene.other(|recipe| recipe.scope = scope).job(settings());
    job.plan.units.iter().map(|unit| unit.view.name.clone()).collect()
}

/// Two settings of each of these scopes, interleaved.
fn recipes(scene: &Scene, scopes: &[Scope]) -> Vec<Recipe> {
    let settings = [("a", 0.1), ("d", 0.2)].into_iter();
    let all = settings.flat_map(|setting| scopes.iter().map(move |&scope| (scope, setting)));
    let recipe = all.map(|(scope, setting)| {
        let mut recipe = scene.recipe.clone();
        recipe.scope = scope;
        change(&mut recipe, setting);
        recipe
    });
    recipe.collect()
}

fn nested(scene: &Scene, recipes: &[Recipe], settings: &Settings) -> Survey {
    let units = SCOPES.map(|scope| (scope, every_unit(scene, scope)));
    let go_on = AtomicBool::new(false);
    let (units, ties) = (Units::from(units), Ties::Compare(&go_on));
    Survey::plan(recipes, &units, settings, ties, &Heard::default()).unwrap()
}

/// Runs a survey to its end, stopped after so many passes again and again; returns what it has found, and how often it
/// was stopped.
fn found(survey: &Survey, scene: &Scene, mut passes: impl FnMut() -> usize) -> (Files, u64, usize) {
    let (dir, mut stops, mut read) = (scene.place(), 0, 0);
    let files_of = |number: usize| dir.path().join(format!("{number}"));
    let places: Vec<PathBuf> = (0..survey.keys.len()).map(files_of).collect();
    loop {
        let stop = Stop(AtomicUsize::new(passes()), AtomicBool::new(false));
        match survey.run(&places, &dir.path().join("survey"), &stop, &stop.1) {
            Ok(bytes) => {
                read += bytes;
                return (files(dir.path()), read, stops);
            }
            Err(Error::Interrupted { .. }) => stops += 1,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn any_scopes_together_find_what_each_merge_finds_alone() {
    let scene = scene(Scope::Model);
    let all = recipes(&scene, &SCOPES);
    let expected = [Strategy::Fused, Strategy::Radix].map(|strategy| {
        let alone = |recipe: &Recipe| {
            let settings = Settings { strategy, ..settings() };
            let survey = nested(&scene, std::slice::from_ref(recipe), &settings);
            let (mut files, read, _) = found(&survey, &scene, || usize::MAX);
            (files.remove(Path::new("0")).unwrap(), read)
        };
        (strategy, all.iter().map(alone).collect::<Vec<(Vec<u8>, u64)>>())
    });
    let mut random = Random(0x5ca1_ab1e);
    let rounds = if full_effort() { 200 } else { 24 };
    let mut stopped = 0;
    for round in 0..rounds {
        // Any settings of any scopes, in any order.
        let chosen: Vec<usize> = match round {
            0 => (0..all.len()).collect(),
            _ => (0..=random.below(6)).map(|_| random.below(all.len())).collect(),
        };
        // By radix, a unit has passes left after the one that it shares.
        let (strategy, expected) = &expected[usize::from(round % 3 == 2)];
        let settings = Settings {
            strategy: *strategy,
            threads: Some(1 + random.below(3)),
            tile: Some([300, 700, 4_096][random.below(3)]),
            checkpoint: Some([900, 6_000, 1 << 20][random.below(3)]),
            ..settings()
        };
        let recipes: Vec<Recipe> = chosen.iter().map(|&at| all[at].clone()).collect();
        let survey = nested(&scene, &recipes, &settings);
        let often = round % 2 == 1;
        let (files, read, stops) =
            found(&survey, &scene, || if often { 1 + random.below(9) } else { usize::MAX });
        stopped += stops;
        let wanted = chosen
            .iter()
            .enumerate()
            .map(|(number, &at)| (PathBuf::from(number.to_string()), expected[at].0.clone()));
        assert!(files == wanted.collect::<Files>(), "{round}: {chosen:?}");
        // Each is one read of everything, and so are all together.
        let shares = *strategy == Strategy::Fused && !often;
        assert!(!shares || read == expected[chosen[0]].1, "{round}: {read}");
    }
    assert!(stopped > rounds, "{stopped}");
}

#[test]
fn what_units_beside_another_have_left_counts_only_if_it_is_sound() {
    let scene = scene(Scope::Model);
    let survey = nested(&scene, &recipes(&scene, &SCOPES), &settings());
    let (expected, all, _) = found(&survey, &scene, || usize::MAX);
    let places = |dir: &Path| -> Vec<PathBuf> {
        (0..survey.keys.len()).map(|number| dir.join(number.to_string())).collect()
    };
    let run = |dir: &Path, passes: usize| {
        let stop = Stop(AtomicUsize::new(passes), AtomicBool::new(false));
        survey.run(&places(dir), &dir.join("survey"), &stop, &stop.1)
    };
    let stopped = || {
        let dir = scene.place();
        assert!(run(dir.path(), 4).is_err());
        let left = files(&dir.path().join("survey"));
        (dir, left)
    };
    let (dir, left) = stopped();
    let under_way = |left: &Files| {
        let folds = left.keys().filter(|name| name.to_string_lossy().starts_with("fold-"));
        folds.count()
    };
    assert!(under_way(&left) >= 3, "a model, a layer, a tensor: {:?}", left.keys());
    let before = bytes_done(&survey, &cursor(dir.path(), &survey));
    assert_eq!(run(dir.path(), usize::MAX).unwrap(), all - before);
    assert!(files(dir.path()) == expected);
    for name in left.keys() {
        for gone in [false, true] {
            let (dir, _) = stopped();
            let path = dir.path().join("survey").join(name);
            if gone {
                std::fs::remove_file(&path).unwrap();
            } else {
                let mut bytes = std::fs::read(&path).unwrap();
                let at = bytes.len() / 2;
                bytes[at] ^= 4;
                std::fs::write(&path, bytes).unwrap();
            }
            let read = run(dir.path(), usize::MAX).unwrap();
            assert!(read >= all - before, "{}: {read}", name.display());
            assert!(files(dir.path()) == expected, "{}", name.display());
        }
    }
    // What was found and is damaged later is found once more, by itself.
    let (dir, found) = (scene.place(), places);
    run(dir.path(), usize::MAX).unwrap();
    let place = &found(dir.path())[2];
    std::fs::remove_file(place).unwrap();
    assert!(run(dir.path(), usize::MAX).unwrap() <= all);
    assert!(files(dir.path()) == expected);
}

#[test]
fn who_finds_no_room_is_looked_at_later() {
    let scene = scene(Scope::Model);
    let survey = nested(&scene, &recipes(&scene, &SCOPES), &settings());
    let realms = survey.realms(&unknown(&survey));
    let [Realm { inner, view, .. }] = &realms[..] else { panic!("{}", realms.len()) };
    let named = |member: usize, at: usize| {
        inner.iter().filter(move |asked| asked.member == member).nth(at).unwrap()
    };
    let invited = |waiting: &[&asked::Asked], room, range: std::ops::Range<u64>| {
        let mut waiting = waiting.to_vec();
        waiting.sort_by_key(|asked| asked.reach.start);
        let before = waiting.len();
        let mut company = Company { waiting, lines: Vec::new(), room };
        let (invited, end) = company.invite(&range);
        let names: Vec<&str> = invited.iter().map(|asked| &*asked.view.name).collect();
        assert_eq!(company.waiting.len() + names.len(), before);
        (names.into_iter().map(str::to_owned).collect::<Vec<_>>(), end)
    };
    let all = view.elements;
    let layers: Vec<&asked::Asked> = (0..4).map(|at| named(1, at)).collect();
    let names: Vec<&str> = layers.iter().map(|asked| &*asked.view.name).collect();
    let largest = layers.iter().map(|asked| asked.state_bytes).max().unwrap();
    assert_eq!(
        invited(&layers, u64::MAX, 0..all),
        (names.iter().map(|&n| n.into()).collect(), all)
    );
    // One at a time: the piece ends where the next one begins.
    assert_eq!(invited(&layers, largest, 0..all), (vec![names[0].into()], layers[1].reach.start));
    let second = layers[1].reach.start;
    let behind = (vec![names[1].into()], layers[2].reach.start);
    assert_eq!(invited(&layers, largest, second..all), behind);
    assert_eq!(invited(&layers, largest, second..second + 1), (vec![names[1].into()], second + 1));
    assert_eq!(invited(&layers, 0, 0..all), (vec![], all));
    // One that lies around others would keep them out.
    let around = asked::Asked {
        number: 1 << 20,
        member: 1,
        view: std::sync::Arc::clone(view),
        segments: Vec::new(),
        part: None,
        reach: 0..all,
        state_bytes: largest,
    };
    let mut with = layers.clone();
    with.insert(0, &around);
    assert_eq!(invited(&with, largest, 0..all), (vec![names[0].into()], layers[1].reach.start));
    assert_eq!(invited(&with, 2 * largest, 0..all).0, [view.name.as_str(), names[0]]);
}

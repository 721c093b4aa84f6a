//! Flipped bits: one at a time, at random, in every kind of file that a merge leaves or makes.
//!
//! Each is found, by the next run or by `verify`, or it is one of those that cannot do harm, and then the bytes
//! come out right:
//!
//! - in a part, what no record speaks of: it is written again, and so is a part's header;
//! - in a saved state or in parcels: that stage is done again;
//! - in the journal: the line and all behind it do not count, and a torn line did not count before;
//! - in the lock's file, which says who holds the lock and decides nothing;
//! - in side files and the manifest before they are published: they are written anew;
//! - in what is left of the staging directory when all is published.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use super::meddler::{Call, Meddled, What};
use super::scene::{Files, Heard, KEPT, Random, Scene, files, full_effort};
use super::staging;
use super::verify::{Depth, verify};
use crate::checkpoint::components::HEAD;
use crate::engine::sink::RealDisk;
use crate::error::Error;
use crate::progress::Silent;
use crate::recipe::{Scope, Settings};

/// The names of files of frames.
const DATA: [&str; 2] = ["emr.bin", "components.bin"];

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Part,
    Shard,
    Journal,
    Plan,
    State,
    Parcels,
    Lock,
    Side,
    Manifest,
}

fn kind(path: &Path) -> Kind {
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    let ends = |end: &str| name.ends_with(end);
    match name.as_str() {
        "journal" => Kind::Journal,
        "plan.json" => Kind::Plan,
        "lock" => Kind::Lock,
        "manifest.json" => Kind::Manifest,
        _ if ends(".part") => Kind::Part,
        _ if ends(".safetensors") || DATA.contains(&&*name) => Kind::Shard,
        _ if name.starts_with("fold-") => Kind::State,
        _ if name.starts_with("kept-") => Kind::Parcels,
        _ => Kind::Side,
    }
}

/// How far a merge has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// Nothing is published.
    Begun,
    /// Some files are where they belong.
    Publishing,
    /// All of them are, and the staging directory is still there.
    Published,
    /// Nothing is left to do.
    Finished,
}

/// What a merge has left at some moment.
struct Moment {
    stage: Stage,
    left: Files,
}

impl Moment {
    fn of(scene: &Scene, stage: Stage, disk: Meddled) -> Self {
        let dir = scene.place();
        drop(scene.run(dir.path(), Scene::settings(), disk, &Heard::default()));
        Self { stage, left: files(dir.path()) }
    }

    fn restore(&self, root: &Path) {
        for (name, bytes) in &self.left {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
    }
}

fn moments(scene: &Scene) -> Vec<Moment> {
    let (dir, calls) = (scene.place(), Arc::new(Mutex::new(Vec::new())));
    scene.run(dir.path(), Scene::settings(), Meddled::listed(&calls), &Heard::default()).unwrap();
    let finished = files(dir.path());
    drop(dir);
    let calls = calls.lock().unwrap().clone();
    let at = |share: usize| Meddled::killed_before(calls.len() * share / 100);
    let mut moments: Vec<Moment> =
        [15, 30, 40, 50, 60, 70].map(|share| Moment::of(scene, Stage::Begun, at(share))).into();
    let written = |call: &Call| call.what == What::Rename && call.path.ends_with("manifest.json");
    moments.push(Moment::of(scene, Stage::Begun, Meddled::killed_after(written)));
    // The journal of this one ends amid a line.
    let mut torn = Moment::of(scene, Stage::Begun, at(50));
    let journal = torn.left.iter_mut().find(|(name, _)| kind(name) == Kind::Journal);
    journal.unwrap().1.extend(b"0123456789abcdef {\"plan\":\"");
    moments.push(torn);
    let names = |call: &Call, name: &str| {
        call.what == What::RenameNew && call.path.ends_with(Path::new("out").join(name))
    };
    if scene.inside {
        let mut after = |stage, name: &str| {
            let name = name.to_owned();
            let moved = move |call: &Call| names(call, &name);
            moments.push(Moment::of(scene, stage, Meddled::killed_after(moved)));
        };
        let shard = scene.expected.keys().find(|name| kind(name) == Kind::Shard).unwrap();
        after(Stage::Publishing, &shard.to_string_lossy());
        if scene.expected.contains_key(Path::new("emr.json")) {
            after(Stage::Publishing, "manifest.json");
            after(Stage::Published, "emr.json");
        } else {
            after(Stage::Publishing, "README.md");
            after(Stage::Published, "model.safetensors.index.json");
        }
    } else {
        let out = move |call: &Call| names(call, "");
        moments.push(Moment::of(scene, Stage::Published, Meddled::killed_after(out)));
    }
    if scene.kept.is_some() {
        let kept = |call: &Call| call.what == What::RenameNew && call.path.ends_with(KEPT);
        moments.push(Moment::of(scene, Stage::Begun, Meddled::killed_after(kept)));
    }
    moments.push(Moment { stage: Stage::Finished, left: finished });
    moments
}

/// How a flip was dealt with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// The bytes came out right.
    Right,
    /// The next run said what is wrong, and published nothing.
    Refused,
    /// The output was there, or all but there, and `verify` tells what is wrong with it.
    Verified,
}

/// A bit.
struct Flip {
    name: PathBuf,
    at: usize,
    bit: u8,
    /// How much of what was written is read back by the next run.
    reread: Option<u64>,
}

/// Flips a bit, and looks at what becomes of it.
fn flip(scene: &Scene, moment: &Moment, flip: &Flip) -> Result<Outcome, String> {
    let dir = scene.place();
    moment.restore(dir.path());
    let (out, path) = (dir.path().join("out"), dir.path().join(&flip.name));
    let unharmed = before(dir.path());
    let spoken_of = is_spoken_of(dir.path(), &flip.name, flip.at);
    let mut bytes = moment.left[&flip.name].clone();
    bytes[flip.at] ^= 1 << flip.bit;
    std::fs::write(&path, &bytes).unwrap();
    let wrong = |dir: &Path| match verify(dir, Depth::Full, &Silent, &AtomicBool::new(false)) {
        Ok(report) => !report.findings.is_empty(),
        Err(error) => error.exit_code() == 8,
    };
    let found = || {
        let kept = dir.path().join(KEPT);
        wrong(&out) || kept.exists() && wrong(&kept)
    };
    // What is recorded or finished is found before anything is done about it.
    if (spoken_of || moment.stage == Stage::Finished) && !found() {
        return Err("verify does not see it".to_owned());
    }
    let kind = kind(&flip.name);
    let heard = Heard::default();
    let settings = Settings { reread: flip.reread, ..Scene::settings() };
    match scene.run(dir.path(), settings, RealDisk, &heard) {
        Ok(_) if scene.finished(dir.path()).is_ok() => {
            let lossless = kind == Kind::Lock
                || kind == Kind::Journal && flip.at >= good(&moment.left[&flip.name])
                || kind == Kind::Part && !spoken_of;
            if lossless && heard.before() < unharmed {
                return Err(format!("{} is done and {unharmed} was", heard.before()));
            }
            Ok(Outcome::Right)
        }
        Ok(_) if found() => Ok(Outcome::Verified),
        Ok(_) => Err("other bytes, and nobody tells".to_owned()),
        Err(error) => refused(scene, dir.path(), moment, &error, &found),
    }
}

/// How much of all work a run finds done.
fn before(root: &Path) -> f64 {
    let records =
        staging::find(&root.join("out")).map(|(_, root)| staging::records(&root).unwrap());
    let last = records.and_then(|records| records.last().cloned());
    last.map_or(0.0, |last| last.read as f64 / last.total as f64)
}

/// Where the torn line of a journal begins.
fn good(journal: &[u8]) -> usize {
    journal.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1)
}

/// Whether a record speaks of this byte of a part or shard.
fn is_spoken_of(root: &Path, name: &Path, at: usize) -> bool {
    let Some((_, staged)) = staging::find(&root.join("out")) else { return false };
    let plan = staging::PlanFile::load(&staging::state_of(&staged)).unwrap().unwrap();
    let file = name.file_name().unwrap().to_string_lossy().into_owned();
    let shard = plan.shards.iter().position(|shard| file.trim_end_matches(".part") == shard.file);
    let records = staging::records(&staged).unwrap();
    let grown = records.last().and_then(|last| last.components.as_ref());
    if DATA.contains(&file.trim_end_matches(".part")) {
        // The head is written again.
        return grown.is_some_and(|grown| (HEAD..grown.bytes).contains(&(at as u64)));
    }
    let open = records.last().and_then(|last| last.open.clone());
    let mut runs = records.iter().flat_map(|record| &record.extents).chain(&open);
    runs.any(|run| {
        let bytes = run.offset as usize..(run.offset + run.bytes) as usize;
        Some(run.shard as usize) == shard && bytes.contains(&at)
    })
}

/// Whether a run was right to stop.
fn refused(
    scene: &Scene,
    root: &Path,
    moment: &Moment,
    error: &Error,
    found: &dyn Fn() -> bool,
) -> Result<Outcome, String> {
    let out = root.join("out");
    match (moment.stage, error.exit_code()) {
        (Stage::Begun, 8) => {
            if !scene.inside && out.exists() {
                return Err("something was published".to_owned());
            }
            let again = || {
                let settings = Settings { restart: true, ..Scene::settings() };
                scene.run(root, settings, RealDisk, &Heard::default())
            };
            if root.join(KEPT).exists() {
                // Components have their name already, and are not replaced.
                let refused = again().map_err(|error| error.exit_code());
                if !matches!(refused, Err(5)) {
                    return Err(format!("components are in the way, and {refused:?}"));
                }
                std::fs::remove_dir_all(root.join(KEPT)).unwrap();
            }
            again().map_err(|e| e.to_string())?;
            scene.finished(root).map(|()| Outcome::Refused)
        }
        // Without plan and journal nobody knows whose the files there are.
        (Stage::Publishing, 5) => Ok(Outcome::Refused),
        (Stage::Publishing, 8) if found() => Ok(Outcome::Refused),
        (Stage::Published | Stage::Finished, 5 | 8) if found() => Ok(Outcome::Verified),
        _ => Err(format!("exit code {}: {error}", error.exit_code())),
    }
}

/// Flips so many bits, as many in each kind of file as in any other.
fn all_are_dealt_with(scope: Scope, inside: bool, flips: usize, seed: u64) {
    let folds: &[Kind] = match scope {
        // What fits into a tile is merged in one go, and folds nothing.
        Scope::Layer => &[],
        _ => &[Kind::State, Kind::Parcels],
    };
    dealt_with(&Scene::new(scope, inside), folds, flips, seed);
}

/// The same, of a merge that leaves these kinds of files besides the usual ones.
fn dealt_with(scene: &Scene, also: &[Kind], flips: usize, seed: u64) {
    let moments = moments(scene);
    let mut places: BTreeMap<(Stage, Kind), Vec<(usize, &PathBuf)>> = BTreeMap::new();
    for (k, moment) in moments.iter().enumerate() {
        for (name, _) in moment.left.iter().filter(|(_, bytes)| !bytes.is_empty()) {
            places.entry((moment.stage, kind(name))).or_default().push((k, name));
        }
    }
    let (mut random, mut outcomes) = (Random(seed), BTreeMap::new());
    for number in 0..flips {
        let (&(stage, kind), these) = places.iter().nth(number % places.len()).unwrap();
        let (k, name) = these[random.below(these.len())];
        let at = random.below(moments[k].left[name].len());
        let one = Flip {
            name: name.clone(),
            at,
            bit: random.below(8) as u8,
            reread: [None, Some(0), Some(2_000)][random.below(3)],
        };
        match flip(scene, &moments[k], &one) {
            Ok(outcome) => *outcomes.entry((stage, kind, outcome)).or_insert(0) += 1,
            Err(error) => panic!(
                "seed {seed:#x}, flip {number}, moment {k} ({stage:?}): bit {} of byte {at} of {} bytes of {}, \
                 reread {:?}: {error}",
                one.bit,
                moments[k].left[name].len(),
                name.display(),
                one.reread
            ),
        }
    }
    println!("{}, inside {}: {outcomes:#?}", scene.recipe.describe(), scene.inside);
    let seen = |outcome| outcomes.keys().any(|&(_, _, seen)| seen == outcome);
    assert!([Outcome::Right, Outcome::Refused, Outcome::Verified].into_iter().all(seen));
    let begun = |kind| places.contains_key(&(Stage::Begun, kind));
    let all = [
        Kind::Part,
        Kind::Shard,
        Kind::Journal,
        Kind::Plan,
        Kind::Lock,
        Kind::Side,
        Kind::Manifest,
    ];
    assert!(all.iter().chain(also).copied().all(begun));
}

fn count(of_thousand: usize) -> usize {
    if full_effort() { of_thousand * 10 } else { of_thousand }
}

#[test]
fn flipped_bits_are_found_or_harmless_at_model_scope() {
    all_are_dealt_with(Scope::Model, false, count(500), 0xf11b);
}

#[test]
fn flipped_bits_are_found_or_harmless_at_layer_scope() {
    all_are_dealt_with(Scope::Layer, false, count(200), 0xf11c);
}

#[test]
fn flipped_bits_are_found_or_harmless_while_a_directory_is_filled_in_place() {
    all_are_dealt_with(Scope::Model, true, count(300), 0xf11d);
}

#[test]
fn flipped_bits_are_found_or_harmless_in_components() {
    dealt_with(&Scene::with_components(Scope::Layer, false), &[], count(200), 0xf120);
}

#[test]
fn flipped_bits_are_found_or_harmless_in_components_beside_what_is_filled_in_place() {
    let scene = Scene::with_components(Scope::Model, true);
    dealt_with(&scene, &[Kind::State, Kind::Parcels], count(200), 0xf121);
}

#[test]
fn flipped_bits_are_found_or_harmless_in_what_emr_makes() {
    dealt_with(&Scene::unified(false), &[Kind::State], count(200), 0xf11e);
}

#[test]
fn flipped_bits_are_found_or_harmless_in_what_emr_makes_in_place() {
    dealt_with(&Scene::unified(true), &[Kind::State], count(200), 0xf11f);
}

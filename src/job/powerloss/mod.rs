//! Power cuts, all of them: what SQLite's `test6.c` and ALICE (OSDI 2014) do, in one process.
//!
//! A small merge is run once on a disk that writes down every change. Then, for every prefix of that
//! log, disks are made as a power cut at that moment could leave them: what was synced is there; of the
//! rest each change has arrived, or not, or in part. On each the merge is run again, and must come to the
//! bytes of one that was never disturbed, without doing again what was durably recorded. Those runs are cut
//! once more, at random.
//!
//! Broken protocols must fail this: see the tests of `mutants`.
//!
//! `REFLOW_EFFORT=full` tries all combinations of up to six changes, and cuts every fourth resume, too.

mod disk;
mod fates;
mod mutants;
mod recorder;

use std::collections::{HashMap, HashSet};
use std::path::Path;

use disk::{Disk, Fate, Node, Op, unsynced};
use fates::fates;
use recorder::Recorder;

use super::scene::{Heard, KEPT, Random, SMALL_PIECES, Scene, files, full_effort};
use super::staging;
use crate::error::Error;
use crate::recipe::{Scope, Settings, WriteRequest};

/// What a run has done.
struct Run {
    /// The disk before.
    start: Disk,
    /// Every change.
    log: Vec<Op>,
    /// How much of all work had been done before.
    before: f64,
}

impl Run {
    /// For each prefix of `log`, how much of all work a run that goes on from there must find done: what
    /// had been recorded when something else was begun.
    fn claims(&self, log: &[Op]) -> Vec<f64> {
        let journals: HashSet<Node> =
            ["out.partial/state/journal", "out/.reflow-state/state/journal"]
                .iter()
                .filter_map(|path| self.start.find(Path::new(path)))
                .chain(log.iter().filter_map(|op| match op {
                    Op::File { name, node, .. } if name == "journal" => Some(*node),
                    _ => None,
                }))
                .collect();
        let (mut claims, mut claimed, mut said) = (vec![self.before], self.before, None);
        for op in log {
            match op {
                Op::SyncFile { node } if journals.contains(node) => {}
                _ => claimed = said.take().unwrap_or(claimed),
            }
            if let Op::Write { node, bytes, .. } = op
                && journals.contains(node)
            {
                said = Some(share(bytes));
            }
            claims.push(claimed);
        }
        claims
    }
}

/// How much of all work a line of the journal says is done.
fn share(line: &[u8]) -> f64 {
    let start = line.iter().position(|&b| b == b'{').unwrap();
    let record: serde_json::Value = serde_json::from_slice(&line[start..]).unwrap();
    record["read"].as_f64().unwrap() / record["total"].as_f64().unwrap()
}

fn run(scene: &Scene, root: &Path) -> Result<Run, String> {
    let (recorder, heard) = (Recorder::new(root), Heard::default());
    let start = recorder.disk();
    let (write, (tile, checkpoint)) = (scene.write, scene.pieces);
    let (tile, checkpoint) = (Some(tile), Some(checkpoint));
    let settings = Settings { write, tile, checkpoint, ..Scene::settings() };
    let done = scene.run(root, settings, recorder.clone(), &heard);
    done.map_err(|e| e.to_string())?;
    Ok(Run { start, log: recorder.log(), before: heard.before() })
}

/// Runs a merge and cuts the power at some moment of it. Tells how much of all work must be found done then.
///
/// # Errors
/// That of a merge that is refused; nothing is cut then.
pub(super) fn cut_once(
    scene: &Scene,
    root: &Path,
    settings: Settings,
    heard: &Heard,
    random: &mut Random,
) -> Result<f64, Error> {
    let recorder = Recorder::new(root);
    let start = recorder.disk();
    scene.run(root, settings, recorder.clone(), heard)?;
    let run = Run { start, log: recorder.log(), before: heard.before() };
    let cut = random.below(run.log.len() + 1);
    let loose = unsynced(&run.log, cut);
    let changes: Vec<&Op> = loose.iter().map(|&i| &run.log[i]).collect();
    let ways = fates(&changes, 2, random);
    let image = image(&run.start, &run.log[..cut], &loose, &ways[random.below(ways.len())]);
    for name in staging::entries(root)? {
        std::fs::remove_dir_all(root.join(name)).unwrap();
    }
    image.store(root);
    Ok(run.claims(&run.log)[cut])
}

/// Looks at what a power cut has left, and runs the merge on it.
fn check(scene: &Scene, image: &Disk) -> Result<Run, String> {
    nothing_half_made(scene, image)?;
    let dir = scene.root();
    image.store(dir.path());
    // A merge that is over, its litter and all, is not done again.
    if scene.finished(dir.path()).is_ok() {
        return Ok(Run { start: image.clone(), log: Vec::new(), before: 1.0 });
    }
    let done = run(scene, dir.path())?;
    scene.finished(dir.path())?;
    Ok(done)
}

/// Whatever a loader could take for a model is one.
fn nothing_half_made(scene: &Scene, image: &Disk) -> Result<(), String> {
    let out = Path::new("out");
    let names = image.list(out);
    // Where files appear one by one, no loader starts without config and index.
    let begun = if scene.inside {
        let last = |name: &str| matches!(name, "config.json" | "emr.json");
        names.iter().any(|name| name.ends_with(".index.json") || last(name))
    } else {
        !names.is_empty()
    };
    let due = |name: &&std::path::PathBuf| {
        !scene.inside || name.extension().is_some_and(|ext| ext == "safetensors" || ext == "bin")
    };
    let half = |name: &&std::path::PathBuf| {
        image.read(&out.join(name)) != scene.expected.get(*name).map(Vec::as_slice)
    };
    if let Some(name) = scene.expected.keys().filter(due).find(half).filter(|_| begun) {
        return Err(format!("a loader finds an output without {}", name.display()));
    }
    let Some(kept) = &scene.kept else { return Ok(()) };
    let dir = Path::new(KEPT);
    let whole = |(name, bytes): (&std::path::PathBuf, &Vec<u8>)| {
        image.read(&dir.join(name)) == Some(bytes.as_slice())
    };
    // They get their name first.
    let due = begun || !image.list(dir).is_empty();
    if due && !kept.iter().all(whole) {
        return Err("there are components, or an output, and not all of them".to_owned());
    }
    Ok(())
}

/// How thoroughly to look.
struct Effort {
    /// Cut so often, at random; everywhere if there is no number.
    cuts: Option<usize>,
    /// Of so many changes all combinations are tried.
    combined: usize,
    /// Of so many images the run that goes on is cut, too; of none if it is 0.
    again: usize,
}

/// Cuts a run, as if it had done what `log` says; returns the number of images that were tried, or what
/// went wrong first.
fn cut(
    scene: &Scene,
    run: &Run,
    log: &[Op],
    effort: &Effort,
    random: &mut Random,
) -> Result<usize, String> {
    let mut seen: HashMap<blake3::Hash, f64> = HashMap::new();
    let claims = run.claims(log);
    let cuts: Vec<usize> = match effort.cuts {
        None => (0..=log.len()).collect(),
        Some(cuts) => (0..cuts).map(|_| random.below(log.len() + 1)).collect(),
    };
    for cut in cuts {
        let loose = unsynced(log, cut);
        let changes: Vec<&Op> = loose.iter().map(|&i| &log[i]).collect();
        for fates in fates(&changes, effort.combined, random) {
            let place = |error| {
                let changes: Vec<String> = changes
                    .iter()
                    .zip(&fates)
                    .map(|(op, fate)| format!("{fate:?} {}", op.brief()))
                    .collect();
                format!("{error}; cut before change {cut} of {}: {changes:#?}", log.len())
            };
            let image = image(&run.start, &log[..cut], &loose, &fates);
            let print = image.fingerprint();
            let known = seen.get(&print).copied();
            let next = match known {
                Some(_) => None,
                None => Some(check(scene, &image).map_err(place)?),
            };
            let before = known.or(next.as_ref().map(|next| next.before)).unwrap_or_default();
            seen.insert(print, before);
            if before + 1e-9 < claims[cut] {
                return Err(place(format!("{before} is done, and {} was recorded", claims[cut])));
            }
            if let Some(next) = next.filter(|_| effort.again > 0 && random.below(effort.again) == 0)
            {
                let effort = Effort { cuts: Some(3), again: 0, ..*effort };
                self::cut(scene, &next, &next.log, &effort, random)
                    .map_err(|error| place(format!("then {error}, after")))?;
            }
        }
    }
    Ok(seen.len())
}

/// What a power cut after these changes leaves, if those that are not durable have these fates.
fn image(start: &Disk, log: &[Op], loose: &[usize], fates: &[Fate]) -> Disk {
    let mut image = start.clone();
    for (i, op) in log.iter().enumerate() {
        let fate = loose.binary_search(&i).map_or(Fate::Kept, |at| fates[at]);
        image.apply(op, fate);
    }
    image
}

/// Every state that power cuts can leave, of one kind of merge.
fn survives(scope: Scope, inside: bool, write: WriteRequest) {
    let mut scene = Scene::new(scope, inside);
    scene.write = write;
    if scope == Scope::Layer {
        scene.pieces = SMALL_PIECES;
    }
    scene_survives(&scene, 3);
}

/// The same, of a merge with so many records at least.
fn scene_survives(scene: &Scene, records: usize) {
    const SEED: u64 = 0x5eed;
    let inputs = files(scene.inputs());
    let run = {
        let dir = scene.place();
        run(scene, dir.path()).unwrap()
    };
    assert!(run.before == 0.0 && run.log.len() > 60, "{} changes", run.log.len());
    let claims = run.claims(&run.log);
    assert!(claims.windows(2).filter(|w| w[0] < w[1]).count() >= records, "records: {claims:?}");
    assert!(claims.last().is_some_and(|&all| all == 1.0), "{claims:?}");
    let effort = if full_effort() {
        Effort { cuts: None, combined: 6, again: 4 }
    } else {
        Effort { cuts: None, combined: 4, again: 25 }
    };
    match cut(scene, &run, &run.log, &effort, &mut Random(SEED)) {
        Ok(images) => {
            println!("{}: {} changes, {images} images", scene.recipe.describe(), run.log.len());
        }
        Err(error) => panic!("seed {SEED:#x}: {error}"),
    }
    assert!(files(scene.inputs()) == inputs, "inputs are never changed");
}

#[test]
fn every_power_cut_at_model_scope_is_survived() {
    survives(Scope::Model, false, WriteRequest::Auto);
}

#[test]
fn every_power_cut_of_writes_past_the_cache_is_survived() {
    survives(Scope::Model, false, WriteRequest::Direct);
}

#[test]
fn every_power_cut_at_layer_scope_is_survived() {
    survives(Scope::Layer, false, WriteRequest::Auto);
}

#[test]
fn every_power_cut_while_a_directory_is_filled_in_place_is_survived() {
    survives(Scope::Model, true, WriteRequest::Auto);
}

#[test]
fn every_power_cut_of_components_is_survived() {
    let mut scene = Scene::with_components(Scope::Layer, false);
    // Frames are longer than these units: each is merged whole.
    scene.pieces.1 = 1_000;
    scene_survives(&scene, 3);
}

#[test]
fn every_power_cut_of_components_beside_what_is_filled_in_place_is_survived() {
    scene_survives(&Scene::with_components(Scope::Model, true), 3);
}

#[test]
fn every_power_cut_of_what_emr_makes_is_survived() {
    scene_survives(&Scene::unified(false), 2);
}

#[test]
fn every_power_cut_of_what_emr_makes_in_place_is_survived() {
    scene_survives(&Scene::unified(true), 2);
}

#[test]
fn small_units_share_a_record_and_sync_nothing_of_their_own() {
    let mut scene = Scene::new(Scope::Tensor, false);
    let made = |scene: &Scene| {
        let dir = scene.place();
        let log = run(scene, dir.path()).unwrap().log;
        scene.finished(dir.path()).unwrap();
        let node = |name: &str| {
            log.iter().find_map(|op| match op {
                Op::File { name: named, node, .. } if named == name => Some(*node),
                _ => None,
            })
        };
        let journal = node("journal").unwrap();
        let records = |op: &&Op| matches!(op, Op::Write { node, .. } if *node == journal);
        let saved =
            |op: &&Op| matches!(op, Op::Move { to: (_, name), .. } if name.starts_with("fold-"));
        let is_parcel = |op: &&Op| matches!(op, Op::File { name, .. } if name.starts_with("kept-"));
        let parcels: Vec<Node> = log
            .iter()
            .filter(is_parcel)
            .filter_map(|op| if let Op::File { node, .. } = op { Some(*node) } else { None })
            .collect();
        let sealed = |op: &&Op| matches!(op, Op::SyncFile { node } if parcels.contains(node));
        let count = |is: &dyn Fn(&&Op) -> bool| log.iter().filter(|op| is(op)).count();
        assert!(!parcels.is_empty(), "scans hand out parcels");
        [count(&records), count(&saved), count(&sealed)]
    };
    // One piece of copies and four units.
    scene.pieces = (256, 1 << 30);
    assert_eq!(made(&scene), [1, 0, 0]);
    scene.pieces = (256, 1_000);
    let [records, saved, sealed] = made(&scene);
    assert!(records > 8 && saved > 4 && sealed > 4, "{records} {saved} {sealed}");
}

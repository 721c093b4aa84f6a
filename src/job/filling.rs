//! Tests of an output directory that is there beforehand: it is filled file by file, the index last.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use super::meddler::{Call, Meddled, What};
use super::scene::{Heard, Scene, files};
use super::status::{Status, clean, status};
use super::verify::{Depth, verify};
use crate::engine::sink::RealDisk;
use crate::error::Error;
use crate::progress::Silent;
use crate::recipe::{Scope, Settings};

fn restart() -> Settings {
    Settings { restart: true, ..Scene::settings() }
}

fn run(scene: &Scene, root: &Path, settings: Settings) -> Result<(), Error> {
    scene.run(root, settings, RealDisk, &Heard::default()).map(drop)
}

/// The calls from the record that says that files are moved on.
fn publishing(scene: &Scene) -> std::ops::Range<usize> {
    let (dir, calls) = (scene.place(), Arc::new(Mutex::new(Vec::new())));
    scene.run(dir.path(), Scene::settings(), Meddled::listed(&calls), &Heard::default()).unwrap();
    let (calls, out) = (calls.lock().unwrap().clone(), dir.path().join("out"));
    let first = calls.iter().position(|call| is_move(call, &out)).unwrap();
    first - 3..calls.len() + 1
}

fn is_move(call: &Call, out: &Path) -> bool {
    call.what == What::RenameNew && call.path.parent() == Some(out)
}

/// For each moment of the filling, a directory as a kill at that moment leaves it.
fn killed(scene: &Scene, mut then: impl FnMut(usize, &Path)) {
    for before in publishing(scene) {
        let dir = scene.place();
        drop(scene.run(
            dir.path(),
            Scene::settings(),
            Meddled::killed_before(before),
            &Heard::default(),
        ));
        then(before, dir.path());
    }
}

#[test]
fn it_goes_on_wherever_it_was_stopped() {
    let scene = Scene::new(Scope::Model, true);
    killed(&scene, |before, root| {
        if scene.finished(root).is_err() {
            run(&scene, root, Scene::settings()).unwrap_or_else(|e| panic!("{before}: {e}"));
            scene.finished(root).unwrap_or_else(|e| panic!("{before}: {e}"));
        }
    });
}

#[test]
fn a_restart_begins_again_wherever_it_was_stopped() {
    let scene = Scene::new(Scope::Model, true);
    killed(&scene, |before, root| {
        if scene.finished(root).is_err() {
            run(&scene, root, restart()).unwrap_or_else(|e| panic!("{before}: {e}"));
            scene.finished(root).unwrap_or_else(|e| panic!("{before}: {e}"));
        }
    });
}

#[test]
fn another_recipe_is_refused_and_a_restart_puts_it_in_place_of_what_was_begun() {
    let scene = Scene::new(Scope::Model, true);
    let other = scene.other(|recipe| recipe.shard_size = 2_000);
    let (mut replaced, mut kept) = (0, 0);
    killed(&scene, |before, root| {
        let refused = run(&other, root, Scene::settings()).unwrap_err().exit_code();
        match run(&other, root, restart()) {
            Ok(()) => {
                assert_eq!(refused, 10, "{before}");
                other.finished(root).unwrap_or_else(|e| panic!("{before}: {e}"));
                replaced += 1;
            }
            // All of it was there: a finished output is not touched.
            Err(error) => {
                assert!(matches!(error, Error::OutputExists { .. }), "{before}: {error}");
                assert_eq!(refused, 5, "{before}");
                let mut there = files(&root.join("out"));
                there.retain(|name, _| !name.starts_with(".reflow-state"));
                assert!(there == scene.expected, "{before}");
                kept += 1;
            }
        }
    });
    assert!(replaced > 5 && kept > 2, "{replaced}, {kept}");
}

#[test]
fn clean_removes_what_is_half_there_and_leaves_what_is_whole() {
    let scene = Scene::new(Scope::Model, true);
    let (mut removed, mut kept) = (0, 0);
    killed(&scene, |before, root| {
        let out = root.join("out");
        clean(&out).unwrap_or_else(|e| panic!("{before}: {e}"));
        let left = files(&out);
        assert!(left.is_empty() || left == scene.expected, "{before}: {:?}", left.keys());
        *(if left.is_empty() { &mut removed } else { &mut kept }) += 1;
        assert!(!out.join(".reflow-state").exists(), "{before}");
    });
    assert!(removed > 5 && kept > 2, "{removed}, {kept}");
}

#[test]
fn status_and_verify_know_where_the_files_are() {
    let scene = Scene::new(Scope::Model, true);
    killed(&scene, |before, root| {
        let out = root.join("out");
        let there = status(&out).unwrap();
        let whole = scene.expected.keys().all(|name| out.join(name).exists());
        match there {
            Status::Finished { .. } => assert!(whole, "{before}"),
            Status::Unfinished(it) => assert!(!whole && it.read == it.total, "{before}: {it:?}"),
            Status::Nothing => panic!("{before}"),
        }
        let report = verify(&out, Depth::Full, &Silent, &AtomicBool::new(false)).unwrap();
        assert!(report.findings.is_empty(), "{before}: {:?}", report.findings);
        assert!(report.bytes > 10_000, "{before}: {report}");
        // A bit that is not as it was is found wherever the file is.
        let shard = files(&out).into_iter().find(|(name, bytes)| {
            bytes.len() > 2_000 && name.to_string_lossy().contains("safetensors")
        });
        let (name, mut bytes) = shard.unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(out.join(name), bytes).unwrap();
        let report = verify(&out, Depth::Full, &Silent, &AtomicBool::new(false)).unwrap();
        assert_eq!(report.findings.len(), 1, "{before}: {:?}", report.findings);
    });
}

/// Runs a merge during which `act` is done in the output directory before the first file is moved into it.
fn disturbed(scene: &Scene, root: &Path, act: impl Fn(&Path) + Send + 'static) -> Error {
    let (out, mut acted) = (root.join("out"), false);
    let disk = Meddled::new(move |call| {
        let now = call.what == What::Rename && call.path.ends_with("manifest.json");
        if now && !acted {
            acted = true;
            act(&out);
        }
        Ok(())
    });
    scene.run(root, Scene::settings(), disk, &Heard::default()).unwrap_err()
}

#[test]
fn a_file_that_appears_meanwhile_is_neither_replaced_nor_joined() {
    let scene = Scene::new(Scope::Model, true);
    let shard: PathBuf = scene
        .expected
        .keys()
        .find(|name| name.to_string_lossy().contains("00002"))
        .unwrap()
        .clone();
    for name in
        [shard, "model-00009-of-00009.safetensors".into(), "config.json".into(), "notes".into()]
    {
        let dir = scene.place();
        let theirs = dir.path().join("out").join(&name);
        let written = theirs.clone();
        let error =
            disturbed(&scene, dir.path(), move |_| std::fs::write(&written, "theirs").unwrap());
        assert_eq!(error.exit_code(), 5, "{error}");
        assert!(error.to_string().contains(&*name.to_string_lossy()), "{error}");
        let error = run(&scene, dir.path(), Scene::settings()).unwrap_err();
        assert_eq!(error.exit_code(), 5, "{error}");
        assert_eq!(std::fs::read(&theirs).unwrap(), b"theirs");
        std::fs::remove_file(&theirs).unwrap();
        run(&scene, dir.path(), Scene::settings()).unwrap();
        scene.finished(dir.path()).unwrap();
    }
}

#[test]
fn a_file_that_appears_while_others_are_moved_stops_it() {
    let scene = Scene::new(Scope::Model, true);
    for at in publishing(&scene).step_by(3) {
        for name in ["model-00007-of-00007.safetensors", "config.json"] {
            let dir = scene.place();
            drop(scene.run(
                dir.path(),
                Scene::settings(),
                Meddled::killed_before(at),
                &Heard::default(),
            ));
            let theirs = dir.path().join("out").join(name);
            if theirs.exists() || !dir.path().join("out/.reflow-state").exists() {
                continue;
            }
            std::fs::write(&theirs, "theirs").unwrap();
            let done = run(&scene, dir.path(), Scene::settings());
            assert_eq!(std::fs::read(&theirs).unwrap(), b"theirs");
            std::fs::remove_file(&theirs).unwrap();
            if let Err(error) = done {
                assert_eq!(error.exit_code(), 5, "{at}: {error}");
                run(&scene, dir.path(), Scene::settings()).unwrap();
            } else {
                assert!(!name.starts_with("config"), "{at}");
            }
            scene.finished(dir.path()).unwrap();
        }
    }
}

#[test]
fn a_file_that_is_lost_while_others_are_moved_is_missed() {
    let scene = Scene::new(Scope::Model, true);
    let mut missed = 0;
    killed(&scene, |before, root| {
        let out = root.join("out");
        let moved = scene.expected.keys().find(|name| out.join(name).exists());
        let (Some(moved), true) = (moved, out.join(".reflow-state/state/journal").exists()) else {
            return;
        };
        std::fs::remove_file(out.join(moved)).unwrap();
        for _ in 0..2 {
            let error = run(&scene, root, Scene::settings()).unwrap_err();
            assert_eq!(error.exit_code(), 8, "{before}: {error}");
        }
        run(&scene, root, restart()).unwrap_or_else(|e| panic!("{before}: {e}"));
        scene.finished(root).unwrap();
        missed += 1;
    });
    assert!(missed > 5, "{missed}");
}

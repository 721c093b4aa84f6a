//! Tests of what happens when processes meet, or one finds what another has left half done.

use std::sync::{Arc, Mutex};

use super::meddler::{Call, Meddled, What};
use super::scene::{Files, Heard, Scene, empty_dir, files};
use super::status::{Status, clean, status};
use crate::engine::sink::RealDisk;
use crate::error::Error;
use crate::recipe::{Scope, Settings};

fn restart() -> Settings {
    Settings { restart: true, ..Scene::settings() }
}

/// All calls of an undisturbed run.
fn calls(scene: &Scene) -> Vec<Call> {
    let (dir, calls) = (scene.place(), Arc::new(Mutex::new(Vec::new())));
    scene.run(dir.path(), Scene::settings(), Meddled::listed(&calls), &Heard::default()).unwrap();
    calls.lock().unwrap().clone()
}

fn kill(scene: &Scene, root: &std::path::Path, settings: Settings, before: usize) {
    let killed = Meddled::killed_before(before);
    let done = scene.run(root, settings, killed, &Heard::default());
    // The last calls only sweep up, and nobody is told of their failure.
    drop(done);
}

fn finish(scene: &Scene, root: &std::path::Path, settings: Settings) {
    scene.run(root, settings, RealDisk, &Heard::default()).unwrap();
    scene.finished(root).unwrap();
}

fn done(dir: &std::path::Path) -> u64 {
    match status(&dir.join("out")).unwrap() {
        Status::Unfinished(it) => it.read,
        other => panic!("{other:?}"),
    }
}

#[test]
fn records_count_whatever_became_of_the_lock_file() {
    let scene = Scene::new(Scope::Model, false);
    let all = calls(&scene).len();
    let dir = scene.place();
    let lock = dir.path().join("out.partial/state/lock");
    for text in [
        None,
        Some(""),
        Some(r#"{"pid":1,"host":"h","boot_id":"b","generation":18446744073709551615}"#),
    ] {
        kill(&scene, dir.path(), restart(), all / 4);
        kill(&scene, dir.path(), Scene::settings(), all / 4);
        let before = done(dir.path());
        match text {
            None => std::fs::remove_file(&lock).unwrap(),
            Some(text) => std::fs::write(&lock, text).unwrap(),
        }
        kill(&scene, dir.path(), Scene::settings(), all / 3);
        let after = done(dir.path());
        assert!(after > before, "{text:?}: {after} after {before}");
        let heard = Heard::default();
        drop(scene.run(dir.path(), Scene::settings(), Meddled::killed_before(0), &heard));
        assert!(done(dir.path()) >= after);
    }
    finish(&scene, dir.path(), Scene::settings());
}

#[test]
fn an_output_that_was_taken_away_after_the_commit_is_made_again() {
    let scene = Scene::new(Scope::Model, false);
    let dir = scene.place();
    let out = dir.path().join("out");
    let committed = out.clone();
    let killed =
        Meddled::killed_after(move |call| (call.what, &call.path) == (What::RenameNew, &committed));
    drop(scene.run(dir.path(), Scene::settings(), killed, &Heard::default()));
    assert!(out.exists() && dir.path().join("out.partial/state/journal").exists());
    let elsewhere = empty_dir();
    for (name, bytes) in files(&out) {
        std::fs::write(elsewhere.path().join(name), bytes).unwrap();
    }
    std::fs::remove_dir_all(&out).unwrap();
    finish(&scene, dir.path(), Scene::settings());
}

#[test]
fn a_restart_that_is_stopped_anywhere_is_no_obstacle_to_a_third_merge() {
    let first = Scene::new(Scope::Model, false);
    let [second, third] =
        [2_000, 30_000].map(|size| first.other(|recipe| recipe.shard_size = size));
    let half = calls(&first).len() / 2;
    for before in 0..40 {
        for way in [Scene::settings(), restart()] {
            let dir = first.place();
            kill(&first, dir.path(), Scene::settings(), half);
            kill(&second, dir.path(), restart(), before);
            match third.run(dir.path(), way, RealDisk, &Heard::default()) {
                Ok(_) => third.finished(dir.path()).unwrap(),
                Err(Error::OtherPlan { .. }) => finish(&third, dir.path(), restart()),
                Err(error) => panic!("stopped before call {before}: {error}"),
            }
        }
    }
}

#[test]
fn a_clean_that_is_stopped_anywhere_can_be_done_again() {
    let scene = Scene::new(Scope::Model, false);
    let other = scene.other(|recipe| recipe.shard_size = 2_000);
    let half = calls(&scene).len() / 2;
    for before in 0..40 {
        let dir = scene.place();
        kill(&scene, dir.path(), Scene::settings(), half);
        let (place, root) = super::staging::find(&dir.path().join("out")).unwrap();
        drop(super::staging::clean(&Meddled::killed_before(before), place, root));
        let _bytes = clean(&dir.path().join("out")).unwrap();
        finish(&other, dir.path(), Scene::settings());
    }
}

#[test]
fn who_was_replaced_touches_nothing_any_more() {
    let scene = Scene::new(Scope::Model, false);
    let all = calls(&scene);
    for at in [10, 14, 20, all.len() / 2] {
        let dir = scene.place();
        let (root, seen) = (dir.path().to_owned(), Arc::new(Mutex::new(Files::new())));
        let (saw, mut count) = (Arc::clone(&seen), 0);
        let replaced = Meddled::new(move |_| {
            count += 1;
            let lock = root.join("out.partial/state/lock");
            if count == at {
                let other = r#"{"pid":7,"host":"elsewhere","boot_id":"b","generation":9}"#;
                std::fs::write(lock, other).unwrap();
            }
            if count >= at {
                // The other one is amid a line of the journal.
                let journal = root.join("out.partial/state/journal");
                if count == at && journal.exists() {
                    let text = std::fs::read(&journal).unwrap();
                    std::fs::write(&journal, [&text[..], b"half a line"].concat()).unwrap();
                }
                *saw.lock().unwrap() = files(&root);
            }
            Ok(())
        });
        let done = scene.run(dir.path(), Scene::settings(), replaced, &Heard::default());
        let error = done.unwrap_err();
        assert!(
            matches!(&error, Error::Locked { holder, .. } if holder.contains("elsewhere")),
            "{error}"
        );
        let left = files(dir.path());
        let state = |files: &Files| -> Files {
            files
                .iter()
                .filter(|(name, _)| name.ends_with("journal") || name.ends_with("plan.json"))
                .map(|(name, bytes)| (name.clone(), bytes.clone()))
                .collect()
        };
        assert_eq!(state(&left), state(&seen.lock().unwrap()), "replaced before call {at}");
        finish(&scene, dir.path(), Scene::settings());
    }
}

#[test]
fn two_that_begin_at_once_do_not_harm_each_other() {
    let scene = Scene::new(Scope::Model, false);
    for round in 0..30 {
        let dir = scene.place();
        let codes: Vec<u8> = std::thread::scope(|scope| {
            let start = || scene.run(dir.path(), Scene::settings(), RealDisk, &Heard::default());
            let threads: Vec<_> = (0..3)
                .map(|k| {
                    scope.spawn(move || {
                        std::thread::sleep(std::time::Duration::from_micros(k * round * 150));
                        start()
                    })
                })
                .collect();
            let done = threads.into_iter().map(|thread| thread.join().unwrap());
            done.map(|done| done.map_or_else(|error| error.exit_code(), |_| 0)).collect()
        });
        // The others are told that it is being made, or that it is there.
        assert!(codes.contains(&0), "{codes:?}");
        assert!(codes.iter().all(|code| [0, 5, 11].contains(code)), "{codes:?}");
        scene.finished(dir.path()).unwrap();
    }
}

#[test]
fn what_was_begun_with_another_selection_is_refused_by_name() {
    use crate::method::Strategy::{Fused, Radix};
    let scene = Scene::new(Scope::Model, false);
    let all = calls(&scene).len();
    for (begun, now, word) in [(Fused, Radix, "fused"), (Radix, Fused, "radix")] {
        let with = |strategy| Settings { strategy, ..Scene::settings() };
        for before in (20..all).step_by(9) {
            let dir = scene.place();
            kill(&scene, dir.path(), with(begun), before);
            match scene.run(dir.path(), with(now), RealDisk, &Heard::default()) {
                Ok(_) => scene.finished(dir.path()).unwrap(),
                Err(Error::OtherPlan { what, .. }) => {
                    assert!(what.contains(&format!("--selection {word}")), "{what}");
                    finish(&scene, dir.path(), with(begun));
                }
                Err(error) => panic!("stopped before call {before}: {error}"),
            }
        }
    }
}

//! Protocols that are broken on purpose. The simulator must catch each, or it is too weak.

use std::ffi::OsStr;
use std::path::Path;

use super::disk::{Node, Op, ROOT};
use super::{Effort, Random, Scene, cut, run};
use crate::recipe::Scope;

/// Names in a log: which nodes are what.
struct Names<'a>(&'a [Op]);

impl Names<'_> {
    fn nodes(&self, matches: impl Fn(&str) -> bool) -> Vec<Node> {
        let named = self.0.iter().filter_map(|op| match op {
            Op::File { name, node, .. } | Op::Dir { name, node, .. } if matches(name) => {
                Some(*node)
            }
            _ => None,
        });
        named.collect()
    }
}

fn is(name: &str, extension: &str) -> bool {
    Path::new(name).extension() == Some(OsStr::new(extension))
}

/// A log without some of its entries.
fn without(log: &[Op], drop: impl Fn(&Op) -> bool) -> Vec<Op> {
    log.iter().filter(|op| !drop(op)).cloned().collect()
}

/// A log in which what `late` picks happens after the next thing that `early` picks.
fn swapped(log: &[Op], late: impl Fn(&Op) -> bool, early: impl Fn(&Op) -> bool) -> Vec<Op> {
    let (mut ops, mut held) = (Vec::new(), Vec::new());
    for op in log {
        if late(op) {
            held.push(op.clone());
            continue;
        }
        ops.push(op.clone());
        if early(op) {
            ops.append(&mut held);
        }
    }
    ops.append(&mut held);
    ops
}

/// Breaks a merge, and demands that the simulator finds `symptom`.
fn is_caught(scope: Scope, inside: bool, symptom: &str, mutate: impl Fn(&[Op]) -> Vec<Op>) {
    let scene = Scene::new(scope, inside);
    let dir = scene.place();
    let run = run(&scene, dir.path()).unwrap();
    let mutant = mutate(&run.log);
    assert_ne!(mutant, run.log, "nothing was broken");
    let effort = Effort { cuts: None, combined: 2, again: 0 };
    match cut(&scene, &run, &mutant, &effort, &mut Random(7)) {
        Ok(images) => panic!("{images} images, and nobody noticed"),
        Err(found) => assert!(found.contains(symptom), "{found}"),
    }
}

fn syncs(nodes: Vec<Node>) -> impl Fn(&Op) -> bool {
    move |op| matches!(op, Op::SyncFile { node } if nodes.contains(node))
}

fn parts(log: &[Op]) -> impl Fn(&Op) -> bool + use<> {
    syncs(Names(log).nodes(|name| is(name, "part")))
}

fn journal(log: &[Op]) -> impl Fn(&Op) -> bool + use<> {
    syncs(Names(log).nodes(|name| name == "journal"))
}

const LOST: &str = "was recorded";
const HALF: &str = "a loader finds";

#[test]
fn shards_that_are_not_synced_are_caught() {
    is_caught(Scope::Model, false, LOST, |log| without(log, parts(log)));
}

#[test]
fn a_single_shard_that_is_not_synced_once_is_caught() {
    is_caught(Scope::Layer, false, LOST, |log| {
        let at = log.iter().position(parts(log)).unwrap();
        [&log[..at], &log[at + 1..]].concat()
    });
}

#[test]
fn records_that_run_ahead_of_their_data_are_caught() {
    is_caught(Scope::Model, false, LOST, |log| swapped(log, parts(log), journal(log)));
}

#[test]
fn a_journal_that_is_not_synced_is_caught() {
    is_caught(Scope::Model, false, LOST, |log| without(log, journal(log)));
}

#[test]
fn directories_that_are_not_synced_are_caught() {
    is_caught(Scope::Model, false, LOST, |log| without(log, |op| matches!(op, Op::SyncDir { .. })));
}

#[test]
fn a_state_that_is_renamed_before_it_is_synced_is_caught() {
    is_caught(Scope::Model, false, LOST, |log| {
        without(log, syncs(Names(log).nodes(|name| is(name, "tmp") && name.contains("fold"))))
    });
}

#[test]
fn small_files_that_are_renamed_before_they_are_synced_are_caught() {
    is_caught(Scope::Model, false, HALF, |log| {
        let small =
            |name: &str| is(name, "tmp") && !name.contains("fold") && !name.contains("plan");
        without(log, syncs(Names(log).nodes(small)))
    });
}

#[test]
fn a_plan_that_is_renamed_before_it_is_synced_is_caught() {
    is_caught(Scope::Model, false, "plan.json", |log| {
        without(log, syncs(Names(log).nodes(|name| name == ".plan.json.tmp")))
    });
}

#[test]
fn publishing_before_the_files_are_there_is_caught() {
    is_caught(Scope::Model, false, HALF, |log| {
        let model = Names(log).nodes(|name| name == "model");
        let filled = move |op: &Op| matches!(op, Op::SyncDir { dir } if model.contains(dir));
        let published = |op: &Op| matches!(op, Op::Move { to: (ROOT, _), .. });
        let recorded = log.iter().rposition(journal(log)).unwrap();
        let (before, after) = log.split_at(recorded);
        [before.to_vec(), swapped(after, filled, published)].concat()
    });
}

#[test]
fn a_staging_directory_that_goes_before_the_output_is_durable_is_caught() {
    is_caught(Scope::Model, false, LOST, |log| {
        let published = log.iter().position(|op| matches!(op, Op::Move { to: (ROOT, _), .. }));
        let (before, after) = log.split_at(published.unwrap() + 1);
        let syncs = |op: &Op| matches!(op, Op::SyncDir { .. });
        let plan = |op: &Op| matches!(op, Op::Remove { name, .. } if name == "plan.json");
        [before.to_vec(), swapped(after, syncs, plan)].concat()
    });
}

#[test]
fn snapshots_that_go_before_the_next_one_is_recorded_are_caught() {
    is_caught(Scope::Model, false, LOST, |log| {
        // Each state is removed as soon as the next one is begun.
        let is_fold = |op: &Op| matches!(op, Op::Remove { name, .. } if name.starts_with("fold-"));
        let mut ops: Vec<Op> = Vec::new();
        for (i, op) in log.iter().enumerate() {
            if matches!(op, Op::File { name, .. } if name.starts_with(".fold-")) {
                ops.extend(log[i..].iter().find(|op| is_fold(op)).cloned());
            }
            if !is_fold(op) {
                ops.push(op.clone());
            }
        }
        ops
    });
}

#[test]
fn a_directory_whose_index_comes_first_is_caught() {
    is_caught(Scope::Model, true, HALF, |log| {
        let published = |op: &Op, what: &str| matches!(op, Op::Move { to, .. } if is_out(log, to.0) && is(&to.1, what));
        let first = log.iter().position(|op| published(op, "safetensors")).unwrap();
        let index = log.iter().rposition(|op| published(op, "json")).unwrap();
        let mut ops = log.to_vec();
        let index = ops.remove(index);
        ops.insert(first, index);
        ops
    });
}

#[test]
fn a_directory_that_is_filled_before_the_journal_says_so_is_caught() {
    is_caught(Scope::Model, true, "exists already", |log| {
        let (journal, published) =
            (journal(log), |op: &Op| matches!(op, Op::Move { to, .. } if is_out(log, to.0)));
        let first = log.iter().position(published).unwrap();
        let sync = log[..first].iter().rposition(journal).unwrap();
        [&log[..sync], &log[sync + 1..]].concat()
    });
}

/// Whether a node is the output directory that was there before: none that the log makes.
fn is_out(log: &[Op], node: Node) -> bool {
    !Names(log).nodes(|_| true).contains(&node)
}

//! What must come of an event.

use std::sync::atomic::AtomicBool;

use super::{Identity, World};
use crate::engine::sink::RealDisk;
use crate::error::Error;
use crate::job::scene::{Files, Heard, Random, Scene, files};
use crate::job::staging;
use crate::job::status::{Status, status};
use crate::job::verify::{Depth, verify};
use crate::method::Strategy;
use crate::progress::Silent;
use crate::recipe::Settings;

impl World<'_> {
    /// What a run that nobody stops must come to.
    pub(super) fn expected(
        &mut self,
        who: Identity,
        restart: bool,
        heard: &Heard,
        error: Option<&Error>,
    ) -> Result<(), String> {
        let code = error.map_or(0, Error::exit_code);
        let told = || error.map_or("done".to_owned(), ToString::to_string);
        let other = self.begun.filter(|(begun, _)| *begun != who);
        let due: &[u8] = match (self.whole, other) {
            // All that is left of it may be litter, or nothing.
            (Some(whole), _) if whole == who.recipe => &[0, 5],
            (Some(_), _) => &[5],
            (None, Some(_)) if !restart => &[10],
            (None, _) => &[0],
        };
        if !due.contains(&code) {
            return Err(format!("exit code {code} ({}) where {due:?} was due", told()));
        }
        if code == 0 {
            self.scenes[who.recipe].finished(self.root())?;
            if let Some((_, floor)) = self.begun.filter(|_| self.whole.is_none() && !restart)
                && heard.before() + 1e-9 < floor
            {
                return Err(format!("began at {} and not at {floor}", heard.before()));
            }
            (self.whole, self.begun) = (Some(who.recipe), None);
        }
        Ok(())
    }

    /// What there must be after a run was stopped, of which so much had been recorded.
    pub(super) fn stopped(
        &mut self,
        who: Identity,
        restart: bool,
        claim: f64,
    ) -> Result<(), String> {
        let (out, there) = (self.root().join("out"), files(&self.root().join("out")));
        if let Some(whole) = self.whole {
            let still = holds(&there, &self.scenes[whole].expected);
            return if still { Ok(()) } else { Err("the output has changed".to_owned()) };
        }
        // Of the staging directory there may be any part left.
        if holds(&there, &self.scenes[who.recipe].expected) {
            (self.whole, self.begun) = (Some(who.recipe), None);
            return Ok(());
        }
        let root = staging::find(&out).map(|(_, root)| root);
        let plan =
            root.as_ref().and_then(|root| staging::PlanFile::load(&staging::state_of(root)).ok());
        let plan = plan.flatten().map(|plan| plan.identity);
        let settings = Settings { strategy: who.selection, ..Scene::settings() };
        let mine =
            self.scenes[who.recipe].job(settings).plan_file().map_err(|e| e.to_string())?.identity;
        let owner = match self.begun {
            Some((begun, _)) if plan.as_ref() != Some(&mine) => begun,
            _ => who,
        };
        match self.begun {
            Some((begun, _)) if begun != who && owner == who && !restart => {
                return Err("another merge was begun in its place".to_owned());
            }
            _ => {}
        }
        let records = root.map(|root| staging::records(&root).map_err(|e| e.to_string()));
        let records = records.transpose()?.unwrap_or_default();
        let now = records.last().map_or(0.0, |last| last.read as f64 / last.total as f64);
        let floor = match self.begun {
            // It has discarded what there was, or not yet.
            Some(_) if restart && records.is_empty() => claim,
            Some((begun, _)) if restart && begun == who => claim,
            Some((begun, floor)) if begun == owner => floor.max(claim),
            _ => claim,
        };
        if now + 1e-9 < floor {
            return Err(format!("{now} is recorded and {floor} was"));
        }
        self.begun = (!records.is_empty()).then_some((owner, now));
        Ok(())
    }

    /// Looking changes nothing, and finds nothing wrong.
    pub(super) fn look(&mut self) -> Result<(), String> {
        let (before, out) = (files(self.root()), self.root().join("out"));
        match (status(&out).map_err(|e| e.to_string())?, self.begun, self.whole) {
            (Status::Finished { .. }, None, Some(_)) | (Status::Nothing, None, None) => {}
            (Status::Unfinished(it), begun, None) => {
                let share = if it.total == 0 { 0.0 } else { it.read as f64 / it.total as f64 };
                if share + 1e-9 < begun.map_or(0.0, |(_, floor)| floor) || it.running.is_some() {
                    return Err(format!("{it:?}, and {begun:?} was begun"));
                }
            }
            (status, begun, whole) => return Err(format!("{status:?}: {begun:?}, {whole:?}")),
        }
        if self.begun.is_some() || self.whole.is_some() {
            let report = verify(&out, Depth::Full, &Silent, &AtomicBool::new(false));
            let report = report.map_err(|e| e.to_string())?;
            if !report.findings.is_empty() {
                return Err(format!("{:?}", report.findings));
            }
        }
        if files(self.root()) == before { Ok(()) } else { Err("looking changed it".to_owned()) }
    }

    /// A bit is flipped somewhere, and the merge goes on: right, or with a fault that is told. Then all begins anew.
    pub(super) fn flipped(&mut self, seed: u64) -> Result<(), String> {
        let mut random = Random(seed);
        let mut there: Vec<_> = files(self.root()).into_iter().collect();
        there.retain(|(_, bytes)| !bytes.is_empty());
        if there.is_empty() {
            return Ok(());
        }
        let (name, mut bytes) = there.swap_remove(random.below(there.len()));
        let at = random.below(bytes.len());
        bytes[at] ^= 1 << random.below(8);
        std::fs::write(self.root().join(&name), bytes).unwrap();
        let mut who = self.begun.map_or(
            Identity { recipe: self.whole.unwrap_or(0), selection: Strategy::Fused, touched: 0 },
            |(who, _)| who,
        );
        who.touched = self.touched;
        let (settings, out) = (self.settings(who, true), self.root().join("out"));
        let settings =
            Settings { restart: self.begun.is_some_and(|(begun, _)| begun != who), ..settings };
        let scene = &self.scenes[who.recipe];
        let done = scene.run(self.root(), settings, RealDisk, &Heard::default());
        let code = done.map_or_else(|error| error.exit_code(), |_| 0);
        if ![0, 5, 8].contains(&code) {
            return Err(format!(
                "exit code {code} after byte {at} of {} was changed",
                name.display()
            ));
        }
        let found = || match verify(&out, Depth::Full, &Silent, &AtomicBool::new(false)) {
            Ok(report) => !report.findings.is_empty(),
            Err(error) => error.exit_code() == 8,
        };
        let mut all = files(&out);
        all.retain(|name, _| !name.starts_with(".reflow-state"));
        let wrong = all.iter().any(|(name, bytes)| scene.expected.get(name) != Some(bytes));
        if wrong && !found() {
            return Err(format!("nobody tells that byte {at} of {} was changed", name.display()));
        }
        self.dir = scene.place();
        (self.begun, self.whole) = (None, None);
        Ok(())
    }

    /// What a loader would take for a model is one.
    pub(super) fn nothing_half_made(&self) -> Result<(), String> {
        let mut there = files(&self.root().join("out"));
        there.retain(|name, _| !name.starts_with(".reflow-state"));
        let loadable = |name: &std::path::PathBuf| {
            name.ends_with("config.json") || name.to_string_lossy().ends_with("index.json")
        };
        let half =
            if self.scenes[0].inside { there.keys().any(loadable) } else { !there.is_empty() };
        let shards = |files: &Files| -> Files {
            let mut files = files.clone();
            files.retain(|name, _| name.extension().is_some_and(|end| end == "safetensors"));
            files
        };
        let whole = |scene: &Scene| shards(&there) == shards(&scene.expected);
        if half && !self.scenes.iter().any(whole) {
            Err("a loader finds half".to_owned())
        } else {
            Ok(())
        }
    }
}

/// Whether an output is there, whole; staging may be there as well.
fn holds(there: &Files, expected: &Files) -> bool {
    expected.iter().all(|(name, bytes)| there.get(name) == Some(bytes))
        && !there.keys().any(|name| name.starts_with(".reflow-state/model"))
}

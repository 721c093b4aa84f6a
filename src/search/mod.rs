//! Searches for the lambdas, or other settings, whose merge scores best: makes a candidate, has it scored by a program,
//! and decides by that.
//!
//! ```text
//! DIR/work/journal        what was tried, line by line; a search that was stopped goes on behind it
//! DIR/work/components     of the merge whose lambdas are searched
//! DIR/work/findings-KEY   what one scan has found for several merges
//! DIR/work/survey/        what such a scan puts aside on its way
//! DIR/work/candidate/     the candidate under way: one at a time
//! DIR/search.json         what was found, at the end; DIR/trials.svg shows it
//! DIR/best/               the best merge, an output as any other
//! ```

mod candidates;
mod cma;
mod evaluate;
mod grid;
mod journal;
mod linear;
mod picture;
mod trial;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use serde::Serialize;

pub use grid::Axis;
pub use trial::{Outcome, Point, Trial};

use candidates::Candidates;
use cma::Cma;
use evaluate::Ended;
use journal::{Head, Journal};

use crate::engine::sink::{RealDisk, durable};
use crate::error::{Error, IoContext};
use crate::job::{Job, Ties};
use crate::progress::{Event, Progress, Silent};
use crate::recipe::{Recipe, RecipeError, Settings};

/// What is searched, and how.
#[derive(Clone, Debug)]
pub struct Request {
    /// The merge whose settings are searched.
    pub recipe: Recipe,
    /// The program that scores a model: a shell command in which `{model}` stands for its directory.
    pub evaluate: String,
    /// Candidates at most.
    pub budget: usize,
    /// Which candidates.
    pub way: Way,
    /// How long an evaluation may take.
    pub limit: Option<Duration>,
    /// Forget what an earlier attempt has found.
    pub restart: bool,
    /// How merges are run.
    pub settings: Settings,
}

/// Which candidates are tried.
#[derive(Clone, Debug, PartialEq)]
pub enum Way {
    /// Lambdas of each expert, by CMA-ES.
    Evolve {
        /// The least and the greatest lambda.
        bounds: (f64, f64),
        /// Where it starts: one for each expert.
        start: Vec<f64>,
        /// Another seed, another course.
        seed: u64,
    },
    /// All combinations.
    Grid(Vec<Axis>),
}

/// What a search has found.
#[derive(Clone, Debug, Serialize)]
pub struct Found {
    /// Version of the format.
    pub format: &'static str,
    /// The version of reflow.
    pub reflow: &'static str,
    /// What was asked for.
    pub asked: Head,
    /// Names of the experts.
    pub experts: Vec<String>,
    /// All trials, in order.
    pub trials: Vec<Trial>,
    /// The number of the best one, counted from 1.
    pub best: usize,
    /// Where its merge is.
    #[serde(skip)]
    pub place: PathBuf,
}

impl Request {
    fn check(&self) -> Result<(), Error> {
        let wrong = |key: &str, reason: String| {
            Err(RecipeError::Value { key: key.to_owned(), reason }.into())
        };
        if !self.evaluate.contains(evaluate::MODEL) {
            let reason = "it must name {model}, which stands for the directory of a candidate";
            return wrong("--evaluate", reason.to_owned());
        }
        if self.budget == 0 {
            return wrong("--budget", "must be above 0".to_owned());
        }
        if !self.recipe.slices.is_empty() || !self.recipe.modules.is_empty() {
            return wrong("search", "it works on merges of whole models only".to_owned());
        }
        match &self.way {
            Way::Grid(axes) => {
                let points = grid::len(axes);
                if points > self.budget {
                    let reason = format!(
                        "the grid has {points} points; give --budget {points}, or a smaller grid"
                    );
                    return wrong("--budget", reason);
                }
                axes.iter().try_for_each(|axis| axis.check(&self.recipe))?;
            }
            Way::Evolve { bounds: (low, high), start, .. } => {
                let experts = self.recipe.models.len();
                if self.recipe.method.name != "pcb" {
                    let name = self.recipe.method.name;
                    let reason = format!("lambdas are searched for pcb; try --grid for {name}");
                    return wrong("search", reason);
                }
                if start.len() != experts {
                    let reason = format!("{} given for {experts} experts", start.len());
                    return wrong("--init", reason);
                }
                if low >= high || !start.iter().all(|x| (low..=high).contains(&x)) {
                    let reason = format!("{start:?} must lie within the bounds, {low}..{high}");
                    return wrong("--init", reason);
                }
            }
        }
        Ok(())
    }

    fn head(&self) -> Head {
        let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        Head {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            recipe: self.recipe.to_yaml(|path| real(path).display().to_string()),
            evaluate: self.evaluate.clone(),
            way: match &self.way {
                Way::Evolve { bounds: (low, high), start, seed } => {
                    format!("lambdas in {low}..{high} from {start:?}, seed {seed}")
                }
                Way::Grid(axes) => {
                    let axes: Vec<String> = axes.iter().map(ToString::to_string).collect();
                    format!("grid {}", axes.join(" "))
                }
            },
        }
    }
}

/// Runs a search in a directory, or goes on with one.
///
/// # Errors
/// Those of the merges; [`Error::NoScore`] if no evaluation gave one. A failed evaluation is no error.
pub fn run(
    request: &Request,
    dir: &Path,
    progress: &dyn Progress,
    stop: &AtomicBool,
) -> Result<Found, Error> {
    request.check()?;
    let place = dir.join("best");
    // What is wrong with the inputs shows before anything is made.
    let _plan = Job::plan(request.recipe.clone(), request.settings.clone(), Ties::Assume, &Silent)?;
    let work = dir.join("work");
    std::fs::create_dir_all(&work).at("create", &work)?;
    let lock = std::fs::File::create(work.join("lock")).at("lock", &work)?;
    if lock.try_lock().is_err() {
        let holder = "a search".to_owned();
        return Err(Error::Locked { path: work, holder });
    }
    let mut journal = Journal::open(&work, &request.head(), request.restart)?;
    let wanted = match &request.way {
        Way::Grid(axes) => grid::len(axes),
        Way::Evolve { .. } => request.budget,
    };
    // A larger budget goes on with what was finished.
    if dir.join(REPORT).exists() && place.exists() && journal.trials().len() >= wanted {
        return Err(Error::OutputExists { path: dir.to_owned() });
    }
    let candidates = Candidates::new(request, &work);
    if request.restart {
        candidates.clear()?;
        remove(&place)?;
    }
    let mut search = Search { request, journal: &mut journal, candidates, progress, stop, next: 0 };
    match &request.way {
        Way::Grid(axes) => search.grid(axes)?,
        Way::Evolve { bounds, start, seed } => search.evolve(Cma::new(start, *bounds, *seed))?,
    }
    let trials = search.journal.trials().to_vec();
    let best = (trials.iter().enumerate())
        .filter_map(|(k, trial)| Some((trial.outcome.score()?, k)))
        // Of equal ones the first.
        .reduce(|best, other| if other.0 > best.0 { other } else { best });
    let Some((_, best)) = best else {
        let last = trials.last().map_or_else(String::new, |trial| trial.outcome.to_string());
        return Err(Error::NoScore { trials: trials.len(), last });
    };
    search.candidates.publish(&trials[best].point, &place, progress, stop)?;
    let experts = search.candidates.experts();
    let (format, reflow) = ("reflow search 1", env!("CARGO_PKG_VERSION"));
    let asked = request.head();
    let found = Found { format, reflow, asked, experts, trials, best: best + 1, place };
    let picture = picture::draw(&found);
    durable::write_atomic(&RealDisk, &dir.join("trials.svg"), picture.as_bytes())?;
    // Names, numbers and strings: nothing that could fail.
    let mut text = serde_json::to_string_pretty(&found).unwrap_or_default();
    text.push('\n');
    durable::write_atomic(&RealDisk, &dir.join(REPORT), text.as_bytes())?;
    search.candidates.clear()?;
    Ok(found)
}

const REPORT: &str = "search.json";

struct Search<'a> {
    request: &'a Request,
    journal: &'a mut Journal,
    candidates: Candidates<'a>,
    progress: &'a dyn Progress,
    stop: &'a AtomicBool,
    /// The number of the trial to come.
    next: usize,
}

impl Search<'_> {
    fn grid(&mut self, axes: &[Axis]) -> Result<(), Error> {
        let points = grid::points(axes);
        points.iter().enumerate().try_for_each(|(number, point)| {
            self.trial(point.clone(), &points[number + 1..]).map(drop)
        })
    }

    fn evolve(&mut self, mut cma: Cma) -> Result<(), Error> {
        while self.next < self.request.budget {
            let mut scored = Vec::new();
            for lambdas in cma.ask() {
                if self.next == self.request.budget {
                    return Ok(());
                }
                let outcome = self.trial(Point::of_lambdas(&lambdas), &[])?;
                scored.push((outcome.score().unwrap_or(f64::NEG_INFINITY), lambdas));
            }
            scored.sort_by(|a, b| b.0.total_cmp(&a.0));
            let ranked: Vec<Vec<f64>> = scored.into_iter().map(|(_, lambdas)| lambdas).collect();
            cma.tell(&ranked);
        }
        Ok(())
    }

    /// The outcome of a candidate: from the journal if it was tried, else by trying. Others are known to come.
    fn trial(&mut self, point: Point, coming: &[Point]) -> Result<Outcome, Error> {
        let number = self.next;
        self.next += 1;
        if let Some(known) = self.journal.trials().get(number) {
            if known.point != point {
                return Err(self.journal.differs(number + 1));
            }
            return Ok(known.outcome.clone());
        }
        if let Some(known) = self.journal.trials().iter().find(|trial| trial.point == point) {
            // The same candidate would be the same model.
            let outcome = known.outcome.clone();
            self.record(Trial { point, outcome: outcome.clone(), seconds: 0.0, read: 0 })?;
            return Ok(outcome);
        }
        let (model, read) = self.candidates.make(&point, coming, self.progress, self.stop)?;
        let begin = Instant::now();
        let limit = self.request.limit;
        let outcome = match evaluate::evaluate(&self.request.evaluate, &model, limit, self.stop) {
            Ended::Score(score) => Outcome::Score(score),
            Ended::Failed(why) => Outcome::Failure(why),
            Ended::Stopped => {
                let staging = self.journal.dir().to_owned();
                return Err(Error::Interrupted { staging, terminated: false });
            }
        };
        let seconds = (begin.elapsed().as_secs_f64() * 1e3).round() / 1e3;
        self.record(Trial { point, outcome: outcome.clone(), seconds, read })?;
        Ok(outcome)
    }

    fn record(&mut self, trial: Trial) -> Result<(), Error> {
        let text = format!("trial {} of {}: {trial}", self.next, self.of());
        self.journal.append(trial)?;
        self.progress.event(&Event::Notice { text: &text });
        Ok(())
    }

    fn of(&self) -> usize {
        match &self.request.way {
            Way::Grid(axes) => grid::len(axes),
            Way::Evolve { .. } => self.request.budget,
        }
    }
}

/// Removes a directory of reflow's own, if it is there.
fn remove(dir: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).at("remove", dir),
        _ => Ok(()),
    }
}

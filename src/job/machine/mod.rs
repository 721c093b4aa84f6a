//! Whatever happens to a merge, in any order: runs, kills, power cuts, flipped bits, other recipes, changed inputs.
//!
//! Random sequences of events are played against a model that knows what must come of each: bytes, kind of error,
//! and how far the merge is. Each sequence has a number, and the same number plays the same events again.

mod judge;

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use super::meddler::Meddled;
use super::powerloss;
use super::scene::{Heard, Random, Scene, full_effort};
use super::status::clean;
use crate::engine::sink::RealDisk;
use crate::method::Strategy;
use crate::recipe::{IoRequest, Scope, Settings, WriteRequest};

/// How long a sequence may take, on a machine that is busy with other things.
const LIMIT: Duration = Duration::from_mins(1);

/// What makes a merge the same as another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    recipe: usize,
    selection: Strategy,
    /// How often an input was touched before.
    touched: u64,
}

/// Something that happens.
#[derive(Clone, Copy, Debug)]
enum Event {
    Run { who: Identity, restart: bool },
    Kill { who: Identity, restart: bool, before: usize },
    PowerCut { who: Identity, restart: bool, seed: u64 },
    Flip { seed: u64 },
    Touch,
    Clean,
    Look,
}

/// What the model knows.
struct World<'a> {
    scenes: &'a [Scene],
    dir: tempfile::TempDir,
    random: Random,
    touched: u64,
    /// Whose records there are, and how much they say is done.
    begun: Option<(Identity, f64)>,
    /// Which output is there, whole.
    whole: Option<usize>,
    events: Arc<Mutex<Vec<String>>>,
}

impl World<'_> {
    fn root(&self) -> &Path {
        self.dir.path()
    }

    fn event(&mut self) -> Event {
        let random = &mut self.random;
        let begun = self.begun.map(|(who, _)| who);
        let mut who = begun.unwrap_or(Identity {
            recipe: random.below(self.scenes.len()),
            selection: Strategy::Fused,
            touched: self.touched,
        });
        who.touched = self.touched;
        if random.below(6) == 0 {
            who.recipe = random.below(self.scenes.len());
        }
        if random.below(12) == 0 {
            who.selection = [Strategy::Fused, Strategy::Radix][random.below(2)];
        }
        let restart = random.below(8) == 0;
        match random.below(20) {
            0..3 => Event::Run { who, restart },
            3..11 => Event::Kill { who, restart, before: random.below(260) },
            11..15 => Event::PowerCut { who, restart, seed: random.next() },
            15 => Event::Flip { seed: random.next() },
            16 => Event::Touch,
            17 => Event::Clean,
            _ => Event::Look,
        }
    }

    fn settings(&mut self, who: Identity, restart: bool) -> Settings {
        let random = &mut self.random;
        Settings {
            strategy: who.selection,
            restart,
            threads: Some([1, 2, 3][random.below(3)]),
            memory: Some([64 << 20, 256 << 20][random.below(2)]),
            // Not so large that a layer fits into one: it is merged in one go then, and what was half of it is not
            // taken up.
            tile: Some([256, 500][random.below(2)]),
            io: [IoRequest::Mmap, IoRequest::Pread][random.below(2)],
            write: [WriteRequest::Auto, WriteRequest::Direct][random.below(2)],
            checkpoint: Some([3_000, 6_000, 20_000][random.below(3)]),
            reread: [None, Some(0), Some(3_000)][random.below(3)],
            verify: random.below(4) == 0,
            ..Scene::settings()
        }
    }

    /// Plays one event.
    fn play(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Run { who, restart } => {
                let (settings, heard) = (self.settings(who, restart), Heard::default());
                let scene = &self.scenes[who.recipe];
                let done = scene.run(self.root(), settings, RealDisk, &heard);
                self.expected(who, restart, &heard, done.err().as_ref())?;
            }
            Event::Kill { who, restart, before } => {
                let (settings, heard) = (self.settings(who, restart), Heard::default());
                let disk = Meddled::killed_before(before);
                let done = self.scenes[who.recipe].run(self.root(), settings, disk, &heard);
                match done {
                    // Who is killed while it sweeps up has told so already.
                    Ok(_) => {
                        self.stopped(who, restart, 0.0)?;
                        if self.whole != Some(who.recipe) {
                            return Err("it said that it was done".to_owned());
                        }
                    }
                    Err(error) if error.exit_code() == 7 => self.stopped(who, restart, 0.0)?,
                    Err(error) => self.expected(who, restart, &heard, Some(&error))?,
                }
            }
            Event::PowerCut { who, restart, seed } => {
                let (settings, heard) = (self.settings(who, restart), Heard::default());
                let (scene, mut random) = (&self.scenes[who.recipe], Random(seed));
                let cut = powerloss::cut_once(scene, self.root(), settings, &heard, &mut random);
                match cut {
                    Ok(claim) => self.stopped(who, restart, claim)?,
                    Err(error) => self.expected(who, restart, &heard, Some(&error))?,
                }
            }
            Event::Flip { seed } => return self.flipped(seed),
            Event::Touch => {
                self.touched += 1;
                self.touch();
            }
            Event::Clean => {
                clean(&self.root().join("out")).map_err(|e| e.to_string())?;
                self.begun = None;
            }
            Event::Look => self.look()?,
        }
        self.nothing_half_made()
    }

    /// Changes the time of an input.
    fn touch(&self) {
        let path = self.scenes[0].inputs().join("expert1/model.safetensors");
        let time = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000 + self.touched);
        std::fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    }
}

impl fmt::Debug for World<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "begun {:?}, whole {:?}", self.begun, self.whole)
    }
}

/// Plays one sequence.
fn sequence(scenes: &[Scene], number: u64, events: &Arc<Mutex<Vec<String>>>) -> Result<(), String> {
    events.lock().unwrap().clear();
    let mut random = Random(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let length = 4 + random.below(10);
    let dir = scenes[0].place();
    let events = Arc::clone(events);
    let mut world = World { scenes, dir, random, touched: 0, begun: None, whole: None, events };
    world.touch();
    for _ in 0..length {
        let event = world.event();
        world.events.lock().unwrap().push(format!("{event:?} at {world:?}"));
        world.play(event)?;
    }
    // Whatever it has come to: it can be brought to its end.
    let who = Identity { recipe: 0, selection: Strategy::Fused, touched: world.touched };
    if world.whole.is_some() {
        world.dir = scenes[0].place();
        world.begun = None;
        world.whole = None;
    }
    world.play(Event::Run { who, restart: world.begun.is_some_and(|(begun, _)| begun != who) })
}

/// Plays sequences, and stops at the first that goes wrong or takes too long.
fn whatever_happens(scope: Scope, inside: bool, sequences: u64) {
    let events = Arc::new(Mutex::new(Vec::new()));
    let (tell, told) = mpsc::channel();
    let log = Arc::clone(&events);
    let player = std::thread::spawn(move || {
        let first = Scene::new(scope, inside);
        let scenes = [first.other(|_| ()), first.other(|recipe| recipe.shard_size = 3_000)];
        for number in 0..sequences {
            let done = sequence(&scenes, number, &log);
            let done = done.map_err(|error| format!("{error}, after {:#?}", log.lock().unwrap()));
            if tell.send(done).is_err() {
                return;
            }
        }
    });
    for number in 0..sequences {
        match told.recv_timeout(LIMIT) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => panic!("sequence {number}: {error}"),
            Err(why) => panic!("sequence {number}: {why}, after {:#?}", events.lock().unwrap()),
        }
    }
    player.join().unwrap();
}

fn effort(ordinary: u64) -> u64 {
    if full_effort() { ordinary * 20 } else { ordinary }
}

#[test]
fn whatever_happens_at_model_scope() {
    whatever_happens(Scope::Model, false, effort(60));
}

#[test]
fn whatever_happens_at_layer_scope() {
    whatever_happens(Scope::Layer, false, effort(40));
}

#[test]
fn whatever_happens_while_a_directory_is_filled() {
    whatever_happens(Scope::Model, true, effort(60));
}

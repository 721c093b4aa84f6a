//! A tiny merge, for tests that disturb it: three checkpoints of a few kilobytes, merged in many pieces.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize};

use super::{Job, Report, Ties};
use crate::engine::sink::{RealDisk, Storage};
use crate::error::Error;
use crate::progress::{Event, Progress};
use crate::recipe::{Model, Recipe, Scope, Settings, WriteRequest};

/// Names and sizes: a tensor whose writes are longer than a page, copied ones, several shards.
const TENSORS: [(&str, [usize; 2]); 6] = [
    ("model.embed_tokens.weight", [100, 32]),
    ("model.layers.0.mlp.up_proj.weight", [32, 25]),
    ("model.layers.0.input_layernorm.weight", [1, 32]),
    ("model.layers.1.mlp.up_proj.weight", [32, 25]),
    ("model.layers.1.input_layernorm.weight", [1, 32]),
    ("lm_head.weight", [16, 32]),
];

/// The names of files, with what is in them.
pub(super) type Files = BTreeMap<PathBuf, Vec<u8>>;

/// A merge, and what it gives undisturbed.
pub(super) struct Scene {
    inputs: Arc<tempfile::TempDir>,
    pub(super) recipe: Recipe,
    /// Whether the output directory is there beforehand.
    pub(super) inside: bool,
    /// How output is written where a test follows that.
    pub(super) write: WriteRequest,
    /// Elements of a tile, and bytes of work between two records, where a test follows that.
    pub(super) pieces: (usize, u64),
    pub(super) expected: Files,
    /// The files of components, if they are kept: in `kept`, beside the output.
    pub(super) kept: Option<Files>,
}

/// Elements of a tile, and bytes of work between two records: all units fit in a tile, but the whole model.
const PIECES: (usize, u64) = (4_096, 6_000);
/// The same so that units of layers are streamed, and have records amid them.
pub(super) const SMALL_PIECES: (usize, u64) = (256, 2_500);

/// Where components are kept.
pub(super) const KEPT: &str = "kept";

/// What a run told.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// Bytes that were done when it began, and all.
    started: Mutex<Option<(u64, u64)>>,
    pub(super) cancel: AtomicBool,
}

impl Progress for Heard {
    fn event(&self, event: &Event<'_>) {
        if let Event::Started { bytes_total, bytes_done } = *event {
            // A later start in the same run is a part being made again.
            self.started.lock().unwrap().get_or_insert((bytes_done, bytes_total));
        }
    }

    fn advance(&self, _bytes: u64) {}
}

impl Heard {
    /// How much of all work had been done before: everything if nothing was left but to publish it.
    pub(super) fn before(&self) -> f64 {
        self.started.lock().unwrap().map_or(1.0, |(done, all)| done as f64 / all as f64)
    }
}

impl Scene {
    pub(super) fn new(scope: Scope, inside: bool) -> Self {
        let inputs = empty_dir();
        let mut random = Random(0x00c0_ffee);
        let base: Vec<Vec<f32>> =
            TENSORS.iter().map(|(_, [a, b])| random.values(a * b, 0.05)).collect();
        write_checkpoint(&inputs.path().join("base"), &base);
        std::fs::write(inputs.path().join("base/tokenizer.json"), r#"{"version":"1.0"}"#).unwrap();
        for k in 1..=2 {
            let expert: Vec<Vec<f32>> = base
                .iter()
                .map(|tensor| {
                    let tau = random.values(tensor.len(), 0.01);
                    tensor.iter().zip(tau).map(|(b, t)| b + t).collect()
                })
                .collect();
            write_checkpoint(&inputs.path().join(format!("expert{k}")), &expert);
        }
        let at = |name: &str| inputs.path().join(name);
        let models = ["expert1", "expert2"].map(|name| Model::new(at(name)).with("lambda", 1.25));
        let method = Recipe::method("pcb", None).unwrap();
        let mut recipe = Recipe::new(method, Some(at("base")), models.to_vec());
        recipe.scope = scope;
        recipe.exclude = vec!["*norm*".to_owned()];
        recipe.shard_size = 5_000;
        let (inputs, write, pieces) = (Arc::new(inputs), WriteRequest::Auto, PIECES);
        let expected = Files::new();
        Self { inputs, recipe, inside, write, pieces, expected, kept: None }.undisturbed()
    }

    /// Another merge of the same inputs.
    pub(super) fn other(&self, change: impl FnOnce(&mut Recipe)) -> Self {
        let mut recipe = self.recipe.clone();
        change(&mut recipe);
        let inputs = Arc::clone(&self.inputs);
        let (inside, write, pieces) = (self.inside, self.write, self.pieces);
        let expected = Files::new();
        Self { inputs, recipe, inside, write, pieces, expected, kept: None }.undisturbed()
    }

    /// A merge that keeps components.
    pub(super) fn with_components(scope: Scope, inside: bool) -> Self {
        Self { kept: Some(Files::new()), ..Self::new(scope, inside) }.undisturbed()
    }

    /// EMR-Merging of the same inputs.
    pub(super) fn unified(inside: bool) -> Self {
        Self::new(Scope::Model, inside).other(|recipe| {
            recipe.method = Recipe::method("emr", None).unwrap();
            let at = |model: &Model| Model::new(model.path.clone());
            recipe.models = recipe.models.iter().map(at).collect();
        })
    }

    /// With what it gives undisturbed.
    fn undisturbed(mut self) -> Self {
        let dir = self.place();
        self.run(dir.path(), Self::settings(), RealDisk, &Heard::default()).unwrap();
        self.expected = files(&dir.path().join("out"));
        self.kept = self.kept.map(|_| files(&dir.path().join(KEPT)));
        drop(dir);
        self
    }

    /// Where the inputs are.
    pub(super) fn inputs(&self) -> &Path {
        self.inputs.path()
    }

    /// An empty directory. One at a time where components are kept: their path is a part of what a merge is.
    pub(super) fn root(&self) -> tempfile::TempDir {
        match self.kept {
            None => empty_dir(),
            Some(_) => tempfile::Builder::new()
                .prefix("place")
                .rand_bytes(0)
                .tempdir_in(self.inputs())
                .unwrap(),
        }
    }

    /// A place for an output.
    pub(super) fn place(&self) -> tempfile::TempDir {
        let dir = self.root();
        if self.inside {
            std::fs::create_dir(dir.path().join("out")).unwrap();
        }
        dir
    }

    /// In one thread and small pieces.
    pub(super) fn settings() -> Settings {
        Settings {
            threads: Some(1),
            memory: Some(64 << 20),
            tile: Some(PIECES.0),
            checkpoint: Some(PIECES.1),
            ..Settings::default()
        }
    }

    pub(super) fn job(&self, settings: Settings) -> Job {
        let go_on = AtomicBool::new(false);
        let recipe = self.recipe.clone();
        Job::plan(recipe, settings, Ties::Compare(&go_on), &Heard::default()).unwrap()
    }

    /// Merges into `out` below `root`, on a disk.
    pub(super) fn run(
        &self,
        root: &Path,
        settings: Settings,
        storage: impl Storage + 'static,
        heard: &Heard,
    ) -> Result<Report, Error> {
        let components = self.kept.as_ref().map(|_| root.join(KEPT));
        let settings = Settings { components, ..settings };
        let mut job = self.job(settings);
        job.storage = Box::new(storage);
        job.merge(&root.join("out"), heard, &heard.cancel)
    }

    /// Demands that the output is there, whole, and nothing beside it.
    pub(super) fn finished(&self, root: &Path) -> Result<(), String> {
        let kept = self.kept.as_ref().map(|kept| (KEPT, kept));
        for (dir, expected) in std::iter::once(("out", &self.expected)).chain(kept) {
            let found = files(&root.join(dir));
            let names = found.keys().chain(expected.keys());
            let mut differ: Vec<_> = names.filter(|n| found.get(*n) != expected.get(*n)).collect();
            differ.dedup();
            if !differ.is_empty() {
                return Err(format!("other bytes in {differ:?} of {dir}"));
            }
        }
        let (beside, due) =
            (std::fs::read_dir(root).unwrap().count(), 1 + usize::from(kept.is_some()));
        if beside == due { Ok(()) } else { Err(format!("{beside} names where {due} should be")) }
    }
}

fn write_checkpoint(dir: &Path, tensors: &[Vec<f32>]) {
    std::fs::create_dir(dir).unwrap();
    let stored: Vec<Vec<u8>> = (tensors.iter())
        .map(|values| {
            values.iter().flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes()).collect()
        })
        .collect();
    let views = TENSORS.iter().zip(&stored).map(|((name, [a, b]), bytes)| {
        let shape = if *a == 1 { vec![*b] } else { vec![*a, *b] };
        (*name, TensorView::new(Dtype::BF16, shape, bytes).unwrap())
    });
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    std::fs::write(dir.join("model.safetensors"), serialize(views, Some(metadata)).unwrap())
        .unwrap();
    std::fs::write(
        dir.join("config.json"),
        r#"{"model_type":"llama","tie_word_embeddings":false}"#,
    )
    .unwrap();
}

/// In memory, where there is such a place.
pub(super) fn empty_dir() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    tempfile::TempDir::new_in(place).unwrap()
}

/// All files below a directory.
pub(super) fn files(root: &Path) -> Files {
    let mut found = Files::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for path in std::fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path())
        {
            if path.is_dir() {
                todo.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap().to_owned();
                found.insert(name, std::fs::read(path).unwrap());
            }
        }
    }
    found
}

/// Whether tests are to look everywhere, however long that takes: `REFLOW_EFFORT=full`.
pub(super) fn full_effort() -> bool {
    std::env::var_os("REFLOW_EFFORT").is_some_and(|effort| effort == "full")
}

/// Reproducible numbers.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n
    }

    /// Any number but 0.
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn values(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| scale * (self.below(20_001) as f32 / 10_000.0 - 1.0)).collect()
    }
}

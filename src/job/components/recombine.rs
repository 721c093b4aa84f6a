//! From components and a base to the job that makes an output of them: the plan of the merge they come from, in which
//! shares stand for the experts.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{Components, Names, StoredFile, StoredInput, StoredShares, StoredTensor, StoredTie};
use crate::checkpoint::{Catalog, DType, OpenOptions, ShardFile, TensorInfo};
use crate::engine::source::InputFile;
use crate::engine::{Frames, Stored};
use crate::error::{Error, IoContext};
use crate::job::Job;
use crate::patience::patiently;
use crate::plan::tied::{self, Candidate, Tie};
use crate::plan::{Action, Beside, Inputs, Plan, Segment};
use crate::recipe::{Recipe, RecipeError, Setting};

/// The parameter that differs from output to output.
const LAMBDA: &str = "lambda";
/// Bytes at each end of a tensor that tell one base from another.
const SAMPLE: u64 = 4096;

/// What a job reads instead of experts.
pub(in crate::job) struct Recombined {
    pub(in crate::job) frames: Frames,
    /// The file of the frames.
    pub(in crate::job) file: ShardFile,
    /// What the recipe says more.
    pub(in crate::job) note: String,
}

/// What a job merges, for its components; sizes and tables are left open.
///
/// # Errors
/// If the base cannot be read.
pub(super) fn described(job: &Job) -> Result<Components, Error> {
    let mut inputs = job.inputs.catalogs();
    let base = inputs.next();
    let stored = |catalog: &Catalog| match base {
        Some(base) => input(base, catalog),
        None => input(catalog, catalog),
    };
    let recipe = Recipe { coefficients: None, ..job.recipe.clone() };
    let given = recipe.parameters.iter().map(|(name, _)| name.to_owned());
    let tie = |tie: &Tie| {
        let (candidate, alias) = match tie {
            Tie::Alias(candidate) => (candidate, true),
            Tie::Untied(candidate) => (candidate, false),
        };
        StoredTie { name: candidate.name.clone(), of: candidate.of.clone(), alias }
    };
    Ok(Components {
        format: String::new(),
        blake3: String::new(),
        reflow: String::new(),
        plan: String::new(),
        given: given.filter(|name| name != LAMBDA).collect(),
        recipe: job.published(&recipe),
        labels: job.plan.labels.clone(),
        ties: job.plan.ties.iter().map(tie).collect(),
        base: String::new(),
        base_sample: base.map_or_else(|| Ok(String::new()), sample)?,
        inputs: job.inputs.catalogs().map(stored).collect(),
        bytes: 0,
        sha256: String::new(),
        rescalers: Vec::new(),
        tensors: Vec::new(),
    })
}

/// What a checkpoint has that the base has not, and its files.
fn input(base: &Catalog, catalog: &Catalog) -> StoredInput {
    let file = |file: &ShardFile| StoredFile {
        name: file.name.clone(),
        bytes: file.len,
        header_sha256: file.header_sha256.clone(),
    };
    let as_base = |tensor: &TensorInfo| {
        base.get(&tensor.name).is_some_and(|own| {
            (&own.dtype, &own.shape, own.len) == (&tensor.dtype, &tensor.shape, tensor.len)
        })
    };
    let other = catalog.tensors.iter().filter(|tensor| !as_base(tensor));
    let lacks = base.tensors.iter().filter(|tensor| catalog.get(&tensor.name).is_none());
    StoredInput {
        files: catalog.files.iter().map(file).collect(),
        tensors: other
            .map(|tensor| StoredTensor {
                name: tensor.name.to_string(),
                dtype: tensor.dtype.to_string(),
                shape: tensor.shape.to_vec(),
                bytes: tensor.len,
            })
            .collect(),
        lacks: lacks.map(|tensor| tensor.name.to_string()).collect(),
    }
}

/// A hash of the ends of all tensors: headers of a base and of its fine-tunes are the same.
fn sample(base: &Catalog) -> Result<String, Error> {
    let mut hasher = blake3::Hasher::new();
    let files =
        base.files.iter().map(|file| patiently(|| File::open(&file.path)).at("open", &file.path));
    let files: Vec<File> = files.collect::<Result<_, Error>>()?;
    let mut buffer = vec![0; SAMPLE as usize];
    for tensor in &base.tensors {
        let len = tensor.len.min(SAMPLE);
        let at = tensor.file as usize;
        let (Some(file), Some(shard)) = (files.get(at), base.files.get(at)) else { continue };
        for offset in [tensor.offset, tensor.offset + tensor.len - len] {
            let buffer = &mut buffer[..len as usize];
            file.read_exact_at(buffer, offset).at("read", &shard.path)?;
            hasher.update(buffer);
        }
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// What is to be made of components.
pub(in crate::job) enum Wanted<'a> {
    /// A merge with these lambdas.
    Lambdas(&'a [f64]),
    /// The model of one task.
    Task {
        /// Its expert.
        expert: usize,
        /// What it is made with, as text: a line of the recipe.
        note: String,
    },
}

/// What [`Job::plan`] has before it plans.
pub(in crate::job) struct Prepared {
    pub(in crate::job) recipe: Recipe,
    pub(in crate::job) inputs: Inputs,
    pub(in crate::job) ties: Vec<Tie>,
    pub(in crate::job) beside: Beside,
    pub(in crate::job) file: ShardFile,
}

/// Opens components and base, and puts the recipe together with these lambdas.
///
/// # Errors
/// If they do not belong together, or are damaged.
pub(in crate::job) fn prepare(
    dir: &Path,
    components: &Components,
    base: &Path,
    wanted: &Wanted<'_>,
) -> Result<Prepared, Error> {
    let recipe = match wanted {
        Wanted::Lambdas(lambdas) => recipe(dir, components, lambdas)?,
        Wanted::Task { .. } => Recipe::published(&told_in(dir, components), &components.recipe)?,
    };
    if recipe.models.len() != components.experts() {
        let (path, models) = (told_in(dir, components), recipe.models.len());
        let experts = components.experts();
        let what = format!("its recipe has {models} models, and its tables are of {experts}");
        return Err(Error::Damaged { path, what });
    }
    let file = data_file(dir, components)?;
    let ties = components.ties.iter().map(|tie| {
        let candidate = Candidate { name: tie.name.clone(), of: tie.of.clone() };
        if tie.alias { Tie::Alias(candidate) } else { Tie::Untied(candidate) }
    });
    let ties: Vec<Tie> = ties.collect();
    let base = open_base(&recipe, components, base, &ties)?;
    let experts = components.inputs.iter().skip(1).map(|stored| expert(&base, stored));
    let experts: Vec<Catalog> = experts.collect();
    let catalogs = std::iter::once(base).chain(experts).collect();
    let inputs = Inputs::new(catalogs, true, 0, components.labels.clone());
    let beside = Beside::Frames { largest: components.largest() };
    Ok(Prepared { recipe, inputs, ties, beside, file })
}

fn recipe(dir: &Path, components: &Components, lambdas: &[f64]) -> Result<Recipe, Error> {
    let wrong = |reason: String| RecipeError::Value { key: "--lambda".to_owned(), reason };
    let experts = components.experts();
    if lambdas.len() != experts {
        let names = components.labels[1..].join(", ");
        let given = lambdas.len();
        let reason = format!("{given} given for {experts} experts; give one for each: {names}");
        return Err(wrong(reason).into());
    }
    if let Some(lambda) = lambdas.iter().find(|&&lambda| !(lambda as f32).is_finite()) {
        return Err(wrong(format!("{lambda} is no number that f32 can hold")).into());
    }
    let mut recipe = Recipe::published(&told_in(dir, components), &components.recipe)?;
    let given = recipe.parameters.clone();
    recipe.parameters = crate::recipe::Parameters::default();
    for (name, setting) in
        given.iter().filter(|(name, _)| components.given.iter().any(|g| g == name))
    {
        recipe.parameters.set(name, setting.clone());
    }
    for (model, &lambda) in recipe.models.iter_mut().zip(lambdas) {
        model.parameters.set(LAMBDA, Setting::number(lambda));
    }
    Ok(recipe)
}

/// The file that says what is in a directory.
fn told_in(dir: &Path, components: &Components) -> PathBuf {
    dir.join(Names::of(components.kind()).file)
}

fn data_file(dir: &Path, components: &Components) -> Result<ShardFile, Error> {
    let names = Names::of(components.kind());
    let path = names.data_in(dir);
    let meta = std::fs::metadata(&path).at("open", &path)?;
    if !meta.is_file() || meta.len() != components.bytes {
        let what = format!("it has {} bytes and not {}", meta.len(), components.bytes);
        return Err(Error::Damaged { path, what });
    }
    let InputFile { path, len, inode, mtime_ns } = InputFile::record(&path).at("examine", &path)?;
    let (name, header_sha256) = (names.data.to_owned(), components.blake3.clone());
    Ok(ShardFile { path, name, len, mtime_ns, inode, header_len: 0, header_sha256 })
}

/// Opens the base and demands that it is the one that was merged.
fn open_base(
    recipe: &Recipe,
    components: &Components,
    path: &Path,
    ties: &[Tie],
) -> Result<Catalog, Error> {
    let options = OpenOptions { lenient: recipe.lenient, ..OpenOptions::default() };
    let base = Catalog::open(path, options)?;
    let wrong = |what: &str| {
        let reason = format!(
            "{}: {what} than the base that {} was made with, {}",
            path.display(),
            Names::of(components.kind()).data,
            components.labels[0]
        );
        RecipeError::Value { key: "--base".to_owned(), reason }
    };
    let same = |(file, stored): (&ShardFile, &StoredFile)| {
        (file.len, &file.header_sha256) == (stored.bytes, &stored.header_sha256)
    };
    let stored = &components.inputs[0].files;
    if base.files.len() != stored.len() || !base.files.iter().zip(stored).all(same) {
        return Err(wrong("it has other files, tensors or types").into());
    }
    let mut seen = Inputs::new(vec![base], true, 0, Vec::new());
    ties.iter().for_each(|tie| tied::apply(&mut seen, tie));
    let base = seen.catalogs.swap_remove(0);
    if sample(&base)? != components.base_sample {
        return Err(wrong("its tensors hold other numbers").into());
    }
    Ok(base)
}

/// The catalog of an expert that is not there any more.
fn expert(base: &Catalog, stored: &StoredInput) -> Catalog {
    let mut tensors: Vec<TensorInfo> = base.tensors.clone();
    tensors.retain(|tensor| !stored.lacks.iter().any(|name| **name == *tensor.name));
    for other in &stored.tensors {
        tensors.retain(|tensor| *tensor.name != *other.name);
        tensors.push(TensorInfo {
            name: other.name.as_str().into(),
            dtype: DType::parse(&other.dtype),
            shape: other.shape.clone().into(),
            file: 0,
            offset: 0,
            len: other.bytes,
            adapted: None,
        });
    }
    // Nobody reads them.
    tensors.iter_mut().for_each(|tensor| (tensor.file, tensor.offset) = (0, 0));
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let file = |file: &StoredFile| ShardFile {
        path: PathBuf::new(),
        name: file.name.clone(),
        len: file.bytes,
        mtime_ns: 0,
        inode: 0,
        header_len: 0,
        header_sha256: file.header_sha256.clone(),
    };
    Catalog {
        root: base.root.clone(),
        adapter: None,
        files: stored.files.iter().map(file).collect(),
        tensors,
        config: None,
        warnings: Vec::new(),
    }
}

/// Where the frames of each segment of a plan lie.
///
/// # Errors
/// [`Error::Damaged`] if the plan is not that of the components.
pub(in crate::job) fn frames(
    components: &Components,
    plan: &Plan,
    base_files: &[ShardFile],
    file: &ShardFile,
    wanted: &Wanted<'_>,
) -> Result<Frames, Error> {
    let same = |(segment, shares): (&&Segment, &StoredShares)| {
        *plan.tensors[segment.tensor as usize].name == *shares.name
            && (segment.first, segment.elements) == (shares.first, shares.elements)
            && shares.copied == (segment.action != Action::Merge)
    };
    let (tables, framed) = (&components.tensors, plan.framed());
    if framed.len() != tables.len() || !framed.iter().zip(tables).all(same) {
        let what = "its tensors are not those that base and recipe give".to_owned();
        return Err(Error::Damaged { path: file.path.clone(), what });
    }
    let stored = (0..).zip(&plan.segments).filter_map(|(index, segment)| {
        let number = segment.frames?;
        let (shares, base) = (tables.get(number as usize)?, segment.sources.first()?);
        let path = base_files.get(base.file as usize)?.path.clone();
        let base = (path, shares.name.clone(), base.offset);
        Some((index, Stored { number, starts: shares.starts(), base }))
    });
    Ok(Frames {
        path: file.path.clone(),
        file: base_files.len() as u32,
        form: components.form(),
        only: match wanted {
            Wanted::Lambdas(_) => None,
            Wanted::Task { expert, .. } => Some(*expert),
        },
        segments: stored.collect(),
    })
}

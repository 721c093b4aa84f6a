//! The open files of a source: as few as the limit on descriptors demands, most recent first.

use std::sync::{Arc, Weak};

use crate::patience::Patience;

use super::file::{OpenFile, Opening};
use super::{ByteRange, InputFile, SourceError};

/// All input files of a pass, of which the most recently used are open.
pub(super) struct Files {
    inputs: Vec<Arc<InputFile>>,
    opening: Opening,
    /// Least recently used first. A few dozen entries at most, so searched from the end.
    open: Vec<(u32, Arc<OpenFile>)>,
    /// Every file that is open, also those that only tiles keep open: none is opened twice.
    alive: Vec<Weak<OpenFile>>,
    max_open: usize,
    /// How many of the most recent files stay open, if that many may be.
    warm: usize,
}

impl Files {
    pub(super) fn new(inputs: Vec<InputFile>, opening: Opening, max_open: usize) -> Self {
        let inputs: Vec<_> = inputs.into_iter().map(Arc::new).collect();
        let alive = inputs.iter().map(|_| Weak::new()).collect();
        Self { inputs, opening, open: Vec::new(), alive, max_open: max_open.max(1), warm: 2 }
    }

    pub(super) fn inputs(&self) -> &[Arc<InputFile>] {
        &self.inputs
    }

    /// The open file that a range lies in, opened (and checked against the plan) if need be.
    pub(super) fn of(&mut self, range: &ByteRange) -> Result<Arc<OpenFile>, SourceError> {
        if let Some(at) = self.open.iter().rposition(|(file, _)| *file == range.file) {
            let found = self.open.remove(at);
            let file = Arc::clone(&found.1);
            self.open.push(found);
            check_range(&file.input, range)?;
            return Ok(file);
        }
        let input = self
            .inputs
            .get(range.file as usize)
            .ok_or(SourceError::UnknownFile { file: range.file, count: self.inputs.len() })?;
        check_range(input, range)?;
        let input = Arc::clone(input);
        while self.open.len() >= self.max_open {
            self.open.remove(0);
        }
        let known = self.alive.get(range.file as usize).and_then(Weak::upgrade);
        let file = match known {
            Some(file) => file,
            None => Arc::new(self.open_new(&input)?),
        };
        if let Some(alive) = self.alive.get_mut(range.file as usize) {
            *alive = Arc::downgrade(&file);
        }
        self.open.push((range.file, Arc::clone(&file)));
        Ok(file)
    }

    /// Bytes of blocks that nobody holds yet and that these ranges lie in; `None` if more files would be open for them than may.
    pub(super) fn anew(&self, ranges: &[ByteRange]) -> Option<u64> {
        let alive = |file: u32| self.alive.get(file as usize).and_then(Weak::upgrade);
        let mut open = self.alive.iter().filter(|file| file.strong_count() > 0).count();
        let mut bytes = 0;
        for (i, range) in ranges.iter().enumerate().filter(|(_, range)| range.len > 0) {
            let block = self.opening.grain.block();
            bytes += if let Some(file) = alive(range.file) {
                file.anew(range.offset, range.len as u64)
            } else {
                open += usize::from(ranges[..i].iter().all(|other| other.file != range.file));
                (range.len as u64).next_multiple_of(block) + block
            };
        }
        (open <= self.max_open).then_some(bytes)
    }

    fn open_new(&mut self, input: &Arc<InputFile>) -> Result<OpenFile, SourceError> {
        let patience = Patience::new();
        loop {
            match OpenFile::open(Arc::clone(input), &self.opening) {
                Err(SourceError::Open { source, .. })
                    if matches!(source.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
                        && !self.open.is_empty() =>
                {
                    self.open.remove(0);
                }
                Err(SourceError::Open { source, .. }) if patience.again(&source) => {}
                done => return done,
            }
        }
    }

    /// Closes all but the most recent files. `batch` is the number of ranges read together.
    ///
    /// An open file keeps the block under its cursor and some page tables. Tensors that live in an odd
    /// shard make the reader jump to and fro; two more than a batch stay open for that.
    pub(super) fn close_idle(&mut self, batch: usize) {
        self.warm = self.warm.max(batch + 2);
        let idle = self.open.len().saturating_sub(self.warm);
        self.open.drain(..idle);
    }

    /// Closes all files that no tile uses; the others when their last tile is dropped.
    pub(super) fn close(&mut self) {
        self.open.clear();
    }

    #[cfg(test)]
    pub(super) fn open_count(&self) -> usize {
        self.open.len()
    }
}

fn check_range(input: &InputFile, range: &ByteRange) -> Result<(), SourceError> {
    let end = range.offset.checked_add(range.len as u64);
    if end.is_some_and(|end| end <= input.len) {
        return Ok(());
    }
    Err(SourceError::OutOfRange {
        path: input.path.clone(),
        offset: range.offset,
        len: range.len,
        file_len: input.len,
    })
}

/// How many input files may be open: half of the limit on descriptors, the rest is for outputs,
/// journal and locks.
pub fn max_open_files() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(512, |n| usize::try_from(n / 2).unwrap_or(512).clamp(4, 512))
}

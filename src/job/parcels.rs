//! What folds put aside on the way, kept in the staging directory until their unit is merged.
//!
//! ```text
//! state/kept-U-S-E    parcels of stage S of unit U, handed out in the piece that began at element E:
//!                     length (4 bytes, little-endian), BLAKE3 (32 bytes), parcel (zstd); and so on
//! ```
//! A piece that was not finished has no record in the journal; its file is thrown away.

use std::cell::Cell;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::engine::Keep;
use crate::engine::sink::{ReadOnce, SinkError, Storage, StoredFile, Trail, durable};
use crate::error::{Error, IoContext};
use crate::method::{Lost, Parcels};
use crate::patience::patiently;

const PREFIX: &str = "kept-";
/// The largest parcel, packed: far above any real one.
const LARGEST: u32 = 1 << 30;

/// The parcels of a staging directory.
pub(super) struct Shelf<'a> {
    storage: &'a dyn Storage,
    dir: PathBuf,
}

/// Which parcels: of a unit, a stage, a piece by its first element.
pub(super) type Piece = (u32, u32, u64);

impl<'a> Shelf<'a> {
    /// Those in a state directory.
    pub(super) fn new(storage: &'a dyn Storage, dir: &Path) -> Self {
        Self { storage, dir: dir.to_owned() }
    }

    /// Whether `name` is the name of a file of parcels.
    pub(super) fn owns(name: &str) -> bool {
        piece(name).is_some()
    }

    /// Takes the parcels of a piece that begins.
    pub(super) fn begin(&self, piece: Piece) -> Bundle<'_> {
        Bundle { shelf: self, piece, file: Mutex::default() }
    }

    /// The parcels of a stage.
    ///
    /// # Errors
    /// What the disk says.
    pub(super) fn of(&self, unit: u32, stage: u32) -> Result<Stored, Error> {
        let pieces = self.pieces().at("list", &self.dir)?.into_iter();
        let ours = pieces.filter(|&(u, s, _)| (u, s) == (unit, stage));
        let mut paths: Vec<PathBuf> = ours.map(|piece| self.path(piece)).collect();
        paths.sort();
        Ok(Stored { paths, failed: Cell::default() })
    }

    /// Removes parcels that nobody will ask for.
    pub(super) fn forget(&self, useless: impl Fn(Piece) -> bool) {
        // What is left is removed with the staging directory.
        let pieces = self.pieces().unwrap_or_default();
        for piece in pieces.into_iter().filter(|&piece| useless(piece)) {
            let _litter = self.storage.remove_file(&self.path(piece));
        }
    }

    fn pieces(&self) -> io::Result<Vec<Piece>> {
        let entries = patiently(|| std::fs::read_dir(&self.dir))?;
        let pieces =
            entries.map(|entry| entry.map(|entry| piece(&entry.file_name().to_string_lossy())));
        pieces.filter_map(Result::transpose).collect()
    }

    fn path(&self, (unit, stage, from): Piece) -> PathBuf {
        self.dir.join(format!("{PREFIX}{unit}-{stage}-{from}"))
    }
}

fn piece(name: &str) -> Option<Piece> {
    let mut parts = name.strip_prefix(PREFIX)?.split('-');
    let piece =
        (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    parts.next().is_none().then_some(piece)
}

/// The parcels of one piece, as they come.
pub(super) struct Bundle<'a> {
    shelf: &'a Shelf<'a>,
    piece: Piece,
    file: Mutex<Option<Open>>,
}

struct Open {
    path: PathBuf,
    file: Box<dyn StoredFile>,
    end: u64,
    trail: Trail,
}

impl Bundle<'_> {
    fn file(&self) -> MutexGuard<'_, Option<Open>> {
        // After a panic of another worker the pass fails, and the file is thrown away.
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> Result<Open, SinkError> {
        let (storage, path) = (self.shelf.storage, self.shelf.path(self.piece));
        // What an earlier attempt at this piece has left.
        match storage.remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(SinkError::of("remove", &path, 0, e));
            }
            _ => {}
        }
        let file = storage.create(&path).map_err(|e| SinkError::of("create", &path, 0, e))?;
        Ok(Open { path, file, end: 0, trail: Trail::default() })
    }

    /// Throws all parcels away: nobody will ask for them.
    pub(super) fn discard(self) {
        if let Some(Open { path, file, .. }) = self.file().take() {
            drop(file);
            // What is left is removed with the staging directory.
            let _litter = self.shelf.storage.remove_file(&path);
        }
    }

    /// Makes all parcels durable, before the record about the piece.
    ///
    /// # Errors
    /// What the disk says.
    pub(super) fn seal(self) -> Result<(), SinkError> {
        let Some(Open { path, file, end, .. }) = self.file().take() else { return Ok(()) };
        file.sync().map_err(|e| SinkError::sync(&path, end, e))?;
        // Read once more at the end of the pass; until then the memory is of more use elsewhere.
        file.drop_cache((0, end));
        durable::sync_dir(self.shelf.storage, &self.shelf.dir)
    }
}

impl Keep for Bundle<'_> {
    fn keep(&self, parcel: &[u8]) -> Result<(), SinkError> {
        let packed = zstd::encode_all(parcel, 1)
            .map_err(|e| SinkError::of("compress", &self.shelf.path(self.piece), 0, e))?;
        let mut frame = (packed.len() as u32).to_le_bytes().to_vec();
        frame.extend(blake3::hash(&packed).as_bytes());
        frame.extend(packed);
        let mut file = self.file();
        let open = match &mut *file {
            Some(open) => open,
            none => none.insert(self.open()?),
        };
        durable::write_fully(&*open.file, &open.path, open.end, &frame)?;
        open.end += frame.len() as u64;
        let grown = open.trail.grow(&*open.file, open.end);
        grown.map_err(|e| SinkError::of("write", &open.path, 0, e))
    }
}

/// Files of parcels of one stage.
pub(super) struct Stored {
    paths: Vec<PathBuf>,
    /// What the disk said when one could not be read.
    failed: Cell<Option<Error>>,
}

impl Stored {
    /// What kept parcels from being seen, if it was the disk: they may all be sound. Otherwise those that
    /// were lost are damaged or gone.
    pub(super) fn failure(self) -> Option<Error> {
        self.failed.into_inner()
    }
}

impl Parcels for Stored {
    fn visit(&self, see: &mut dyn FnMut(&[u8])) -> Result<(), Lost> {
        self.paths.iter().try_for_each(|path| {
            visit_file(path, see).map_err(|source| {
                let reason = format!("{}: {source}", path.display());
                // Only the system gives its errors numbers.
                if source.raw_os_error().is_some() && source.kind() != io::ErrorKind::NotFound {
                    let path = path.clone();
                    self.failed.set(Some(Error::Io { operation: "read", path, source }));
                }
                Lost { reason }
            })
        })
    }
}

fn visit_file(path: &Path, see: &mut dyn FnMut(&[u8])) -> io::Result<()> {
    let damaged = || io::Error::other("damaged");
    let mut file = BufReader::with_capacity(1 << 18, ReadOnce::open(path)?);
    loop {
        let mut len = [0; 4];
        // The end of the file is the end of the last parcel; counts tell if one is missing.
        if patiently(|| file.read(&mut len[..1]))? == 0 {
            return Ok(());
        }
        file.read_exact(&mut len[1..])?;
        let len = u32::from_le_bytes(len);
        let (mut claimed, mut packed) = ([0; 32], Vec::new());
        file.read_exact(&mut claimed)?;
        if len > LARGEST {
            return Err(damaged());
        }
        let read = (&mut file).take(len.into()).read_to_end(&mut packed)?;
        if read != len as usize || *blake3::hash(&packed).as_bytes() != claimed {
            return Err(damaged());
        }
        see(&zstd::decode_all(&*packed)?);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::sink::RealDisk;

    fn all(shelf: &Shelf<'_>, unit: u32, stage: u32) -> Result<Vec<Vec<u8>>, Lost> {
        let mut parcels = Vec::new();
        shelf.of(unit, stage).unwrap().visit(&mut |parcel| parcels.push(parcel.to_vec()))?;
        Ok(parcels)
    }

    #[test]
    fn parcels_come_back_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(&RealDisk, dir.path());
        for from in [0, 70] {
            let bundle = shelf.begin((1, 4, from));
            bundle.keep(&[7; 5000]).unwrap();
            bundle.keep(&[from as u8; 3]).unwrap();
            bundle.seal().unwrap();
        }
        shelf.begin((1, 5, 0)).seal().unwrap();
        assert_eq!(
            all(&shelf, 1, 4).unwrap(),
            [vec![7; 5000], vec![0; 3], vec![7; 5000], vec![70; 3]]
        );
        assert!(all(&shelf, 1, 5).unwrap().is_empty());
        let path = shelf.path((1, 4, 70));
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            std::fs::write(&path, flipped).unwrap();
            assert!(all(&shelf, 1, 4).is_err(), "{at}");
        }
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert!(all(&shelf, 1, 4).is_err());
        std::fs::write(&path, &whole).unwrap();
        let stored = shelf.of(1, 4).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(stored.visit(&mut |_| {}).is_err());
        assert!(stored.failure().is_none(), "it is gone, and the disk is well");
        std::fs::create_dir(&path).unwrap();
        let stored = shelf.of(1, 4).unwrap();
        assert!(stored.visit(&mut |_| {}).is_err());
        assert_eq!(stored.failure().map(|error| error.exit_code()), Some(7), "the disk says so");
        std::fs::remove_dir(&path).unwrap();
        std::fs::write(&path, &whole).unwrap();
        shelf.forget(|(_, _, from)| from > 0);
        assert_eq!(all(&shelf, 1, 4).unwrap().len(), 2);
    }

    #[test]
    fn a_piece_that_begins_again_has_only_its_own_parcels() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(&RealDisk, dir.path());
        shelf.begin((0, 1, 9)).keep(b"of an attempt that was killed").unwrap();
        let bundle = shelf.begin((0, 1, 9));
        bundle.keep(b"new").unwrap();
        bundle.seal().unwrap();
        assert_eq!(all(&shelf, 0, 1).unwrap(), [b"new"]);
    }

    #[test]
    fn names_are_exact() {
        assert!(Shelf::owns("kept-0-1-2"));
        for name in ["kept-", "kept-1-2", "kept-1-2-3-4", "kept-a-1-2", "fold-1-2-3"] {
            assert!(!Shelf::owns(name), "{name}");
        }
    }
}

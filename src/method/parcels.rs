//! What stages hand out because they should not hold it, and see again at their end.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::each_part;

/// Parcels are gone or damaged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what a scan has put aside cannot be used: {reason}")]
pub struct Lost {
    /// Why.
    pub reason: String,
}

/// The parcels of one stage, in any order.
pub trait Parcels {
    /// Shows every parcel once.
    ///
    /// # Errors
    /// [`Lost`] if one cannot be read.
    fn visit(&self, see: &mut dyn FnMut(&[u8])) -> Result<(), Lost>;

    /// Whether all that was handed out is there. If not, there was no room for it, and a stage must find what it looks for in
    /// another way.
    fn is_whole(&self) -> bool {
        true
    }

    /// Shows every parcel of one of [several](super::Several) stages, by its number, once.
    ///
    /// # Errors
    /// [`Lost`] if one cannot be read.
    fn visit_part(&self, part: u32, see: &mut dyn FnMut(&[u8])) -> Result<(), Lost> {
        let mut whole = true;
        self.visit(&mut |parcel| {
            let parts = each_part(parcel, |number, parcel| {
                if number == part {
                    see(parcel);
                }
            });
            whole &= parts.is_some();
        })?;
        if whole { Ok(()) } else { Err(Lost { reason: "parcels are damaged".to_owned() }) }
    }
}

/// Parcels in memory: of units that are in memory themselves, and in tests.
#[derive(Debug, Default)]
pub struct Held {
    kept: Mutex<Kept>,
    /// Bytes that may be kept, if they are bounded.
    room: Option<u64>,
}

#[derive(Debug, Default)]
struct Kept {
    parcels: Vec<Vec<u8>>,
    bytes: u64,
    /// Whether there was no room for some.
    overflown: bool,
}

impl Held {
    /// Keeps up to so many bytes, or nothing if there is more.
    pub fn within(bytes: u64) -> Self {
        Self { room: Some(bytes), ..Self::default() }
    }

    /// Takes a parcel.
    pub fn keep(&self, mut parcel: Vec<u8>) {
        parcel.shrink_to_fit();
        let mut kept = self.lock();
        kept.bytes += parcel.capacity() as u64;
        if self.room.is_some_and(|room| kept.bytes > room) {
            kept.overflown = true;
            kept.parcels = Vec::new();
        }
        if !kept.overflown {
            kept.parcels.push(parcel);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Parcels for Held {
    fn visit(&self, see: &mut dyn FnMut(&[u8])) -> Result<(), Lost> {
        self.lock().parcels.iter().for_each(|parcel| see(parcel));
        Ok(())
    }

    fn is_whole(&self) -> bool {
        !self.lock().overflown
    }
}

//! What stages hand out because they should not hold it, and see again at their end.

use std::sync::{Mutex, PoisonError};

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

/// Parcels in memory: of small units, and in tests.
#[derive(Debug, Default)]
pub struct Held(Mutex<Vec<Vec<u8>>>);

impl Held {
    /// Takes a parcel.
    pub fn keep(&self, parcel: Vec<u8>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(parcel);
    }
}

impl Parcels for Held {
    fn visit(&self, see: &mut dyn FnMut(&[u8])) -> Result<(), Lost> {
        let parcels = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        parcels.iter().for_each(|parcel| see(parcel));
        Ok(())
    }
}

//! Where the stages of several merges, over several units, put things aside.

use crate::engine::Keep;
use crate::engine::sink::SinkError;
use crate::error::Error;
use crate::job::parcels::{Bundle, Stored};
use crate::method::{Lost, Parcels, each_part};

/// Where the parcels of each unit go, of each merge.
pub(super) struct Bundles<'a, 's>(pub(super) Vec<&'a [Bundle<'s>]>);

impl Keep for Bundles<'_, '_> {
    fn keep(&self, parcel: &[u8]) -> Result<(), SinkError> {
        let mut kept = Ok(());
        // What is not a parcel of several stages is not kept, and will be missed.
        let _whole = each_part(parcel, |unit, parcel| {
            let Some(bundles) = self.0.get(unit as usize) else { return };
            let _whole = each_part(parcel, |merge, parcel| {
                if let (Ok(()), Some(bundle)) = (&kept, bundles.get(merge as usize)) {
                    kept = bundle.keep(parcel);
                }
            });
        });
        kept
    }
}

/// The parcels of each merge.
pub(super) struct Shelved(pub(super) Vec<Stored>);

impl Shelved {
    pub(super) fn failure(self) -> Option<Error> {
        self.0.into_iter().find_map(Stored::failure)
    }
}

impl Parcels for Shelved {
    fn visit(&self, see: &mut dyn FnMut(&[u8])) -> Result<(), Lost> {
        self.0.iter().try_for_each(|stored| stored.visit(see))
    }

    fn visit_part(&self, part: u32, see: &mut dyn FnMut(&[u8])) -> Result<(), Lost> {
        self.0.get(part as usize).map_or(Ok(()), |stored| stored.visit(see))
    }
}

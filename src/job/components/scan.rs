//! Walks over the frames of a data file, each checked by its hash.

use std::ops::Range;
use std::path::Path;

use crate::checkpoint::components::{FRAME_HEAD, Form, Frame, FrameError, FrameHead};
use crate::engine::sink::{SinkError, read_back};

/// Hands on each frame of a range of a file, with the place of its first byte and all of them.
///
/// # Errors
/// [`SinkError::Damaged`] for the first frame that is not what was written; what the disk says.
pub(super) fn frames(
    path: &Path,
    range: Range<u64>,
    form: Form,
    mut frame: impl FnMut(Frame, u64, &[u8]),
) -> Result<(), SinkError> {
    let (mut at, mut held, mut damaged) = (range.start, Vec::new(), false);
    read_back(path, range.clone(), |piece| {
        held.extend_from_slice(piece);
        let mut done = 0;
        while !damaged && let Some(len) = length(&held[done..], form) {
            let Ok(len) = len else { return damaged = true };
            let Some(stored) = held.get(done..done + len) else { break };
            match Frame::load(stored, form) {
                Ok((found, all)) if all == len => frame(found, at, stored),
                _ => return damaged = true,
            }
            (at, done) = (at + len as u64, done + len);
        }
        held.drain(..done);
    })?;
    if damaged || !held.is_empty() {
        return Err(SinkError::Damaged { path: path.to_owned(), offset: at, len: range.end - at });
    }
    Ok(())
}

/// The length of the frame that begins here, as its first bytes claim: nothing before they are there, an error if no frame
/// is so long.
fn length(held: &[u8], form: Form) -> Option<Result<usize, FrameError>> {
    let head = FrameHead::parse(held.first_chunk::<FRAME_HEAD>()?);
    // What zstd cannot compress it makes a little longer.
    let most = form.largest() + (1 << 16);
    let payload = head.payload as usize;
    Some(if payload <= most { Ok(FRAME_HEAD + payload) } else { Err(FrameError) })
}

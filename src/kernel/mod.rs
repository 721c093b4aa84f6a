//! Numbers only: slices in, slices out. No files, no threads, no policies.

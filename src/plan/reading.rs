//! How inputs are read, and what that costs in memory.

/// How bytes come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// One read-only map per file, populated and dropped by blocks; nothing is copied.
    Mmap,
    /// `pread` through the page cache into reused buffers, page cache dropped by blocks.
    Pread,
    /// `O_DIRECT` into reused, aligned buffers; no page cache.
    Direct,
}

/// The unit in which a pass fills and drops page cache.
///
/// Left alone, the kernel reads ahead by up to `read_ahead_kb` **per file** (8 MiB on the machine
/// measured), in large folios that a later drop may leave behind: 1 MiB windows over four 350 MiB files,
/// each dropped after use, still filled a 1 GiB memory cgroup to the brim. Each grain below turns
/// readahead off and asks for exactly its own blocks.
///
/// Four checkpoints of 2.2 GB in lockstep, 1 MiB tiles, one tile prefetched and three in use, cold cache;
/// ext4, Linux 6.18, two cores; `dd` with four streams read 1.8-2.5 GB/s in the same minutes
/// (`examples/read_lockstep.rs`). The peak is the same in a cgroup of 64 MiB and of 1 GiB:
///
/// | mode, grain | how | GB/s | GB/s without prefetch | cgroup peak |
/// |---|---|---|---|---|
/// | mmap, `Huge` | `MADV_HUGEPAGE` + `MADV_RANDOM`: one fault reads one aligned 2 MiB folio | 2.0-2.6 | 1.9-2.3 | 25-28 MiB |
/// | mmap, `Exact` | `WILLNEED`, which makes 4 KiB folios | 1.1-1.5 | 0.9 | 19-20 MiB |
/// | pread, `Exact` | the same | 1.2-1.3 | 1.0-1.1 | 22 MiB |
/// | direct | no page cache | 1.2 | 1.1 | 18 MiB |
///
/// Small folios cost kernel time: about 0.17 s per GB to start and 0.19 s per GB to drop, against 0.01 s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grain {
    /// Aligned 2 MiB blocks: the cheapest per byte. For sequential passes.
    Huge,
    /// Blocks of 256 KiB in small folios. For sequential passes over many inputs in little memory.
    Exact,
    /// Blocks of 64 KiB in small folios. For samples: little is read beside what is asked for.
    Sparse,
}

impl Grain {
    /// Bytes per block.
    pub fn block(self) -> u64 {
        match self {
            Self::Huge => 2 << 20,
            Self::Exact => 256 << 10,
            Self::Sparse => 64 << 10,
        }
    }

    /// Most page cache that a sequential pass holds: `inputs` files, each with at most `span` bytes
    /// between the oldest tile still in use and the newest one prefetched.
    ///
    /// One block more on either side: ranges begin and end anywhere, and the block under the cursor
    /// stays until the cursor has left it.
    pub fn footprint(self, inputs: u64, span: u64) -> u64 {
        let block = self.block();
        inputs.saturating_mul(span.next_multiple_of(block).saturating_add(block))
    }

    /// The cheapest grain whose footprint for a sequential pass fits into `budget` bytes.
    pub fn fit(inputs: u64, span: u64, budget: u64) -> Self {
        if Self::Huge.footprint(inputs, span) <= budget { Self::Huge } else { Self::Exact }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_budgets_take_small_blocks() {
        let mib = 1 << 20;
        assert_eq!(Grain::Huge.footprint(4, 3 * mib), 24 * mib);
        assert_eq!(Grain::fit(4, 3 * mib, 24 * mib), Grain::Huge);
        assert_eq!(Grain::fit(11, 3 * mib, 40 * mib), Grain::Exact);
        assert_eq!(Grain::Exact.footprint(11, 3 * mib), 11 * (3 * mib + (256 << 10)));
    }
}

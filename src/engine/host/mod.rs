//! What the machine allows: memory, disk, file systems; and what was used of it.

pub mod allocator;
pub mod disk;
pub mod memory;
pub mod usage;

mod cgroup;

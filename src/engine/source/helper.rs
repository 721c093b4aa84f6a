//! A few threads that wait for the disk so that the reading thread need not.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Sender, unbounded};

type Job = Box<dyn FnOnce() + Send>;

/// Threads that run jobs in the order given. Jobs still waiting when this is dropped are not run.
///
/// The queue has no bound of its own: each job belongs to a range that the caller has a permit for.
pub(super) struct Helpers {
    jobs: Option<Sender<Job>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Helpers {
    pub(super) fn start(count: usize) -> io::Result<Self> {
        let (jobs, queue) = unbounded::<Job>();
        let stop = Arc::new(AtomicBool::new(false));
        let mut helpers = Self { jobs: Some(jobs), stop, threads: Vec::with_capacity(count) };
        for i in 0..count {
            let (queue, stop) = (queue.clone(), Arc::clone(&helpers.stop));
            let run = move || {
                for job in queue {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    job();
                }
            };
            let thread = std::thread::Builder::new()
                .name(format!("read-ahead-{i}"))
                // Jobs only make system calls; small stacks keep a tight memory limit honest.
                .stack_size(128 << 10)
                .spawn(run)?;
            helpers.threads.push(thread);
        }
        Ok(helpers)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.threads.is_empty()
    }

    /// Hands a job to the threads; dropped unrun when there are none.
    pub(super) fn submit(&self, job: impl FnOnce() + Send + 'static) {
        if let Some(jobs) = self.jobs.as_ref().filter(|_| !self.threads.is_empty()) {
            // Fails only when every thread is gone; the job's drop then tells whoever waits.
            drop(jobs.send(Box::new(job)));
        }
    }
}

impl Drop for Helpers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.jobs = None;
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

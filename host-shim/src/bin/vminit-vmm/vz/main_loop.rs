//! The main thread's waiting: the run loop, on which the framework lives, instead of [`host_shim::vmm::life::alarm`].

use std::time::Duration;

use dispatch2::DispatchQueue;
use objc2::MainThreadMarker;
use objc2_core_foundation::{CFRunLoop, kCFRunLoopDefaultMode};

use host_shim::vmm::hypervisor::Waker;

/// What "for ever" is to a run loop, in seconds.
const LONG: f64 = 1e9;

/// A waker for the main thread, and its wait: CFRunLoopRunInMode, which serves the main queue too.
pub fn alarm(_main: MainThreadMarker) -> (Waker, impl FnMut(Option<Duration>)) {
    // A job on the main queue, never dispatch_sync: it waits there if the loop does not run, so that no wake-up is lost.
    let waker = Waker::new(|| {
        DispatchQueue::main().exec_async(|| {
            if let Some(run_loop) = CFRunLoop::current() {
                run_loop.stop();
            }
        });
    });
    let wait = |due: Option<Duration>| {
        let seconds = due.map_or(LONG, |due| due.as_secs_f64());
        // SAFETY: a constant of the framework's.
        let mode = unsafe { kCFRunLoopDefaultMode };
        // It returns after each source that was served: a callback is looked at before the next one comes.
        CFRunLoop::run_in_mode(mode, seconds, true);
    };
    (waker, wait)
}

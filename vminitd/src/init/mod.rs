//! PID 1.

/// PID 1's life.
pub fn run(_arguments: &[String]) -> ! {
    loop {
        std::thread::park();
    }
}

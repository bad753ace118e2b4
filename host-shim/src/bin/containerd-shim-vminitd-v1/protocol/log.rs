//! The shim's log: the FIFO `log` in the bundle, which containerd reads and adds to its own.
//!
//! Promises: a reader that is slow or gone costs lines and nothing else. Never: blocks, or writes to stdout or stderr.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use tracing::Level;

/// The FIFO's name in the bundle.
pub const FIFO: &str = "log";

/// Sends what is traced to the FIFO below `bundle`; without one, nowhere.
pub fn begin(bundle: &Path, debug: bool) {
    let level = if debug { Level::DEBUG } else { Level::INFO };
    // For reading too: so the open succeeds without a reader, and a reader that leaves is no broken pipe.
    let fifo = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(bundle.join(FIFO))
        .ok()
        .map(Arc::new);
    let write = move || Lines(fifo.clone());
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(false)
        .with_target(false)
        .with_writer(write)
        .finish();
    // The only one in this process.
    let _ = tracing::subscriber::set_global_default(subscriber);
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
}

/// A line, written at once or not at all: up to PIPE_BUF bytes are never mixed with others', see pipe(7).
struct Lines(Option<Arc<File>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(mut fifo) = self.0.as_deref() {
            let _ = fifo.write(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

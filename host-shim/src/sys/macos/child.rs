//! Child processes: execve(2).

use std::io;

/// In a child, before it executes a program. What std opens is close-on-exec, and the programs that start others link no
/// library that opens descriptors of its own (the one that links Virtualization.framework starts none): so nothing is to
/// be done.
pub(in crate::sys) fn let_none_through() -> io::Result<()> {
    Ok(())
}

//! What an image holds, byte by byte, and what the command says.

/// The default image, what is added to it, what is refused, and that two runs are alike.
mod archive;
/// The command as a user calls it, and the system's own tools on what it writes.
mod command;
/// The four compressions, read back.
mod compression;
/// Reads a newc archive back, strictly.
mod cpio;

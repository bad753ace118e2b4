//! System calls, a file per kernel object: `BorrowedFd` in, `OwnedFd` out.
//!
//! Promises: every function here is safe to call; each doc leads to a man page.
//! Never: decides anything, logs, or keeps state.
#![allow(unsafe_code, reason = "the one place for it")]

pub mod async_fd;
pub mod beneath;
pub mod fcntl;
pub mod fsmount;
pub mod numbers;
pub mod pidfd;
pub mod seqpacket;
pub mod splice;
pub mod stream_socket;

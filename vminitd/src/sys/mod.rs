//! System calls, a file per kernel object: `BorrowedFd` in, `OwnedFd` out.
//!
//! Promises: every function here is safe to call; each doc leads to a man page.
//! Never: decides anything, logs, or keeps state.
#![allow(unsafe_code, reason = "the one place for it")]

pub mod async_fd;
pub mod beneath;
pub mod block;
pub mod bpf;
pub mod capabilities;
pub mod clock;
pub mod clone;
pub mod descriptors;
pub mod device_mapper;
pub mod environment;
pub mod fcntl;
pub mod fsmount;
pub mod input;
pub mod keyring;
pub mod loop_device;
pub mod loopback;
pub mod memory;
pub mod numbers;
pub mod packet;
pub mod pidfd;
pub mod process;
pub mod program;
pub mod random;
pub mod seccomp;
pub mod seqpacket;
pub mod shared_memory;
pub mod shared_text;
pub mod signals;
pub mod splice;
pub mod statx;
pub mod stream_socket;
pub mod terminal;
pub mod uevent;
pub mod user_namespace;
pub mod wait;

//! DHCPv4: [`wire`] has the messages, [`lease`] says what a server's word is worth, [`client`]
//! decides. Sockets and clocks are the caller's.

pub mod client;
pub mod lease;
pub mod wire;

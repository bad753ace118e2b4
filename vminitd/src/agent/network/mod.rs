//! Networks.
pub mod address;
pub mod dhcp;
pub mod netlink;
pub mod wish;

//! x
/// x
pub const ORIGINAL_CONFIG: &str = "config.original.json";

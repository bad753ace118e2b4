//! stdio

pub mod end;
pub mod input;
pub mod output;
pub mod uri;

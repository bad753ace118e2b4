//! macOS: one VM in Virtualization.framework.
//!
//! What is to be configured is decided in [`plan`], which every system compiles and tests; what applies a plan decides
//! nothing. So a Mac is needed only to see that the framework takes what is planned.

pub mod plan;

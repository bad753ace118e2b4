//! Keys of a request's metadata that are ours; ttrpc's keys are lower case.

/// On `Events.Stream`: the number of the last event that the caller has seen; those after it that
/// it missed come first. Without it, only what is published from now on.
pub const RESUME_AFTER: &str = "vminitd-resume-after";

//! When to restart a process that ended.

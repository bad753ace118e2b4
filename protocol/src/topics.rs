//! Topics of published events, as containerd names them.
//! Promises: one constant per event message of `containerd.events`.
//! Never: says in which order they are published (the agent's exit ordering does).

/// A container was created.
pub const TASK_CREATE: &str = "/tasks/create";
/// A container's init was started.
pub const TASK_START: &str = "/tasks/start";
/// A container met its memory limit.
pub const TASK_OOM: &str = "/tasks/oom";
/// A process exited.
pub const TASK_EXIT: &str = "/tasks/exit";
/// A container or exec was deleted.
pub const TASK_DELETE: &str = "/tasks/delete";
/// An exec was added to a container.
pub const TASK_EXEC_ADDED: &str = "/tasks/exec-added";
/// An exec was started.
pub const TASK_EXEC_STARTED: &str = "/tasks/exec-started";
/// A container was paused.
pub const TASK_PAUSED: &str = "/tasks/paused";
/// A container was resumed.
pub const TASK_RESUMED: &str = "/tasks/resumed";
/// A container was checkpointed.
pub const TASK_CHECKPOINTED: &str = "/tasks/checkpointed";

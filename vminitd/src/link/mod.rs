//! The socketpair between init and the agent.

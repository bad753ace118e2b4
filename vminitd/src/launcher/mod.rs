//! A fork of init that runs libcontainer once.

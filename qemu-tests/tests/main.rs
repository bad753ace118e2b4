//! VM tests, by topic.

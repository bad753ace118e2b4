//! The containers of this guest, by id.
//!
//! Owns: the table, and with it each container.
//! Promises: an id, and a bundle, belong to one container at a time, from the moment its Create
//! begins until nothing of it is left; nobody waits for the table.
//! Never: does anything to a container.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::container::Container;
use crate::agent::errors::RpcError;
use crate::agent::id::ContainerId;
use crate::agent::lock;

/// The table.
#[derive(Default)]
pub struct Table {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    slots: HashMap<ContainerId, Slot>,
    /// The VM is going down: nothing new comes in.
    closed: bool,
}

struct Slot {
    bundle: PathBuf,
    /// None while it is being made, or removed without ever having been there.
    container: Option<Arc<Container>>,
}

/// An id that is taken for a container that is not there yet; free again on drop, unless filled.
pub struct Reservation {
    table: Arc<Table>,
    id: Option<ContainerId>,
}

impl Table {
    /// Takes an id and a bundle.
    pub fn reserve(
        self: &Arc<Self>,
        id: &ContainerId,
        bundle: &Path,
    ) -> Result<Reservation, RpcError> {
        let mut inner = lock(&self.inner);
        if inner.closed {
            return Err(RpcError::ShuttingDown);
        }
        if inner.slots.contains_key(id) {
            return Err(RpcError::Exists { what: "container", id: id.to_string() });
        }
        if inner.slots.values().any(|slot| slot.bundle == bundle) {
            let id = bundle.display().to_string();
            return Err(RpcError::Exists { what: "a container of bundle", id });
        }
        inner.slots.insert(id.clone(), Slot { bundle: bundle.to_owned(), container: None });
        Ok(Reservation { table: self.clone(), id: Some(id.clone()) })
    }

    /// The container, if it is there and hosts may see it.
    pub fn get(&self, id: &str) -> Result<Arc<Container>, RpcError> {
        let id = ContainerId::try_from(id).map_err(|_| RpcError::NoContainer)?;
        let inner = lock(&self.inner);
        let container = inner.slots.get(&id).and_then(|slot| slot.container.clone());
        container.filter(|container| container.init.state().visible()).ok_or(RpcError::NoContainer)
    }

    /// Frees a container's id and bundle.
    pub fn remove(&self, id: &ContainerId) {
        lock(&self.inner).slots.remove(id);
    }

    /// Whether there is none, not even one that is being made.
    pub fn is_empty(&self) -> bool {
        lock(&self.inner).slots.is_empty()
    }

    /// Lets nothing new in. False when that was so already.
    pub fn close(&self) -> bool {
        !std::mem::replace(&mut lock(&self.inner).closed, true)
    }

    /// Ids that are taken by what is not there yet: a Create under way, or what is being removed.
    pub fn being_made(&self) -> Vec<String> {
        let inner = lock(&self.inner);
        let slots = inner.slots.iter().filter(|(_, slot)| slot.container.is_none());
        slots.map(|(id, _)| id.to_string()).collect()
    }

    /// All that are there.
    pub fn all(&self) -> Vec<Arc<Container>> {
        lock(&self.inner).slots.values().filter_map(|slot| slot.container.clone()).collect()
    }
}

impl Reservation {
    /// The container is there.
    pub fn fill(mut self, container: Arc<Container>) {
        if let Some(id) = self.id.take()
            && let Some(slot) = lock(&self.table.inner).slots.get_mut(&id)
        {
            slot.container = Some(container);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            self.table.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> ContainerId {
        ContainerId::try_from(name).unwrap()
    }

    #[test]
    fn id_and_bundle_are_one_containers_until_it_is_gone() {
        let table = Arc::new(Table::default());
        let first = table.reserve(&id("a"), Path::new("/b/a")).unwrap();
        let text = |result: Result<Reservation, RpcError>| result.err().unwrap().to_string();
        let again = table.reserve(&id("a"), Path::new("/b/x"));
        assert_eq!(text(again), "container a: already exists");
        let same_bundle = table.reserve(&id("c"), Path::new("/b/a"));
        assert_eq!(text(same_bundle), "a container of bundle /b/a: already exists");
        assert!(!table.is_empty());
        assert!(matches!(table.get("a"), Err(RpcError::NoContainer)));
        drop(first);
        assert!(table.is_empty());
        table.reserve(&id("c"), Path::new("/b/a")).unwrap();
    }

    #[test]
    fn closed_table_lets_nothing_in() {
        let table = Arc::new(Table::default());
        assert!(table.close());
        assert!(!table.close());
        let refused = table.reserve(&id("a"), Path::new("/b/a"));
        assert!(matches!(refused, Err(RpcError::ShuttingDown)));
    }
}

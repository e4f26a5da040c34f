//! What an API server remembers of one kind of object.

use serde_json::Value;
use std::collections::BTreeMap;

/// One step of the history of one kind of object.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    /// The object, or the last there was of it.
    pub(super) object: Value,
    pub(super) deleted: bool,
}

/// The history of one kind of object. Its length is the resource version.
#[derive(Debug, Default)]
pub(super) struct Log(pub(super) Vec<Entry>);

impl Log {
    /// What there is at a resource version.
    pub(super) fn listing(&self, version: usize) -> Vec<Value> {
        let mut objects: BTreeMap<&str, &Value> = BTreeMap::new();
        for entry in &self.0[..version] {
            if entry.deleted {
                objects.remove(&*entry.name);
            } else {
                objects.insert(&entry.name, &entry.object);
            }
        }
        objects.into_values().cloned().collect()
    }

    /// An object is so from now on; `None`: it is gone.
    pub(super) fn put(&mut self, name: &str, object: Option<Value>) {
        let last = self.0.iter().rev().find(|entry| entry.name == name);
        let known = last.filter(|entry| !entry.deleted);
        let (object, deleted) = match (object, known) {
            (Some(object), Some(known)) if known.object == object => return,
            (Some(object), _) => (object, false),
            (None, Some(known)) => (known.object.clone(), true),
            (None, None) => return,
        };
        self.0.push(Entry {
            name: name.to_owned(),
            object,
            deleted,
        });
    }
}

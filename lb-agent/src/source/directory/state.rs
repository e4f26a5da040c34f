//! What must outlive the agent, on disk: what Services were given, and the last good objects of
//! files that are broken now. A restart changes no address and removes nothing.

use super::claims::Kept;
use super::holdings::Allocation;
use super::store::Written;
use crate::model::desired::ObjectName;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const VERSION: u32 = 1;

/// The state file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It is there and says nothing usable.
    #[error(
        "{path} cannot be read ({reason}): automatic ClusterIPs and node ports may differ from \
         those before this start, and broken manifests have no last good objects"
    )]
    Load {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// It cannot be written.
    #[error(
        "cannot write {path}: {source}; automatic ClusterIPs and node ports may change at the \
         next start, and broken manifests lose their last good objects then"
    )]
    Save {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

#[derive(Deserialize, Serialize)]
struct Document<T> {
    version: u32,
    content: T,
}

/// The files of one agent's state.
#[derive(Clone, Debug)]
pub struct StateFiles {
    directory: PathBuf,
}

impl StateFiles {
    /// The state in this directory, which is made when it is needed.
    pub const fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Where the allocations are.
    pub fn allocations(&self) -> PathBuf {
        self.directory.join("allocations.json")
    }

    /// Where the last good objects of troubled files are.
    pub fn kept(&self) -> PathBuf {
        self.directory.join("kept.json")
    }

    /// What was written; nothing of a file that is not there, and an error for each that says
    /// nothing usable.
    pub fn load(&self) -> (Written, Vec<StateError>) {
        let mut errors = Vec::new();
        let held: BTreeMap<String, Allocation> = load(self.allocations(), &mut errors);
        let kept = load(self.kept(), &mut errors);
        let named = |(name, allocation): (String, Allocation)| {
            let (namespace, name) = name.split_once('/')?;
            let name = ObjectName {
                namespace: namespace.into(),
                name: name.into(),
            };
            Some((name, allocation))
        };
        let held = held.into_iter().filter_map(named).collect();
        (Written { held, kept }, errors)
    }

    /// Writes the allocations down.
    pub fn save_held(&self, held: &BTreeMap<ObjectName, Allocation>) -> Result<(), StateError> {
        let named: BTreeMap<String, &Allocation> = held
            .iter()
            .map(|(name, allocation)| (name.to_string(), allocation))
            .collect();
        self.save(&self.allocations(), &named)
    }

    /// Writes down what is kept of troubled files.
    pub fn save_kept(&self, kept: &Kept) -> Result<(), StateError> {
        self.save(&self.kept(), kept)
    }

    /// Writes a new file and renames it over the old: a crash leaves one of the two.
    fn save<T: Serialize>(&self, path: &Path, content: &T) -> Result<(), StateError> {
        let write = || {
            fs::create_dir_all(&self.directory)?;
            let temporary = path.with_extension("new");
            let mut file = File::create(&temporary)?;
            file.write_all(&serde_json::to_vec(&Document {
                version: VERSION,
                content,
            })?)?;
            file.sync_all()?;
            fs::rename(&temporary, path)?;
            File::open(&self.directory)?.sync_all()
        };
        write().map_err(|source| StateError::Save {
            path: path.to_path_buf(),
            source,
        })
    }
}

fn load<T: Default + DeserializeOwned>(path: PathBuf, errors: &mut Vec<StateError>) -> T {
    let read = || match fs::read(&path) {
        Ok(bytes) => {
            let document: Document<T> =
                serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
            match document.version {
                VERSION => Ok(document.content),
                version => Err(format!("version {version}, not {VERSION}")),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(T::default()),
        Err(error) => Err(error.to_string()),
    };
    match read() {
        Ok(content) => content,
        Err(reason) => {
            errors.push(StateError::Load { path, reason });
            T::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::directory::holdings::Held;

    #[test]
    fn what_is_saved_is_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateFiles::new(directory.path().join("deep"));
        let (nothing, errors) = state.load();
        assert!(nothing.held.is_empty() && nothing.kept.is_empty() && errors.is_empty());
        let name = ObjectName {
            namespace: "a".into(),
            name: "b".into(),
        };
        let port = Held {
            value: 30_000,
            named: false,
        };
        let allocation = Allocation {
            node_ports: BTreeMap::from([("80/TCP".to_owned(), port)]),
            ..Allocation::default()
        };
        let held = BTreeMap::from([(name, allocation)]);
        let kept = BTreeMap::from([(PathBuf::from("/a.yaml"), vec![serde_json::json!({"a": 1})])]);
        state.save_held(&held).unwrap();
        state.save_kept(&kept).unwrap();
        let (written, errors) = state.load();
        assert_eq!((written.held, written.kept), (held, kept));
        assert!(errors.is_empty());
    }

    #[test]
    fn a_broken_state_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateFiles::new(directory.path().to_owned());
        fs::write(state.allocations(), b"{").unwrap();
        let (_, errors) = state.load();
        let said = errors[0].to_string();
        assert!(said.contains("allocations.json cannot be read"), "{said}");
    }
}

//! What a directory's Services were given, on disk: a restart changes no address and no port.

use super::allocate::Allocation;
use crate::model::desired::ObjectName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

const NAME: &str = "allocations.json";
const VERSION: u32 = 1;

/// The state file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It is there and says nothing usable.
    #[error(
        "{path} cannot be read ({reason}): automatic ClusterIPs and node ports may differ from \
         those before this start"
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
         next start"
    )]
    Save {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

#[derive(Deserialize, Serialize)]
struct Document {
    version: u32,
    services: BTreeMap<String, Allocation>,
}

/// The state file of one agent.
#[derive(Clone, Debug)]
pub struct StateFile {
    directory: PathBuf,
}

impl StateFile {
    /// The state file in this directory, which is made when it is needed.
    pub const fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.directory.join(NAME)
    }

    /// What was written; nothing if nothing was.
    pub fn load(&self) -> Result<BTreeMap<ObjectName, Allocation>, StateError> {
        let path = self.path();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(error) => {
                return Err(StateError::Load {
                    path,
                    reason: error.to_string(),
                });
            }
        };
        let document: Document = match serde_json::from_slice(&bytes) {
            Ok(document) => document,
            Err(error) => {
                return Err(StateError::Load {
                    path,
                    reason: error.to_string(),
                });
            }
        };
        if document.version != VERSION {
            let reason = format!("version {}, not {VERSION}", document.version);
            return Err(StateError::Load { path, reason });
        }
        let named = |(name, allocation): (String, Allocation)| {
            let (namespace, name) = name.split_once('/')?;
            let name = ObjectName {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            };
            Some((name, allocation))
        };
        Ok(document.services.into_iter().filter_map(named).collect())
    }

    /// Writes a new file and renames it over the old: a crash leaves one of the two.
    pub fn save(&self, held: &BTreeMap<ObjectName, Allocation>) -> Result<(), StateError> {
        let services = held
            .iter()
            .map(|(name, allocation)| (name.to_string(), allocation.clone()))
            .collect();
        self.write(&Document {
            version: VERSION,
            services,
        })
        .map_err(|source| StateError::Save {
            path: self.path(),
            source,
        })
    }

    fn write(&self, document: &Document) -> io::Result<()> {
        fs::create_dir_all(&self.directory)?;
        let temporary = self.directory.join(format!(".{NAME}.new"));
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec(document)?)?;
        file.sync_all()?;
        fs::rename(&temporary, self.path())?;
        File::open(&self.directory)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::directory::allocate::Held;

    #[test]
    fn what_is_saved_is_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateFile::new(directory.path().join("deep"));
        assert!(state.load().unwrap().is_empty());
        let name = ObjectName {
            namespace: "a".to_owned(),
            name: "b".to_owned(),
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
        state.save(&held).unwrap();
        assert_eq!(state.load().unwrap(), held);
    }

    #[test]
    fn a_broken_state_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateFile::new(directory.path().to_owned());
        fs::write(state.path(), b"{").unwrap();
        let said = state.load().unwrap_err().to_string();
        assert!(said.contains("allocations.json cannot be read"), "{said}");
    }
}

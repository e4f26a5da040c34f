//! What a running agent leaves behind for `lb-agent status`: a small file under `/run`, renewed
//! when something changes. Nothing depends on it; the lock alone says whether an agent runs.

use crate::app::Snapshot;
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Where the files are.
const DIRECTORY: &str = "/run/lb-agent";
/// How often the file is written at most.
const PAUSE: Duration = Duration::from_secs(1);

/// How many troubles are told in full.
const TROUBLES: usize = 100;

/// One agent, as it last described itself.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Presence {
    /// Its process.
    pub pid: u32,
    /// Its node.
    pub node: String,
    /// Its version.
    pub version: String,
    /// When it started, RFC 3339.
    pub started: String,
    /// Where it serves metrics.
    pub metrics: String,
    /// Where it serves health; empty while it could not bind.
    pub health: String,
    /// When the tables were last brought in line, RFC 3339.
    pub last_sync: Option<String>,
    /// The last write that failed, until one succeeds.
    pub last_error: Option<String>,
    /// What is not taken or not served now and why, a sentence each, [`TROUBLES`] at most.
    pub troubles: Vec<String>,
    /// How many more there are.
    pub more_troubles: usize,
}

/// A file name for a path: unique, and readable for people.
pub fn escaped(path: &Path) -> String {
    path.to_string_lossy()
        .trim_matches('/')
        .replace('%', "%25")
        .replace('-', "%2D")
        .replace('/', "-")
}

/// The file of the agent that has this directory.
pub fn file_of(bpffs: &Path) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{}.json", escaped(bpffs)))
}

impl Presence {
    /// What the last agent of the file left; `None` if there is none or it cannot be read.
    pub fn read(file: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(file).ok()?).ok()
    }

    /// Takes what there is to say from the agent and its source.
    fn describe(&mut self, snapshot: &Snapshot, source: &[String]) {
        self.last_sync = snapshot
            .last_sync
            .and_then(|at| Timestamp::try_from(at).ok())
            .map(|at| at.to_string());
        self.last_error.clone_from(&snapshot.last_error);
        let messages = snapshot.refusals.iter().map(|refusal| &refusal.message);
        let all: Vec<&String> = source.iter().chain(messages).collect();
        self.more_troubles = all.len().saturating_sub(TROUBLES);
        self.troubles = all.into_iter().take(TROUBLES).cloned().collect();
    }

    /// Replaces the file as a whole, so that a reader never sees half of it.
    fn write(&self, file: &Path) -> io::Result<()> {
        if let Some(directory) = file.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let fresh = file.with_extension(format!("{}.new", self.pid));
        std::fs::write(&fresh, serde_json::to_vec_pretty(self)?)?;
        std::fs::rename(&fresh, file)
    }
}

/// Removes the note of a directory that was cleaned up, which an agent that was killed leaves.
pub fn forget(bpffs: &Path) {
    // Gone already is as good, and other agents' notes keep the directory.
    let _ = std::fs::remove_file(file_of(bpffs));
    let _ = std::fs::remove_dir(DIRECTORY);
}

/// Keeps the file in step with the snapshots and the source's troubles until `shutdown`, then
/// removes it.
pub async fn keep(
    mut presence: Presence,
    file: PathBuf,
    mut snapshots: watch::Receiver<Snapshot>,
    mut source: watch::Receiver<Vec<String>>,
    shutdown: CancellationToken,
) {
    loop {
        presence.describe(&snapshots.borrow_and_update(), &source.borrow_and_update());
        if let Err(error) = presence.write(&file) {
            tracing::warn!(
                file = %file.display(), %error,
                "cannot leave a note for `lb-agent status`; it will know less"
            );
            return;
        }
        tokio::select! {
            changed = async {
                tokio::time::sleep(PAUSE).await;
                tokio::select! {
                    changed = snapshots.changed() => changed,
                    changed = source.changed() => changed,
                }
            } => if changed.is_err() { break },
            () = shutdown.cancelled() => break,
        }
    }
    // Gone already is as good; nothing else can be done about a failure at the end.
    let _ = std::fs::remove_file(&file);
    if let Some(directory) = file.parent() {
        let _ = std::fs::remove_dir(directory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{SystemTime, UNIX_EPOCH};

    #[tokio::test(start_paused = true)]
    async fn the_note_follows_the_snapshots_and_goes_with_the_agent() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("run/agent.json");
        let (said, snapshots) = watch::channel(Snapshot::default());
        let shutdown = CancellationToken::new();
        let presence = Presence {
            pid: 7,
            node: "a".to_owned(),
            ..Presence::default()
        };
        let (troubled, source) = watch::channel(Vec::new());
        let keeper = tokio::spawn(keep(
            presence,
            file.clone(),
            snapshots,
            source,
            shutdown.clone(),
        ));
        // Paused clock: each sleep ends when the keeper has done what it can.
        tokio::time::sleep(PAUSE / 2).await;
        assert_eq!(Presence::read(&file).unwrap().last_sync, None);
        let at: SystemTime = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        said.send_modify(|snapshot| snapshot.last_sync = Some(at));
        tokio::time::sleep(PAUSE * 2).await;
        let read = Presence::read(&file).unwrap();
        assert_eq!(read.last_sync.as_deref(), Some("2001-09-09T01:46:40Z"));
        assert_eq!(read.node, "a");
        troubled.send_replace(vec!["a.yaml: line 3: …".to_owned(); TROUBLES + 2]);
        tokio::time::sleep(PAUSE * 2).await;
        let read = Presence::read(&file).unwrap();
        assert_eq!((read.troubles.len(), read.more_troubles), (TROUBLES, 2));
        shutdown.cancel();
        keeper.await.unwrap();
        assert!(Presence::read(&file).is_none());
    }

    #[test]
    fn agents_with_directories_of_their_own_have_files_of_their_own() {
        let file = |path| file_of(Path::new(path));
        assert_ne!(file("/sys/fs/bpf/a-b"), file("/sys/fs/bpf/a/b"));
        assert_eq!(
            file("/sys/fs/bpf/lb-agent"),
            Path::new("/run/lb-agent/sys-fs-bpf-lb%2Dagent.json")
        );
    }
}

//! Has the configuration file changed? kube-proxy ends then, to be started anew with the new one;
//! so does this agent, but only for one that it could be started with.

use super::{Invalid, Settings};
use crate::cli::args::RunArgs;
use std::path::PathBuf;
use std::time::Duration;

/// How often the file is read: it is small, and reading finds what notifications miss behind links
/// and on network file systems.
const LOOK: Duration = Duration::from_secs(1);

/// The configuration file changed.
#[derive(Debug, thiserror::Error)]
#[error(
    "the configuration file {} changed: ending, to be started with the new one; what is loaded goes \
     on meanwhile",
    file.display()
)]
pub struct Changed {
    file: PathBuf,
}

/// Waits until the file holds another configuration that `typed` could be started with. One that
/// makes no sense is logged, once each time.
pub async fn changed(file: PathBuf, mut text: String, typed: RunArgs) -> Changed {
    loop {
        // Between the removal of the old file and the new one's coming there is none.
        if let Ok(found) = std::fs::read_to_string(&file)
            && found != text
        {
            match Settings::load(typed.clone()) {
                Ok(_) => return Changed { file },
                Err(Invalid(problems)) => {
                    tracing::error!(
                        file = %file.display(),
                        problems = problems.join("; "),
                        "the configuration file changed and makes no sense; what was read before \
                         stays in force"
                    );
                    text = found;
                }
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    /// As the kubelet exchanges a ConfigMap: the file is a link through `..data`.
    fn publish(directory: &Path, version: &str, text: &str) {
        fs::create_dir(directory.join(version)).unwrap();
        fs::write(directory.join(version).join("config.conf"), text).unwrap();
        let fresh = directory.join("..data_tmp");
        std::os::unix::fs::symlink(version, &fresh).unwrap();
        fs::rename(&fresh, directory.join("..data")).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_config_map_s_change_is_seen_and_nonsense_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        publish(at, "..1", "node: a\nmanifests: /\n");
        let file = at.join("config.conf");
        std::os::unix::fs::symlink("..data/config.conf", &file).unwrap();
        let typed = RunArgs {
            config: Some(file.clone()),
            ..RunArgs::default()
        };
        let text = fs::read_to_string(&file).unwrap();
        let watching = tokio::spawn(changed(file.clone(), text, typed));
        publish(at, "..2", "node: a\nmanifests: /nonexistent\n");
        // Were it taken, the task would have ended by the time the next one is read.
        publish(at, "..3", "node: b\nmanifests: /\n");
        let changed = watching.await.unwrap();
        assert!(
            changed.to_string().contains("config.conf changed"),
            "{changed}"
        );
    }
}

//! What a source reports besides objects: said once in the log, and counted while it lasts.

use crate::source::{Problem, Report, SourceRefusal};
use std::collections::BTreeMap;
use std::path::PathBuf;
use tokio::sync::{mpsc, watch};

/// How many troubles of each kind there are now.
pub(crate) type Counts = BTreeMap<&'static str, u64>;

/// Troubles that last, by their identity (object, file).
#[derive(Debug, Default)]
struct Troubles(BTreeMap<(String, Option<PathBuf>), SourceRefusal>);

impl Troubles {
    fn take(&mut self, report: Report) {
        match report {
            Report::Refused(refusal) => {
                say(&refusal);
                let identity = (refusal.object.clone(), refusal.file.clone());
                self.0.insert(identity, refusal);
            }
            Report::Resolved { object, file } => {
                if self.0.remove(&(object.clone(), file.clone())).is_some() {
                    let file = file.map(|file| file.display().to_string());
                    tracing::info!(object, file, "the trouble with the source is over");
                }
            }
        }
    }

    fn counts(&self) -> Counts {
        let mut counts = Counts::new();
        for refusal in self.0.values() {
            *counts.entry(refusal.problem.name()).or_default() += 1;
        }
        counts
    }

    /// A sentence for each; what is merely ignored is no trouble.
    fn sentences(&self) -> Vec<String> {
        self.0
            .values()
            .filter(|refusal| refusal.problem != Problem::Ignored)
            .map(ToString::to_string)
            .collect()
    }
}

/// A kind of object that no service needs is nobody's mistake.
fn say(refusal: &SourceRefusal) {
    let problem = refusal.problem.name();
    if refusal.problem == Problem::Ignored {
        tracing::info!(problem, object = refusal.object, "{refusal}");
    } else {
        tracing::warn!(problem, object = refusal.object, "{refusal}");
    }
}

/// Logs reports until the source ends, and tells how many troubles of each kind and which there are.
pub(crate) async fn follow(
    mut reports: mpsc::Receiver<Report>,
    counts: watch::Sender<Counts>,
    sentences: watch::Sender<Vec<String>>,
) {
    let mut troubles = Troubles::default();
    while let Some(report) = reports.recv().await {
        troubles.take(report);
        while let Ok(report) = reports.try_recv() {
            troubles.take(report);
        }
        counts.send_replace(troubles.counts());
        sentences.send_replace(troubles.sentences());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(object: &str, problem: Problem) -> Report {
        Report::Refused(SourceRefusal {
            problem,
            object: object.to_owned(),
            file: None,
            sentence: "a sentence".to_owned(),
        })
    }

    #[tokio::test]
    async fn troubles_are_counted_while_they_last() {
        let (report, reports) = mpsc::channel(8);
        let (sender, counts) = watch::channel(Counts::new());
        let (said_sender, said) = watch::channel(Vec::new());
        let follower = tokio::spawn(follow(reports, sender, said_sender));
        for said in [
            refused("a", Problem::Refused),
            refused("b", Problem::Refused),
            // The same trouble, told anew, counts once.
            refused("b", Problem::Unparsable),
            refused("c", Problem::Unparsable),
            refused("d", Problem::Ignored),
            Report::Resolved {
                object: "c".to_owned(),
                file: None,
            },
        ] {
            report.send(said).await.unwrap();
        }
        drop(report);
        follower.await.unwrap();
        assert_eq!(
            *counts.borrow(),
            BTreeMap::from([("ignored", 1), ("refused", 1), ("unparsable", 1)])
        );
        assert_eq!(said.borrow().len(), 2, "what is ignored is no trouble");
    }
}

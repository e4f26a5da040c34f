//! What a source reports besides objects: said once in the log, and counted while it lasts.

use crate::source::{Problem, Report, SourceRefusal};
use std::collections::BTreeMap;
use std::path::PathBuf;
use tokio::sync::{mpsc, watch};

/// Troubles that last, by their identity (object, file).
#[derive(Debug, Default)]
struct Troubles(BTreeMap<(String, Option<PathBuf>), Problem>);

impl Troubles {
    fn take(&mut self, report: Report) {
        match report {
            Report::Refused(refusal) => {
                say(&refusal);
                self.0
                    .insert((refusal.object, refusal.file), refusal.problem);
            }
            Report::Resolved { object, file } => {
                if self.0.remove(&(object.clone(), file.clone())).is_some() {
                    let file = file.map(|file| file.display().to_string());
                    tracing::info!(object, file, "the trouble with the source is over");
                }
            }
        }
    }

    fn counts(&self) -> BTreeMap<&'static str, u64> {
        let mut counts = BTreeMap::new();
        for problem in self.0.values() {
            *counts.entry(problem.name()).or_default() += 1;
        }
        counts
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

/// Logs reports until the source ends; `counts` is how many troubles of each kind there are now.
pub(crate) async fn follow(
    mut reports: mpsc::Receiver<Report>,
    counts: watch::Sender<BTreeMap<&'static str, u64>>,
) {
    let mut troubles = Troubles::default();
    while let Some(report) = reports.recv().await {
        troubles.take(report);
        counts.send_replace(troubles.counts());
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
        let (sender, counts) = watch::channel(BTreeMap::new());
        let follower = tokio::spawn(follow(reports, sender));
        for said in [
            refused("a", Problem::Refused),
            refused("b", Problem::Refused),
            // The same trouble, told anew, counts once.
            refused("b", Problem::Unparsable),
            refused("c", Problem::Unparsable),
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
            BTreeMap::from([("refused", 1), ("unparsable", 1)])
        );
    }
}

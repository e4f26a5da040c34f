//! The directory as a running source: disk → store → channel, and what to write down before.

use super::claims::Kept;
use super::disk::{Disk, Events};
use super::holdings::Ranges;
use super::state::{StateError, StateFiles};
use super::store::{Step, Store};
use crate::source::{Change, Problem, Report, SourceRefusal};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// A directory of manifests.
#[derive(Clone, Debug)]
pub struct DirectorySource {
    /// The directory; its `*.yaml`, `*.yml` and `*.json` are read, not those of subdirectories.
    pub directory: PathBuf,
    /// Name of this node: its Node object is passed on.
    pub node: String,
    /// Where automatic addresses and ports come from.
    pub ranges: Ranges,
    /// Where to write down what was given; this agent's own.
    pub state_directory: PathBuf,
}

/// What works on the disk and must not hold up other tasks.
struct Worker {
    disk: Disk,
    store: Store,
    state: StateFiles,
    revision: u64,
    kept: Kept,
    troubles: BTreeMap<PathBuf, String>,
}

impl DirectorySource {
    /// Runs until shutdown or until nobody listens. Troubles are reported, never fatal.
    pub async fn run(
        self,
        changes: mpsc::Sender<Change>,
        reports: mpsc::Sender<Report>,
        shutdown: CancellationToken,
    ) {
        let work = self.watch(&changes, &reports);
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = work => {}
        }
    }

    async fn watch(&self, changes: &mpsc::Sender<Change>, reports: &mpsc::Sender<Report>) {
        let state = StateFiles::new(self.state_directory.clone());
        let (written, unusable) = state.load();
        let mut worker = Worker {
            disk: Disk::new(self.directory.clone()),
            store: Store::new(&self.node, self.ranges.clone(), written),
            revision: 0,
            kept: Kept::new(),
            troubles: BTreeMap::new(),
            state,
        };
        for error in unusable {
            let report = trouble(&self.state_directory, error.to_string());
            if reports.send(report).await.is_err() {
                return;
            }
        }
        // Without inotify (its instances are limited) the slow look at everything remains.
        #[expect(
            deprecated,
            reason = "the replacement is unsafe for want of a promise that `Events` keeps: it owns \
                      one descriptor and never changes it"
        )]
        let mut events = Events::new().and_then(AsyncFd::new).ok();
        loop {
            let (back, fd, step, said) = match work(worker, events).await {
                Ok(done) => done,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(_) => return,
                },
            };
            (worker, events) = (back, fd);
            for report in said {
                if reports.send(report).await.is_err() {
                    return;
                }
            }
            if let Some(step) = step {
                for change in worker.store.changes(&step) {
                    if changes.send(change).await.is_err() {
                        return;
                    }
                }
            }
            wait(&worker, events.as_ref()).await;
        }
    }
}

/// Waits for an event or the next deadline.
async fn wait(worker: &Worker, events: Option<&AsyncFd<Events>>) {
    let deadline = tokio::time::sleep_until(worker.disk.deadline().into());
    let Some(events) = events else {
        return deadline.await;
    };
    tokio::select! {
        () = deadline => {}
        // Readiness is cleared before the events are drained: none is lost in between.
        ready = events.readable() => if let Ok(mut guard) = ready { guard.clear_ready() },
    }
}

type Done = (Worker, Option<AsyncFd<Events>>, Option<Step>, Vec<Report>);

async fn work(
    mut worker: Worker,
    events: Option<AsyncFd<Events>>,
) -> Result<Done, tokio::task::JoinError> {
    let task = tokio::task::spawn_blocking(move || {
        let (step, reports) = worker.round(events.as_ref().map(AsyncFd::get_ref));
        (worker, events, step, reports)
    });
    task.await
}

impl Worker {
    fn round(&mut self, events: Option<&Events>) -> (Option<Step>, Vec<Report>) {
        let mut reports = Vec::new();
        let directory = self.disk.directory().to_owned();
        let first = !self.disk.is_listed();
        let edits = match self.disk.collect(events) {
            Ok(edits) => edits,
            Err(error) => {
                let said = format!("cannot read the directory: {error}; what it held stays");
                self.say(&directory, Some(said), &mut reports);
                return (None, reports);
            }
        };
        self.say(&directory, None, &mut reports);
        if !self.disk.is_listed() || (edits.is_empty() && !first) {
            return (None, reports);
        }
        let mut step = self.store.update(edits);
        reports.append(&mut step.reports);
        self.write_down(&mut reports);
        (Some(step), reports)
    }

    /// Before anybody can see a value it is on disk, or its loss is announced.
    fn write_down(&mut self, reports: &mut Vec<Report>) {
        let revision = self.store.revision();
        if revision != self.revision {
            let result = self.state.save_held(self.store.held());
            self.revision = if result.is_ok() {
                revision
            } else {
                self.revision
            };
            self.say_saved(&self.state.allocations(), result, reports);
        }
        let kept = self.store.kept();
        if kept != self.kept {
            let result = self.state.save_kept(&kept);
            self.kept = if result.is_ok() { kept } else { Kept::new() };
            self.say_saved(&self.state.kept(), result, reports);
        }
    }

    fn say_saved(
        &mut self,
        path: &Path,
        result: Result<(), StateError>,
        reports: &mut Vec<Report>,
    ) {
        self.say(path, result.err().map(|error| error.to_string()), reports);
    }

    /// Says a trouble once, and its end once.
    fn say(&mut self, path: &Path, sentence: Option<String>, reports: &mut Vec<Report>) {
        match sentence {
            Some(sentence) if self.troubles.get(path) != Some(&sentence) => {
                self.troubles.insert(path.to_owned(), sentence.clone());
                reports.push(trouble(path, sentence));
            }
            Some(_) => {}
            None => {
                if self.troubles.remove(path).is_some() {
                    let file = Some(path.to_owned());
                    reports.push(Report::Resolved {
                        object: String::new(),
                        file,
                    });
                }
            }
        }
    }
}

fn trouble(path: &Path, sentence: String) -> Report {
    Report::Refused(SourceRefusal {
        problem: Problem::Unreadable,
        object: String::new(),
        file: Some(path.to_owned()),
        sentence,
    })
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;

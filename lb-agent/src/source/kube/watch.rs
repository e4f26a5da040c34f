//! One watch that never gives up: strategy, waiting, fail-over, and telling people.

use super::client::Servers;
use super::guard::Guarded;
use super::reading::{Reading, Watched};
use super::trouble::{Meaning, sentence};
use crate::source::backoff::{Backoff, Failure};
use crate::source::{Change, Kind, Report, SourceRefusal};
use futures::StreamExt;
use kube::runtime::watcher::{self, Event, InitialListStrategy, ListSemantic, watcher};
use kube::{Api, Client};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch as tokio_watch};

/// The server ends a watch after this: a silently dead one does not outlive it.
const WATCH_SECONDS: u32 = 240;
/// Objects a page; the API server's cache answers in such pieces.
const PAGE: u32 = 500;
/// A streaming list that says nothing for this long is not going to.
const STREAM_SILENCE: Duration = Duration::from_secs(30);

/// What every watch needs.
pub(super) struct Watch {
    /// The API server.
    pub(super) servers: Servers,
    /// Where changes go.
    pub(super) changes: mpsc::Sender<Change>,
    /// Where reports go.
    pub(super) reports: mpsc::Sender<Report>,
}

/// How to ask; what a server does not support is given up once and for all.
#[derive(Clone, Copy)]
struct Strategy {
    streaming: bool,
    fields: bool,
}

/// Why a stream was left.
enum Left {
    /// To open another one at once.
    Reopen,
    /// Nobody listens.
    Closed,
}

/// State of one watch over its streams.
struct Progress<W> {
    strategy: Strategy,
    backoff: Backoff,
    said: Option<String>,
    reading: Reading<W>,
}

impl Watch {
    /// Follows a resource until nobody listens any more.
    pub(super) async fn follow<W: Watched>(&self, watched: W) {
        let mut progress = Progress {
            strategy: Strategy {
                streaming: true,
                fields: true,
            },
            backoff: Backoff::default(),
            said: None,
            reading: Reading::new(watched),
        };
        while let Left::Reopen = self.stream(&mut progress).await {}
    }

    async fn stream<W: Watched>(&self, progress: &mut Progress<W>) -> Left {
        let Some((number, server, client)) = self.servers.current() else {
            return Left::Closed;
        };
        let (answered, mut answers) = tokio_watch::channel(());
        let api: Api<Guarded<W::Resource>> = Api::all(noting(client, answered));
        let mut stream = pin!(watcher(
            api,
            config(progress.reading.watched(), progress.strategy)
        ));
        let mut listing = false;
        loop {
            let silent = progress.strategy.streaming && listing;
            let next = tokio::time::timeout(
                if silent {
                    STREAM_SILENCE
                } else {
                    Duration::MAX
                },
                stream.next(),
            );
            let next = tokio::select! {
                next = next => next,
                // A watch that goes on where it was says nothing until something changes.
                Ok(()) = answers.changed(), if progress.said.is_some() => {
                    if !self.resolved(progress).await {
                        return Left::Closed;
                    }
                    continue;
                }
            };
            let event = match next {
                Ok(Some(event)) => event,
                Ok(None) => return Left::Reopen,
                Err(_) => {
                    progress.strategy.streaming = false;
                    return Left::Reopen;
                }
            };
            let error = match event {
                Ok(event) => {
                    listing = match &event {
                        Event::Init => true,
                        Event::InitDone => false,
                        _ => listing,
                    };
                    if !self.take(event, progress).await {
                        return Left::Closed;
                    }
                    continue;
                }
                Err(error) => error,
            };
            // What was answered before is no proof of what comes after.
            answers.mark_unchanged();
            let place = (number, server);
            if let Some(left) = self.failed(&error, place, progress).await {
                return left;
            }
        }
    }

    /// Tells and waits after an error, unless it can be asked in another way. `None`: the stream
    /// goes on by itself.
    async fn failed<W: Watched>(
        &self,
        error: &watcher::Error,
        (number, server): (usize, &str),
        progress: &mut Progress<W>,
    ) -> Option<Left> {
        if progress.strategy.give_up(error) {
            return Some(Left::Reopen);
        }
        if !self.trouble(error, server, progress).await {
            return Some(Left::Closed);
        }
        let failure = match Meaning::of(error) {
            Meaning::Unreachable | Meaning::Broken => Failure::Silence,
            _ => Failure::Answer,
        };
        let other = failure == Failure::Silence && self.servers.fail_over(number);
        tokio::select! {
            () = tokio::time::sleep(progress.backoff.next_wait(failure)) => {}
            () = self.changes.closed() => return Some(Left::Closed),
        }
        // kube's watcher lists anew when it is told 410 in a watch, but not when the server refuses
        // to begin one: it would ask for ever.
        let refused = matches!(error, watcher::Error::WatchStartFailed(_));
        (other || refused && Meaning::of(error) == Meaning::Expired).then_some(Left::Reopen)
    }

    /// Passes an event on. False if nobody listens.
    async fn take<W: Watched>(
        &self,
        event: Event<Guarded<W::Resource>>,
        progress: &mut Progress<W>,
    ) -> bool {
        // `Init` proves nothing: in list mode each failing attempt begins with it.
        if matches!(event, Event::InitDone | Event::Apply(_) | Event::Delete(_)) {
            progress.backoff.reset();
            if !self.resolved(progress).await {
                return false;
            }
        }
        let (changes, reports) = progress.reading.read(event);
        for report in reports {
            if self.reports.send(report).await.is_err() {
                return false;
            }
        }
        for change in changes {
            if self.changes.send(change).await.is_err() {
                return false;
            }
        }
        true
    }

    /// Tells that the trouble is over, if there was one. False if nobody listens.
    async fn resolved<W: Watched>(&self, progress: &mut Progress<W>) -> bool {
        if progress.said.take().is_none() {
            return true;
        }
        let resolved = Report::Resolved {
            object: object::<W>(),
            file: None,
        };
        self.reports.send(resolved).await.is_ok()
    }

    /// Tells a trouble once for as long as it lasts. False if nobody listens.
    async fn trouble<W: Watched>(
        &self,
        error: &watcher::Error,
        server: &str,
        progress: &mut Progress<W>,
    ) -> bool {
        let meaning = Meaning::of(error);
        if W::OPTIONAL && meaning == Meaning::Absent {
            // The server answers: whatever hindered it is over.
            return self.resolved(progress).await;
        }
        let Some(problem) = meaning.problem() else {
            return true;
        };
        // A watch that breaks off and goes on at once is how servers restart.
        if meaning == Meaning::Broken && !progress.backoff.has_failed() {
            return true;
        }
        let sentence = sentence(error, W::NAME, server);
        if progress.said.as_ref() == Some(&sentence) {
            return true;
        }
        progress.said = Some(sentence.clone());
        let refusal = SourceRefusal {
            problem,
            object: object::<W>(),
            file: None,
            sentence,
        };
        self.reports.send(Report::Refused(refusal)).await.is_ok()
    }
}

/// The identity of a watch in reports.
fn object<W: Watched>() -> String {
    format!("API {}", W::NAME)
}

/// A client that notes each answer that is no error.
fn noting(client: &Client, answered: tokio_watch::Sender<()>) -> Client {
    let (inner, answered) = (client.clone(), Arc::new(answered));
    let service = tower::service_fn(move |request| {
        let (inner, answered) = (inner.clone(), Arc::clone(&answered));
        async move {
            let response = inner.send(request).await?;
            if response.status().is_success() {
                answered.send_replace(());
            }
            Ok::<_, kube::Error>(response)
        }
    });
    Client::new(service, client.default_namespace())
}

impl Strategy {
    /// Whether a rejected request can be asked in a way that older servers know.
    fn give_up(&mut self, error: &watcher::Error) -> bool {
        if Meaning::of(error) != Meaning::Unsupported {
            return false;
        }
        let text = error.to_string();
        if self.fields && text.contains("field label not supported") {
            self.fields = false;
            return true;
        }
        std::mem::replace(&mut self.streaming, false)
    }
}

fn config<W: Watched>(watched: &W, strategy: Strategy) -> watcher::Config {
    watcher::Config {
        label_selector: W::LABELS.map(str::to_owned),
        field_selector: watched
            .fields()
            .filter(|_| strategy.fields || matches!(W::KIND, Kind::Node | Kind::Pod)),
        timeout: Some(WATCH_SECONDS),
        list_semantic: ListSemantic::MostRecent,
        page_size: (!strategy.streaming).then_some(PAGE),
        bookmarks: true,
        initial_list_strategy: if strategy.streaming {
            InitialListStrategy::StreamingList
        } else {
            InitialListStrategy::ListWatch
        },
    }
}

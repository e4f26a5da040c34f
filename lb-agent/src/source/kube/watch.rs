//! One watch that never gives up: strategy, waiting, fail-over, and telling people.

use super::client::Servers;
use super::trouble::{Meaning, sentence};
use crate::source::backoff::Backoff;
use crate::source::{Change, Kind, Report, SourceRefusal};
use futures::StreamExt;
use kube::runtime::watcher::{self, Event, InitialListStrategy, ListSemantic, watcher};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;
use tokio::sync::mpsc;

/// The server ends a watch after this: a silently dead one does not outlive it.
const WATCH_SECONDS: u32 = 240;
/// Objects a page; the API server's cache answers in such pieces.
const PAGE: u32 = 500;
/// A streaming list that says nothing for this long is not going to.
const STREAM_SILENCE: Duration = Duration::from_secs(30);

/// A resource and what its objects become.
pub(super) trait Watched {
    /// The resource.
    type Resource: kube::Resource<DynamicType = ()>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + 'static;
    /// The kind its changes are of.
    const KIND: Kind;
    /// Its name as RBAC has it.
    const NAME: &'static str;
    /// The label selector.
    const LABELS: Option<&'static str> = None;

    /// The field selector.
    fn fields(&self) -> Option<String> {
        None
    }

    /// A listing begins.
    fn restarted(&mut self) {}

    /// An object exists.
    fn applied(&mut self, resource: Self::Resource) -> Vec<Change>;

    /// An object is gone.
    fn deleted(&mut self, resource: &Self::Resource) -> Vec<Change>;
}

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
struct Progress {
    strategy: Strategy,
    backoff: Backoff,
    said: Option<String>,
}

impl Watch {
    /// Follows a resource until nobody listens any more.
    pub(super) async fn follow<W: Watched>(&self, mut watched: W) {
        let mut progress = Progress {
            strategy: Strategy {
                streaming: true,
                fields: true,
            },
            backoff: Backoff::default(),
            said: None,
        };
        while let Left::Reopen = self.stream(&mut watched, &mut progress).await {}
    }

    async fn stream<W: Watched>(&self, watched: &mut W, progress: &mut Progress) -> Left {
        let Some((number, server, client)) = self.servers.current() else {
            return Left::Closed;
        };
        let api: Api<W::Resource> = api(client);
        let mut stream = pin!(watcher(api, config(watched, progress.strategy)));
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
            let event = match next.await {
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
                    if !self.take::<W>(event, watched, progress).await {
                        return Left::Closed;
                    }
                    continue;
                }
                Err(error) => error,
            };
            if progress.strategy.give_up(&error) {
                return Left::Reopen;
            }
            if !self.trouble::<W>(&error, server, progress).await {
                return Left::Closed;
            }
            let unreachable = matches!(Meaning::of(&error), Meaning::Unreachable | Meaning::Broken);
            let other = unreachable && self.servers.fail_over(number);
            tokio::select! {
                () = tokio::time::sleep(progress.backoff.next_wait()) => {}
                () = self.changes.closed() => return Left::Closed,
            }
            if other {
                return Left::Reopen;
            }
        }
    }

    /// Passes an event on. False if nobody listens.
    async fn take<W: Watched>(
        &self,
        event: Event<W::Resource>,
        watched: &mut W,
        progress: &mut Progress,
    ) -> bool {
        // `Init` proves nothing: in list mode each failing attempt begins with it.
        if matches!(event, Event::InitDone | Event::Apply(_) | Event::Delete(_)) {
            progress.backoff.reset();
            if progress.said.take().is_some() {
                let resolved = Report::Resolved {
                    object: object::<W>(),
                    file: None,
                };
                if self.reports.send(resolved).await.is_err() {
                    return false;
                }
            }
        }
        let changes = match event {
            Event::Init => {
                watched.restarted();
                vec![Change::Restart(W::KIND)]
            }
            Event::InitDone => vec![Change::Complete(W::KIND)],
            Event::InitApply(resource) | Event::Apply(resource) => watched.applied(resource),
            Event::Delete(resource) => watched.deleted(&resource),
        };
        for change in changes {
            if self.changes.send(change).await.is_err() {
                return false;
            }
        }
        true
    }

    /// Tells a trouble once for as long as it lasts. False if nobody listens.
    async fn trouble<W: Watched>(
        &self,
        error: &watcher::Error,
        server: &str,
        progress: &mut Progress,
    ) -> bool {
        let meaning = Meaning::of(error);
        let Some(problem) = meaning.problem() else {
            return true;
        };
        // A watch that breaks off and goes on at once is how servers restart.
        if meaning == Meaning::Broken && progress.backoff.failures() == 0 {
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

fn api<K: kube::Resource<DynamicType = ()>>(client: &Client) -> Api<K> {
    Api::all(client.clone())
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
            .filter(|_| strategy.fields || W::KIND == Kind::Node),
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

//! What the events of a watch mean: events in, changes and reports out. The network, waiting and
//! trying again are [`super::watch`]'s.

use super::guard::Guarded;
use crate::model::desired::ObjectName;
use crate::source::{Change, Kind, Problem, Report, SourceRefusal};
use kube::Resource;
use kube::runtime::watcher::Event;
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::fmt::Debug;

/// A resource and what its objects become.
pub trait Watched {
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
    /// API servers that do not have it are no trouble.
    const OPTIONAL: bool = false;

    /// The field selector.
    fn fields(&self) -> Option<String> {
        None
    }

    /// A listing begins.
    fn restarted(&mut self) {}

    /// The listing is complete.
    fn completed(&mut self) {}

    /// An object exists and does not decode.
    fn undecodable(&mut self, name: ObjectName) -> Vec<Change> {
        vec![Change::Keep(Self::KIND, name)]
    }

    /// An object exists.
    fn applied(&mut self, resource: Self::Resource) -> Vec<Change>;

    /// An object is gone.
    fn deleted(&mut self, name: ObjectName) -> Vec<Change> {
        vec![Change::Delete(Self::KIND, name)]
    }
}

/// One watch, as far as it has been read.
#[derive(Debug)]
pub struct Reading<W> {
    watched: W,
    /// Objects that do not decode, and those of them that the listing under way has not named yet.
    undecodable: BTreeSet<ObjectName>,
    unlisted: BTreeSet<ObjectName>,
}

impl<W: Watched> Reading<W> {
    /// A watch that has said nothing yet.
    pub const fn new(watched: W) -> Self {
        Self {
            watched,
            undecodable: BTreeSet::new(),
            unlisted: BTreeSet::new(),
        }
    }

    /// The resource.
    pub(super) const fn watched(&self) -> &W {
        &self.watched
    }

    /// What an event means, and what there is to say of it.
    pub fn read(&mut self, event: Event<Guarded<W::Resource>>) -> (Vec<Change>, Vec<Report>) {
        match event {
            Event::Init => {
                self.watched.restarted();
                self.unlisted.clone_from(&self.undecodable);
                (vec![Change::Restart(W::KIND)], Vec::new())
            }
            Event::InitDone => {
                self.watched.completed();
                let gone = std::mem::take(&mut self.unlisted);
                let reports = gone.iter().filter_map(|name| self.decodes(name));
                (vec![Change::Complete(W::KIND)], reports.collect())
            }
            Event::InitApply(Guarded::Object(resource))
            | Event::Apply(Guarded::Object(resource)) => {
                let resolved = self.decodes(&ObjectName::of(resource.meta()));
                let changes = self.watched.applied(resource);
                (changes, resolved.into_iter().collect())
            }
            Event::InitApply(Guarded::Undecodable { metadata, reason })
            | Event::Apply(Guarded::Undecodable { metadata, reason }) => {
                let name = ObjectName::of(&metadata);
                self.unlisted.remove(&name);
                self.undecodable.insert(name.clone());
                let report = Report::Refused(SourceRefusal {
                    problem: Problem::Undecodable,
                    object: format!("{} {name}", kind_of::<W>()),
                    file: None,
                    sentence: format!(
                        "{} {name} cannot be decoded: {reason}; what is known of it stays, all \
                         others go on",
                        kind_of::<W>()
                    ),
                });
                (self.watched.undecodable(name), vec![report])
            }
            Event::Delete(resource) => {
                let name = ObjectName::of(resource.meta());
                let resolved = self.decodes(&name);
                let changes = self.watched.deleted(name);
                (changes, resolved.into_iter().collect())
            }
        }
    }

    /// An object decodes again, or is gone: the trouble is over, if there was one.
    fn decodes(&mut self, name: &ObjectName) -> Option<Report> {
        self.unlisted.remove(name);
        self.undecodable.remove(name).then(|| Report::Resolved {
            object: format!("{} {name}", kind_of::<W>()),
            file: None,
        })
    }
}

/// The kind of a resource, as people write it.
fn kind_of<W: Watched>() -> String {
    <W::Resource as Resource>::kind(&()).into_owned()
}

//! What may be served at this moment: the state that was last written as a whole, and every state
//! that is being written since. What a client gets must follow from one of them.

use crate::host_path::First;
use lb_agent::model::desired::{DesiredService, Family, FrontendAddress, ServicePortName};
use lb_agent::plan::Refused;
use lb_common::addr::Protocol;
use lb_common::balance::Origin;
use lb_common::table::{EmptyAction, FrontendKind};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// What a client asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) to: SocketAddr,
    pub(super) protocol: Protocol,
    pub(super) origin: Origin,
    /// The address is this node's own.
    pub(super) is_node: bool,
}

/// What a client got.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Got {
    Backend(SocketAddr),
    Reject,
    Silence,
    /// Nobody took notice.
    Nothing,
}

impl From<First> for Got {
    fn from(first: First) -> Self {
        match first {
            First::Backend(backend, _) => Self::Backend(backend),
            First::Drop => Self::Silence,
            First::Reject => Self::Reject,
            First::Untouched => Self::Nothing,
        }
    }
}

/// The states that one service port may be in; the first is written as a whole.
#[derive(Debug, Default)]
struct Belief {
    states: Vec<Option<DesiredService>>,
    /// Which of all changes was its last.
    epoch: u64,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Beliefs {
    by_name: BTreeMap<ServicePortName, Belief>,
    /// Changes so far.
    changes: u64,
}

impl Beliefs {
    /// Every service port that is, was, or is about to be served.
    pub(super) fn names(&self) -> impl Iterator<Item = &ServicePortName> {
        self.by_name.keys()
    }

    /// From now on a service port may also be served so.
    pub(super) fn intend(&mut self, name: &ServicePortName, desired: Option<DesiredService>) {
        let belief = self.by_name.entry(name.clone()).or_insert_with(|| Belief {
            states: vec![None],
            epoch: 0,
        });
        belief.states.push(desired);
        self.changes += 1;
        belief.epoch = self.changes;
    }

    /// Everything is written. What was refused may be in any state that it was meant to be in.
    pub(super) fn settle(&mut self, refused: &BTreeMap<ServicePortName, Refused>) {
        self.by_name.retain(|name, belief| {
            if !refused.contains_key(name)
                && let Some(last) = belief.states.pop()
            {
                belief.states = vec![last];
            }
            belief.states != [None]
        });
    }

    /// Whether it may be that what the client got follows from a state that is served.
    pub(super) fn judge(&self, asked: &Asked, got: Got) -> Result<(), String> {
        let owners: Vec<_> = self.owners(asked).collect();
        let states = |belief: &Belief| -> Vec<Option<Usable>> {
            let states = belief.states.iter();
            states.map(|state| usable(state.as_ref()?, asked)).collect()
        };
        if let Got::Backend(backend) = got {
            let is_its = |(_, belief): &(&ServicePortName, &Belief)| {
                let states = belief.states.iter().flatten();
                states.into_iter().any(|state| has(state, &backend))
            };
            if owners.iter().any(is_its) {
                return Ok(());
            }
            return Err(format!(
                "was sent to {backend}, which serves nobody who listens there: {}",
                Owners(&owners, asked)
            ));
        }
        for (_, belief) in &owners {
            let all = states(belief);
            let certain = |one: &Option<Usable>| matches!(one, Some(Ok(ends)) if !ends.is_empty());
            if all.iter().all(certain) {
                return Err(format!(
                    "got {got:?}, although somebody serves: {}",
                    Owners(&owners, asked)
                ));
            }
            let ends_so = |one: &Option<Usable>| match (one, got) {
                (Some(Err(EmptyAction::Reject)), Got::Reject)
                | (Some(Err(EmptyAction::Drop)), Got::Silence) => true,
                (Some(Err(_)), _) => false,
                // Not there at all in one of the states, or somebody serves in one of them.
                _ => true,
            };
            if owners.len() == 1 && !all.iter().any(ends_so) {
                return Err(format!("got {got:?}: {}", Owners(&owners, asked)));
            }
        }
        Ok(())
    }

    /// The one service port that listens there in every state it may be in, with what tells whether
    /// it has changed since.
    pub(super) fn sole_owner<'a>(&'a self, asked: &'a Asked) -> Option<(&'a ServicePortName, u64)> {
        let mut owners = self.owners(asked);
        let (name, belief) = owners.next()?;
        let listens = |state: &Option<DesiredService>| {
            (state.as_ref()).is_some_and(|state| listens(state, asked).is_some())
        };
        let sole = owners.next().is_none() && belief.states.iter().all(listens);
        sole.then_some((name, belief.epoch))
    }

    /// The affinity timeout of a service port, if it is the same in every state.
    pub(super) fn affinity(&self, name: &ServicePortName) -> Option<u32> {
        let belief = self.by_name.get(name)?;
        let of = |state: &Option<DesiredService>| state.as_ref().and_then(|s| s.affinity_seconds);
        let first = of(belief.states.first()?)?;
        let same = belief.states.iter().all(|state| of(state) == Some(first));
        same.then_some(first)
    }

    /// Whether an endpoint is good for new connections where the client asks, in every state.
    pub(super) fn serves(&self, name: &ServicePortName, asked: &Asked, end: &SocketAddr) -> bool {
        let usable = |state: &Option<DesiredService>| usable(state.as_ref()?, asked)?.ok();
        let serves =
            |state: &Option<DesiredService>| usable(state).is_some_and(|ends| ends.contains(end));
        self.by_name
            .get(name)
            .is_some_and(|belief| belief.states.iter().all(serves))
    }

    /// Whether an endpoint belongs to a service port in some state, whatever it is good for.
    pub(super) fn has(&self, name: &ServicePortName, end: &SocketAddr) -> bool {
        let states = self
            .by_name
            .get(name)
            .into_iter()
            .flat_map(|one| &one.states);
        states
            .flatten()
            .any(|state| state.endpoints.contains_key(end))
    }

    fn owners<'a>(
        &'a self,
        asked: &'a Asked,
    ) -> impl Iterator<Item = (&'a ServicePortName, &'a Belief)> {
        let family = Family::of(asked.to.ip());
        self.by_name.iter().filter(move |(name, belief)| {
            name.protocol == asked.protocol
                && name.family == family
                && belief
                    .states
                    .iter()
                    .flatten()
                    .any(|state| listens(state, asked).is_some())
        })
    }
}

/// The endpoints a client may get, or what it gets instead.
type Usable = Result<BTreeSet<SocketAddr>, EmptyAction>;

/// The kind of frontend that a service port has where the client asks.
fn listens(state: &DesiredService, asked: &Asked) -> Option<FrontendKind> {
    let family = Family::of(asked.to.ip());
    let frontends = state.frontends.iter();
    frontends
        .filter(|frontend| frontend.port == asked.to.port())
        .find(|frontend| match frontend.address {
            FrontendAddress::Exact(address) => address == asked.to.ip(),
            FrontendAddress::NodePort(of) => asked.is_node && of == family,
        })
        .map(|frontend| frontend.kind)
}

fn usable(state: &DesiredService, asked: &Asked) -> Option<Usable> {
    let kind = listens(state, asked)?;
    let local = if kind == FrontendKind::ClusterIp {
        state.internal_local
    } else {
        state.external_local && asked.origin == Origin::Other
    };
    let members = state.endpoints.iter();
    let ends: BTreeSet<SocketAddr> = members
        .filter(|(_, member)| if local { member.local } else { member.cluster })
        .map(|(end, _)| *end)
        .collect();
    Some(if !ends.is_empty() {
        Ok(ends)
    } else if local {
        Err(state.local_empty)
    } else {
        Err(state.cluster_empty)
    })
}

/// Whether an endpoint is good for new connections, by whatever policy: policies change, too.
fn has(state: &DesiredService, end: &SocketAddr) -> bool {
    (state.endpoints.get(end)).is_some_and(|member| member.cluster || member.local)
}

/// For messages.
struct Owners<'a>(&'a [(&'a ServicePortName, &'a Belief)], &'a Asked);

impl fmt::Display for Owners<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, belief) in self.0 {
            write!(f, "{name} (")?;
            for state in &belief.states {
                match state.as_ref().map(|state| usable(state, self.1)) {
                    None => write!(f, "not there; ")?,
                    Some(None) => write!(f, "elsewhere; ")?,
                    Some(Some(usable)) => write!(f, "{usable:?}; ")?,
                }
            }
            f.write_str(") ")?;
        }
        Ok(())
    }
}

/// A client's address.
pub(super) fn is_pod(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.octets()[..2] == [10, 1],
        IpAddr::V6(ip) => ip.segments()[..2] == [0xfd00, 1],
    }
}

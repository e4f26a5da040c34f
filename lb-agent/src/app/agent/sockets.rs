//! Sockets of removed endpoints: when they are looked for, and what is told about it.
//!
//! They are looked for when the removal is written, again when every program that ran before has
//! ended (a `connect` under way may have chosen the endpoint just before), and with each sweep while
//! some are known to be open. Nothing is listed where no socket can be open.

use super::Agent;
use crate::datapath::{Closed, Look};
use crate::plan::Fence;
use lb_common::addr::{BackendId, Endpoint};
use std::collections::{BTreeSet, HashMap};
use tokio::task::JoinHandle;

/// Troubles that are remembered as told; some name a namespace, and those come and go.
const TOLD: usize = 64;

/// What is known of removed endpoints whose sockets are to be closed.
#[derive(Debug, Default)]
pub(super) struct Closing {
    /// Looked for once.
    again: Vec<(Fence, BackendId)>,
    /// To be looked for when the look under way is over.
    next: BTreeSet<BackendId>,
    look: Option<JoinHandle<Look>>,
    told: BTreeSet<String>,
    /// The kernel said that it cannot close sockets.
    unsupported: bool,
}

impl Agent {
    /// The removals are written.
    pub(super) fn close_left(&mut self) {
        let left = self.reconciler.take_left();
        let again = left.iter().filter_map(|(fence, id)| Some(((*fence)?, *id)));
        self.closing.again.extend(again);
        self.close_sockets(left.into_iter().map(|(_, id)| id));
    }

    /// What ran before the removals were written has ended.
    pub(super) fn close_graced(&mut self, fence: Fence) {
        let again = std::mem::take(&mut self.closing.again);
        let (over, waiting): (Vec<_>, Vec<_>) =
            again.into_iter().partition(|(since, _)| *since <= fence);
        self.closing.again = waiting;
        self.close_sockets(over.into_iter().map(|(_, id)| id));
    }

    /// Backends that are gone have sockets that are still open.
    pub(super) fn close_open(&mut self, open: &[BackendId]) {
        if !self.closing.unsupported {
            self.close_sockets(open.iter().copied());
        }
    }

    fn close_sockets(&mut self, backends: impl Iterator<Item = BackendId>) {
        self.closing.next.extend(backends);
        if self.closing.look.is_some() {
            return;
        }
        let mut gone: HashMap<BackendId, Endpoint> = HashMap::new();
        for id in std::mem::take(&mut self.closing.next) {
            // What came back in the meantime keeps its sockets.
            if let Some(end) = self.reconciler.planner().gone_datagrams(id)
                && self.datapath.has_open_sockets(id).unwrap_or(true)
            {
                gone.insert(id, end);
            }
        }
        if gone.is_empty() {
            return;
        }
        match self.datapath.closer() {
            Ok(closer) => {
                let look = tokio::task::spawn_blocking(move || closer.close(gone));
                self.closing.look = Some(look);
            }
            Err(error) => tracing::warn!(
                %error,
                "the table of sockets cannot be opened: sockets of removed endpoints stay open"
            ),
        }
    }

    /// A look is over.
    pub(super) fn take_look(&mut self, look: Look) {
        self.closing.look = None;
        let mut troubles = look.troubles;
        let mut all = look.pods.unwrap_or_default();
        all += look.host;
        if all.unsupported > 0 {
            self.closing.unsupported = true;
            troubles.push(
                "this kernel cannot close sockets (CONFIG_INET_DIAG_DESTROY is not set): UDP \
                 sockets that are connected to a removed endpoint stay so until their programs \
                 connect them again"
                    .to_owned(),
            );
        }
        if self.closing.told.len() > TOLD {
            self.closing.told.clear();
        }
        for trouble in troubles {
            if !self.closing.told.contains(&trouble) {
                tracing::warn!("{trouble}");
                self.closing.told.insert(trouble);
            }
        }
        if all.closed > 0 {
            tracing::info!(all.closed, "closed UDP sockets of removed endpoints");
        }
        if all != Closed::default() {
            self.snapshot.send_modify(|snapshot| {
                snapshot.closed_host_sockets += look.host;
                if let Some(pods) = look.pods {
                    *snapshot.closed_pod_sockets.get_or_insert_default() += pods;
                }
            });
        }
        self.close_sockets(std::iter::empty());
    }
}

/// The end of the look under way; never, if there is none.
pub(super) async fn looked(closing: &mut Closing) -> Look {
    match &mut closing.look {
        Some(look) => look.await.unwrap_or_default(),
        None => std::future::pending().await,
    }
}

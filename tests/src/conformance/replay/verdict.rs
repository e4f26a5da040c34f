//! What became of the connections of a flow, in the words of a case.

use super::client::{Attempt, Fate, attempt};
use super::site::Site;
use super::wiring::LINKS;
use super::{Mode, broken};
use crate::conformance::Outcome;
use crate::conformance::answer::Answer;
use crate::conformance::deviations::{Deviation, SCTP, SOCKET_SOURCE};
use crate::conformance::traffic::{Endpoints, ExpectState, Flow, Notes, Step, Subject};
use crate::host_path::{REFUSALS, SILENCES};
use anyhow::{Context, Result, bail, ensure};
use lb_agent::model::desired::Family;
use lb_common::table::{LAYOUT_VERSION, name};
use lb_common::verdict::Reason;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// How often each endpoint is to be drawn on average.
const DRAWS: u32 = 60;
/// A draw is rarer or more frequent by this factor about once in 10^9 times.
const UNEQUAL: u32 = 3;

impl Site {
    /// How often each reason was counted.
    fn counted(&self) -> Result<Vec<(Reason, u64)>> {
        Ok(self.reader()?.reasons()?)
    }

    /// The reasons that were counted since.
    fn counted_since(&self, before: &[(Reason, u64)]) -> Result<Vec<Reason>> {
        let now = self.counted()?.into_iter().zip(before);
        Ok(now
            .filter(|((_, now), (_, before))| now > before)
            .map(|((reason, _), _)| reason)
            .collect())
    }

    fn ask(&self, flow: &Flow) -> Result<Answer> {
        let (draws, expects_silence) = match &flow.expect.endpoints {
            Endpoints::List(list) => (DRAWS * u32::try_from(list.len().max(1))?, false),
            Endpoints::Word(word) => (1, word == "drop"),
        };
        let bpffs = self.agent.as_ref().context("no agent runs")?.bpffs();
        let affinity: PathBuf = bpffs
            .join(format!("v{LAYOUT_VERSION}/maps"))
            .join(name::AFFINITY);
        let to = SocketAddr::new(flow.destination, flow.dest_port);
        let before = self.counted()?;
        let place = self.place_of(flow.source);
        let fates = attempt(
            place,
            Attempt {
                from: flow.source,
                to,
                udp: flow.protocol == "UDP",
                draws,
                expects_silence,
                affinity: &affinity,
            },
        )?;
        let counted = self.counted_since(&before)?;
        self.judge(flow, to, &fates, &counted)
    }

    fn judge(
        &self,
        flow: &Flow,
        to: SocketAddr,
        fates: &[Fate],
        counted: &[Reason],
    ) -> Result<Answer> {
        let mut seen: BTreeMap<SocketAddr, u32> = BTreeMap::new();
        let mut masqueraded = BTreeSet::new();
        let was = |reasons: &[Reason]| counted.iter().any(|reason| reasons.contains(reason));
        for fate in fates {
            match fate {
                Fate::Answered(answer) if answer.local != to => {
                    *seen.entry(answer.local).or_default() += 1;
                    masqueraded.insert(self.is_masqueraded(flow, answer.peer.ip())?);
                }
                Fate::Refused if was(&REFUSALS) => return Ok(Answer::Reject),
                // The one that was asked, somebody else on the node, or nobody there.
                Fate::Answered(_) | Fate::Foreign | Fate::Refused => return Ok(Answer::Untouched),
                Fate::Silence if was(&SILENCES) => return Ok(Answer::Drop),
                Fate::Silence => bail!("nothing came back; counted were {counted:?}"),
            }
        }
        let average = u32::try_from(fates.len() / seen.len().max(1))?;
        let uneven = |count: u32| count * UNEQUAL < average || count > average * UNEQUAL;
        if let Some((address, count)) = seen.iter().find(|(_, count)| uneven(**count)) {
            bail!(
                "{address} was chosen {count} times of {}: not about equal",
                fates.len()
            );
        }
        ensure!(
            masqueraded.len() == 1,
            "some draws are SNATed and some are not"
        );
        Ok(Answer::Forward {
            endpoints: seen.into_keys().collect(),
            masquerade: masqueraded.contains(&true),
        })
    }

    /// Whether the endpoint saw another address of the node in the place of the client's.
    fn is_masqueraded(&self, flow: &Flow, peer: IpAddr) -> Result<bool> {
        if peer == flow.source {
            // A process of the node: its address need not be replaced by another one of the node.
            return Ok(self.is_own(peer) && flow.expect.masq);
        }
        let mut links = LINKS.iter().flat_map(|link| link.addresses(1));
        ensure!(
            self.is_own(peer) || links.any(|own| own == peer),
            "the endpoint saw {peer}"
        );
        Ok(true)
    }
}

impl Subject for Site {
    fn apply(&mut self, step: &Step<'_>) -> Result<(), Outcome> {
        self.change(step).map_err(|error| broken(&error))
    }

    fn answer(&mut self, flow: &Flow) -> Result<Answer, String> {
        if flow.protocol == "SCTP" {
            // The host's answer counts: few kernels have sockets of it.
            return Ok(Answer::Untouched);
        }
        self.ask(flow).map_err(|error| format!("{error:#}"))
    }

    fn deviation(
        &self,
        flow: &Flow,
        expected: &Answer,
        got: &Answer,
    ) -> Option<&'static Deviation> {
        if flow.protocol == "SCTP" {
            return Some(&SCTP);
        }
        match self.mode {
            Mode::All => match (expected, got) {
                (
                    Answer::Forward {
                        endpoints: wanted,
                        masquerade: true,
                    },
                    Answer::Forward {
                        endpoints,
                        masquerade: false,
                    },
                ) if wanted == endpoints && self.routed.contains(&flow.source) => {
                    Some(&SOCKET_SOURCE)
                }
                _ => None,
            },
            Mode::Off => None,
        }
    }

    fn check_state(&self, _: &ExpectState, _: Family, _: &mut Notes) {
        // Gauges and health ports are the model's, which the host run looks at.
    }
}

//! Devices, addresses and hooks: what the loop does when the machine has changed.

use super::Agent;
use crate::datapath::DeviceProblem;
use crate::model::desired::Family;
use crate::model::frontend::select_node_port_addresses;
use crate::net::Facts;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

impl Agent {
    /// An agent with another table layout ran here before: now that everything is served by ours,
    /// its programs and tables go.
    pub(super) fn take_over(&mut self) {
        let ready = self.snapshot.borrow().synced && !self.facts.devices.is_empty();
        if !ready || !self.datapath.succeeds_another_layout() {
            return;
        }
        let taken =
            self.datapath
                .take_over(&self.facts, self.reconciler.state().options(), &self.node);
        match taken {
            Ok(removed) => {
                for directory in removed {
                    tracing::info!(
                        directory = %directory.display(),
                        "took over from an agent with another table layout; connections that its \
                         flow table carried on the packet path end"
                    );
                }
            }
            Err(error) => tracing::warn!(
                error = format!("{:#}", anyhow::Error::from(error)),
                "what an agent with another table layout left is still attached"
            ),
        }
    }

    pub(super) fn take_facts(&mut self, facts: Facts) {
        let own = facts.own_addresses().map(|own| own.address).collect();
        self.facts = facts;
        let follows = self.reconciler.set_host_addresses(own);
        self.update_machine();
        self.take_over();
        if follows {
            self.write();
        }
    }

    pub(super) fn update_machine(&mut self) {
        let updated = self.datapath.update_machine(
            &self.facts,
            self.reconciler.state().options(),
            &self.node,
        );
        let problems = match updated {
            Ok(problems) => problems,
            Err(error) => vec![DeviceProblem {
                device: String::new(),
                message: format!("the tables about this node cannot be written: {error}"),
            }],
        };
        for problem in &problems {
            tracing::warn!(device = problem.device, "{}", problem.message);
        }
        let devices = self.datapath.device_names(&self.facts);
        let attached = problems.is_empty() || !devices.is_empty();
        let health_addresses = self.health_addresses();
        let node_eligible = self.node.eligible;
        self.device_problems = problems;
        self.snapshot.send_modify(|snapshot| {
            snapshot.attached = attached;
            snapshot.health_addresses = health_addresses;
            snapshot.node_eligible = node_eligible;
        });
        self.report();
    }

    /// Where health check node ports are served: where node ports are.
    fn health_addresses(&self) -> Vec<IpAddr> {
        let own: Vec<IpAddr> = (self.facts.addresses.iter())
            .map(|address| address.address)
            .collect();
        let mut found = Vec::new();
        for (family, all) in [
            (Family::V4, IpAddr::from(Ipv4Addr::UNSPECIFIED)),
            (Family::V6, IpAddr::from(Ipv6Addr::UNSPECIFIED)),
        ] {
            let options = self.reconciler.state().options();
            let chosen = select_node_port_addresses(options, &self.node, &own, family);
            if chosen.match_all {
                found.push(all);
            } else {
                found.extend(chosen.addresses);
            }
        }
        found
    }

    pub(super) fn configure(&mut self) {
        if let Err(error) = self
            .datapath
            .configure(self.reconciler.state().options(), &self.node)
        {
            tracing::error!(%error, "the configuration cannot be written");
        }
        self.update_machine();
    }

    /// Takes the pods that are opted out of socket balancing, once it is known which.
    pub(super) fn follow_pods(&mut self) {
        if let Some(pods) = self.reconciler.take_opted_out()
            && self.pods.want(pods)
        {
            self.look_for_pods();
        }
    }

    /// Follows the cgroups of these pods.
    pub(super) fn look_for_pods(&mut self) {
        if let Err(error) = self.datapath.set_opted_out(&self.pods.look()) {
            tracing::warn!(%error, "cannot write whose sockets are not balanced; trying again");
        }
    }

    pub(super) fn probe(&mut self) {
        let answer = self.datapath.probe();
        let mended = match &answer {
            Ok(()) => 0,
            Err(wrong) => self.mend(wrong),
        };
        self.snapshot.send_modify(|snapshot| {
            // The next probe tells whether mending helped.
            snapshot.probe = Some(answer);
            snapshot.mended += mended;
        });
    }

    /// Puts back what somebody else detached, and says so.
    fn mend(&mut self, wrong: &str) -> u64 {
        let mended = self
            .datapath
            .mend(&self.facts, self.reconciler.state().options(), &self.node);
        match mended {
            Ok(0) => {
                tracing::error!(wrong, "the datapath does not work as it should");
                0
            }
            Ok(places) => {
                tracing::warn!(wrong, places, "attached again");
                places
            }
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::from(error));
                tracing::error!(wrong, error, "cannot be attached again; tried again soon");
                0
            }
        }
    }
}

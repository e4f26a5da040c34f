//! Refusing the undefined ports of ClusterIPs: one entry for each ClusterIP that has a frontend,
//! whoever's they are.

use super::Planner;
use super::op::{Op, Steps};
use lb_common::addr::{Addr, ServiceId};
use lb_common::table::{Frontend, FrontendKey, FrontendKind};

impl Planner {
    /// Notes a frontend as the table will hold it.
    pub(super) fn put_frontend(&mut self, key: FrontendKey, value: Frontend) {
        self.take_frontend(&key);
        self.frontends.insert(key, value);
        if is_cluster_ip(value) {
            let count = self.cluster_ips.entry(key.addr).or_default();
            *count += 1;
            if *count == 1 {
                let entry = FrontendKey::any_port(key.addr);
                let was = self.frontends.insert(entry, self.any_port(&entry));
                self.moved_cluster_ips
                    .entry(key.addr)
                    .or_insert(was.is_some());
            }
        }
    }

    /// Notes that a frontend will be gone.
    pub(super) fn take_frontend(&mut self, key: &FrontendKey) {
        let Some(value) = self.frontends.remove(key) else {
            return;
        };
        if is_cluster_ip(value)
            && let Some(count) = self.cluster_ips.get_mut(&key.addr)
        {
            *count -= 1;
            if *count == 0 {
                self.cluster_ips.remove(&key.addr);
                let was = self.frontends.remove(&FrontendKey::any_port(key.addr));
                self.moved_cluster_ips
                    .entry(key.addr)
                    .or_insert(was.is_some());
            }
        }
    }

    /// How many entries these ClusterIPs would add.
    pub(super) fn new_any_ports(&self, addresses: impl Iterator<Item = Addr>) -> usize {
        let mut new: Vec<Addr> = addresses
            .filter(|address| {
                !self
                    .frontends
                    .contains_key(&FrontendKey::any_port(*address))
            })
            .collect();
        new.sort_unstable_by_key(Addr::octets);
        new.dedup();
        new.len()
    }

    /// Writes down what became of the entries in this plan.
    pub(super) fn settle_any_ports(&mut self, steps: &mut Steps) {
        let mut moved: Vec<_> = self.moved_cluster_ips.drain().collect();
        moved.sort_unstable_by_key(|(address, _)| address.octets());
        for (address, was) in moved {
            let key = FrontendKey::any_port(address);
            let is = self.frontends.contains_key(&key);
            if is && !was {
                self.set_frontend_bit(&key, steps);
                steps.any_ports.push(Op::Frontend(key, self.any_port(&key)));
            } else if was && !is {
                steps.any_ports_removed.push(Op::RemoveFrontend(key));
                self.fade_frontend_bit(&key);
            }
        }
    }

    /// What is under the entry's key.
    fn any_port(&self, key: &FrontendKey) -> Frontend {
        Frontend::ANY_PORT.sealed(&self.keys, key)
    }

    /// Counts the ClusterIPs of tables that were found, whose writer may have ended between a
    /// frontend and the entry for the other ports.
    pub(super) fn adopt_any_ports(&mut self) {
        let (entries, others): (Vec<FrontendKey>, Vec<FrontendKey>) =
            self.frontends.keys().partition(|key| key.is_any_port());
        for key in others {
            if self
                .frontends
                .get(&key)
                .is_some_and(|frontend| is_cluster_ip(*frontend))
            {
                *self.cluster_ips.entry(key.addr).or_default() += 1;
            }
        }
        for key in entries {
            if !self.cluster_ips.contains_key(&key.addr) {
                self.frontends.remove(&key);
                self.moved_cluster_ips.insert(key.addr, true);
            }
        }
        for address in self.cluster_ips.keys() {
            let key = FrontendKey::any_port(*address);
            let value = Frontend::ANY_PORT.sealed(&self.keys, &key);
            if self.frontends.insert(key, value).is_none() {
                self.moved_cluster_ips.insert(*address, false);
            }
        }
    }
}

/// True for frontends of services; the one of the agent's own probe is nobody's.
fn is_cluster_ip(frontend: Frontend) -> bool {
    frontend.kind == FrontendKind::ClusterIp as u8 && frontend.service != ServiceId(0)
}

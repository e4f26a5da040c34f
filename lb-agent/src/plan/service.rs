//! One service port: from what it is to what it should be.

use super::op::{Op, Refused, Resource, Steps};
use super::range::ranges_of;
use super::record::{
    count_in, flags_of, frontend_of, keys_of, ranges, ranges_with_generation, record, same_set,
    sets_of,
};
use super::{Gone, Member, Planner, Retired, Served};
use crate::model::desired::{DesiredService, ServicePortName};
use lb_common::addr::{Addr, BackendId, Port, Protocol, ServiceId};
use lb_common::table::{
    Backend, BackendState, FrontendKey, FrontendKind, Membership, NAME_TEXT, Slot, Window,
};
use std::collections::HashSet;

/// Windows allocated, backends taken: what a refused change gives back.
#[derive(Default)]
struct Taken {
    service: Option<u32>,
    backends: Vec<u32>,
    windows: Vec<(u32, u32)>,
}

impl Planner {
    /// Brings one service port to `desired`, or leaves it as it is.
    pub(super) fn serve(
        &mut self,
        name: &ServicePortName,
        desired: &DesiredService,
        steps: &mut Steps,
    ) -> Result<(), Refused> {
        let mut taken = Taken::default();
        let result = self.prepare(name, desired, &mut taken);
        match result {
            Ok(next) => {
                self.switch(name, desired, next, steps);
                Ok(())
            }
            Err(refused) => {
                for (start, count) in taken.windows {
                    self.slots.give(start, count);
                }
                for id in taken.backends.into_iter().rev() {
                    self.backend_ids.undo(id);
                }
                if let Some(id) = taken.service {
                    self.service_ids.undo(id);
                }
                Err(refused)
            }
        }
    }

    /// Takes everything the change needs, and says what the service port will be.
    fn prepare(
        &mut self,
        name: &ServicePortName,
        desired: &DesiredService,
        taken: &mut Taken,
    ) -> Result<Served, Refused> {
        check_name(name)?;
        self.check_frontends(desired, name.protocol)?;
        let old = self.services.get(name);
        let id = if let Some(old) = old {
            old.id
        } else {
            let id = self
                .service_ids
                .take()
                .ok_or_else(|| Refused::new(Resource::Services, 1))?;
            taken.service = Some(id);
            ServiceId(id)
        };
        let mut next = Served {
            id,
            protocol: name.protocol,
            flags: flags_of(desired),
            affinity_seconds: desired.affinity_seconds.unwrap_or(0),
            algorithm: desired.algorithm,
            frontends: keys_of(desired, name.protocol)
                .map(|(key, _)| key)
                .collect(),
            ranges: ranges_of(id, desired),
            members: Vec::new(),
            cluster: Window::empty(desired.cluster_empty, 0),
            local: Window::empty(desired.local_empty, 0),
            generation: old.map_or(0, |old| old.generation),
            torn: false,
        };
        next.members = self.members(id, old_members(old), desired, taken)?;
        self.check_ranges(&next.ranges)?;
        self.windows(name, desired, &mut next, taken)?;
        Ok(next)
    }

    fn check_frontends(&self, desired: &DesiredService, protocol: Protocol) -> Result<(), Refused> {
        let more = keys_of(desired, protocol)
            .filter(|(key, _)| !self.frontends.contains_key(key))
            .count()
            + self.new_any_ports(
                keys_of(desired, protocol)
                    .filter(|(_, frontend)| frontend.kind == FrontendKind::ClusterIp)
                    .map(|(key, _)| key.addr),
            );
        if self.frontends.len() + more > self.limits.frontends as usize {
            return Err(Refused::new(Resource::Frontends, more));
        }
        Ok(())
    }

    /// The endpoints with their backend ids: those they have, those they had, or new ones.
    fn members(
        &mut self,
        service: ServiceId,
        old: Vec<Member>,
        desired: &DesiredService,
        taken: &mut Taken,
    ) -> Result<Vec<Member>, Refused> {
        let known: std::collections::HashMap<(Addr, Port), BackendId> = old
            .into_iter()
            .map(|member| ((member.addr, member.port), member.id))
            .collect();
        let mut members = Vec::with_capacity(desired.endpoints.len());
        for (end, endpoint) in &desired.endpoints {
            let (addr, port) = (Addr::from(end.ip()), Port::new(end.port()));
            let id = if let Some(id) = known
                .get(&(addr, port))
                .or_else(|| self.gone_by_end.get(&(service, addr, port)))
            {
                *id
            } else {
                let id = self
                    .backend_ids
                    .take()
                    .ok_or_else(|| Refused::new(Resource::Backends, desired.endpoints.len()))?;
                taken.backends.push(id);
                BackendId(id)
            };
            members.push(Member {
                addr,
                port,
                id,
                sets: sets_of(*endpoint),
                draining: endpoint.draining,
                on_this_node: endpoint.on_this_node,
            });
        }
        Ok(members)
    }

    /// The windows of `next`: the ones published already where the set is the same, else new ones.
    fn windows(
        &mut self,
        name: &ServicePortName,
        desired: &DesiredService,
        next: &mut Served,
        taken: &mut Taken,
    ) -> Result<(), Refused> {
        let old = self.services.get(name);
        let keep = |set: u8, published: fn(&Served) -> Window| {
            old.filter(|old| !old.torn && same_set(&old.members, &next.members, set))
                .map(published)
                .filter(|window| window.count > 0)
        };
        let kept_cluster = keep(Membership::CLUSTER, |old| old.cluster);
        let kept_local = keep(Membership::LOCAL, |old| old.local);
        let cluster_count = count_in(&next.members, Membership::CLUSTER)?;
        let local_count = count_in(&next.members, Membership::LOCAL)?;

        next.cluster = match (kept_cluster, cluster_count) {
            (Some(window), _) => window,
            (None, 0) => Window::empty(desired.cluster_empty, 0),
            (None, count) => self.new_window(next, count, taken)?,
        };
        let shared = next
            .members
            .iter()
            .all(|m| (m.sets & Membership::CLUSTER != 0) == (m.sets & Membership::LOCAL != 0));
        next.local = match (kept_local, local_count) {
            (_, 0) => Window::empty(desired.local_empty, 0),
            (Some(window), _) => window,
            (None, _) if shared => next.cluster,
            (None, count) => self.new_window(next, count, taken)?,
        };
        Ok(())
    }

    fn new_window(
        &mut self,
        next: &mut Served,
        count: u16,
        taken: &mut Taken,
    ) -> Result<Window, Refused> {
        let start = self
            .slots
            .take(u32::from(count))
            .ok_or_else(|| Refused::new(Resource::Slots, usize::from(count)))?;
        taken.windows.push((start, u32::from(count)));
        next.generation = next.generation.wrapping_add(1);
        Ok(Window {
            start,
            count,
            generation: next.generation,
        })
    }

    /// Writes down the way from what is served to `next`, and makes it what is served.
    fn switch(
        &mut self,
        name: &ServicePortName,
        desired: &DesiredService,
        next: Served,
        steps: &mut Steps,
    ) {
        let old = self.services.remove(name);
        self.switch_backends(old.as_ref(), &next, steps);
        Self::write_windows(old.as_ref(), &next, steps);
        if old.is_none() {
            if self.used_before.contains(&next.id) {
                steps.services.push(Op::ResetCounters(next.id));
            }
            self.used_before.insert(next.id);
            steps.services.push(Op::Name(next.id, name.clone()));
        }
        Self::publish(old.as_ref(), &next, steps);
        self.switch_ranges(old.as_ref(), Some(&next), steps);
        for (key, frontend) in keys_of(desired, name.protocol) {
            let value = frontend_of(&next, frontend).sealed(&self.keys, &key);
            if self.frontends.get(&key) != Some(&value) {
                self.set_frontend_bit(&key, steps);
                steps.frontends.push(Op::Frontend(key, value));
                self.put_frontend(key, value);
            }
        }
        if let Some(old) = old {
            let kept: HashSet<&FrontendKey> = next.frontends.iter().collect();
            for key in old.frontends.iter().filter(|key| !kept.contains(key)) {
                self.remove_frontend(key, old.id, steps);
            }
            for range in ranges(&old) {
                if !ranges(&next).contains(&range) {
                    self.retire(Retired::Slots {
                        start: range.0,
                        count: range.1,
                    });
                }
            }
        }
        self.services.insert(name.clone(), next);
    }

    /// New and changed backends first, with the sets they were in and the sets they will be in;
    /// those that lose something fade at the end of the plan.
    fn switch_backends(&mut self, old: Option<&Served>, next: &Served, steps: &mut Steps) {
        let before: std::collections::HashMap<BackendId, Member> = old
            .map(|old| old.members.iter().map(|m| (m.id, *m)).collect())
            .unwrap_or_default();
        for member in &next.members {
            let was = before.get(&member.id);
            if was == Some(member) {
                continue;
            }
            let mut first = *member;
            first.sets |= was.map_or(0, |was| was.sets);
            steps
                .backends
                .push(Op::Backend(member.id, record(next, &first)));
            if first.sets != member.sets {
                steps
                    .faded
                    .push(Op::Backend(member.id, record(next, member)));
            }
            if was.is_none() {
                self.not_gone(member.id);
                self.set_backend_bit(member, next.protocol, steps);
            }
        }
        let Some(old) = old else { return };
        let after: HashSet<BackendId> = next.members.iter().map(|m| m.id).collect();
        for member in old.members.iter().filter(|m| !after.contains(&m.id)) {
            self.fade(old, member, steps);
        }
    }

    fn fade(&mut self, service: &Served, member: &Member, steps: &mut Steps) {
        self.leave(member.id, record(service, member), steps);
    }

    /// A backend leaves: no set has it any more, flows may.
    pub(super) fn leave(&mut self, id: BackendId, mut backend: Backend, steps: &mut Steps) {
        backend.member = 0;
        backend.state = BackendState::Gone as u8;
        steps.faded.push(Op::Backend(id, backend));
        if backend.protocol == Protocol::UDP {
            steps.left.push(id);
        }
        self.add_gone(
            id,
            Gone {
                service: backend.service,
                addr: backend.addr,
                port: backend.port,
                protocol: backend.protocol,
                since: self.fence,
            },
        );
        self.bits_stale = true;
    }

    /// The slots of windows that are new.
    pub(super) fn write_windows(old: Option<&Served>, next: &Served, steps: &mut Steps) {
        let before = old.map(ranges_with_generation).unwrap_or_default();
        let mut written = before;
        for (window, set) in [
            (next.cluster, Membership::CLUSTER),
            (next.local, Membership::LOCAL),
        ] {
            if window.count == 0 || written.contains(&window.to_word()) {
                continue;
            }
            written.push(window.to_word());
            let slots = next
                .members
                .iter()
                .filter(|member| member.sets & set != 0)
                .map(|member| Slot {
                    addr: member.addr,
                    backend: member.id,
                    service: next.id,
                    port: member.port,
                    generation: window.generation,
                    reserved: [0; 4],
                })
                .collect();
            steps.slots.push(Op::Slots {
                start: window.start,
                slots,
            });
        }
    }

    /// Window words and policy, where they differ. A policy that turns to another set finds its
    /// window published, and one that turns away does not lose it before: a window that is emptied
    /// comes last.
    pub(super) fn publish(old: Option<&Served>, next: &Served, steps: &mut Steps) {
        let windows = [
            (false, old.map(|old| old.cluster), next.cluster),
            (true, old.map(|old| old.local), next.local),
        ];
        let torn = old.is_some_and(|old| old.torn);
        let differ =
            |(_, before, window): &(bool, Option<Window>, Window)| torn || *before != Some(*window);
        let is_emptied = |(_, before, window): &(bool, Option<Window>, Window)| {
            window.count == 0 && before.is_some_and(|before| before.count > 0)
        };
        let (emptied, filled): (Vec<_>, Vec<_>) =
            (windows.into_iter().filter(differ)).partition(is_emptied);
        let op = |(local, _, window): (bool, Option<Window>, Window)| Op::Window {
            service: next.id,
            local,
            word: window.to_word(),
        };
        steps.services.extend(filled.into_iter().map(op));
        let policy = |served: &Served| (served.flags, served.affinity_seconds, served.algorithm);
        if old.map(policy) != Some(policy(next)) {
            steps.services.push(Op::Policy {
                service: next.id,
                flags: next.flags,
                affinity_seconds: next.affinity_seconds,
                algorithm: next.algorithm,
            });
        }
        steps.services.extend(emptied.into_iter().map(op));
    }

    fn remove_frontend(&mut self, key: &FrontendKey, owner: ServiceId, steps: &mut Steps) {
        // Another service may have taken it over in the meantime; then it is not ours to remove.
        if self
            .frontends
            .get(key)
            .is_some_and(|frontend| frontend.service == owner)
        {
            self.take_frontend(key);
            steps.removed.push(Op::RemoveFrontend(*key));
            self.fade_frontend_bit(key);
        }
    }

    /// A service port goes: its frontends at once, its record after the grace period.
    pub(super) fn forget(&mut self, name: &ServicePortName, steps: &mut Steps) {
        let Some(old) = self.services.remove(name) else {
            return;
        };
        for key in &old.frontends {
            self.remove_frontend(key, old.id, steps);
        }
        self.switch_ranges(Some(&old), None, steps);
        for member in &old.members {
            self.fade(&old, member, steps);
        }
        for (start, count) in ranges(&old) {
            self.retire(Retired::Slots { start, count });
        }
        self.retire(Retired::Service(old.id));
        self.ending.insert(old.id, false);
    }
}

fn check_name(name: &ServicePortName) -> Result<(), Refused> {
    let lengths = [
        name.service.namespace.len(),
        name.service.name.len(),
        name.port.len(),
    ];
    let total: usize = lengths.iter().sum();
    if total > NAME_TEXT || lengths.iter().any(|&length| length > usize::from(u8::MAX)) {
        return Err(Refused::new(Resource::Name, total));
    }
    Ok(())
}

fn old_members(old: Option<&Served>) -> Vec<Member> {
    old.map(|old| old.members.clone()).unwrap_or_default()
}

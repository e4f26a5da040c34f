//! The address filter: bits are set at once and cleared by a rebuild that knows the live flows.

use super::op::{Op, Plan, Steps};
use super::{Fence, Member, Planner};
use lb_common::addr::{Addr, Endpoint, Protocol};
use lb_common::hash::HashKeys;
use lb_common::table::{AddressBits, FrontendKey};

impl Planner {
    /// True if a rebuild might clear bits.
    pub fn bits_stale(&self) -> bool {
        self.bits_stale
    }

    /// Clears the bits that neither what is served nor a live flow needs. `graced` is the fence
    /// that was over when the look at the flows began; `live` holds the bits of the flows seen.
    pub fn rebuild_bits(&mut self, graced: Fence, live: &AddressBits) -> Plan {
        let mut bits = Box::new(*live);
        let mut set = |(index, mask): (usize, u64)| bits.words[index] |= mask;
        self.fading_bits.retain(|(since, _)| *since > graced);
        for (_, position) in &self.fading_bits {
            set(*position);
        }
        for key in self.frontends.keys() {
            set(frontend_position(&self.keys, key));
        }
        for (member, protocol) in self
            .services
            .values()
            .flat_map(|served| served.members.iter().map(|m| (m, served.protocol)))
        {
            let keys = &self.keys;
            set(AddressBits::backend_bit(
                keys,
                &member.addr,
                member.port,
                protocol,
            ));
        }
        for gone in self.gone.values() {
            set(AddressBits::backend_bit(
                &self.keys,
                &gone.addr,
                gone.port,
                gone.protocol,
            ));
        }
        self.bits_stale = !self.fading_bits.is_empty() || !self.gone.is_empty();
        let ops = (bits.words.iter().zip(&self.bits.words))
            .enumerate()
            .filter(|(_, (new, old))| new != old)
            .map(|(index, (value, _))| Op::Bits {
                index,
                value: *value,
            })
            .collect();
        self.bits = bits;
        Plan {
            ops,
            ..Plan::default()
        }
    }

    /// The bits of a live flow: its request, at whatever frontend, and its reply.
    pub fn mark_flow(
        keys: &HashKeys,
        bits: &mut AddressBits,
        frontend: &Endpoint,
        backend: Option<&Endpoint>,
        protocol: Protocol,
    ) {
        let mut set = |(index, mask): (usize, u64)| bits.words[index] |= mask;
        set(AddressBits::frontend_bit(
            keys,
            &frontend.addr,
            frontend.port,
            protocol,
        ));
        // The frontend may have been a node port, which is asked for under the wildcard.
        set(AddressBits::frontend_bit(
            keys,
            &Addr::UNSPECIFIED,
            frontend.port,
            protocol,
        ));
        if let Some(backend) = backend {
            set(AddressBits::backend_bit(
                keys,
                &backend.addr,
                backend.port,
                protocol,
            ));
        }
    }

    pub(super) fn set_frontend_bit(&mut self, key: &FrontendKey, steps: &mut Steps) {
        let position = frontend_position(&self.keys, key);
        self.set_bit(position, steps);
    }

    pub(super) fn fade_frontend_bit(&mut self, key: &FrontendKey) {
        let position = frontend_position(&self.keys, key);
        self.fading_bits.push((self.fence, position));
        self.bits_stale = true;
    }

    pub(super) fn set_backend_bit(
        &mut self,
        member: &Member,
        protocol: Protocol,
        steps: &mut Steps,
    ) {
        let position = AddressBits::backend_bit(&self.keys, &member.addr, member.port, protocol);
        self.set_bit(position, steps);
    }

    fn set_bit(&mut self, (index, mask): (usize, u64), steps: &mut Steps) {
        let word = &mut self.bits.words[index];
        if *word & mask == 0 {
            *word |= mask;
            steps.bits.push(Op::Bits {
                index,
                value: *word,
            });
        }
    }
}

/// Where the hooks look for a frontend: a node port under the unspecified address.
fn frontend_position(keys: &HashKeys, key: &FrontendKey) -> (usize, u64) {
    AddressBits::frontend_bit(keys, &key.addr, key.port, key.protocol)
}

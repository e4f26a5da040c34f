//! The address filter: bits are set at once and cleared by a rebuild that knows the live flows.

use super::op::{Op, Plan, Steps};
use super::{Fence, Member, Planner};
use lb_common::addr::{Endpoint, Protocol};
use lb_common::hash::HashKeys;
use lb_common::table::{AddressBits, Bit, FrontendKey};

impl Planner {
    /// True if a rebuild might clear bits.
    pub fn bits_stale(&self) -> bool {
        self.bits_stale
    }

    /// Clears the bits that neither what is served nor a live flow needs. `graced` is the fence
    /// that was over when the look at the flows began; `live` holds the bits of the flows seen.
    pub fn rebuild_bits(&mut self, graced: Fence, live: &AddressBits) -> Plan {
        let mut bits = Box::new(AddressBits::EMPTY);
        let keys = &self.keys;
        self.fading_bits.retain(|(since, _)| *since > graced);
        bits.add(self.fading_bits.iter().map(|(_, bit)| *bit));
        for key in self.frontends.keys() {
            bits.add(AddressBits::of_frontend(keys, key));
        }
        for (member, protocol) in self
            .services
            .values()
            .flat_map(|served| served.members.iter().map(|m| (m, served.protocol)))
        {
            bits.add(AddressBits::of_backend(
                keys,
                &member.addr,
                member.port,
                protocol,
            ));
        }
        for gone in self.gone.values() {
            bits.add(AddressBits::of_backend(
                keys,
                &gone.addr,
                gone.port,
                gone.protocol,
            ));
        }
        // A flow may outlive a frontend whose backends all stay.
        let mut outlived = false;
        for (word, live) in bits.words.iter_mut().zip(&live.words) {
            outlived |= live & !*word != 0;
            *word |= live;
        }
        self.bits_stale = outlived || !self.fading_bits.is_empty() || !self.gone.is_empty();
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
    pub(super) fn mark_flow(
        keys: &HashKeys,
        bits: &mut AddressBits,
        frontend: &Endpoint,
        backend: Option<&Endpoint>,
        protocol: Protocol,
    ) {
        let Endpoint { addr, port } = frontend;
        for key in [
            FrontendKey::exact(*addr, *port, protocol),
            // It may have been a node port.
            FrontendKey::node_port(addr, *port, protocol),
        ] {
            bits.add(AddressBits::of_frontend(keys, &key));
        }
        if let Some(Endpoint { addr, port }) = backend {
            bits.add(AddressBits::of_backend(keys, addr, *port, protocol));
        }
    }

    pub(super) fn set_frontend_bit(&mut self, key: &FrontendKey, steps: &mut Steps) {
        self.set_bits(AddressBits::of_frontend(&self.keys, key), steps);
    }

    pub(super) fn fade_frontend_bit(&mut self, key: &FrontendKey) {
        let bits = AddressBits::of_frontend(&self.keys, key);
        self.fading_bits
            .extend(bits.into_iter().map(|bit| (self.fence, bit)));
        self.bits_stale = true;
    }

    pub(super) fn set_backend_bit(
        &mut self,
        member: &Member,
        protocol: Protocol,
        steps: &mut Steps,
    ) {
        let bits = AddressBits::of_backend(&self.keys, &member.addr, member.port, protocol);
        self.set_bits(bits, steps);
    }

    fn set_bits(&mut self, bits: [Bit; 2], steps: &mut Steps) {
        for (index, mask) in bits {
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
}

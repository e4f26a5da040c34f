//! The packet path on the host: packets as byte vectors, everything else in memory.

use super::{HostEnv, HostTables};
use crate::addr::Endpoint;
use crate::flow::{FlowTable, Flows, HostBuckets};
use crate::packet::{
    Covers, Failed, Family, Packet, Question, Scratch, World, egress, in_stages, ingress, leaving,
};
use crate::table::Config;
use crate::verdict::Verdict;
use crate::wire::Difference;
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A node's packet path in memory. Packets are vectors that begin with their IP header (no
/// Ethernet header), and their checksums are complete.
#[derive(Debug)]
pub struct PacketWorld {
    /// What the agent writes. `config.flow_mask` is set by [`new`](Self::new).
    pub tables: HostTables,
    /// The clock and chance.
    pub env: HostEnv,
    /// The flow table's memory.
    pub buckets: HostBuckets,
    /// UDP ends on which the host has a socket: bound, whoever the peer is.
    pub host_sockets: RefCell<HashSet<(std::net::IpAddr, u16)>>,
    /// The mark of the packet that is treated.
    pub mark: Cell<u32>,
    scratch: RefCell<Scratch>,
}

/// Buckets of the flow table of a [`PacketWorld`].
const BUCKETS: u32 = 1024;

impl PacketWorld {
    /// A world with these tables, without flows.
    pub fn new(mut tables: HostTables, seed: u64) -> Self {
        tables.config.flow_mask = BUCKETS - 1;
        Self {
            tables,
            env: HostEnv::new(seed),
            buckets: HostBuckets::new(BUCKETS as usize),
            host_sockets: RefCell::default(),
            mark: Cell::new(0),
            scratch: RefCell::new(Scratch::EMPTY),
        }
    }

    /// Treats a packet that arrives on the device `ifindex`.
    pub fn ingress(&self, bytes: &mut Vec<u8>, ifindex: u32) -> Verdict {
        let mut packet = self.packet(bytes, ifindex);
        in_stages(packet.family(), |stage| ingress(stage, &mut packet, self))
    }

    /// Treats a packet that leaves by the device `ifindex`.
    pub fn egress(&self, bytes: &mut Vec<u8>, ifindex: u32) -> Verdict {
        self.leaves(bytes, ifindex, false)
    }

    /// Treats a packet that the node itself has made and that leaves by the device `ifindex`.
    pub fn output(&self, bytes: &mut Vec<u8>, ifindex: u32) -> Verdict {
        self.leaves(bytes, ifindex, true)
    }

    fn leaves(&self, bytes: &mut Vec<u8>, ifindex: u32, made_here: bool) -> Verdict {
        let mut packet = HostPacket {
            made_here,
            ..self.packet(bytes, ifindex)
        };
        leaving(
            made_here,
            packet.family(),
            |question, stage| match question {
                Question::Ingress => ingress(stage, &mut packet, self),
                Question::Egress => egress(stage, &mut packet, self),
            },
        )
    }

    pub(crate) const fn packet<'a>(
        &'a self,
        bytes: &'a mut Vec<u8>,
        ifindex: u32,
    ) -> HostPacket<'a> {
        HostPacket {
            bytes,
            ifindex,
            made_here: false,
            world: self,
        }
    }
}

impl World for PacketWorld {
    type Tables = HostTables;
    type Env = HostEnv;

    fn tables(&self) -> &HostTables {
        &self.tables
    }

    fn env(&self) -> &HostEnv {
        &self.env
    }

    fn flows<'a>(&'a self, config: &'a Config) -> impl Flows + 'a {
        FlowTable::new(&self.buckets, &self.tables, config)
    }

    fn with_scratch<R>(&self, work: impl FnOnce(&mut Scratch) -> R) -> Option<R> {
        Some(work(&mut self.scratch.borrow_mut()))
    }
}

pub(crate) struct HostPacket<'a> {
    bytes: &'a mut Vec<u8>,
    ifindex: u32,
    made_here: bool,
    world: &'a PacketWorld,
}

impl Packet for HostPacket<'_> {
    fn family(&self) -> Family {
        match self.bytes.first().map(|first| first >> 4) {
            Some(4) => Family::V4,
            Some(6) => Family::V6,
            _ => Family::Other,
        }
    }

    fn length(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)
    }

    fn segments(&self) -> u32 {
        1
    }

    fn device(&self) -> u32 {
        self.ifindex
    }

    fn is_made_here(&self) -> bool {
        self.made_here
    }

    fn read<T: FromBytes + Copy, const AT: usize>(&self) -> Option<T> {
        let (value, _) = T::read_from_prefix(self.bytes.get(AT..)?).ok()?;
        Some(value)
    }

    fn load<T: FromBytes + Copy>(&self, at: u32) -> Option<T> {
        let (value, _) = T::read_from_prefix(self.bytes.get(at as usize..)?).ok()?;
        Some(value)
    }

    fn store<T: IntoBytes + Immutable>(&mut self, at: u32, value: &T) -> Result<(), Failed> {
        let bytes = self.bytes.get_mut(at as usize..).ok_or(Failed)?;
        value.write_to_prefix(bytes).map_err(|_| Failed)
    }

    fn change_checksum(
        &mut self,
        at: u32,
        difference: Difference,
        _covers: Covers,
        optional: bool,
    ) -> Result<(), Failed> {
        let old = self.load::<u16>(at).ok_or(Failed)?;
        if optional && old == 0 {
            return Ok(());
        }
        let new = difference.apply(old);
        // RFC 768: a computed zero is sent as all ones.
        let new = if optional && new == 0 { 0xffff } else { new };
        self.store(at, &new)
    }

    fn is_checksum_pending(&mut self, _at: u32) -> bool {
        false
    }

    fn resize(&mut self, length: u32) -> Result<(), Failed> {
        self.bytes.resize(length as usize, 0);
        Ok(())
    }

    fn prepend(&mut self, by: u32) -> Result<(), Failed> {
        self.bytes.splice(0..0, std::iter::repeat_n(0, by as usize));
        Ok(())
    }

    fn mark(&mut self, set: u32, clear: u32) {
        let mark = &self.world.mark;
        mark.set(mark.get() & !clear | set);
    }

    fn has_host_socket(&self, _source: &Endpoint, destination: &Endpoint) -> bool {
        let end = (destination.addr.into(), destination.port.number());
        self.world.host_sockets.borrow().contains(&end)
    }
}

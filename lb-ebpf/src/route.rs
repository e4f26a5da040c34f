//! Where a packet goes that does not just go on: back where it came from, to where the routing
//! table sends it now, or up to the node's own stack.
//!
//! Nothing is decided here but the way; *what* goes where is the core's verdict.

use crate::view::{ETHERNET, TcPacket};
use aya_ebpf::bindings::{
    __sk_buff, BPF_F_INGRESS, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH,
    BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_SUCCESS, TC_ACT_SHOT, TC_ACT_UNSPEC,
    bpf_fib_lookup as bpf_fib_lookup_param, bpf_redir_neigh,
};
use aya_ebpf::helpers::{bpf_fib_lookup, bpf_redirect, bpf_redirect_neigh, bpf_skb_change_head};
use lb_common::packet::{Family, Packet};
use lb_common::wire::{Ipv4, Ipv6};

/// Index of the loopback device, in every network namespace.
const LOOPBACK: u32 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// The link-layer sender of packets that only pass the loopback device: "lb" in the locally
/// administered range.
const SENT_ON: [u16; 3] = [
    u16::from_ne_bytes([2, b'l']),
    u16::from_ne_bytes([b'b', b'-']),
    u16::from_ne_bytes([b'g', b'o']),
];
/// Offset of the type in an Ethernet header.
const ETHERTYPE_AT: u32 = 12;

/// `struct bpf_fib_lookup`: the bindings' has unions, which would have to be zeroed first.
#[repr(C)]
struct Lookup {
    family: u8,
    protocol: u8,
    source_port: u16,
    destination_port: u16,
    length: u16,
    device: u32,
    class_metric: u32,
    source: [u32; 4],
    /// The next hop afterwards.
    destination: [u32; 4],
    vlan: u32,
    /// The address of the device it leaves by.
    own_mac: [u16; 3],
    /// That of the next hop.
    next_mac: [u16; 3],
}

const _: () = assert!(size_of::<Lookup>() == size_of::<bpf_fib_lookup_param>());

/// `struct bpf_redir_neigh`.
#[repr(C)]
struct NextHop {
    family: u32,
    address: [u32; 4],
}

const _: () = assert!(size_of::<NextHop>() == size_of::<bpf_redir_neigh>());

impl Lookup {
    /// Asks for the way of this packet, or with `back` of an answer to it. The lookup is one of an
    /// output route, rules included: those come in by the loopback device to the routing table.
    #[inline(always)]
    fn of<const LINK: usize>(skb: *mut __sk_buff, back: bool) -> Option<(Self, i64)> {
        let packet = TcPacket::<LINK>::of(skb);
        let (family, source, destination) = match packet.family() {
            Family::V4 => {
                let [source, destination] = packet.load::<[u32; 2]>(Ipv4::SOURCE_AT)?;
                (AF_INET, [source, 0, 0, 0], [destination, 0, 0, 0])
            }
            Family::V6 => {
                let source = packet.load::<[u32; 4]>(Ipv6::SOURCE_AT)?;
                let destination = packet.load::<[u32; 4]>(Ipv6::DESTINATION_AT)?;
                (AF_INET6, source, destination)
            }
            Family::Other => return None,
        };
        let (source, destination) = if back {
            (destination, source)
        } else {
            (source, destination)
        };
        let mut lookup = Self {
            family,
            protocol: 0,
            source_port: 0,
            destination_port: 0,
            length: 0,
            device: LOOPBACK,
            class_metric: 0,
            source,
            destination,
            vlan: 0,
            own_mac: [0; 3],
            next_mac: [0; 3],
        };
        // SAFETY: the structure is as large as the helper is told.
        let code = unsafe {
            bpf_fib_lookup(
                skb.cast(),
                (&raw mut lookup).cast(),
                size_of::<Self>() as i32,
                0,
            )
        };
        Some((lookup, code))
    }
}

/// Sends a packet where the routing table sends it now, past what it has passed already.
///
/// The kernel knows a packet that waits for its neighbour's address by the route it once got, and
/// would send it to the next hop of that one. So where the neighbour is not known, the packet goes
/// by way of the loopback device's ingress: what arrives has no route yet.
#[inline(always)]
pub fn route<const LINK: usize>(skb: *mut __sk_buff) -> i32 {
    let Some((lookup, code)) = Lookup::of::<LINK>(skb, false) else {
        return TC_ACT_SHOT;
    };
    match u32::try_from(code) {
        // A packet larger than the next device takes is that device's business. Kernels before 6.5
        // count a neighbour as known that is just being asked for.
        Ok(BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_FRAG_NEEDED)
            if lookup.next_mac != [0; 3] || lookup.own_mac == [0; 3] =>
        {
            if LINK != ETHERNET && !has_room_for_ethernet(skb) {
                return TC_ACT_SHOT;
            }
            send(lookup)
        }
        Ok(BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH | BPF_FIB_LKUP_RET_FRAG_NEEDED) => {
            arrive::<LINK>(skb, LOOPBACK, &[[0; 3], SENT_ON])
        }
        // To the node itself; or nowhere, as its stack will find out.
        Ok(BPF_FIB_LKUP_RET_NOT_FWDED) => arrive::<LINK>(skb, LOOPBACK, &[[0; 3]; 2]),
        _ => TC_ACT_SHOT,
    }
}

/// Sends on what [`route`] has made arrive at the loopback device.
#[inline(always)]
pub fn send_on(skb: *mut __sk_buff) -> i32 {
    let sender = TcPacket::<0>::of(skb).read::<[u16; 6], 0>();
    if sender.is_none_or(|[_, _, _, a, b, c]| [a, b, c] != SENT_ON) {
        return TC_ACT_UNSPEC;
    }
    match Lookup::of::<ETHERNET>(skb, false) {
        Some((lookup, code))
            if matches!(
                u32::try_from(code),
                Ok(BPF_FIB_LKUP_RET_SUCCESS
                    | BPF_FIB_LKUP_RET_NO_NEIGH
                    | BPF_FIB_LKUP_RET_FRAG_NEEDED)
            ) =>
        {
            send(lookup)
        }
        _ => TC_ACT_SHOT,
    }
}

/// Sends a packet to the next hop that was found.
#[inline(always)]
fn send(lookup: Lookup) -> i32 {
    let mut next = NextHop {
        family: u32::from(lookup.family),
        address: lookup.destination,
    };
    // SAFETY: the structure is as large as the helper is told.
    unsafe {
        bpf_redirect_neigh(
            lookup.device,
            (&raw mut next).cast(),
            size_of::<NextHop>() as i32,
            0,
        ) as i32
    }
}

/// Hands a packet to the node's stack. It arrives by the device that packets to its source leave by:
/// what asks for the device (reverse path filters, firewalls, bound sockets) sees the conversation
/// it knows.
#[inline(always)]
pub fn deliver<const LINK: usize>(skb: *mut __sk_buff) -> i32 {
    let Some((lookup, code)) = Lookup::of::<LINK>(skb, true) else {
        return TC_ACT_UNSPEC;
    };
    match u32::try_from(code) {
        Ok(BPF_FIB_LKUP_RET_NOT_FWDED) => arrive::<LINK>(skb, LOOPBACK, &[[0; 3]; 2]),
        Ok(BPF_FIB_LKUP_RET_SUCCESS) => {
            if lookup.device == TcPacket::<LINK>::of(skb).device() {
                return TC_ACT_UNSPEC;
            }
            arrive::<LINK>(skb, lookup.device, &[lookup.own_mac, [0; 3]])
        }
        // The device has no such address, or nobody knows it now: it goes on as it came.
        _ => TC_ACT_UNSPEC,
    }
}

/// Lets a packet arrive at a device, with these link-layer addresses: its own, the sender's.
#[inline(always)]
fn arrive<const LINK: usize>(skb: *mut __sk_buff, device: u32, macs: &[[u16; 3]; 2]) -> i32 {
    let typed = LINK == ETHERNET || has_room_for_ethernet(skb);
    // The link-layer header lies before what the core calls a packet.
    if !typed || TcPacket::<0>::of(skb).store(0, macs).is_err() {
        return TC_ACT_SHOT;
    }
    // SAFETY: the helper takes numbers only.
    unsafe { bpf_redirect(device, u64::from(BPF_F_INGRESS)) as i32 }
}

/// Puts an Ethernet header without addresses before a packet that has none.
#[inline(always)]
fn has_room_for_ethernet(skb: *mut __sk_buff) -> bool {
    let ethertype: u16 = match TcPacket::<0>::of(skb).family() {
        Family::V4 => 0x0800_u16.to_be(),
        _ => 0x86dd_u16.to_be(),
    };
    // SAFETY: the context is the program's own.
    if unsafe { bpf_skb_change_head(skb, ETHERNET as u32, 0) } != 0 {
        return false;
    }
    TcPacket::<0>::of(skb)
        .store(ETHERTYPE_AT, &ethertype)
        .is_ok()
}

/// Sends an answer to the neighbour its question came from: out of the device if that had arrived,
/// else to the node itself as if it came in.
#[inline(always)]
pub fn answer<const LINK: usize>(skb: *mut __sk_buff, arrived: bool) -> i32 {
    if LINK == ETHERNET && exchange_neighbours(skb).is_none() {
        return TC_ACT_SHOT;
    }
    let flags = if arrived { 0 } else { u64::from(BPF_F_INGRESS) };
    let device = TcPacket::<LINK>::of(skb).device();
    // SAFETY: the helper takes numbers only.
    unsafe { bpf_redirect(device, flags) as i32 }
}

#[inline(always)]
fn exchange_neighbours(skb: *mut __sk_buff) -> Option<()> {
    let mut frame = TcPacket::<0>::of(skb);
    let [a, b, c, d, e, f]: [u16; 6] = frame.load(0)?;
    frame.store(0, &[d, e, f, a, b, c]).ok()
}

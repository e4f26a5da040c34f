//! A kernel packet as the core sees it: from its IP header on.
//!
//! All changes go through helpers. Direct writes would make the kernel copy the head of *every*
//! cloned packet before the program runs, also of those that are not ours; and only the helpers
//! know whether a checksum is complete, still to be computed by a device, or known to the driver
//! for the whole packet.

use aya_ebpf::bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, bpf_sock_tuple};
use aya_ebpf::helpers::{
    bpf_csum_update, bpf_l4_csum_replace, bpf_sk_lookup_udp, bpf_sk_release, bpf_skb_adjust_room,
    bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_pull_data, bpf_skb_store_bytes,
};
use core::arch::asm;
use core::mem::MaybeUninit;
use lb_common::addr::Endpoint;
use lb_common::packet::{Covers, Failed, Family, Packet};
use lb_common::wire::{Crc32c, Difference};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Length of an Ethernet header; a VLAN tag is kept beside the packet, not in it.
pub const ETHERNET: usize = 14;
/// The bits of a VLAN tag that number the VLAN; 0 is none.
const VLAN_NUMBER: u32 = 0xfff;

const ETH_P_IP: u32 = 0x0800_u16.to_be() as u32;
const ETH_P_IPV6: u32 = 0x86dd_u16.to_be() as u32;
const BPF_ADJ_ROOM_MAC: u32 = 1;
const BPF_F_CURRENT_NETNS: u64 = u64::MAX;
/// `GSO_BY_FRAGS`: SCTP's packets to be cut up are a list of what is to be cut, behind common headers.
const GSO_BY_FRAGS: u32 = 0xffff;

/// Reads a field of the context. Volatile: a function that is not inlined must go on taking the
/// context itself, and the compiler would pass it the field instead, which the verifier does not
/// accept as a packet pointer.
macro_rules! context {
    ($skb:expr, $field:ident) => {{
        // SAFETY: the pointer is the program's context; the verifier checks each access to it.
        let field = unsafe { &raw const (*$skb).$field };
        // SAFETY: as above.
        unsafe { field.read_volatile() }
    }};
}

/// Reads `T`, which is a number of whole words. Packets are aligned to two bytes, and the compiler
/// would read every word in pieces; packet memory may be read at any place.
///
/// # Safety
/// The bytes lie inside the packet.
#[inline(always)]
unsafe fn read_words<T: FromBytes + Copy>(from: *const T) -> T {
    const { assert!(size_of::<T>() <= 40 && size_of::<T>().is_multiple_of(4)) };
    let mut value = MaybeUninit::<T>::uninit();
    macro_rules! read {
        ($size:literal, $word:ty: $($at:literal)*) => {$(
            if $at < size_of::<T>() {
                let word: u64;
                // SAFETY: the word is one of those the caller vouches for.
                unsafe {
                    asm!(
                        concat!("{word} = *(", $size, " *)({from} + ", $at, ")"),
                        word = lateout(reg) word,
                        from = in(reg) from,
                        options(pure, readonly, nostack, preserves_flags),
                    );
                }
                let bytes = value.as_mut_ptr().cast::<u8>();
                // SAFETY: the word at `$at` is in the value.
                let to = unsafe { bytes.add($at) }.cast::<$word>();
                // SAFETY: as above.
                unsafe { to.write_unaligned(word as $word) };
            }
        )*};
    }
    if size_of::<T>().is_multiple_of(8) {
        read!("u64", u64: 0 8 16 24 32);
    } else {
        read!("u32", u32: 0 4 8 12 16 20 24 28 32 36);
    }
    // SAFETY: every word was written, and `T` is made of any bytes.
    unsafe { value.assume_init() }
}

/// [`Crc32c::advance`] as a function that the verifier checks once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_crc32c(register: u32, bytes: u32) -> u32 {
    Crc32c::advance(register, bytes)
}

/// A packet whose link-layer header is `LINK` bytes long; made by the node itself if `OWN`.
pub struct TcPacket<const LINK: usize, const OWN: bool = false> {
    skb: *mut __sk_buff,
}

/// True if a packet that is about to leave never arrived: the node itself has made it.
#[inline(always)]
pub fn is_own(skb: *mut __sk_buff) -> bool {
    context!(skb, ingress_ifindex) == 0
}

impl<const LINK: usize, const OWN: bool> TcPacket<LINK, OWN> {
    /// The packet of this context, with `HEADERS` bytes from its IP header on where they can be read
    /// directly. Not a byte more than are read: a local sender's payload lies in pages of its own, and
    /// to pull from there copies the packet's head, which TCP still holds for a retransmission.
    #[inline(always)]
    pub fn new<const HEADERS: usize>(skb: *mut __sk_buff) -> Self {
        let (data, end) = (
            context!(skb, data) as usize,
            context!(skb, data_end) as usize,
        );
        if data + LINK + HEADERS > end {
            Self::pull::<HEADERS>(skb, data, end);
        }
        Self { skb }
    }

    /// A short packet, or one whose headers lie in pages of their own, as some drivers make them.
    ///
    /// Not one that SCTP wants to be cut up: to pull the first bytes of its first chunk would leave a
    /// list that begins in the midst of a chunk, and its receiver aborts the association. It is read
    /// by [`load`](Packet::load), as all of SCTP is.
    #[inline(always)]
    fn pull<const HEADERS: usize>(skb: *mut __sk_buff, data: usize, end: usize) {
        let length = context!(skb, len);
        if length as usize > end - data && context!(skb, gso_size) != GSO_BY_FRAGS {
            let wanted = length.min((LINK + HEADERS) as u32);
            // SAFETY: the context is the program's own. If it fails, the headers are not found and
            // the packet is left alone.
            unsafe { bpf_skb_pull_data(skb, wanted) };
        }
    }

    /// The packet of this context, for [`load`](Packet::load) and [`store`](Packet::store) only.
    #[inline(always)]
    pub const fn of(skb: *mut __sk_buff) -> Self {
        Self { skb }
    }

    #[inline(always)]
    const fn offset(at: u32) -> u32 {
        LINK as u32 + at
    }
}

/// The IPv4 arm of `bpf_sock_tuple`: the bindings' union would have to be zeroed first.
#[repr(C)]
struct SocketTupleV4 {
    source: u32,
    destination: u32,
    source_port: u16,
    destination_port: u16,
}

/// The IPv6 arm of `bpf_sock_tuple`.
#[repr(C)]
struct SocketTupleV6 {
    source: [u32; 4],
    destination: [u32; 4],
    source_port: u16,
    destination_port: u16,
}

#[inline(always)]
const fn done(code: i64) -> Result<(), Failed> {
    if code == 0 { Ok(()) } else { Err(Failed) }
}

impl<const LINK: usize, const OWN: bool> Packet for TcPacket<LINK, OWN> {
    /// What has a tag is not this device's: it comes by or came by the hooks of the VLAN's own device without. Here it
    /// would take the tag with it, wherever it is sent.
    #[inline(always)]
    fn family(&self) -> Family {
        if context!(self.skb, vlan_present) != 0 && context!(self.skb, vlan_tci) & VLAN_NUMBER != 0
        {
            return Family::Other;
        }
        match context!(self.skb, protocol) {
            ETH_P_IP => Family::V4,
            ETH_P_IPV6 => Family::V6,
            _ => Family::Other,
        }
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        context!(self.skb, len) - LINK as u32
    }

    #[inline(always)]
    fn segments(&self) -> u32 {
        context!(self.skb, gso_segs).max(1)
    }

    #[inline(always)]
    fn device(&self) -> u32 {
        context!(self.skb, ifindex)
    }

    #[inline(always)]
    fn is_made_here(&self) -> bool {
        OWN
    }

    #[inline(always)]
    fn read<T: FromBytes + Copy, const AT: usize>(&self) -> Option<T> {
        let data = context!(self.skb, data) as usize;
        let end = context!(self.skb, data_end) as usize;
        let start = data + LINK + AT;
        if start + size_of::<T>() > end {
            return None;
        }
        // SAFETY: the bytes lie inside the packet, which was just checked.
        Some(unsafe { read_words(start as *const T) })
    }

    #[inline(always)]
    fn load<T: FromBytes + Copy>(&self, at: u32) -> Option<T> {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: `value` is as large as the helper is told.
        let code = unsafe {
            bpf_skb_load_bytes(
                self.skb.cast(),
                Self::offset(at),
                value.as_mut_ptr().cast(),
                size_of::<T>() as u32,
            )
        };
        if code != 0 {
            return None;
        }
        // SAFETY: the helper has filled it, and `T` is made of any bytes.
        Some(unsafe { value.assume_init() })
    }

    #[inline(always)]
    fn store<T: IntoBytes + Immutable>(&mut self, at: u32, value: &T) -> Result<(), Failed> {
        // SAFETY: `value` is as large as the helper is told, and without padding.
        done(unsafe {
            bpf_skb_store_bytes(
                self.skb.cast(),
                Self::offset(at),
                core::ptr::from_ref(value).cast(),
                size_of::<T>() as u32,
                0,
            )
        })
    }

    #[inline(always)]
    fn change_checksum(
        &mut self,
        at: u32,
        difference: Difference,
        covers: Covers,
        optional: bool,
    ) -> Result<(), Failed> {
        let mut flags = 0;
        if !matches!(covers, Covers::Payload) {
            flags |= u64::from(BPF_F_PSEUDO_HDR);
        }
        if optional {
            flags |= u64::from(BPF_F_MARK_MANGLED_0);
        }
        // Size zero in the flags: a difference is given.
        // SAFETY: the context is the program's own.
        done(unsafe {
            bpf_l4_csum_replace(
                self.skb,
                Self::offset(at),
                0,
                u64::from(difference.0),
                flags,
            )
        })?;
        if matches!(covers, Covers::PseudoHeaderV6) {
            // The helper takes for granted that the sum over the whole packet (CHECKSUM_COMPLETE)
            // changes with the checksum, as it does where an IPv4 header makes up for its address.
            // IPv6 headers have no checksum: address and checksum make up for each other. (Since
            // 6.16 BPF_F_IPV6 says so; this works everywhere.) Fails where there is no such sum.
            // SAFETY: the context is the program's own.
            unsafe { bpf_csum_update(self.skb, difference.0) };
        }
        Ok(())
    }

    #[inline(always)]
    fn advance_crc32c(&self, register: u32, bytes: u32) -> u32 {
        lb_crc32c(register, bytes)
    }

    #[inline(always)]
    fn is_checksum_pending(&mut self, at: u32) -> bool {
        // There is no field that says so. But changes of the payload leave such a checksum alone.
        let Some(before) = self.load::<u16>(at) else {
            return false;
        };
        if self
            .change_checksum(at, Difference(1), Covers::Payload, false)
            .is_err()
        {
            return false;
        }
        let after = self.load::<u16>(at);
        let _ = self.store(at, &before);
        after == Some(before)
    }

    #[inline(always)]
    fn resize(&mut self, length: u32) -> Result<(), Failed> {
        // SAFETY: the context is the program's own.
        done(unsafe { bpf_skb_change_tail(self.skb, Self::offset(length), 0) })
    }

    #[inline(always)]
    fn prepend(&mut self, by: u32) -> Result<(), Failed> {
        // SAFETY: the context is the program's own.
        done(unsafe { bpf_skb_adjust_room(self.skb, by as i32, BPF_ADJ_ROOM_MAC, 0) })
    }

    #[inline(always)]
    fn mark(&mut self, set: u32, clear: u32) {
        let mark = context!(self.skb, mark) & !clear | set;
        // SAFETY: the pointer is the program's context, whose mark tc programs may write.
        let field = unsafe { &raw mut (*self.skb).mark };
        // SAFETY: as above.
        unsafe { field.write_volatile(mark) };
    }

    #[inline(always)]
    fn has_host_socket(&self, source: &Endpoint, destination: &Endpoint) -> bool {
        let (mut v4, mut v6);
        let (tuple, size) = if source.addr.is_v4() {
            v4 = SocketTupleV4 {
                source: source.addr.v4_word(),
                destination: destination.addr.v4_word(),
                source_port: source.port.0,
                destination_port: destination.port.0,
            };
            ((&raw mut v4).cast::<bpf_sock_tuple>(), size_of_val(&v4))
        } else {
            v6 = SocketTupleV6 {
                source: source.addr.words(),
                destination: destination.addr.words(),
                source_port: source.port.0,
                destination_port: destination.port.0,
            };
            ((&raw mut v6).cast::<bpf_sock_tuple>(), size_of_val(&v6))
        };
        // SAFETY: the tuple is as large as the helper is told.
        let socket = unsafe {
            bpf_sk_lookup_udp(self.skb.cast(), tuple, size as u32, BPF_F_CURRENT_NETNS, 0)
        };
        if socket.is_null() {
            return false;
        }
        // SAFETY: the reference was taken by the lookup, and the socket is not used.
        unsafe { bpf_sk_release(socket.cast()) };
        true
    }
}

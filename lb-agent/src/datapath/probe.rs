//! A question with a known answer, asked of the loaded programs: is the packet path alive?
//!
//! A SYN to a reserved frontend that nobody serves must come back as a refusal. It runs in
//! `BPF_PROG_TEST_RUN`: no device sees it, and a refusal leaves no flow.

use super::load::Programs;
use super::sys;
use lb_common::addr::{Addr, Port, Protocol, ServiceId};
use lb_common::table::{Frontend, FrontendKey, FrontendKind};
use std::net::Ipv4Addr;

/// The IPv4 dummy address (RFC 7600): never a host's, never routed.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);
/// The port asked.
const PORT: u16 = 1;
/// The asking client, of the same block (RFC 6890, "IPv4 special purpose").
const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 9);
const CLIENT_PORT: u16 = 9;
/// Entry 0 of the service table is never given out: all zeros, it is a service without endpoints.
pub(super) const SERVICE: ServiceId = ServiceId(0);
/// `TC_ACT_REDIRECT`: the answer would leave where the question came from.
const REDIRECT: u32 = 7;
const ETHERNET: usize = 14;
const TCP_RST: u8 = 4;
/// Size of `struct __sk_buff`.
const CONTEXT: usize = 192;

/// The reserved frontend.
pub(super) fn frontend() -> (FrontendKey, Frontend) {
    let key = FrontendKey::exact(
        Addr::from(std::net::IpAddr::V4(ADDRESS)),
        Port::new(PORT),
        Protocol::TCP,
    );
    (key, Frontend::new(SERVICE, FrontendKind::ClusterIp))
}

/// Asks, and says what was wrong with the answer.
pub(super) fn ask(programs: &Programs) -> Result<(), String> {
    let program = programs
        .get("tc_ingress")
        .ok_or_else(|| "the object has no program tc_ingress".to_owned())?;
    let run = sys::program_test_run(program, &question(), &mut [0; CONTEXT])
        .map_err(|error| format!("the program could not be run: {error}"))?;
    if run.verdict != REDIRECT {
        return Err(format!(
            "a connection to an address nobody serves was not refused (verdict {})",
            run.verdict.cast_signed()
        ));
    }
    let answer = run.packet.get(ETHERNET..).unwrap_or_default();
    let (source, destination) = (answer.get(12..16), answer.get(16..20));
    let flags = answer.get(33).copied().unwrap_or(0);
    if source == Some(&ADDRESS.octets())
        && destination == Some(&CLIENT.octets())
        && flags & TCP_RST != 0
    {
        Ok(())
    } else {
        Err(
            "a connection to an address nobody serves was answered by something other than a \
             TCP reset"
                .to_owned(),
        )
    }
}

/// A TCP SYN from the client to the reserved frontend.
fn question() -> Vec<u8> {
    let mut ip = [0_u8; 20];
    ip[0] = 0x45;
    ip[3] = 40;
    ip[8] = 64;
    ip[9] = Protocol::TCP.0;
    ip[12..16].copy_from_slice(&CLIENT.octets());
    ip[16..20].copy_from_slice(&ADDRESS.octets());
    let sum = checksum(0, &ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());

    let mut tcp = [0_u8; 20];
    tcp[..2].copy_from_slice(&CLIENT_PORT.to_be_bytes());
    tcp[2..4].copy_from_slice(&PORT.to_be_bytes());
    tcp[12] = 5 << 4;
    tcp[13] = 2; // SYN
    let pseudo = u32::from(Protocol::TCP.0) + 20 + sum_words(&ip[12..20]);
    let sum = checksum(pseudo, &tcp);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());

    let mut packet = vec![0; 12];
    packet.extend([0x08, 0x00]);
    packet.extend(ip);
    packet.extend(tcp);
    packet
}

fn sum_words(bytes: &[u8]) -> u32 {
    bytes
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum()
}

/// The internet checksum (RFC 1071) over `bytes`, begun with `start`.
fn checksum(start: u32, bytes: &[u8]) -> u16 {
    let mut sum = start + sum_words(bytes);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

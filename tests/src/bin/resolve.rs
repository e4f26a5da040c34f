//! Resolves names as programs do, with the resolver of the C library it is linked with, until it is
//! told to stop: `resolve PACE STOP COUNT`, milliseconds between lookups and two files.
//!
//! It is one file of nothing but the standard library: `cargo xtask test` compiles it for musl, too.
//! The Go module `tests/coredns` has its like. What may not live here: what a failure means.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

/// An address of each family: two questions that a resolver asks at once, two small answers.
const SMALL: &str = "small.lab.test";
/// More addresses than a datagram of any resolver holds: the answer is truncated, and the question
/// is asked again over TCP.
const LARGE: &str = "large.lab.test";
/// What musl keeps of an answer (`MAXADDRS`); a truncated one has less.
const ENOUGH: usize = 48;

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let pace = words.next().and_then(|word| word.to_str()?.parse().ok());
    let files: Vec<PathBuf> = words.map(PathBuf::from).collect();
    let (Some(pace), [stop, count]) = (pace, &files[..]) else {
        eprintln!("usage: resolve PACE STOP COUNT");
        return ExitCode::FAILURE;
    };
    let mut made = 0_u64;
    let mut seen = BTreeSet::new();
    while !stop.exists() {
        let asked = if made % 4 == 3 {
            large()
        } else {
            small(&mut seen)
        };
        if let Err(message) = asked {
            println!("failed {made} {message}");
        }
        made += 1;
        // In one go: who counts must not read half of it.
        let fresh = count.with_extension("new");
        let written = fs::write(&fresh, made.to_string());
        if let Err(error) = written.and_then(|()| fs::rename(&fresh, count)) {
            eprintln!("cannot write {}: {error}", count.display());
            return ExitCode::FAILURE;
        }
        thread::sleep(Duration::from_millis(pace));
    }
    for address in seen {
        println!("seen {address}");
    }
    ExitCode::SUCCESS
}

fn look_up(name: &str) -> Result<Vec<IpAddr>, String> {
    let addresses = (name, 80).to_socket_addrs();
    let addresses = addresses.map_err(|error| format!("{name}: {error}"))?;
    Ok(addresses.map(|address| address.ip()).collect())
}

fn small(seen: &mut BTreeSet<IpAddr>) -> Result<(), String> {
    let addresses = look_up(SMALL)?;
    let of = |family: fn(&IpAddr) -> bool| addresses.iter().any(family);
    if !of(IpAddr::is_ipv4) || !of(IpAddr::is_ipv6) {
        return Err(format!("{SMALL}: half an answer: {addresses:?}"));
    }
    seen.extend(addresses);
    Ok(())
}

fn large() -> Result<(), String> {
    let found = look_up(LARGE)?.len();
    if found < ENOUGH {
        return Err(format!("{LARGE}: {found} addresses"));
    }
    Ok(())
}

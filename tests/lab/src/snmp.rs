//! The kernel's own counters of a namespace: a wrong checksum that nobody noticed shows here.

use crate::Namespace;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs;

/// Every counter by name: `TcpInCsumErrors`, `UdpInCsumErrors`, `Udp6InCsumErrors`,
/// `IcmpInCsumErrors`, `Icmp6InCsumErrors`, `SctpChecksumErrors`, `TcpExtTCPTimeouts`, …
pub fn read(namespace: &Namespace) -> Result<BTreeMap<String, i64>> {
    // `/proc/net` shows the main thread's namespace; only `thread-self` shows the entered one.
    let (snmp, netstat, lists) = namespace.enter(|| -> Result<_> {
        let read = |file: &str| {
            let path = format!("/proc/thread-self/net/{file}");
            fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
        };
        Ok((
            read("snmp")?,
            read("netstat")?,
            // Without IPv6 or SCTP there is nothing to count.
            ["snmp6", "sctp/snmp"].map(|file| read(file).unwrap_or_default()),
        ))
    })??;
    let mut counters = tables(&snmp);
    counters.extend(tables(&netstat));
    counters.extend(
        lists
            .iter()
            .flat_map(|text| text.lines())
            .filter_map(|line| {
                let (name, value) = line.split_once(char::is_whitespace)?;
                Some((name.to_owned(), value.trim().parse().ok()?))
            }),
    );
    Ok(counters)
}

/// The sum of every counter of wrong checksums in `namespace`: it must not rise in any test.
pub fn checksum_errors(namespace: &Namespace) -> Result<i64> {
    Ok(read(namespace)?
        .iter()
        .filter(|(name, _)| name.ends_with("InCsumErrors") || *name == "SctpChecksumErrors")
        .map(|(_, value)| *value)
        .sum())
}

/// `/proc/net/snmp`: a line of names after a line of values, both behind the protocol.
fn tables(text: &str) -> BTreeMap<String, i64> {
    let lines: Vec<&str> = text.lines().collect();
    let mut counters = BTreeMap::new();
    for pair in lines.chunks(2) {
        let [names, values] = pair else { continue };
        let Some((protocol, names)) = names.split_once(": ") else {
            continue;
        };
        let values = values.split_once(": ").map_or("", |(_, values)| values);
        for (name, value) in names.split(' ').zip(values.split(' ')) {
            counters.insert(format!("{protocol}{name}"), value.parse().unwrap_or(0));
        }
    }
    counters
}

#[cfg(test)]
mod tests {
    use super::tables;

    #[test]
    fn counters_are_named_by_protocol_and_column() {
        let text = "Tcp: InSegs InCsumErrors\nTcp: 7 2\nUdp: InCsumErrors\nUdp: 3\n";
        let counters = tables(text);
        assert_eq!(counters["TcpInCsumErrors"], 2);
        assert_eq!(counters["UdpInCsumErrors"], 3);
        assert_eq!(counters["TcpInSegs"], 7);
    }
}

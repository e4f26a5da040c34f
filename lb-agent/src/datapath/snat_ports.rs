//! Which source ports SNATed flows get.

use super::error::StartError;
use super::options::Options;

/// Lowest SNAT source port we take unasked: what lies below is well known for something.
const SNAT_FIRST: u16 = 16_384;

/// Source ports for SNATed flows: those given, or the widest range that neither the host's own
/// connections nor node ports use.
pub(super) fn snat_ports(options: &Options) -> Result<(u16, u16), StartError> {
    if let Some((first, last)) = options.snat_ports {
        if first == 0 || first > last {
            return Err(StartError::Options(format!(
                "{first}-{last} is no range of SNAT source ports"
            )));
        }
        return Ok((first, last));
    }
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let mut ephemeral = text
        .as_deref()
        .unwrap_or("32768 60999")
        .split_whitespace()
        .filter_map(|number| number.parse::<u16>().ok());
    let ephemeral = (
        ephemeral.next().unwrap_or(32_768),
        ephemeral.next().unwrap_or(60_999),
    );
    free_ports(ephemeral, options.node_port_range).ok_or_else(|| {
        StartError::Options(format!(
            "no source ports are left for SNAT between the host's own ({}-{}) and the node ports \
             ({}-{}): make net.ipv4.ip_local_port_range smaller",
            ephemeral.0, ephemeral.1, options.node_port_range.0, options.node_port_range.1
        ))
    })
}

/// The widest range of ports from [`SNAT_FIRST`] up that both ranges leave.
fn free_ports(ephemeral: (u16, u16), node_ports: (u16, u16)) -> Option<(u16, u16)> {
    let mut taken = [ephemeral, node_ports];
    taken.sort_unstable();
    let mut free = Vec::new();
    let mut first = u32::from(SNAT_FIRST);
    for (from, to) in taken {
        if u32::from(from) > first {
            free.push((first, u32::from(from) - 1));
        }
        first = first.max(u32::from(to) + 1);
    }
    free.push((first, u32::from(u16::MAX)));
    let (first, last) = free
        .into_iter()
        .filter(|(first, last)| first <= last)
        .max_by_key(|(first, last)| last - first)?;
    Some((u16::try_from(first).ok()?, u16::try_from(last).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snat_ports_lie_outside_of_ephemeral_and_node_ports() {
        let node_ports = (30000, 32767);
        assert_eq!(free_ports((32768, 60999), node_ports), Some((16384, 29999)));
        assert_eq!(free_ports((1024, 65535), node_ports), None);
        assert_eq!(free_ports((1024, 20000), node_ports), Some((32768, 65535)));
    }
}

//! The stage itself, before any agent: what the labs compare with.

use anyhow::{Result, ensure};
use lb_lab::PodNetwork;
use lb_tests::stage::{Stage, TARGET_PORT};

#[test]
fn pods_of_both_nodes_talk_directly_without_an_agent() -> Result<()> {
    for network in [PodNetwork::Routed, PodNetwork::Bridged] {
        let stage = Stage::new(network)?;
        for name in ["b", "c"] {
            for server in stage.pod(name).sockets(TARGET_PORT) {
                let answer = stage.pod("a").place().ask_tcp(server)?;
                ensure!(answer.name == name);
                let answer = stage.pod("a").place().ask_udp_unconnected(server, 4000)?;
                ensure!(answer.name == name);
            }
        }
        ensure!(stage.checksum_errors()? == 0);
    }
    Ok(())
}

//! A real API server that is away without saying so, and one that is away for ten minutes: traffic
//! goes on, the agent notices, and what changed meanwhile takes effect within seconds.

use anyhow::{Result, ensure};
use lb_tests::control_plane::{RealCluster, named, service, sockets};
use lb_tests::load::{Load, Transport};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// What the agent says of a server that does not answer.
const UNREACHABLE: [&str; 1] = ["problem=\"unreachable\""];
/// A watch would end by itself after four minutes: a silence must be noticed long before.
const NOTICED: Duration = Duration::from_secs(180);

/// Pods a and b behind Service 1, c behind Service 2.
fn cluster() -> Result<RealCluster> {
    let mut cluster = RealCluster::new(&["a", "b", "c"])?;
    cluster.web("web", 1, &["a", "b"])?;
    cluster.web("gone", 2, &["c"])?;
    cluster.start("")?;
    cluster.site.await_answer(sockets(1)[1], "b")?;
    cluster.site.await_answer(sockets(2)[1], "c")?;
    Ok(cluster)
}

/// Waits until the agent says that nobody answers, or that somebody does again.
fn await_noticed(cluster: &RealCluster, away: bool) -> Result<()> {
    let begin = Instant::now();
    let end = begin + NOTICED;
    while cluster
        .site
        .metric("lb_source_problems", &UNREACHABLE)?
        .is_some()
        != away
    {
        ensure!(
            Instant::now() < end,
            "not noticed ({away}): {}",
            cluster.site.log_tail()
        );
        // A metric has no event to wait for.
        std::thread::sleep(Duration::from_millis(50));
    }
    println!("away: {away}, noticed within {:?}", begin.elapsed());
    Ok(())
}

/// Service 2 goes, 3 comes, and everybody is told.
fn change(cluster: &RealCluster) -> Result<()> {
    cluster.api.delete(&service("gone", 2), None)?;
    cluster.web("new", 3, &[])?;
    cluster.remove("c")?;
    cluster.run("c", "new")
}

/// Waits until the API server knows where Service 3 is served, in both families.
fn await_slices(cluster: &RealCluster) -> Result<()> {
    let end = Instant::now() + NOTICED;
    let like = named("discovery.k8s.io/v1", "EndpointSlice", "new");
    loop {
        let mut slices = cluster.api.list(&like)?;
        slices.retain(|slice| {
            slice["metadata"]["labels"]["kubernetes.io/service-name"] == "new"
                && slice["endpoints"].get(0).is_some()
        });
        if slices.len() == 2 {
            return Ok(());
        }
        ensure!(Instant::now() < end, "no slices: {slices:?}");
        // The controllers' pace is theirs.
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn await_change(cluster: &RealCluster) -> Result<()> {
    await_noticed(cluster, false)?;
    cluster.site.await_answer(sockets(3)[0], "c")?;
    cluster.site.await_answer(sockets(3)[1], "c")?;
    cluster.site.await_silence(sockets(2)[0])?;
    cluster.site.await_metric("lb_source_problems", &[], None)
}

#[test]
fn a_connection_on_which_nothing_comes_any_more_is_noticed_and_given_up() -> Result<()> {
    let cluster = cluster()?;
    let clients = cluster.site.steady(sockets(1)[0])?;
    // Each end's kernel goes on to acknowledge: only the other end's program is out of reach.
    cluster.link.hold();
    change(&cluster)?;
    await_noticed(&cluster, true)?;
    cluster.site.is_alive()?;
    cluster.link.release();
    await_change(&cluster)?;
    ensure!(clients.finish()? > 0);
    Ok(())
}

#[test]
fn an_api_server_whose_machine_vanishes_is_noticed_and_found_again() -> Result<()> {
    let cluster = cluster()?;
    let clients = cluster.site.steady(sockets(1)[0])?;
    // The other end of its cable: the first client on the wire is the control plane's machine.
    let wire = cluster.site.lab().wire();
    let uplink = |state: &str| wire.ip(&format!("link set client0 {state}")).map(drop);
    uplink("down")?;
    change(&cluster)?;
    await_noticed(&cluster, true)?;
    cluster.site.is_alive()?;
    uplink("up")?;
    await_change(&cluster)?;
    ensure!(clients.finish()? > 0);
    Ok(())
}

#[test]
#[ignore = "takes ten minutes: cargo xtask test --slow"]
fn ten_minutes_without_an_api_server_are_not_felt_and_changes_take_effect_within_seconds()
-> Result<()> {
    let mut cluster = cluster()?;
    let mut load = Load::new(
        &cluster.site.lab().dir().join("load"),
        Duration::from_millis(10),
    )?;
    for (name, at, transport) in [
        ("TCP", 0, Transport::Tcp),
        ("TCP, IPv6", 1, Transport::Tcp),
        ("UDP", 0, Transport::Udp),
        ("UDP from one port", 0, Transport::UdpFromOnePort),
    ] {
        load.add(
            name,
            cluster.site.client().place(),
            sockets(1)[at],
            transport,
        )?;
    }
    cluster.plane.stop_api();
    let end = Instant::now() + Duration::from_secs(600);
    await_noticed(&cluster, true)?;
    while Instant::now() < end {
        load.await_requests(100)?;
        cluster.site.is_alive()?;
        let names = (0..24).map(|_| cluster.site.ask(sockets(1)[0]));
        let names = names.collect::<Result<BTreeSet<String>>>()?;
        ensure!(names.len() == 2, "not balanced: {names:?}");
    }
    cluster.plane.start_api()?;
    // They would look for the server as rarely as they have come to.
    cluster.plane.stop_controllers();
    cluster.plane.start_controllers()?;
    change(&cluster)?;
    await_slices(&cluster)?;
    let changed = Instant::now();
    await_change(&cluster)?;
    println!("the changes took effect within {:?}", changed.elapsed());
    let (total, failures) = load.finish()?;
    ensure!(
        failures.is_empty(),
        "of {total} requests failed: {failures:?}"
    );
    Ok(())
}

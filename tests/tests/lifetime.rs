//! What lasts: tables, links and ids outlive the agent, and the next one begins where they are.

use anyhow::{Context, Result, anyhow, ensure};
use aya_obj::generated::bpf_map_type::{BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_HASH};
use lb_common::table::{LAYOUT_VERSION, name};
use lb_lab::agent::binary;
use lb_lab::topology::UPLINK;
use lb_lab::{Agent, AgentOptions, PodNetwork, client};
use lb_tests::pinned::{LinkIds, link_ids, make_table, open_pin, pin};
use lb_tests::stage::{CLUSTER_CIDRS, ServiceSpec, Stage};
use lb_tests::steady::Steady;
use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

fn web(endpoints: &[&str]) -> ServiceSpec {
    ServiceSpec::new("web", 10, endpoints).node_port(30080)
}

/// A stage with the service `web` on the pods `a` and `b`, and an agent on the first node only.
fn stage(flags: &str) -> Result<Stage> {
    let mut stage = Stage::new(PodNetwork::Routed)?;
    stage.apply(&web(&["a", "b"]))?;
    let agent = stage.start_agent(0, flags)?;
    stage.agents.push(agent);
    Ok(stage)
}

fn kill(stage: &mut Stage) -> Result<()> {
    stage.agents.remove(0).kill()
}

fn restart(stage: &mut Stage, flags: &str) -> Result<()> {
    let agent = stage.start_agent(0, flags)?;
    stage.agents.push(agent);
    Ok(())
}

/// A client outside that asks the node port, and a pod that asks the ClusterIP.
fn steady(stage: &Stage) -> Result<Steady> {
    Steady::start(&[
        (stage.client.place(), stage.node_port(0, 30080)[0]),
        (stage.pod("a").place(), web(&[]).cluster_ips()[0]),
    ])
}

fn served(stage: &Stage) -> Result<()> {
    for server in stage.node_port(0, 30080) {
        stage.client.place().ask_tcp(server)?;
    }
    for server in web(&[]).cluster_ips() {
        stage.pod("b").place().ask_tcp(server)?;
    }
    Ok(())
}

fn layout(stage: &Stage) -> Result<PathBuf> {
    Ok(stage.lab.bpffs("node0")?.join(format!("v{LAYOUT_VERSION}")))
}

fn files_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files_below(&entry.path())?);
        } else {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Every link by its pin.
fn links(stage: &Stage) -> Result<BTreeMap<PathBuf, LinkIds>> {
    files_below(&layout(stage)?.join("links"))?
        .into_iter()
        .map(|path| link_ids(&path).map(|ids| (path, ids)))
        .collect()
}

/// The first entries of the tables that hold ids and windows, byte by byte.
fn ids_and_windows(stage: &Stage) -> Result<Vec<Vec<u8>>> {
    const ENTRIES: u32 = 64;
    let mut tables = Vec::new();
    for (table, size) in [
        (name::SERVICES, 64),
        (name::SLOTS, 32),
        (name::BACKENDS, 32),
    ] {
        let map = open_pin(&layout(stage)?.join("maps").join(table))?;
        let mut bytes = Vec::new();
        for index in 0..ENTRIES {
            bytes.extend(lb_tests::pinned::look_up(&map, &index.to_ne_bytes(), size)?);
        }
        tables.push(bytes);
    }
    Ok(tables)
}

/// How many writes the last start's first sync took, as the agent logs it.
fn writes_of_first_sync(stage: &Stage) -> Result<u64> {
    let log = stage.agents[0].log();
    let line = log
        .lines()
        .rfind(|line| line.contains("first sync complete"))
        .context("no first sync in the log")?;
    let number = line.split("writes=").nth(1).unwrap_or_default();
    let digits: String = number.chars().take_while(char::is_ascii_digit).collect();
    digits
        .parse()
        .with_context(|| format!("no writes in {line}"))
}

/// Waits until `done`; what it returns last is the error.
fn soon(what: &str, mut done: impl FnMut() -> Result<()>) -> Result<()> {
    let end = Instant::now() + client::PATIENCE * 3;
    loop {
        match done() {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > end => return Err(error).context(what.to_owned()),
            // The agent's log and tables have no events to wait for.
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(10)),
        }
    }
}

#[test]
fn everything_is_pinned_below_the_directory_of_its_layout() -> Result<()> {
    let stage = stage("")?;
    let root = stage.lab.bpffs("node0")?;
    let layout = layout(&stage)?;
    for path in files_below(&root)? {
        // The kernel puts two files of its own into the first bpffs of a machine.
        let ours = path.starts_with(layout.join("maps")) || path.starts_with(layout.join("links"));
        let kernels = path.extension().is_some_and(|end| end == "debug");
        ensure!(ours || kernels, "{} lies elsewhere", path.display());
    }
    for table in [name::FRONTENDS, name::SERVICES, name::FLOWS, name::NAMES] {
        ensure!(
            layout.join("maps").join(table).exists(),
            "{table} is not pinned"
        );
    }
    let device = stage.lab.node(0).namespace().index_of(UPLINK)?;
    for link in [
        "cgroup/connect4".to_owned(),
        format!("tcx/{device}-ingress"),
    ] {
        link_ids(&layout.join("links").join(link))?;
    }
    Ok(())
}

/// Starts an agent that must refuse, and returns what it said.
fn refusal(stage: &Stage) -> Result<String> {
    let options =
        AgentOptions::manifests(stage.manifests()).with(&format!("--cluster-cidr {CLUSTER_CIDRS}"));
    let (status, log) = Agent::launch(&stage.lab, stage.lab.node(0), &options)?.wait()?;
    ensure!(!status.success(), "the agent must refuse to start");
    Ok(log.lines().last().unwrap_or_default().to_owned())
}

#[test]
fn a_damaged_table_is_refused_by_its_name_and_traffic_goes_on() -> Result<()> {
    let mut stage = stage("")?;
    kill(&mut stage)?;
    let maps = layout(&stage)?.join("maps");
    let array = |key, value, entries, flags| {
        make_table(BPF_MAP_TYPE_ARRAY as u32, key, value, entries, flags)
    };
    let mmapable = 1 << 10;
    let damages: [(&str, &str, OwnedFd); 5] = [
        ("number of entries", name::SLOTS, array(4, 32, 8, mmapable)?),
        (
            "value size",
            name::BACKENDS,
            array(4, 40, 1 << 18, mmapable)?,
        ),
        ("flags", name::SERVICES, array(4, 64, 1 << 16, 0)?),
        (
            "type",
            name::SNAT_POOL,
            make_table(BPF_MAP_TYPE_HASH as u32, 4, 16, 256, 0)?,
        ),
        (
            "not a table at all",
            name::FRONTENDS,
            open_pin(&layout(&stage)?.join("links/cgroup/connect4"))?,
        ),
    ];
    for (difference, table, damaged) in damages {
        let path = maps.join(table);
        let whole = open_pin(&path)?;
        fs::remove_file(&path)?;
        pin(&damaged, &path)?;
        let said = refusal(&stage)?;
        for expected in [table, difference, "lb-agent cleanup"] {
            ensure!(said.contains(expected), "no `{expected}` in: {said}");
        }
        served(&stage).with_context(|| format!("with a damaged {table}"))?;
        fs::remove_file(&path)?;
        pin(&whole, &path)?;
    }
    // A configuration without its keys: nothing that was written with them could be read.
    let path = maps.join(name::CONFIG);
    let whole = open_pin(&path)?;
    fs::remove_file(&path)?;
    let said = refusal(&stage)?;
    ensure!(said.contains(name::CONFIG), "not named: {said}");
    served(&stage).context("without a configuration")?;
    fs::remove_file(&path)?;
    pin(&whole, &path)?;
    restart(&mut stage, "")?;
    served(&stage)
}

#[test]
fn an_older_layout_serves_until_ours_is_complete_and_is_then_removed() -> Result<()> {
    for attach in ["tcx", "clsact"] {
        let flags = format!("--tc-attach {attach}");
        let mut stage = stage(&flags)?;
        kill(&mut stage)?;
        let root = stage.lab.bpffs("node0")?;
        let older = root.join("v0");
        fs::rename(layout(&stage)?, &older)?;
        served(&stage).context("by the older layout alone")?;
        // An API server that nobody is: the source is never complete.
        let agent = launch_without_source(&stage, &flags)?;
        soon("ours is attached beside it", || {
            ensure!(layout(&stage)?.join("links/cgroup/sockops").exists());
            Ok(())
        })?;
        served(&stage).context("before ours is complete")?;
        agent.kill()?;
        ensure!(
            older.exists(),
            "the older layout went before ours was complete"
        );
        restart(&mut stage, &flags)?;
        ensure!(!older.exists(), "the older layout is still there");
        served(&stage).context("by ours")?;
    }
    Ok(())
}

/// Starts an agent whose API server does not answer.
fn launch_without_source(stage: &Stage, flags: &str) -> Result<Agent> {
    let kubeconfig = stage.lab.dir().join("kubeconfig");
    fs::write(&kubeconfig, KUBECONFIG)?;
    let options = AgentOptions {
        manifests: None,
        ..AgentOptions::manifests(stage.manifests())
    }
    .with(&format!("--cluster-cidr {CLUSTER_CIDRS} {flags}"))
    .with(&format!("--kubeconfig {}", kubeconfig.display()));
    Agent::launch(&stage.lab, stage.lab.node(0), &options)
}

const KUBECONFIG: &str = "apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: 'http://127.0.0.1:9'}}]
users: [{name: u, user: {}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
";

#[test]
fn the_next_start_adopts_ids_windows_and_links_and_writes_nothing() -> Result<()> {
    for attach in ["tcx", "clsact"] {
        let flags = format!("--tc-attach {attach}");
        let mut stage = stage(&flags)?;
        stage.apply(&ServiceSpec::new("other", 11, &["c"]))?;
        stage.apply(&ServiceSpec::new("empty", 12, &[]))?;
        soon("three services are served", || {
            let text = Agent::tool(&stage.lab, stage.lab.node(0), "services")?;
            ensure!(text.contains("other") && text.contains("empty"), "{text}");
            Ok(())
        })?;
        let (links_before, tables_before) = (links(&stage)?, ids_and_windows(&stage)?);
        kill(&mut stage)?;
        restart(&mut stage, &flags)?;
        ensure!(writes_of_first_sync(&stage)? == 0, "something was written");
        ensure!(ids_and_windows(&stage)? == tables_before, "tables changed");
        let links = links(&stage)?;
        let ids = |links: &BTreeMap<PathBuf, LinkIds>| -> Vec<(PathBuf, u32)> {
            links
                .iter()
                .map(|(path, ids)| (path.clone(), ids.link))
                .collect()
        };
        ensure!(
            ids(&links) == ids(&links_before),
            "other links: {links_before:?}, now {links:?}"
        );
        served(&stage)?;
    }
    Ok(())
}

#[test]
fn what_changed_while_the_agent_was_dead_is_written_as_a_difference() -> Result<()> {
    let mut stage = stage("--socket-load-balancing off")?;
    stage.apply(&ServiceSpec::new("other", 11, &["c"]))?;
    stage.apply(&ServiceSpec::new("victim", 12, &["c"]))?;
    soon("three services are served", || {
        let text = Agent::tool(&stage.lab, stage.lab.node(0), "services")?;
        ensure!(text.contains("other") && text.contains("victim"), "{text}");
        Ok(())
    })?;
    kill(&mut stage)?;
    let untouched = Steady::start(&[(
        stage.pod("a").place(),
        ServiceSpec::new("other", 11, &[]).cluster_ips()[0],
    )])?;
    stage.apply(&web(&["c"]))?;
    stage.delete("victim")?;
    restart(&mut stage, "--socket-load-balancing off")?;
    let answer = stage.client.place().ask_tcp(stage.node_port(0, 30080)[0])?;
    ensure!(answer.name == "c", "answered by {answer}");
    let text = Agent::tool(&stage.lab, stage.lab.node(0), "services")?;
    ensure!(!text.contains("victim"), "still served:\n{text}");
    let writes = writes_of_first_sync(&stage)?;
    ensure!(writes > 0, "nothing was written");
    untouched.end()
}

#[test]
fn nothing_is_deleted_before_the_source_is_complete() -> Result<()> {
    let mut stage = stage("")?;
    kill(&mut stage)?;
    let clients = steady(&stage)?;
    let agent = launch_without_source(&stage, "")?;
    let before = agent.log().len();
    soon("the trouble is named", || {
        let log = agent.log();
        let new = log.get(before..).unwrap_or_default();
        let attached = layout(&stage)?.join("links/cgroup/sockops").exists();
        ensure!(
            attached && new.contains("127.0.0.1:9"),
            "no trouble in {new}"
        );
        Ok(())
    })?;
    served(&stage).context("without an API server")?;
    agent.kill()?;
    // A directory that is missing, then one that is none.
    let hidden = stage.lab.dir().join("hidden");
    fs::rename(stage.manifests(), &hidden)?;
    for blocked in [false, true] {
        if blocked {
            fs::write(stage.manifests(), "not a directory")?;
        }
        let options = AgentOptions {
            manifests: None,
            ..AgentOptions::manifests(stage.manifests())
        }
        .with(&format!(
            "--cluster-cidr {CLUSTER_CIDRS} --manifests {}",
            stage.manifests().display()
        ))
        .with(&format!(
            "--state-dir {}",
            stage.lab.dir().join("state-node0").display()
        ));
        let (status, log) = Agent::launch(&stage.lab, stage.lab.node(0), &options)?.wait()?;
        let said = log.lines().last().unwrap_or_default();
        ensure!(
            !status.success() && said.contains("manifests"),
            "said: {said}"
        );
        served(&stage).context("without its directory")?;
    }
    fs::remove_file(stage.manifests())?;
    fs::rename(&hidden, stage.manifests())?;
    restart(&mut stage, "")?;
    ensure!(
        writes_of_first_sync(&stage)? == 0,
        "something had been lost"
    );
    clients.end()
}

#[test]
fn kill_at_random_moments_of_later_syncs_interrupts_nobody() -> Result<()> {
    let mut stage = stage("")?;
    let clients = steady(&stage)?;
    let mut random = 0x2545_f491_u32;
    for round in 0..12_u8 {
        let end = {
            random ^= random << 13;
            random ^= random >> 17;
            random ^= random << 5;
            Instant::now() + std::time::Duration::from_millis(u64::from(random % 300))
        };
        let mut change = 0_u8;
        while Instant::now() < end {
            change = change.wrapping_add(1);
            let sets: [&[&str]; 3] = [&["a"], &["a", "b"], &["b"]];
            stage.apply(&web(sets[usize::from(change) % 3]))?;
            let other = ServiceSpec::new("other", 11, &["c"]);
            if change.is_multiple_of(2) {
                stage.apply(&other)?;
            } else if stage.manifests().join("other.yaml").exists() {
                stage.delete("other")?;
            }
            // The agent looks when inotify tells it; a little later it writes.
            std::thread::sleep(std::time::Duration::from_millis(u64::from(change % 16)));
        }
        kill(&mut stage).with_context(|| format!("round {round}"))?;
        restart(&mut stage, "")?;
    }
    served(&stage)?;
    clients.end()
}

/// An agent that the kernel kills at its first `bpf(2)` call with this command, before it is done.
fn start_killed_at(stage: &Stage, command: u32) -> Result<()> {
    let node = stage.lab.node(0);
    let mut agent = node.place().command(binary()?)?;
    agent
        .args([
            "run",
            "--node",
            "node0",
            "--cluster-cidr",
            CLUSTER_CIDRS,
            "--bpffs",
        ])
        .arg(stage.lab.bpffs("node0")?)
        .arg("--cgroup-root")
        .arg(node.cgroup_root().path())
        .arg("--manifests")
        .arg(stage.manifests())
        .arg("--state-dir")
        .arg(stage.lab.dir().join("state-node0"));
    let load = |offset| filter(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0);
    let equals =
        |value, yes, no| filter(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, yes, no);
    let answer = |value| filter(libc::BPF_RET | libc::BPF_K, value, 0, 0);
    // Of `struct seccomp_data`: the number of the call at 0, its first argument at 16.
    let mut code = [
        load(0),
        equals(u32::try_from(libc::SYS_bpf)?, 0, 3),
        load(16),
        equals(command, 0, 1),
        answer(libc::SECCOMP_RET_KILL_PROCESS),
        answer(libc::SECCOMP_RET_ALLOW),
    ];
    let restrict = move || {
        let program = libc::sock_fprog {
            len: 6,
            filter: code.as_mut_ptr(),
        };
        // SAFETY: the kernel copies the program, which lives through the call.
        let done = unsafe {
            libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program,
            )
        };
        if done == 0 {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error())
        }
    };
    // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
    unsafe { std::os::unix::process::CommandExt::pre_exec(&mut agent, restrict) };
    let output = agent.output()?;
    let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
    ensure!(
        signal == Some(libc::SIGSYS),
        "it ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn filter(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter {
        code: u16::try_from(code).unwrap_or(0),
        jt,
        jf,
        k,
    }
}

#[test]
fn killed_between_creating_pinning_loading_and_attaching_nothing_is_broken() -> Result<()> {
    use aya_obj::generated::bpf_cmd::{
        BPF_LINK_CREATE, BPF_LINK_UPDATE, BPF_MAP_CREATE, BPF_MAP_UPDATE_ELEM, BPF_OBJ_GET,
        BPF_OBJ_PIN, BPF_PROG_LOAD,
    };
    let mut stage = Stage::new(PodNetwork::Routed)?;
    stage.apply(&web(&["a", "b"]))?;
    // Where nothing is yet; the tables' first update follows the programs and precedes the links.
    for command in [
        BPF_MAP_CREATE,
        BPF_PROG_LOAD,
        BPF_OBJ_PIN,
        BPF_MAP_UPDATE_ELEM,
        BPF_LINK_CREATE,
    ] {
        start_killed_at(&stage, command as u32).with_context(|| format!("{command:?}, first"))?;
        let direct = stage.pod("b").sockets(8080)[0];
        stage.pod("a").place().ask_tcp(direct)?;
    }
    restart(&mut stage, "")?;
    served(&stage)?;
    kill(&mut stage)?;
    let clients = steady(&stage)?;
    // Over a dataplane that serves.
    for command in [
        BPF_OBJ_GET,
        BPF_MAP_CREATE,
        BPF_PROG_LOAD,
        BPF_MAP_UPDATE_ELEM,
        BPF_LINK_UPDATE,
    ] {
        start_killed_at(&stage, command as u32).with_context(|| format!("{command:?}, again"))?;
        served(&stage).with_context(|| format!("after {command:?}"))?;
    }
    restart(&mut stage, "")?;
    ensure!(
        writes_of_first_sync(&stage)? == 0,
        "something had been lost"
    );
    clients.end()
}

#[test]
fn without_a_bpffs_the_start_fails_with_a_sentence_about_the_mount() -> Result<()> {
    let stage = Stage::new(PodNetwork::Routed)?;
    let node = stage.lab.node(0);
    let directory = stage.lab.dir().join("plain");
    let mut command = node.place().command(binary()?)?;
    command
        .args(["run", "--node", "node0", "--bpffs"])
        .arg(&directory)
        .arg("--cgroup-root")
        .arg(node.cgroup_root().path())
        .args(["--manifests"])
        .arg(stage.manifests())
        .arg("--state-dir")
        .arg(stage.lab.dir().join("state"));
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success(), "it started:\n{said}");
    for expected in ["not on a BPF file system", "mount", "--bpffs"] {
        ensure!(said.contains(expected), "no `{expected}` in:\n{said}");
    }
    ensure!(!directory.join(format!("v{LAYOUT_VERSION}")).exists());
    Ok(())
}

/// Connections of `web` over the packet path, as the agent counted them.
fn counted(stage: &Stage) -> Result<u64> {
    let text = stage.agents[0].metrics(stage.lab.node(0))?;
    let sum = text
        .lines()
        .filter(|line| line.starts_with("lb_service_connections_total{"))
        .filter(|line| line.contains("name=\"web\"") && line.contains("path=\"tc\""))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum::<f64>();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "small counters"
    )]
    Ok(sum as u64)
}

#[test]
fn a_restart_with_the_other_way_to_attach_leaves_no_double_translation() -> Result<()> {
    let flags = |attach| format!("--socket-load-balancing off --tc-attach {attach}");
    let mut stage = stage(&flags("clsact"))?;
    let clients = steady(&stage)?;
    for attach in ["tcx", "clsact", "auto"] {
        kill(&mut stage)?;
        restart(&mut stage, &flags(attach))?;
        let node = stage.lab.node(0).namespace();
        let filters = format!(
            "{}{}",
            node.tc(&format!("filter show dev {UPLINK} ingress"))?,
            node.tc(&format!("filter show dev {UPLINK} egress"))?
        );
        let pins = files_below(&layout(&stage)?.join("links/tcx"))?;
        if attach == "clsact" {
            ensure!(pins.is_empty(), "links beside filters: {pins:?}");
            ensure!(filters.matches("lb_").count() >= 2, "no filters: {filters}");
        } else {
            ensure!(!pins.is_empty(), "{attach}: no links");
            ensure!(filters.is_empty(), "filters beside links: {filters}");
        }
        served(&stage)?;
    }
    clients.end()?;
    let before = counted(&stage)?;
    for _ in 0..10 {
        stage.client.place().ask_tcp(stage.node_port(0, 30080)[0])?;
    }
    let more = counted(&stage)? - before;
    ensure!(more == 10, "10 connections were counted {more} times");
    Ok(())
}

#[test]
fn sigterm_and_a_restart_interrupt_nobody() -> Result<()> {
    let mut stage = stage("")?;
    let clients = steady(&stage)?;
    for _ in 0..3 {
        let status = stage.agents.remove(0).stop()?;
        ensure!(status.success(), "ended with {status}");
        served(&stage)?;
        restart(&mut stage, "")?;
    }
    clients.end()
}

#[test]
fn an_agent_that_waits_in_vain_leaves_with_a_sentence() -> Result<()> {
    let stage = stage("")?;
    let options = AgentOptions::manifests(stage.manifests())
        .with(&format!("--cluster-cidr {CLUSTER_CIDRS} --takeover-wait 1"))
        .with("--metrics-bind-address 127.0.0.1:11249 --healthz-bind-address 127.0.0.1:11256");
    let before = ids_and_windows(&stage)?;
    let began = Instant::now();
    let (status, log) = Agent::launch(&stage.lab, stage.lab.node(0), &options)?.wait()?;
    ensure!(
        !status.success() && began.elapsed().as_secs() >= 1,
        "it did not wait"
    );
    ensure!(
        log.contains("another agent holds"),
        "no sentence in:\n{log}"
    );
    ensure!(ids_and_windows(&stage)? == before, "tables were touched");
    served(&stage)
}

#[test]
fn with_a_full_flow_table_live_connections_stay() -> Result<()> {
    // 256 flows asked for, 1024 records made: each flow of an outside client takes two.
    let mut stage = stage("--socket-load-balancing off --max-flows 256")?;
    let server: SocketAddr = stage.node_port(0, 30080)[0];
    let held = stage.client.place().enter(|| -> Result<Vec<_>> {
        (0..100)
            .map(|_| {
                let stream = std::net::TcpStream::connect(server)?;
                client::ask(&stream)?;
                Ok(stream)
            })
            .collect()
    })??;
    for agent in stage.agents.drain(..) {
        agent.kill()?;
    }
    stage.client.place().call(|| {
        for number in 0..1500 {
            client::tcp(server).with_context(|| format!("connection {number}"))?;
        }
        Ok(String::new())
    })?;
    for (number, stream) in held.iter().enumerate() {
        client::ask(stream).map_err(|error| anyhow!("held connection {number}: {error:#}"))?;
    }
    Ok(())
}

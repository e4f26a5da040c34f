//! `cargo xtask run` as a newcomer meets it: what it prints is run as it stands, and what it made is
//! gone when it ends, however it ends. Each test has a machine of its own.

use anyhow::{Context, Result, ensure};
use lb_lab::client::PATIENCE;
use lb_tests::island::{Island, Loaded, Traces, called};
use lb_tests::newcomer::{
    LONG, Xtask, agent_line, answering, answers_from, ask_until, nothing_is_left, set, shell, xtask,
};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[test]
fn every_command_the_demo_prints_works_as_it_stands_and_names_the_pod() -> Result<()> {
    Island::new()?.run(|| {
        let before = Traces::take()?;
        let mut demo = Xtask::demo()?;
        let inside = demo.lines("curl ");
        ensure!(
            inside.len() == 4,
            "ClusterIP and node port of both families: {inside:?}"
        );
        for line in &inside {
            let pods = answering(line)?;
            ensure!(pods == set(&["web-1", "web-2"]), "`{line}`: {pods:?}");
        }
        let connections = |path: &str| -> Result<u64> {
            let line = format!("{} -o json", demo.line(&agent_line()?)?);
            let text = String::from_utf8(shell(&line)?.stdout)?;
            let value: serde_json::Value =
                serde_json::from_str(&text).with_context(|| format!("{line}: {text}"))?;
            let services = value["services"].as_array().context("no services")?;
            let counts = services.iter().map(|service| {
                service["connections"][path]
                    .as_u64()
                    .with_context(|| format!("no {path} in {service}"))
            });
            counts.sum()
        };
        let (by_socket, by_packet) = (connections("socketOpened")?, connections("tcOpened")?);
        ensure!(by_socket >= 24 * 4, "{by_socket} on the socket path");
        let outside = demo.lines("ip netns exec ");
        ensure!(outside.len() == 2, "both families: {outside:?}");
        for line in &outside {
            let pods = answering(line)?;
            ensure!(pods == set(&["web-1", "web-2"]), "`{line}`: {pods:?}");
        }
        ensure!(
            connections("tcOpened")? == by_packet + 48 && connections("socketOpened")? == by_socket,
            "the outside client must go through the packet path"
        );
        ensure!(demo.interrupt(Signal::SIGINT)?.success(), "Ctrl-C failed");
        nothing_is_left(&before, &demo.loaded)
    })
}

#[test]
fn editing_adding_and_deleting_a_manifest_changes_the_traffic_at_once() -> Result<()> {
    Island::new()?.run(|| {
        let demo = Xtask::demo()?;
        let (cluster_ip, node_port) = (demo.lines("curl ")[0], demo.lines("curl ")[2]);
        let type_in = |line: &str| -> Result<()> {
            let out = shell(line)?;
            ensure!(out.status.success(), "`{line}`: {out:?}");
            Ok(())
        };
        // Added: the third pod.
        type_in(demo.line("cp ")?)?;
        answers_from(cluster_ip, "web-3")?;
        answers_from(node_port, "web-3")?;
        // Deleted: the second one. Nobody is sent to it from the moment others know.
        let delete = demo.line("mv ")?;
        type_in(delete)?;
        await_endpoints(&demo, 2)?;
        let pods = answering(cluster_ip)?;
        ensure!(
            pods == set(&["web-1", "web-3"]),
            "after `{delete}`: {pods:?}"
        );
        // Edited: another node port.
        let edit = demo.line("sed ")?;
        type_in(edit)?;
        let moved = node_port.replace(":30080", ":30081");
        ask_until(&moved, Result::is_ok)?;
        ask_until(node_port, Result::is_err)?;
        // Edited: a pod that is no longer ready.
        let manifests = Path::new(delete.split(' ').nth(1).context("no file")?)
            .parent()
            .context("no directory")?;
        let pod = manifests.join("web-1.yaml");
        let text = fs::read_to_string(&pod)?;
        fs::write(&pod, text.replace("\"True\"", "\"False\""))?;
        await_endpoints(&demo, 1)?;
        ensure!(
            answering(cluster_ip)? == set(&["web-3"]),
            "web-1 is unready"
        );
        // Deleted: the service.
        fs::remove_file(manifests.join("web.yaml"))?;
        ask_until(cluster_ip, Result::is_err)?;
        ask_until(&moved, Result::is_err)
    })
}

/// Waits until new connections go to so many endpoints of each family. One that is gone is listed
/// while it has connections.
fn await_endpoints(demo: &Xtask, count: usize) -> Result<()> {
    let line = demo.line(&agent_line()?)?;
    let end = Instant::now() + PATIENCE;
    loop {
        let text = String::from_utf8(shell(line)?.stdout)?;
        let active = text
            .lines()
            .filter(|line| line.contains("-> ") && line.contains(" active "));
        if active.count() == 2 * count {
            return Ok(());
        }
        ensure!(Instant::now() < end, "{count} endpoints expected:\n{text}");
    }
}

#[test]
fn sigterm_to_the_demo_leaves_nothing_behind() -> Result<()> {
    Island::new()?.run(|| {
        let before = Traces::take()?;
        let mut demo = Xtask::demo()?;
        kill(demo.pid()?, Signal::SIGTERM)?;
        ensure!(demo.child.wait()?.success(), "SIGTERM failed");
        nothing_is_left(&before, &demo.loaded)
    })
}

#[test]
fn a_killed_demo_leaves_nothing_behind() -> Result<()> {
    Island::new()?.run(|| {
        let before = Traces::take()?;
        let mut demo = Xtask::demo()?;
        kill(demo.pid()?, Signal::SIGKILL)?;
        demo.child.wait()?;
        nothing_is_left(&before, &demo.loaded)
    })
}

#[test]
fn what_a_demo_killed_with_its_janitor_left_is_removed_by_the_next_run() -> Result<()> {
    Island::new()?.run(|| {
        let before = Traces::take()?;
        let mut first = Xtask::demo()?;
        let own = first.pid()?.as_raw();
        for janitor in called("xtask")?.into_iter().filter(|pid| *pid != own) {
            kill(Pid::from_raw(janitor), Signal::SIGKILL)?;
        }
        kill(first.pid()?, Signal::SIGKILL)?;
        first.child.wait()?;
        let left = Traces::take()?.differences(&before);
        ensure!(!left.is_empty(), "nothing was left to remove");
        let mut next = Xtask::demo()?;
        ask_until(next.lines("curl ")[0], Result::is_ok)?;
        ensure!(next.interrupt(Signal::SIGINT)?.success(), "Ctrl-C failed");
        nothing_is_left(&before, &next.loaded)?;
        nothing_is_left(&before, &first.loaded)
    })
}

/// The built `cargo xtask`, where everybody may run it.
fn copied_binary() -> Result<(tempfile::TempDir, PathBuf)> {
    let test = std::env::current_exe()?;
    let profile = test.ancestors().nth(2).context("no target directory")?;
    let dir = tempfile::Builder::new()
        .permissions(Permissions::from_mode(0o755))
        .tempdir()?;
    let copy = dir.path().join("xtask");
    // Another process writes it: what other tests start meanwhile would inherit our descriptor, and
    // the kernel runs no file that somebody may still write.
    lb_lab::command::output(Command::new("cp").arg(profile.join("xtask")).arg(&copy))
        .context("no xtask beside this test: run `cargo build -p xtask`")?;
    Ok((dir, copy))
}

#[test]
fn an_ordinary_user_is_told_in_one_sentence_what_is_needed() -> Result<()> {
    lb_lab::require_root();
    let (_dir, binary) = copied_binary()?;
    for verb in ["run", "test", "bench", "vm"] {
        let out = Command::new(&binary)
            .arg(verb)
            .uid(65534)
            .gid(65534)
            // Nothing could be installed or built with this.
            .env_clear()
            .env("PATH", "/nonexistent")
            .stdin(Stdio::null())
            .output()?;
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        ensure!(
            !out.status.success() && out.stdout.is_empty(),
            "{verb}: {out:?}"
        );
        ensure!(
            text.lines().count() == 1 && text.contains("needs root: run `sudo "),
            "{verb}: {text}"
        );
    }
    Ok(())
}

#[test]
fn a_source_that_is_not_there_is_said_before_anything_is_built() -> Result<()> {
    lb_lab::require_root();
    let (_dir, binary) = copied_binary()?;
    for (option, source, what) in [
        ("--manifests", "/nonexistent/manifests", "No such file"),
        ("--manifests", "/proc/version", "Not a directory"),
        ("--kubeconfig", "/nonexistent/kubeconfig", "No such file"),
    ] {
        let out = Command::new(&binary)
            .args(["run", option, source])
            .stdin(Stdio::null())
            .output()?;
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        ensure!(!out.status.success(), "{option} {source}: {out:?}");
        ensure!(
            text.lines().count() == 1 && [option, source, what].iter().all(|w| text.contains(w)),
            "{option} {source}: {text}"
        );
    }
    Ok(())
}

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: shop, namespace: default}\n\
                       spec: {type: NodePort, selector: {app: shop}, ports: [{port: 80}]}\n";

#[test]
fn a_directory_of_one_s_own_is_served_with_the_same_addresses_at_each_run() -> Result<()> {
    Island::new()?.run(|| {
        // The island's own, and the same each time: its name is where addresses are remembered.
        let path = "/run/shop";
        fs::create_dir(path)?;
        fs::write(Path::new(path).join("shop.yaml"), SERVICE)?;
        let before = Traces::take()?;
        let served = || -> Result<String> {
            let mut run = Xtask::start(&["--manifests", path], "serving as node")?;
            let line = run.line("serving as node")?;
            let command = line.split('`').nth(1).context("no command")?.to_owned();
            let services = String::from_utf8(shell(&command)?.stdout)?;
            ensure!(services.contains("default/shop"), "{command}: {services}");
            ensure!(run.interrupt(Signal::SIGINT)?.success(), "Ctrl-C failed");
            nothing_is_left(&before, &run.loaded)?;
            Ok(services)
        };
        let (first, second) = (served()?, served()?);
        ensure!(first == second, "first:\n{first}\nsecond:\n{second}");
        Ok(())
    })
}

#[test]
fn a_cluster_that_cannot_be_reached_is_named_and_ctrl_c_ends_the_waiting() -> Result<()> {
    const KUBECONFIG: &str = "apiVersion: v1\nkind: Config\ncurrent-context: lab\n\
        contexts: [{name: lab, context: {cluster: lab, user: lab}}]\n\
        clusters: [{name: lab, cluster: {server: \"http://127.0.0.1:1\"}}]\n\
        users: [{name: lab, user: {}}]\n";
    Island::new()?.run(|| {
        let before = Traces::take()?;
        let dir = tempfile::tempdir()?;
        let (kubeconfig, errors) = (dir.path().join("kubeconfig"), dir.path().join("errors"));
        fs::write(&kubeconfig, KUBECONFIG)?;
        let mut child = xtask(&["--kubeconfig", &kubeconfig.to_string_lossy()])?
            .process_group(0)
            .stdout(Stdio::null())
            .stderr(File::create(&errors)?)
            .spawn()?;
        let end = Instant::now() + LONG;
        loop {
            let text = fs::read_to_string(&errors)?;
            if text.contains("127.0.0.1:1") {
                break;
            }
            ensure!(Instant::now() < end, "no word of the server:\n{text}");
            ensure!(child.try_wait()?.is_none(), "it ended:\n{text}");
            std::thread::sleep(Duration::from_millis(20));
        }
        killpg(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGINT)?;
        child.wait()?;
        nothing_is_left(&before, &Loaded::default())
    })
}

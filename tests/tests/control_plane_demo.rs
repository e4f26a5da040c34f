//! `cargo xtask run --control-plane` as a newcomer meets it: what it prints is run as it stands, and
//! what it made is gone when it ends.

use anyhow::{Context, Result, ensure};
use lb_tests::island::{Island, Traces};
use lb_tests::newcomer::{Xtask, answering, answers_from, ask_until, nothing_is_left, set, shell};
use nix::sys::signal::Signal;

#[test]
fn kubectl_works_on_the_demos_control_plane_and_what_it_changes_is_served() -> Result<()> {
    Island::new()?.run(|| {
        let before = Traces::take()?;
        let mut demo = Xtask::start(&["--control-plane"], "Ctrl-C ends the demo")?;
        let requests = demo.lines("curl ");
        ensure!(requests.len() == 4, "both families: {requests:?}");
        for line in &requests {
            let pods = answering(line)?;
            ensure!(pods == set(&["web-1", "web-2"]), "`{line}`: {pods:?}");
        }
        let type_in = |words: &str| -> Result<String> {
            let lines = demo.printed.iter();
            let mut found = lines.filter(|line| line.contains("/kubectl ") && line.contains(words));
            let line = found
                .next()
                .with_context(|| format!("no line with {words:?}"))?;
            let out = shell(line)?;
            ensure!(out.status.success(), "`{line}`: {out:?}");
            Ok(String::from_utf8(out.stdout)?)
        };
        let shown = type_in(" get ")?;
        ensure!(
            shown.contains("service/web") && shown.contains("pod/web-1"),
            "{shown}"
        );
        let (cluster_ip, node_port) = (requests[0], requests[2]);
        type_in(" label --overwrite pod web-3")?;
        answers_from(cluster_ip, "web-3")?;
        type_in(" label --overwrite pod web-2")?;
        type_in(" delete ")?;
        ask_until(cluster_ip, |_| {
            answering(cluster_ip).is_ok_and(|pods| pods == set(&["web-3"]))
        })?;
        type_in(" patch ")?;
        answers_from(&node_port.replace(":30080", ":30081"), "web-3")?;
        ask_until(node_port, Result::is_err)?;
        ensure!(demo.interrupt(Signal::SIGINT)?.success(), "Ctrl-C failed");
        nothing_is_left(&before, &demo.loaded)
    })
}

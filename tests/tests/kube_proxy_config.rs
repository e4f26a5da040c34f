//! kube-proxy's own configuration, as installers write it, given to the real agent in kube-proxy's
//! place.

use anyhow::{Context, Result, ensure};
use lb_lab::agent::{binary, http_get};
use lb_lab::{Agent, AgentOptions};
use lb_tests::cluster::Cluster;
use lb_tests::site::{Site, socket};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file as an installer writes it, with this kubeconfig.
fn installed(name: &str, kubeconfig: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lb-agent/tests/data/kube-proxy");
    let text = fs::read_to_string(path.join(name))?;
    let text = text.replace("/var/lib/kube-proxy/kubeconfig.conf", kubeconfig);
    Ok(text.replace(
        "/var/lib/rancher/k3s/agent/kubeproxy.kubeconfig",
        kubeconfig,
    ))
}

/// A cluster with the service `web` on pod `a`, and its kubeconfig.
fn cluster() -> Result<(Cluster, String)> {
    let cluster = Cluster::new()?;
    cluster.web("web", 1, &["a"])?;
    let kubeconfig = cluster.api.kubeconfig(cluster.site.lab().dir())?;
    Ok((cluster, kubeconfig.display().to_string()))
}

/// Flags only.
fn options(flags: &str) -> AgentOptions {
    AgentOptions {
        manifests: None,
        extra: Vec::new(),
        environment: Vec::new(),
    }
    .with(flags)
}

/// What lies in a BPF filesystem, but for what the kernel itself puts into each.
fn pins(bpffs: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(bpffs)? {
        let path = entry?.path();
        if path
            .extension()
            .is_none_or(|extension| extension != "debug")
        {
            found.push(path);
        }
    }
    Ok(found)
}

/// A setting of the node's kernel.
fn setting(site: &Site, name: &str) -> Result<Option<u64>> {
    let path = format!("/proc/sys/net/netfilter/{name}");
    let text = site.lab().node(0).place().enter(|| {
        // The file shows the namespace of the thread that opens it.
        fs::read_to_string(path).unwrap_or_default()
    })?;
    Ok(text.trim().parse().ok())
}

#[test]
fn kubeadm_s_config_map_serves_as_it_is_with_kube_proxy_s_defaults_for_the_machine() -> Result<()> {
    let (mut cluster, kubeconfig) = cluster()?;
    let file = cluster.site.lab().dir().join("config.conf");
    fs::write(&file, installed("kubeadm.yaml", &kubeconfig)?)?;
    let flags = format!("--config {} --hostname-override=node0", file.display());
    cluster.site.start_with(&options(&flags))?;
    ensure!(cluster.site.ask(socket(1))? == "a");
    let site = &cluster.site;
    let score = fs::read_to_string(format!("/proc/{}/oom_score_adj", site.agent()?.id()))?;
    let log = site.agent()?.log();
    if site.log_count(&["oom_score_adj cannot be set to -999", "CAP_SYS_RESOURCE"])? == 0 {
        ensure!(score.trim() == "-999", "oom_score_adj is {score}: {log}");
    }
    for (name, wanted) in [
        ("nf_conntrack_tcp_timeout_established", 86_400),
        ("nf_conntrack_tcp_timeout_close_wait", 3600),
    ] {
        let found = setting(site, name)?;
        // A kernel without connection tracking has no such setting.
        ensure!(
            found.is_none_or(|found| found == wanted),
            "{name} is {found:?}"
        );
    }
    ensure!(!log.contains("is ignored"), "{log}");
    Ok(())
}

#[test]
fn k3s_flags_serve_as_they_are() -> Result<()> {
    let (mut cluster, kubeconfig) = cluster()?;
    let flags = installed("k3s.args", &kubeconfig)?.replace("Node-A", "NODE0");
    let flags = flags.split_whitespace().collect::<Vec<_>>().join(" ");
    cluster.site.start_with(&options(&flags))?;
    ensure!(cluster.site.ask(socket(1))? == "a");
    let (status, mode) = http_get(cluster.site.lab().node(0), 10249, "/proxyMode")?;
    ensure!(
        status == 200 && !mode.is_empty(),
        "/proxyMode: {status} {mode}"
    );
    Ok(())
}

#[test]
fn fields_that_mean_nothing_here_and_unknown_ones_are_named_and_the_rest_serves() -> Result<()> {
    let mut site = Site::new(&["a"])?;
    site.write("web.yaml", site.web("web", 1, &["a"]))?;
    let file = site.lab().dir().join("config.conf");
    fs::write(
        &file,
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: ipvs\n\
         ipvs: {scheduler: lblc, strictARP: true}\ncolor: red\nconntrack: {maxPerCore: 0}\n\
         ---\n# ours\nmaxFlows: 8192\n",
    )?;
    let words = format!("--config {} --proxy-mode nftables", file.display());
    site.start_with(&AgentOptions::manifests(&site.directory()).with(&words))?;
    ensure!(site.ask(socket(1))? == "a");
    for words in [
        ["ipvs.strictARP", "is ignored"],
        ["`color`", "not known"],
        ["`lblc`", "random"],
        ["--proxy-mode", "is ignored"],
    ] {
        site.await_log(&words)?;
        ensure!(
            site.log_count(&words)? == 1,
            "said more than once: {words:?}"
        );
    }
    Ok(())
}

#[test]
fn a_configuration_that_makes_no_sense_is_refused_as_a_whole_before_anything_is_touched()
-> Result<()> {
    let mut site = Site::new(&["a"])?;
    let file = site.lab().dir().join("config.conf");
    fs::write(
        &file,
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
         mode: userspace\noomScoreAdj: 5000\nconntrack: {tcpCloseWaitTimeout: 77s}\n---\nmaxFlows: 3\n",
    )?;
    let before = setting(&site, "nf_conntrack_tcp_timeout_close_wait")?;
    let words = format!("--config {}", file.display());
    let options = AgentOptions::manifests(&site.directory()).with(&words);
    site.launch_with(&options)?;
    let bpffs = site.agent()?.bpffs().to_owned();
    let (status, log) = site.take_agent()?.wait()?;
    ensure!(status.code() == Some(2), "{status}: {log}");
    for word in ["`userspace`", "oomScoreAdj", "--max-flows 3"] {
        ensure!(log.contains(word), "no word of {word}: {log}");
    }
    ensure!(setting(&site, "nf_conntrack_tcp_timeout_close_wait")? == before);
    ensure!(pins(&bpffs)?.is_empty(), "something was made");
    Ok(())
}

#[test]
fn a_changed_file_ends_the_agent_with_an_error_and_nonsense_in_it_does_not() -> Result<()> {
    const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
                        conntrack: {maxPerCore: 0}\n";
    let mut site = Site::new(&["a"])?;
    site.write("web.yaml", site.web("web", 1, &["a"]))?;
    let file = site.lab().dir().join("config.conf");
    let replace = |text: &str| -> Result<()> {
        let fresh = file.with_extension("new");
        fs::write(&fresh, text)?;
        Ok(fs::rename(&fresh, &file)?)
    };
    replace(HEAD)?;
    let words = format!("--config {}", file.display());
    let options = AgentOptions::manifests(&site.directory()).with(&words);
    site.start_with(&options)?;
    replace(&format!("{HEAD}mode: userspace\n"))?;
    site.await_log(&["makes no sense", "userspace"])?;
    ensure!(site.ask(socket(1))? == "a");
    replace(&format!("{HEAD}mode: nftables\n"))?;
    let (status, log) = site.take_agent()?.wait()?;
    ensure!(status.code() == Some(1), "{status}: {log}");
    ensure!(log.contains("config.conf changed"), "{log}");
    ensure!(site.ask(socket(1))? == "a", "traffic went on");
    site.start_with(&options)?;
    ensure!(site.ask(socket(1))? == "a");
    Ok(())
}

/// The agent under the name `kube-proxy`.
fn kube_proxy(directory: &Path) -> Result<Command> {
    let link: PathBuf = directory.join("kube-proxy");
    std::os::unix::fs::symlink(binary()?, &link)?;
    Ok(Command::new(link))
}

#[test]
fn under_kube_proxy_s_name_it_writes_the_defaults_as_kube_proxy_does() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("defaults");
    let output = kube_proxy(directory.path())?
        .arg(format!("--write-config-to={}", file.display()))
        .arg("--proxy_mode=nftables")
        .output()?;
    ensure!(output.status.success(), "{output:?}");
    let written: serde_json::Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
    for (pointer, wanted) in [
        ("/kind", serde_json::json!("KubeProxyConfiguration")),
        ("/mode", serde_json::json!("nftables")),
        ("/conntrack/maxPerCore", serde_json::json!(32_768)),
        ("/nodePortAddresses", serde_json::json!(["primary"])),
        ("/hostnameOverride", serde_json::json!("")),
    ] {
        let found = written.pointer(pointer).context(pointer)?;
        ensure!(*found == wanted, "{pointer} is {found}");
    }
    Ok(())
}

#[test]
fn init_only_writes_the_kernel_s_settings_and_ends() -> Result<()> {
    let site = Site::new(&[])?;
    let name = "nf_conntrack_tcp_timeout_close_wait";
    if setting(&site, name)?.is_none() {
        // This kernel tracks no connections: there is nothing to set.
        return Ok(());
    }
    let mut command = site.lab().node(0).place().command(binary()?)?;
    command.args(["kube-proxy", "--init-only", "--conntrack-max-per-core=0"]);
    command.arg("--conntrack-tcp-timeout-close-wait=1234s");
    let output = command.output()?;
    ensure!(output.status.success(), "{output:?}");
    ensure!(setting(&site, name)? == Some(1234));
    Ok(())
}

#[test]
fn cleanup_removes_what_runs_without_a_configuration() -> Result<()> {
    let mut site = Site::new(&["a"])?;
    site.write("web.yaml", site.web("web", 1, &["a"]))?;
    site.start("")?;
    let bpffs = site.agent()?.bpffs().to_owned();
    site.stop()?;
    ensure!(!pins(&bpffs)?.is_empty());
    let printed = Agent::tool(site.lab(), site.lab().node(0), "kube-proxy --cleanup")?;
    ensure!(
        printed.contains("removed") || !printed.is_empty(),
        "{printed}"
    );
    ensure!(pins(&bpffs)?.is_empty(), "something is left");
    Ok(())
}

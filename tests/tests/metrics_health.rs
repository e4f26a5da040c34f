//! What the agent says of itself: metrics that count what passed, and health that is true only
//! while the loaded programs work where they were attached.

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{HashMap, Map, MapData};
use lb_common::table::{Frontend, FrontendKey};
use lb_lab::agent::http_get;
use lb_lab::client;
use lb_tests::site::{Site, at, sample, service, socket};
use std::collections::BTreeSet;
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};

/// A site with `web` (10.96.1.1 on pod a) and `empty` (10.96.1.2 without endpoints).
fn site(flags: &str) -> Result<Site> {
    let mut site = Site::new(&["a"])?;
    site.write("web.yaml", site.web("web", 1, &["a"]))?;
    site.write("empty.yaml", service("empty", &at(2)))?;
    site.start(flags)?;
    Ok(site)
}

/// Connects to `web` and `empty`, and returns what is counted of a service on a path.
fn counts(site: &Site, path: &str) -> Result<()> {
    let on = |name: &str, service: &str, more: &str| {
        let (service, path) = (format!("name=\"{service}\""), format!("path=\"{path}\""));
        site.metric(name, &[&service, &path, more])
    };
    ensure!(on("lb_service_connections_total", "web", "")? == Some(0.0));
    for _ in 0..7 {
        site.ask(socket(1))?;
    }
    ensure!(on("lb_service_connections_total", "web", "")? == Some(7.0));
    let held = site.client().place().spawn(move || {
        let stream = TcpStream::connect(socket(1))?;
        client::ask(&stream)?;
        std::thread::sleep(std::time::Duration::from_secs(60));
        Ok(String::new())
    })?;
    site.until("one is active", || {
        let active = on("lb_service_active_connections", "web", "")?;
        Ok((active != Some(1.0)).then(|| format!("{active:?}")))
    })?;
    drop(held);
    site.until("none is active", || {
        let active = on("lb_service_active_connections", "web", "")?;
        Ok((active != Some(0.0)).then(|| format!("{active:?}")))
    })?;
    for _ in 0..3 {
        let error = site.ask(socket(2)).err().context("nobody serves it")?;
        ensure!(format!("{error:#}").contains("refused"), "{error:#}");
    }
    let rejects = on("lb_service_rejects_total", "empty", "")?;
    ensure!(rejects.is_some_and(|count| count >= 3.0), "{rejects:?}");
    Ok(())
}

#[test]
fn packets_bytes_connections_and_rejects_are_counted_where_packets_pass_us() -> Result<()> {
    let site = site("--socket-load-balancing off")?;
    counts(&site, "tc")?;
    let both = ["name=\"web\"", "path=\"tc\""];
    for direction in ["direction=\"in\"", "direction=\"out\""] {
        let labels = [both[0], both[1], direction];
        let packets = site
            .metric("lb_service_packets_total", &labels)?
            .context("no packets")?;
        let bytes = site
            .metric("lb_service_bytes_total", &labels)?
            .context("no bytes")?;
        // Eight connections of at least three packets each way.
        ensure!(packets >= 24.0, "{packets} packets {direction}");
        ensure!(bytes >= packets * 40.0, "{bytes} bytes {direction}");
        ensure!(bytes < packets * 1500.0, "{bytes} bytes {direction}");
    }
    let socket = site.metric(
        "lb_service_connections_total",
        &["path=\"socket\"", both[0]],
    )?;
    ensure!(socket == Some(0.0), "{socket:?}");
    Ok(())
}

#[test]
fn the_socket_path_counts_connections_and_has_no_series_for_what_it_cannot_count() -> Result<()> {
    let site = site("")?;
    counts(&site, "socket")?;
    for name in [
        "lb_service_packets_total",
        "lb_service_bytes_total",
        "lb_service_drops_total",
    ] {
        let value = site.metric(name, &["path=\"socket\""])?;
        ensure!(value.is_none(), "{name}: {value:?} on the socket path");
    }
    let tc = site.metric(
        "lb_service_connections_total",
        &["path=\"tc\"", "name=\"web\""],
    )?;
    ensure!(tc == Some(0.0), "counted on both paths: {tc:?}");
    Ok(())
}

/// `name{label="value",…} number` or `name number`; the name and its labels.
fn parse(line: &str) -> Option<(String, String)> {
    let (series, value) = line.rsplit_once(' ')?;
    let right = value.parse::<f64>().is_ok();
    let (name, labels) = match series.split_once('{') {
        Some((name, rest)) => (name, rest.strip_suffix('}')?),
        None => (series, ""),
    };
    let word = |text: &str| {
        let first = text.chars().next().is_some_and(|c| c.is_ascii_alphabetic());
        first && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let mut rest = labels;
    while !rest.is_empty() {
        let (label, after) = rest.split_once("=\"")?;
        let end = after.find('"')?;
        if !word(label) || after[..end].contains(['\\', '\n']) {
            return None;
        }
        rest = after[end + 1..]
            .strip_prefix(',')
            .unwrap_or(&after[end + 1..]);
    }
    (right && word(name)).then(|| (name.to_owned(), labels.to_owned()))
}

/// Checks a page line by line and against the reference; the families it has.
fn families(page: &str, reference: &str) -> Result<BTreeSet<String>> {
    let (mut types, mut series) = (BTreeSet::new(), BTreeSet::new());
    let mut family = String::new();
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').context("no type")?;
            ensure!(types.insert(name.to_owned()), "{name} has two types");
            let suffix = if kind == "counter" { "_total" } else { "" };
            ensure!(
                reference.contains(&format!("\n## `{name}{suffix}`\n\n{kind}")),
                "{name} ({kind}) is not in docs/metrics.md"
            );
            name.clone_into(&mut family);
        } else if !line.starts_with("# HELP ") && line != "# EOF" {
            let (name, labels) = parse(line).with_context(|| format!("no sample: {line}"))?;
            ensure!(
                name.starts_with(&family),
                "{name} below the type of {family}"
            );
            ensure!(series.insert((name, labels)), "twice: {line}");
        }
    }
    ensure!(page.ends_with("\n# EOF\n"), "no end: {page}");
    Ok(types)
}

#[test]
fn the_pages_are_valid_and_say_what_the_reference_says() -> Result<()> {
    let site = site("")?;
    site.ask(socket(1))?;
    let node = site.lab().node(0);
    let page = site.agent()?.metrics(node)?;
    let (_, health_checks) = http_get(node, 10249, "/metrics/slis")?;
    let reference = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let reference = fs::read_to_string(&reference)?;
    let mut types = families(&page, &reference)?;
    types.extend(families(&health_checks, &reference)?);
    for section in reference
        .lines()
        .filter_map(|line| line.strip_prefix("## `"))
    {
        let name = section.trim_end_matches('`');
        // kube-proxy has a gauge whose name ends like a counter's.
        let family = name.trim_end_matches("_total");
        let served = types.contains(family) || types.contains(name);
        ensure!(served, "{name} is not served");
    }
    for (name, value) in [
        ("lb_synced", 1.0),
        ("lb_datapath_probe", 1.0),
        ("lb_tables_readable", 1.0),
        ("lb_services", 2.0),
        ("lb_endpoints", 1.0),
        ("lb_table_write_failures_total", 0.0),
        ("lb_table_entries", 1.0),
    ] {
        let found = sample(&page, name, &[]);
        ensure!(
            found.is_some_and(|found| found >= value),
            "{name} {found:?}"
        );
    }
    Ok(())
}

/// Waits until `/healthz` says 503 with these words.
fn await_unhealthy(site: &Site, words: &str) -> Result<()> {
    site.until(&format!("/healthz says 503: {words}"), || {
        let (status, body) = http_get(site.lab().node(0), 10256, "/healthz")?;
        let said = status == 503 && body.contains(words);
        Ok((!said).then(|| format!("{status} {body}")))
    })?;
    site.await_metric("lb_datapath_probe", &[], Some(0.0))
}

/// The file of this name below `directory`.
fn find(directory: &Path, name: &str) -> Result<PathBuf> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.ends_with(name) {
            return Ok(path);
        }
        if path.is_dir()
            && let Ok(found) = find(&path, name)
        {
            return Ok(found);
        }
    }
    bail!("no {name} below {}", directory.display())
}

/// Waits until the agent has said `words` and attached something `times` times again, and is healthy.
fn await_mended(site: &Site, words: &str, times: f64) -> Result<()> {
    site.await_log(&["WARN", "attached again", words])?;
    site.await_metric("lb_hooks_reattached_total", &[], Some(times))?;
    site.await_metric("lb_datapath_probe", &[], Some(1.0))?;
    site.is_alive()
}

#[test]
fn a_hook_that_somebody_detaches_is_named_counted_and_attached_again() -> Result<()> {
    let site = site("")?;
    let index = site.lab().node(0).namespace().index_of("eth0")?;
    let ingress = format!("{index}-ingress");
    let mut times = 0.0;
    for (pin, words) in [
        ("connect4", "the socket hook connect4"),
        (ingress.as_str(), "the packet path at ingress of eth0"),
    ] {
        let bpffs = site.agent()?.bpffs().to_owned();
        fs::remove_file(find(&bpffs, pin)?)?;
        times += 1.0;
        await_mended(&site, words, times)?;
        find(&bpffs, pin)?;
        ensure!(site.ask(socket(1))? == "a");
    }
    Ok(())
}

#[test]
fn a_filter_that_somebody_removes_is_named_counted_and_attached_again() -> Result<()> {
    let site = site("--tc-attach clsact")?;
    let node = site.lab().node(0).namespace();
    node.tc("filter del dev eth0 egress")?;
    await_mended(
        &site,
        "the packet path at egress of eth0 has lost its filter",
        1.0,
    )
}

#[test]
fn health_ends_when_the_synthetic_packet_is_answered_wrongly() -> Result<()> {
    const KEY: usize = size_of::<FrontendKey>();
    const VALUE: usize = size_of::<Frontend>();
    let mut site = site("")?;
    let bpffs = site.agent()?.bpffs().to_owned();
    let pinned = MapData::from_pin(find(&bpffs, "lb_frontends")?)?;
    let mut frontends: HashMap<_, [u8; KEY], [u8; VALUE]> =
        HashMap::try_from(Map::HashMap(pinned))?;
    let keys: Vec<_> = frontends.keys().flatten().collect();
    ensure!(!keys.is_empty(), "no frontends");
    for key in keys {
        frontends.remove(&key)?;
    }
    await_unhealthy(&site, "do not treat a synthetic packet rightly")?;
    site.stop()?;
    site.start("")
}

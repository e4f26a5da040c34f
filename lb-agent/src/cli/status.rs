//! `lb-agent status`: what is loaded and attached, how full the tables are, who holds the lock.

use crate::cli::columns::Columns;
use crate::cli::presence::Presence;
use crate::datapath::{LinkView, StatusView};
use lb_common::verdict::Reason;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

/// The whole output, ending with a line break.
pub fn render(
    directory: &Path,
    status: &StatusView,
    agent: Option<&Presence>,
    devices: &BTreeMap<u32, String>,
) -> String {
    let mut page = format!(
        "Directory  {} (table layout v{})\nAgent      {}\n\n",
        directory.display(),
        status.layout,
        agent_line(status, agent)
    );
    if let Some(agent) = agent.filter(|_| status.agent_running) {
        page.push_str(&troubles(agent));
    }
    page.push_str(&links(&status.links, devices));
    page.push('\n');
    let mut tables = Columns::new(vec!["TABLE", "USED", "CAPACITY", "FILL"]);
    for fill in &status.fill {
        tables.row(vec![
            fill.table.to_owned(),
            fill.used.to_string(),
            fill.capacity.to_string(),
            format!(
                "{} %",
                (fill.used * 100).checked_div(fill.capacity).unwrap_or(0)
            ),
        ]);
    }
    page.push_str(&tables.to_string());
    let counted: Vec<&(Reason, u64)> = status
        .reasons
        .iter()
        .filter(|(reason, count)| *count != 0 && *reason != Reason::NotOurs)
        .collect();
    if !counted.is_empty() {
        let mut reasons = Columns::new(vec!["REASON", "COUNT"]);
        for (reason, count) in counted {
            reasons.row(vec![reason.name().to_owned(), count.to_string()]);
        }
        // Writing to a String cannot fail.
        let _ = write!(page, "\n{reasons}");
    }
    page
}

fn agent_line(status: &StatusView, agent: Option<&Presence>) -> String {
    if !status.agent_running {
        return "not running; what is loaded goes on without it".to_owned();
    }
    let Some(agent) = agent else {
        return "running (it holds the lock; it left no note under /run/lb-agent)".to_owned();
    };
    let mut line = format!(
        "running: pid {} for node {} since {}, version {}\n           last sync {}",
        agent.pid,
        agent.node,
        agent.started,
        agent.version,
        agent.last_sync.as_deref().unwrap_or("not yet")
    );
    if let Some(error) = &agent.last_error {
        // Writing to a String cannot fail.
        let _ = write!(line, ", failing: {error}");
    }
    for (what, address) in [("metrics", &agent.metrics), ("health", &agent.health)] {
        if !address.is_empty() {
            let _ = write!(line, "\n           {what} on {address}");
        }
    }
    line
}

/// What the agent does not take or serve, a line each; nothing if all is well.
fn troubles(agent: &Presence) -> String {
    if agent.troubles.is_empty() {
        return String::new();
    }
    let mut text = "Troubles\n".to_owned();
    for trouble in &agent.troubles {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {trouble}");
    }
    if agent.more_troubles > 0 {
        let more = agent.more_troubles;
        let _ = writeln!(text, "  and {more} more, which the log names");
    }
    text.push('\n');
    text
}

/// Links by where they are: the cgroup first, then each device.
fn links(links: &[LinkView], devices: &BTreeMap<u32, String>) -> String {
    if links.is_empty() {
        return "Nothing is attached by links.\n".to_owned();
    }
    let mut columns = Columns::new(vec!["ATTACHED TO", "HOOK", "LINK", "PROGRAM"]);
    let mut rows: Vec<(String, String, &LinkView)> = links
        .iter()
        .map(|link| {
            let (target, hook) = place(&link.path, devices);
            (target, hook, link)
        })
        .collect();
    rows.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
    for (target, hook, link) in rows {
        columns.row(vec![
            target,
            hook,
            link.link_id.to_string(),
            link.program_id.to_string(),
        ]);
    }
    columns.to_string()
}

/// What a link is attached to and where, as its pin says: `…/cgroup/<hook>`,
/// `…/tcx/<ifindex>-<direction>`.
fn place(pin: &Path, devices: &BTreeMap<u32, String>) -> (String, String) {
    let part = |path: Option<&std::ffi::OsStr>| {
        path.map_or_else(String::new, |part| part.to_string_lossy().into_owned())
    };
    let kind = part(pin.parent().and_then(Path::file_name));
    let name = part(pin.file_name());
    if let Some((index, direction)) = name.split_once('-')
        && let Ok(index) = index.parse::<u32>()
    {
        let device = devices.get(&index).map_or_else(
            || format!("device {index} (gone)"),
            |name| format!("device {name}"),
        );
        return (device, format!("{kind} {direction}"));
    }
    (kind, name)
}

/// Names of this network namespace's devices by index.
pub fn devices() -> BTreeMap<u32, String> {
    nix::net::if_::if_nameindex().map_or_else(
        |_| BTreeMap::new(),
        |list| {
            list.iter()
                .map(|device| (device.index(), device.name().to_string_lossy().into_owned()))
                .collect()
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::Fill;

    fn link(path: &str, link_id: u32, program_id: u32) -> LinkView {
        LinkView {
            path: path.into(),
            link_id,
            program_id,
        }
    }

    fn view(agent_running: bool) -> StatusView {
        StatusView {
            layout: 1,
            agent_running,
            links: vec![
                link("/b/v1/links/tcx/2-ingress", 12, 31),
                link("/b/v1/links/tcx/9-egress", 14, 32),
                link("/b/v1/links/cgroup/connect4", 10, 30),
            ],
            fill: vec![Fill {
                table: "lb_flows",
                used: 50,
                capacity: 200,
            }],
            reasons: vec![
                (Reason::NotOurs, 9),
                (Reason::Opened, 3),
                (Reason::Unparsable, 0),
            ],
        }
    }

    #[test]
    fn links_are_shown_by_device_with_fill_and_reasons() {
        let devices = BTreeMap::from([(2, "eth0".to_owned())]);
        assert_eq!(
            render(Path::new("/b"), &view(false), None, &devices),
            "\
Directory  /b (table layout v1)
Agent      not running; what is loaded goes on without it

ATTACHED TO      HOOK         LINK  PROGRAM
cgroup           connect4     10    30
device 9 (gone)  tcx egress   14    32
device eth0      tcx ingress  12    31

TABLE     USED  CAPACITY  FILL
lb_flows  50    200       25 %

REASON  COUNT
opened  3
"
        );
    }

    #[test]
    fn a_running_agent_says_when_it_synced_last() {
        let agent = Presence {
            pid: 7,
            node: "a".to_owned(),
            version: "0.1.0".to_owned(),
            started: "2026-01-01T00:00:00Z".to_owned(),
            metrics: "127.0.0.1:10249".to_owned(),
            last_sync: Some("2026-01-01T00:00:01Z".to_owned()),
            ..Presence::default()
        };
        let page = render(Path::new("/b"), &view(true), Some(&agent), &BTreeMap::new());
        assert!(
            page.contains("running: pid 7 for node a since 2026-01-01T00:00:00Z"),
            "{page}"
        );
        assert!(page.contains("last sync 2026-01-01T00:00:01Z\n"), "{page}");
        assert!(page.contains("metrics on 127.0.0.1:10249"), "{page}");
        assert!(!page.contains("Troubles"), "{page}");
        // A note that a dead agent left says nothing.
        let stale = render(
            Path::new("/b"),
            &view(false),
            Some(&agent),
            &BTreeMap::new(),
        );
        assert!(stale.contains("not running"), "{stale}");
    }

    #[test]
    fn what_the_agent_does_not_take_is_listed() {
        let agent = Presence {
            troubles: vec!["/m/web.yaml: line 3: bad indentation".to_owned()],
            more_troubles: 4,
            ..Presence::default()
        };
        let page = |running| {
            render(
                Path::new("/b"),
                &view(running),
                Some(&agent),
                &BTreeMap::new(),
            )
        };
        assert!(
            page(true).contains(
                "Troubles\n  /m/web.yaml: line 3: bad indentation\n  and 4 more, which the log names\n"
            ),
            "{}",
            page(true)
        );
        assert!(
            !page(false).contains("Troubles"),
            "a dead agent's note says nothing"
        );
    }
}

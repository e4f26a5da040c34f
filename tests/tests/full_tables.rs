//! Full tables: what does not fit is refused by name and counted, and hurts nothing that does.

use anyhow::{Context, Result, ensure};
use lb_lab::{PodNetwork, client};
use lb_tests::site::{Site, at, service, slice, socket};
use lb_tests::stage::{ServiceSpec, Stage};
use std::fmt::Write;
use std::net::TcpStream;
use std::time::Duration;

/// A Service with so many ports and external addresses: each pair of them is a frontend.
fn huge(name: &str, number: u8, pod: &str) -> String {
    const PORTS: u16 = 1000;
    let addresses: Vec<String> = (1..=100)
        .map(|host| format!("198.18.{number}.{host}"))
        .collect();
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: lab}}\nspec:\n{}  \
         externalIPs: [{}]\n  ports:\n",
        at(number),
        addresses.join(", ")
    );
    for port in 1..=PORTS {
        let _ = writeln!(text, "  - {{name: p{port}, port: {port}}}");
    }
    text += "---\n";
    text += &slice(name, &[pod]);
    // The slice names one port; those of the others have no endpoints, which is enough for a frontend.
    text.replace("name: tcp", "name: p1")
}

#[test]
fn more_frontends_than_the_table_holds_are_refused_by_name_and_hurt_nothing_that_fits() -> Result<()>
{
    let mut site = Site::new(&["a", "b"])?;
    let a = site.pod("a").v4().to_string();
    for number in 1..=3 {
        let name = format!("huge-{number}");
        site.write(&format!("{name}.yaml"), huge(&name, number, &a))?;
    }
    site.write("web.yaml", site.web("web", 10, &["a"]))?;
    site.start("")?;
    // 3 x 1,000 ports x 101 addresses, and the table has 262,144 places.
    site.await_log(&["WARN", "lab/huge-", "frontend", "no room for"])?;
    let refused = site
        .metric("lb_refused_objects", &["reason=\"frontend_table_full\""])?
        .context("nothing is counted as refused")?;
    ensure!(refused >= 300.0, "{refused} of some 400 service ports");
    // What was there before goes on, what fits comes and goes.
    ensure!(site.ask(socket(10))? == "a", "the small service");
    site.write("web.yaml", site.web("web", 10, &["b"]))?;
    site.await_answer(socket(10), "b")?;
    // With room again everything is served, without being asked.
    std::fs::remove_file(site.directory().join("huge-1.yaml"))?;
    site.await_metric(
        "lb_refused_objects",
        &["reason=\"frontend_table_full\""],
        None,
    )?;
    site.write(
        "more.yaml",
        service("more", &at(11)) + "---\n" + &slice("more", &[&a]),
    )?;
    site.await_answer(socket(11), "a")
}

#[test]
fn a_flow_table_full_of_live_connections_breaks_none_of_them_and_refuses_newcomers_by_name()
-> Result<()> {
    let mut stage = Stage::new(PodNetwork::Routed)?;
    stage.apply(&ServiceSpec::new("web", 10, &["a"]).node_port(30080))?;
    stage.start_agents("--socket-load-balancing off --max-flows 64")?;
    let server = stage.node_port(0, 30080)[0];
    let open = || -> Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&server, Duration::from_millis(400))?;
        client::ask(&stream)?;
        Ok(stream)
    };
    stage.client.place().enter(|| -> Result<()> {
        let mut held = Vec::new();
        let refusal = loop {
            match open() {
                Ok(stream) => held.push(stream),
                Err(error) => break error,
            }
            ensure!(held.len() < 4096, "the table never fills");
        };
        ensure!(
            held.len() >= 64,
            "only {} connections fit: {refusal:#}",
            held.len()
        );
        for (number, stream) in held.iter().enumerate() {
            client::ask(stream)
                .with_context(|| format!("connection {number} of {}", held.len()))?;
        }
        // Room again for those who come now: closed flows give theirs up at once.
        held.truncate(8);
        for number in 0..64 {
            client::tcp(server).with_context(|| format!("newcomer {number}"))?;
        }
        for stream in &held {
            client::ask(stream).context("after the newcomers")?;
        }
        Ok(())
    })??;
    ensure!(
        stage.counted(0, "flow_table_full")? > 0,
        "the reason is not counted"
    );
    Ok(())
}

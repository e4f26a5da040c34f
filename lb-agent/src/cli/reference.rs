//! `docs/cli.md`, made from the command line's own definition.

use crate::cli::args::Cli;
use clap::{Command, CommandFactory};
use std::fmt::Write;

/// The page.
pub fn markdown() -> String {
    let mut page = String::from(
        "<!-- Generated from lb-agent/src/cli/args.rs; `UPDATE_DOCS=1 cargo test -p lb-agent` writes it anew. -->\n\
         # Command line\n",
    );
    let mut command = Cli::command().term_width(100);
    command.build();
    section(&mut page, &mut command.clone());
    for subcommand in command.get_subcommands_mut().filter(|c| !c.is_hide_set()) {
        if subcommand.get_name() == "kube-proxy" {
            let about = subcommand.get_about().map(ToString::to_string);
            let about = about.unwrap_or_default();
            let _ = write!(
                page,
                "\n## lb-agent kube-proxy\n\n{about}. Options: as `run`.\n"
            );
            continue;
        }
        section(&mut page, subcommand);
    }
    page.push_str(
        "\n`run` and `kube-proxy` understand kube-proxy's flags, too; these and the configuration file are\n\
         described in [configuration.md](configuration.md).\n",
    );
    page
}

fn section(page: &mut String, command: &mut Command) {
    let name = command.get_bin_name().unwrap_or("lb-agent").to_owned();
    let help = command.render_long_help().to_string();
    let help: Vec<&str> = help.lines().map(str::trim_end).collect();
    let _ = write!(
        page,
        "\n## {name}\n\n```text\n{}\n```\n",
        help.join("\n").trim_end()
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::refusal::Reason as Refusal;
    use crate::source::Problem;
    use lb_common::verdict::Reason;
    use std::fs;
    use std::path::Path;

    /// Compares a generated page with the one in the repository, or writes it.
    fn check(name: &str, page: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../docs")
            .join(name);
        if std::env::var_os("UPDATE_DOCS").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, page).unwrap();
        }
        let found = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == page,
            "docs/{name} is not what the code says: run UPDATE_DOCS=1 cargo test -p lb-agent"
        );
    }

    #[test]
    fn the_reference_of_the_command_line_is_up_to_date() {
        check("cli.md", &markdown());
    }

    #[test]
    fn the_reference_of_the_metrics_is_up_to_date() {
        check("metrics.md", &crate::serve::reference::markdown());
    }

    #[test]
    fn the_reference_of_the_configuration_is_up_to_date() {
        check(
            "configuration.md",
            &crate::config::kube_proxy::reference::markdown(),
        );
    }

    #[test]
    fn operations_say_what_to_do_about_every_reason() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md");
        let page = fs::read_to_string(path).unwrap();
        let another = crate::model::desired::ObjectName {
            namespace: "".into(),
            name: "".into(),
        };
        let refusals = [
            Refusal::Unparsable,
            Refusal::OtherFamily,
            Refusal::PortOutOfRange,
            Refusal::UnknownProtocol,
            Refusal::Loopback,
            Refusal::LinkLocal,
            Refusal::Multicast,
            Refusal::Unspecified,
            Refusal::ClusterIpOfAnother(another.clone()),
            Refusal::ServiceAddress(another.clone()),
            Refusal::OnThisNode,
            Refusal::OutsideAllowedRanges,
            Refusal::HeldByAnother(another),
        ];
        let problems = [
            Problem::Refused,
            Problem::Unparsable,
            Problem::Unreadable,
            Problem::Duplicate,
            Problem::Ignored,
            Problem::Forbidden,
            Problem::Unreachable,
            Problem::Failed,
        ];
        let names = Reason::ALL
            .iter()
            .map(|reason| reason.name())
            .chain(refusals.iter().map(Refusal::name))
            .chain(problems.iter().map(|problem| problem.name()));
        for name in names {
            assert!(
                page.contains(&format!("\n| `{name}` |")),
                "no row for {name}"
            );
        }
    }
}

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
        section(&mut page, subcommand);
    }
    page.push_str(
        "\n## The configuration file\n\n\
         `--config FILE` names a YAML file with the options of `run` as keys. What is typed wins over the file;\n\
         `NODE_NAME` and `LB_APISERVER` count as typed. A list is written as in the shell or as a YAML sequence.\n\
         An unknown key, a value that cannot be read or a combination that makes no sense ends the start with a\n\
         sentence, before anything is touched.\n\n| key | option |\n|---|---|\n",
    );
    for (key, option) in keys(&command) {
        // Writing to a String cannot fail.
        let _ = writeln!(page, "| `{key}` | `--{option}` |");
    }
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

/// The file's keys with the options they stand for, in the order of the help.
fn keys(command: &Command) -> Vec<(String, String)> {
    let Some(run) = command.find_subcommand("run") else {
        return Vec::new();
    };
    run.get_arguments()
        .filter(|argument| argument.get_id() != "config" && argument.get_id() != "help")
        .filter_map(|argument| {
            let option = argument.get_long()?.to_owned();
            Some((camel_case(argument.get_id().as_str()), option))
        })
        .collect()
}

/// As serde's `rename_all = "camelCase"` makes it from a field's name.
fn camel_case(field: &str) -> String {
    let mut words = field.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |mut name, word| {
        let mut letters = word.chars();
        name.extend(letters.next().map(|letter| letter.to_ascii_uppercase()));
        name.push_str(letters.as_str());
        name
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::refusal::{Feature, Reason as Refusal};
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
    fn keys_are_the_options_in_camel_case() {
        let keys = keys(&Cli::command());
        for wanted in [
            ("node", "node"),
            ("socketLoadBalancing", "socket-load-balancing"),
            ("serviceClusterIpRange", "service-cluster-ip-range"),
        ] {
            let wanted = (wanted.0.to_owned(), wanted.1.to_owned());
            assert!(keys.contains(&wanted), "{wanted:?} not in {keys:?}");
        }
    }

    #[test]
    fn operations_say_what_to_do_about_every_reason() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md");
        let page = fs::read_to_string(path).unwrap();
        let another = crate::model::desired::ObjectName {
            namespace: String::new(),
            name: String::new(),
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
        let features = [Feature::Sctp];
        let names = Reason::ALL
            .iter()
            .map(|reason| reason.name())
            .chain(refusals.iter().map(Refusal::name))
            .chain(problems.iter().map(|problem| problem.name()))
            .chain(features.iter().map(|feature| feature.name()));
        for name in names {
            assert!(
                page.contains(&format!("\n| `{name}` |")),
                "no row for {name}"
            );
        }
    }
}

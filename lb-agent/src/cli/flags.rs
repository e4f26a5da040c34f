//! The flags that an agent runs with, for the page that shows them.

use crate::cli::args::Cli;
use clap::CommandFactory;
use std::collections::BTreeMap;
use std::ffi::OsString;

/// The flags of the command among `arguments`, typed or by default, with their values.
pub(super) fn flags(arguments: Vec<OsString>) -> BTreeMap<String, String> {
    let command = Cli::command();
    let Ok(matches) = command.clone().try_get_matches_from(arguments) else {
        return BTreeMap::new();
    };
    let Some((name, matches)) = matches.subcommand() else {
        return BTreeMap::new();
    };
    let arguments = command.find_subcommand(name).into_iter();
    let arguments = arguments.flat_map(clap::Command::get_arguments);
    let flag = |argument: &clap::Arg| {
        let values = matches.try_get_raw(argument.get_id().as_str()).ok()??;
        let values: Vec<_> = values.map(|value| value.to_string_lossy()).collect();
        Some((argument.get_long()?.to_owned(), values.join(",")))
    };
    arguments.filter_map(flag).collect()
}

#[cfg(test)]
mod tests {
    use super::flags;

    #[test]
    fn flags_are_shown_with_what_was_typed_and_their_defaults() {
        let typed = "lb-agent run --node a --manifests /m --devices eth0,eth1";
        let flags = flags(typed.split(' ').map(Into::into).collect());
        assert_eq!(flags["node"], "a");
        assert_eq!(flags["devices"], "eth0,eth1");
        assert!(!flags.contains_key("kubeconfig"), "{flags:?}");
        assert!(!flags.contains_key("help"), "{flags:?}");
    }
}

//! kube-proxy's flags on our command line: hidden in the help, listed on the reference page.

use super::document::{Document, value_of};
use super::field::{self, Field, Shape};
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use std::collections::BTreeMap;

/// Flags that `run` has under the same name, and kube-proxy's own name for what ours means too.
pub const SHARED: [&str; 6] = [
    "kubeconfig",
    "cluster-cidr",
    "nodeport-addresses",
    "masquerade-all",
    "metrics-bind-address",
    "healthz-bind-address",
];

/// What was typed of kube-proxy's flags that `run` does not have itself.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Flags(BTreeMap<&'static str, Vec<String>>);

/// kube-proxy's flags that are arguments of their own here.
fn own() -> impl Iterator<Item = (&'static str, &'static Field)> {
    field::flags().filter(|(flag, _)| !SHARED.contains(flag))
}

impl Flags {
    /// True if none was typed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The names that were typed.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.0.keys().copied()
    }

    /// True if a flag of this field was typed.
    pub fn has(&self, field: &Field) -> bool {
        field.flags.iter().any(|flag| self.0.contains_key(flag))
    }

    /// The last word of a flag.
    pub fn word(&self, field: &Field) -> Option<&str> {
        let words = field.flags.iter().find_map(|flag| self.0.get(flag))?;
        words.last().map(String::as_str)
    }

    /// True if a switch was typed and is on.
    pub fn is_on(&self, field: &Field) -> bool {
        let words = self.word(field).map(|word| [word.to_owned()]);
        words.is_some_and(|words| value_of(field, &words) == Ok(true.into()))
    }

    /// The flags as the document they stand for, and what is wrong with them. Flags without a field
    /// are checked only.
    pub fn document(&self) -> (Document, Vec<String>) {
        let (mut document, mut problems) = (Document::default(), Vec::new());
        for (flag, field) in own() {
            let Some(words) = self.0.get(flag) else {
                continue;
            };
            match value_of(field, words) {
                Ok(value) if !field.path.is_empty() => document.set(field, value),
                Ok(_) => {}
                Err(problem) => problems.push(problem),
            }
        }
        (document, problems)
    }

    /// Keeps only what kube-proxy still reads from its command line when a file is named.
    #[must_use]
    pub fn kept_beside_a_file(&self) -> (Self, Vec<&'static str>) {
        const KEPT: [&str; 6] = [
            "hostname-override",
            "cleanup",
            "init-only",
            "write-config-to",
            "master",
            "logging-format",
        ];
        let is_kept = |name: &str| {
            KEPT.contains(&name) || name == "v" || name == "vmodule" || name.starts_with("log-")
        };
        let (kept, ignored): (BTreeMap<_, _>, BTreeMap<_, _>) = self
            .0
            .clone()
            .into_iter()
            .partition(|(name, _)| is_kept(name));
        (Self(kept), ignored.into_keys().collect())
    }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let typed = own().filter_map(|(flag, _)| {
            let words = matches.get_many::<String>(flag)?;
            Some((flag, words.cloned().collect()))
        });
        Ok(Self(typed.collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.extend(Self::from_arg_matches(matches)?.0);
        Ok(())
    }
}

impl Args for Flags {
    fn augment_args(command: Command) -> Command {
        command.args(own().map(|(flag, field)| {
            let arg = Arg::new(flag)
                .long(flag)
                .hide(true)
                .action(ArgAction::Append)
                .allow_hyphen_values(matches!(field.shape, Shape::Int))
                .num_args(1);
            match (flag, field.shape) {
                ("v", _) => arg.short('v'),
                (_, Shape::Bool) => arg
                    .num_args(0..=1)
                    .default_missing_value("true")
                    .require_equals(true),
                _ => arg,
            }
        }))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

//! Values of which there are a few, each with a name.

use crate::datapath;
use clap::ValueEnum;
use lb_common::table::SocketMode;
use serde::{Deserialize, Deserializer, de};

/// Which sockets are balanced at `connect` and `sendmsg`; the packet path serves the others.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum SocketLoadBalancing {
    /// Every socket below the attached cgroup.
    #[default]
    All,
    /// Only sockets of the host's network namespace.
    #[value(alias = "hostOnly", alias = "host_only")]
    HostOnly,
    /// None: every connection is balanced packet by packet.
    #[value(alias = "none")]
    Off,
}

impl From<SocketLoadBalancing> for SocketMode {
    fn from(which: SocketLoadBalancing) -> Self {
        match which {
            SocketLoadBalancing::All => Self::All,
            SocketLoadBalancing::HostOnly => Self::HostOnly,
            SocketLoadBalancing::Off => Self::Off,
        }
    }
}

/// How the packet programs are attached to devices.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum TcAttach {
    /// TCX where the kernel has it (6.6), else clsact.
    #[default]
    Auto,
    /// TCX links only.
    Tcx,
    /// Filters on a clsact qdisc only.
    Clsact,
}

impl From<TcAttach> for datapath::TcAttach {
    fn from(attach: TcAttach) -> Self {
        match attach {
            TcAttach::Auto => Self::Auto,
            TcAttach::Tcx => Self::Tcx,
            TcAttach::Clsact => Self::Clsact,
        }
    }
}

/// Where endpoints are read from in a cluster.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum EndpointsApi {
    /// `discovery.k8s.io/v1` EndpointSlices.
    #[default]
    #[value(alias = "endpointslices", alias = "endpointSlices")]
    Slices,
    /// `v1` Endpoints, for clusters without slices.
    Endpoints,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum LogFormat {
    /// One line a message, for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// How `services` prints.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum Output {
    /// One line a frontend, one line an endpoint.
    #[default]
    Table,
    /// As `table`, with ids, packets and bytes.
    Wide,
    /// One JSON document.
    Json,
}

/// How `check` prints.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum Format {
    /// A line for what was found, and one for what to do about it.
    #[default]
    Table,
    /// One JSON document.
    Json,
}

/// Reads a [`ValueEnum`] from the configuration file, by the names the command line knows.
pub(crate) fn choice<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: ValueEnum,
{
    let text = String::deserialize(deserializer)?;
    T::from_str(&text, true).map(Some).map_err(|_| {
        let known: Vec<String> = T::value_variants()
            .iter()
            .filter_map(ValueEnum::to_possible_value)
            .map(|value| value.get_name().to_owned())
            .collect();
        de::Error::custom(format!("`{text}` is not one of {}", known.join(", ")))
    })
}

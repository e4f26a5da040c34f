//! What the agent tells machines: `/metrics`, `/healthz`, `/livez` and kube-proxy's pages. Reads tables and snapshots;
//! changes nothing.

pub mod catalog;
mod collector;
pub mod health;
mod http;
pub mod node_port;
mod page;
mod process;
pub mod reference;
mod slis;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod work;
mod zpages;

pub(crate) use collector::protocol_name;
pub use collector::{Answers, NodeMetrics, PinnedTables, Reading, TableView};
pub use http::{BindError, Served, serve_health, serve_metrics};
pub use node_port::serve_node_ports;

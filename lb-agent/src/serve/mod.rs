//! What the agent tells machines: `/metrics`, `/healthz`, `/livez`. Reads tables and snapshots;
//! changes nothing.

pub mod catalog;
mod collector;
pub mod health;
mod http;
pub mod node_port;
mod page;
mod process;
pub mod reference;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod work;

pub(crate) use collector::protocol_name;
pub use collector::{Answers, NodeMetrics, PinnedTables, Reading, TableView};
pub use http::{BindError, Served, serve_health, serve_metrics};
pub use node_port::serve_node_ports;

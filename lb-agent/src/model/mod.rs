//! The model: *given these Services, EndpointSlices and this Node, what should be served?*
//!
//! Pure functions over plain data. Here may live no I/O, no clock and nothing that knows a table.
//! `SERVICE-SEMANTICS` is the specification; section numbers in comments are its sections.
//!
//! [`State`] takes [`Change`](crate::source::Change)s, converts each object at once into a compact
//! form and drops the original; [`State::desired`] answers for one service port, in time that
//! depends on that service alone.

mod address;
mod claim;
pub mod desired;
pub mod endpoint;
pub mod frontend;
mod holders;
mod index;
pub mod node;
mod opt_out;
pub mod options;
pub mod refusal;
pub mod report;
mod selection;
pub mod service;
mod state;
pub mod trigger;
mod view;

#[cfg(test)]
mod tests;

pub use opt_out::PodUid;
pub use options::{NodePortAddresses, Options, PodDetection, PodLabel};
pub use state::{Dirty, State};

//! The model: *given these Services, EndpointSlices and this Node, what should be served?*
//!
//! Pure functions over plain data. Here may live no I/O, no clock and nothing that knows a table.

pub mod desired;

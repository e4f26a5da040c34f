//! What the kernel tests and labs of this package share.

pub mod endtoend;
pub mod foreign;
pub mod stage;

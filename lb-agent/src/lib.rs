//! The agent: keeps Kubernetes objects and the eBPF tables in step, and answers to people.
//!
//! One way only: [`source`] → [`model`] → `plan` → `datapath`; `serve` and `cli` read. Dependencies
//! point the same way: nothing downstream is known upstream. [`durations`] lies below them all.

pub mod app;
pub mod check;
pub mod cli;
pub mod config;
pub mod datapath;
pub mod durations;
pub mod model;
pub mod net;
pub mod plan;
pub mod serve;
pub mod source;

//! A directory of manifests as the source: it does what the API server and its controllers would.
//!
//! [`store`] is the pure core; [`run`], [`disk`] and [`state`] are the thin edge to the disk.

pub mod allocate;
pub mod claims;
pub mod defaults;
pub mod derive;
pub mod disk;
mod draft;
mod file;
pub mod holdings;
pub mod object;
pub mod parse;
pub mod run;
pub mod select;
mod services;
mod shape;
pub mod state;
pub mod store;
pub mod validate;
mod yaml;

pub use holdings::Ranges;
pub use run::DirectorySource;

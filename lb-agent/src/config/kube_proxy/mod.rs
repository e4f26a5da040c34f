//! kube-proxy's own configuration: `KubeProxyConfiguration` v1alpha1 and its flags, taken as they
//! are. What is honoured, ignored or refused is said in [`field`] and [`translate`].

pub mod document;
mod duration;
pub mod field;
pub mod flags;
pub mod meaning;
pub mod reference;
mod scheduler;
pub mod translate;

#[cfg(test)]
mod tests;

pub use document::{Decoded, Document};
pub use flags::Flags;
pub use meaning::{DetectLocal, KubeProxy, Mode, Remark, Translated};
pub use translate::translate;

//! Namespaces as nodes, pods and clients.

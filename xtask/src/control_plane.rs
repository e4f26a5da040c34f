//! The control plane of the tests (`tests/control-plane`).

use crate::go_module::Module;
use lb_lab::control_plane::PROGRAMS;
pub(crate) use lb_lab::control_plane::VARIABLE;

/// etcd, the API server, kubectl and the controllers in one program.
pub(crate) const MODULE: Module = Module {
    name: "control-plane",
    programs: &PROGRAMS,
    title: "etcd, kube-apiserver, kubectl and controllers (Go, a few minutes, once)",
};

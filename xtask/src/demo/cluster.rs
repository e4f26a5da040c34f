//! The demo's own control plane, and what a kubelet would tell it: the status of the pods.

use super::Frontend;
use super::machine::Machine;
use crate::step::say;
use crate::workspace;
use anyhow::Result;
use lb_lab::ControlPlane;
use lb_lab::control_plane::{Programs, Settings};
use std::path::{Path, PathBuf};

/// The control plane with the demo's objects on it.
pub(crate) struct Cluster {
    plane: ControlPlane,
    kubectl: PathBuf,
}

impl Cluster {
    /// Starts it and brings the manifests of these directories.
    pub(crate) fn start(
        machine: &Machine,
        node: &str,
        programs: Programs,
        manifests: &[&Path],
    ) -> Result<Self> {
        say("starting etcd, the API server and the controllers");
        let (apart, address) = machine.control_place()?;
        let kubectl = programs.path("kubectl")?;
        let settings = Settings {
            address,
            service_ranges: Frontend::RANGES.to_owned(),
            flags: Vec::new(),
        };
        let dir = machine.dir().join("control-plane");
        let plane = ControlPlane::start(apart, &dir, programs, settings)?;
        plane.grant(&workspace::root().join("deploy/kustomize/base"))?;
        plane.apply(&format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {node}}}\n"
        ))?;
        // Pods are accepted once their service account is there, which takes a moment.
        for dir in manifests {
            let dir = dir.display().to_string();
            let words = ["apply", "--server-side", "--filename", &dir];
            plane.retry(&words)?;
            plane.retry(&[words.as_slice(), &["--subresource", "status"]].concat())?;
        }
        plane.ask(&["label", "--overwrite", "pod", "web-3", "app=spare"])?;
        Ok(Self { plane, kubectl })
    }

    /// The kubeconfig of the agent.
    pub(crate) fn kubeconfig(&self) -> Result<PathBuf> {
        let token = self.plane.token("lb-agent")?;
        self.plane.kubeconfig("lb-agent", &self.plane.url(), &token)
    }

    /// What to try on it.
    pub(crate) fn print(&self) {
        let kubeconfig = self.plane.admin();
        println!(
            "\nThe API server is {}, its kubeconfig {}; what you change there is served at once:\n",
            self.plane.url(),
            kubeconfig.display()
        );
        let port = Frontend::NODE_PORT + 1;
        let patch = format!(
            "patch service web --patch '{{\"spec\":{{\"ports\":[{{\"port\":{},\"nodePort\":{port}}}]}}}}'",
            Frontend::PORT
        );
        for words in [
            "get services,endpointslices,pods",
            "label --overwrite pod web-3 app=web",
            "label --overwrite pod web-2 app=none",
            "delete pod web-1 --grace-period 0 --force",
            &patch,
        ] {
            let (program, file) = (self.kubectl.display(), kubeconfig.display());
            println!("{program} --kubeconfig {file} {words}");
        }
    }
}

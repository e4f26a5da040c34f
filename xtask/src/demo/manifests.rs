//! The demo's manifests: one service and its pods, as a person would write them.

use super::Frontend;
use anyhow::{Context, Result};
use lb_lab::Pod;
use std::fs;
use std::path::Path;

/// Writes the service and the first two pods to `dir`, the others to `spare`.
pub(crate) fn write(dir: &Path, spare: &Path, node: &str, pods: &[Pod]) -> Result<()> {
    for path in [dir, spare] {
        fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
    }
    put(&dir.join("web.yaml"), &service())?;
    for (number, pod) in pods.iter().enumerate() {
        let place = if number < 2 { dir } else { spare };
        put(
            &place.join(format!("{}.yaml", pod.name())),
            &manifest(node, pod),
        )?;
    }
    Ok(())
}

fn put(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn service() -> String {
    format!(
        "# Try: type: ClusterIP, sessionAffinity: ClientIP, another nodePort.\n\
         apiVersion: v1\n\
         kind: Service\n\
         metadata:\n  name: web\n  namespace: default\n\
         spec:\n\
         \x20 type: NodePort\n\
         \x20 ipFamilyPolicy: RequireDualStack\n\
         \x20 ipFamilies: [IPv4, IPv6]\n\
         \x20 clusterIP: {v4}\n\
         \x20 clusterIPs: [\"{v4}\", \"{v6}\"]\n\
         \x20 selector:\n    app: web\n\
         \x20 ports:\n\
         \x20 - name: http\n    protocol: TCP\n    port: {port}\n    targetPort: http\n    nodePort: {node_port}\n",
        v4 = Frontend::CLUSTER_IP4,
        v6 = Frontend::CLUSTER_IP6,
        port = Frontend::PORT,
        node_port = Frontend::NODE_PORT,
    )
}

fn manifest(node: &str, pod: &Pod) -> String {
    let (name, v4, v6) = (pod.name(), pod.v4(), pod.v6());
    format!(
        "apiVersion: v1\n\
         kind: Pod\n\
         metadata:\n  name: {name}\n  namespace: default\n  labels:\n    app: web\n\
         spec:\n\
         \x20 nodeName: {node}\n\
         \x20 containers:\n\
         \x20 - name: web\n    image: demo\n    ports:\n\
         \x20   - name: http\n      containerPort: {port}\n\
         status:\n\
         \x20 phase: Running\n\
         \x20 podIP: {v4}\n\
         \x20 podIPs:\n  - ip: {v4}\n  - ip: \"{v6}\"\n\
         \x20 conditions:\n\
         \x20 # Set this to \"False\" and the pod gets no more connections.\n\
         \x20 - type: Ready\n    status: \"True\"\n",
        port = Frontend::TARGET_PORT,
    )
}

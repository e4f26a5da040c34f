//! The deployment: its manifests are what Kubernetes understands, and ask for no more than is needed.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Container, PodSpec, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use lb_agent::config::{Settings, parse_file};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn base() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kustomize/base")
}

fn documents(file: &str) -> Result<Vec<Value>> {
    let text = fs::read_to_string(base().join(file)).with_context(|| format!("reading {file}"))?;
    serde_saphyr::from_multiple(&text).with_context(|| format!("parsing {file}"))
}

/// The document as its API type, which must keep every field: one it does not know is a typo.
fn typed<T: DeserializeOwned + Serialize>(document: &Value) -> Result<T> {
    let object: T = serde_json::from_value(document.clone())?;
    let again = serde_json::to_value(&object)?;
    ensure!(
        again == *document,
        "fields got lost:\n{document:#}\nread as\n{again:#}"
    );
    Ok(object)
}

fn daemon_set() -> Result<DaemonSet> {
    typed(&documents("daemonset.yaml")?[0])
}

fn pod(set: DaemonSet) -> Result<PodSpec> {
    set.spec
        .and_then(|spec| spec.template.spec)
        .context("the DaemonSet has no pod")
}

fn container(pod: &PodSpec) -> Result<&Container> {
    pod.containers.first().context("the pod has no container")
}

#[test]
fn every_resource_of_the_base_is_there_and_parses() -> Result<()> {
    let kustomization = &documents("kustomization.yaml")?[0];
    let resources = kustomization["resources"]
        .as_array()
        .context("no resources")?;
    for resource in resources {
        let file = resource.as_str().context("a resource is a file name")?;
        for document in documents(file)? {
            match document["kind"].as_str() {
                Some("DaemonSet") => drop(typed::<DaemonSet>(&document)?),
                Some("ServiceAccount") => drop(typed::<ServiceAccount>(&document)?),
                Some("ClusterRole") => drop(typed::<ClusterRole>(&document)?),
                Some("ClusterRoleBinding") => drop(typed::<ClusterRoleBinding>(&document)?),
                other => anyhow::bail!("{file} holds a {other:?}: does the base need it?"),
            }
        }
    }
    for generator in kustomization["configMapGenerator"]
        .as_array()
        .context("no maps")?
    {
        for key in ["files", "envs"] {
            for file in generator[key].as_array().into_iter().flatten() {
                let file = file.as_str().context("a file name")?;
                ensure!(base().join(file).is_file(), "{file} is missing");
            }
        }
    }
    Ok(())
}

#[test]
fn the_role_reads_and_writes_events_alone() -> Result<()> {
    let mut resources = BTreeSet::new();
    for document in documents("rbac.yaml")? {
        if document["kind"] != "ClusterRole" {
            continue;
        }
        let role: ClusterRole = typed(&document)?;
        for rule in role.rules.context("a role without rules")? {
            if rule.resources.as_deref() == Some(&["events".to_owned()]) {
                ensure!(rule.api_groups == Some(vec!["events.k8s.io".to_owned()]));
                ensure!(rule.verbs == ["create", "patch"], "{:?}", rule.verbs);
                continue;
            }
            ensure!(rule.verbs == ["get", "list", "watch"], "{:?}", rule.verbs);
            resources.extend(rule.resources.context("a rule without resources")?);
        }
    }
    let wanted = [
        "services",
        "endpointslices",
        "endpoints",
        "nodes",
        "servicecidrs",
    ];
    ensure!(
        resources == wanted.map(str::to_owned).into(),
        "{resources:?}"
    );
    Ok(())
}

#[test]
fn the_pod_has_the_fewest_privileges() -> Result<()> {
    let pod = pod(daemon_set()?)?;
    let context = container(&pod)?
        .security_context
        .as_ref()
        .context("no security context")?;
    ensure!(context.privileged == Some(false));
    ensure!(context.allow_privilege_escalation == Some(false));
    ensure!(context.read_only_root_filesystem == Some(true));
    let capabilities = context.capabilities.as_ref().context("no capabilities")?;
    ensure!(capabilities.drop == Some(vec!["ALL".to_owned()]));
    let added: BTreeSet<&str> = capabilities
        .add
        .iter()
        .flatten()
        .map(String::as_str)
        .collect();
    ensure!(added == ["BPF", "PERFMON", "NET_ADMIN", "SYS_RESOURCE"].into());
    ensure!(pod.host_pid.is_none() && pod.host_ipc.is_none());
    ensure!(pod.host_network == Some(true));
    ensure!(pod.priority_class_name.as_deref() == Some("system-node-critical"));
    Ok(())
}

#[test]
fn only_the_bpf_filesystem_and_the_run_directory_of_the_node_can_be_written() -> Result<()> {
    let pod = pod(daemon_set()?)?;
    let container = container(&pod)?;
    let mut writable = BTreeSet::new();
    for volume in pod.volumes.iter().flatten() {
        let Some(host) = &volume.host_path else {
            continue;
        };
        let mount = container
            .volume_mounts
            .iter()
            .flatten()
            .find(|mount| mount.name == volume.name)
            .with_context(|| format!("{} is not mounted", volume.name))?;
        if mount.read_only != Some(true) {
            writable.insert(host.path.as_str());
        }
    }
    ensure!(
        writable == ["/sys/fs/bpf", "/run/lb-agent"].into(),
        "{writable:?}"
    );
    Ok(())
}

#[test]
fn the_agent_understands_its_arguments_and_its_configuration() -> Result<()> {
    let pod = pod(daemon_set()?)?;
    let args = container(&pod)?.args.clone().context("no arguments")?;
    lb_agent::cli::args::parse(&args).map_err(anyhow::Error::msg)?;
    let config = fs::read_to_string(base().join("config.yaml"))?;
    parse_file(&config).map_err(anyhow::Error::msg)?;
    Ok(())
}

/// The DaemonSet with a JSON patch of an overlay applied, as kustomize does.
fn patched(overlay: &str) -> Result<DaemonSet> {
    let mut set = documents("daemonset.yaml")?.remove(0);
    for operation in documents(overlay)?[0].as_array().context("no patch")? {
        let path = operation["path"].as_str().context("no path")?;
        let (parent, name) = path.rsplit_once('/').context("no parent")?;
        let parent = set.pointer_mut(parent).context(path.to_owned())?;
        match operation["op"].as_str() {
            Some("remove") => {
                let removed = parent.as_object_mut().and_then(|map| map.remove(name));
                ensure!(removed.is_some(), "{path} is not there");
            }
            Some("replace") => {
                let place = match parent {
                    Value::Array(items) => items.get_mut(name.parse::<usize>()?),
                    other => other.get_mut(name),
                };
                *place.with_context(|| format!("{path} is not there"))? =
                    operation["value"].clone();
            }
            Some("add") => {
                let value = operation["value"].clone();
                match parent {
                    Value::Array(items) if name == "-" => items.push(value),
                    Value::Object(map) => {
                        let former = map.insert(name.to_owned(), value);
                        ensure!(former.is_none(), "{path} is there already");
                    }
                    _ => anyhow::bail!("{path}: only ends of lists and fields are added here"),
                }
            }
            other => anyhow::bail!("{other:?} is not used here"),
        }
    }
    typed(&set)
}

#[test]
fn kubeadm_s_config_map_is_read_in_place_of_ours() -> Result<()> {
    let before = pod(daemon_set()?)?;
    let pod = pod(patched("../kubeadm/daemonset-patch.yaml")?)?;
    let container = container(&pod)?;
    let args = container.args.clone().context("no arguments")?;
    lb_agent::cli::args::parse(&args).map_err(anyhow::Error::msg)?;
    let config = args.iter().find_map(|arg| arg.strip_prefix("--config="));
    let config = Path::new(config.context("no configuration")?);
    let mounts = container.volume_mounts.iter().flatten();
    let mount = mounts
        .filter(|mount| config.parent() == Some(Path::new(&mount.mount_path)))
        .find(|mount| mount.sub_path.is_none());
    let name = &mount.context("the configuration is not mounted")?.name;
    let volumes = pod.volumes.iter().flatten();
    let map = volumes
        .filter(|volume| volume.name == *name)
        .find_map(|volume| volume.config_map.as_ref());
    ensure!(map.is_some_and(|map| map.name == "kube-proxy"), "{map:?}");
    ensure!(container.env_from.is_none());
    // Everything else is the base's.
    ensure!(pod.volumes.iter().flatten().count() == before.volumes.iter().flatten().count());
    ensure!(container.security_context == before.containers[0].security_context);
    Ok(())
}

#[test]
fn what_looks_for_kube_proxy_by_its_label_finds_the_pods_in_its_place() -> Result<()> {
    let set = patched("../kubeadm/daemonset-patch.yaml")?;
    let overlay = fs::read_to_string(base().join("../kubeadm/kustomization.yaml"))?;
    let overlay: Vec<Value> = serde_saphyr::from_multiple(&overlay)?;
    ensure!(overlay[0]["namespace"] == "kube-system");
    let spec = set.spec.context("no spec")?;
    let labels = spec
        .template
        .metadata
        .and_then(|metadata| metadata.labels)
        .context("no labels")?;
    ensure!(labels.get("k8s-app").map(String::as_str) == Some("kube-proxy"));
    // The DaemonSet itself tells its pods by a label of their own, never by kube-proxy's.
    let selector = spec.selector.match_labels.context("no selector")?;
    ensure!(!selector.contains_key("k8s-app") && !selector.is_empty());
    ensure!(
        selector
            .iter()
            .all(|pair| labels.get(pair.0) == Some(pair.1))
    );
    Ok(())
}

#[test]
fn kernel_settings_are_written_by_a_privileged_container_that_ends() -> Result<()> {
    let pod = pod(patched("../kubeadm/daemonset-patch.yaml")?)?;
    let [settings] = pod.init_containers.as_deref().unwrap_or_default() else {
        anyhow::bail!(
            "one container before the agent, not {:?}",
            pod.init_containers
        );
    };
    // The kubelet puts the node's name in.
    let args = settings.args.iter().flatten();
    let args: Vec<String> = args
        .map(|arg| arg.replace("$(NODE_NAME)", "node0"))
        .collect();
    let parsed = lb_agent::cli::args::parse(&args).map_err(anyhow::Error::msg)?;
    let lb_agent::cli::args::Command::Run(mut run) = parsed.command else {
        anyhow::bail!("the container runs something else: {args:?}");
    };
    // kubeadm leaves the conntrack section to kube-proxy's defaults.
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("config.conf");
    fs::write(
        &file,
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: \"\"\n",
    )?;
    run.config = Some(file);
    let loaded = Settings::load(*run);
    let kube_proxy = loaded
        .map_err(|invalid| anyhow::anyhow!("{:?}", invalid.0))?
        .kube_proxy;
    ensure!(kube_proxy.init_only);
    let close_wait = ("nf_conntrack_tcp_timeout_close_wait", 3600);
    ensure!(kube_proxy.conntrack.timeouts.contains(&close_wait));
    // A container that is restarted for ever is none that ends.
    ensure!(settings.restart_policy.is_none());
    let privileged = |container: &Container| {
        let context = container.security_context.as_ref();
        context.and_then(|context| context.privileged)
    };
    ensure!(privileged(settings) == Some(true));
    ensure!(privileged(container(&pod)?) == Some(false));
    // The same image and configuration as the agent's.
    ensure!(settings.image == container(&pod)?.image);
    let config = |container: &Container| {
        let mut mounts = container.volume_mounts.clone().unwrap_or_default();
        mounts.retain(|mount| mount.name == "config");
        mounts
    };
    ensure!(config(settings) == config(container(&pod)?));
    Ok(())
}

#[test]
fn closing_sockets_in_pods_has_an_overlay_with_its_own_privilege() -> Result<()> {
    let before = pod(daemon_set()?)?;
    let pod = pod(patched("../pod-sockets/daemonset-patch.yaml")?)?;
    let container = container(&pod)?;
    let args = container.args.clone().context("no arguments")?;
    let parsed = lb_agent::cli::args::parse(&args).map_err(anyhow::Error::msg)?;
    let lb_agent::cli::args::Command::Run(run) = parsed.command else {
        anyhow::bail!("the pod runs something else: {args:?}");
    };
    let directory = run.close_pod_sockets.context("the option is not given")?;
    let mut mounts = container.volume_mounts.iter().flatten();
    let mount = mounts.find(|mount| Path::new(&mount.mount_path) == directory);
    let mount = mount.context("the namespaces are not mounted")?;
    ensure!(mount.read_only == Some(true));
    ensure!(mount.mount_propagation.as_deref() == Some("HostToContainer"));
    let added = |container: &Container| -> BTreeSet<String> {
        let context = container.security_context.as_ref();
        let capabilities = context.and_then(|context| context.capabilities.as_ref());
        capabilities
            .iter()
            .flat_map(|all| all.add.iter().flatten())
            .cloned()
            .collect()
    };
    let more = &added(container) - &added(&before.containers[0]);
    ensure!(more == BTreeSet::from(["SYS_ADMIN".to_owned()]), "{more:?}");
    ensure!(pod.host_pid.is_none());
    Ok(())
}

#[test]
fn the_api_server_is_reached_without_services() -> Result<()> {
    let pod = pod(daemon_set()?)?;
    let container = container(&pod)?;
    let map = container
        .env_from
        .iter()
        .flatten()
        .filter_map(|source| source.config_map_ref.as_ref())
        .map(|map| map.name.as_str())
        .next();
    ensure!(map == Some("lb-agent-apiserver"));
    let env = fs::read_to_string(base().join("apiserver.env"))?;
    ensure!(
        env.lines()
            .any(|line| line.starts_with("LB_APISERVER=https://"))
    );
    Ok(())
}

#[test]
fn every_test_that_the_page_on_the_end_to_end_suite_names_exists() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("../docs/upstream-e2e.md"))?;
    let named = page.split('`').filter_map(|word| word.split_once("::"));
    let mut count = 0;
    for (file, test) in named {
        let source = root.join("tests").join(format!("{file}.rs"));
        let source = fs::read_to_string(&source).with_context(|| format!("there is no {file}"))?;
        let found = source.contains(&format!("#[test]\nfn {test}("));
        ensure!(found, "{file} has no test {test}");
        count += 1;
    }
    ensure!(count > 30, "only {count} tests are named");
    Ok(())
}

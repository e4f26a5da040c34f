use super::*;
use crate::source::Problem;
use k8s_openapi::api::discovery::v1::EndpointSlice;

const WEB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  type: NodePort\n  \
                   selector: {app: web}\n  ports: [{port: 80, targetPort: 8080}]\n";
const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: {app: web}}\n\
                   spec: {nodeName: here, containers: []}\n\
                   status: {podIP: 10.0.0.1, conditions: [{type: Ready, status: 'True'}]}\n";

struct Fixture(Store);

impl Fixture {
    fn new() -> Self {
        Self(Store::new("here", Ranges::default(), Written::default()))
    }

    fn edit(&mut self, files: &[(&str, &str)]) -> (Vec<Change>, Vec<Report>) {
        let content = |text: &str| Edit::Content(text.as_bytes().to_vec());
        self.raw(
            files
                .iter()
                .map(|(path, text)| (*path, content(text)))
                .collect(),
        )
    }

    fn raw(&mut self, edits: Vec<(&str, Edit)>) -> (Vec<Change>, Vec<Report>) {
        let edits = edits
            .into_iter()
            .map(|(path, edit)| (PathBuf::from(path), edit))
            .collect();
        let mut step = self.0.update(edits);
        let changes = self.0.changes(&step).collect();
        (changes, std::mem::take(&mut step.reports))
    }
}

/// Changes as words.
fn told(changes: &[Change]) -> Vec<String> {
    let word = |change: &Change| match change {
        Change::Restart(kind) => format!("restart {kind:?}"),
        Change::Complete(kind) => format!("complete {kind:?}"),
        Change::Keep(kind, name) => format!("keep {kind:?} {}", name.name),
        Change::Delete(kind, name) => format!("delete {kind:?} {}", name.name),
        Change::Apply(Object::Service(object)) => {
            format!("apply Service {}", object.metadata.name.as_ref().unwrap())
        }
        Change::Apply(Object::EndpointSlice(object)) => {
            format!(
                "apply EndpointSlice {}",
                object.metadata.name.as_ref().unwrap()
            )
        }
        Change::Apply(Object::Node(object)) => {
            format!("apply Node {}", object.metadata.name.as_ref().unwrap())
        }
        Change::Apply(Object::Pod(_) | Object::Namespace(_)) => {
            panic!("nothing needs them of a directory")
        }
        Change::Apply(Object::ServiceCidr(object)) => {
            format!(
                "apply ServiceCIDR {}",
                object.metadata.name.as_ref().unwrap()
            )
        }
    };
    changes.iter().map(word).collect()
}

fn service(changes: &[Change]) -> &k8s_openapi::api::core::v1::Service {
    let found = changes.iter().find_map(|change| match change {
        Change::Apply(Object::Service(service)) => Some(&**service),
        _ => None,
    });
    found.unwrap()
}

fn slice(changes: &[Change]) -> &EndpointSlice {
    let found = changes.iter().find_map(|change| match change {
        Change::Apply(Object::EndpointSlice(slice)) => Some(&**slice),
        _ => None,
    });
    found.unwrap()
}

fn refused(reports: &[Report]) -> Vec<(Problem, String)> {
    let refused = |report: &Report| match report {
        Report::Refused(refusal) => Some((refusal.problem, refusal.sentence.clone())),
        Report::Resolved { .. } => None,
    };
    reports.iter().filter_map(refused).collect()
}

#[test]
fn the_first_reading_is_one_complete_listing_and_edits_are_single_changes() {
    let mut store = Fixture::new();
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: here}\n---\napiVersion: v1\nkind: Node\n\
                metadata: {name: other}\n";
    let (changes, reports) = store.edit(&[("web.yaml", WEB), ("pod.yaml", POD), ("n.yaml", node)]);
    assert_eq!(
        told(&changes),
        [
            "restart Service",
            "restart EndpointSlice",
            "restart Node",
            "apply Service web",
            "apply EndpointSlice web~selector-ipv4-0",
            "apply Node here",
            "complete Service",
            "complete EndpointSlice",
            "complete Node",
        ]
    );
    assert_eq!(reports, []);
    let (changes, _) = store.edit(&[("pod.yaml", &POD.replace("10.0.0.1", "10.0.0.2"))]);
    assert_eq!(told(&changes), ["apply EndpointSlice web~selector-ipv4-0"]);
    let (changes, _) = store.edit(&[("web.yaml", &format!("{WEB}# a comment\n"))]);
    assert_eq!(told(&changes), [""; 0], "nothing that counts changed");
    let (changes, _) = store.raw(vec![("pod.yaml", Edit::Gone)]);
    assert_eq!(told(&changes), ["delete EndpointSlice web~selector-ipv4-0"]);
    let (changes, _) = store.raw(vec![("web.yaml", Edit::Gone)]);
    assert_eq!(told(&changes), ["delete Service web"]);
    assert!(store.0.held().is_empty());
}

#[test]
fn a_file_that_stops_parsing_keeps_its_last_good_objects_and_is_named_with_line_and_reason() {
    let mut store = Fixture::new();
    store.edit(&[("web.yaml", WEB)]);
    for broken in [
        "",
        "kind: [",
        &WEB[..WEB.len() - 9],
        &WEB[..40],
        "apiVersion: v1\n",
    ] {
        let (changes, reports) = store.edit(&[("web.yaml", broken)]);
        assert_eq!(told(&changes), [""; 0], "{broken:?}");
        let said = refused(&reports);
        assert_eq!(said[0].0, Problem::Unparsable, "{broken:?}");
        assert!(said[0].1.starts_with("line "), "{said:?}");
        assert!(
            said[0].1.ends_with("its last good objects stay"),
            "{said:?}"
        );
    }
    let (changes, reports) = store.edit(&[("web.yaml", WEB)]);
    assert_eq!(told(&changes), [""; 0]);
    assert!(
        matches!(&reports[..], [Report::Resolved { .. }]),
        "{reports:?}"
    );
}

#[test]
fn no_half_of_a_file_removes_a_service() {
    let both = format!("{WEB}---\n{}", WEB.replace("name: web", "name: two"));
    for end in 0..both.len() {
        let mut store = Fixture::new();
        store.edit(&[("both.yaml", &both)]);
        let half = &both[..end];
        let (changes, _) = store.edit(&[("both.yaml", half)]);
        let whole_documents = half.trim_end_matches(['-', '\n']) == WEB.trim_end();
        assert!(
            told(&changes).is_empty() || whole_documents,
            "{end}: {:?}",
            told(&changes)
        );
    }
}

#[test]
fn a_refused_service_hurts_nothing_else_and_its_last_accepted_version_stays() {
    let mut store = Fixture::new();
    let bad = WEB
        .replace("name: web", "name: bad")
        .replace("port: 80,", "port: 0,");
    let (changes, reports) = store.edit(&[("all.yaml", &format!("{WEB}---\n{bad}"))]);
    assert!(told(&changes).contains(&"apply Service web".to_owned()));
    assert_eq!(
        refused(&reports),
        [(
            Problem::Refused,
            "The Service \"bad\" is invalid: spec.ports[0].port: Invalid value: 0: must be between \
             1 and 65535, inclusive"
                .to_owned()
        )]
    );
    let (changes, reports) = store.edit(&[("all.yaml", &WEB.replace("port: 80,", "port: 0,"))]);
    assert_eq!(told(&changes), [""; 0]);
    assert!(
        refused(&reports)[0]
            .1
            .ends_with("the last accepted version stays")
    );
}

#[test]
fn a_duplicate_node_port_is_refused_until_it_is_free() {
    let mut store = Fixture::new();
    let named = |name: &str| {
        WEB.replace("name: web", &format!("name: {name}"))
            .replace("8080", "8080, nodePort: 30080")
    };
    let (changes, reports) = store.edit(&[("b.yaml", &named("b")), ("c.yaml", &named("c"))]);
    assert!(told(&changes).contains(&"apply Service b".to_owned()));
    let expected = "The Service \"c\" is invalid: spec.ports[0].nodePort: Invalid value: 30080: \
                    provided port is already allocated";
    assert_eq!(refused(&reports), [(Problem::Refused, expected.to_owned())]);
    // A newcomer earlier in the alphabet does not take it from its holder.
    let (changes, reports) = store.edit(&[("a.yaml", &named("a"))]);
    assert_eq!(told(&changes), [""; 0]);
    assert_eq!(refused(&reports).len(), 1);
    let (changes, reports) = store.raw(vec![("b.yaml", Edit::Gone)]);
    assert_eq!(told(&changes), ["delete Service b", "apply Service a"]);
    assert!(
        matches!(&reports[..], [Report::Resolved { object, .. }] if object == "Service default/a")
    );
}

#[test]
fn allocations_are_stable_over_restarts() {
    let mut store = Fixture::new();
    let (before, _) = store.edit(&[("a.yaml", WEB)]);
    let written = Written {
        held: store.0.held().clone(),
        kept: store.0.kept(),
    };
    assert!(written.kept.is_empty());
    let mut again = Fixture(Store::new("here", Ranges::default(), written));
    let other = WEB.replace("name: web", "name: another");
    let (after, _) = again.edit(&[("a.yaml", WEB), ("0.yaml", &other)]);
    let web = after
        .iter()
        .filter_map(|change| match change {
            Change::Apply(Object::Service(service)) => Some(service),
            _ => None,
        })
        .find(|service| service.metadata.name.as_deref() == Some("web"))
        .unwrap();
    assert_eq!(&**web, service(&before));
    assert!(service(&before).spec.as_ref().unwrap().cluster_ip.is_some());
}

#[test]
fn the_same_object_in_two_files_is_said_and_the_first_by_path_is_taken() {
    let mut store = Fixture::new();
    let (changes, reports) = store.edit(&[
        ("b.yaml", WEB),
        ("a.yaml", &WEB.replace("port: 80,", "port: 81,")),
    ]);
    assert_eq!(
        service(&changes)
            .spec
            .as_ref()
            .unwrap()
            .ports
            .as_ref()
            .unwrap()[0]
            .port,
        81
    );
    let expected = "Service default/web stands in a.yaml as well; that one is taken, this one is \
                    ignored";
    assert_eq!(
        refused(&reports),
        [(Problem::Duplicate, expected.to_owned())]
    );
    let (changes, reports) = store.raw(vec![("a.yaml", Edit::Gone)]);
    assert_eq!(
        service(&changes)
            .spec
            .as_ref()
            .unwrap()
            .ports
            .as_ref()
            .unwrap()[0]
            .port,
        80
    );
    assert!(matches!(&reports[..], [Report::Resolved { .. }]));
}

#[test]
fn moving_a_service_to_another_file_changes_nothing() {
    let mut store = Fixture::new();
    store.edit(&[("a.yaml", WEB)]);
    store.edit(&[("b.yaml", WEB)]);
    let (changes, _) = store.raw(vec![("a.yaml", Edit::Gone)]);
    assert_eq!(told(&changes), [""; 0]);
}

#[test]
fn endpoints_count_only_where_the_service_has_no_slice() {
    let mut store = Fixture::new();
    let endpoints = "apiVersion: v1\nkind: Endpoints\nmetadata: {name: web}\n\
                     subsets: [{addresses: [{ip: 10.0.0.9}], ports: [{port: 8080}]}]\n";
    let (changes, _) = store.edit(&[("web.yaml", WEB), ("ep.yaml", endpoints)]);
    assert_eq!(
        slice(&changes).metadata.name.as_deref(),
        Some("web~endpoints-ipv4-0")
    );
    let (changes, _) = store.edit(&[("pod.yaml", POD)]);
    assert_eq!(
        told(&changes),
        [
            "apply EndpointSlice web~selector-ipv4-0",
            "delete EndpointSlice web~endpoints-ipv4-0"
        ]
    );
    let written = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
                   metadata: {name: s, labels: {kubernetes.io/service-name: web}}\nendpoints: []\n";
    store.edit(&[("slice.yaml", written)]);
    let (changes, _) = store.raw(vec![("pod.yaml", Edit::Gone)]);
    assert_eq!(told(&changes), ["delete EndpointSlice web~selector-ipv4-0"]);
    let (changes, _) = store.raw(vec![("slice.yaml", Edit::Gone)]);
    assert_eq!(
        told(&changes),
        [
            "apply EndpointSlice web~endpoints-ipv4-0",
            "delete EndpointSlice s"
        ]
    );
}

#[test]
fn selectors_follow_pods_labels_and_readiness() {
    let mut store = Fixture::new();
    let (changes, _) = store.edit(&[("web.yaml", WEB), ("pod.yaml", POD)]);
    let endpoint = &slice(&changes).endpoints.as_ref().unwrap()[0];
    assert_eq!(endpoint.addresses, ["10.0.0.1"]);
    assert_eq!(endpoint.node_name.as_deref(), Some("here"));
    let (changes, _) = store.edit(&[("pod.yaml", &POD.replace("'True'", "'False'"))]);
    let conditions = slice(&changes).endpoints.as_ref().unwrap()[0]
        .conditions
        .clone()
        .unwrap();
    assert_eq!(conditions.ready, Some(false));
    let (changes, _) = store.edit(&[("pod.yaml", &POD.replace("app: web", "app: other"))]);
    assert_eq!(told(&changes), ["delete EndpointSlice web~selector-ipv4-0"]);
    let (changes, _) = store.edit(&[("web.yaml", &WEB.replace("app: web", "app: other"))]);
    assert!(told(&changes).contains(&"apply EndpointSlice web~selector-ipv4-0".to_owned()));
}

#[test]
fn other_kinds_are_ignored_with_one_line() {
    let mut store = Fixture::new();
    let two = "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Secret\n\
               metadata: {name: b}\n";
    let (_, reports) = store.edit(&[("s.yaml", two)]);
    let said = "v1 Secret is not a kind that services need; ignored".to_owned();
    assert_eq!(refused(&reports), [(Problem::Ignored, said)]);
    let (_, reports) = store.edit(&[("s.yaml", &format!("{two}# more\n"))]);
    assert_eq!(reports, []);
}

#[test]
fn a_service_without_selector_and_slices_has_no_endpoints() {
    let mut store = Fixture::new();
    let (changes, reports) =
        store.edit(&[("web.yaml", &WEB.replace("  selector: {app: web}\n", ""))]);
    assert!(
        !told(&changes)
            .iter()
            .any(|told| told.starts_with("apply EndpointSlice"))
    );
    assert_eq!(reports, []);
}

#[test]
fn an_unreadable_file_keeps_what_it_held() {
    let mut store = Fixture::new();
    store.edit(&[("web.yaml", WEB)]);
    let (changes, reports) = store.raw(vec![(
        "web.yaml",
        Edit::Unreadable("permission denied".to_owned()),
    )]);
    assert_eq!(told(&changes), [""; 0]);
    assert_eq!(refused(&reports)[0].0, Problem::Unreadable);
}

#[test]
fn a_broken_file_keeps_its_last_good_objects_over_restarts() {
    let mut store = Fixture::new();
    let (before, _) = store.edit(&[("web.yaml", WEB)]);
    for broken in ["kind: [", &WEB.replace("port: 80,", "port: 0,")] {
        store.edit(&[("web.yaml", broken)]);
        let written = Written {
            held: store.0.held().clone(),
            kept: store.0.kept(),
        };
        assert_eq!(written.kept.len(), 1);
        let mut again = Fixture(Store::new("here", Ranges::default(), written));
        let (after, reports) = again.edit(&[("web.yaml", broken)]);
        assert_eq!(service(&after), service(&before));
        assert!(refused(&reports)[0].1.contains(" stay"), "{reports:?}");
        let (changes, _) = again.raw(vec![("web.yaml", Edit::Gone)]);
        assert_eq!(told(&changes), ["delete Service web"]);
    }
    store.edit(&[("web.yaml", WEB)]);
    assert!(store.0.kept().is_empty());
}

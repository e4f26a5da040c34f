use super::*;
use crate::source::kube::KubeSource;
use crate::source::{Problem, Report};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Nothing here waits this long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_kubeconfig_that_cannot_be_used_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    let said = Servers::connect(Some(&missing), &[], &Arc::default())
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(
        said.starts_with("cannot use the kubeconfig ") && said.contains("/missing"),
        "{said}"
    );
    let broken = directory.path().join("broken");
    std::fs::write(&broken, "clusters: {").unwrap();
    assert!(
        Servers::connect(Some(&broken), &[], &Arc::default())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn given_addresses_replace_the_configured_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kubeconfig");
    let text = "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
        clusters: [{name: c, cluster: {server: 'https://10.96.0.1'}}]\n\
        contexts: [{name: c, context: {cluster: c, user: u}}]\nusers: [{name: u, user: {token: t}}]\n";
    std::fs::write(&path, text).unwrap();
    let configured = Servers::connect(Some(&path), &[], &Arc::default())
        .await
        .unwrap();
    assert_eq!(configured.current().unwrap().1, "https://10.96.0.1/");
    let addresses = [
        "https://192.0.2.1:6443".to_owned(),
        "https://192.0.2.2:6443".to_owned(),
    ];
    let given = Servers::connect(Some(&path), &addresses, &Arc::default())
        .await
        .unwrap();
    assert_eq!(given.current().unwrap().1, "https://192.0.2.1:6443/");
    assert!(given.fail_over(0));
    assert!(
        given.fail_over(0),
        "the second who saw it does not move on again"
    );
    assert_eq!(given.current().unwrap().1, "https://192.0.2.2:6443/");
    let bad = Servers::connect(Some(&path), &["10.0.0.1".to_owned()], &Arc::default())
        .await
        .err()
        .unwrap();
    assert!(bad.to_string().contains("`10.0.0.1` is not a URL"), "{bad}");
}

#[tokio::test]
async fn the_connection_carries_the_kubeconfigs_address_and_token() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         clusters: [{{name: c, cluster: {{server: 'http://{address}'}}}}]\n\
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
         users: [{{name: u, user: {{token: secret}}}}]\n"
    );
    std::fs::write(&path, text).unwrap();
    let servers = Servers::connect(Some(&path), &[], &Arc::default())
        .await
        .unwrap();
    let (change_sender, _changes) = mpsc::channel(64);
    let (report_sender, mut reports) = mpsc::channel(64);
    let source = KubeSource {
        servers,
        node: "here".to_owned(),
        use_endpoints: false,
        watch_labels: false,
    };
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(source.run(change_sender, report_sender, shutdown.clone()));
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut request = String::new();
    while !request.contains("\r\n\r\n") {
        let mut bytes = [0; 4096];
        let count = stream.read(&mut bytes).await.unwrap();
        request.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
    }
    assert!(
        request
            .to_ascii_lowercase()
            .contains("authorization: bearer secret"),
        "{request}"
    );
    let body =
        r#"{"kind":"Status","apiVersion":"v1","status":"Failure","code":403,"message":"no"}"#;
    let head = format!(
        "HTTP/1.1 403 Forbidden\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream
        .write_all(format!("{head}{body}").as_bytes())
        .await
        .unwrap();
    let report = tokio::time::timeout(PATIENCE, reports.recv())
        .await
        .unwrap()
        .unwrap();
    assert!(matches!(report, Report::Refused(refusal) if refusal.problem == Problem::Forbidden));
    shutdown.cancel();
    running.await.unwrap();
}

use super::*;
use crate::source::{Kind, Object};
use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;
use tempfile::TempDir;

/// Nothing here waits this long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(20);

struct Running {
    root: TempDir,
    changes: mpsc::Receiver<Change>,
    reports: mpsc::Receiver<Report>,
    shutdown: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn service(name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: {port}}}]}}\n"
    )
}

impl Running {
    /// A source on `<root>/d`, after `prepare` made it.
    fn start(prepare: impl FnOnce(&Path)) -> Self {
        let root = tempfile::tempdir().unwrap();
        prepare(root.path());
        let source = DirectorySource {
            directory: root.path().join("d"),
            node: "here".to_owned(),
            ranges: Ranges::default(),
            state_directory: root.path().join("state"),
        };
        let (change_sender, changes) = mpsc::channel(64);
        let (report_sender, reports) = mpsc::channel(64);
        let shutdown = CancellationToken::new();
        tokio::spawn(source.run(change_sender, report_sender, shutdown.clone()));
        Self {
            root,
            changes,
            reports,
            shutdown,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join("d").join(name)
    }

    /// The next change of a Service.
    async fn next(&mut self) -> String {
        loop {
            let change = tokio::time::timeout(PATIENCE, self.changes.recv()).await;
            match change.expect("a change in time").expect("a running source") {
                Change::Apply(Object::Service(service)) => {
                    let port = service.spec.unwrap().ports.unwrap()[0].port;
                    return format!("{} {port}", service.metadata.name.unwrap());
                }
                Change::Delete(Kind::Service, name) => return format!("delete {}", name.name),
                Change::Complete(Kind::Service) => return "complete".to_owned(),
                _ => {}
            }
        }
    }

    async fn said(&mut self) -> String {
        let report = tokio::time::timeout(PATIENCE, self.reports.recv()).await;
        match report.expect("a report in time").expect("a running source") {
            Report::Refused(refusal) => refusal.to_string(),
            Report::Resolved { .. } => "resolved".to_owned(),
        }
    }
}

fn one_file(root: &Path) {
    fs::create_dir(root.join("d")).unwrap();
    fs::write(root.join("d/a.yaml"), service("a", 80)).unwrap();
}

#[tokio::test]
async fn editing_adding_and_deleting_a_manifest_is_seen() {
    let mut running = Running::start(one_file);
    assert_eq!(running.next().await, "a 80");
    assert_eq!(running.next().await, "complete");
    fs::write(running.path("a.yaml"), service("a", 81)).unwrap();
    assert_eq!(running.next().await, "a 81");
    fs::write(
        running.path("b.json"),
        r#"{"apiVersion":"v1","kind":"Service",
        "metadata":{"name":"b"},"spec":{"ports":[{"port":1}]}}"#,
    )
    .unwrap();
    assert_eq!(running.next().await, "b 1");
    fs::remove_file(running.path("a.yaml")).unwrap();
    assert_eq!(running.next().await, "delete a");
    fs::write(running.path(".hidden.yaml"), service("c", 80)).unwrap();
    fs::write(running.path("notes.txt"), "not a manifest").unwrap();
    fs::rename(running.path("notes.txt"), running.path("d.yaml")).unwrap();
    assert!(running.said().await.contains("d.yaml: line 1: "));
}

#[tokio::test]
async fn a_file_that_is_being_written_is_not_read_before_it_is_closed() {
    use std::io::Write;
    let mut running = Running::start(one_file);
    running.next().await;
    running.next().await;
    let mut file = fs::File::create(running.path("a.yaml")).unwrap();
    file.write_all(b"# begun\n").unwrap();
    // Another file's change proves that the half one was passed over.
    fs::write(running.path("b.yaml"), service("b", 80)).unwrap();
    assert_eq!(running.next().await, "b 80");
    file.write_all(service("a", 82).as_bytes()).unwrap();
    drop(file);
    assert_eq!(running.next().await, "a 82");
}

#[tokio::test]
async fn a_renamed_file_changes_nothing() {
    let mut running = Running::start(one_file);
    running.next().await;
    running.next().await;
    fs::rename(running.path("a.yaml"), running.path("z.yaml")).unwrap();
    fs::write(running.path("b.yaml"), service("b", 80)).unwrap();
    assert_eq!(running.next().await, "b 80");
    fs::remove_file(running.path("b.yaml")).unwrap();
    assert_eq!(
        running.next().await,
        "delete b",
        "the rename was over before"
    );
    assert!(running.reports.try_recv().is_err(), "and nothing was said");
    fs::write(running.path("z.yaml"), service("a", 83)).unwrap();
    assert_eq!(running.next().await, "a 83");
}

#[tokio::test]
async fn a_file_replaced_by_a_rename_as_editors_do_is_read() {
    let mut running = Running::start(one_file);
    running.next().await;
    running.next().await;
    fs::write(running.path(".a.swp"), service("a", 84)).unwrap();
    fs::rename(running.path("a.yaml"), running.path("a.yaml~")).unwrap();
    fs::rename(running.path(".a.swp"), running.path("a.yaml")).unwrap();
    assert_eq!(running.next().await, "a 84");
}

/// As kubelet projects a ConfigMap: `a.yaml` → `..data/a.yaml`, `..data` swapped by a rename.
fn config_map(root: &Path) {
    let directory = root.join("d");
    fs::create_dir_all(directory.join("..1")).unwrap();
    fs::write(directory.join("..1/a.yaml"), service("a", 80)).unwrap();
    symlink("..1", directory.join("..data")).unwrap();
    symlink("..data/a.yaml", directory.join("a.yaml")).unwrap();
}

#[tokio::test]
async fn a_symlink_swap_is_a_change_and_never_a_removal() {
    let mut running = Running::start(config_map);
    assert_eq!(running.next().await, "a 80");
    running.next().await;
    fs::create_dir(running.path("..2")).unwrap();
    fs::write(running.path("..2/a.yaml"), service("a", 85)).unwrap();
    symlink("..2", running.path("..data_tmp")).unwrap();
    fs::rename(running.path("..data_tmp"), running.path("..data")).unwrap();
    fs::remove_dir_all(running.path("..1")).unwrap();
    assert_eq!(running.next().await, "a 85");
    // A link that leads nowhere for a while is said and removes nothing.
    fs::remove_dir_all(running.path("..2")).unwrap();
    assert!(
        running
            .said()
            .await
            .ends_with("the symbolic link leads nowhere; what it held stays")
    );
    fs::create_dir(running.path("..2")).unwrap();
    fs::write(running.path("..2/a.yaml"), service("a", 86)).unwrap();
    assert_eq!(running.next().await, "a 86");
    fs::remove_file(running.path("a.yaml")).unwrap();
    assert_eq!(running.next().await, "delete a");
}

#[tokio::test]
async fn a_directory_swapped_by_its_own_symlink_is_followed() {
    let mut running = Running::start(|root| {
        fs::create_dir(root.join("one")).unwrap();
        fs::write(root.join("one/a.yaml"), service("a", 80)).unwrap();
        symlink("one", root.join("d")).unwrap();
    });
    assert_eq!(running.next().await, "a 80");
    running.next().await;
    let root = running.root.path().to_owned();
    fs::create_dir(root.join("two")).unwrap();
    fs::write(root.join("two/a.yaml"), service("a", 87)).unwrap();
    symlink("two", root.join("new")).unwrap();
    fs::rename(root.join("new"), root.join("d")).unwrap();
    assert_eq!(running.next().await, "a 87");
    fs::write(root.join("two/b.yaml"), service("b", 80)).unwrap();
    assert_eq!(running.next().await, "b 80");
}

#[tokio::test]
async fn a_directory_that_is_not_there_yet_is_said_and_nothing_is_complete() {
    let mut running = Running::start(|_| ());
    assert!(running.said().await.contains("cannot read the directory"));
    assert!(running.changes.try_recv().is_err());
    one_file(running.root.path());
    assert_eq!(running.said().await, "resolved");
    assert_eq!(running.next().await, "a 80");
    assert_eq!(running.next().await, "complete");
}

#[tokio::test]
async fn an_empty_directory_is_a_complete_listing() {
    let mut running = Running::start(|root| fs::create_dir(root.join("d")).unwrap());
    assert_eq!(running.next().await, "complete");
}

#[tokio::test]
async fn what_was_given_is_on_disk_before_anybody_sees_it() {
    let mut running = Running::start(one_file);
    running.next().await;
    let (written, _) = StateFiles::new(running.root.path().join("state")).load();
    assert_eq!(written.held.len(), 1);
}

#[tokio::test]
async fn the_first_listing_holds_old_files_also_beside_one_that_was_just_written() {
    let mut running = Running::start(|root| {
        fs::create_dir(root.join("d")).unwrap();
        for name in ["a", "c"] {
            let path = root.join("d").join(format!("{name}.yaml"));
            fs::write(&path, service(name, 1)).unwrap();
            let old = std::time::SystemTime::now() - Duration::from_secs(60);
            let file = fs::File::options().write(true).open(&path).unwrap();
            file.set_modified(old).unwrap();
        }
        fs::write(root.join("d/b.yaml"), service("b", 1)).unwrap();
    });
    let mut listed = Vec::new();
    for _ in 0..4 {
        listed.push(running.next().await);
    }
    assert_eq!(listed, ["a 1", "b 1", "c 1", "complete"]);
}

#[tokio::test]
async fn the_first_listing_waits_for_a_file_that_is_being_written() {
    use std::io::Write;
    let events = Events::new().unwrap();
    let (root, mut disk) = loop {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("a.yaml"), service("a", 1)).unwrap();
        let mut disk = Disk::new(root.path().to_owned());
        disk.collect(Some(&events)).unwrap();
        // On a machine that stood still for a moment the first look was the listing: try again.
        if !disk.is_listed() {
            break (root, disk);
        }
    };
    let mut file = fs::File::create(root.path().join("b.yaml")).unwrap();
    let text = service("b", 1);
    for half in [&text[..20], &text[20..]] {
        file.write_all(half.as_bytes()).unwrap();
        tokio::time::sleep_until(disk.deadline().into()).await;
        assert!(disk.collect(Some(&events)).unwrap().is_empty());
        assert!(!disk.is_listed());
    }
    drop(file);
    let mut edits = BTreeMap::new();
    while !disk.is_listed() {
        tokio::time::sleep_until(disk.deadline().into()).await;
        edits.append(&mut disk.collect(Some(&events)).unwrap());
    }
    assert_eq!(edits.len(), 2, "{edits:?}");
}

#[tokio::test]
async fn what_is_not_a_file_is_refused_without_waiting_for_it() {
    let mut running = Running::start(|root| {
        fs::create_dir(root.join("d")).unwrap();
        fs::write(root.join("d/a.yaml"), service("a", 1)).unwrap();
    });
    assert_eq!(running.next().await, "a 1");
    assert_eq!(running.next().await, "complete");
    nix::unistd::mkfifo(
        &running.path("fifo.yaml"),
        nix::sys::stat::Mode::from_bits_truncate(0o600),
    )
    .unwrap();
    let said = running.said().await;
    assert!(
        said.contains("fifo.yaml: cannot be read: it is a FIFO, not a file"),
        "{said}"
    );
    fs::write(running.path("a.yaml"), service("a", 2)).unwrap();
    assert_eq!(running.next().await, "a 2");
    fs::remove_file(running.path("fifo.yaml")).unwrap();
    assert_eq!(running.said().await, "resolved");
}

#[tokio::test]
async fn a_directory_that_is_made_anew_has_time_to_be_filled() {
    let mut running = Running::start(|root| {
        fs::create_dir(root.join("d")).unwrap();
        fs::write(root.join("d/a.yaml"), service("a", 1)).unwrap();
        fs::write(root.join("d/b.yaml"), service("b", 1)).unwrap();
    });
    for expected in ["a 1", "b 1", "complete"] {
        assert_eq!(running.next().await, expected);
    }
    let directory = running.root.path().join("d");
    fs::remove_dir_all(&directory).unwrap();
    // Longer than a deleted file is waited for.
    tokio::time::sleep(Duration::from_millis(400)).await;
    fs::create_dir(&directory).unwrap();
    tokio::time::sleep(Duration::from_millis(800)).await;
    fs::write(directory.join("a.yaml"), service("a", 2)).unwrap();
    assert_eq!(running.next().await, "a 2", "nothing was deleted meanwhile");
    // What does not come back is gone in the end.
    assert_eq!(running.next().await, "delete b");
}

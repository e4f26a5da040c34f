//! Files as they really are: broken, half-written, swapped, gone, and hostile. None of them may
//! remove a service, hang the agent or end it.

use anyhow::{Context, Result, ensure};
use lb_tests::site::{Site, socket};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;

/// A site with `web` (10.96.1.1 on pod a) and `other` (10.96.1.2 on pod b) in files of their own.
fn site() -> Result<Site> {
    let mut site = Site::new(&["a", "b"])?;
    site.write("web.yaml", site.web("web", 1, &["a"]))?;
    site.write("other.yaml", site.web("other", 2, &["b"]))?;
    site.start("")?;
    Ok(site)
}

/// A change that is seen proves that everything before it was seen, too.
fn follows(site: &Site) -> Result<()> {
    for pod in ["a", "b"] {
        site.write("other.yaml", site.web("other", 2, &[pod]))?;
        site.await_answer(socket(2), pod)?;
    }
    Ok(())
}

#[test]
fn a_file_that_stops_parsing_keeps_its_last_good_objects_and_is_named_with_line_and_reason()
-> Result<()> {
    let mut site = site()?;
    let clients = site.steady(socket(1))?;
    let good = site.web("web", 1, &["a"]);
    let broken = good.replace("spec:\n", "spec: [\n");
    site.write("web.yaml", &broken)?;
    let line = site.await_log(&["WARN", "web.yaml: line ", "its last good objects stay"])?;
    let sentence = line.split_once("web.yaml: ").context("no file")?.1;
    let named = sentence.split(" problem=").next().unwrap_or(sentence);
    let unparsable = ["problem=\"unparsable\""];
    site.await_metric("lb_source_problems", &unparsable, Some(1.0))?;
    let in_status = |site: &Site| {
        site.until("status names the file", || {
            let status = site.tool("status")?;
            Ok((!status.contains(named)).then_some(status))
        })
    };
    in_status(&site)?;
    follows(&site)?;
    // The next agent knows what was good, too.
    site.stop()?;
    site.start("")?;
    site.await_metric("lb_source_problems", &unparsable, Some(1.0))?;
    in_status(&site)?;
    follows(&site)?;
    ensure!(clients.finish()? > 0, "no connection");
    // Mended, with another endpoint: it is taken, and the trouble is over everywhere.
    site.write("web.yaml", site.web("web", 1, &["b"]))?;
    site.await_answer(socket(1), "b")?;
    site.await_metric("lb_source_problems", &unparsable, None)?;
    site.until("status forgets it", || {
        let status = site.tool("status")?;
        Ok(status.contains("web.yaml").then_some(status))
    })
}

#[test]
fn a_half_written_file_never_removes_a_service() -> Result<()> {
    let site = site()?;
    let clients = site.steady(socket(1))?;
    let path = site.directory().join("web.yaml");
    let text = format!(
        "{}---\n{}",
        site.web("second", 3, &["b"]),
        site.web("web", 1, &["a"])
    );
    // Truncated and written slowly, open all the time; each piece is on disk before the agent is
    // seen to follow changes elsewhere.
    let mut file = File::create(&path)?;
    follows(&site)?;
    for piece in text.as_bytes().chunks(text.len() / 6) {
        file.write_all(piece)?;
        follows(&site)?;
    }
    drop(file);
    site.await_answer(socket(3), "b")?;
    // Writers that close after each piece: what is there may even parse.
    for cut in [0, 10, 200, 300, text.len() - 40, text.len() - 3] {
        fs::write(&path, &text[..cut])?;
        follows(&site)?;
        ensure!(site.ask(socket(1))? == "a", "cut after {cut} bytes");
        ensure!(site.ask(socket(3))? == "b", "cut after {cut} bytes");
    }
    fs::write(&path, &text)?;
    follows(&site)?;
    ensure!(clients.finish()? > 0, "no connection");
    Ok(())
}

#[test]
fn files_replaced_by_rename_never_remove_a_service() -> Result<()> {
    let site = site()?;
    let clients = site.steady(socket(1))?;
    // As `sed -i`, `mv` and most editors do.
    for _ in 0..40 {
        site.write("web.yaml", site.web("web", 1, &["a"]))?;
    }
    follows(&site)?;
    ensure!(clients.finish()? > 0, "no connection");
    Ok(())
}

/// What the kubelet does for a ConfigMap volume: a fresh directory, `..data` swapped over to it.
fn swap(site: &Site, version: &str, files: &[(&str, String)]) -> Result<()> {
    let directory = site.directory();
    let fresh = directory.join(format!("..{version}"));
    fs::create_dir(&fresh)?;
    for (name, text) in files {
        fs::write(fresh.join(name), text)?;
    }
    let data = directory.join("..data");
    let old = fs::read_link(&data).ok();
    let temporary = directory.join("..data_tmp");
    symlink(format!("..{version}"), &temporary)?;
    fs::rename(&temporary, &data)?;
    for (name, _) in files {
        let link = directory.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new("..data").join(name), link)?;
        }
    }
    for link in fs::read_dir(&directory)?.flatten() {
        let listed = files.iter().any(|(name, _)| link.file_name() == *name);
        if link.file_type()?.is_symlink() && !listed && link.file_name() != "..data" {
            fs::remove_file(link.path())?;
        }
    }
    if let Some(old) = old {
        fs::remove_dir_all(directory.join(old))?;
    }
    Ok(())
}

#[test]
fn a_symlink_swap_as_a_config_map_volume_does_it_never_removes_a_service() -> Result<()> {
    let mut site = Site::new(&["a", "b"])?;
    let first = [
        ("web.yaml", site.web("web", 1, &["a"])),
        ("other.yaml", site.web("other", 2, &["b"])),
    ];
    swap(&site, "v0", &first)?;
    site.start("")?;
    site.await_answer(socket(1), "a")?;
    let clients = site.steady(socket(1))?;
    for round in 1..6 {
        let pod = ["a", "b"][round % 2];
        let files = [
            ("web.yaml", site.web("web", 1, &["a"])),
            ("other.yaml", site.web("other", 2, &[pod])),
        ];
        swap(&site, &format!("v{round}"), &files)?;
        site.await_answer(socket(2), pod)?;
    }
    // A key that the new version no longer has is deleted.
    swap(&site, "v6", &first[..1])?;
    site.await_silence(socket(2))?;
    ensure!(clients.finish()? > 0, "no connection");
    Ok(())
}

#[test]
fn a_directory_that_is_removed_and_made_anew_never_removes_a_service() -> Result<()> {
    let site = site()?;
    let clients = site.steady(socket(1))?;
    for round in 0..3 {
        fs::remove_dir_all(site.directory())?;
        if round > 0 {
            site.await_log(&["cannot read the directory", "what it held stays"])?;
            site.await_metric("lb_source_problems", &["problem=\"unreadable\""], Some(1.0))?;
        }
        fs::create_dir(site.directory())?;
        site.write("third.yaml", site.web("third", 3, &["b"]))?;
        site.await_answer(socket(3), "b")?;
        ensure!(site.ask(socket(1))? == "a" && site.ask(socket(2))? == "b");
        site.write("web.yaml", site.web("web", 1, &["a"]))?;
        site.write("other.yaml", site.web("other", 2, &["b"]))?;
        follows(&site)?;
        fs::remove_file(site.directory().join("third.yaml"))?;
        site.await_silence(socket(3))?;
    }
    // Moved away and back.
    let aside = site.lab().dir().join("aside");
    fs::rename(site.directory(), &aside)?;
    site.await_metric("lb_source_problems", &["problem=\"unreadable\""], Some(1.0))?;
    fs::rename(&aside, site.directory())?;
    follows(&site)?;
    ensure!(clients.finish()? > 0, "no connection");
    Ok(())
}

/// Bytes without a pattern, the same in every run.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..length).map(|_| byte()).collect()
}

/// Text files that are no manifests, by name.
fn hostile_texts() -> Vec<(&'static str, Vec<u8>)> {
    let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for step in 1..20 {
        let before = vec![format!("*a{}", step - 1); 10].join(", ");
        laughs.push_str(&["a", &step.to_string(), ": &a", &step.to_string()].concat());
        laughs.push_str(&[" [", &before, "]\n"].concat());
    }
    let twice = "apiVersion: v1\nkind: Service\nkind: Service\nmetadata: {name: x}\n";
    vec![
        ("noise.yaml", noise(1 << 20)),
        ("noise.json", noise(1 << 16)),
        ("nul.yaml", vec![0; 1 << 16]),
        ("flow.yaml", "[".repeat(1 << 20).into_bytes()),
        ("block.yaml", "- ".repeat(1 << 18).into_bytes()),
        ("deep.json", "[".repeat(1 << 20).into_bytes()),
        ("laughs.yaml", laughs.into_bytes()),
        ("cycle.yaml", b"a: &a [*a]\n".to_vec()),
        ("twice.yaml", twice.as_bytes().to_vec()),
        ("list.yaml", b"[1, 2, 3]\n".to_vec()),
        ("scalar.json", b"\"text\"\n".to_vec()),
        (
            "tag.yaml",
            b"!!python/object/apply:os.system [x]\n".to_vec(),
        ),
    ]
}

/// Things that are no files, by name.
fn hostile_nodes(directory: &Path) -> Result<Vec<&'static str>> {
    let at = |name: &str| directory.join(name);
    let mode = Mode::from_bits_truncate(0o600);
    nix::unistd::mkfifo(&at("fifo.yaml"), mode)?;
    mknod(&at("zero.yaml"), SFlag::S_IFCHR, mode, makedev(1, 5))?;
    mknod(
        &at("block-device.yaml"),
        SFlag::S_IFBLK,
        mode,
        makedev(250, 99),
    )?;
    symlink("/dev/zero", at("link-to-zero.json"))?;
    symlink("loop.yaml", at("loop.yaml"))?;
    symlink("nowhere", at("dangling.yaml"))?;
    symlink("/proc/self/mem", at("mem.yaml"))?;
    fs::create_dir(at("directory.yaml"))?;
    drop(UnixListener::bind(at("socket.yml"))?);
    // Sparse: a hundred gigabytes of zeros, none of them on disk.
    File::create(at("huge.yaml"))?.set_len(100 << 30)?;
    Ok(vec![
        "fifo.yaml",
        "zero.yaml",
        "block-device.yaml",
        "link-to-zero.json",
        "loop.yaml",
        "dangling.yaml",
        "mem.yaml",
        "directory.yaml",
        "socket.yml",
        "huge.yaml",
    ])
}

#[test]
fn hostile_files_neither_hang_nor_end_the_agent_and_each_is_named() -> Result<()> {
    let mut site = site()?;
    let process = site.agent()?.id();
    let clients = site.steady(socket(1))?;
    let mut names = hostile_nodes(&site.directory())?;
    follows(&site)?;
    for (name, text) in hostile_texts() {
        site.write(name, text)?;
        names.push(name);
    }
    follows(&site)?;
    for name in &names {
        site.await_log(&["WARN", &format!("/{name}: ")])?;
    }
    // They can all be there at a start, too.
    site.is_alive()?;
    ensure!(site.agent()?.id() == process, "another process");
    let memory = site.metric("process_resident_memory_bytes", &[])?;
    ensure!(
        memory.is_some_and(|bytes| bytes < 500e6),
        "resident memory: {memory:?}"
    );
    site.stop()?;
    site.start("")?;
    follows(&site)?;
    site.until("status names each", || {
        let status = site.tool("status")?;
        let missing = names.iter().find(|name| !status.contains(**name));
        Ok(missing.map(|name| format!("{name} is missing in\n{status}")))
    })?;
    ensure!(clients.finish()? > 0, "no connection");
    Ok(())
}

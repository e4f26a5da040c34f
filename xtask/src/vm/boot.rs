//! Boots one kernel, runs one command in it, and brings back its output and exit code.

use super::archive::Archive;
use super::debian::{Kernel, Machine};
use super::modules;
use crate::workspace;
use anyhow::{Context, Result, anyhow, bail};
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How long a kernel may take in all: emulation is slow, a hang is not worth more.
const LIMIT: Duration = Duration::from_secs(1800);
/// Begins the last line of a guest that came to its end.
const EXIT: &str = "xtask-vm-exit:";
/// The first program of the guest.
const INIT: &str = include_str!("../../vm/init");
/// What runs in the guest's final root.
const STAGE2: &str = include_str!("../../vm/stage2");

/// Runs `command` on `kernel` and returns its exit code.
pub(super) fn run(machine: &Machine, kernel: &Kernel, command: &[OsString]) -> Result<i32> {
    let dir = machine.run_dir();
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let initrd = dir.join(format!("initrd-{}-{}", kernel.release, std::process::id()));
    fs::write(&initrd, archive(machine, kernel, command)?)
        .with_context(|| format!("cannot write {}", initrd.display()))?;
    let result = boot(machine, kernel, &initrd);
    let _ = fs::remove_file(&initrd);
    result
}

fn archive(machine: &Machine, kernel: &Kernel, command: &[OsString]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    let busybox = fs::read(&machine.busybox)
        .with_context(|| format!("cannot read {}", machine.busybox.display()))?;
    archive.device("dev/console", 5, 1);
    archive.file("busybox", &busybox, 0o755);
    archive.file("init", INIT.as_bytes(), 0o755);
    archive.file("stage2", STAGE2.as_bytes(), 0o755);
    let mut order = String::new();
    for (name, object) in modules::in_order(&kernel.modules)? {
        archive.file(&format!("modules/{name}.ko"), &object, 0o644);
        order.push_str(&name);
        order.push('\n');
    }
    archive.file("modules/order", order.as_bytes(), 0o644);
    archive.file("command", script(command).as_bytes(), 0o755);
    Ok(archive.finish())
}

/// The command as a shell script, in the same directory and with the agent's path.
fn script(command: &[OsString]) -> String {
    let quote = |word: &str| format!("'{}'", word.replace('\'', r"'\''"));
    let path = std::env::var("PATH").unwrap_or_default();
    let words: Vec<String> = command
        .iter()
        .map(|word| quote(&word.to_string_lossy()))
        .collect();
    format!(
        "cd {} || exit 1\nexport PATH={} HOME=/root RUST_BACKTRACE=1 LB_AGENT_BIN={}\nexec {}\n",
        quote(&workspace::root().to_string_lossy()),
        quote(&format!("{path}:/usr/sbin:/usr/bin:/sbin:/bin")),
        quote(&workspace::target().join("debug/lb-agent").to_string_lossy()),
        words.join(" ")
    )
}

fn boot(machine: &Machine, kernel: &Kernel, initrd: &Path) -> Result<i32> {
    let kvm = std::env::var("LB_VM_ACCEL").is_ok_and(|accel| accel == "kvm");
    let mut qemu = machine.command();
    qemu.args([
        "-nodefaults",
        "-no-reboot",
        "-display",
        "none",
        "-serial",
        "stdio",
    ])
    .args(["-m", "2048", "-smp", "2", "-M", "q35"])
    .args(if kvm {
        ["-accel", "kvm", "-cpu", "host"]
    } else {
        [
            "-accel",
            "tcg,thread=multi,tb-size=256",
            "-cpu",
            "max,la57=off",
        ]
    })
    .arg("-kernel")
    .arg(&kernel.image)
    .arg("-initrd")
    .arg(initrd)
    .args([
        "-append",
        "console=ttyS0 panic=-1 oops=panic quiet loglevel=3 mitigations=off \
                           random.trust_cpu=on tsc=reliable no_timer_check net.ifnames=0",
    ])
    .args([
        "-fsdev",
        "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap",
    ])
    .args(["-device", "virtio-9p-pci,fsdev=root,mount_tag=root"])
    .args(["-device", "virtio-rng-pci"])
    .stdin(Stdio::null())
    .stdout(Stdio::piped());
    let mut child = qemu.spawn().context("cannot start qemu")?;
    let output = child
        .stdout
        .take()
        .ok_or_else(|| anyhow!("qemu has no output"))?;
    let result = follow(&kernel.release, &lines(output));
    end(&mut child);
    result
}

/// Reads the guest's console on a thread of its own.
fn lines(output: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut reader = BufReader::new(output);
        let mut line = Vec::new();
        while reader
            .read_until(b'\n', &mut line)
            .is_ok_and(|read| read > 0)
        {
            if sender
                .send(String::from_utf8_lossy(&line).trim_end().to_owned())
                .is_err()
            {
                return;
            }
            line.clear();
        }
    });
    receiver
}

/// Shows the output of the guest called `name` until it reports the command's exit code.
fn follow(name: &str, lines: &Receiver<String>) -> Result<i32> {
    let end = Instant::now() + LIMIT;
    loop {
        match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => match line.split_once(EXIT) {
                Some((_, code)) => return code.trim().parse().context("the guest's exit code"),
                None => println!("{name} | {line}"),
            },
            Err(RecvTimeoutError::Timeout) => bail!("no end after {} s", LIMIT.as_secs()),
            Err(RecvTimeoutError::Disconnected) => {
                bail!("the guest ended without an exit code: it crashed or did not boot")
            }
        }
    }
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::{follow, script};
    use std::sync::mpsc::channel;

    #[test]
    fn a_command_s_words_survive_the_shell() {
        let text = script(&["a b".into(), "it's".into()]);
        assert!(text.ends_with("exec 'a b' 'it'\\''s'\n"), "{text}");
    }

    #[test]
    fn the_exit_code_is_the_guest_s_and_a_guest_without_one_has_failed() {
        let (sender, receiver) = channel();
        sender.send("hello".to_owned()).unwrap();
        sender.send("[  1.0] xtask-vm-exit:3".to_owned()).unwrap();
        assert_eq!(follow("guest", &receiver).unwrap(), 3);
        drop(sender);
        assert!(follow("guest", &receiver).is_err());
    }
}

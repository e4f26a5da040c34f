//! Kernels and qemu from the Debian mirror this machine uses, by package name, unpacked below
//! `target/vm`: nothing is installed, and the machine's own package lists stay as they are.

use crate::step::{self, say};
use anyhow::{Context, Result, anyhow, bail};
use lb_lab::janitor::names_in;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The suites that carry the kernels we know (5.10, 6.1, 6.12, 6.18).
const SUITES: [&str; 4] = ["bullseye", "bookworm", "trixie", "trixie-backports"];
const SECURITY: [&str; 3] = ["bullseye-security", "bookworm-security", "trixie-security"];

/// The emulator and what kernels are fetched with.
pub(super) struct Machine {
    dir: PathBuf,
    qemu: PathBuf,
    /// Where an unpacked qemu has its libraries and firmware; an installed one knows.
    prefix: Option<PathBuf>,
    /// A static busybox.
    pub(super) busybox: PathBuf,
}

/// An unpacked kernel.
pub(super) struct Kernel {
    /// Its release, as `uname -r` says it.
    pub(super) release: String,
    /// The compressed image.
    pub(super) image: PathBuf,
    /// The directory of its modules.
    pub(super) modules: PathBuf,
}

impl Machine {
    /// Finds or fetches the emulator.
    pub(super) fn fetch(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let prefix = dir.join("qemu");
        let busybox = prefix.join("bin/busybox");
        let installed = Path::new("/usr/bin/qemu-system-x86_64");
        let unpacked = prefix.join("usr/bin/qemu-system-x86_64");
        let mut wanted = Vec::new();
        if !installed.is_file() && !unpacked.is_file() {
            wanted.push("qemu-system-x86");
        }
        if !busybox.is_file() {
            wanted.push("busybox-static");
        }
        if !wanted.is_empty() {
            say(&format!(
                "fetching into {}: {} (boots the other kernels)",
                prefix.display(),
                wanted.join(", ")
            ));
            unpack_with_dependencies(&wanted, &dir.join("packages"), &prefix)?;
        }
        let (qemu, prefix) = if installed.is_file() {
            (installed.to_owned(), None)
        } else {
            (unpacked, Some(prefix))
        };
        Ok(Self {
            dir: dir.to_owned(),
            qemu,
            prefix,
            busybox,
        })
    }

    /// Finds or fetches the newest Debian build of a kernel series.
    pub(super) fn kernel(&self, series: &str) -> Result<Kernel> {
        let kernels = self.dir.join("kernels");
        let here = names_in(&kernels)
            .into_iter()
            .filter(|name| is_of(name, series));
        if let Some(release) = here.max_by_key(|name| numbers(name))
            && let Ok(kernel) = unpacked_kernel(&kernels, &release)
        {
            return Ok(kernel);
        }
        let apt = PrivateApt::new(&self.dir.join("apt"))?;
        let release = apt.newest_kernel(series)?;
        say(&format!(
            "fetching into {}: linux-image-{release}",
            kernels.display()
        ));
        let packages = self.dir.join("packages").join(&release);
        apt.download(&format!("linux-image-{release}"), &packages)?;
        unpack_all(&packages, &kernels.join(&release))?;
        unpacked_kernel(&kernels, &release)
    }

    /// The emulator's command.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.qemu);
        if let Some(prefix) = &self.prefix {
            let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
            let libraries = libraries.map(|dir| prefix.join(dir));
            command.env("QEMU_MODULE_DIR", libraries[0].join("qemu"));
            if let Ok(path) = std::env::join_paths(libraries) {
                command.env("LD_LIBRARY_PATH", path);
            }
            for dir in ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] {
                command.arg("-L").arg(prefix.join(dir));
            }
        }
        command
    }

    /// A directory for what belongs to one run.
    pub(super) fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }
}

fn unpacked_kernel(kernels: &Path, release: &str) -> Result<Kernel> {
    let root = kernels.join(release);
    let image = root.join(format!("boot/vmlinuz-{release}"));
    let modules = ["lib/modules", "usr/lib/modules"]
        .into_iter()
        .map(|dir| root.join(dir).join(release).join("kernel"))
        .find(|dir| dir.is_dir());
    match modules {
        Some(modules) if image.is_file() => Ok(Kernel {
            release: release.to_owned(),
            image,
            modules,
        }),
        _ => bail!("{} holds no whole kernel: remove it", root.display()),
    }
}

/// A view of the mirror with suites of its own.
struct PrivateApt(PathBuf);

impl PrivateApt {
    fn new(dir: &Path) -> Result<Self> {
        for sub in ["lists/partial", "cache/archives/partial"] {
            let path = dir.join(sub);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        let sources = machine_sources();
        let mirrors = Mirrors::find(&sources)
            .ok_or_else(|| anyhow!("no Debian mirror in this machine's apt sources"))?;
        let apt = Self(dir.to_owned());
        let list = dir.join("sources.list");
        let text = mirrors.list();
        if fs::read_to_string(&list).ok().as_deref() != Some(&text) {
            fs::write(&list, text).with_context(|| format!("cannot write {}", list.display()))?;
        }
        // A suite that a mirror lacks must not take the others with it.
        if let Err(error) = step::run(apt.command("apt-get").args(["-q", "update"])) {
            say(&format!("warning: {error:#}"));
        }
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let option = |name: &str, path: &str| format!("{name}={}", self.0.join(path).display());
        command
            .args(["-o", &option("Dir::Etc::sourcelist", "sources.list")])
            .args(["-o", "Dir::Etc::sourceparts=/dev/null"])
            .args(["-o", &option("Dir::State::Lists", "lists")])
            .args(["-o", &option("Dir::Cache", "cache")])
            .args([
                "-o",
                "APT::Sandbox::User=root",
                "-o",
                "Acquire::Languages=none",
            ]);
        command
    }

    fn newest_kernel(&self, series: &str) -> Result<String> {
        let pattern = format!("^linux-image-{}[.][0-9]", series.replace('.', "[.]"));
        let out = lb_lab::command::output(self.command("apt-cache").args([
            "search",
            "--names-only",
            &pattern,
        ]))?;
        newest(&out, series).ok_or_else(|| anyhow!("no Debian kernel {series} on the mirror"))
    }

    fn download(&self, package: &str, into: &Path) -> Result<()> {
        fs::create_dir_all(into).with_context(|| format!("cannot make {}", into.display()))?;
        let mut apt = self.command("apt-get");
        step::run(apt.args(["-q", "download", package]).current_dir(into))
    }
}

/// The newest plain kernel image among the packages that `apt-cache search` lists: its release.
fn newest(search: &str, series: &str) -> Option<String> {
    search
        .lines()
        .filter_map(|line| line.split_whitespace().next()?.strip_prefix("linux-image-"))
        .filter(|release| is_of(release, series) && release.ends_with("-amd64"))
        // -cloud- has no 9p, -rt- and debug builds are not what clusters run.
        .filter(|release| {
            !["cloud", "rt-", "dbg", "unsigned"]
                .iter()
                .any(|word| release.contains(word))
        })
        .max_by_key(|release| numbers(release))
        .map(str::to_owned)
}

fn is_of(release: &str, series: &str) -> bool {
    release
        .strip_prefix(series)
        .is_some_and(|rest| rest.starts_with('.'))
}

fn numbers(text: &str) -> Vec<u32> {
    text.split(|c: char| !c.is_ascii_digit())
        .filter_map(|part| part.parse().ok())
        .collect()
}

/// The mirrors of an apt configuration.
#[derive(Debug, Eq, PartialEq)]
struct Mirrors {
    main: String,
    security: String,
}

impl Mirrors {
    fn find(sources: &str) -> Option<Self> {
        let words = || {
            sources
                .split_whitespace()
                .filter(|word| word.starts_with("http://") || word.starts_with("https://"))
                .map(|word| word.trim_end_matches('/'))
        };
        let main = words().find(|word| word.ends_with("/debian"))?.to_owned();
        let security = words().find(|word| word.ends_with("/debian-security"));
        let security = security.map_or_else(|| format!("{main}-security"), str::to_owned);
        Some(Self { main, security })
    }

    fn list(&self) -> String {
        const KEY: &str = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]";
        let line = |mirror: &str, suite: &str| format!("deb {KEY} {mirror} {suite} main\n");
        let main = SUITES.iter().map(|suite| line(&self.main, suite));
        main.chain(SECURITY.iter().map(|suite| line(&self.security, suite)))
            .collect()
    }
}

fn machine_sources() -> String {
    let mut text = fs::read_to_string("/etc/apt/sources.list").unwrap_or_default();
    let parts = Path::new("/etc/apt/sources.list.d");
    for name in names_in(parts) {
        text.push('\n');
        text.push_str(&fs::read_to_string(parts.join(name)).unwrap_or_default());
    }
    text
}

/// Downloads `packages` of this machine's own release, with the dependencies that are not
/// installed, and unpacks them: their libraries must fit those that are.
fn unpack_with_dependencies(packages: &[&str], into: &Path, prefix: &Path) -> Result<()> {
    step::run(Command::new("apt-get").args(["-q", "update"]))?;
    fs::create_dir_all(into).with_context(|| format!("cannot make {}", into.display()))?;
    let plan = lb_lab::command::output(
        Command::new("apt-get")
            .args(["-s", "-o", "Dir::State::status=/dev/null"])
            .args(["install", "--no-install-recommends"])
            .args(packages),
    )?;
    let installed =
        lb_lab::command::output(Command::new("dpkg-query").args(["-W", "-f", "${Package}\n"]))?;
    let missing: Vec<&str> = plan
        .lines()
        .filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next())
        .filter(|name| packages.contains(name) || !installed.lines().any(|have| have == *name))
        .collect();
    let mut apt = Command::new("apt-get");
    step::run(
        apt.args(["-q", "-o", "APT::Sandbox::User=root", "download"])
            .args(&missing)
            .current_dir(into),
    )?;
    unpack_all(into, prefix)
}

/// Unpacks every package in `from` below `to`; the packages are not kept.
fn unpack_all(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    for name in names_in(from)
        .into_iter()
        .filter(|name| Path::new(name).extension().is_some_and(|end| end == "deb"))
    {
        let package = from.join(name);
        step::run(Command::new("dpkg-deb").arg("-x").arg(&package).arg(to))?;
        fs::remove_file(&package).context("cannot remove an unpacked package")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Mirrors, newest};

    #[test]
    fn the_newest_plain_kernel_of_a_series_is_chosen() {
        let search = "linux-image-6.1.0-9-amd64 - Linux 6.1\n\
                      linux-image-6.1.0-56-amd64 - Linux 6.1\n\
                      linux-image-6.1.0-57-cloud-amd64 - cloud\n\
                      linux-image-6.1.0-57-rt-amd64 - rt\n\
                      linux-image-6.12.1+deb13-amd64 - other series\n\
                      linux-image-6.1.0-58-amd64-dbg - symbols\n";
        assert_eq!(newest(search, "6.1").as_deref(), Some("6.1.0-56-amd64"));
        assert_eq!(
            newest(search, "6.12").as_deref(),
            Some("6.12.1+deb13-amd64")
        );
        assert_eq!(newest(search, "5.10"), None);
    }

    #[test]
    fn the_mirrors_are_those_of_the_machine_in_both_formats_of_apt() {
        let list = "deb http://m.example/debian bookworm main\n\
                    deb http://m.example/debian-security/ bookworm-security main\n";
        let found = Mirrors::find(list).unwrap();
        assert_eq!(found.security, "http://m.example/debian-security");
        let found = Mirrors::find("Types: deb\nURIs: https://m.example/debian/\n").unwrap();
        assert_eq!(found.main, "https://m.example/debian");
        assert_eq!(found.security, "https://m.example/debian-security");
        assert_eq!(
            Mirrors::find("deb http://m.example/ubuntu noble main"),
            None
        );
    }
}

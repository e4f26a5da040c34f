//! A Go that builds the Go modules of the tests: one that is installed, else the module
//! `golang.org/toolchain` of the module proxy, which is how Go fetches its own releases.

use crate::setup::{self, have};
use crate::step::{run, say};
use crate::toolchain::stdout;
use crate::workspace;
use anyhow::{Context, Result, bail};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the modules ask for.
const LOWEST: (u32, u32) = (1, 26);
/// What is fetched, and the sum of its archive.
const RELEASE: &str = "1.26.8";
const SUM: &str = "30c2b1bf7dcc88d3eb0a1364e47ddd9128edb3110a30e8a0ef61cd5856b31de7";
/// Where Go's own archives are unpacked by custom.
const CUSTOMARY: &str = "/usr/local/go/bin/go";

/// The path of a `go` that is new enough.
pub(crate) fn find() -> Result<PathBuf> {
    let installed = ["go", CUSTOMARY].map(PathBuf::from);
    if let Some(go) = installed.into_iter().find(|go| is_new_enough(go)) {
        return Ok(go);
    }
    fetch()
}

fn is_new_enough(go: &Path) -> bool {
    // What a module around us asks for is no matter here.
    let version = stdout(go, &["env", "GOVERSION"]);
    version
        .as_deref()
        .and_then(parse)
        .is_some_and(|version| version >= LOWEST)
}

/// The numbers of `go1.26.8`.
fn parse(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.trim().strip_prefix("go")?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn fetch() -> Result<PathBuf> {
    if !cfg!(target_arch = "x86_64") {
        bail!(
            "install Go {}.{} or newer: only that for x86_64 is fetched",
            LOWEST.0,
            LOWEST.1
        );
    }
    let cache = workspace::cache()?;
    let name = format!("golang.org/toolchain@v0.0.1-go{RELEASE}.linux-amd64");
    let root = cache.join(&name);
    let go = root.join("bin/go");
    if is_new_enough(&go) {
        return Ok(go);
    }
    if !have("unzip") {
        setup::unzip()?;
    }
    let proxy = std::env::var("GOPROXY").unwrap_or_default();
    let url = format!("{}/{}.zip", proxy_of(&proxy), name.replace('@', "/@v/"));
    say(&format!(
        "fetching {url} (Go, which builds programs of the tests)"
    ));
    fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let archive = cache.join(format!("go-{}.zip", std::process::id()));
    let unpacked = unpack(&url, &archive, &cache);
    // It is read; whether it goes is no matter.
    let _ = fs::remove_file(&archive);
    unpacked?;
    // The archive of a module keeps no modes.
    for dir in ["bin", "pkg/tool/linux_amd64"] {
        for entry in fs::read_dir(root.join(dir))
            .context("the archive has no tools")?
            .flatten()
        {
            fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o755))
                .with_context(|| format!("cannot make {} executable", entry.path().display()))?;
        }
    }
    if is_new_enough(&go) {
        return Ok(go);
    }
    bail!("{} was unpacked and does not run", go.display())
}

fn unpack(url: &str, archive: &Path, cache: &Path) -> Result<()> {
    let mut curl = Command::new("curl");
    let options = [
        "--fail",
        "--silent",
        "--show-error",
        "--location",
        "--retry",
        "3",
    ];
    run(curl.args(options).arg("--output").arg(archive).arg(url))?;
    let sum = stdout("sha256sum", &[&archive.to_string_lossy()]).unwrap_or_default();
    if sum.split(' ').next() != Some(SUM) {
        bail!("{url} is not what it was: its SHA-256 is {sum}");
    }
    let mut unzip = Command::new("unzip");
    run(unzip.args(["-q", "-o"]).arg(archive).arg("-d").arg(cache))
}

/// The first proxy of a list as Go reads it.
fn proxy_of(list: &str) -> &str {
    let first = list
        .split([',', '|'])
        .find(|entry| entry.starts_with("http"));
    first
        .unwrap_or("https://proxy.golang.org")
        .trim_end_matches('/')
}

#[cfg(test)]
mod tests {
    use super::{parse, proxy_of};

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert_eq!(parse("go1.26.8\n"), Some((1, 26)));
        assert_eq!(parse("go1.27rc1"), None);
        assert!(parse("go1.9.1") < Some(super::LOWEST));
    }

    #[test]
    fn the_proxy_is_the_first_that_is_one() {
        assert_eq!(proxy_of(""), "https://proxy.golang.org");
        assert_eq!(proxy_of("off"), "https://proxy.golang.org");
        assert_eq!(
            proxy_of("https://mirror.test/,direct"),
            "https://mirror.test"
        );
    }
}

//! A name server and programs that resolve names, as processes in places of the lab.
//!
//! What may not live here: who is behind which address. A resolver asks the name server it is given.

use crate::daemon::Daemon;
use crate::{Namespace, Place};
use anyhow::{Context, Result, anyhow, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Names the directory with the programs; `cargo xtask test` sets it.
pub const VARIABLE: &str = "LB_DNS";
/// The program of the Go module `tests/coredns`, by the names it is called by.
pub const PROGRAMS: [&str; 2] = ["coredns", "resolve-go"];
/// The resolver of the musl C library.
pub const MUSL: &str = "resolve-musl";
/// Where name servers answer.
pub const PORT: u16 = 53;
/// How long a name server may take to start on a loaded machine: only a failing test waits so long.
const START: Duration = Duration::from_secs(120);
/// Addresses of the name that does not fit into a datagram, whatever size a resolver allows (Go:
/// 1232 bytes).
const LARGE: u8 = 100;

/// The path of one of the programs.
pub fn program(name: &str) -> Result<PathBuf> {
    let dir = std::env::var_os(VARIABLE).ok_or_else(|| {
        anyhow!(
            "{VARIABLE} does not name CoreDNS and the resolvers: run `cargo xtask test`, or `cargo \
             xtask build --dns` and set it to the directory that is printed"
        )
    })?;
    Ok(Path::new(&dir).join(name))
}

/// A running `CoreDNS`; it is killed when this is dropped.
#[derive(Debug)]
pub struct NameServer(Daemon);

impl NameServer {
    /// Starts number `number` in `place` on all addresses, with its files in `dir`, and returns once
    /// it answers. Its answers for `small.lab.test` say its number: 192.0.2.N and 2001:db8::N
    /// (hexadecimal).
    pub fn start(place: &Place, dir: &Path, number: u8) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let zone = dir.join("zone");
        fs::write(&zone, records(number)).context("cannot write the zone")?;
        let configuration = dir.join("Corefile");
        let text = format!(
            ".:{PORT} {{\n  errors\n  file {} lab.test\n}}\n",
            zone.display()
        );
        fs::write(&configuration, text).context("cannot write the Corefile")?;
        let mut command = place.command(program("coredns")?)?;
        command.current_dir(dir).arg("-conf").arg(&configuration);
        let mut server = Self(Daemon::start("coredns", command, dir)?);
        server.await_answers(place.namespace())?;
        Ok(server)
    }

    fn await_answers(&mut self, namespace: &Namespace) -> Result<()> {
        let end = Instant::now() + START;
        loop {
            self.0.check()?;
            let Err(error) = namespace.enter(answers)? else {
                return Ok(());
            };
            if Instant::now() > end {
                bail!(
                    "CoreDNS does not answer after {START:?}: {error:#}\n{}",
                    self.0.tail()
                );
            }
            // It tells nobody when it listens.
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Stops it where it is: its sockets stay open, and nobody answers.
    pub fn freeze(&self) -> Result<()> {
        let pid = i32::try_from(self.0.id()).context("process id")?;
        kill(Pid::from_raw(pid), Signal::SIGSTOP).context("cannot stop CoreDNS")
    }
}

/// A question over UDP, and a connection.
fn answers() -> Result<()> {
    let server = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    socket.connect(server)?;
    // The name server's own status: id, recursion off, one question for the root, SOA, IN.
    socket.send(&[0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 6, 0, 1])?;
    socket.recv(&mut [0; 512])?;
    TcpStream::connect(server)?;
    Ok(())
}

fn records(number: u8) -> String {
    let mut zone = format!(
        "$ORIGIN lab.test.\n$TTL 0\n@ IN SOA ns admin 1 60 60 60 60\n@ IN NS ns\n\
         ns IN A 192.0.2.{number}\nsmall IN A 192.0.2.{number}\nsmall IN AAAA 2001:db8::{number:x}\n"
    );
    for host in 1..=LARGE {
        let _ = writeln!(zone, "large IN A 198.51.100.{host}");
    }
    zone
}

/// A program that resolves names again and again.
#[derive(Debug)]
pub struct Resolver {
    daemon: Daemon,
    dir: PathBuf,
}

impl Resolver {
    /// Starts `program` in `place`, with its files in `dir`, to ask `server` once in `every`.
    /// `options` are those of its resolv.conf.
    pub fn start(
        place: &Place,
        program: &Path,
        dir: &Path,
        server: IpAddr,
        options: &str,
        every: Duration,
    ) -> Result<Self> {
        let configuration = dir.join("etc");
        fs::create_dir_all(&configuration)
            .with_context(|| format!("cannot make {}", configuration.display()))?;
        let write = |name: &str, text: &str| {
            fs::write(configuration.join(name), text)
                .with_context(|| format!("cannot write {name}"))
        };
        write(
            "resolv.conf",
            &format!("nameserver {server}\nsearch .\noptions {options}\n"),
        )?;
        write("nsswitch.conf", "hosts: dns\n")?;
        write("hosts", "")?;
        let mut command = place.command(program)?;
        command
            .arg(every.as_millis().to_string())
            .arg(dir.join("stop"))
            .arg(dir.join("count"))
            // They would change what is asked.
            .env_remove("RES_OPTIONS")
            .env_remove("LOCALDOMAIN")
            .env_remove("GODEBUG");
        // Libraries read fixed paths: this process gets an /etc of its own.
        let none = None::<&str>;
        let own_etc = move || {
            unshare(CloneFlags::CLONE_NEWNS)?;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(none, "/", none, private, none)?;
            mount(Some(&configuration), "/etc", none, MsFlags::MS_BIND, none)?;
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes three system calls with paths that were
        // made before; nix copies paths of their length to its stack.
        unsafe { command.pre_exec(own_etc) };
        let dir = dir.to_owned();
        let daemon = Daemon::start("resolver", command, &dir)?;
        Ok(Self { daemon, dir })
    }

    /// How many lookups it has made; fails if it ended.
    pub fn count(&mut self) -> Result<u64> {
        self.daemon.check()?;
        let text = fs::read_to_string(self.dir.join("count")).unwrap_or_default();
        Ok(text.trim().parse().unwrap_or_default())
    }

    /// Ends it after the lookup under way.
    pub fn finish(mut self) -> Result<Lookups> {
        fs::write(self.dir.join("stop"), "").context("cannot stop a resolver")?;
        let status = self.daemon.wait()?;
        let log = self.daemon.log();
        if !status.success() {
            bail!("the resolver ended with {status}: {log}");
        }
        let lines = |word: &str| {
            let lines = log.lines().filter_map(|line| line.strip_prefix(word));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        let text = fs::read_to_string(self.dir.join("count")).unwrap_or_default();
        Ok(Lookups {
            made: text.trim().parse().unwrap_or_default(),
            failed: lines("failed ")
                .iter()
                .filter_map(|line| failure(line))
                .collect(),
            seen: lines("seen ")
                .iter()
                .filter_map(|text| text.parse().ok())
                .collect(),
        })
    }
}

/// `7 small.lab.test: …`
fn failure(line: &str) -> Option<(u64, String)> {
    let (number, message) = line.split_once(' ')?;
    Some((number.parse().ok()?, message.to_owned()))
}

/// What became of a resolver's lookups.
#[derive(Debug)]
pub struct Lookups {
    /// How many there were.
    pub made: u64,
    /// Which of them failed, counted from 0, and why.
    pub failed: Vec<(u64, String)>,
    /// Addresses of `small.lab.test`: whose answers they were.
    pub seen: Vec<IpAddr>,
}

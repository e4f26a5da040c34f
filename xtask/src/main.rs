//! The workbench: everything a person types to set up, build, run, test and measure the project.
//! Knows the tools of the trade (cargo, apt, ip); never the load balancer's own rules.

mod build;
mod control_plane;
mod demo;
mod dns;
mod elf;
mod go;
mod go_module;
mod mutants;
mod run;
mod second_try;
mod served;
mod setup;
mod step;
mod test;
mod toolchain;
mod vm;
mod workspace;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// Everything a person types to work on the project.
#[derive(Debug, Subcommand)]
enum Command {
    /// Sets up, builds and runs: a demo, or against a cluster or a directory of manifests.
    Run(RunArgs),
    /// Builds the eBPF objects and target/release/lb-agent.
    Build {
        /// Only the eBPF objects.
        #[arg(long)]
        ebpf: bool,
        /// Only the control plane of the tests; prints its directory.
        #[arg(long, conflicts_with = "ebpf")]
        control_plane: bool,
        /// Only CoreDNS and the resolvers of the tests; prints their directory.
        #[arg(long, conflicts_with_all = ["ebpf", "control_plane"])]
        dns: bool,
    },
    /// Everything that proves the project, from a clean checkout.
    Test(TestArgs),
    /// Runs case files on the core and the model on this host.
    Cases {
        /// Replay their flows on this machine's kernel instead: real sockets in namespaces, a real
        /// agent. Needs root.
        #[arg(long)]
        kernel: bool,
        /// With --kernel: only cases whose id has this in it.
        #[arg(long, value_name = "WORD", requires = "kernel")]
        only: Option<String>,
        /// Case files of the schema of shared/cases/kube-proxy.json.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Removes conditions of the core, one at a time, and tells which tests notice. Takes an hour.
    Mutants {
        /// Only mutants whose name or file has this in it.
        #[arg(long, value_name = "WORD")]
        only: Option<String>,
    },
    /// Measures the packet path and connections; writes JSON and docs/performance.md.
    Bench {
        /// Passed to the benchmark.
        #[arg(last = true)]
        arguments: Vec<OsString>,
    },
    /// Runs the smoke test, or a command, on other kernels in virtual machines.
    Vm(VmArgs),
}

/// Options of `run`.
#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    /// Serve the cluster of this kubeconfig instead of the demo.
    #[arg(long, value_name = "FILE", conflicts_with = "manifests")]
    kubeconfig: Option<PathBuf>,
    /// Serve the manifests of this directory instead of the demo.
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// Show the demo on a real control plane (etcd, API server, controllers) of its own.
    #[arg(long, conflicts_with_all = ["kubeconfig", "manifests"])]
    control_plane: bool,
    /// This node's name [default: the host name].
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Further flags for `lb-agent run`, after `--`.
    #[arg(last = true)]
    agent: Vec<OsString>,
}

/// Options of `test`.
#[derive(Args, Debug)]
pub(crate) struct TestArgs {
    /// Only what needs neither root nor an eBPF toolchain.
    #[arg(long, conflicts_with = "slow")]
    host: bool,
    /// Those that take as long as what they are about, too: ten minutes more.
    #[arg(long)]
    slow: bool,
}

/// Options of `vm`.
#[derive(Args, Debug)]
pub(crate) struct VmArgs {
    /// Kernel series, e.g. 5.10,6.12.
    #[arg(
        short,
        long,
        value_delimiter = ',',
        default_value = "5.10,6.1,6.12,6.18"
    )]
    kernels: Vec<String>,
    /// The command to run as root in each; without one, the smoke test.
    #[arg(last = true)]
    command: Vec<OsString>,
}

/// The kernels that must work: the lowest, and those of today's distributions.
pub(crate) fn default_kernels() -> Vec<String> {
    ["5.10", "6.1", "6.12", "6.18"].map(str::to_owned).to_vec()
}

fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode> {
    match command {
        Command::Run(args) => run::run(&args),
        Command::Build {
            ebpf,
            control_plane,
            dns,
        } => {
            if control_plane {
                println!("{}", control_plane::MODULE.programs()?.display());
            } else if dns {
                println!("{}", dns::programs()?.display());
            } else if ebpf {
                build::objects()?;
            } else {
                build::everything()?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Test(args) => test::run(&args),
        Command::Cases {
            kernel,
            only,
            files,
        } => {
            if kernel {
                test::replay(&files, only.as_deref())
            } else {
                test::cases(&files)
            }
        }
        Command::Mutants { only } => mutants::run(only.as_deref()),
        Command::Bench { arguments } => build::bench(&arguments),
        Command::Vm(args) => vm::run(&args),
    }
}

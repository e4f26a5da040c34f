//! The agent's binary: parses, wires, ends with an exit code. 0: done or told to stop; 1: a
//! sentence says what went wrong; 2: the command line or configuration cannot be used.

use anyhow::Context;
use clap::Parser;
use lb_agent::check::{findings, look};
use lb_agent::cli::args::{
    self, CheckArgs, Cli, Command, DirectoryArgs, ReferencePage, RunArgs, ServicesArgs,
};
use lb_agent::cli::presence::{self, Presence};
use lb_agent::cli::{check, privileges, reference, run, services, status};
use lb_agent::config::Settings;
use lb_agent::config::kube_proxy::field;
use lb_agent::datapath::{self, DEFAULT_DIRECTORY, Reader, memory};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

/// The command line or the configuration cannot be used.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let arguments = args::as_called(std::env::args_os().collect());
    let result = match Cli::parse_from(arguments).command {
        Command::Run(args) => return start(*args),
        Command::KubeProxy(mut args) => {
            args.as_kube_proxy = true;
            return start(*args);
        }
        Command::Services(args) => list(&args),
        Command::Status(args) => show(&args),
        Command::Check(args) => return examine(&args),
        Command::Cleanup(args) => clean(&args),
        Command::Reference { page } => print(&match page {
            ReferencePage::Cli => reference::markdown(),
            ReferencePage::Configuration => lb_agent::config::kube_proxy::reference::markdown(),
            ReferencePage::Metrics => lb_agent::serve::reference::markdown(),
        }),
    };
    exit_code(result)
}

fn exit_code(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn start(args: RunArgs) -> ExitCode {
    if args.kube_proxy.is_on(&field::CLEANUP) {
        let bpffs = args.bpffs.unwrap_or_else(|| DEFAULT_DIRECTORY.into());
        return exit_code(clean(&DirectoryArgs { bpffs }));
    }
    let typed = args.clone();
    let settings = match Settings::load(args) {
        Ok(settings) => settings,
        Err(invalid) => {
            invalid.0.iter().for_each(|sentence| complain(sentence));
            return ExitCode::from(USAGE);
        }
    };
    if let Some(file) = &settings.kube_proxy.write_config {
        return exit_code(write_config(&settings, file));
    }
    let verbosity = settings.kube_proxy.verbosity;
    let started = run::start_log(settings.log_format, verbosity);
    if settings.kube_proxy.init_only {
        return exit_code(started.map(|()| run::prepare_machine(&settings)));
    }
    let entering = match settings.close_pod_sockets {
        Some(_) => privileges::check_entering(),
        None => Ok(()),
    };
    if let Err(sentence) = privileges::check().and(entering) {
        complain(&sentence);
        return ExitCode::FAILURE;
    }
    memory::settle();
    exit_code(started.and_then(|()| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            // The work is one loop, a source and a scrape now and then.
            .worker_threads(2)
            .enable_all()
            .build()?;
        let result = runtime.block_on(run::run(settings, typed));
        // A blocking read of a table may still be under way: nobody waits for it.
        runtime.shutdown_background();
        result
    }))
}

/// JSON is YAML, too.
fn write_config(settings: &Settings, file: &Path) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(&settings.effective())?;
    std::fs::write(file, text + "\n")
        .with_context(|| format!("cannot write the configuration to {}", file.display()))
}

fn list(args: &ServicesArgs) -> anyhow::Result<()> {
    privileges::check().map_err(anyhow::Error::msg)?;
    let views = Reader::open(&args.directory.bpffs)?.services()?;
    print(&services::render(&views, args.output))
}

/// Without privileges there is less to see, which is said, too.
fn examine(args: &CheckArgs) -> ExitCode {
    let range = args.service_node_port_range;
    let wanted = look::Wanted {
        bpffs: &args.directory.bpffs,
        cgroup_root: args.cgroup_root.as_deref(),
        node_ports: (range.first, range.last),
    };
    let found = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")
        .and_then(|runtime| {
            let machine = runtime.block_on(look::look(&wanted));
            Ok(findings::findings(&machine.context("cannot ask netlink")?))
        });
    let printed = found.and_then(|found| {
        print(&check::render(&found, args.output)?)?;
        Ok(check::has_problem(&found))
    });
    match printed {
        Ok(true) => ExitCode::FAILURE,
        other => exit_code(other.map(drop)),
    }
}

fn show(args: &DirectoryArgs) -> anyhow::Result<()> {
    privileges::check().map_err(anyhow::Error::msg)?;
    let view = Reader::open(&args.bpffs)?.status()?;
    let agent = Presence::read(&presence::file_of(&args.bpffs));
    print(&status::render(
        &args.bpffs,
        &view,
        agent.as_ref(),
        &status::devices(),
    ))
}

fn clean(args: &DirectoryArgs) -> anyhow::Result<()> {
    privileges::check().map_err(anyhow::Error::msg)?;
    let removed = datapath::cleanup(&args.bpffs)?;
    presence::forget(&args.bpffs);
    if removed.is_empty() {
        return print("Nothing to remove.\n");
    }
    print(&(removed.join("\n") + "\n"))
}

/// A reader that has heard enough (`| head`) is no error.
fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

/// To standard error, where nothing can be done about a failure.
fn complain(sentence: &str) {
    let _ = writeln!(std::io::stderr(), "lb-agent: {sentence}");
}

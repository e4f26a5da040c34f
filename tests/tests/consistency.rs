//! Consistency: while services are switched, deleted and made again under other names, over the
//! same ids and the same windows, every new connection meets a set that was valid for what it
//! asked at some moment between its beginning and its end. Never a mixture.
//!
//! The writer is the agent's own: its planner, its writes, its grace periods. The readers run the
//! loaded tc program on the SYN of a client that has never been seen before. Every set is used once
//! and says in its addresses whose it is and when it was valid, so one answer is enough to convict.

use anyhow::{Context, Result, anyhow, ensure};
use lb_agent::datapath::{Capacity, Datapath, Options, TcAttach};
use lb_agent::model::Options as ModelOptions;
use lb_agent::model::desired::{
    DesiredEndpoint, DesiredFrontend, DesiredService, Family, FrontendAddress, ObjectName,
    ServicePortName,
};
use lb_agent::model::node::NodeFacts;
use lb_agent::net::{Device, Facts};
use lb_agent::plan::{Fence, Op, Plan, Planner};
use lb_common::addr::Protocol;
use lb_common::table::{AddressBits, EmptyAction, FrontendKind, LAYOUT_VERSION};
use lb_lab::topology::UPLINK;
use lb_lab::{Lab, PodNetwork};
use lb_tests::pinned::Program;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use std::array::from_fn;
use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::Instant;

/// Switches, deletions and re-creations of a run.
const CHANGES: u64 = 1_000_000;
/// Frontends that are asked.
const FRONTENDS: usize = 8;
/// How often a frontend is removed and another one takes its place in the table.
const RECYCLINGS: u64 = 1_000_000;
/// Small tables: everything that is given back is soon somebody else's.
const CAPACITY: Capacity = Capacity {
    services: 1 << 10,
    backends: 1 << 14,
    slots: 1 << 12,
    frontends: 64,
    flows: 1 << 16,
    affinity: 1 << 10,
};
/// What one change may take at most; without it the writer waits for a grace period.
const ROOM: u32 = 64;
const SERVICE_PORT: u16 = 80;
const FIRST_TARGET_PORT: u16 = 8000;

/// What becomes of a frontend in its epoch number `epoch`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    /// A service is made.
    Made,
    /// Its set is replaced.
    Switched,
    /// The service is deleted and another one takes its frontend over, in one plan.
    TakenOver,
    /// The service is deleted.
    Absent,
}

impl Phase {
    fn of(epoch: u64) -> Self {
        // Epoch 0 is the time before anything was written.
        match epoch % 5 {
            0 => Self::Absent,
            1 => Self::Made,
            3 => Self::TakenOver,
            _ => Self::Switched,
        }
    }
}

/// The name that serves a frontend in an epoch: another one with each life.
fn service_name(frontend: usize, epoch: u64) -> ServicePortName {
    let life = epoch / 5 * 2 + u64::from(epoch % 5 >= 3);
    ServicePortName {
        service: ObjectName {
            namespace: format!("life{}", life % 3).into(),
            name: format!("service{frontend}").into(),
        },
        port: String::new(),
        protocol: Protocol::TCP,
        family: Family::V4,
    }
}

fn size_of_set(epoch: u64) -> u16 {
    1 + u16::try_from(epoch % 3).unwrap_or(0)
}

/// The address of every endpoint of an epoch: 10.0.0.0/8 with frontend and epoch inside.
fn set_address(frontend: usize, epoch: u64) -> Ipv4Addr {
    let inside = (frontend as u64) << 20 | (epoch & 0x000f_ffff);
    let inside = u32::try_from(inside).unwrap_or(u32::MAX);
    Ipv4Addr::from_bits(10 << 24 | inside)
}

/// True if `end` is an endpoint of this epoch.
fn is_in_set(end: (Ipv4Addr, u16), frontend: usize, epoch: u64) -> bool {
    let ports = FIRST_TARGET_PORT..FIRST_TARGET_PORT + size_of_set(epoch);
    Phase::of(epoch) != Phase::Absent
        && end.0 == set_address(frontend, epoch)
        && ports.contains(&end.1)
}

fn frontend_address(frontend: usize) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, 0, u8::try_from(frontend).unwrap_or(0) + 1)
}

fn desired(frontend: usize, epoch: u64) -> DesiredService {
    let address = set_address(frontend, epoch);
    let endpoint = DesiredEndpoint {
        cluster: true,
        local: true,
        draining: false,
        on_this_node: false,
    };
    DesiredService {
        frontends: vec![DesiredFrontend {
            address: FrontendAddress::Exact(frontend_address(frontend).into()),
            port: SERVICE_PORT,
            kind: FrontendKind::ClusterIp,
        }],
        internal_local: false,
        external_local: false,
        source_ranges: Vec::new(),
        affinity_seconds: None,
        algorithm: 0,
        cluster_empty: EmptyAction::Reject,
        local_empty: EmptyAction::Reject,
        endpoints: (0..size_of_set(epoch))
            .map(|index| {
                (
                    SocketAddr::from((address, FIRST_TARGET_PORT + index)),
                    endpoint,
                )
            })
            .collect(),
    }
}

/// What the writer tells the readers: which epoch of each frontend has begun and which is done.
struct Board {
    begun: [AtomicU64; FRONTENDS],
    done: [AtomicU64; FRONTENDS],
    over: AtomicBool,
}

impl Default for Board {
    fn default() -> Self {
        Self {
            begun: from_fn(|_| AtomicU64::new(0)),
            done: from_fn(|_| AtomicU64::new(0)),
            over: AtomicBool::new(false),
        }
    }
}

/// The agent's writes, without the agent's waiting for events.
struct Writer<'a> {
    datapath: Datapath,
    planner: Planner,
    board: &'a Board,
    /// To and from the thread that waits for grace periods.
    ask: Sender<Fence>,
    answers: Receiver<Fence>,
    fence: Option<Fence>,
    waiting: bool,
}

impl Writer<'_> {
    fn run(&mut self) -> Result<()> {
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        for change in 0..CHANGES {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let frontend = usize::try_from(random >> 32)? % FRONTENDS;
            self.make_room()?;
            self.change(frontend)?;
            if change % 8192 == 0 {
                // As the agent's sweep does; no flow of ours needs a bit.
                let graced = self.planner.graced_fence();
                let plan = self.planner.rebuild_bits(graced, &AddressBits::EMPTY);
                self.write(plan)?;
            }
        }
        Ok(())
    }

    fn change(&mut self, frontend: usize) -> Result<()> {
        let epoch = self.board.begun[frontend].load(Ordering::Relaxed) + 1;
        let (before, now) = (
            service_name(frontend, epoch - 1),
            service_name(frontend, epoch),
        );
        let next = desired(frontend, epoch);
        self.board.begun[frontend].store(epoch, Ordering::SeqCst);
        let plan = match Phase::of(epoch) {
            Phase::Made | Phase::Switched => self.planner.update([(&now, Some(&next))].into_iter()),
            Phase::TakenOver => self
                .planner
                .update([(&before, None), (&now, Some(&next))].into_iter()),
            Phase::Absent => self.planner.update([(&before, None)].into_iter()),
        };
        ensure!(
            self.planner.refused().is_empty(),
            "refused: {:?}",
            self.planner.refused()
        );
        self.write(plan)?;
        self.board.done[frontend].store(epoch, Ordering::SeqCst);
        Ok(())
    }

    fn write(&mut self, plan: Plan) -> Result<()> {
        let mut ops: VecDeque<_> = plan.ops.into();
        self.datapath.write(&mut ops)?;
        self.fence = self.fence.max(plan.fence);
        if !self.waiting
            && let Some(fence) = self.fence.take()
        {
            self.ask.send(fence)?;
            self.waiting = true;
        }
        Ok(())
    }

    /// Takes back what a grace period has freed, and waits for one where there is little room.
    fn make_room(&mut self) -> Result<()> {
        loop {
            let used = self.planner.used();
            let short = used.slots + ROOM > CAPACITY.slots
                || used.services + ROOM as usize > CAPACITY.services as usize
                || used.backends + ROOM as usize > CAPACITY.backends as usize;
            let fence = if short {
                self.answers.recv()?
            } else {
                match self.answers.try_recv() {
                    Ok(fence) => fence,
                    Err(TryRecvError::Empty) => return Ok(()),
                    Err(gone) => return Err(gone.into()),
                }
            };
            self.waiting = false;
            let plan = self.planner.graced(fence);
            self.write(plan)?;
            // No reader looks at an old flow of its own, and whatever ran then has ended.
            let plan = self.planner.collect(fence, |_| false);
            self.write(plan)?;
        }
    }
}

/// What the readers saw.
#[derive(Debug, Default)]
struct Seen {
    /// Connections to a set that was valid.
    served: u64,
    /// Connections during which the frontend's state changed.
    during_a_change: u64,
    /// Left alone while there was no service.
    absent: u64,
    /// Left alone although there was one. The client finds nobody there, or sends its SYN again.
    missed: u64,
    /// Dropped because the tables were changing too fast: the client sends its SYN again.
    undecided: u64,
    /// What must never be.
    wrong: Vec<String>,
}

/// Places in the frame: Ethernet, IPv4 and TCP headers without options.
const SOURCE: usize = 26;
const DESTINATION: usize = 30;
const PORTS: usize = 34;
const FLAGS: usize = 47;
const FRAME: usize = 54;
const SYN: u8 = 2;
const RST: u8 = 4;

fn segment(client: u64, to: (Ipv4Addr, u16), flags: u8) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[14] = 0x45;
    frame[17] = 40;
    frame[22] = 64;
    frame[23] = Protocol::TCP.0;
    // 2^40 clients: 100.0.0.0/8 with every port from 1024 on.
    let address = client / 64_000;
    let port = u16::try_from(client % 64_000 + 1024).unwrap_or(u16::MAX);
    let [.., a, b, c] = address.to_be_bytes();
    frame[SOURCE..SOURCE + 4].copy_from_slice(&[100, a, b, c]);
    frame[DESTINATION..DESTINATION + 4].copy_from_slice(&to.0.octets());
    frame[PORTS..PORTS + 2].copy_from_slice(&port.to_be_bytes());
    frame[PORTS + 2..PORTS + 4].copy_from_slice(&to.1.to_be_bytes());
    frame[46] = 5 << 4;
    frame[FLAGS] = flags;
    frame
}

fn destination(frame: &[u8; FRAME]) -> (Ipv4Addr, u16) {
    let address: [u8; 4] = from_fn(|at| frame[DESTINATION + at]);
    let port = u16::from_be_bytes([frame[PORTS + 2], frame[PORTS + 3]]);
    (address.into(), port)
}

/// How a refusal leaves the ingress hook: sent back by the device it came from.
const TC_ACT_REDIRECT: i32 = 7;

/// Asks the first `frontends` until it is over.
fn read(program: &Program, board: &Board, frontends: usize) -> Result<Seen> {
    let mut seen = Seen::default();
    let mut client = 0;
    while !board.over.load(Ordering::Relaxed) {
        client += 1;
        let frontend = usize::try_from(client)? % frontends;
        let to = (frontend_address(frontend), SERVICE_PORT);
        let mut frame = segment(client, to, SYN);
        let from = board.done[frontend].load(Ordering::SeqCst);
        let verdict = program.run(&mut frame)?;
        let until = board.begun[frontend].load(Ordering::SeqCst);
        seen.during_a_change += u64::from(from != until);
        let got = destination(&frame);
        let mut epochs = from..=until;
        let valid = match verdict {
            -1 if got == to => {
                seen.absent += 1;
                seen.missed += u64::from(epochs.all(|epoch| Phase::of(epoch) != Phase::Absent));
                true
            }
            -1 => {
                seen.served += 1;
                epochs.any(|epoch| is_in_set(got, frontend, epoch))
            }
            2 => {
                seen.undecided += 1;
                true
            }
            // Refused as a port of the ClusterIP that nobody defined: not found, like the above.
            TC_ACT_REDIRECT => {
                seen.missed += u64::from(epochs.all(|epoch| Phase::of(epoch) != Phase::Absent));
                true
            }
            _ => false,
        };
        if !valid && seen.wrong.len() < 5 {
            seen.wrong.push(format!(
                "frontend {frontend} in its epochs {from}..={until}: verdict {verdict}, sent to \
                 {}:{} (a set of epoch {} of frontend {})",
                got.0,
                got.1,
                got.0.to_bits() & 0x000f_ffff,
                got.0.to_bits() >> 20 & 0xf
            ));
        }
        // The flow ends, so that the flow table never fills.
        program.run(&mut segment(client, to, RST))?;
    }
    Ok(seen)
}

/// The datapath on the node's uplink, and its ingress program. Inside the node's namespace.
fn start(options: &Options, device: u32) -> Result<(Datapath, Planner, Program)> {
    let (model, node) = (ModelOptions::default(), NodeFacts::named("node0"));
    let (mut datapath, planner) =
        Datapath::start(options, &model, &node).map_err(|error| anyhow!(error))?;
    let facts = Facts {
        devices: vec![Device {
            index: device,
            name: UPLINK.to_owned(),
            ethernet: true,
            loopback: false,
            master: None,
        }],
        addresses: Vec::new(),
    };
    let problems = datapath.update_machine(&facts, &model, &node)?;
    ensure!(problems.is_empty(), "not attached: {problems:?}");
    let pin = options
        .directory
        .join(format!("v{LAYOUT_VERSION}/links/tcx/{device}-ingress"));
    Ok((datapath, planner, Program::behind(&pin)?))
}

/// Lets a reader ask while `write` writes; both on the CPUs of this thread.
fn race(
    program: &Program,
    board: &Board,
    frontends: usize,
    write: impl FnOnce() -> Result<()>,
) -> Result<Seen> {
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read(program, board, frontends));
        let written = write();
        board.over.store(true, Ordering::Relaxed);
        let seen = reader.join().map_err(|_| anyhow!("the reader panicked"))?;
        written.and(seen)
    })
}

fn change_everything(options: &Options, device: u32) -> Result<Seen> {
    let (datapath, planner, program) = start(options, device)?;
    let board = Board::default();
    let (ask, asked) = channel::<Fence>();
    let (answer, answers) = channel();
    let grace = datapath.grace()?;
    let mut writer = Writer {
        datapath,
        planner,
        board: &board,
        ask,
        answers,
        fence: None,
        waiting: false,
    };
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for fence in asked {
                // Whoever waits learns of a failure by the closed channel.
                if grace.wait().is_err() || answer.send(fence).is_err() {
                    return;
                }
            }
        });
        race(&program, &board, FRONTENDS, move || writer.run())
    })
}

/// Two services whose frontends are never in the table at once: the kernel gives the element that
/// one has left to the other at once, also while a program still looks at it.
fn recycle_frontends(options: &Options, device: u32) -> Result<Seen> {
    let (mut datapath, mut planner, program) = start(options, device)?;
    let board = Board::default();
    let mut inserts = Vec::new();
    for frontend in 0..2 {
        let (name, service) = (service_name(frontend, 1), desired(frontend, 1));
        let mut plan = planner.update([(&name, Some(&service))].into_iter());
        // The entry that refuses the other ports of a ClusterIP would refuse this one, too.
        plan.ops
            .retain(|op| !matches!(op, Op::Frontend(key, _) if key.is_any_port()));
        inserts.extend(
            plan.ops
                .iter()
                .filter(|op| matches!(op, Op::Frontend(..)))
                .cloned(),
        );
        datapath.write(&mut plan.ops.into())?;
    }
    // In their first epoch, or absent, as long as it takes.
    for frontend in 0..FRONTENDS {
        board.done[frontend].store(1, Ordering::SeqCst);
        board.begun[frontend].store(5, Ordering::SeqCst);
    }
    let removals: Vec<Op> = (inserts.iter())
        .filter_map(|op| match op {
            Op::Frontend(key, _) => Some(Op::RemoveFrontend(*key)),
            _ => None,
        })
        .collect();
    race(&program, &board, 2, move || {
        datapath.write(&mut [removals[1].clone()].into())?;
        for round in 0..RECYCLINGS {
            let (here, there) = if round % 2 == 0 { (0, 1) } else { (1, 0) };
            datapath.write(&mut [removals[here].clone(), inserts[there].clone()].into())?;
        }
        Ok(())
    })
}

/// This thread, and so every thread it starts, on the first CPU it may use.
fn pin_to_one_cpu() -> Result<()> {
    let may = sched_getaffinity(Pid::from_raw(0))?;
    let first = (0..CpuSet::count())
        .find(|cpu| may.is_set(*cpu).unwrap_or(false))
        .context("no CPU")?;
    let mut one = CpuSet::new();
    one.set(first)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &one)?)
}

/// Runs `work` on a node of its own and judges what its reader saw.
fn no_mixed_results(
    one_cpu: bool,
    work: impl FnOnce(&Options, u32) -> Result<Seen> + Send,
) -> Result<()> {
    lb_lab::require_root();
    let lab = Lab::single(PodNetwork::Routed)?;
    let node = lab.node(0);
    let device = node.namespace().index_of(UPLINK)?;
    let options = Options {
        directory: lab.bpffs(node.name())?.join("lb"),
        cgroup_root: Some(node.cgroup_root().path().to_owned()),
        tc_attach: TcAttach::Tcx,
        capacity: CAPACITY,
        ..Options::default()
    };
    let began = Instant::now();
    let seen = node.namespace().enter(|| {
        if one_cpu {
            pin_to_one_cpu()?;
        }
        work(&options, device)
    })??;
    eprintln!("{seen:?} in {:?}", began.elapsed());
    ensure!(seen.wrong.is_empty(), "mixed results: {:#?}", seen.wrong);
    ensure!(
        seen.served > 10_000 && seen.absent > 1_000 && seen.during_a_change > 100,
        "too little was seen to prove anything: {seen:?}"
    );
    ensure!(
        (seen.undecided + seen.missed) * 10_000 <= seen.served,
        "too many connections had to try again: {seen:?}"
    );
    Ok(())
}

#[test]
fn readers_against_a_million_switches_deletions_and_recreations_see_no_mixed_result() -> Result<()>
{
    no_mixed_results(false, change_everything)
}

#[test]
fn pinned_to_one_cpu_a_reader_sees_no_mixed_result_either() -> Result<()> {
    no_mixed_results(true, change_everything)
}

#[test]
fn a_frontend_whose_element_is_recycled_under_a_reader_leads_nobody_astray() -> Result<()> {
    no_mixed_results(false, recycle_frontends)
}

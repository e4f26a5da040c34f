//! The running datapath: everything loaded, attached and open for writing.

use super::attach::{self, Attached, DeviceProblem};
use super::cgroup;
use super::cleanup;
use super::directory::{Directory, Lock};
use super::error::{CleanupError, StartError};
use super::flows;
use super::grace::Grace;
use super::key_set::KeySet;
use super::load::{self, Programs};
use super::local::Local;
use super::options::Options;
use super::probe;
use super::snat_ports::snat_ports;
use super::sockets::Closer;
use super::sys;
use super::tables::{Tables, WriteError};
use super::verify;
use super::view::Fill;
use crate::model::{Options as ModelOptions, node::NodeFacts};
use crate::net::Facts;
use crate::plan::{FlowUse, Op, Planner, Used};
use lb_common::addr::BackendId;
use lb_common::hash::HashKeys;
use lb_common::table::{Config, ConfigFlags, SocketMode, name};
use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use zerocopy::{FromBytes, FromZeros};

/// The running datapath of one directory.
#[derive(Debug)]
pub struct Datapath {
    options: Options,
    directory: Directory,
    programs: Programs,
    tables: Tables,
    local: Local,
    attached: Attached,
    /// Where the socket hooks are.
    cgroup: (PathBuf, File),
    /// The cgroups whose processes' sockets are not balanced; opened when some are named.
    opted_out: Option<KeySet<u64>>,
    config: Config,
    succeeds_another_layout: bool,
    _lock: Lock,
}

impl Datapath {
    /// Takes the directory, loads the programs over the tables (old or new), attaches the socket
    /// hooks, and returns the planner of what the tables hold. Devices follow by
    /// [`update_machine`](Self::update_machine).
    ///
    /// Waits for another agent to leave and for the kernel to verify: call it where blocking is
    /// allowed.
    pub fn start(
        options: &Options,
        model: &ModelOptions,
        node: &NodeFacts,
    ) -> Result<(Self, Planner), StartError> {
        let object = load::object()?;
        let schema = load::schema(object, &options.capacity)?;
        let cgroup = cgroup::open(options.cgroup_root.as_deref())?;
        let snat_ports = snat_ports(options)?;
        let directory = Directory::new(&options.directory);
        directory.prepare_root()?;
        let lock = directory.lock(options.takeover_wait)?;
        let succeeds_another_layout = directory
            .versions()
            .map_err(|source| StartError::Step {
                attempt: "list",
                object: directory.root().display().to_string(),
                source,
            })?
            .iter()
            .any(|version| *version != directory.version());
        directory.prepare()?;
        load::check_pins(&directory, &schema)?;
        let programs = load::load(object, &schema, &directory, options)?;
        let mut tables = Tables::open(&directory, &schema)?;
        let local = Local::open(&directory, &mut tables)?;

        let touching = |attempt| {
            move |source| StartError::Step {
                attempt,
                object: format!("the table {}", name::CONFIG),
                source,
            }
        };
        let mut config = tables.config().map_err(touching("read"))?;
        if config.hash_keys.multiplier == 0 {
            datapath_is_new(&directory)?;
            config.hash_keys = draw_keys().map_err(|source| StartError::Step {
                attempt: "draw",
                object: "hash keys from /dev/urandom".to_owned(),
                source,
            })?;
        }
        config.socket_mode = options.socket_mode as u32;
        config.masquerade_mark = options.masquerade_mark;
        config.switch(ConfigFlags::MARK_REPLIES, options.mark_replies);
        config.switch(ConfigFlags::OPT_OUT, options.opt_out);
        config.flow_mask = tables.flow_buckets().saturating_sub(1);
        (config.snat_port_first, config.snat_port_last) = snat_ports;
        (config.node_port_first, config.node_port_last) = options.node_port_range;
        config.set_packet_path_udp_ports(&options.packet_path_udp_ports);
        config.host_namespace = local.cookie();
        let mut datapath = Self {
            options: options.clone(),
            directory,
            programs,
            tables,
            local,
            attached: Attached::new(options.devices.clone(), options.tc_attach),
            cgroup,
            opted_out: None,
            config,
            succeeds_another_layout,
            _lock: lock,
        };
        datapath.configure(model, node).map_err(touching("write"))?;
        let planner = datapath.adopt().map_err(|source| StartError::Step {
            attempt: "read the tables in",
            object: datapath.directory.maps().display().to_string(),
            source,
        })?;
        if options.socket_mode == SocketMode::Off {
            attach::detach_sockets(&datapath.directory).map_err(|source| StartError::Step {
                attempt: "remove the socket hooks in",
                object: datapath.directory.cgroup_links().display().to_string(),
                source,
            })?;
        } else {
            datapath.attach_sockets()?;
        }
        Ok((datapath, planner))
    }

    fn attach_sockets(&self) -> Result<(), StartError> {
        let (path, cgroup) = &self.cgroup;
        attach::attach_sockets(&self.directory, &self.programs, cgroup.as_fd(), path)
    }

    /// What an earlier life left retired may still be in the hands of a running program.
    fn adopt(&mut self) -> io::Result<Planner> {
        self.tables.grace()?.wait()?;
        let held = self.tables.held(self.config.hash_keys)?;
        let limits = self.tables.limits();
        let tables = std::cell::RefCell::new(&mut self.tables);
        let mut planner = Planner::adopt(limits, held, |index| tables.borrow_mut().slot(index));
        let (key, frontend) = probe::frontend();
        let mut ops = planner.reserve(key, frontend).ops.into();
        self.tables.write(&mut ops).map_err(io::Error::other)?;
        Ok(planner)
    }

    /// Stores the switches that follow from the operator's choices and the Node object.
    pub fn configure(&mut self, model: &ModelOptions, node: &NodeFacts) -> io::Result<()> {
        model.configure(node, &mut self.config);
        self.tables.write_config(&self.config)
    }

    /// An agent with another table layout was here before and still serves: its programs stay alone
    /// on the devices (a clsact filter of ours would replace its) until everything is written.
    pub fn succeeds_another_layout(&self) -> bool {
        self.succeeds_another_layout
    }

    /// Everything is written: puts ours on the devices, then ends what other layouts have left.
    /// Returns their directories.
    pub fn take_over(
        &mut self,
        facts: &Facts,
        model: &ModelOptions,
        node: &NodeFacts,
    ) -> Result<Vec<PathBuf>, CleanupError> {
        self.succeeds_another_layout = false;
        let attached = self.update_machine(facts, model, node);
        attached.map_err(|source| CleanupError::Step {
            attempt: "attach to the devices before removing what was in",
            object: self.directory.root().display().to_string(),
            source,
        })?;
        cleanup::remove_other_layouts(&self.directory)
    }

    /// Does the writes at the front of `ops`; what failed stays in front, to be tried again.
    pub fn write(&mut self, ops: &mut VecDeque<Op>) -> Result<u64, WriteError> {
        self.tables.write(ops)
    }

    /// What to wait on for a grace period.
    pub fn grace(&self) -> io::Result<Grace> {
        self.tables.grace()
    }

    /// Brings addresses and devices in step with what netlink says.
    pub fn update_machine(
        &mut self,
        facts: &Facts,
        model: &ModelOptions,
        node: &NodeFacts,
    ) -> io::Result<Vec<DeviceProblem>> {
        let (directory, keys) = (&self.directory, self.config.hash_keys);
        let in_use =
            || flows::scan(directory, &keys, |_| None).map(|(used, _)| used.snat_addresses);
        self.local
            .update(&mut self.tables, facts, model, node, &in_use)?;
        if self.succeeds_another_layout {
            return Ok(Vec::new());
        }
        self.attached
            .update(&self.directory, &self.programs, &facts.devices)
    }

    /// The cgroups (by inode) whose processes' sockets are not balanced, from now on.
    pub fn set_opted_out(&mut self, cgroups: &BTreeSet<u64>) -> io::Result<()> {
        let table = match &mut self.opted_out {
            Some(table) => table,
            closed => {
                let table = sys::object_get(&self.directory.map(name::OPTED_OUT))?;
                closed.insert(KeySet::open(table)?)
            }
        };
        table.set(cgroups)
    }

    /// The cgroup that the socket hooks are attached to.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup.0
    }

    /// Names of the devices that carry the packet path.
    pub fn device_names(&self, facts: &Facts) -> Vec<String> {
        self.attached
            .indexes()
            .filter_map(|index| facts.devices.iter().find(|device| device.index == index))
            .map(|device| device.name.clone())
            .collect()
    }

    /// Looks at every flow; also, how many records there are.
    pub(crate) fn flows(&mut self) -> io::Result<(FlowUse, u64)> {
        let tables = std::cell::RefCell::new(&mut self.tables);
        flows::scan(&self.directory, &self.config.hash_keys, |id| {
            tables.borrow_mut().backend(id)
        })
    }

    /// True if sockets that were sent to a backend are still open.
    pub(crate) fn has_open_sockets(&self, id: BackendId) -> io::Result<bool> {
        let counters = self.tables.backend_sockets(id)?;
        Ok(counters.socket_opened > counters.socket_closed)
    }

    /// What closes the sockets of removed endpoints.
    pub(crate) fn closer(&self) -> io::Result<Closer> {
        Ok(Closer {
            peers: sys::object_get(&self.directory.map(name::PEERS))?,
            namespaces: self.options.pod_namespaces.clone(),
        })
    }

    /// Asks the loaded programs a question with a known answer, and looks whether they are still
    /// where they were attached; says what was wrong.
    pub fn probe(&self) -> Result<(), String> {
        probe::ask(&self.programs)?;
        if self.options.socket_mode != SocketMode::Off {
            verify::sockets(&self.directory, &self.programs)?;
        }
        verify::devices(&self.directory, &self.programs, &self.attached)
    }

    /// Attaches again what [`probe`](Self::probe) found detached; returns how many places that were.
    pub fn mend(
        &mut self,
        facts: &Facts,
        model: &ModelOptions,
        node: &NodeFacts,
    ) -> Result<u64, StartError> {
        let mut mended = 0;
        if self.options.socket_mode != SocketMode::Off
            && verify::sockets(&self.directory, &self.programs).is_err()
        {
            self.attach_sockets()?;
            mended += 1;
        }
        for (device, _) in verify::lost(&self.directory, &self.programs, &self.attached) {
            self.attached.forget(device);
            mended += 1;
        }
        self.update_machine(facts, model, node)
            .map_err(|source| StartError::Step {
                attempt: "attach again to the devices for",
                object: self.directory.root().display().to_string(),
                source,
            })?;
        Ok(mended)
    }

    /// How full the tables are.
    pub(crate) fn fill(&self, used: Used, flows: (u64, u64)) -> Vec<Fill> {
        let limits = self.tables.limits();
        let one = |table, used: usize, capacity: u32| Fill {
            table,
            used: used as u64,
            capacity: u64::from(capacity),
        };
        vec![
            one(name::SERVICES, used.services, limits.services - 1),
            one(name::BACKENDS, used.backends, limits.backends - 1),
            one(name::SLOTS, used.slots as usize, limits.slots),
            one(name::FRONTENDS, used.frontends, limits.frontends),
            one(name::RANGES, used.ranges, limits.ranges),
            Fill {
                table: name::FLOWS,
                used: flows.0,
                capacity: flows.1,
            },
        ]
    }

    /// The options the datapath was started with.
    pub fn options(&self) -> &Options {
        &self.options
    }
}

/// Tables are written with hash keys: those of a dataplane that serves cannot be drawn anew.
fn datapath_is_new(directory: &Directory) -> Result<(), StartError> {
    let links = [directory.cgroup_links(), directory.tcx_links()];
    let serves = (links.iter())
        .filter_map(|links| std::fs::read_dir(links).ok())
        .any(|mut links| links.next().is_some());
    if serves {
        return Err(StartError::Schema {
            path: directory.map(name::CONFIG),
            difference: "it holds no hash keys, although programs that serve are attached"
                .to_owned(),
            remedy: load::OTHER_AGENTS,
        });
    }
    Ok(())
}

fn draw_keys() -> io::Result<HashKeys> {
    let mut bytes = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let words = <[u32; 8]>::read_from_bytes(&bytes).unwrap_or_else(|_| <[u32; 8]>::new_zeroed());
    Ok(HashKeys::from_random(words))
}

//! What is loaded, for those who only want to know how it is set and where it is attached.

use super::directory::Directory;
use super::load::open_map;
use super::mapping::Words;
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_ARRAY;
use lb_common::table::{Config, ConfigFlags, name};
use std::collections::BTreeSet;
use std::mem::size_of;
use std::path::Path;

/// How the datapath is set.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Switches {
    /// The bits of the mark of packets that will be SNATed.
    pub masquerade_mark: u32,
    /// Replies get them, too.
    pub mark_replies: bool,
}

/// The switches of what is loaded from `directory`, and the indexes of the devices that carry links;
/// `None` if nothing of this layout is loaded, or it may not be looked at.
pub fn loaded(directory: &Path) -> Option<(Switches, BTreeSet<u32>)> {
    let directory = Directory::new(directory);
    let (map, entries) = open_map(
        &directory,
        name::CONFIG,
        BPF_MAP_TYPE_ARRAY,
        4,
        size_of::<Config>(),
    )
    .ok()?;
    let mut words: Words<{ size_of::<Config>() / 8 }> = Words::new(map, entries, false);
    let words = words.read(0).ok()?;
    let config: Config = zerocopy::transmute!(words);
    let links = std::fs::read_dir(directory.tcx_links()).ok()?;
    let index = |name: std::ffi::OsString| name.to_str()?.split('-').next()?.parse().ok();
    let devices = links.flatten().filter_map(|link| index(link.file_name()));
    let switches = Switches {
        masquerade_mark: config.masquerade_mark,
        mark_replies: config.has(ConfigFlags::MARK_REPLIES),
    };
    Some((switches, devices.collect()))
}

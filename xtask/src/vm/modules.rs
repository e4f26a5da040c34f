//! The modules a virtual machine loads before it can reach its root, and those the labs need.

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What must be loaded; a name that is built in, or not known to a kernel, is no fault.
const WANTED: [&str; 22] = [
    // What nf_conntrack's checksums ask the kernel's crypto for, which no dependency names.
    "crc32c_generic",
    "virtio_pci",
    "virtio_rng",
    "9pnet_virtio",
    "9p",
    "overlay",
    "af_packet",
    "veth",
    "bridge",
    "dummy",
    "bonding",
    "8021q",
    "sch_ingress",
    "cls_bpf",
    "nf_tables",
    "nft_chain_nat",
    "nft_masq",
    "nft_ct",
    "nft_counter",
    "nf_conntrack",
    "nf_nat",
    "sctp",
];

/// A module: its name and its uncompressed object.
pub(super) type Module = (String, Vec<u8>);

/// The modules of the tree below `root` in the order they must be loaded in.
pub(super) fn in_order(root: &Path) -> Result<Vec<Module>> {
    let mut tree = BTreeMap::new();
    index(root, &mut tree)?;
    let mut ordered = Vec::new();
    for name in WANTED {
        add(name, &tree, &mut ordered)?;
    }
    Ok(ordered)
}

fn index(dir: &Path, tree: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in dir
        .read_dir()
        .with_context(|| format!("cannot read {}", dir.display()))?
    {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            index(&path, tree)?;
        } else if let Some((name, _)) = entry.file_name().to_string_lossy().split_once(".ko") {
            tree.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

fn add(name: &str, tree: &BTreeMap<String, PathBuf>, ordered: &mut Vec<Module>) -> Result<()> {
    let name = name.replace('-', "_");
    let Some(path) = tree.get(&name) else {
        return Ok(());
    };
    if ordered.iter().any(|(loaded, _)| *loaded == name) {
        return Ok(());
    }
    let object = uncompressed(path)?;
    for dependency in depends(&object) {
        add(&dependency, tree, ordered)?;
    }
    ordered.push((name, object));
    Ok(())
}

/// The `depends=` field of a module's `.modinfo`.
fn depends(object: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = object.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let list = &object[start + KEY.len()..];
    let end = list.iter().position(|byte| *byte == 0).unwrap_or(0);
    let list = String::from_utf8_lossy(&list[..end]).into_owned();
    list.split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

fn uncompressed(path: &Path) -> Result<Vec<u8>> {
    let tool = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(path).with_context(|| format!("cannot read {}", path.display())),
    };
    let out = Command::new(tool).arg("-dcq").arg(path).output();
    let out = out.with_context(|| format!("cannot start {tool} for {}", path.display()))?;
    if !out.status.success() {
        bail!("{tool} cannot unpack {}", path.display());
    }
    Ok(out.stdout)
}

#[cfg(test)]
mod tests {
    use super::depends;

    #[test]
    fn a_module_s_dependencies_are_read_from_its_modinfo() {
        let object = b"ELF..\0license=GPL\0depends=llc,stp\0retpoline=Y\0";
        assert_eq!(depends(object), ["llc", "stp"]);
        assert!(depends(b"x\0depends=\0").is_empty());
        assert!(depends(b"nothing").is_empty());
    }
}

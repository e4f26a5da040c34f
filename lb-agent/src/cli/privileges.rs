//! What the kernel must allow, asked before anything else, so that a missing privilege is one
//! sentence and not an error number from the middle of loading.

use std::fs;

/// Capability bits of linux/capability.h.
const NET_ADMIN: u32 = 12;
const SYS_ADMIN: u32 = 21;
const PERFMON: u32 = 38;
const BPF: u32 = 39;

/// One sentence if this process may not load programs and attach them.
pub fn check() -> Result<(), String> {
    let missing = missing_here();
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!(
        "needs root, or the capabilities CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN (missing: {}): \
         run it with sudo",
        missing.join(", ")
    ))
}

/// One sentence if this process may not enter the network namespaces of pods.
pub fn check_entering() -> Result<(), String> {
    if effective_here() & (1 << SYS_ADMIN) == 0 {
        return Err(
            "--close-pod-sockets needs the capability CAP_SYS_ADMIN, to enter the pods' network \
             namespaces: add it, or leave the option out"
                .to_owned(),
        );
    }
    Ok(())
}

/// The capabilities of [`check`] that this process has not.
pub fn missing_here() -> Vec<&'static str> {
    missing(effective_here())
}

/// The effective set of this process.
fn effective_here() -> u64 {
    effective(&fs::read_to_string("/proc/self/status").unwrap_or_default())
}

/// The effective set of `/proc/<pid>/status`; unreadable means none.
fn effective(status: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0)
}

/// CAP_SYS_ADMIN stands for the two that were split from it in kernel 5.8.
fn missing(effective: u64) -> Vec<&'static str> {
    let has = |bit: u32| effective & (1 << bit) != 0;
    [
        ("CAP_BPF", has(BPF) || has(SYS_ADMIN)),
        ("CAP_PERFMON", has(PERFMON) || has(SYS_ADMIN)),
        ("CAP_NET_ADMIN", has(NET_ADMIN)),
    ]
    .into_iter()
    .filter_map(|(name, present)| (!present).then_some(name))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_the_three_capabilities_are_enough() {
        assert!(missing(effective("CapEff:\t000001ffffffffff\n")).is_empty());
        let three = 1 << BPF | 1 << PERFMON | 1 << NET_ADMIN;
        assert!(missing(three).is_empty());
        assert!(missing(1 << SYS_ADMIN | 1 << NET_ADMIN).is_empty());
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(
            missing(effective("Name:\tx\nCapEff:\t0000000000000000\n")),
            ["CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"]
        );
        assert_eq!(missing(1 << BPF | 1 << NET_ADMIN), ["CAP_PERFMON"]);
    }
}

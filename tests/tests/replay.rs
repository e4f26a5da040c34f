//! The flows of the shared case files on this machine's kernel. `cargo xtask cases --kernel` replays
//! all of them; here those that between them ask every kind of frontend from everywhere.

use anyhow::Result;
use lb_tests::conformance::deviations::ALL;
use lb_tests::conformance::replay::{Mode, replay_files};
use std::path::PathBuf;

const CASES: [&str; 9] = [
    "clusterip-general",
    "etp-cluster",
    "etp-local-v6",
    "hairpin-etp-local",
    "hook-ranges-no-endpoints",
    "itp-local-one",
    "lb-source-ranges",
    "masq-base",
    "terminating-local-none-usable",
];

#[test]
fn flows_of_the_shared_cases_go_in_the_kernel_where_kube_proxy_sends_them() -> Result<()> {
    lb_lab::require_root();
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("conformance/cases/kube-proxy.json");
    let files = std::iter::once(file.as_path());
    let report = replay_files(files, &Mode::BOTH, |id| CASES.contains(&id))?;
    assert!(report.failed().is_empty(), "{report}");
    assert_eq!(
        report.passed() + report.skipped().len(),
        CASES.len() * Mode::BOTH.len(),
        "{report}"
    );
    for (id, reason) in report.skipped() {
        let named = ALL.iter().any(|one| reason.contains(one.name));
        assert!(named, "{id}: {reason}");
    }
    Ok(())
}

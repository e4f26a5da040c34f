//! Case files: the shared ones pass, and the runner tells the truth about any other.

use anyhow::Result;
use lb_tests::conformance::deviations::{ALL, Deviation, table};
use lb_tests::conformance::peers::tests_elsewhere;
use lb_tests::conformance::{Report, run_content, run_files};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;

const SHARED: &str = include_str!("../conformance/cases/kube-proxy.json");

fn run(content: &Value) -> Result<Report> {
    let mut report = Report::default();
    run_content(content, &mut report)?;
    Ok(report)
}

#[test]
fn every_shared_case_in_scope_passes() -> Result<()> {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("conformance/cases/kube-proxy.json");
    let report = run_files(std::iter::once(file.as_path()))?;
    assert!(report.failed().is_empty(), "{report}");
    // What is skipped is a deviation with a name, and the rest really ran.
    for (id, reason) in report.skipped() {
        let named = |one: &&Deviation| reason.contains(&format!("deviation {}: ", one.name));
        assert!(ALL.iter().any(named), "{id}: {reason}");
    }
    assert!(report.passed() >= 197, "{report}");
    Ok(())
}

/// The case of the shared file with this id, alone.
fn one(section: &str, id: &str) -> Value {
    let content: Value = serde_json::from_str(SHARED).expect("the shared file is JSON");
    let cases = content[section].as_array().expect("a section");
    let case = cases
        .iter()
        .find(|case| case["id"] == id)
        .expect("a case of this id");
    json!({section: [case]})
}

#[test]
fn a_wrong_expectation_fails() -> Result<()> {
    for (pointer, wrong) in [
        ("/cases/0/flows/0/expect/endpoints", json!("drop")),
        ("/cases/0/flows/0/expect/endpoints", json!(["10.0.0.1:80"])),
        ("/cases/0/expectState/noLocalEndpoints/internal", json!(7)),
    ] {
        let mut content = one("cases", "no-endpoints-reject");
        *content.pointer_mut(pointer).expect("a field") = wrong;
        let report = run(&content)?;
        assert_eq!(report.failed().len(), 1, "{pointer}: {report}");
    }
    Ok(())
}

#[test]
fn a_missing_endpoint_a_foreign_endpoint_and_a_wrong_snat_fail() -> Result<()> {
    for (pointer, wrong) in [
        (
            "/cases/0/flows/2/expect/endpoints",
            json!(["10.180.0.1:80"]),
        ),
        (
            "/cases/0/flows/2/expect/endpoints",
            json!(["10.180.0.1:80", "10.180.2.1:80", "10.180.3.1:80"]),
        ),
        ("/cases/0/flows/2/expect/masq", json!(true)),
        ("/cases/0/flows/1/expect/masq", json!(false)),
    ] {
        let mut content = one("cases", "clusterip-general");
        *content.pointer_mut(pointer).expect("a field") = wrong;
        let report = run(&content)?;
        assert_eq!(report.failed().len(), 1, "{pointer}: {report}");
    }
    Ok(())
}

#[test]
fn what_the_runner_does_not_know_is_skipped_by_name_and_never_a_crash() -> Result<()> {
    let mut odd_field = one("cases", "no-endpoints-reject");
    odd_field["cases"][0]["flows"][0]["moonPhase"] = json!("full");
    let mut odd_word = one("cases", "no-endpoints-reject");
    odd_word["cases"][0]["flows"][0]["expect"]["endpoints"] = json!("teleport");
    for (content, part) in [
        (json!({"lunarCases": [{"id": "x"}, 3]}), "lunarCases"),
        (odd_field, "moonPhase"),
        (odd_word, "teleport"),
    ] {
        let report = run(&content)?;
        assert!(report.failed().is_empty(), "{report}");
        assert!(!report.skipped().is_empty());
        for (_, reason) in report.skipped() {
            assert!(reason.contains(part), "{reason}");
        }
    }
    Ok(())
}

#[test]
fn a_case_that_cannot_be_read_fails_with_a_sentence_and_the_others_run() -> Result<()> {
    let mut content = one("cases", "no-endpoints-reject");
    let cases = content["cases"].as_array_mut().expect("a list");
    let mut broken = cases[0].clone();
    broken["id"] = json!("broken");
    broken["services"][0]["spec"]["ports"] = json!("none");
    cases.insert(0, broken);
    cases.insert(0, json!("not even an object"));
    let report = run(&content)?;
    assert_eq!(report.failed().len(), 2, "{report}");
    assert_eq!(report.passed() + report.skipped().len(), 1);
    assert!(run(&json!([1, 2])).is_err(), "a file without sections");
    Ok(())
}

#[test]
fn the_report_ends_with_the_three_counts() -> Result<()> {
    let report = run(&one("serviceMapCases", "svc-nodeport"))?.to_string();
    assert_eq!(
        report.lines().last(),
        Some("1 passed, 0 failed, 0 skipped"),
        "{report}"
    );
    Ok(())
}

#[test]
fn the_documented_deviations_are_those_of_the_runner() -> Result<()> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/deviations.md");
    let mut page = fs::read_to_string(&path)?;
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let above = page.split("| deviation |").next().unwrap_or_default();
        page = format!("{above}{}", table());
        fs::write(&path, &page)?;
    }
    assert!(
        page.contains(&table()),
        "`UPDATE_DOCS=1 cargo test -p lb-tests --test cases` writes docs/deviations.md anew"
    );
    let printed = Report::default().to_string();
    assert!(printed.contains(&table()), "the runner prints: {printed}");
    Ok(())
}

#[test]
fn cases_of_other_projects_pass_or_name_what_proves_them_or_why_they_do_not_apply() -> Result<()> {
    for (file, least) in [("cilium.json", 12), ("katran-calico.json", 3)] {
        let file = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("conformance/cases")
            .join(file);
        let report = run_files(std::iter::once(file.as_path()))?;
        assert!(report.failed().is_empty(), "{report}");
        assert!(report.passed() >= least, "{report}");
        for (id, reason) in report.skipped() {
            let named = |one: &&Deviation| reason.contains(&format!("deviation {}: ", one.name));
            let proven = reason.starts_with("what it says is the test ");
            assert!(proven || ALL.iter().any(named), "{id}: {reason}");
        }
    }
    Ok(())
}

#[test]
fn the_tests_that_are_named_for_cases_of_other_projects_exist() -> Result<()> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut sources = String::new();
    let mut left: Vec<PathBuf> = [
        "tests/tests",
        "lb-common/src",
        "lb-agent/src",
        "lb-agent/tests",
    ]
    .iter()
    .map(|dir| root.join(dir))
    .collect();
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(fs::read_dir(&path)?.flatten().map(|entry| entry.path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources += &fs::read_to_string(&path)?;
        }
    }
    for (id, name) in tests_elsewhere() {
        assert!(
            sources.contains(&format!("fn {name}(")),
            "{id}: there is no test {name}"
        );
    }
    Ok(())
}

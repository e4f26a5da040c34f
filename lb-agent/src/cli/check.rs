//! `lb-agent check`: what was found, for people and for scripts.

use crate::check::{Finding, Severity};
use crate::cli::columns::Columns;
use crate::cli::values::Format;
use std::fmt::Write;

/// The whole output, ending with a line break.
pub fn render(findings: &[Finding], format: Format) -> anyhow::Result<String> {
    match format {
        Format::Json => {
            let page = serde_json::json!({ "findings": findings });
            Ok(serde_json::to_string_pretty(&page)? + "\n")
        }
        Format::Table => Ok(table(findings)),
    }
}

fn table(findings: &[Finding]) -> String {
    let mut page = String::new();
    for finding in findings {
        let word = match finding.severity {
            Severity::Problem => "PROBLEM",
            Severity::Warning => "warning",
        };
        let mut columns = Columns::headless();
        columns.row(vec![
            word.to_owned(),
            finding.topic.to_owned(),
            finding.what.clone(),
        ]);
        columns.row(vec![
            String::new(),
            String::new(),
            format!("→ {}", finding.todo),
        ]);
        // Writing to a String cannot fail.
        let _ = write!(page, "{columns}");
    }
    let count = |severity| {
        findings
            .iter()
            .filter(|finding| finding.severity == severity)
            .count()
    };
    let (problems, warnings) = (count(Severity::Problem), count(Severity::Warning));
    let _ = writeln!(page, "{problems} problems, {warnings} warnings");
    page
}

/// True if something will not work.
pub fn has_problem(findings: &[Finding]) -> bool {
    findings
        .iter()
        .any(|finding| finding.severity == Severity::Problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(severity: Severity) -> Finding {
        Finding {
            severity,
            topic: "forwarding",
            what: "net.ipv4.ip_forward is 0: …".to_owned(),
            todo: "`sysctl net.ipv4.ip_forward=1`".to_owned(),
        }
    }

    #[test]
    fn people_read_what_was_found_and_what_to_do() {
        let page = render(&[finding(Severity::Problem)], Format::Table).unwrap();
        assert_eq!(
            page,
            "\
PROBLEM  forwarding  net.ipv4.ip_forward is 0: …
                     → `sysctl net.ipv4.ip_forward=1`
1 problems, 0 warnings
"
        );
    }

    #[test]
    fn scripts_read_the_same() {
        let page = render(&[finding(Severity::Warning)], Format::Json).unwrap();
        let page: serde_json::Value = serde_json::from_str(&page).unwrap();
        assert_eq!(page["findings"][0]["severity"], "warning");
        assert_eq!(page["findings"][0]["topic"], "forwarding");
        assert!(page["findings"][0]["todo"].is_string());
    }

    #[test]
    fn a_warning_is_no_problem() {
        assert!(!has_problem(&[finding(Severity::Warning)]));
        assert!(has_problem(&[
            finding(Severity::Warning),
            finding(Severity::Problem)
        ]));
    }
}

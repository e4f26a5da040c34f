//! Runs the tests, and those that failed once more by themselves: what fails beside others and passes
//! alone is said by name, and is a defect to be mended, but not what the change at hand is judged by.

use crate::step;
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

/// More failures than these are no accident.
const FEW: usize = 3;

/// How the tests ended.
pub(crate) enum Tests {
    /// All passed.
    Passed,
    /// These passed at the second try only.
    AtSecondTry(Vec<String>),
}

/// Runs `tests`, a `cargo test --no-fail-fast` without a filter.
pub(crate) fn run(tests: &mut Command) -> Result<Tests> {
    let shown = lb_lab::command::show(tests);
    let mut child = tests
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{shown}`"))?;
    let mut output = BufReader::new(child.stdout.take().context("no output")?);
    let mut failed = Failures::default();
    let mut line = Vec::new();
    while output.read_until(b'\n', &mut line)? > 0 {
        std::io::stdout().write_all(&line)?;
        failed.line(String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
    let status = child.wait()?;
    if status.success() {
        return Ok(Tests::Passed);
    }
    let names = failed.names();
    if names.is_empty() || names.len() > FEW {
        bail!("`{shown}` failed ({status})");
    }
    step::say(&format!("once more, alone: {}", names.join(", ")));
    // The same command with a filter; a `Command` is not to be cloned.
    let mut again = Command::new(tests.get_program());
    again.args(tests.get_args());
    if let Some(dir) = tests.get_current_dir() {
        again.current_dir(dir);
    }
    for (key, value) in tests.get_envs() {
        match value {
            Some(value) => again.env(key, value),
            None => again.env_remove(key),
        };
    }
    again
        .args(["--", "--exact", "--test-threads=1"])
        .args(&names);
    step::run(&mut again)?;
    Ok(Tests::AtSecondTry(names))
}

/// Where in a test program's output a line stands.
#[derive(Default, Eq, PartialEq)]
enum At {
    #[default]
    Between,
    Running,
    /// After "failures:", which comes twice: before the outputs, then before the names.
    List,
    Names,
}

/// Reads the names of failed tests from libtest's closing lists.
#[derive(Default)]
struct Failures {
    names: Vec<String>,
    at: At,
    /// A test program ended without naming what failed: it crashed.
    unnamed: bool,
}

impl Failures {
    fn line(&mut self, line: &str) {
        if line.starts_with("running ") {
            self.unnamed |= self.at != At::Between;
            self.at = At::Running;
        } else if line == "failures:" {
            self.at = At::List;
        } else if line.starts_with("---- ") {
            self.at = At::Running;
        } else if line.starts_with("test result:") {
            self.unnamed |= line.starts_with("test result: FAILED") && self.at != At::Names;
            self.at = At::Between;
        } else if let Some(name) = line.strip_prefix("    ")
            && matches!(self.at, At::List | At::Names)
        {
            self.names.push(name.to_owned());
            self.at = At::Names;
        }
    }

    /// The tests that failed; none if something else went wrong as well.
    fn names(self) -> Vec<String> {
        if self.unnamed || self.at != At::Between {
            return Vec::new();
        }
        self.names
    }
}

#[cfg(test)]
mod tests {
    use super::Failures;

    fn read(text: &str) -> Vec<String> {
        let mut failures = Failures::default();
        text.lines().for_each(|line| failures.line(line));
        failures.names()
    }

    const TWO: &str = "running 2 tests\na::b --- FAILED\n.\nfailures:\n\n---- a::b stdout ----\n    left: 1\n\n\
         failures:\n    a::b\n\ntest result: FAILED. 1 passed; 1 failed\n\n\
         running 1 test\n.\ntest result: ok. 1 passed\n\n\
         running 1 test\nfailures:\n\n---- c stdout ----\nno\n\nfailures:\n    c\n\n\
         test result: FAILED. 0 passed; 1 failed\n";

    #[test]
    fn failed_tests_are_read_from_the_closing_lists() {
        assert_eq!(read(TWO), ["a::b", "c"]);
    }

    #[test]
    fn a_program_that_crashed_is_no_accident() {
        let nobody: [&str; 0] = [];
        assert_eq!(read(""), nobody);
        for end in [
            "running 1 test\n",
            "running 1 test\nrunning 1 test\ntest result: ok. 1 passed\n",
            "running 2 tests\ntest result: FAILED. 1 passed; 1 failed\n",
        ] {
            assert_eq!(read(&format!("{TWO}{end}")), nobody);
        }
    }
}

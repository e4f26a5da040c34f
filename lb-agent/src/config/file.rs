//! The configuration file, and what was typed over it.

use super::kube_proxy::Decoded;
use super::kube_proxy::document::KIND;
use crate::cli::args::RunArgs;
use serde::Deserialize;
use serde_saphyr::DuplicateKeyPolicy;
use std::path::Path;

/// What a configuration file holds.
#[derive(Debug, Default)]
pub struct Contents {
    /// Our own options.
    pub ours: RunArgs,
    /// kube-proxy's configuration, if there is one.
    pub kube_proxy: Option<Decoded>,
    /// Documents that are passed over, a sentence each.
    pub warnings: Vec<String>,
}

/// The text of a configuration file.
pub(super) fn read_text(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| {
        format!(
            "cannot read the configuration file {}: {error}",
            path.display()
        )
    })
}

/// Reads every document of a configuration file: ours has no `kind`, kube-proxy's has its own. An
/// error names its line.
pub fn parse_contents(text: &str) -> Result<Contents, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut contents = Contents::default();
    let mut ours = false;
    for document in documents(text) {
        let head = head(&document)?;
        match head.kind.as_deref() {
            None if head.api_version.is_none() => {
                if std::mem::replace(&mut ours, true) {
                    return Err("it has two documents without a kind: ours is one".to_owned());
                }
                contents.ours = parse_file(&document)?;
            }
            Some(KIND) => {
                if contents.kube_proxy.is_some() {
                    return Err(format!("it has two documents of kind {KIND}"));
                }
                contents.kube_proxy = Some(kube_proxy(&document)?);
            }
            kind => contents.warnings.push(format!(
                "a document of kind {} is not ours to read and ignored",
                kind.unwrap_or("(none)")
            )),
        }
    }
    if !contents.warnings.is_empty() && contents.kube_proxy.is_none() && !ours {
        return Err(format!(
            "it has neither a {KIND} nor a document of ours, which has no kind"
        ));
    }
    Ok(contents)
}

/// The documents of a file that hold anything, each behind as many empty lines as its first line
/// has before it, so that errors name lines of the file.
fn documents(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for (number, line) in text.lines().enumerate() {
        let rest = line.strip_prefix("---");
        if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r'])) {
            documents.push("\n".repeat(number));
        }
        if let Some(document) = documents.last_mut() {
            document.push_str(line);
            document.push('\n');
        }
    }
    documents.retain(|document| !is_empty(document));
    documents
}

/// A file of comments only is a document without content: no option is set.
fn is_empty(text: &str) -> bool {
    text.lines().all(|line| {
        let line = line.trim();
        line.is_empty() || line.starts_with('#') || line == "---" || line == "..."
    })
}

/// What kind of document it is.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    kind: Option<String>,
    api_version: Option<String>,
}

fn head(document: &str) -> Result<Head, String> {
    let options = serde_saphyr::options! {
        duplicate_keys: DuplicateKeyPolicy::LastWins,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(document, options).map_err(|error| sentence(&error))
}

/// kube-proxy's configuration: strictly, then leniently, as kube-proxy reads it.
fn kube_proxy(document: &str) -> Result<Decoded, String> {
    let strict = serde_saphyr::from_str::<serde_json::Value>(document);
    let (value, warning) = match strict {
        Ok(value) => (value, None),
        Err(error) => {
            let options = serde_saphyr::options! {
                duplicate_keys: DuplicateKeyPolicy::LastWins,
                with_snippet: false,
            };
            let lenient = serde_saphyr::from_str_with_options(document, options);
            let value = lenient.map_err(|error| sentence(&error))?;
            (
                value,
                Some(format!("{KIND}: {}; the last one counts", sentence(&error))),
            )
        }
    };
    let mut decoded = Decoded::from_value(value);
    decoded.warnings.splice(0..0, warning);
    Ok(decoded)
}

/// Our own options in a text; an error names its line.
pub fn parse_file(text: &str) -> Result<RunArgs, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if is_empty(text) {
        return Ok(RunArgs::default());
    }
    serde_saphyr::from_str(text).map_err(|error| sentence(&error))
}

/// What is wrong, with the line in front.
fn sentence(error: &serde_saphyr::Error) -> String {
    let at = error.location().map_or(0, |location| location.line());
    let message = error.without_snippet().to_string();
    // The library appends its own "at line L, column C", which is said in front already.
    let message = message
        .split(" at line ")
        .next()
        .unwrap_or(&message)
        .trim_end_matches([',', ':', ' ']);
    if at == 0 {
        message.to_owned()
    } else {
        format!("line {at}: {message}")
    }
}

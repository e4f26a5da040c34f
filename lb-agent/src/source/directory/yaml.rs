//! One YAML document → a value, within bounds. Pure; which documents there are and what they mean
//! is for the modules above this one.

/// How deep a document may nest: as deep as `serde_json` lets JSON.
pub(super) const DEPTH: usize = 128;
/// How many nodes the aliases of a document may stand for.
const REPLAYED: usize = 100_000;
/// How much text the scalars of a document may hold, those that aliases repeat included.
const EXPANDED: usize = 128 << 20;

/// Why a file does not parse.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct ParseError {
    /// The line of the file, from 1.
    pub line: u64,
    /// What is wrong there.
    pub reason: String,
}

/// One YAML document as `T`, with the error's line counted from the file's start.
pub(super) fn from_yaml<T: serde::de::DeserializeOwned>(
    text: &str,
    first_line: u64,
) -> Result<T, ParseError> {
    let options = serde_saphyr::options! {
        // A List of 10,000 services is nothing unusual; what nests deeper than JSON may, or grows
        // out of aliases beyond all measure, would cost the agent its stack or the node its memory.
        budget: serde_saphyr::budget! {
            max_depth: DEPTH,
            flow_nesting_limit: DEPTH,
            max_events: usize::MAX,
            max_nodes: usize::MAX,
            max_total_scalar_bytes: EXPANDED,
            max_reader_input_bytes: None,
            enforce_alias_anchor_ratio: false,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: REPLAYED,
        },
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let line = error.location().map_or(1, |location| location.line());
        ParseError {
            line: first_line + line.saturating_sub(1),
            reason: error.to_string(),
        }
    })
}

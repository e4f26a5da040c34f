//! Bytes of a manifest file → documents. Pure: YAML and JSON, several documents, `v1 List`,
//! byte-order mark, CRLF. What a document *means* is for the modules beside this one.

use super::object::{Manifest, ObjectKind};
use super::yaml::{ParseError, from_yaml};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

/// The stack for documents [`DEPTH`](super::yaml::DEPTH) levels deep; only what is used of it costs memory.
const STACK: usize = 16 << 20;

/// What a file holds.
#[derive(Debug)]
pub struct Parsed<T> {
    /// What was made of the objects of kinds we read, in the file's order.
    pub documents: Vec<T>,
    /// Other kinds, each once, as the file writes them.
    pub ignored: BTreeSet<String>,
}

/// A file under way: what `make` turns its objects into, one by one. Ten thousand typed objects at
/// once would be the agent's largest memory, and their holes would stay.
struct Reading<'a, T> {
    parsed: Parsed<T>,
    make: &'a (dyn Fn(Manifest) -> T + Sync),
}

/// Parses a whole file, all or nothing: a file that is broken anywhere may be half-written.
pub fn parse<T: Send>(
    path: &Path,
    bytes: &[u8],
    make: &(dyn Fn(Manifest) -> T + Sync),
) -> Result<Parsed<T>, ParseError> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let text = std::str::from_utf8(bytes).map_err(|error| ParseError {
        line: line_at(bytes, error.valid_up_to()),
        reason: "not UTF-8 text".to_owned(),
    })?;
    if text.trim().is_empty() {
        let reason = "the file is empty (to remove its objects, delete it)".to_owned();
        return Err(ParseError { line: 1, reason });
    }
    let mut reading = Reading {
        parsed: Parsed {
            documents: Vec::new(),
            ignored: BTreeSet::new(),
        },
        make,
    };
    if path
        .extension()
        .is_some_and(|extension| extension == "json")
    {
        json(text, &mut reading)?;
    } else {
        with_stack(|| yaml(text, &mut reading))?;
    }
    Ok(reading.parsed)
}

/// Parses on a thread whose stack holds [`DEPTH`](super::yaml::DEPTH) levels: one takes tens of kilobytes, and a stack
/// that overflows ends the whole agent.
fn with_stack(parse: impl FnOnce() -> Result<(), ParseError> + Send) -> Result<(), ParseError> {
    let failed = |reason: String| ParseError { line: 1, reason };
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("manifest".to_owned())
            .stack_size(STACK)
            .spawn_scoped(scope, parse)
            .map_err(|error| failed(format!("cannot be parsed now: {error}")))?
            .join()
            .unwrap_or_else(|_| Err(failed("the YAML parser broke on it".to_owned())))
    })
}

fn line_at(bytes: &[u8], offset: usize) -> u64 {
    1 + bytes
        .iter()
        .take(offset)
        .filter(|byte| **byte == b'\n')
        .count() as u64
}

fn json<T>(text: &str, reading: &mut Reading<'_, T>) -> Result<(), ParseError> {
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    loop {
        let start = stream.byte_offset();
        let Some(value) = stream.next() else {
            return Ok(());
        };
        let blank = text[start..].len() - text[start..].trim_start().len();
        let line = line_at(text.as_bytes(), start + blank);
        let value = value.map_err(|error| ParseError {
            line: error.line() as u64,
            reason: error.to_string(),
        })?;
        take(value, reading, line, &|_| None)?;
    }
}

/// Documents are split at `---` lines, as kubectl does; each is then parsed on its own, which
/// keeps line numbers and a small footprint.
fn yaml<T>(text: &str, reading: &mut Reading<'_, T>) -> Result<(), ParseError> {
    let (mut start, mut start_line, mut offset) = (0, 1, 0);
    let mut line_number = 0;
    for line in text.split_inclusive('\n') {
        line_number += 1;
        let rest = line.strip_prefix("---");
        if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n'])) {
            yaml_document(&text[start..offset], start_line, reading)?;
            (start, start_line) = (offset, line_number);
        }
        offset += line.len();
    }
    yaml_document(&text[start..], start_line, reading)
}

fn yaml_document<T>(
    text: &str,
    first_line: u64,
    reading: &mut Reading<'_, T>,
) -> Result<(), ParseError> {
    let content = |line: &&str| {
        let line = line.trim();
        !line.is_empty() && !line.starts_with('#') && line != "---" && line != "..."
    };
    let Some(skipped) = text.lines().position(|line| content(&line)) else {
        return Ok(());
    };
    let value: Value = from_yaml(text, first_line)?;
    let line = first_line + skipped as u64;
    take(value, reading, line, &|kind| {
        kind.yaml_error(text, first_line)
    })
}

type Locate<'a> = &'a dyn Fn(ObjectKind) -> Option<ParseError>;

fn take<T>(
    value: Value,
    reading: &mut Reading<'_, T>,
    line: u64,
    locate: Locate<'_>,
) -> Result<(), ParseError> {
    if value.is_null() {
        return Ok(());
    }
    let at = |reason: String| ParseError { line, reason };
    let field = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
    let (version, kind) = (field("apiVersion").to_owned(), field("kind").to_owned());
    if kind.is_empty() || version.is_empty() {
        let missing = if kind.is_empty() {
            "kind"
        } else {
            "apiVersion"
        };
        return Err(at(format!("the document has no {missing}")));
    }
    if version == "v1" && kind == "List" {
        let Value::Object(mut list) = value else {
            return Ok(());
        };
        return match list.remove("items") {
            Some(Value::Array(items)) => items
                .into_iter()
                .try_for_each(|item| take(item, reading, line, &|_| None)),
            None | Some(Value::Null) => Ok(()),
            Some(_) => Err(at("`items` of the List is not a list".to_owned())),
        };
    }
    let Some(kind) = ObjectKind::of(&version, &kind) else {
        reading.parsed.ignored.insert(format!("{version} {kind}"));
        return Ok(());
    };
    let manifest = Manifest::from_value(kind, value)
        .map_err(|reason| locate(kind).unwrap_or_else(|| at(reason)))?;
    reading.parsed.documents.push((reading.make)(manifest));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write;

    const TWO: &str = "# a comment\n---\napiVersion: v1\nkind: Service\nmetadata:\n  name: a\n---\n\
                       apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\n---\n# only a comment\n";

    /// The names of a file's objects.
    fn parse(path: &Path, bytes: &[u8]) -> Result<Parsed<String>, ParseError> {
        super::parse(path, bytes, &|manifest| manifest.name().name.to_string())
    }

    fn names(path: &str, text: &str) -> Vec<String> {
        parse(Path::new(path), text.as_bytes()).unwrap().documents
    }

    #[test]
    fn several_documents_with_comments_crlf_and_a_byte_order_mark_parse() {
        assert_eq!(names("a.yaml", TWO), ["a"]);
        assert_eq!(names("a.yaml", &TWO.replace('\n', "\r\n")), ["a"]);
        assert_eq!(names("a.yml", &format!("\u{feff}{TWO}")), ["a"]);
        let parsed = parse(Path::new("a.yaml"), TWO.as_bytes()).unwrap();
        assert_eq!(
            parsed.ignored.into_iter().collect::<Vec<_>>(),
            ["v1 ConfigMap"]
        );
    }

    #[test]
    fn json_and_lists_parse() {
        let list = r#"{"apiVersion":"v1","kind":"List","items":[
            {"apiVersion":"v1","kind":"Service","metadata":{"name":"a"}},
            {"apiVersion":"v1","kind":"Pod","metadata":{"name":"b"}}]}"#;
        assert_eq!(names("a.json", list), ["a", "b"]);
        assert_eq!(names("a.yaml", list), ["a", "b"], "JSON is YAML");
        let two = format!("{list}\n{list}");
        assert_eq!(
            names("a.json", &two).len(),
            4,
            "JSON documents one after the other"
        );
    }

    #[test]
    fn a_file_that_does_not_parse_is_named_with_its_line() {
        let broken = format!("{TWO}---\napiVersion: v1\nkind: [\n");
        let error = parse(Path::new("a.yaml"), broken.as_bytes()).unwrap_err();
        assert!((14..=16).contains(&error.line), "{error}");
        let typed =
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  ports: [{port: x}]\n";
        let error = parse(Path::new("a.yaml"), typed.as_bytes()).unwrap_err();
        assert_eq!(error.line, 5, "{error}");
        let error = parse(Path::new("a.json"), b"{\n\"a\": ,\n}").unwrap_err();
        assert_eq!(error.line, 2, "{error}");
        let error = parse(Path::new("a.yaml"), b"a: b\n\xff\n").unwrap_err();
        assert_eq!((error.line, error.reason.as_str()), (2, "not UTF-8 text"));
        assert!(parse(Path::new("a.yaml"), b"").is_err());
        assert!(parse(Path::new("a.yaml"), b"kind: Service\n").is_err());
    }

    #[test]
    fn deep_nesting_and_alias_bombs_are_errors_and_cost_neither_stack_nor_memory() {
        let deep = 200_000;
        let mut ladder = String::new();
        for depth in 0..5_000 {
            writeln!(ladder, "{:depth$}a:", "").unwrap();
        }
        let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for step in 1..12 {
            let before = vec![format!("*a{}", step - 1); 10].join(", ");
            writeln!(laughs, "a{step}: &a{step} [{before}]").unwrap();
        }
        let long = format!(
            "a: &a {}\nb: [{}]\n",
            "x".repeat(1 << 20),
            vec!["*a"; 20_000].join(", ")
        );
        let recursive = "a: &a [*a]\n";
        for (name, text) in [
            ("flow", "[".repeat(deep)),
            ("braces", "{a: ".repeat(deep)),
            ("block", "- ".repeat(deep)),
            ("ladder", ladder),
            ("laughs", laughs),
            ("long", long),
            ("recursive", recursive.to_owned()),
        ] {
            let error = parse(Path::new("a.yaml"), text.as_bytes());
            assert!(error.is_err(), "{name}");
        }
        let error = parse(Path::new("a.json"), "[".repeat(deep).as_bytes()).unwrap_err();
        assert_eq!(error.line, 1, "{error}");
    }

    #[test]
    fn aliases_as_people_use_them_and_large_lists_parse() {
        let mut text = String::from(
            "apiVersion: v1\nkind: List\nitems:\n- &first {apiVersion: v1, kind: Service, \
             metadata: {name: a}, spec: &spec {ports: [{port: 80}]}}\n",
        );
        for number in 0..2_000 {
            writeln!(
                text,
                "- {{apiVersion: v1, kind: Service, metadata: {{name: s{number}}}, spec: *spec}}"
            )
            .unwrap();
        }
        assert_eq!(names("a.yaml", &text).len(), 2_001);
    }

    #[test]
    fn a_key_that_stands_twice_is_named_with_its_line() {
        let text = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nkind: Pod\n";
        let error = parse(Path::new("a.yaml"), text.as_bytes()).unwrap_err();
        assert_eq!(error.line, 4, "{error}");
    }
}

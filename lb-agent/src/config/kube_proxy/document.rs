//! A `KubeProxyConfiguration` as a tree of known fields: decoded strictly first, then leniently with
//! a line that names what is not known, as kube-proxy does for `v1alpha1`.

use super::duration;
use super::field::{FIELDS, Field, Shape};
use serde_json::{Map, Value};
use std::time::Duration;

/// `apiVersion` of the documents we read.
pub const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
/// `kind` of the documents we read.
pub const KIND: &str = "KubeProxyConfiguration";

/// Known fields that are set, each of its shape.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Document(Map<String, Value>);

/// A document with what there is to say about it.
#[derive(Debug, Default)]
pub struct Decoded {
    /// What could be used.
    pub document: Document,
    /// What is wrong, a sentence each.
    pub problems: Vec<String>,
    /// What is passed over, a sentence each.
    pub warnings: Vec<String>,
}

impl Decoded {
    /// Takes a parsed document apart.
    pub fn from_value(value: Value) -> Self {
        let mut decoded = Self::default();
        let Value::Object(mut object) = value else {
            decoded.problems.push(format!("{KIND} is not a mapping"));
            return decoded;
        };
        object.remove("kind");
        let version = object.remove("apiVersion").unwrap_or_default();
        if version != API_VERSION {
            decoded.problems.push(format!(
                "{KIND} has apiVersion {version}: {API_VERSION} is the one that is known"
            ));
        }
        decoded.section("", object);
        decoded
    }

    fn section(&mut self, prefix: &str, object: Map<String, Value>) {
        for (name, value) in object {
            let path = if prefix.is_empty() {
                name
            } else {
                format!("{prefix}.{name}")
            };
            if let Some(field) = FIELDS.iter().find(|field| field.path == path) {
                self.field(field, value);
                continue;
            }
            let inside = |field: &&&Field| {
                field
                    .path
                    .strip_prefix(path.as_str())
                    .is_some_and(|rest| rest.starts_with('.'))
            };
            match (FIELDS.iter().find(inside), value) {
                (Some(_), Value::Object(inner)) => self.section(&path, inner),
                (Some(_), Value::Null) => {}
                (Some(_), _) => self
                    .problems
                    .push(format!("{KIND}: `{path}` is not a mapping")),
                (None, _) => self.warnings.push(format!(
                    "{KIND}: the field `{path}` is not known and ignored"
                )),
            }
        }
    }

    fn field(&mut self, field: &Field, value: Value) {
        if value.is_null() {
            return;
        }
        match checked(field.shape, value) {
            Ok(value) => self.document.set(field, value),
            Err(wanted) => self
                .problems
                .push(format!("{KIND}: `{}` must be {wanted}", field.path)),
        }
    }
}

/// The value if it has the shape, else what it must be.
fn checked(shape: Shape, value: Value) -> Result<Value, String> {
    let texts = |items: &[Value]| items.iter().all(Value::is_string);
    match (shape, &value) {
        (Shape::Any, _)
        | (Shape::Bool, Value::Bool(_))
        | (Shape::Number, Value::Number(_))
        | (Shape::Text, Value::String(_)) => Ok(value),
        (Shape::Int, Value::Number(number)) if number.as_i64().is_some() => Ok(value),
        (Shape::List, Value::Array(items)) if texts(items) => Ok(value),
        (Shape::Gates, Value::Object(gates)) if gates.values().all(Value::is_boolean) => Ok(value),
        (Shape::Duration, Value::String(text)) if duration::parse(text).is_some() => Ok(value),
        _ => Err(format!("{}, not {value}", wanted(shape))),
    }
}

const fn wanted(shape: Shape) -> &'static str {
    match shape {
        Shape::Bool => "true or false",
        Shape::Int => "a whole number",
        Shape::Number => "a number",
        Shape::Text => "text",
        Shape::Duration => "a duration such as 1m30s",
        Shape::List => "a list of texts",
        Shape::Gates => "names with true or false",
        Shape::Any => "anything",
    }
}

/// What a flag's words mean for its field: the last one counts, lists add up.
pub(super) fn value_of(field: &Field, words: &[String]) -> Result<Value, String> {
    let last = words.last().map(String::as_str).unwrap_or_default();
    let value = match field.shape {
        Shape::Bool => match last {
            "1" | "t" | "T" | "true" | "True" | "TRUE" => Some(Value::Bool(true)),
            "0" | "f" | "F" | "false" | "False" | "FALSE" => Some(Value::Bool(false)),
            _ => None,
        },
        Shape::Int => last.parse::<i64>().ok().map(Value::from),
        Shape::Number => last.parse::<f64>().ok().map(Value::from),
        Shape::List => Some(list(words)),
        Shape::Gates => gates(words),
        Shape::Text | Shape::Duration | Shape::Any => Some(Value::from(last)),
    };
    let value = value.unwrap_or_else(|| Value::from(last));
    checked(field.shape, value).map_err(|wanted| format!("--{} must be {wanted}", field.flag()))
}

fn pieces(words: &[String]) -> impl Iterator<Item = &str> {
    let pieces = words.iter().flat_map(|word| word.split(','));
    pieces.map(str::trim).filter(|piece| !piece.is_empty())
}

fn list(words: &[String]) -> Value {
    pieces(words).map(Value::from).collect()
}

fn gates(words: &[String]) -> Option<Value> {
    let gate = |piece: &str| {
        let (name, on) = piece.split_once('=')?;
        let on: bool = on.trim().to_lowercase().parse().ok()?;
        Some((name.trim().to_owned(), Value::Bool(on)))
    };
    let gates: Option<Map<String, Value>> = pieces(words).map(gate).collect();
    gates.map(Value::Object)
}

impl Document {
    /// Sets a field.
    pub fn set(&mut self, field: &Field, value: Value) {
        let mut place = &mut self.0;
        let mut names = field.path.split('.').peekable();
        while let Some(name) = names.next() {
            if names.peek().is_none() {
                place.insert(name.to_owned(), value);
                return;
            }
            let section = place
                .entry(name)
                .or_insert_with(|| Value::Object(Map::new()));
            let Value::Object(inner) = section else {
                return;
            };
            place = inner;
        }
    }

    /// A field's value as it was set.
    pub fn get(&self, field: &Field) -> Option<&Value> {
        let mut names = field.path.split('.');
        let first = self.0.get(names.next()?)?;
        names.try_fold(first, |value, name| value.get(name))
    }

    /// Text that is set and not empty.
    pub fn text(&self, field: &Field) -> Option<&str> {
        let text = self.get(field)?.as_str()?.trim();
        (!text.is_empty()).then_some(text)
    }

    /// A switch that is set.
    pub fn switch(&self, field: &Field) -> Option<bool> {
        self.get(field)?.as_bool()
    }

    /// A number that is set.
    pub fn int(&self, field: &Field) -> Option<i64> {
        self.get(field)?.as_i64()
    }

    /// The items of a list; empty if it is not set.
    pub fn list(&self, field: &Field) -> Vec<&str> {
        let items = self.get(field).and_then(Value::as_array);
        items
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect()
    }

    /// A duration that is set; `Err` if it is negative.
    pub fn duration(&self, field: &Field) -> Result<Option<Duration>, String> {
        let Some(text) = self.text(field) else {
            return Ok(None);
        };
        match duration::parse(text) {
            Some(duration::Parsed::Positive(duration)) => Ok(Some(duration)),
            Some(duration::Parsed::Negative) => {
                Err(format!("`{}` is {text}: it cannot be negative", field.path))
            }
            None => Err(format!("`{}` is {text}: no duration", field.path)),
        }
    }

    /// True if a field is set to something that is neither nothing nor its default.
    pub fn differs(&self, field: &Field) -> bool {
        let Some(value) = self.get(field) else {
            return false;
        };
        !is_nothing(value)
            && serde_json::from_str::<Value>(field.default)
                .is_ok_and(|default| !same(&default, value))
    }

    /// The whole with every default, as kube-proxy would print it.
    pub fn with_defaults(&self) -> Value {
        let mut whole = Self::default();
        whole.0.insert("apiVersion".to_owned(), API_VERSION.into());
        whole.0.insert("kind".to_owned(), KIND.into());
        for field in FIELDS {
            let set = self.get(field).filter(|value| !is_unset(field, value));
            let value = set
                .cloned()
                .or_else(|| serde_json::from_str(field.default).ok());
            whole.set(field, value.unwrap_or_default());
        }
        Value::Object(whole.0)
    }
}

/// Values that stand for "not set" in every field: what Go leaves in an untouched one.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => {
            text.is_empty()
                || text == "0"
                || duration::parse(text) == Some(duration::Parsed::Positive(Duration::ZERO))
        }
        Value::Array(items) => items.is_empty(),
        Value::Object(inner) => inner.values().all(is_nothing),
    }
}

/// Zero is a value of its own where a field is a pointer in Go (`conntrack.maxPerCore: 0`).
fn is_unset(field: &Field, value: &Value) -> bool {
    match value {
        Value::Bool(_) => false,
        _ if field.path.starts_with("conntrack.") || field.path == "oomScoreAdj" => value.is_null(),
        _ => is_nothing(value),
    }
}

fn same(one: &Value, other: &Value) -> bool {
    let time = |value: &Value| value.as_str().and_then(duration::parse);
    one == other
        || (one.is_number() && one.as_f64() == other.as_f64())
        || time(one).is_some_and(|duration| Some(duration) == time(other))
}

#[cfg(test)]
mod tests {
    use super::super::field;
    use super::*;
    use serde_json::json;

    fn decode(mut value: Value) -> Decoded {
        value["apiVersion"] = API_VERSION.into();
        value["kind"] = KIND.into();
        Decoded::from_value(value)
    }

    #[test]
    fn every_field_is_found_where_it_was_set() {
        for one in field::FIELDS {
            let mut document = Document::default();
            let default: Value = serde_json::from_str(one.default).unwrap();
            document.set(one, default.clone());
            assert_eq!(document.get(one), Some(&default), "{}", one.path);
            let decoded = decode(Value::Object(document.0.clone()));
            assert!(decoded.problems.is_empty(), "{:?}", decoded.problems);
            assert!(decoded.warnings.is_empty(), "{:?}", decoded.warnings);
            assert_eq!(decoded.document, document, "{}", one.path);
        }
    }

    #[test]
    fn unknown_fields_are_named_wherever_they_stand_and_the_rest_counts() {
        let decoded = decode(json!({
            "mode": "nftables", "frobnicate": 1,
            "iptables": {"syncPeriod": "5s", "color": "red"},
        }));
        assert!(decoded.problems.is_empty());
        let warnings = decoded.warnings.join("\n");
        assert!(warnings.contains("`frobnicate`") && warnings.contains("`iptables.color`"));
        assert_eq!(decoded.document.text(&field::MODE), Some("nftables"));
        let period = decoded.document.duration(&field::IPTABLES_SYNC);
        assert_eq!(period, Ok(Some(Duration::from_secs(5))));
    }

    #[test]
    fn a_value_of_another_shape_is_a_problem_that_names_the_field() {
        let decoded = decode(json!({
            "mode": 3, "conntrack": {"maxPerCore": "many", "min": 1.5}, "iptables": {"syncPeriod": 30},
            "nodePortAddresses": "primary", "detectLocal": "eth0",
        }));
        let problems = decoded.problems.join("\n");
        for wanted in [
            "`mode` must be text, not 3",
            "`conntrack.maxPerCore` must be a whole number",
            "`conntrack.min` must be a whole number",
            "`iptables.syncPeriod` must be a duration such as 1m30s, not 30",
            "`nodePortAddresses` must be a list of texts",
            "`detectLocal` is not a mapping",
        ] {
            assert!(problems.contains(wanted), "{wanted}\nnot in\n{problems}");
        }
    }

    #[test]
    fn what_is_not_set_is_null_zero_or_empty_and_differs_from_nothing() {
        let decoded = decode(json!({
            "clientConnection": {"burst": 0, "contentType": ""}, "configSyncPeriod": "0s",
            "conntrack": {"maxPerCore": null, "tcpEstablishedTimeout": "0s"}, "winkernel":
            {"enableDSR": false, "networkName": ""}, "logging": {"options": {"json":
            {"infoBufferSize": "0"}}}, "ipvs": {"strictARP": true},
        }));
        assert!(decoded.problems.is_empty(), "{:?}", decoded.problems);
        let differing: Vec<_> = (field::FIELDS.iter())
            .filter(|field| decoded.document.differs(field))
            .map(|field| field.path)
            .collect();
        assert_eq!(differing, ["ipvs.strictARP"]);
        let whole = decoded.document.with_defaults();
        assert_eq!(whole["configSyncPeriod"], "15m0s");
        assert_eq!(whole["conntrack"]["maxPerCore"], 32768);
        assert_eq!(whole["conntrack"]["tcpEstablishedTimeout"], "0s");
    }

    #[test]
    fn words_of_flags_become_values_of_their_fields() {
        let of = |field, words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            value_of(field, &words)
        };
        assert_eq!(of(&field::PROFILING, &["T"]), Ok(json!(true)));
        assert_eq!(of(&field::OOM_SCORE, &["1", "-5"]), Ok(json!(-5)));
        let addresses = of(
            &field::NODE_PORT_ADDRESSES,
            &["10.0.0.0/8,fd00::/8", "11.0.0.0/8"],
        );
        assert_eq!(
            addresses,
            Ok(json!(["10.0.0.0/8", "fd00::/8", "11.0.0.0/8"]))
        );
        assert_eq!(
            of(&field::FEATURE_GATES, &["A=true,B=False"]),
            Ok(json!({"A": true, "B": false}))
        );
        let error = of(&field::IPTABLES_SYNC, &["30"]).unwrap_err();
        assert!(
            error.starts_with("--iptables-sync-period must be a duration"),
            "{error}"
        );
        assert!(of(&field::FEATURE_GATES, &["A"]).is_err());
        assert!(of(&field::QPS, &["x"]).is_err());
    }
}

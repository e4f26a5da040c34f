//! Durations as Go writes them: `1h2m3.5s`, `250ms`, `0`.

use std::time::Duration;

/// Units and how many nanoseconds each is; longer names first where one begins with the other.
const UNITS: [(&str, f64); 8] = [
    ("ns", 1.0),
    ("us", 1e3),
    ("µs", 1e3),
    ("μs", 1e3),
    ("ms", 1e6),
    ("s", 1e9),
    ("m", 6e10),
    ("h", 3.6e12),
];

/// The longest that Go's 64-bit count of nanoseconds holds.
const LONGEST: f64 = 9.2e18;

/// A duration that may be negative, which validation refuses by name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Parsed {
    /// Zero or more.
    Positive(Duration),
    /// Less than zero.
    Negative,
}

/// Reads Go's notation; `None` if it is none.
pub(super) fn parse(text: &str) -> Option<Parsed> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(Parsed::Positive(Duration::ZERO));
    }
    if rest.is_empty() {
        return None;
    }
    let mut nanos = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(end);
        let number: f64 = number.parse().ok()?;
        let (unit, size) = UNITS.iter().find(|(unit, _)| is_unit(after, unit))?;
        nanos += number * size;
        rest = after.get(unit.len()..)?;
    }
    if nanos > LONGEST {
        return None;
    }
    Some(if negative && nanos > 0.0 {
        Parsed::Negative
    } else {
        Parsed::Positive(Duration::from_secs_f64(nanos / 1e9))
    })
}

/// True if `text` begins with this unit and not with a longer one (`m` against `ms`).
fn is_unit(text: &str, unit: &str) -> bool {
    text.strip_prefix(unit).is_some_and(|after| {
        after
            .chars()
            .next()
            .is_none_or(|c| c.is_ascii_digit() || c == '.')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, millis) in [
            ("0", 0),
            ("0s", 0),
            ("24h0m0s", 86_400_000),
            ("1m30s", 90_000),
            ("1.5h", 5_400_000),
            ("250ms", 250),
            ("-0s", 0),
        ] {
            assert_eq!(
                parse(text),
                Some(Parsed::Positive(Duration::from_millis(millis))),
                "{text}"
            );
        }
        assert_eq!(parse("-5s"), Some(Parsed::Negative));
        for text in ["", "30", "1d", "s", "1 s", "+", "99999999999h"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}

//! Recognises a text that was cut off: a file half-written, although its half may parse. Pure.

/// What is remembered of a file's text to recognise its half: a running hash at each line's end,
/// and the lines at which documents begin.
#[derive(Clone, Debug, Default)]
pub(super) struct Shape {
    lines: Box<[u32]>,
    separators: Box<[usize]>,
    last: Box<[u8]>,
}

/// Where a known text was cut off.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Cut {
    /// Within a line. Such a text may parse (`port: 8080` cut to `port: 80`) and is never what
    /// somebody wants.
    WithinLine,
    /// Between two lines of one document.
    WithinDocument,
    /// Between documents: whoever deletes the last one leaves that, too.
    BetweenDocuments,
}

impl Shape {
    /// The shape of a text that parsed.
    pub(super) fn of(bytes: &[u8]) -> Self {
        let separator = |(index, line): (usize, &[u8])| line.starts_with(b"---").then_some(index);
        let lines = bytes.split(|byte| *byte == b'\n').enumerate();
        Self {
            lines: running_hashes(bytes).collect(),
            separators: lines.filter_map(separator).collect(),
            last: bytes
                .trim_ascii_end()
                .rsplit(|byte| *byte == b'\n')
                .next()
                .unwrap_or(b"")
                .into(),
        }
    }

    /// Whether and where `bytes` are the remembered text cut off.
    pub(super) fn cut(&self, bytes: &[u8]) -> Option<Cut> {
        let whole: Vec<u32> = running_hashes(bytes).collect();
        let known = whole.len() < self.lines.len() && self.lines.starts_with(&whole);
        if bytes.is_empty() || !known {
            return None;
        }
        let separator = |line: usize| self.separators.binary_search(&line).is_ok();
        let rest = bytes.rsplit(|byte| *byte == b'\n').next().unwrap_or(b"");
        let in_last = whole.len() + 1 == self.lines.len();
        if in_last && !rest.is_empty() && (rest == &*self.last || !self.last.starts_with(rest)) {
            // The last line is edited, or only its end is gone, as some editors leave it.
            return None;
        }
        Some(if !rest.is_empty() {
            Cut::WithinLine
        } else if separator(whole.len()) || separator(whole.len() - 1) {
            Cut::BetweenDocuments
        } else {
            Cut::WithinDocument
        })
    }
}

/// FNV-1a over everything up to each newline.
fn running_hashes(bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    bytes
        .iter()
        .scan(0x811c_9dc5_u32, |hash, byte| {
            *hash = (*hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
            Some((*byte == b'\n', *hash))
        })
        .filter_map(|(end, hash)| end.then_some(hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_was_cut_off_is_recognised() {
        let shape = Shape::of(b"a: 1\nport: 8080\n---\nb: 1\n");
        for (text, cut) in [
            ("a: 1\nport: 80", Some(Cut::WithinLine)),
            ("a:", Some(Cut::WithinLine)),
            ("a: 1\n", Some(Cut::WithinDocument)),
            ("a: 1\nport: 8080\n", Some(Cut::BetweenDocuments)),
            ("a: 1\nport: 8080\n---\n", Some(Cut::BetweenDocuments)),
            ("a: 2\nport: 80", None),
            ("a: 1\nport: 8080\n---\nb:", Some(Cut::WithinLine)),
            ("a: 1\nport: 8080\n---\nb: 1", None),
            ("a: 1\nport: 8080\n---\nb: 2", None),
            ("", None),
        ] {
            assert_eq!(shape.cut(text.as_bytes()), cut, "{text:?}");
        }
    }
}

//! Text in columns, as `kubectl` and `ipvsadm` print it.

use std::fmt;

/// Rows of cells; a column is as wide as its widest cell. The last cell of a row may be wider than
/// its column, so a sentence at the end of a short row does not push the others apart.
#[derive(Debug)]
pub(crate) struct Columns {
    rows: Vec<Vec<String>>,
}

impl Columns {
    /// With these headings.
    pub(crate) fn new(header: Vec<&str>) -> Self {
        Self {
            rows: vec![header.into_iter().map(str::to_owned).collect()],
        }
    }

    /// Without headings.
    pub(crate) const fn headless() -> Self {
        Self { rows: Vec::new() }
    }

    /// Adds a row; it may have fewer cells than there are headings.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Width of each column, from cells that have a neighbour to the right.
    fn widths(&self) -> Vec<usize> {
        let mut widths = vec![0; self.rows.iter().map(Vec::len).max().unwrap_or(0)];
        for row in &self.rows {
            let filled = row.iter().rposition(|cell| !cell.is_empty()).unwrap_or(0);
            for (width, cell) in widths.iter_mut().zip(&row[..filled]) {
                *width = (*width).max(cell.chars().count());
            }
        }
        widths
    }
}

impl fmt::Display for Columns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.widths();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                let missing = width.saturating_sub(cell.chars().count());
                line.extend(std::iter::repeat_n(' ', missing + 2));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

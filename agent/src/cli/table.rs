//! Tables as kubectl prints them: headers in capitals, three spaces between columns, nothing behind the last.

use std::fmt::Write as _;

/// Between two columns.
const GAP: &str = "   ";

/// What stands for nothing.
pub(super) const NOTHING: &str = "-";

/// Rows of cells, each row as long as the headers.
#[derive(Debug)]
pub(super) struct Table {
    headers: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) const fn new(headers: Vec<&'static str>) -> Self {
        Self { headers, rows: Vec::new() }
    }

    /// One more row. An empty cell becomes [`NOTHING`].
    pub(super) fn row(&mut self, mut cells: Vec<String>) {
        cells.resize(self.headers.len(), String::new());
        for cell in cells.iter_mut().filter(|cell| cell.is_empty()) {
            NOTHING.clone_into(cell);
        }
        self.rows.push(cells);
    }

    /// The text, with a line end behind each row.
    pub(super) fn text(&self, with_headers: bool) -> String {
        let headers: Vec<String> = self.headers.iter().map(|&header| header.to_owned()).collect();
        let lines = || with_headers.then_some(&headers).into_iter().chain(&self.rows);
        let width = |column: usize| lines().map(|cells| cells[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..headers.len()).map(width).collect();
        let mut text = String::new();
        for cells in lines() {
            for (column, (cell, &width)) in cells.iter().zip(&widths).enumerate() {
                // Writing to a `String` never fails.
                let _ = match column + 1 == cells.len() {
                    true => writeln!(text, "{cell}"),
                    false => write!(text, "{cell:<width$}{GAP}"),
                };
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(vec!["IMAGE", "SIZE"]);
        table.row(vec!["docker.io/library/nginx:1.29".to_owned(), "3.0MiB".to_owned()]);
        table.row(vec!["a/b".to_owned()]);
        assert_eq!(
            table.text(true),
            "IMAGE                          SIZE\n\
             docker.io/library/nginx:1.29   3.0MiB\n\
             a/b                            -\n"
        );
        assert_eq!(table.text(false).lines().count(), 2);
        assert_eq!(Table::new(vec!["A"]).text(true), "A\n");
    }
}

//! Aligned columns.
//!
//! Every cell passes through [`printable`] here, so no verb can forget it. The last column is not padded, and columns that are empty
//! in every row still show: a person who asked twice compares by position.

use crate::model::printable;

/// Longer cells are cut; `--json` has them whole.
const CELL_CHARS_MAX: usize = 72;

/// Rows below a heading.
#[derive(Debug)]
pub(crate) struct Table<const COLUMNS: usize> {
    heading: [&'static str; COLUMNS],
    rows: Vec<[String; COLUMNS]>,
}

impl<const COLUMNS: usize> Table<COLUMNS> {
    /// An empty table.
    pub(crate) fn new(heading: [&'static str; COLUMNS]) -> Self {
        Self { heading, rows: Vec::new() }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: [String; COLUMNS]) {
        self.rows.push(cells.map(|cell| printable(&cell, CELL_CHARS_MAX)));
    }

    /// Whether there is no row.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table as text, its heading bold if `colour`.
    pub(crate) fn text(&self, colour: bool) -> String {
        let heading = self.heading.map(str::to_uppercase);
        let width = |column: usize| {
            let cells = self.rows.iter().chain([&heading]).filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..COLUMNS).map(width).collect();
        let mut text = bold(&line(&heading, &widths), colour) + "\n";
        for row in &self.rows {
            text += &line(row, &widths);
            text.push('\n');
        }
        text
    }
}

fn line(cells: &[String], widths: &[usize]) -> String {
    let padded: Vec<String> = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
    padded.join("  ").trim_end().to_owned()
}

/// `text` in bold, if `colour`.
pub(crate) fn bold(text: &str, colour: bool) -> String {
    if colour { format!("\u{1b}[1m{text}\u{1b}[0m") } else { text.to_owned() }
}

/// Names and values below one another, values aligned.
pub(crate) fn facts(facts: &[(&str, String)]) -> String {
    let width = facts.iter().map(|(name, _)| name.chars().count()).max().unwrap_or_default();
    facts.iter().map(|(name, value)| format!("{name:width$}  {value}").trim_end().to_owned() + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table<3> {
        let mut table = Table::new(["agent", "state", "load"]);
        table.row(["a".to_owned(), "available".to_owned(), "0".to_owned()]);
        table.row(["größer".to_owned(), "suspect\u{1b}[31m".to_owned(), "12".to_owned()]);
        table
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        assert_eq!(table().text(false), "AGENT   STATE         LOAD\na       available     0\ngrößer  suspect\u{fffd}[31m  12\n");
    }

    #[test]
    fn only_the_heading_is_bold() {
        let text = table().text(true);
        assert!(text.starts_with("\u{1b}[1mAGENT") && text.matches('\u{1b}').count() == 2);
    }

    #[test]
    fn facts_stand_below_one_another() {
        assert_eq!(facts(&[("node", "n".to_owned()), ("up", "3 s".to_owned())]), "node  n\nup    3 s\n");
    }
}

//! Tables and JSON on the terminal.

use std::fmt;
use std::io::Write;

use serde::Serialize;
use serde_json::Value;
use terminal_size::Width;

/// Writes to standard output for as long as anybody reads it.
pub(super) fn write(text: fmt::Arguments<'_>) {
    // Nobody is left to be told.
    let _ = std::io::stdout().write_fmt(text);
}

/// Prints a value as JSON, for scripts.
pub(super) fn json(value: &impl Serialize) {
    println!("{}", serde_json::to_string_pretty(value).expect("what we print encodes as JSON"));
}

/// A table with left-aligned columns, as wide as their widest cell. On a terminal it is no wider than that.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
    spare: &'static [&'static str],
}

impl Table {
    pub(super) fn new<const N: usize>(titles: [&str; N]) -> Self {
        Self { rows: vec![titles.map(str::to_owned).to_vec()], spare: &[] }
    }

    /// Columns that are left out one after the other where there is no room for all.
    pub(super) fn spare(self, titles: &'static [&'static str]) -> Self {
        Self { spare: titles, ..self }
    }

    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.to_vec());
    }

    pub(super) fn print(self) {
        let terminal = terminal_size::terminal_size_of(std::io::stdout());
        let room = terminal.map(|(Width(width), _)| usize::from(width)).filter(|width| *width > 0);
        print!("{}", self.text(room.unwrap_or(usize::MAX)));
    }

    fn text(mut self, room: usize) -> String {
        let mut left_out = Vec::new();
        for title in self.spare {
            if width(&self.widths()) <= room {
                break;
            }
            let column = self.rows[0].iter().position(|known| known == title).expect("a spare column is one");
            self.rows.iter_mut().for_each(|row| drop(row.remove(column)));
            left_out.push(title.to_lowercase());
        }
        let mut widths = self.widths();
        while width(&widths) > room
            && let Some(widest) = widths.iter_mut().max().filter(|widest| **widest > 1)
        {
            *widest -= 1;
        }
        let mut text = String::new();
        for row in &self.rows {
            let cells = row.iter().zip(&widths);
            let line: Vec<String> =
                cells.map(|(cell, &width)| format!("{:<width$}", cut(cell, width))).collect();
            text += line.join("  ").trim_end();
            text.push('\n');
        }
        if !left_out.is_empty() {
            text += &format!("no room for {}:\nall of it with --output json\n", left_out.join(", "));
        }
        text
    }

    fn widths(&self) -> Vec<usize> {
        let widest = |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max();
        (0..self.rows[0].len()).map(|column| widest(column).unwrap_or_default()).collect()
    }
}

/// Of a line with columns of these widths.
fn width(columns: &[usize]) -> usize {
    columns.iter().sum::<usize>() + 2 * columns.len().saturating_sub(1)
}

/// A JSON value on one line, cut to `limit` characters.
pub(super) fn brief(value: &Value, limit: usize) -> String {
    match value {
        Value::String(text) => cut(text, limit),
        other => cut(&other.to_string(), limit),
    }
}

fn cut(text: &str, limit: usize) -> String {
    if text.chars().count() <= limit {
        return text.to_owned();
    }
    text.chars().take(limit.saturating_sub(1)).chain(['…']).collect()
}

/// Milliseconds as people say them.
pub(super) fn took(millis: i64) -> String {
    match millis {
        ..1_000 => format!("{millis} ms"),
        1_000..60_000 => format!("{:.1} s", millis as f64 / 1_000.0),
        _ => format!("{} min {} s", millis / 60_000, millis / 1_000 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(["ID", "WHY", "SINCE"]);
        table.row(["a".repeat(20), "because ".repeat(5), "2026-01-01".to_owned()]);
        table
    }

    #[test]
    fn a_table_gives_up_spare_columns_and_then_the_ends_of_the_longest_cells() {
        let lines = |table: Table, room| table.text(room).lines().map(str::to_owned).collect::<Vec<_>>();
        let whole = lines(table(), usize::MAX);
        assert_eq!(whole, lines(table(), 74));
        assert_eq!(whole[1], format!("{}  {} 2026-01-01", "a".repeat(20), "because ".repeat(5) + " "));
        for room in [7, 20, 40, 73] {
            assert!(lines(table(), room).iter().all(|line| line.chars().count() <= room), "{room}");
        }
        let shortened = format!("{}  because because because…  2026-01-01", "a".repeat(20));
        assert_eq!(lines(table(), 58)[1], shortened);
        let spare = lines(table().spare(&["SINCE", "ID"]), 62);
        assert_eq!(spare[0].split_whitespace().collect::<Vec<_>>(), ["ID", "WHY"]);
        assert_eq!(spare[2], "no room for since:");
    }
}

//! Tables for people, JSON for programs.

use std::io::{self, Write as _};

use anyhow::Context as _;
use clap::ValueEnum;
use comfy_table::{Table, presets};
use serde::Serialize;

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns.
    Table,
    /// One JSON value.
    Json,
}

/// A table without lines, such as kubectl prints; without titles there is no line for them.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if !header.is_empty() {
        table.set_header(header.iter().map(|title| title.to_uppercase()));
    }
    table
}

/// Writes `text`. A reader that has seen enough (`| head`) is no error.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("writing to standard output")
        }
        _ => Ok(()),
    }
}

/// Prints rows as a table or as JSON.
pub fn print_rows<T: Serialize>(
    format: Format,
    rows: &[T],
    header: &[&str],
    cells: impl Fn(&T) -> Vec<String>,
) -> anyhow::Result<()> {
    match format {
        Format::Json => print(&serde_json::to_string_pretty(rows)?),
        Format::Table => {
            let mut table = table(header);
            for row in rows {
                table.add_row(cells(row).into_iter().map(|cell| printable(&cell)));
            }
            print(&table.trim_fmt())
        }
    }
}

/// Prints each as a part of its own, or all as JSON.
pub fn print_each<T: Serialize>(
    format: Format,
    all: &[T],
    part: impl Fn(&T) -> String,
) -> anyhow::Result<()> {
    match format {
        Format::Json => print(&serde_json::to_string_pretty(all)?),
        Format::Table => print(&all.iter().map(part).collect::<Vec<_>>().join("\n\n")),
    }
}

/// Text without control characters: what a pinned map says comes from objects that others wrote,
/// and must not reach a terminal as an escape sequence (CVE-2026-25996 was such a case).
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_do_not_reach_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
    }
}

//! Plain text tables and sizes, as `list` and `get` print them.

use std::time::SystemTime;

/// Columns as wide as their widest cell, one space between them, no space at the end of a line.
pub fn render(titles: &[&str], rows: &[Vec<String>]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let widths: Vec<usize> = titles
        .iter()
        .enumerate()
        .map(|(at, title)| {
            rows.iter().map(|row| row[at].chars().count()).chain([title.len()]).max().unwrap_or(0)
        })
        .collect();
    let line = |cells: Vec<&str>| {
        let cells: Vec<String> = cells
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}", width = *width))
            .collect();
        cells.join(" ").trim_end().to_owned()
    };
    let mut lines = vec![line(titles.to_vec())];
    lines.extend(rows.iter().map(|row| line(row.iter().map(String::as_str).collect())));
    lines.join("\n")
}

/// Decimal units without a fraction, as macOS shows them.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["bytes", "kB", "MB", "GB", "TB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.0} {}", UNITS[unit])
}

pub fn gigabytes(count: u64) -> u64 {
    count / 1000 / 1000 / 1000
}

/// "2 minutes ago".
pub fn ago(time: SystemTime) -> String {
    let seconds = time.elapsed().unwrap_or_default().as_secs();
    let (count, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3_600 => (seconds / 60, "minute"),
        3_600..86_400 => (seconds / 3_600, "hour"),
        86_400..604_800 => (seconds / 86_400, "day"),
        604_800..2_592_000 => (seconds / 604_800, "week"),
        2_592_000..31_536_000 => (seconds / 2_592_000, "month"),
        _ => (seconds / 31_536_000, "year"),
    };
    if count == 0 {
        return "in 0 seconds".to_owned();
    }
    format!("{count} {unit}{} ago", if count == 1 { "" } else { "s" })
}

pub fn iso8601(time: SystemTime) -> String {
    let stamp = jiff::Timestamp::try_from(time).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    stamp.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_decimal_and_whole() {
        assert_eq!(bytes(512), "512 bytes");
        assert_eq!(bytes(21_474_836_480), "21 GB");
    }

    #[test]
    fn columns_line_up() {
        let rows = vec![vec!["local".to_owned(), "a".to_owned()], vec!["OCI".to_owned(), "bb".to_owned()]];
        assert_eq!(render(&["Source", "Name"], &rows), "Source Name\nlocal  a\nOCI    bb");
    }
}

//! Times, sizes, tables: how values look on a terminal.

use std::time::Duration;

/// `4 ms`, `0.21 s`, `12.4 s`, `3m 12s`, `2h 5m`.
pub fn took(time: Duration) -> String {
    let ms = time.as_millis();
    let s = time.as_secs();
    match ms {
        0..10 => format!("{ms} ms"),
        10..1_000 => format!("{:.2} s", time.as_secs_f64()),
        1_000..60_000 => format!("{:.1} s", time.as_secs_f64()),
        60_000..3_600_000 => format!("{}m {}s", s / 60, s % 60),
        _ => format!("{}h {}m", s / 3600, s / 60 % 60),
    }
}

/// `12 B`, `4.2 kB`, `1.3 MB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Text from elsewhere in a line of ours: no escape sequence of it reaches the terminal.
pub fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

/// A table: a head and rows, padded by columns, the last column free.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let head = head.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
    let all = || std::iter::once(&head).chain(rows);
    let width = |column: usize| {
        all().filter_map(|row| row.get(column)).map(|cell| clean(cell).chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    for row in all() {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{:<width$}", clean(cell)));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_short_and_keep_three_figures() {
        let ms = |n| took(Duration::from_millis(n));
        assert_eq!(
            [ms(4), ms(210), ms(12_400), ms(192_000), ms(7_500_000)],
            ["4 ms", "0.21 s", "12.4 s", "3m 12s", "2h 5m"]
        );
        assert_eq!(
            [size(12), size(4_200), size(999_999), size(1_300_000)],
            ["12 B", "4.2 kB", "1.0 MB", "1.3 MB"]
        );
    }

    #[test]
    fn a_hostile_name_does_not_move_the_cursor() {
        assert_eq!(clean("a\u{1b}[2Jb\r"), "a\u{fffd}[2Jb\u{fffd}");
        assert_eq!(table(&["A", "B"], &[vec!["xyz".into(), "1\u{7}".into()]]), "A    B\nxyz  1\u{fffd}\n");
    }
}

//! Bytes to lines. `\n` and `\r\n` end a line; a lone `\r` ends one too, so that a progress bar appears as it moves.

/// The longest line that is kept whole, in bytes as they came (a byte that is no UTF-8 becomes three in the text); a
/// longer one is split, so that a step without line ends cannot take our memory.
pub const LINE_BYTES_MAX: usize = 64 * 1024;

/// Cuts a stream into lines, whatever the pieces it comes in.
#[derive(Debug, Default)]
pub struct LineSplitter {
    /// The line so far, at most [`LINE_BYTES_MAX`] bytes.
    partial: Vec<u8>,
    /// The last byte was a `\r` which ended a line that was not empty: a `\n` now belongs to it.
    ended_by_return: bool,
}

impl LineSplitter {
    /// Takes the next bytes; returns the lines that they complete.
    pub fn push(&mut self, mut bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        while let Some(end) = bytes.iter().position(|b| matches!(b, b'\n' | b'\r')) {
            self.extend(&bytes[..end], &mut lines);
            if bytes[end] == b'\n' {
                if !(self.ended_by_return && self.partial.is_empty()) {
                    lines.push(self.cut(self.partial.len()));
                }
                self.ended_by_return = false;
            } else if !self.partial.is_empty() {
                // An empty piece between two returns is a cursor's move, not a line.
                lines.push(self.cut(self.partial.len()));
                self.ended_by_return = true;
            }
            bytes = &bytes[end + 1..];
        }
        self.extend(bytes, &mut lines);
        lines
    }

    /// The last line, when the stream did not end in a line's end.
    pub fn finish(&mut self) -> Option<String> {
        (!self.partial.is_empty()).then(|| self.cut(self.partial.len()))
    }

    fn extend(&mut self, mut bytes: &[u8], lines: &mut Vec<String>) {
        if !bytes.is_empty() {
            self.ended_by_return = false;
        }
        while self.partial.len() + bytes.len() > LINE_BYTES_MAX {
            let (head, rest) = bytes.split_at(LINE_BYTES_MAX - self.partial.len());
            self.partial.extend_from_slice(head);
            lines.push(self.cut(whole_chars(&self.partial)));
            bytes = rest;
        }
        self.partial.extend_from_slice(bytes);
    }

    fn cut(&mut self, at: usize) -> String {
        let line = String::from_utf8_lossy(&self.partial[..at]).into_owned();
        self.partial.drain(..at);
        line
    }
}

/// How many of these bytes there are without a character at the end that is not complete; never zero.
fn whole_chars(bytes: &[u8]) -> usize {
    let lead = bytes.iter().rposition(|b| b & 0xC0 != 0x80).unwrap_or(0);
    let width = match bytes[lead] {
        0xC0..=0xDF => 2,
        0xE0..=0xEF => 3,
        0xF0..=0xF7 => 4,
        0x00..=0xBF | 0xF8..=0xFF => 1,
    };
    if lead > 0 && lead + width > bytes.len() { lead } else { bytes.len() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(pieces: &[&[u8]]) -> Vec<String> {
        let mut splitter = LineSplitter::default();
        let mut lines: Vec<String> = pieces.iter().flat_map(|p| splitter.push(p)).collect();
        lines.extend(splitter.finish());
        lines
    }

    #[test]
    fn every_kind_of_end_ends_a_line_once() {
        assert_eq!(split(&[b"a\nb\r\nc\rd"]), ["a", "b", "c", "d"]);
        assert_eq!(split(&[b"\n\r\n\n"]), ["", "", ""]);
        assert_eq!(split(&[b"a\r", b"\nb"]), ["a", "b"]);
        assert_eq!(split(&[b"a\r\r\nb"]), ["a", "b"]);
        assert_eq!(split(&[b"\r10 %\r20 %\r\n\nend"]), ["10 %", "20 %", "", "end"]);
        assert!(split(&[b""]).is_empty());
    }

    #[test]
    fn what_is_no_utf8_is_replaced_and_a_character_cut_by_a_read_is_not() {
        assert_eq!(split(&[b"a\xFFb\n"]), ["a\u{FFFD}b"]);
        assert_eq!(split(&["ä".as_bytes()[..1].as_ref(), &"ä".as_bytes()[1..], b"\n"]), ["ä"]);
    }

    #[test]
    fn a_line_without_an_end_is_split_between_characters() {
        let long = "ä€𝄞".repeat(LINE_BYTES_MAX / 4);
        let lines = split(&[long.as_bytes()]);
        assert!(lines.len() > 2);
        assert!(lines.iter().all(|l| l.len() <= LINE_BYTES_MAX && !l.contains('\u{FFFD}')));
        assert_eq!(lines.concat(), long);
    }

    proptest! {
        #[test]
        fn the_pieces_a_stream_comes_in_do_not_matter(
            bytes in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), any::<u8>()], 0..400),
            cuts in prop::collection::vec(1_usize..9, 1..20),
        ) {
            let mut pieces = Vec::new();
            let (mut rest, mut cuts) = (bytes.as_slice(), cuts.iter().cycle());
            while !rest.is_empty() {
                let (piece, more) = rest.split_at((*cuts.next().expect("endless")).min(rest.len()));
                pieces.push(piece);
                rest = more;
            }
            prop_assert_eq!(split(&pieces), split(&[&bytes]));
        }

        #[test]
        fn nothing_but_ends_is_lost(text in "[a-zäß€\r\n]{0,200}") {
            let kept: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
            prop_assert_eq!(split(&[text.as_bytes()]).concat(), kept);
        }

        #[test]
        fn no_line_is_over_the_limit(lengths in prop::collection::vec(0_usize..LINE_BYTES_MAX * 2, 1..4)) {
            let text: Vec<u8> = lengths.iter().flat_map(|n| [vec![b'x'; *n], vec![b'\n']].concat()).collect();
            prop_assert!(split(&[&text]).iter().all(|l| l.len() <= LINE_BYTES_MAX));
        }
    }
}

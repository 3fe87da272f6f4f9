//! Bytes to lines. `\n` and `\r\n` end a line; a lone `\r` ends one too, so that a progress bar appears as it moves.
//!
//! Each line knows where in its stream it ends, and a splitter that begins there makes the same lines of what follows.

/// The longest line that is kept whole, in bytes as they came (a byte that is no UTF-8 becomes three in the text); a
/// longer one is split, so that a step without line ends cannot take our memory.
pub const LINE_BYTES_MAX: usize = 64 * 1024;

/// A line without its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    pub text: String,
    /// Bytes of the stream from its beginning to the end of this line. Of `\r\n` the `\r` ends it: whether a `\n` comes
    /// is not known yet.
    pub end: u64,
    /// It has no end of its own: it was too long, and the next one goes on with it.
    pub split: bool,
}

/// Cuts a stream into lines, whatever the pieces it comes in.
#[derive(Debug, Default)]
pub struct LineSplitter {
    /// The line so far, at most [`LINE_BYTES_MAX`] bytes.
    partial: Vec<u8>,
    /// The last byte was a `\r` which ended a line that was not empty: a `\n` now belongs to it.
    ended_by_return: bool,
    /// Bytes of the stream that were seen.
    seen: u64,
    /// The first byte to come is the one before our beginning: see [`LineSplitter::behind`].
    primer: bool,
}

impl LineSplitter {
    /// Begins behind a line that ended at `position`. Unless that is zero, it wants the byte before its beginning first,
    /// so that the second half of a `\r\n` is no empty line.
    pub fn behind(position: u64) -> Self {
        Self { seen: position, primer: position > 0, ..Self::default() }
    }

    /// Takes the next bytes; returns the lines that they complete.
    pub fn push(&mut self, mut bytes: &[u8]) -> Vec<Cut> {
        let mut lines = Vec::new();
        if let (true, Some((before, rest))) = (self.primer, bytes.split_first()) {
            (self.primer, self.ended_by_return, bytes) = (false, *before == b'\r', rest);
        }
        while let Some(end) = bytes.iter().position(|b| matches!(b, b'\n' | b'\r')) {
            self.extend(&bytes[..end], &mut lines);
            self.seen += 1;
            if bytes[end] == b'\n' {
                if !(self.ended_by_return && self.partial.is_empty()) {
                    lines.push(self.cut(self.partial.len(), false));
                }
                self.ended_by_return = false;
            } else if !self.partial.is_empty() {
                // An empty piece between two returns is a cursor's move, not a line.
                lines.push(self.cut(self.partial.len(), false));
                self.ended_by_return = true;
            }
            bytes = &bytes[end + 1..];
        }
        self.extend(bytes, &mut lines);
        lines
    }

    /// The last line, when the stream did not end in a line's end.
    pub fn finish(&mut self) -> Option<Cut> {
        (!self.partial.is_empty()).then(|| self.cut(self.partial.len(), false))
    }

    fn extend(&mut self, mut bytes: &[u8], lines: &mut Vec<Cut>) {
        if !bytes.is_empty() {
            self.ended_by_return = false;
        }
        while self.partial.len() + bytes.len() > LINE_BYTES_MAX {
            let (head, rest) = bytes.split_at(LINE_BYTES_MAX - self.partial.len());
            self.take(head);
            lines.push(self.cut(whole_chars(&self.partial), true));
            bytes = rest;
        }
        self.take(bytes);
    }

    fn take(&mut self, bytes: &[u8]) {
        self.partial.extend_from_slice(bytes);
        self.seen += bytes.len() as u64;
    }

    fn cut(&mut self, at: usize, split: bool) -> Cut {
        let text = String::from_utf8_lossy(&self.partial[..at]).into_owned();
        self.partial.drain(..at);
        Cut { text, end: self.seen - self.partial.len() as u64, split }
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

    fn cut(mut splitter: LineSplitter, pieces: &[&[u8]]) -> Vec<Cut> {
        let mut lines: Vec<Cut> = pieces.iter().flat_map(|p| splitter.push(p)).collect();
        lines.extend(splitter.finish());
        lines
    }

    fn split(pieces: &[&[u8]]) -> Vec<String> {
        cut(LineSplitter::default(), pieces).into_iter().map(|l| l.text).collect()
    }

    /// What a splitter makes of the rest of a stream, which it gets as it wants it.
    fn rest(bytes: &[u8], from: u64) -> Vec<Cut> {
        let at = usize::try_from(from).expect("small");
        cut(LineSplitter::behind(from), &[&bytes[at.saturating_sub(1)..]])
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

    #[test]
    fn a_line_knows_where_it_ends() {
        let ends = |bytes| cut(LineSplitter::default(), &[bytes]).iter().map(|l| l.end).collect::<Vec<_>>();
        assert_eq!(ends(b"a\nb\r\n\rc\rd"), [2, 4, 8, 9]);
        assert_eq!(ends(b"\xFF\xFF\n\n"), [3, 4]);
        let long = vec![b'x'; LINE_BYTES_MAX + 3];
        assert_eq!(ends(&long), [LINE_BYTES_MAX as u64, LINE_BYTES_MAX as u64 + 3]);
    }

    #[test]
    fn only_a_line_that_goes_on_is_split() {
        let split = |bytes: &[u8]| {
            cut(LineSplitter::default(), &[bytes]).iter().map(|line| line.split).collect::<Vec<_>>()
        };
        let long = vec![b'x'; LINE_BYTES_MAX];
        assert_eq!(split(&long), [false]);
        assert_eq!(split(&[&long, b"\nshort\n".as_slice()].concat()), [false, false]);
        assert_eq!(split(&[&long, b"y\n".as_slice()].concat()), [true, false]);
    }

    #[test]
    fn whoever_goes_on_behind_a_forced_split_makes_the_same_lines() {
        let long = "ä€𝄞".repeat(LINE_BYTES_MAX / 3);
        let whole = cut(LineSplitter::default(), &[long.as_bytes()]);
        assert!(whole.len() > 2);
        for (n, line) in whole.iter().enumerate() {
            assert_eq!(rest(long.as_bytes(), line.end), whole[n + 1..]);
        }
    }

    proptest! {
        #[test]
        fn whoever_goes_on_behind_any_line_makes_the_same_lines(
            bytes in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), any::<u8>()], 0..300),
        ) {
            let whole = cut(LineSplitter::default(), &[&bytes]);
            prop_assert_eq!(&rest(&bytes, 0), &whole);
            for (n, line) in whole.iter().enumerate() {
                prop_assert_eq!(&rest(&bytes, line.end)[..], &whole[n + 1..]);
            }
        }

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
            let whole = cut(LineSplitter::default(), &[&bytes]);
            prop_assert_eq!(cut(LineSplitter::default(), &pieces), whole);
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

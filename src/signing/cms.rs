//! The content of a signed message (CMS): a provisioning profile is a property list in one. Whether the signature is Apple's
//! is for the guest's tools to say.
//!
//! Lengths may be indefinite and texts in pieces, as Apple's own tools write them: BER, where DER would be easier to read.

/// An object identifier's bytes: `signedData` and `data` of PKCS #7.
const SIGNED_DATA: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x07, 0x02];
const DATA: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x07, 0x01];

const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const IDENTIFIER: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
/// What is tagged `[0]`.
const ZERO: u8 = 0xA0;
/// Of a tag: it holds other elements.
const CONSTRUCTED: u8 = 0x20;

/// Elements within elements, of which the end has to be looked for. A message has ten.
const DEPTH_MAX: usize = 16;

/// What was signed; `None` when this is no signed message, or the content is not in it.
pub(super) fn content(message: &[u8]) -> Option<Vec<u8>> {
    let mut message = Elements(Elements(message).next_of(SEQUENCE)?);
    if message.next_of(IDENTIFIER)? != SIGNED_DATA {
        return None;
    }
    let mut signed = Elements(Elements(message.next_of(ZERO)?).next_of(SEQUENCE)?);
    signed.next_of(INTEGER)?;
    signed.next_of(SET)?;
    let mut wrapped = Elements(signed.next_of(SEQUENCE)?);
    if wrapped.next_of(IDENTIFIER)? != DATA {
        return None;
    }
    let mut text = Vec::new();
    octets(Elements(wrapped.next_of(ZERO)?), DEPTH_MAX, &mut text)?;
    Some(text)
}

/// Texts, or pieces of one, one behind the other.
fn octets(mut pieces: Elements<'_>, depth: usize, text: &mut Vec<u8>) -> Option<()> {
    let depth = depth.checked_sub(1)?;
    while !pieces.0.is_empty() {
        let (tag, body) = pieces.next()?;
        match tag {
            OCTETS => text.extend_from_slice(body),
            _ if tag == OCTETS | CONSTRUCTED => octets(Elements(body), depth, text)?,
            _ => return None,
        }
    }
    Some(())
}

/// One element after the other.
struct Elements<'a>(&'a [u8]);

impl<'a> Elements<'a> {
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (tag, body, rest) = element(self.0, DEPTH_MAX)?;
        self.0 = rest;
        Some((tag, body))
    }

    fn next_of(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next().filter(|(found, _)| *found == tag).map(|(_, body)| body)
    }
}

/// The first element: its tag, what is in it, and what is behind it.
fn element(bytes: &[u8], depth: usize) -> Option<(u8, &[u8], &[u8])> {
    let [tag, length, rest @ ..] = bytes else { return None };
    // Tags of several bytes are not of this format.
    if tag & 0x1F == 0x1F {
        return None;
    }
    let (length, rest) = match length {
        0x80 if tag & CONSTRUCTED != 0 => return indefinite(*tag, rest, depth),
        short @ 0..0x80 => (usize::from(*short), rest),
        long => {
            let (length, rest) = rest.split_at_checked(usize::from(long & 0x7F))?;
            if length.len() > 4 {
                return None;
            }
            (length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
        }
    };
    let (body, rest) = rest.split_at_checked(length)?;
    Some((*tag, body, rest))
}

/// An element that goes on to a mark, which is found by walking over what is in it.
fn indefinite(tag: u8, bytes: &[u8], depth: usize) -> Option<(u8, &[u8], &[u8])> {
    let depth = depth.checked_sub(1)?;
    let mut rest = bytes;
    loop {
        if let [0, 0, behind @ ..] = rest {
            return Some((tag, &bytes[..bytes.len() - rest.len()], behind));
        }
        (_, _, rest) = element(rest, depth)?;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wrap(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u8::try_from(body.len()).expect("short");
        [&[tag, 0x81, length], body].concat()
    }

    fn wrap_open(tag: u8, body: &[u8]) -> Vec<u8> {
        [&[tag, 0x80], body, &[0, 0]].concat()
    }

    fn message(wrap: impl Fn(u8, &[u8]) -> Vec<u8>, octets: &[u8]) -> Vec<u8> {
        let identifier = |oid: &[u8]| super::tests::wrap(IDENTIFIER, oid);
        let data = wrap(SEQUENCE, &[identifier(DATA), wrap(ZERO, octets)].concat());
        let signed = wrap(SEQUENCE, &[vec![INTEGER, 1, 1], vec![SET, 0], data, vec![SET, 0]].concat());
        wrap(SEQUENCE, &[identifier(SIGNED_DATA), wrap(ZERO, &signed)].concat())
    }

    #[test]
    fn a_text_is_found_whole_and_in_pieces_with_lengths_and_without() {
        let whole = wrap(OCTETS, b"<plist/>");
        let pieces = [wrap(OCTETS, b"<pli"), wrap(OCTETS, b""), wrap(OCTETS, b"st/>")].concat();
        let pieces = wrap_open(OCTETS | CONSTRUCTED, &pieces);
        for octets in [&whole, &pieces] {
            assert_eq!(content(&message(wrap, octets)).as_deref(), Some(b"<plist/>".as_slice()));
            assert_eq!(content(&message(wrap_open, octets)).as_deref(), Some(b"<plist/>".as_slice()));
        }
    }

    #[test]
    fn what_is_no_signed_message_holds_nothing() {
        let whole = message(wrap, &wrap(OCTETS, b"<plist/>"));
        for at in 0..whole.len() {
            assert_eq!(content(&whole[..at]), None, "cut at {at}");
        }
        for other in [b"<plist/>".as_slice(), b"", &[SEQUENCE, 0x80], &[0x30, 0x84, 0xFF, 0xFF, 0xFF, 0xFF]] {
            assert_eq!(content(other), None);
        }
        let deep = [SEQUENCE, 0x80].repeat(100_000);
        assert_eq!(content(&deep), None);
        assert_eq!(content(&message(wrap, &wrap(INTEGER, b"1"))), None);
    }

    proptest! {
        #[test]
        fn no_bytes_end_it(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            content(&bytes);
        }
    }
}

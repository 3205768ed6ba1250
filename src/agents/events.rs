//! Server-sent events, as an HTTP agent streams its answer in them.
//!
//! What the HTML standard calls the data of an event; its other fields mean nothing here. Bytes are looked at once, as they come, and an
//! event is given up as soon as it is larger than any may be, so that neither an event without end nor one in tiny pieces costs more
//! than the largest good one (threat T4). An event that its stream ends in the middle of is none.

use bytes::{Buf, Bytes};

/// An event has more bytes than any may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooLarge;

/// Takes pieces of a stream apart.
#[derive(Debug)]
pub(super) struct Events {
    bytes_max: usize,
    piece: Bytes,
    line: Vec<u8>,
    data: Option<Vec<u8>>,
    /// Whether the last line ended in a carriage return, which a line feed may follow.
    returned: bool,
    begun: bool,
}

impl Events {
    /// Nothing has come yet; no event may have more than `bytes_max`.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, piece: Bytes::new(), line: Vec::new(), data: None, returned: false, begun: false }
    }

    /// The next piece of the stream. [`Events::next`] must have said that there is nothing left of the last one.
    pub(super) fn feed(&mut self, piece: Bytes) {
        self.piece = piece;
    }

    /// The data of the next event; `None` until more has come.
    pub(super) fn next(&mut self) -> Result<Option<Vec<u8>>, TooLarge> {
        while let Some(first) = self.piece.first() {
            if std::mem::take(&mut self.returned) && *first == b'\n' {
                self.piece.advance(1);
                continue;
            }
            let end = self.piece.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let taken = self.piece.split_to(end.unwrap_or(self.piece.len()));
            let held = self.line.len().saturating_add(self.data.as_ref().map_or(0, Vec::len));
            if held.saturating_add(taken.len()) > self.bytes_max {
                return Err(TooLarge);
            }
            self.line.extend_from_slice(&taken);
            if end.is_some() {
                self.returned = self.piece.get_u8() == b'\r';
                if let Some(event) = self.end_line() {
                    return Ok(Some(event));
                }
            }
        }
        Ok(None)
    }

    /// Takes in a line; the data of the event if it ends one.
    fn end_line(&mut self) -> Option<Vec<u8>> {
        let line = std::mem::take(&mut self.line);
        let mark = if std::mem::replace(&mut self.begun, true) { None } else { line.strip_prefix("\u{feff}".as_bytes()) };
        let line = mark.unwrap_or(&line);
        if line.is_empty() {
            return self.data.take();
        }
        let value = match line.strip_prefix(b"data")? {
            [b':', b' ', value @ ..] | [b':', value @ ..] => value,
            [] => &[],
            _ => return None,
        };
        match &mut self.data {
            Some(data) => {
                data.push(b'\n');
                data.extend_from_slice(value);
            }
            None => self.data = Some(value.to_vec()),
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The events in a text that comes in pieces of so many bytes.
    fn read(text: &str, size: usize, bytes_max: usize) -> Result<Vec<String>, TooLarge> {
        let (mut events, mut read) = (Events::new(bytes_max), Vec::new());
        for piece in text.as_bytes().chunks(size) {
            events.feed(Bytes::copy_from_slice(piece));
            while let Some(data) = events.next()? {
                read.push(String::from_utf8(data).expect("a text"));
            }
        }
        Ok(read)
    }

    #[test]
    fn events_are_the_same_however_they_are_cut_up() {
        let text =
            "\u{feff}data: one\n\n:a comment\nevent: x\nid: 7\r\ndata:two\r\ndata: grüße\rdata\r\r\n\ndatabase: 1\n\ndata:\n\ndata: cut";
        for size in 1..=text.len() {
            assert_eq!(read(text, size, 100), Ok(vec!["one".to_owned(), "two\ngrüße\n".to_owned(), String::new()]), "{size}");
        }
    }

    /// Threat T4: whatever an event consists of, it ends at the bound.
    #[test]
    fn an_event_beyond_the_bound_is_given_up_before_it_ends() {
        let within = format!("data: {}\n\n", "x".repeat(94));
        for size in [1, 7, 1_000] {
            assert_eq!(read(&within.repeat(3), size, 100).map(|events| events.len()), Ok(3));
            for endless in [format!("data: {}", "x".repeat(95)), "data: xxxx\n".repeat(20), format!(":{}", "x".repeat(100))] {
                assert_eq!(read(&endless, size, 100), Err(TooLarge), "{endless}");
            }
        }
    }
}

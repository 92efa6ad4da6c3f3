//! Splits a stream into lines of bounded length.

use std::ops::ControlFlow;

/// Length of the longest line that is kept whole, in bytes. The lines that callers look for carry the labels of one
/// group.
const MAX_LINE: usize = 64 * 1024;

/// Collects the pieces of a stream into lines. Cuts a line to [`MAX_LINE`] bytes, and skips one that is not UTF-8.
#[derive(Default)]
pub(super) struct LineReader {
    line: Vec<u8>,
}

impl LineReader {
    /// Reads the next piece, and calls `each` with every line that ends in it, until it breaks.
    pub(super) fn read(&mut self, mut piece: &[u8], mut each: impl FnMut(&str) -> ControlFlow<()>) -> ControlFlow<()> {
        while let Some(end) = piece.iter().position(|byte| *byte == b'\n') {
            self.append(&piece[..end]);
            self.finish(&mut each)?;
            piece = &piece[end + 1..];
        }
        self.append(piece);
        ControlFlow::Continue(())
    }

    /// Calls `each` with the last line of the stream, which may lack its line feed.
    pub(super) fn finish(&mut self, each: impl FnOnce(&str) -> ControlFlow<()>) -> ControlFlow<()> {
        let flow = std::str::from_utf8(&self.line).map_or(ControlFlow::Continue(()), each);
        self.line.clear();
        flow
    }

    fn append(&mut self, part: &[u8]) {
        let room = MAX_LINE.saturating_sub(self.line.len());
        self.line.extend_from_slice(&part[..part.len().min(room)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_do_not_depend_on_the_size_of_the_pieces() {
        let text = "first\n\nsecönd\nlast";
        for size in [1, 2, 7, 64] {
            let (mut reader, mut lines) = (LineReader::default(), Vec::new());
            let mut push = |line: &str| {
                lines.push(line.to_owned());
                ControlFlow::Continue(())
            };
            assert!(text.as_bytes().chunks(size).all(|piece| reader.read(piece, &mut push).is_continue()));
            assert!(reader.finish(push).is_continue());
            assert_eq!(lines, ["first", "", "secönd", "last"], "in pieces of {size}");
        }
    }

    #[test]
    fn endless_line_is_cut() {
        let (mut reader, mut lines) = (LineReader::default(), Vec::new());
        let mut push = |line: &str| {
            lines.push(line.to_owned());
            if line == "next" { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        for _ in 0..1_000 {
            assert!(reader.read(&[b'x'; 1_000], &mut push).is_continue());
            assert!(reader.line.len() <= MAX_LINE);
        }
        assert!(reader.read(b"\nnext\nnot read\n", &mut push).is_break());
        assert_eq!((lines.len(), lines[0].len(), &*lines[1]), (2, MAX_LINE, "next"));
    }
}

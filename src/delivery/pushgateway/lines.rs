//! Splits a stream into lines of bounded length.

/// Length of the longest line that is kept whole, in bytes. The lines that callers look for carry the labels of one
/// group.
const MAX_LINE: usize = 64 * 1024;

/// Collects the pieces of a stream into lines. Cuts a line to [`MAX_LINE`] bytes, and skips one that is not UTF-8.
#[derive(Default)]
pub(super) struct LineReader {
    line: Vec<u8>,
}

impl LineReader {
    /// Reads the next piece, and calls `each` with every line that ends in it.
    pub(super) fn read(&mut self, mut piece: &[u8], mut each: impl FnMut(&str)) {
        while let Some(end) = piece.iter().position(|byte| *byte == b'\n') {
            self.append(&piece[..end]);
            self.finish(&mut each);
            piece = &piece[end + 1..];
        }
        self.append(piece);
    }

    /// Calls `each` with the last line of the stream, which may lack its line feed.
    pub(super) fn finish(&mut self, each: impl FnOnce(&str)) {
        if let Ok(line) = std::str::from_utf8(&self.line) {
            each(line);
        }
        self.line.clear();
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
            text.as_bytes().chunks(size).for_each(|piece| reader.read(piece, |line| lines.push(line.to_owned())));
            reader.finish(|line| lines.push(line.to_owned()));
            assert_eq!(lines, ["first", "", "secönd", "last"], "in pieces of {size}");
        }
    }

    #[test]
    fn endless_line_is_cut() {
        let (mut reader, mut lines) = (LineReader::default(), Vec::new());
        for _ in 0..1_000 {
            reader.read(&[b'x'; 1_000], |line| lines.push(line.to_owned()));
        }
        assert!(reader.line.len() <= MAX_LINE);
        reader.read(b"\nnext\n", |line| lines.push(line.to_owned()));
        assert_eq!((lines.len(), lines[0].len(), &*lines[1]), (2, MAX_LINE, "next"));
    }
}

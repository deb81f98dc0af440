//! The decoder of what the API server sends, which is not public: its file is taken as it is.

#[path = "../../store/src/kube/scan.rs"]
mod scan;

use scan::{Scanner, Sink};

struct Told(Vec<String>, usize);

impl Sink for Told {
    fn open(&mut self, _: bool) -> bool {
        self.1 += 1;
        !self.0.len().is_multiple_of(5)
    }
    fn close(&mut self) {
        // As many as were opened, or a reader's stack would be wrong.
        assert!(self.1 > 0, "something closes that did not open");
        self.1 -= 1;
    }
    fn key(&mut self, name: &str) {
        self.0.push(name.to_owned());
    }
    fn wants(&self) -> usize {
        if self.0.len().is_multiple_of(3) { 0 } else { 16 }
    }
    fn text(&mut self, text: &str, _: bool) {
        self.0.push(text.to_owned());
    }
}

/// In pieces it is the same as in whole.
pub fn scan(bytes: &[u8]) {
    let told = |size: usize| {
        let (mut scanner, mut told) = (Scanner::new(), Told(Vec::new(), 0));
        let done = bytes.chunks(size.max(1)).try_for_each(|piece| scanner.feed(piece, &mut told));
        (done.is_ok(), scanner.at_rest(), told.0)
    };
    assert_eq!(told(bytes.len()), told(3), "pieces make a difference");
}

//! Where lines go when who reads them is slow: a line is written at once if that holds nobody up, else it waits; what
//! does not fit is dropped, the oldest first, and counted.

use std::collections::VecDeque;
use std::io;

/// Bytes that wait at most.
const MOST: usize = 256 * 1024;
/// A pipe with room takes so many bytes at once (`PIPE_BUF`, pipe(7)); a line may be longer.
pub const PIECE: usize = 4096;

/// Something written to in pieces of [`PIECE`] bytes at most, that never makes its caller wait.
pub trait Mouth {
    /// Takes some of it, perhaps none, which is [`io::ErrorKind::WouldBlock`].
    ///
    /// # Errors
    /// It has no room, or is gone.
    fn take(&mut self, piece: &[u8]) -> io::Result<usize>;
}

/// Lines that wait.
#[derive(Debug, Default)]
pub struct Outlet {
    lines: VecDeque<Vec<u8>>,
    /// Of the first line, what is written.
    written: usize,
    bytes: usize,
    dropped: u64,
}

impl Outlet {
    /// Writes a line behind those that wait, as far as there is room now. `notice` makes the line that says how many
    /// were dropped.
    pub fn put(&mut self, line: &[u8], mouth: &mut impl Mouth, notice: impl Fn(u64) -> Vec<u8>) {
        self.flush(mouth, &notice);
        self.lines.push_back(line.to_vec());
        self.bytes += line.len();
        // A line that has begun is ended, or the next would be glued to it.
        let kept = usize::from(self.written > 0);
        while self.bytes > MOST && self.lines.len() > kept + 1 {
            if let Some(line) = self.lines.remove(kept) {
                self.bytes -= line.len();
                self.dropped += 1;
            }
        }
        self.flush(mouth, &notice);
    }

    /// Writes what waits, as far as there is room now.
    pub fn flush(&mut self, mouth: &mut impl Mouth, notice: &impl Fn(u64) -> Vec<u8>) {
        loop {
            if self.dropped > 0 && self.written == 0 {
                let line = notice(std::mem::take(&mut self.dropped));
                self.bytes += line.len();
                self.lines.push_front(line);
            }
            let Some(line) = self.lines.front() else { return };
            let rest = &line[self.written.min(line.len())..];
            match mouth.take(&rest[..rest.len().min(PIECE)]) {
                Ok(0) => return,
                Ok(taken) if taken < rest.len() => self.written += taken,
                Ok(_) => self.done(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Nobody reads any more (EPIPE), or the disk is full: a line that is not written is not worth an end.
                Err(_) => self.done(),
            }
        }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.dropped == 0
    }

    fn done(&mut self) {
        self.written = 0;
        if let Some(line) = self.lines.pop_front() {
            self.bytes -= line.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes as many bytes as it has room for.
    struct Narrow {
        room: usize,
        seen: Vec<u8>,
    }

    impl Mouth for Narrow {
        fn take(&mut self, piece: &[u8]) -> io::Result<usize> {
            let taken = piece.len().min(self.room);
            self.room -= taken;
            self.seen.extend_from_slice(&piece[..taken]);
            if taken == 0 && !piece.is_empty() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(taken) }
        }
    }

    fn notice(lost: u64) -> Vec<u8> {
        format!("{lost} lost\n").into_bytes()
    }

    #[test]
    fn what_has_room_is_written_at_once() {
        let (mut outlet, mut mouth) = (Outlet::default(), Narrow { room: usize::MAX, seen: Vec::new() });
        outlet.put(b"one\n", &mut mouth, notice);
        let long = vec![b'x'; 3 * PIECE];
        outlet.put(&long, &mut mouth, notice);
        assert_eq!(mouth.seen.len(), 4 + long.len());
        assert_eq!((outlet.bytes, outlet.dropped), (0, 0));
    }

    #[test]
    fn the_oldest_of_what_waits_is_dropped_but_no_line_is_cut() {
        let (mut outlet, mut mouth) = (Outlet::default(), Narrow { room: 3, seen: Vec::new() });
        let lines = 30_000;
        for n in 0..lines {
            outlet.put(format!("line {n:05}\n").as_bytes(), &mut mouth, notice);
        }
        assert_eq!(mouth.seen, b"lin");
        assert!(outlet.bytes <= MOST, "{}", outlet.bytes);
        mouth.room = usize::MAX;
        outlet.put(b"last\n", &mut mouth, notice);
        let text = String::from_utf8(mouth.seen).unwrap();
        let all: Vec<&str> = text.lines().collect();
        let lost: usize = all[1].strip_suffix(" lost").unwrap().parse().unwrap();
        assert_eq!((all[0], *all.last().unwrap()), ("line 00000", "last"));
        assert_eq!(all[2], format!("line {:05}", lost + 1));
        assert_eq!(all.len(), lines + 2 - lost);
        assert_eq!(outlet.bytes, 0);
    }

    #[test]
    fn who_is_gone_holds_nobody_up() {
        struct Gone;
        impl Mouth for Gone {
            fn take(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
        let mut outlet = Outlet::default();
        outlet.put(b"one\n", &mut Gone, notice);
        assert_eq!(outlet.bytes, 0);
    }
}

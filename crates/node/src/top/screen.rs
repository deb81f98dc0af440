//! The terminal: taken over for as long as the value lives, and given back as it was however that ends, a panic
//! included. The alternate screen keeps what was there before (xterm's control sequences, ctlseqs).

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::time::Duration;

use lab::paint::{Style, Text};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{self, OptionalActions, Termios};

use super::frame::Size;
use super::view::{Key, keys};

/// The alternate screen, without a cursor; lines are not continued on the next one.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[?25l\x1b[?7l";
/// Everything back.
const LEAVE: &[u8] = b"\x1b[?7h\x1b[?25h\x1b[?1049l";
/// How long the rest of a key's sequence may take.
const SEQUENCE: Duration = Duration::from_millis(20);

/// A terminal that is taken over.
pub struct Screen {
    terminal: File,
    before: Termios,
    /// What stands on it.
    drawn: Vec<String>,
    size: Option<Size>,
}

impl Screen {
    /// Takes a terminal over.
    ///
    /// # Errors
    /// It is none.
    pub fn enter(terminal: File) -> io::Result<Screen> {
        let before = termios::tcgetattr(&terminal)?;
        let mut screen = Screen { terminal, before, drawn: Vec::new(), size: None };
        screen.take()?;
        Ok(screen)
    }

    fn take(&mut self) -> io::Result<()> {
        let mut raw = self.before.clone();
        raw.make_raw();
        termios::tcsetattr(&self.terminal, OptionalActions::Drain, &raw)?;
        self.size = None;
        self.terminal.write_all(ENTER)
    }

    fn give_back(&mut self) -> io::Result<()> {
        self.terminal.write_all(LEAVE)?;
        Ok(termios::tcsetattr(&self.terminal, OptionalActions::Drain, &self.before)?)
    }

    /// Stops this program until it is continued, as Ctrl-Z does.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn suspend(&mut self) -> io::Result<()> {
        self.give_back()?;
        rustix::process::kill_current_process_group(rustix::process::Signal::TSTP)?;
        self.take()
    }

    /// How large it is now; terminals that do not know are taken for the smallest there used to be.
    pub fn size(&self) -> Size {
        let size = termios::tcgetwinsize(&self.terminal);
        let size = size.ok().filter(|size| size.ws_col > 0 && size.ws_row > 0);
        size.map_or(Size { width: 80, height: 24 }, |size| Size {
            width: size.ws_col.into(),
            height: size.ws_row.into(),
        })
    }

    /// Draws lines from the top; only those that differ from what stands there.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn draw(&mut self, lines: &[Text], size: Size, style: Style) -> io::Result<()> {
        let mut out = String::new();
        if self.size != Some(size) {
            (self.size, self.drawn) = (Some(size), Vec::new());
            out.push_str("\x1b[2J");
        }
        let lines: Vec<String> = lines.iter().map(|line| line.paint(style)).collect();
        let blank = String::new();
        for at in 0..lines.len().max(self.drawn.len()).min(size.height) {
            let line = lines.get(at).unwrap_or(&blank);
            if self.drawn.get(at) != Some(line) {
                out.push_str(&format!("\x1b[{};1H{line}\x1b[K", at + 1));
            }
        }
        self.drawn = lines;
        self.terminal.write_all(out.as_bytes())?;
        self.terminal.flush()
    }

    /// Keys that came, waiting for them at most so long.
    ///
    /// # Errors
    /// The kernel's.
    pub fn keys(&mut self, patience: Duration) -> io::Result<Vec<Key>> {
        if !self.waits(patience)? {
            return Ok(Vec::new());
        }
        let mut bytes = [0; 256];
        let mut length = self.terminal.read(&mut bytes)?;
        if length == 0 {
            // Whoever had the terminal open hung up.
            return Ok(vec![Key::Interrupt]);
        }
        // A sequence may come in two parts; Escape alone does not.
        if bytes[..length].ends_with(b"\x1b") && self.waits(SEQUENCE)? {
            length += self.terminal.read(&mut bytes[length..])?;
        }
        Ok(keys(&bytes[..length]))
    }

    fn waits(&self, patience: Duration) -> io::Result<bool> {
        let mut fds = [PollFd::from_borrowed_fd(self.terminal.as_fd(), PollFlags::IN)];
        let limit = Timespec {
            tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: patience.subsec_nanos().into(),
        };
        match poll(&mut fds, Some(&limit)) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Who hung up needs nothing back.
        let _ = self.give_back();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use std::panic::{AssertUnwindSafe, catch_unwind};

    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

    use super::*;

    /// Our end of a terminal, and the program's.
    fn terminal() -> (File, File) {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let name = ptsname(&ours, Vec::new()).unwrap();
        let options = File::options().read(true).write(true).clone();
        (File::from(ours), options.open(name.to_str().unwrap()).unwrap())
    }

    fn modes(terminal: &File) -> String {
        format!("{:?}", termios::tcgetattr(terminal).unwrap())
    }

    #[test]
    fn a_panic_leaves_the_terminal_as_it_was() {
        let (mut ours, theirs) = terminal();
        let before = modes(&theirs);
        let caught = catch_unwind(AssertUnwindSafe(|| {
            let mut screen = Screen::enter(theirs.try_clone().unwrap()).unwrap();
            assert_ne!(modes(&theirs), before);
            let size = Size { width: 20, height: 2 };
            screen.draw(&[Text::plain("one"), Text::plain("two")], size, Style::PLAIN).unwrap();
            // What stands there already is not drawn again.
            screen.draw(&[Text::plain("one"), Text::plain("deux")], size, Style::PLAIN).unwrap();
            std::panic::resume_unwind(Box::new("on purpose"));
        }));
        assert!(caught.is_err());
        assert_eq!(modes(&theirs), before);
        // The terminal gives it in parts.
        let (mut text, mut bytes) = (String::new(), [0; 1024]);
        while !text.ends_with("1049l") {
            let length = ours.read(&mut bytes).unwrap();
            text += &String::from_utf8_lossy(&bytes[..length]);
        }
        let want = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J\x1b[1;1Hone\x1b[K\x1b[2;1Htwo\x1b[K\x1b[2;1Hdeux\x1b[K\
                    \x1b[?7h\x1b[?25h\x1b[?1049l";
        assert_eq!(text, want);
    }

    #[test]
    fn keys_come_whole() {
        let (mut ours, theirs) = terminal();
        let mut screen = Screen::enter(theirs).unwrap();
        for (sent, want) in [(&b"s"[..], Key::Char('s')), (b"\x1b[B", Key::Lines(1)), (b"\x1b", Key::Escape)]
        {
            ours.write_all(sent).unwrap();
            assert_eq!(screen.keys(Duration::from_secs(10)).unwrap(), [want]);
        }
        assert_eq!(screen.keys(Duration::ZERO).unwrap(), []);
    }
}

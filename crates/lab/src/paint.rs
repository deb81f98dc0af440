//! Colours, boxes and columns for a terminal, and their plain forms. Pure: a [`Style`] says what the
//! reader can see.

use std::fmt;

/// What the reader can see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// ANSI colours.
    pub color: bool,
    /// Box drawing, arrows and dots beyond ASCII.
    pub unicode: bool,
    /// Columns.
    pub width: usize,
}

/// Colours, by meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// Running text.
    Plain,
    /// Less important.
    Dim,
    /// A heading, a name.
    Bold,
    /// It works.
    Good,
    /// It does not.
    Bad,
    /// Addresses of pods.
    Pod,
    /// Addresses of hosts, the outer packet.
    Host,
}

impl Tone {
    fn code(self) -> &'static str {
        match self {
            Tone::Plain => "",
            Tone::Dim => "\x1b[2m",
            Tone::Bold => "\x1b[1m",
            Tone::Good => "\x1b[32m",
            Tone::Bad => "\x1b[1;31m",
            Tone::Pod => "\x1b[36m",
            Tone::Host => "\x1b[35m",
        }
    }
}

/// Text with tones; knows its width in columns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text(Vec<(Tone, String)>);

impl Text {
    /// One tone.
    pub fn of(tone: Tone, text: impl fmt::Display) -> Text {
        Text::default().and(tone, text)
    }

    /// Running text.
    pub fn plain(text: impl fmt::Display) -> Text {
        Text::of(Tone::Plain, text)
    }

    /// Appends.
    pub fn and(mut self, tone: Tone, text: impl fmt::Display) -> Text {
        self.0.push((tone, text.to_string()));
        self
    }

    /// Appends another text.
    pub fn join(mut self, other: Text) -> Text {
        self.0.extend(other.0);
        self
    }

    /// Columns it takes. Everything we write is one column a character.
    pub fn width(&self) -> usize {
        self.0.iter().map(|(_, t)| t.chars().count()).sum()
    }

    /// Fills up with spaces on the right.
    pub fn left(self, width: usize) -> Text {
        let missing = width.saturating_sub(self.width());
        self.and(Tone::Plain, " ".repeat(missing))
    }

    /// Fills up with spaces on the left.
    pub fn right(self, width: usize) -> Text {
        let missing = width.saturating_sub(self.width());
        Text::plain(" ".repeat(missing)).join(self)
    }

    /// Cuts to a width; what is missing is marked.
    pub fn fit(self, width: usize, style: Style) -> Text {
        if self.width() <= width {
            return self;
        }
        let mut left = width.saturating_sub(1);
        let mut cut = Text::default();
        for (tone, text) in self.0 {
            let part: String = text.chars().take(left).collect();
            left -= part.chars().count();
            cut = cut.and(tone, part);
        }
        cut.and(Tone::Dim, style.pick("…", "~"))
    }

    /// The bytes for the terminal.
    pub fn paint(&self, style: Style) -> String {
        let mut out = String::new();
        for (tone, text) in &self.0 {
            if style.color && *tone != Tone::Plain && !text.trim().is_empty() {
                out.push_str(tone.code());
                out.push_str(text);
                out.push_str("\x1b[0m");
            } else {
                out.push_str(text);
            }
        }
        out
    }
}

impl Style {
    /// For a file, a pipe or a test.
    pub const PLAIN: Style = Style { color: false, unicode: true, width: 100 };

    /// The Unicode or the ASCII form of a sign.
    pub fn pick(self, unicode: &'static str, ascii: &'static str) -> &'static str {
        if self.unicode { unicode } else { ascii }
    }

    /// A dot between parts of a line.
    pub fn dot(self) -> &'static str {
        self.pick("·", "-")
    }

    /// An arrow to the right.
    pub fn arrow(self) -> &'static str {
        self.pick("→", "->")
    }

    /// The mark of something that works.
    pub fn tick(self) -> Text {
        Text::of(Tone::Good, self.pick("✓", "ok"))
    }

    /// The mark of something that does not.
    pub fn cross(self) -> Text {
        Text::of(Tone::Bad, self.pick("✗", "FAIL"))
    }

    /// Lines, one below the other, without trailing spaces.
    pub fn lines(self, lines: &[Text]) -> String {
        let mut out = String::new();
        for line in lines {
            out.push_str(line.paint(self).trim_end());
            out.push('\n');
        }
        out
    }

    /// A numbered heading with a rule below, and a remark at its right end.
    pub fn heading(self, number: usize, title: &str, remark: &str) -> Vec<Text> {
        let head = Text::of(Tone::Dim, format!("  {number}  ")).and(Tone::Bold, title);
        let room = self.width.saturating_sub(head.width());
        let remark = Text::of(Tone::Dim, remark);
        let head = if remark.width() + 2 <= room { head.join(remark.right(room)) } else { head };
        let rule = self.pick("─", "-").repeat(self.width.saturating_sub(2));
        vec![Text::default(), head, Text::of(Tone::Dim, format!("  {rule}"))]
    }

    /// Columns as wide as their widest cell, two spaces apart, indented.
    pub fn table(self, rows: &[Vec<Text>], right: &[usize]) -> Vec<Text> {
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(Text::width).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let line = |row: &Vec<Text>| {
            let mut line = Text::plain("   ");
            for (at, cell) in row.iter().enumerate() {
                let cell = cell.clone();
                let cell = if right.contains(&at) { cell.right(widths[at]) } else { cell.left(widths[at]) };
                line = line.join(cell).and(Tone::Plain, "  ");
            }
            line
        };
        rows.iter().map(line).collect()
    }

    /// A box with a title in its upper and one in its lower edge. Every line is as wide as the first.
    pub fn boxed(self, title: Text, lines: Vec<Text>, foot: Text, inner: usize) -> Vec<Text> {
        let [top_left, top_right, bottom_left, bottom_right, across, down] = if self.unicode {
            ["╭", "╮", "╰", "╯", "─", "│"]
        } else {
            ["+", "+", "+", "+", "-", "|"]
        };
        let edge = |left: &str, text: Text, right: &str| {
            let text = text.fit(inner.saturating_sub(2), self);
            let rest = (inner + 2).saturating_sub(text.width() + 3);
            Text::of(Tone::Dim, format!("{left}{across} "))
                .join(text)
                .and(Tone::Dim, format!(" {}{right}", across.repeat(rest)))
        };
        let body = lines.into_iter().map(|line| {
            Text::of(Tone::Dim, format!("{down} "))
                .join(line.fit(inner, self).left(inner))
                .and(Tone::Dim, format!(" {down}"))
        });
        let mut all = vec![edge(top_left, title, top_right)];
        all.extend(body);
        all.push(edge(bottom_left, foot, bottom_right));
        all
    }
}

/// Joins blocks of lines side by side, each filled up to its own width and to the height of the tallest.
pub fn beside(blocks: Vec<Vec<Text>>, gap: usize) -> Vec<Text> {
    let height = blocks.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = blocks.iter().map(|b| b.iter().map(Text::width).max().unwrap_or(0)).collect();
    (0..height)
        .map(|row| {
            let mut line = Text::default();
            for (block, width) in blocks.iter().zip(&widths) {
                let part = block.get(row).cloned().unwrap_or_default();
                line = line.join(part.left(width + gap));
            }
            line
        })
        .collect()
}

/// A time of some microseconds for people: `87 µs`, `1.4 ms`, `2.1 s`.
pub fn time(us: f64, style: Style) -> String {
    let micro = style.pick("µs", "us");
    match us {
        us if us < 1000.0 => format!("{us:.0} {micro}"),
        us if us < 100_000.0 => format!("{:.1} ms", us / 1000.0),
        us if us < 1_000_000.0 => format!("{:.0} ms", us / 1000.0),
        us => format!("{:.1} s", us / 1_000_000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASCII: Style = Style { color: false, unicode: false, width: 60 };

    #[test]
    fn boxes_are_straight() {
        for style in [Style::PLAIN, ASCII] {
            let lines = vec![Text::of(Tone::Pod, "10.244.1.2"), Text::plain("much too long for this")];
            let block = style.boxed(Text::plain("host1"), lines, Text::plain("eth0 192.0.2.11"), 16);
            let widths: Vec<usize> = block.iter().map(Text::width).collect();
            assert_eq!(widths, [20; 4], "{}", style.lines(&block));
        }
        let block = ASCII.boxed(Text::plain("h"), vec![Text::plain("x")], Text::plain("f"), 6);
        assert_eq!(ASCII.lines(&block), "+- h ----+\n| x      |\n+- f ----+\n");
    }

    #[test]
    fn colours_do_not_change_widths() {
        let colored = Style { color: true, ..Style::PLAIN };
        let text = Text::of(Tone::Good, "✓").and(Tone::Plain, " yes").left(8);
        assert_eq!(text.width(), 8);
        assert_eq!(text.paint(colored), "\x1b[32m✓\x1b[0m yes   ");
        assert_eq!(text.paint(Style::PLAIN), "✓ yes   ");
        assert_eq!(Text::plain("abcdef").fit(4, ASCII).paint(ASCII), "abc~");
    }

    #[test]
    fn times_are_short() {
        for (us, want) in [(87.4, "87 us"), (1400.0, "1.4 ms"), (123_000.0, "123 ms"), (2.1e6, "2.1 s")] {
            assert_eq!(time(us, ASCII), want);
        }
    }
}

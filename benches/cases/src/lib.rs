//! What is measured of the parts that only compute: a table of work, each line with the answer the work must give. A
//! benchmark that computes nothing, or something else than its name says, is found by the answer.
//!
//! Nothing here knows a clock: `benches/pure` measures, and `cargo xtask bench pure` compares (decision 0233).

mod cluster;
mod cni;
mod codecs;
mod kube;
mod netlink;
mod packets;
mod peers;
mod wanted;

/// Does the work once and gives its answer. What the work needs was made before, once.
pub type Work = Box<dyn FnMut() -> usize>;

/// A line of the table.
#[derive(Clone, Copy)]
struct Row {
    /// `room/what`.
    what: &'static str,
    /// How many there are of what it is about.
    sizes: &'static [usize],
    /// The answer for a size.
    gives: fn(usize) -> usize,
    make: fn(usize) -> Work,
}

/// One thing that is measured.
pub struct Case {
    /// `room/what/size`: unique, and fit for the name of a file but for the slashes.
    pub name: String,
    row: Row,
    size: usize,
}

impl Case {
    /// Makes ready what is measured, and does it a few times.
    ///
    /// # Errors
    /// It gives another answer than it must.
    pub fn checked(&self) -> Result<Work, String> {
        let mut work = (self.row.make)(self.size);
        let wanted = (self.row.gives)(self.size);
        // What goes to and fro must come back to where it was.
        for time in 1..=3 {
            let given = work();
            if given != wanted {
                return Err(format!("{} gave {given} the {time}. time, not {wanted}", self.name));
            }
        }
        Ok(work)
    }

    /// How many there are of what it is about.
    pub fn size(&self) -> usize {
        self.size
    }
}

/// All of them, in order.
pub fn all() -> impl Iterator<Item = Case> {
    let tables =
        [codecs::ROWS, kube::ROWS, peers::ROWS, wanted::ROWS, netlink::ROWS, packets::ROWS, cni::ROWS];
    tables.into_iter().flatten().flat_map(|row| {
        row.sizes.iter().map(move |size| Case {
            name: format!("{}/{size}", row.what),
            row: *row,
            size: *size,
        })
    })
}

//! Configuration of the vrf plugin (cni.md 2.15), and the choice of a table.

use super::common::{device, number};
use super::members::Members;
use crate::IfName;

/// What the vrf plugin is told to build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VrfConf {
    /// The VRF the interface joins.
    pub vrf: IfName,
    /// Its routing table; `None` for a free one.
    pub table: Option<u32>,
}

impl VrfConf {
    /// Reads and checks the whole document.
    ///
    /// # Errors
    /// One sentence that names the member.
    pub fn parse(doc: &Members<'_>) -> Result<VrfConf, String> {
        Ok(VrfConf {
            vrf: device(doc, "vrfname")?.ok_or("configuration is expected to have a valid vrf name")?,
            table: number(doc, "table")?.filter(|table| *table != 0),
        })
    }
}

/// The first table from 1 on that is not in use. 253 to 255 are the kernel's own (linux/rtnetlink.h,
/// `RT_TABLE_DEFAULT` to `RT_TABLE_LOCAL`): never chosen.
pub fn free_table(used: &[u32]) -> Option<u32> {
    (1..).find(|table| !matches!(table, 253..=255) && !used.contains(table))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_chosen_in_order() {
        let up_to = |n: u32| (1..=n).collect::<Vec<u32>>();
        for (used, want) in [
            (vec![], 1),
            (vec![1, 2, 4], 3),
            (vec![999], 1),
            (up_to(998).into_iter().chain([999]).collect(), 1000),
            (up_to(252), 256),
        ] {
            assert_eq!(free_table(&used), Some(want));
        }
    }

    #[test]
    fn a_name_is_needed() {
        for (doc, want) in [
            (json!({}), Err("configuration is expected to have a valid vrf name")),
            (json!({"vrfname": "blue", "table": -1}), Err("table: -1 is out of range")),
            (json!({"vrfname": "blue", "table": 1001}), Ok(Some(1001))),
            (json!({"vrfname": "blue"}), Ok(None)),
        ] {
            let got = VrfConf::parse(&Members::of(&doc, "NetConf").unwrap()).map(|c| c.table);
            assert_eq!(got, want.map_err(str::to_owned));
        }
    }
}

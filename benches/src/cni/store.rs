//! host-local with many allocations in its store, beside an empty one, and beside the reference's.

use std::net::Ipv4Addr;

use super::case::{SUBNET, Step};
use super::{Cost, Side};
use crate::figure::{Figure, Goal, Samples, Table};
use crate::{Options, Result};

const ALLOCATIONS: u32 = 4_000;

/// ADD and DEL of the address alone.
pub fn measure(options: &Options, rounds: usize, table: &mut Table) -> Result<()> {
    let mut sides = [
        Side::ours(options, "store full")?,
        Side::ours(options, "store empty")?,
        Side::reference(options, "store")?,
    ];
    let mut steps = Vec::new();
    for (n, side) in sides.iter().enumerate() {
        if n != 1 {
            fill(side)?;
        }
        let document = format!(
            r#"{{"cniVersion":"1.0.0","name":"cbr0","type":"bridge",
                "ipam":{{"type":"host-local","dataDir":"{}","subnet":"{SUBNET}"}}}}"#,
            side.store()
        );
        steps.push(Step { plugin: "host-local", document });
    }
    let (mut add, mut del) = (vec![Samples::default(); 3], vec![Samples::default(); 3]);
    for round in 0..=rounds {
        for turn in 0..sides.len() {
            let which = (round + turn) % sides.len();
            let (side, step) = (&mut sides[which], &steps[which]);
            let pod = side.pod()?;
            let costs: [Cost; 2] = [side.call(step, "ADD", &pod)?.0, side.call(step, "DEL", &pod)?.0];
            // The first looks at files nobody has indexed.
            if round > 0 {
                add[which].0.push(costs[0].ms);
                del[which].0.push(costs[1].ms);
            }
        }
    }
    for (verb, samples) in [("ADD", add), ("DEL", del)] {
        let [full, empty, reference] = samples.try_into().map_err(|_| "three sides")?;
        let what = |beside| format!("{verb} host-local, {ALLOCATIONS} allocations, beside {beside}, ms");
        table.figures.push(Figure::beside(what("none"), full.clone(), empty, Goal::AtMost(1.1)));
        table.figures.push(Figure::beside(what("the reference's"), full, reference, Goal::None));
    }
    Ok(())
}

/// As the reference writes them: pods that live.
fn fill(side: &Side) -> Result<()> {
    let dir = side.folder.join("networks/cbr0");
    std::fs::create_dir_all(&dir)?;
    let first = u32::from(Ipv4Addr::new(10, 244, 0, 2));
    let address = |n: u32| Ipv4Addr::from(first + n).to_string();
    for n in 0..ALLOCATIONS {
        std::fs::write(dir.join(address(n)), format!("{n:064x}\r\neth0"))?;
    }
    std::fs::write(dir.join("last_reserved_ip.0"), address(ALLOCATIONS - 1))?;
    Ok(())
}

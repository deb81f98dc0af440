//! The way of a packet by the kernel's tables, held against the way a real one takes. [`model`] reads the tables
//! hop by hop, a real echo is followed by packet sockets (`lab::walk`), and [`compare`] names the first hop where
//! the two part. Pure, but for [`model`], which asks the kernel and changes nothing, and [`connect`], which sends.

pub mod connect;
pub mod model;
pub mod nat;
pub mod picture;
pub mod show;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

/// One device the packet should pass, and by which entry of which table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// `pod` or `host`.
    pub place: &'static str,
    /// Device.
    pub device: String,
    /// The entries that lead there, as the commands that show them do.
    pub by: String,
}

/// What the tables say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    /// Devices in order, those of this host alone.
    pub steps: Vec<Step>,
    /// Address the last device sends to.
    pub far: Option<IpAddr>,
    /// The first gateway, which a pod's packet enters the host by.
    pub gateway: Option<IpAddr>,
    /// Where the tables lead nowhere, and what is missing: one sentence.
    pub broken: Option<String>,
    /// Largest packet in bytes that fits every device of the way.
    pub mtu: Option<u32>,
    /// UDP port of the VXLAN device on the way.
    pub port: Option<u16>,
    /// The destination is this host or a pod of it.
    pub local: bool,
}

/// One sight of the real packet.
#[derive(Clone, Debug, PartialEq)]
pub struct Sight {
    /// `pod` or `host`.
    pub place: String,
    /// Device.
    pub device: String,
    /// Microseconds since the first sight.
    pub at_us: f64,
    /// Addresses it had there.
    pub flow: Option<nat::Flow>,
}

/// What became of the real packet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Walk {
    /// Where the request was seen.
    pub there: Vec<Sight>,
    /// Where the answer was.
    pub back: Vec<Sight>,
    /// It came back.
    pub answered: bool,
    /// Who said why not.
    pub refused: Option<String>,
    /// None was sent: there is the plan alone.
    pub planned: bool,
}

/// What the two ends are called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// `host`, an address or a path.
    pub from: String,
    /// An address.
    pub to: String,
    /// What a runtime calls the pod it is from.
    pub from_pod: Option<String>,
    /// And the one it goes to, if that is on this host.
    pub to_pod: Option<String>,
}

impl Ends {
    /// The source, for people.
    pub fn from(&self) -> String {
        label(self.from_pod.as_deref(), &self.from)
    }

    /// The destination, for people.
    pub fn to(&self) -> String {
        label(self.to_pod.as_deref(), &self.to)
    }
}

fn label(pod: Option<&str>, word: &str) -> String {
    pod.map_or_else(|| word.to_owned(), |pod| format!("{pod} ({word})"))
}

/// Where model and walk part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// They do not, and the answer came.
    pub fine: bool,
    /// Position of the step in the model that the packet did not reach.
    pub at: Option<usize>,
    /// One sentence.
    pub text: String,
}

/// Holds the two against each other.
pub fn compare(model: &Model, walk: &Walk) -> Verdict {
    let bad = |at, text: String| Verdict { fine: false, at, text };
    let said = walk.refused.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
    if let Some(broken) = &model.broken {
        return bad(Some(model.steps.len()), format!("the tables lead nowhere: {broken}{said}"));
    }
    // Other devices in between, such as a pod's end of a veth, are no difference.
    let mut seen = walk.there.iter();
    let missing = model.steps.iter().position(|step| !seen.any(|sight| same(step, sight)));
    if let Some(at) = missing {
        let step = &model.steps[at];
        let elsewhere = walk.there.last().filter(|last| model.steps.iter().all(|step| !same(step, last)));
        let text = match (at.checked_sub(1).map(|before| &model.steps[before]), elsewhere) {
            (_, Some(other)) => format!(
                "the packet should go through {} and went through {}: a policy rule, a mark or NAT leads it elsewhere{said}",
                step.device, other.device
            ),
            (Some(before), None) => format!(
                "the packet was seen on {} and not on {}: this host drops it in between, most likely a packet filter; \
                 `loden drops -f` names the reason while it happens, `loden doctor` looks at filters{said}",
                before.device, step.device
            ),
            (None, None) => {
                format!("the packet was not seen on {}: this host does not send it{said}", step.device)
            }
        };
        return bad(Some(at), text);
    }
    if walk.answered {
        let text = "the packet took the way the tables say, and the answer came back";
        return Verdict { fine: true, at: None, text: text.to_owned() };
    }
    let last = model.steps.last().map_or("the host", |step| step.device.as_str());
    let far = model.far.map_or(String::new(), |far| format!(" towards {far}"));
    if let Some(why) = &walk.refused {
        return bad(None, format!("the packet left through {last}{far}, and was refused: {why}"));
    }
    // The answer's way is the request's, backwards.
    let came = model.steps.iter().position(|step| walk.back.iter().any(|sight| same(step, sight)));
    let text = match came {
        None if model.local => {
            format!(
                "the packet reached {last} and nothing answers: the destination drops it, or is not there"
            )
        }
        None => format!(
            "the packet left through {last}{far} and nothing came back: the network between, or the host there; look at \
             `loden status` and `loden trace` on it"
        ),
        Some(0) => "the answer came as far as the first device and was dropped there".to_owned(),
        Some(at) => format!(
            "the answer came back to {} and did not reach {}: this host drops what comes in (source check, another VNI, \
             reverse-path filter, a packet filter)",
            model.steps[at].device,
            model.steps[at - 1].device
        ),
    };
    bad(came, text)
}

fn same(step: &Step, sight: &Sight) -> bool {
    step.place == sight.place && step.device == sight.device
}

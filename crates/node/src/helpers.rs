//! What brings about objects that the kernel does not hold: one helper for each backend that has such, with
//! threads of its own. Takes steps, gives outcomes to the inbox; decides nothing that the plan could decide,
//! and no step makes the loop wait (decision 0150).

pub mod charon;
mod commands;
mod queue;
mod vpc;

use std::sync::Arc;
use std::time::Duration;

use model::NetConf;
use plan::backend::{extension, ipsec, tencent};
use plan::{Object, Step};

use crate::inputs::Inbox;
use crate::rights::Rights;
use charon::Charon;
use commands::Commands;
use queue::Queue;
use vpc::Cloud;

/// A number of seconds in the environment; what is none is said and left aside.
fn seconds(name: &str, otherwise: Duration, env: impl Fn(&str) -> Option<String>) -> Duration {
    let Some(text) = env(name).filter(|text| !text.is_empty()) else { return otherwise };
    match text.parse() {
        Ok(seconds @ 1..) => Duration::from_secs(seconds),
        _ => {
            let default = otherwise.as_secs();
            tracing::warn!("{name}={text:?} is not a number of seconds above 0; it stays at {default}");
            otherwise
        }
    }
}

/// The helper that the configuration wants, if it wants one.
pub struct Helpers {
    inbox: Arc<Inbox>,
    rights: Arc<Rights>,
    now: Option<(NetConf, Helper)>,
}

enum Helper {
    /// Nothing is outside the kernel.
    None,
    /// Runs the commands of the extension backend.
    Commands(Commands),
    /// Keeps strongSwan's daemon and its connections.
    Charon(Charon),
    /// Keeps a route of Tencent's cloud.
    Cloud(Cloud),
}

impl Helpers {
    /// None yet; outcomes go to `inbox`, threads come from `rights`.
    pub fn new(inbox: Arc<Inbox>, rights: Arc<Rights>) -> Helpers {
        Helpers { inbox, rights, now: None }
    }

    /// Starts the helper of a configuration, unless it runs.
    pub fn fit(&mut self, conf: &NetConf) {
        if self.now.as_ref().is_some_and(|(of, _)| of == conf) {
            return;
        }
        let helper = match conf.backend_type.to_ascii_lowercase().as_str() {
            extension::KIND => Helper::Commands(Commands::start(conf, self.inbox.clone(), &self.rights)),
            ipsec::KIND => match Charon::start(conf, self.inbox.clone(), &self.rights) {
                Ok(charon) => Helper::Charon(charon),
                // The backend has been made of the same text.
                Err(error) => {
                    tracing::error!("{error}");
                    Helper::None
                }
            },
            tencent::KIND => {
                Helper::Cloud(Cloud::start(conf, self.inbox.clone(), |name| std::env::var(name).ok()))
            }
            _ => Helper::None,
        };
        self.now = Some((conf.clone(), helper));
    }

    fn queue(&self) -> Option<&Queue> {
        match &self.now.as_ref()?.1 {
            Helper::None => None,
            Helper::Commands(commands) => Some(commands.queue()),
            Helper::Charon(charon) => Some(charon.queue()),
            Helper::Cloud(cloud) => Some(cloud.queue()),
        }
    }

    /// Hands over a step; its outcome will be news.
    pub fn ask(&self, step: Step) {
        if let Some(queue) = self.queue() {
            queue.ask(step);
        }
    }

    /// What stands outside the kernel.
    pub fn held(&self) -> Vec<Object> {
        self.queue().map(Queue::held).unwrap_or_default()
    }

    /// What there is to say of peers that do not answer.
    pub fn silence(&self) -> Option<String> {
        self.queue()?.silence()
    }

    /// What `PreStartupCommand` printed, once it has run.
    pub fn printed(&self) -> Option<String> {
        match &self.now.as_ref()?.1 {
            Helper::Commands(commands) => commands.printed(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_taken_or_left() {
        for (said, wanted) in [(None, 60), (Some(""), 60), (Some("5"), 5), (Some("0"), 60), (Some("5s"), 60)]
        {
            let found = seconds("X", Duration::from_secs(60), |_| said.map(str::to_owned));
            assert_eq!(found.as_secs(), wanted, "{said:?}");
        }
    }
}

//! What brings about objects that the kernel does not hold: one helper for each backend that has such, with
//! threads of its own. Takes steps, gives outcomes to the inbox; decides nothing that the plan could decide,
//! and no step makes the loop wait (decision 0150).

mod commands;

use std::sync::Arc;

use model::NetConf;
use plan::backend::extension;
use plan::{Object, Step};

use crate::inputs::Inbox;
use commands::Commands;

/// The helper that the configuration wants, if it wants one.
pub struct Helpers {
    inbox: Arc<Inbox>,
    now: Option<(NetConf, Helper)>,
}

enum Helper {
    /// Nothing is outside the kernel.
    None,
    /// Runs the commands of the extension backend.
    Commands(Commands),
}

impl Helpers {
    /// None yet; outcomes go to `inbox`.
    pub fn new(inbox: Arc<Inbox>) -> Helpers {
        Helpers { inbox, now: None }
    }

    /// Starts the helper of a configuration, unless it runs.
    pub fn fit(&mut self, conf: &NetConf) {
        if self.now.as_ref().is_some_and(|(of, _)| of == conf) {
            return;
        }
        let helper = match conf.backend_type.to_ascii_lowercase().as_str() {
            extension::KIND => Helper::Commands(Commands::start(conf, self.inbox.clone())),
            _ => Helper::None,
        };
        self.now = Some((conf.clone(), helper));
    }

    /// Hands over a step; its outcome will be news.
    pub fn ask(&mut self, step: Step) {
        match self.now.as_ref().map(|(_, helper)| helper) {
            Some(Helper::Commands(commands)) => commands.ask(step),
            Some(Helper::None) | None => {}
        }
    }

    /// What stands outside the kernel.
    pub fn held(&self) -> Vec<Object> {
        match self.now.as_ref().map(|(_, helper)| helper) {
            Some(Helper::Commands(commands)) => commands.held(),
            Some(Helper::None) | None => Vec::new(),
        }
    }

    /// What `PreStartupCommand` printed, once it has run.
    pub fn printed(&self) -> Option<String> {
        match self.now.as_ref().map(|(_, helper)| helper) {
            Some(Helper::Commands(commands)) => commands.printed(),
            _ => None,
        }
    }
}

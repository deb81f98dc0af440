//! Keeps the route of a Tencent VPC that leads to this node, for the backend tencent-vpc (decision 0152).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use model::NetConf;
use model::config::TencentConf;
use plan::state::CloudRoute;
use plan::{Key, Object, Step};
use store::tencent::{Places, Vpc};

use super::queue::{Next, Queue};
use super::seconds;
use crate::inputs::Inbox;

/// The cloud is asked this often whether the route still stands.
const LOOK: Duration = Duration::from_secs(300);

/// The helper. Its thread ends with the value.
pub struct Cloud {
    queue: Arc<Queue>,
}

impl Cloud {
    /// Starts the thread. `env` gives variables of the environment.
    pub fn start(conf: &NetConf, inbox: Arc<Inbox>, env: impl Fn(&str) -> Option<String>) -> Cloud {
        let queue = Arc::new(Queue::new(inbox));
        let said = |name: &str| env(name).filter(|text| !text.is_empty());
        let mut places = Places::default();
        for (place, name) in
            [(&mut places.metadata, "LODEN_TENCENT_METADATA"), (&mut places.api, "LODEN_TENCENT_API")]
        {
            if let Some(url) = said(name) {
                *place = url.trim_end_matches('/').to_owned();
            }
        }
        let every = seconds("LODEN_TENCENT_RECHECK", LOOK, &env);
        let vpc = credentials(conf, env).map(|who| Vpc::new(places, who));
        let worker = Worker { queue: queue.clone(), vpc, every };
        Queue::thread("cloud", move || worker.run());
        Cloud { queue }
    }

    /// Where steps go and results come from.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.queue.stop();
    }
}

/// Both from the configuration, else both from the environment, as upstream.
fn credentials(conf: &NetConf, env: impl Fn(&str) -> Option<String>) -> Result<TencentConf, String> {
    if let Some(who) = TencentConf::decode(&conf.backend).map_err(|error| error.to_string())? {
        return Ok(who);
    }
    let [id, secret] = ["ACCESS_KEY_ID", "ACCESS_KEY_SECRET"].map(|name| env(name).unwrap_or_default());
    let who = TencentConf::new(&id, &secret).map_err(|problem| format!("ACCESS_KEY_ID {problem}"))?;
    who.ok_or_else(|| {
        "the backend tencent-vpc needs AccessKeyID and AccessKeySecret in the network config, or ACCESS_KEY_ID and \
         ACCESS_KEY_SECRET in the environment of the agent"
            .to_owned()
    })
}

struct Worker {
    queue: Arc<Queue>,
    /// Or why there is none.
    vpc: Result<Vpc, String>,
    every: Duration,
}

impl Worker {
    fn run(mut self) {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return tracing::error!("start the runtime for the cloud's interface: {error}"),
        };
        let mut looked = Instant::now();
        loop {
            match self.queue.next(Some(self.every.saturating_sub(looked.elapsed()))) {
                Next::Stop => return,
                Next::Job(step) => {
                    let result = runtime.block_on(self.carry_out(&step));
                    self.queue.done(step, result, false);
                }
                Next::Nothing => {
                    runtime.block_on(self.look());
                    looked = Instant::now();
                }
            }
        }
    }

    async fn carry_out(&mut self, step: &Step) -> Result<(), String> {
        let vpc = self.vpc.as_mut().map_err(|why| why.clone())?;
        match step {
            Step::Put(Object::CloudRoute(CloudRoute { dst, gateway })) => {
                for line in vpc.ensure(*dst, &gateway.to_string()).await? {
                    tracing::info!("{line}");
                }
                Ok(())
            }
            Step::Delete(Object::CloudRoute(CloudRoute { dst, gateway })) => {
                vpc.remove(*dst, &gateway.to_string()).await
            }
            _ => Ok(()),
        }
    }

    /// A route that somebody took away is news. That the cloud does not answer now is none: what stands there
    /// goes on.
    async fn look(&mut self) {
        let route = |object| match object {
            Object::CloudRoute(CloudRoute { dst, gateway }) => Some((dst, gateway)),
            _ => None,
        };
        let held: Vec<(IpNet, IpAddr)> = self.queue.held().into_iter().filter_map(route).collect();
        let Ok(vpc) = &mut self.vpc else { return };
        for (dst, gateway) in held {
            match vpc.stands(dst, &gateway.to_string()).await {
                Ok(true) => {}
                Ok(false) => self.queue.found(Key::CloudRoute(dst), None, None),
                Err(why) => tracing::warn!("look at the route {dst} of the cloud: {why}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_come_from_one_place() {
        let conf = |members: &str| {
            NetConf::parse(format!(
                r#"{{"Network":"10.244.0.0/16","Backend":{{"Type":"tencent-vpc"{members}}}}}"#
            ))
            .expect("a configuration")
        };
        let none = |_: &str| None;
        let env = |name: &str| Some(if name == "ACCESS_KEY_ID" { "env-id" } else { "env-secret" }.to_owned());
        let both = conf(r#","AccessKeyID":"conf-id","AccessKeySecret":"conf-secret""#);
        let half = conf(r#","AccessKeyID":"conf-id""#);
        let id =
            |conf: &NetConf, env: &dyn Fn(&str) -> Option<String>| credentials(conf, env).map(|who| who.id);
        assert_eq!(id(&both, &env).as_deref(), Ok("conf-id"));
        assert_eq!(id(&half, &env).as_deref(), Ok("env-id"));
        assert!(id(&half, &none).is_err_and(|why| why.contains("ACCESS_KEY_SECRET in the environment")));
        let odd = |_: &str| Some("two words".to_owned());
        assert!(id(&half, &odd).is_err_and(|why| why.contains("ACCESS_KEY_ID must be of letters")));
    }
}

//! Start-up and end of the agent (flannel.md 1.5–1.7).
//!
//! Flags are checked, then threads are started, and from there on nothing ends the process but a
//! signal: whatever is missing is said once and waited for.

use std::cell::Cell;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use model::Subnets;
use model::codec::subnet_env;
use plan::rules::Choice;
use store::Standing;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::args::{self, Options, Outcome};
use crate::board::{Board, Topic};
use crate::cniconf::CniConf;
use crate::fast::Fast;
use crate::health::{self, Health, Offer};
use crate::host::{self, Hearing, Host};
use crate::inputs::{Inbox, Inputs};
use crate::last_good::{Contact, Shelf};
use crate::membership::Member;
use crate::metrics::Ledger;
use crate::reconcile::{Picture, Reconciler, Report};
use crate::rights::{Need, Rights};
use crate::settings::Settings;
use crate::socket::{self, Desk};
use crate::status::gather::{History, gather};
use crate::status::{Status, probed};
use crate::stores::{Store, choose_store, habits, has_last_good, membership};
use crate::{log, metrics, outputs, probe, web};

/// What `--version` prints.
pub const VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"));

/// How we were called, which decides the default store (decision 0006).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Personality {
    /// `loden agent`
    Loden,
    /// `flanneld`
    Flanneld,
}

/// A burst of changes becomes one round.
const SETTLE: Duration = Duration::from_millis(5);
/// Distance of tries to write the subnet file.
const REWRITE: Duration = Duration::from_secs(1);
/// Threads for what blocks beside the one that waits on networks.
const BLOCKING: usize = 16;
/// Steps shown in the log for one round.
const SHOWN: usize = 8;

/// Runs the agent until a signal. Gives the exit status.
pub fn agent(program: &str, words: &[String], personality: Personality) -> u8 {
    let env = |name: &str| std::env::var(name).ok();
    let (options, warnings) = match args::parse(program, words, env) {
        Outcome::Run { options, warnings } => (*options, warnings),
        Outcome::Print { text, status } => {
            let _ = std::io::stderr().lock().write_all(text.as_bytes());
            return status;
        }
    };
    if options.version {
        let _ = writeln!(std::io::stderr().lock(), "{VERSION}");
        return 0;
    }
    let tail = log::init(options.v, options.log_format);
    if let Err(error) = kernel::process::no_core_dumps() {
        tracing::warn!("keep keys out of core dumps: {error}");
    }
    tracing::info!("CLI flags config: {options:?}");
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let rights = match Rights::start(&options) {
        Ok(rights) => Arc::new(rights),
        Err(error) => {
            tracing::error!("start a thread: {error}");
            return 1;
        }
    };
    let status = match run(options, personality, &rights, tail.clone()) {
        Ok(()) => {
            tracing::info!("Exiting cleanly...");
            0
        }
        Err(error) => {
            tracing::error!("{error}");
            1
        }
    };
    tail.finish();
    status
}

fn run(
    options: Options,
    personality: Personality,
    rights: &Arc<Rights>,
    tail: Arc<log::Tail>,
) -> Result<(), String> {
    let store = choose_store(&options, personality)?;
    let ports = ports(health_address(&options)?, &std::env::var("LODEN_METRICS").unwrap_or_default())?;
    let previous = previous_subnets(&options);

    let inbox = Arc::new(Inbox::default());
    let board = Arc::new(Board::default());
    let ledger = Arc::new(Ledger::default());
    let probes = Arc::new(probe::Board::default());
    let health = Arc::new(Health::new(board.clone(), ledger.clone(), probes.clone()));
    let (reports, seen) = watch::channel(Report::default());
    let (announced, standing) = watch::channel(Standing::default());
    let margin = Duration::from_secs(60 * u64::try_from(options.subnet_lease_renew_margin).unwrap_or(60));
    let (recheck, services) = habits(&store);
    let shelf = has_last_good(&store).then(|| Arc::new(Shelf::new(&options.subnet_file)));
    let member = Member {
        inbox: inbox.clone(),
        board: board.clone(),
        reports: seen,
        standing,
        previous: Cell::new(previous),
        contact: Cell::new(Contact::Silent),
        shelf: shelf.clone(),
        margin,
        services,
        recheck,
    };

    let told = std::env::var("LODEN_SERVICE_CIDRS").unwrap_or_default();
    outputs::tell_services(&options.subnet_file, &told)?;
    let troubles = outputs::trouble_file(&options.subnet_file);
    let (answer, answers) = watch::channel(None);
    let said = std::env::var("LODEN_SOCKET").ok();
    let waiting = Waiting {
        desk: Arc::new(Desk {
            inbox: inbox.clone(),
            answers,
            probes: probes.clone(),
            health: health.clone(),
            settings: Settings::new(&options, environment()),
            log: tail,
            kept: Mutex::default(),
        }),
        socket: socket::path(said.as_deref(), &options.subnet_file),
        inbox: inbox.clone(),
        board: board.clone(),
        health: health.clone(),
        ports,
        web: web::place(&std::env::var("LODEN_WEB").unwrap_or_default())?,
        troubles: troubles.clone(),
        announced,
    };
    let async_side = std::thread::Builder::new()
        .name("stores".to_owned())
        .spawn(move || waiting.run(store, member))
        .map_err(|error| format!("start a thread: {error}"))?;

    inbox.update(|inputs| inputs.reach = model::addr::parse_ip(&options.iface_can_reach));
    let hearing = Arc::new(Hearing::default());
    host::listen(inbox.clone(), hearing.clone());
    let choice = Choice {
        masquerade: options.ip_masq,
        fully_random: !options.ip_masq_fully_random_disable,
        forward: options.iptables_forward_rules,
        blackhole: options.ip_blackhole_route,
    };
    let kernel = Host::open(&options, inbox.clone(), rights.clone(), hearing)?;
    probe::run::start(&probes, &inbox, &std::env::var("LODEN_PROBE").unwrap_or_default())?;
    let iptables_resync_ms =
        u64::try_from(options.iptables_resync).unwrap_or_default().max(1).saturating_mul(1000);
    let fast_path = options.fast_path;
    let mut fast = Fast::new(fast_path, board.clone(), inbox.clone(), rights.clone());
    let mut settled = false;
    let mut outcome = Outlet::new(options, board, health);
    let mut reconciler = Reconciler::new(kernel, choice, iptables_resync_ms);
    let start = Instant::now();
    loop {
        let due = start + Duration::from_millis(reconciler.due_ms());
        let due = if outcome.unwritten { due.min(Instant::now() + REWRITE) } else { due };
        let inputs = inbox.wait(due, SETTLE);
        if inputs.stop {
            break;
        }
        let now_ms = start.elapsed().as_millis() as u64;
        let began = Instant::now();
        let report = reconciler.round(&inputs, now_ms);
        ledger.open().round(&inputs, &report, began.elapsed());
        if let Some(conf) = inputs.conf.as_ref().filter(|_| !settled) {
            // Another one takes another start of the agent (decision 0091).
            rights.settle(Need::of(conf, fast_path));
            settled = true;
        }
        inbox.watch_uplink(reconciler.uplink());
        fast.follow(&inputs, reconciler.uplink().map(|uplink| (uplink, reconciler.uplink_v4())));
        outcome.publish(&inputs, &report);
        if let Some(plan) = reconciler.probing(&inputs, &report) {
            probes.plan(plan);
        }
        if inputs.asked {
            let picture = reconciler.picture();
            let status = outcome.status(&inputs, &report, picture, &probes, start.elapsed());
            let status = Status { fast_path: fast.shown(), ..status };
            answer.send_replace(Some(Arc::new(status)));
        }
        reports.send_if_modified(|known| known.says_another(report));
    }
    for trouble in reconciler.hand_over() {
        tracing::error!("leave rules and routes to whoever comes next: {trouble}");
    }
    drop(reports);
    // The async side ends by itself after the signal; a panic in it has been printed.
    let _ = async_side.join();
    outputs::withdraw_troubles(&troubles);
    if let Some(shelf) = shelf {
        shelf.finish();
    }
    Ok(())
}

/// The variables that are text.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// Everything that waits on networks, on one thread.
struct Waiting {
    desk: Arc<Desk>,
    /// Where to listen for questions.
    socket: Option<PathBuf>,
    inbox: Arc<Inbox>,
    board: Arc<Board>,
    health: Arc<Health>,
    ports: Vec<(SocketAddr, Offer)>,
    web: Option<SocketAddr>,
    /// The file the CNI plugins read.
    troubles: PathBuf,
    /// To the store.
    announced: watch::Sender<Standing>,
}

impl Waiting {
    fn run(self, store: Store, member: Member) {
        let inbox = self.inbox.clone();
        let mut builder = tokio::runtime::Builder::new_current_thread();
        // Of files that hang and names that are looked up.
        builder.enable_all().max_blocking_threads(BLOCKING);
        let runtime = match builder.build() {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!("start the runtime for stores: {error}");
                inbox.update(|inputs| inputs.stop = true);
                return;
            }
        };
        let notify = std::env::var("NOTIFY_SOCKET").ok();
        let shown = outputs::show(self.board.clone(), self.troubles.clone(), notify, self.announced.clone());
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, async {
            tokio::select! {
                () = signals() => tracing::info!("shutting down, the data path stays as it is"),
                () = self.health() => {}
                () = web::serve(self.web, self.desk.clone(), self.board.clone()) => {}
                () = socket::serve(self.socket.clone(), self.desk.clone()) => {}
                () = shown => {}
                () = membership(store, member) => {}
            }
        });
        inbox.update(|inputs| inputs.stop = true);
        // A second signal, or a task that hangs, must not keep the process.
        runtime.shutdown_timeout(Duration::from_secs(3));
    }

    async fn health(&self) {
        for (address, offer) in &self.ports {
            tokio::task::spawn_local(health::serve(*address, *offer, self.health.clone()));
        }
        std::future::pending().await
    }
}

/// Returns at the first SIGINT or SIGTERM; the next one ends the process at once.
async fn signals() {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        tracing::warn!("signals cannot be caught; SIGTERM will end the process at once, which does no harm");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    tokio::task::spawn_local(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        std::process::exit(1);
    });
}

fn health_address(options: &Options) -> Result<Option<SocketAddr>, String> {
    if options.healthz_port <= 0 {
        return Ok(None);
    }
    let ip: IpAddr = options.healthz_ip.parse().map_err(|_| {
        format!(
            "--healthz-ip {:?} is not an address; write for example --healthz-ip=0.0.0.0",
            options.healthz_ip
        )
    })?;
    let port = u16::try_from(options.healthz_port).map_err(|_| {
        format!("--healthz-port {} is not a port: 1 to 65535, 0 for none", options.healthz_port)
    })?;
    Ok(Some(SocketAddr::new(ip, port)))
}

/// Where to listen for what: metrics are beside the health checks, or on the address `LODEN_METRICS` alone, or
/// nowhere with `none`.
fn ports(health: Option<SocketAddr>, said: &str) -> Result<Vec<(SocketAddr, Offer)>, String> {
    let beside = health.map(|address| (address, Offer { health: true, metrics: said.is_empty() }));
    let own = match said {
        "" | "none" => None,
        said => {
            let address: SocketAddr = said.parse().map_err(|_| {
                format!(
                    "LODEN_METRICS={said:?} is no address with a port; write for example 127.0.0.1:9465, or none"
                )
            })?;
            Some((address, Offer { health: false, metrics: true }))
        }
    };
    Ok(beside.into_iter().chain(own).collect())
}

/// Subnets of an earlier run, so that pods keep their addresses. A file that cannot be read is none.
fn previous_subnets(options: &Options) -> Subnets {
    match std::fs::read_to_string(&options.subnet_file) {
        Ok(text) => subnet_env::read_previous(&text).subnets,
        Err(_) => Subnets::default(),
    }
}

/// Hands reports to the world.
struct Outlet {
    options: Options,
    board: Arc<Board>,
    health: Arc<Health>,
    notify: Option<String>,
    written: Option<String>,
    /// The subnet file or the CNI configuration could not be written last time.
    unwritten: bool,
    cni_conf: Option<CniConf>,
    ready: bool,
    /// MTU last written.
    mtu: u32,
    left_out: std::collections::BTreeMap<String, String>,
    history: History,
}

impl Outlet {
    fn new(options: Options, board: Arc<Board>, health: Arc<Health>) -> Outlet {
        let notify = std::env::var("NOTIFY_SOCKET").ok();
        Outlet {
            options,
            board,
            health,
            notify,
            written: None,
            unwritten: false,
            cni_conf: CniConf::from_environment(|name| std::env::var(name).ok()),
            ready: false,
            mtu: 0,
            left_out: Default::default(),
            history: History::default(),
        }
    }

    fn publish(&mut self, inputs: &Inputs, report: &Report) {
        self.tell(report);
        let mut ready = report.converged;
        if let (true, Some(conf), Some(own)) = (report.converged, &inputs.conf, &inputs.own) {
            let text = subnet_env::write(conf, &own.subnets, report.mtu, self.options.ip_masq);
            self.tell_mtu(report.mtu);
            ready = self.subnet_file(text);
        } else if inputs.void && inputs.own.is_none() {
            self.withdraw_subnet_file();
        }
        if let (true, Some(cni_conf)) = (ready, &mut self.cni_conf) {
            let kept = cni_conf.keep(Instant::now());
            self.unwritten = kept.is_err();
            ready = kept.is_ok();
            match kept {
                Ok(()) => self.board.clear(&Topic::CniConf),
                Err(error) => self.board.set(Topic::CniConf, error),
            }
        }
        if ready && !self.ready {
            tracing::info!(
                topic = "ready",
                state = "begins",
                peers = report.peers,
                objects = report.objects,
                "flannel is ready: {} peers, {} kernel objects in place",
                report.peers,
                report.objects
            );
            outputs::sd_notify(self.notify.as_deref(), "READY=1");
        } else if !ready && self.ready {
            tracing::warn!(topic = "ready", state = "over", "not ready any more, see above");
        }
        self.ready = ready;
        self.board.ready(ready);
        self.health.beat();
        self.history.note(&self.board.now(), SystemTime::now());
    }

    /// What somebody asked for.
    fn status(
        &self,
        inputs: &Inputs,
        report: &Report,
        picture: Picture,
        probes: &probe::Board,
        uptime: Duration,
    ) -> Status {
        let mut status = gather(inputs, report, picture, &self.board.now(), &self.history, uptime);
        status.probes = Some(probed::gather(probes, &inputs.view.names));
        status.dropped = metrics::read::dropped();
        status
    }

    /// Pods keep the MTU they were made with: an interface of theirs is in their own hands.
    fn tell_mtu(&mut self, mtu: u32) {
        let before = std::mem::replace(&mut self.mtu, mtu);
        if before != 0 && before != mtu {
            tracing::warn!(
                "MTU for pods is {mtu} now, it was {before}; pods made before keep {before} until they are made anew{}",
                if mtu < before { ", and depend on path MTU discovery till then" } else { "" }
            );
        }
    }

    /// Written when it differs; looked at again when somebody removed it.
    fn subnet_file(&mut self, text: String) -> bool {
        let path = Path::new(&self.options.subnet_file);
        if self.written.as_ref() == Some(&text) && path.exists() {
            return true;
        }
        let written = outputs::write_subnet_file(path, &text);
        self.unwritten = written.is_err();
        match written {
            Ok(()) => {
                self.board.clear(&Topic::SubnetFile);
                tracing::info!("Wrote subnet file to {}", path.display());
                self.written = Some(text);
                true
            }
            Err(error) => {
                self.board.set(Topic::SubnetFile, error);
                self.written = None;
                false
            }
        }
    }

    /// No pod may get an address of a subnet that may be another node's.
    fn withdraw_subnet_file(&mut self) {
        self.written = None;
        match std::fs::remove_file(&self.options.subnet_file) {
            Ok(()) => {
                tracing::warn!("removed {}: the subnet in it is not ours any more", self.options.subnet_file);
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                self.board.clear(&Topic::SubnetFile)
            }
            Err(error) => self.board.set(
                Topic::SubnetFile,
                format!(
                    "remove {}: {error}; pods may get addresses of another node's subnet: remove it by hand",
                    self.options.subnet_file
                ),
            ),
        }
    }

    /// One line for each change of state, never for each retry.
    fn tell(&mut self, report: &Report) {
        for note in &report.notes {
            tracing::warn!("{note}");
        }
        self.board.round(&report.troubles, report.looked);
        for (subnets, why) in report.left_out.iter().filter(|(s, why)| self.left_out.get(*s) != Some(*why)) {
            tracing::warn!(topic = "peer", peer = subnets, "peer {subnets} is left out: {why}");
        }
        self.left_out.clone_from(&report.left_out);
        let done = report.done.count();
        if self.ready && done > 0 {
            let steps = report.done.words().take(SHOWN).collect::<Vec<_>>().join("; ");
            tracing::info!("{done} changes: {steps}{}", if done > SHOWN { "; …" } else { "" });
        }
    }
}

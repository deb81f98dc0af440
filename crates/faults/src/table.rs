//! The catalogue as data: every row of R01 to R31, what is promised, and how it is shown: on hosts of this machine,
//! by tests that stand elsewhere, or not here and why.

use std::time::Duration;

use crate::inject::{Inject, agent, denied, device, fast, kernel, store, underlay, uplink};
use crate::promise::Promise;

/// One line of the catalogue.
#[derive(Clone, Copy)]
pub struct Fault {
    /// Row of the catalogue, R01 to R31.
    pub row: &'static str,
    /// What is done.
    pub what: &'static str,
    /// How it is shown.
    pub way: Way,
}

/// How a line is shown.
#[derive(Clone, Copy)]
pub enum Way {
    /// On hosts of the lab with traffic.
    Here(Act),
    /// By tests: package, test program (`lib` for unit tests, else a name below `tests/`), and words that their
    /// names begin with or are.
    Tests(&'static [(&'static str, &'static str, &'static str)]),
    /// Not on this machine, or not in this version, and why.
    Cannot(&'static str),
}

/// What is done on the hosts.
#[derive(Clone, Copy)]
pub struct Act {
    /// What is promised.
    pub promise: Promise,
    /// How often: in the short slice, and in full.
    pub rounds: (usize, usize),
    /// Backends it makes sense with; none named, all.
    pub backends: &'static [&'static str],
    /// Whether it takes a store that can be taken away.
    pub etcd: bool,
    /// Whether it takes the programs of another release.
    pub other: bool,
    /// Whether it is about the fast path alone.
    pub fast: bool,
    /// How long it may take until packets go fast again, where they do.
    pub fast_within: Duration,
    /// Does it once and writes when the kernel was right again.
    pub inject: Inject,
}

const NOTHING: Promise = Promise::NothingLost;
const SECOND: Promise = Promise::Gap(Duration::from_secs(1));
const TUNNELS: &[&str] = &["vxlan", "udp", "wireguard"];
const VXLAN: &[&str] = &["vxlan"];

const fn here(
    row: &'static str,
    what: &'static str,
    promise: Promise,
    rounds: (usize, usize),
    inject: Inject,
) -> Fault {
    Fault {
        row,
        what,
        way: Way::Here(Act {
            promise,
            rounds,
            backends: &[],
            etcd: false,
            other: false,
            fast: false,
            fast_within: Duration::from_secs(3),
            inject,
        }),
    }
}

const fn on(backends: &'static [&'static str], fault: Fault) -> Fault {
    match fault.way {
        Way::Here(act) => Fault { way: Way::Here(Act { backends, ..act }), ..fault },
        _ => fault,
    }
}

const fn etcd(fault: Fault) -> Fault {
    match fault.way {
        Way::Here(act) => Fault { way: Way::Here(Act { etcd: true, ..act }), ..fault },
        _ => fault,
    }
}

const fn other(fault: Fault) -> Fault {
    match fault.way {
        Way::Here(act) => Fault { way: Way::Here(Act { other: true, ..act }), ..fault },
        _ => fault,
    }
}

/// The agent looks every five seconds whether its programs are where they were, and at most twice that apart.
const LOOKED_AFTER: Duration = Duration::from_secs(11);

const fn fast_only(fault: Fault) -> Fault {
    match fault.way {
        Way::Here(act) => {
            Fault { way: Way::Here(Act { fast: true, fast_within: LOOKED_AFTER, ..act }), ..fault }
        }
        _ => fault,
    }
}

const fn tests(
    row: &'static str,
    what: &'static str,
    by: &'static [(&'static str, &'static str, &'static str)],
) -> Fault {
    Fault { row, what, way: Way::Tests(by) }
}

const fn cannot(row: &'static str, what: &'static str, why: &'static str) -> Fault {
    Fault { row, what, way: Way::Cannot(why) }
}

/// All of it.
pub const FAULTS: &[Fault] = &[
    here("R01", "an agent is killed (-9) and started", NOTHING, (3, 100), agent::killed),
    here("R01", "an agent is killed (-9) while it starts", NOTHING, (3, 100), agent::killed_early),
    here("R01", "an agent is ended (TERM) and started", NOTHING, (1, 50), agent::ended),
    here("R01", "all agents are killed at once", NOTHING, (1, 20), agent::all_killed),
    tests("R02", "a plugin is killed at every step", &[("cni", "it", "kill::")]),
    other(here(
        "R03",
        "a host's agent and plugins become another release's, and ours again",
        NOTHING,
        (1, 50),
        agent::exchanged,
    )),
    here("R04", "pods come and go, eight at once", NOTHING, (1, 20), agent::pods_churn),
    tests(
        "R05",
        "the API server is away, slow, forgets, or says nothing",
        &[
            ("node", "it", "kube::an_outage_of_the_api_is_survived_and_made_up_for"),
            ("store", "it", "kube_faults::"),
        ],
    ),
    etcd(here("R06", "etcd is killed for two seconds", NOTHING, (1, 10), store::away)),
    etcd(here("R06", "routes are deleted while etcd is away", SECOND, (1, 10), store::away_and_damage)),
    etcd(here(
        "R06",
        "an agent is killed and started while etcd is away",
        NOTHING,
        (1, 5),
        store::away_and_restart,
    )),
    tests(
        "R06",
        "etcd compacts, pauses, restarts; a lease runs out; a token expires",
        &[("store", "it", "etcd::"), ("store", "it", "orders::")],
    ),
    tests(
        "R07",
        "events that the watch never told",
        &[
            ("store", "it", "etcd::what_the_watch_missed_is_found_by_listing"),
            ("store", "it", "kube_faults::everything_is_listed_again_now_and_then"),
        ],
    ),
    here(
        "R08",
        "5,000 changes of neighbours at once, and our routes deleted in their midst",
        SECOND,
        (1, 20),
        kernel::burst,
    ),
    tests(
        "R08",
        "notifications of the kernel are lost, and something of ours is deleted in their midst",
        &[
            ("kernel", "it", "monitor::nothing_is_lost_after_a_loss_was_told"),
            ("node", "it", "overload::a_storm_of_notifications_loses_nothing"),
        ],
    ),
    tests(
        "R09",
        "the lock of iptables is held, its programs hang or are missing",
        &[
            ("node", "it", "iptables::a_lock_that_is_held_and_a_program_that_hangs_hinder_nothing_else"),
            ("node", "it", "iptables::without_its_programs_a_family_has_nftables_until_they_come"),
        ],
    ),
    here("R10", "nft flush ruleset", NOTHING, (3, 200), kernel::flush_ruleset),
    here("R10", "iptables -F of all tables", NOTHING, (1, 50), kernel::flush_iptables),
    here("R11", "one owned object is deleted or altered", SECOND, (5, 500), kernel::one_object),
    here("R11", "all our routes are deleted", SECOND, (1, 50), kernel::flush_routes),
    here("R11", "all connections are forgotten (conntrack -F)", NOTHING, (1, 50), kernel::forget_connections),
    fast_only(here(
        "R11",
        "a program of the fast path is taken from its device",
        NOTHING,
        (1, 20),
        fast::detached,
    )),
    fast_only(here(
        "R11",
        "the files of the fast path are deleted, and later the agent is killed",
        NOTHING,
        (1, 20),
        fast::unpinned,
    )),
    fast_only(here(
        "R11",
        "the files of the fast path are deleted and the agent is killed at once",
        NOTHING,
        (1, 20),
        fast::unpinned_and_killed,
    )),
    on(TUNNELS, here("R12", "the tunnel's device is deleted", SECOND, (1, 50), device::deleted)),
    on(TUNNELS, here("R12", "the tunnel's device is set down", SECOND, (1, 50), device::down)),
    on(TUNNELS, here("R12", "the tunnel's MTU is changed", SECOND, (1, 50), device::mtu)),
    on(VXLAN, here("R12", "the tunnel's hardware address is changed", SECOND, (1, 50), device::address)),
    on(VXLAN, here("R12", "the tunnel's device is renamed", SECOND, (1, 20), device::renamed)),
    on(
        VXLAN,
        here(
            "R12",
            "another's device has the tunnel's name for a second",
            Promise::Gap(Duration::from_secs(3)),
            (1, 20),
            device::taken,
        ),
    ),
    here("R13", "the uplink goes down and up", SECOND, (1, 50), uplink::flap),
    here("R13", "the uplink loses its addresses for 100 ms", SECOND, (1, 50), uplink::address),
    here("R13", "a second default route comes and goes", NOTHING, (1, 50), uplink::second_default),
    here("R13", "the uplink's MTU is smaller for half a second", SECOND, (1, 50), uplink::mtu),
    here("R13", "the uplink has another hardware address, and says so", SECOND, (1, 50), uplink::hardware),
    tests("R13", "the uplink's address, index or MTU changes for good", &[("node", "it", "uplink::")]),
    tests(
        "R14",
        "two nodes say they have the same address or key",
        &[("node", "it", "bad_input::nodes_that_announce_the_same_address_are_named_and_kept")],
    ),
    tests(
        "R15",
        "peers leave while the agent is down",
        &[("node", "it", "faults::state_of_a_peer_that_left_while_we_were_down_is_gone")],
    ),
    tests(
        "R16",
        "five thousand peers (figures: `cargo xtask bench`)",
        &[("store", "it", "kube_faults::five_thousand_nodes")],
    ),
    cannot("R17", "network policies", "this version has none"),
    cannot("R18", "pods before their policy", "this version has no policies"),
    here("R19", "an established flow is denied by another's nft rule", NOTHING, (1, 20), denied::by_nft),
    here(
        "R19",
        "an established flow is denied by a legacy rule, of which the kernel tells nobody",
        NOTHING,
        (1, 20),
        denied::by_legacy,
    ),
    here(
        "R19",
        "an established flow is denied while the agent is dead",
        NOTHING,
        (1, 20),
        denied::without_agent,
    ),
    here(
        "R19",
        "an established flow is denied by a filter of the uplink",
        Promise::Gap(Duration::from_secs(4)),
        (1, 20),
        denied::by_filter,
    ),
    cannot("R19", "an established flow newly denied by a network policy", "this version has no policies"),
    cannot("R20", "services", "this version has no service proxy"),
    tests("R21", "clocks leap", &[("store", "it", "orders::"), ("node", "lib", "sim::")]),
    tests(
        "R22",
        "disks that are full, read-only or wrong",
        &[
            ("node", "it", "last_good::a_state_that_is_not_good_is_named_and_not_used"),
            ("node", "it", "last_good::a_disk_that_cannot_be_written_is_said_and_holds_up_nothing"),
            ("store", "it", "embedded::a_full_or_read_only_disk_is_named_and_got_over"),
            ("cni", "it", "bad::disks_that_are_full_or_read_only"),
        ],
    ),
    tests(
        "R23",
        "24 MiB of memory, 64 files, 5 % of a processor; clients that say nothing; a log nobody reads",
        &[
            ("node", "it", "overload::a_log_nobody_reads_holds_up_nothing"),
            ("node", "it", "overload::little_of_everything_slows_the_agent_and_does_not_kill_it"),
            ("node", "it", "overload::silent_clients_take_no_files_no_processor_and_no_answers_away"),
        ],
    ),
    tests(
        "R23",
        "more connections than the fast path remembers",
        &[("node", "it", "fast::ends::a_table_that_is_full")],
    ),
    here(
        "R24",
        "the wire loses one packet in five for a second",
        Promise::Gap(Duration::from_secs(2)),
        (1, 10),
        underlay::lossy,
    ),
    here(
        "R24",
        "the wire is dead one way for half a second",
        Promise::Gap(Duration::from_secs(2)),
        (1, 10),
        underlay::one_way,
    ),
    tests(
        "R25",
        "hardware leaves checksums wrong",
        &[("node", "it", "probe::datagrams_with_a_checksum_get_lost")],
    ),
    tests(
        "R26",
        "WireGuard: keys, roaming, PSK, nothing in the clear",
        &[("node", "it", "wireguard::"), ("node", "it", "nat::")],
    ),
    tests("R27", "to flannel and back", &[("node", "it", "migrate::"), ("node", "it", "cleanup::")]),
    tests(
        "R28",
        "a boot without the store",
        &[
            (
                "node",
                "it",
                "last_good::nodes_that_boot_without_etcd_have_their_network_and_follow_it_when_it_is_back",
            ),
            ("node", "it", "kube_troubles::a_node_that_boots_without_the_api_has_its_network"),
        ],
    ),
    here(
        "R29",
        "a second agent starts while the first lives, then the first is killed",
        NOTHING,
        (1, 20),
        agent::two_at_once,
    ),
    tests("R30", "hostile leases, configurations and claims", &[("node", "it", "bad_input::")]),
];

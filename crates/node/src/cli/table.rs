//! All commands, and what the environment says to them.

use super::words::{Command, NONE, flag, switch};
use super::{
    capture, cleanup, cni, complete, config, docker_opts, doctor, drops, dump, man, status, top, trace,
};
use crate::start;

/// A command and what runs it: the words after its name go in, an exit status comes out.
pub struct Entry {
    /// What it is.
    pub command: Command,
    /// What runs it.
    pub run: fn(program: &str, words: &[String]) -> u8,
}

/// Every command, in the order of help. A new one is a line here.
pub const COMMANDS: &[Entry] = &[
    Entry { command: AGENT, run: |program, words| start::agent(program, words, start::Personality::Loden) },
    Entry { command: status::COMMAND, run: |_, words| status::main(words) },
    Entry { command: top::COMMAND, run: |_, words| top::main(words) },
    Entry { command: doctor::COMMAND, run: |_, words| doctor::main(words) },
    Entry { command: trace::COMMAND, run: |_, words| trace::main(words) },
    Entry { command: drops::COMMAND, run: |_, words| drops::main(words) },
    Entry { command: capture::COMMAND, run: |_, words| capture::main(words) },
    Entry { command: BENCH, run: |_, words| bench::main(words, start::VERSION) },
    Entry { command: dump::COMMAND, run: |_, words| dump::main(words) },
    Entry { command: LAB, run: |_, words| u8::try_from(lab::main(words.to_vec())).unwrap_or(1) },
    Entry { command: config::COMMAND, run: |_, words| config::main(words) },
    Entry { command: cni::COMMAND, run: |_, words| cni::main(words) },
    Entry { command: cleanup::COMMAND, run: |_, words| cleanup::main(words) },
    Entry { command: docker_opts::COMMAND, run: |_, words| docker_opts::main(words) },
    Entry { command: complete::COMMAND, run: |_, words| complete::main(words) },
    Entry { command: man::COMMAND, run: |_, words| man::main(words) },
];

/// The commands alone.
pub fn commands() -> impl Iterator<Item = &'static Command> {
    COMMANDS.iter().map(|entry| &entry.command)
}

/// A command by its name.
pub fn find(name: &str) -> Option<&'static Entry> {
    COMMANDS.iter().find(|entry| entry.command.name == name)
}

const AGENT: Command = Command {
    name: "agent",
    words: "",
    summary: "run the node agent; the flags are flanneld's",
    text: "\
Keeps the kernel of this node equal to what the leases of the cluster ask for. The flags are those of flanneld v0.28 and a few of \
ours; each can be given as a variable, too: FLANNELD_ and its name in capitals, with _ for -. Called as `flanneld`, this program is \
the agent.

Nothing ends it but a signal: what is missing is said once and waited for. It leaves the data path as it is.",
    flags: &[],
    exit: "0 ended by a signal, 1 it cannot start, 2 the command line is not understood.",
    sub: &[],
};

/// Its words are read by the room `bench`; a test holds the two together.
const BENCH: Command = Command {
    name: "bench",
    words: "[lab|serve|host ADDRESS[:PORT]]",
    summary: "measure the ways between pods beside the bare wire",
    text: "\
Measures the ways packets take between pods, side by side with the bare wire, in turns, and prints medians, their spread and how they \
stand to the wire. Needs root. `lab` (the default) makes a lab of two hosts on this machine and ends it; all of it takes ten \
minutes. Between real hosts, `serve` on one and `host` on the other measure the wire and the pods' way the hosts are set up for.",
    flags: &[
        flag(
            "--what",
            "WAYS",
            "some of host-gw, vxlan, udp, wireguard (between pods of two hosts), routed-vxlan (by routes in place of bridges), \
             fast-host-gw, fast, fast-udp (with the fast path; fast is vxlan), bridge, \
             fast-bridge, routed (between pods of one host), cni, peers (per second), joined by commas; else all",
        ),
        flag("--beside", "WAY", "one of the ways, with which all others are compared; default the wire"),
        flag("--rounds", "N", "turns of each (1 to 100; default 5)"),
        flag("--seconds", "SECONDS", "of each measurement (0.1 to 60; default 1)"),
        flag(
            "--family",
            "4|6",
            "lab: everything in IPv4 (the default) or in IPv6; host: the family of ADDRESS, and no other",
        ),
        flag(
            "--wire",
            "frames|summed|trains",
            "lab: frames alone, as through a plain network card (the default), the same with all checksums computed by the \
             processor, or trains of segments whole",
        ),
        flag("-o", "table|json|html", "for people (the default), for programs, or a page with pictures"),
        flag("-w", "FILE", "write there instead of to standard output"),
        flag(
            "--token",
            "TOKEN",
            "who may use `serve`: it makes one and prints it; 8 to 64 letters, digits and dashes. Better by LODEN_BENCH_TOKEN, \
             which other users of the host cannot see",
        ),
        flag("--listen", "ADDRESS", "serve: address and port (all addresses, port 8477)"),
        flag("--network", "NET", "serve, host: CNI network pods are attached to (cbr0), or none"),
        flag("--idle", "SECONDS", "serve: ends after so long without a client (600)"),
    ],
    exit: "0 measured, 1 a way asked for by name could not be, 2 nothing could be.",
    sub: &[],
};

/// Its words are read by the room `lab`; a test holds the two together.
const LAB: Command = Command {
    name: "lab",
    words: "",
    summary: "hosts as network namespaces on this machine: demo, test bed",
    text: "\
A cluster's network on this one machine, in a second, without a trace. Makes hosts as network namespaces, joins them by a wire, runs \
a real agent on each and connects real pods through the real CNI plugins. When the lab ends, nothing is left. Begin with `loden \
lab demo`.",
    flags: &[
        flag("--name", "NAME", "which lab, if there are several (lab)"),
        flag("-o", "text|json", "how to print").long("--output"),
        switch("--ascii", "no characters beyond ASCII"),
    ],
    exit: "0 done, 1 a failure, 2 the command line is not understood; that of the program for exec.",
    sub: &[
        Command {
            name: "demo",
            words: "[-- FLAGS]",
            summary: "make a lab, show what it does, end it",
            flags: BUILD,
            ..NONE
        },
        Command { name: "up", words: "[-- FLAGS]", summary: "make a lab that stays", flags: BUILD, ..NONE },
        Command { name: "show", summary: "leases, reachability, the way of a packet, a page, times", ..NONE },
        Command { name: "status", summary: "hosts and pods", ..NONE },
        Command {
            name: "exec",
            words: "PLACE -- CMD",
            summary: "run a program in a host, in a pod or in `wire`, the lab's own namespace",
            ..NONE
        },
        Command {
            name: "pod",
            words: "add|del|list [HOST|POD]...",
            summary: "add a pod to a host, delete pods, list them",
            ..NONE
        },
        Command {
            name: "walk",
            words: "POD POD",
            summary: "follow one packet, device by device",
            flags: &[switch("-4", "an IPv4 packet (the default)"), switch("-6", "an IPv6 packet")],
            ..NONE
        },
        Command { name: "ping", words: "PLACE PLACE", summary: "measure one pair", ..NONE },
        Command {
            name: "logs",
            words: "PLACE",
            summary: "what a host's agent or a pod's server says",
            ..NONE
        },
        Command {
            name: "agent",
            words: "stop|kill|start|restart HOST",
            summary: "stop, kill, start or restart a host's agent",
            ..NONE
        },
        Command { name: "list", summary: "names of the labs that are up", ..NONE },
        Command { name: "down", summary: "end a lab", ..NONE },
    ],
};

/// Flags of `up` and `demo`.
const BUILD: &[super::words::Flag] = &[
    flag("--hosts", "N", "hosts (3)"),
    flag("--pods", "M", "pods on each host (2)"),
    flag("--backend", "TYPE", "vxlan (the default), host-gw and whatever else the agents offer"),
    switch("--direct-routing", "vxlan only between wires: hosts on one wire route to each other"),
    flag(
        "--topology",
        "flat|routed",
        "all hosts on one wire (the default), or two wires with a router between, the larger half of the hosts on the first",
    ),
    flag("--family", "v4|v6|dual", "addresses (v4)"),
    flag("--mtu", "BYTES", "MTU of the wire (1500)"),
    switch("--no-agents", "hosts and wire only"),
    flag("--net-conf", "FILE", "the network configuration, instead of one made from the flags"),
    flag("--conflist", "FILE", "the CNI network list, instead of the usual flannel and portmap"),
    flag("--cni-bin-dir", "DIR", "CNI plugins, instead of loden-cni beside this program"),
];

/// A variable of the environment.
#[derive(Clone, Copy, Debug)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// Who reads it: `agent`, `commands`, `plugins`, or several.
    pub by: &'static str,
    /// What it says, with values and default.
    pub help: &'static str,
}

const fn variable(name: &'static str, by: &'static str, help: &'static str) -> Variable {
    Variable { name, by, help }
}

/// Every variable but those of the agent's flags, which are `FLANNELD_` and the flag.
pub const VARIABLES: &[Variable] = &[
    variable(
        "LODEN_STORE",
        "agent, config",
        "the store: `etcd`, `kubernetes`, or `sqlite:` and a path. Else by the flags, and without any `sqlite:/var/lib/loden/leases.db` \
         for `loden agent`, etcd for `flanneld`",
    ),
    variable("LODEN_LOG_FORMAT", "agent", "as --log-format: `text` (the default) or `json`"),
    variable("LODEN_BENCH_TOKEN", "bench", "as --token"),
    variable(
        "LODEN_SOCKET",
        "agent, status, top, doctor, dump, capture",
        "path of the agent's socket, or `none`; else beside the subnet file: `loden.sock` for `subnet.env`, `NAME.sock` for `NAME.env`",
    ),
    variable(
        "LODEN_METRICS",
        "agent",
        "address and port for /metrics, such as `127.0.0.1:9465`, or `none`; else beside the health checks, if they have a port",
    ),
    variable(
        "LODEN_WEB",
        "agent",
        "address and port of a read-only page for browsers, such as `127.0.0.1:9466`, or `none` (the default); one that other hosts \
         reach only with `,exposed` after it",
    ),
    variable("LODEN_PROBE", "agent", "`on` (the default) or `off`: probe the paths to other nodes"),
    variable("LODEN_STATE_DIR", "agent", "directory of the last good state (/var/lib/loden)"),
    variable(
        "LODEN_SERVICE_CIDRS",
        "agent",
        "networks of services, separated by commas, for the plugin veth-to-host",
    ),
    variable(
        "LODEN_FASTPATH_FLOWS",
        "agent",
        "directions of connections the fast path remembers at most, 16 to 4194304; 32768, of 144 bytes each",
    ),
    variable(
        "LODEN_FASTPATH_XDP",
        "agent, bench",
        "`off` (the default), `auto` or `on`: with the backend udp take packets out of frames in the uplink's driver",
    ),
    variable("LODEN_FASTPATH_OBJECT", "agent", "file with other programs for the fast path; for tests"),
    variable("LODEN_COMMAND_TIMEOUT", "agent", "seconds a command of the backend extension may take"),
    variable("LODEN_WIREGUARD_DIR", "agent", "directory of the sockets of WireGuard in user space"),
    variable("WIREGUARD_KEY_FILE", "agent", "file of the WireGuard key (/run/flannel/wgkey)"),
    variable("LODEN_CNI_CONF", "agent", "CNI configuration to keep in place: the file the runtime reads"),
    variable("LODEN_CNI_CONF_SOURCE", "agent", "the file it is a copy of"),
    variable("NODE_NAME", "agent", "name of this node, with the Kubernetes API"),
    variable(
        "POD_NAME",
        "agent",
        "name of the agent's pod; the node is asked for by it where NODE_NAME is not set",
    ),
    variable("POD_NAMESPACE", "agent", "namespace of the agent's pod"),
    variable("KUBERNETES_SERVICE_HOST", "agent", "address of the API server, set by the kubelet"),
    variable("KUBERNETES_SERVICE_PORT", "agent", "its port"),
    variable("HTTP_PROXY", "agent", "proxy to an API server without TLS; also in small letters"),
    variable("HTTPS_PROXY", "agent", "proxy to an API server with TLS; also in small letters"),
    variable("NO_PROXY", "agent", "names and networks without a proxy; also in small letters"),
    variable("NOTIFY_SOCKET", "agent", "where the service manager wants to be told (sd_notify)"),
    variable(
        "ACCESS_KEY_ID",
        "agent",
        "who signs calls of Tencent's cloud, where the network configuration does not say",
    ),
    variable("ACCESS_KEY_SECRET", "agent", "with what"),
    variable("LODEN_TENCENT_API", "agent", "another address of the API of Tencent's cloud; for tests"),
    variable("LODEN_TENCENT_METADATA", "agent", "another address of its metadata; for tests"),
    variable("LODEN_TENCENT_RECHECK", "agent", "seconds between looks at its routes"),
    variable(
        "LODEN_CNI_STATE_DIR",
        "plugins, agent, trace, capture, drops, top, cleanup",
        "directory of the plugins' records (/var/lib/cni/loden)",
    ),
    variable("LODEN_CNI_TIMEOUT", "plugins", "seconds a foreign plugin may take (120)"),
    variable("CNI_PATH", "plugins, cni", "directories of plugins, joined by colons"),
    variable("CNI_COMMAND", "plugins", "what to do: ADD, DEL, CHECK, STATUS, GC or VERSION"),
    variable("CNI_CONTAINERID", "plugins", "the container"),
    variable("CNI_NETNS", "plugins", "path of its network namespace"),
    variable("CNI_NETNS_OVERRIDE", "plugins", "a namespace may be the host's own"),
    variable("CNI_IFNAME", "plugins, cni", "the interface in the pod"),
    variable("CNI_ARGS", "plugins, cni", "KEY=VALUE pairs, separated by semicolons"),
    variable("CAP_ARGS", "cni", "values of capabilities, a JSON object"),
    variable("NETCONFPATH", "cni", "directory of network configurations (/etc/cni/net.d)"),
    variable("DBUS_SYSTEM_BUS_ADDRESS", "plugins", "where firewalld is asked"),
    variable("LISTEN_FDS", "plugins", "sockets handed over by systemd, for the DHCP daemon"),
    variable("LISTEN_PID", "plugins", "for which process they are"),
    variable(
        "KUBECONFIG",
        "dump",
        "a file whose secrets are taken out of everything else; it is not in the archive itself",
    ),
    variable("NO_COLOR", "commands", "anything: no colours"),
    variable("COLUMNS", "commands", "width of the screen, where it is no terminal"),
];

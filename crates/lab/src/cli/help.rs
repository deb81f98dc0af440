//! Help texts.

/// The text for all commands.
const ALL: &str = "\
loden lab: a cluster's network on this one machine, in a second, without a trace

Makes hosts as network namespaces, joins them by a wire, runs a real agent on each and connects real pods
through the real CNI plugins. Nothing is installed, nothing is written to disk, no network is needed, and
where the kernel allows it no root either. When the lab ends, nothing is left.

  loden lab demo                 make a lab, show what it does, end it: begin here
  loden lab up                   make a lab that stays
  loden lab show                 leases, reachability, the way of a packet, a page, times
  loden lab status               hosts and pods
  loden lab exec PLACE -- CMD    run a program in a host, in a pod or in `wire`, the lab's own namespace
  loden lab pod add|del|list     add a pod to a host, delete pods, list them
  loden lab walk POD POD         follow one packet, device by device
  loden lab ping PLACE PLACE     measure one pair
  loden lab logs PLACE           what a host's agent or a pod's server says
  loden lab agent VERB HOST      stop, kill, start or restart a host's agent
  loden lab list                 names of the labs that are up
  loden lab down                 end a lab

Options of all commands:
  --name NAME           which lab, if there are several (default: lab)
  -o, --output FORMAT   text or json
  --ascii               no characters beyond ASCII
  -h, --help            help, also after a command

Colours are used on a terminal, unless NO_COLOR is set.
";

/// Options of `up` and `demo`.
const BUILD: &str = "
Options:
  --hosts N             hosts (default 3)
  --pods M              pods on each host (default 2)
  --backend TYPE        vxlan (default), host-gw and whatever else the agents offer
  --direct-routing      vxlan only between wires: hosts on one wire route to each other
  --topology SHAPE      flat: all hosts on one wire (default)
                        routed: two wires with a router between, the larger half of the hosts on the first
  --family FAMILY       v4 (default), v6 or dual
  --mtu BYTES           MTU of the wire (default 1500)
  --no-agents           hosts and wire only
  --net-conf FILE       the network configuration, instead of one made from the options
  --conflist FILE       the CNI network list, instead of the usual flannel + portmap
  --cni-bin-dir DIR     CNI plugins, instead of loden-cni beside this program
  -- FLAGS              further flags for every agent
";

/// The text for a command, or for all.
pub fn text(topic: Option<&str>) -> String {
    let text = match topic {
        Some("demo") => {
            "loden lab demo [OPTIONS] [-- FLAGS]\n\nMakes a lab, shows who has which subnet, who reaches whom, the \
             way of one packet, pages fetched\nbetween pods and how long a pod took, and ends the lab. Also \
             Ctrl-C ends it.\n"
        }
        Some("up") => "loden lab up [OPTIONS] [-- FLAGS]\n\nMakes a lab that stays until `loden lab down`.\n",
        Some("show") => "loden lab show [--name NAME] [-o json]\n\nWhat `demo` shows, of a lab that is up.\n",
        Some("status") => {
            "loden lab status [--name NAME] [-o json]\n\nHosts with their leases, devices and agents; pods with \
             their addresses.\n"
        }
        Some("exec") => {
            "loden lab exec [--name NAME] PLACE -- CMD [ARGS]\n\nRuns a program in all namespaces of a host, of a \
             pod, or of `wire`, the lab's own. The program ends\nwith the lab. Its exit status is the \
             command's.\n\n  loden lab exec host1 -- ip route\n  loden lab exec host1 -- bridge fdb show dev \
             flannel.1\n  loden lab exec pod1-1 -- ping pod2-1\n  loden lab exec wire -- tcpdump -ni wire0\n"
        }
        Some("pod") => {
            "loden lab pod add HOST [NAME]\nloden lab pod del NAME...\nloden lab pod list [-o json]\n\nEvery pod is \
             connected and disconnected through the CNI chain, as a container runtime does it.\n"
        }
        Some("walk") => {
            "loden lab walk POD POD [-6] [-o json]\n\nSends one echo and shows every device that saw it, with what \
             was seen and when.\n"
        }
        Some("ping") => {
            "loden lab ping PLACE PLACE|ADDRESS [-o json]\n\nMedian round trip of small and of full packets. Exit \
             status 1 without an answer.\n"
        }
        Some("logs") => "loden lab logs PLACE\n\nThe last lines of a host's agent or of a pod's server.\n",
        Some("agent") => {
            "loden lab agent stop|kill|start|restart HOST\n\nEnds an agent with SIGTERM or SIGKILL, or starts it \
             and waits until it is ready.\n"
        }
        Some("list") => "loden lab list [-o json]\n\nNames of the labs that are up.\n",
        Some("down") => "loden lab down [--name NAME]\n\nEnds a lab and waits until nothing is left of it.\n",
        _ => ALL,
    };
    let build = if matches!(topic, Some("demo" | "up")) { BUILD } else { "" };
    format!("{text}{build}")
}

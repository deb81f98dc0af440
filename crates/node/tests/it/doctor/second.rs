//! The second table: faults and odd but healthy hosts by another hand than the checks', written before that hand
//! had read a check (decision 0207). Most are from what users of such networks reported; the number of a public
//! thread is beside those that one thread tells of.

use super::{CONF, ENV, Fault, Patient, Variation, all_are_well, judge};

/// Commands, one a line.
fn run(patient: &Patient, commands: &str) {
    commands.lines().map(str::trim).filter(|line| !line.is_empty()).for_each(|line| patient.sh(line));
}

/// Another interface with a wire in it.
fn interface(patient: &Patient, name: &str, address: &str) {
    patient.sh(&format!("ip link add {name} type veth peer name far-{name}"));
    patient.sh(&format!("ip link set far-{name} up"));
    patient.sh(&format!("ip link set {name} up"));
    patient.sh(&format!("ip addr add {address} dev {name}"));
}

/// The tunnel made anew, by another interface or with another source.
fn tunnel(patient: &Patient, device: &str, local: &str) {
    patient.sh("ip link del flannel.1");
    patient.sh(&format!(
        "ip link add flannel.1 type vxlan id 1 dev {device} local {local} dstport 8472 nolearning"
    ));
    run(
        patient,
        "ip link set flannel.1 mtu 1450 up
         ip addr add 10.244.1.0/32 dev flannel.1
         ip route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink
         ip neigh replace 10.244.2.0 lladdr 0e:00:00:00:00:02 dev flannel.1 nud permanent",
    );
}

const IPV6_ENV: &str = "FLANNEL_IPV6_NETWORK=fd00:10:244::/48\nFLANNEL_IPV6_SUBNET=fd00:10:244:1::1/64\n";

/// Pods with both families; the tunnel of the second one has 20 octets less.
fn dual_stack(patient: &Patient) {
    run(
        patient,
        "sysctl -qw net.ipv6.conf.all.forwarding=1
         ip addr add 2001:db8::11/64 dev eth0 nodad
         ip -6 route add default via 2001:db8::1 dev eth0
         ip link add flannel-v6.1 type vxlan id 1 dev eth0 local 2001:db8::11 dstport 8472 nolearning
         ip link set flannel-v6.1 mtu 1430 up
         ip addr add fd00:10:244:1::/128 dev flannel-v6.1 nodad
         ip -6 route add fd00:10:244:2::/64 via fd00:10:244:2:: dev flannel-v6.1 onlink
         ip neigh replace fd00:10:244:2:: lladdr 0e:00:00:00:06:02 dev flannel-v6.1 nud permanent
         ip link set cni0 mtu 1430
         ip addr add fd00:10:244:1::1/64 dev cni0 nodad",
    );
    patient.write("run/flannel/subnet.env", &format!("{}{IPV6_ENV}", ENV.replace("1450", "1430")));
}

/// A pod on cni0.
fn pod(patient: &Patient) {
    run(
        patient,
        "ip link add veth7 mtu 1450 type veth peer name pod7 mtu 1450
         ip link set veth7 master cni0 up
         ip link set pod7 up",
    );
}

/// Docker on flannel's subnet, without CNI.
fn docker(patient: &Patient, address: &str, mtu: u32) {
    patient.remove("etc/cni/net.d/10-flannel.conflist");
    patient.write(
        "run/flannel_docker_opts.env",
        "DOCKER_OPT_BIP=\"--bip=10.244.1.1/24\"\nDOCKER_OPT_MTU=\"--mtu=1450\"\n",
    );
    run(
        patient,
        &format!(
            "ip link del cni0
             ip link add docker0 mtu {mtu} type bridge
             ip link set docker0 up
             ip addr add {address} dev docker0"
        ),
    );
}

/// What firewalld writes for two zones; `forward` and `input` are what it has for ours.
fn firewalld(patient: &Patient, forward: &str, input: &str) {
    patient.nft(&format!(
        "table inet firewalld {{ chain filter_INPUT {{ type filter hook input priority 10; policy accept; ct state established,related accept; iifname \"lo\" accept; ct state invalid drop; jump filter_INPUT_ZONES; reject with icmpx admin-prohibited; }} \
         chain filter_FORWARD {{ type filter hook forward priority 10; policy accept; ct state established,related accept; iifname \"lo\" accept; ct state invalid drop; jump filter_FORWARD_ZONES; reject with icmpx admin-prohibited; }} \
         chain filter_INPUT_ZONES {{ {input} iifname \"eth0\" goto filter_IN_public; goto filter_IN_public; }} \
         chain filter_FORWARD_ZONES {{ {forward} iifname \"eth0\" goto filter_FWD_public; goto filter_FWD_public; }} \
         chain filter_IN_public {{ tcp dport 22 accept; }} \
         chain filter_IN_trusted {{ accept; }} \
         chain filter_FWD_public {{ meta l4proto icmp accept; }} \
         chain filter_FWD_trusted {{ accept; }} }}"
    ));
}

const TRUSTED: &str =
    "iifname \"cni0\" goto filter_FWD_trusted; iifname \"flannel.1\" goto filter_FWD_trusted;";
const TRUSTED_IN: &str =
    "iifname \"cni0\" goto filter_IN_trusted; iifname \"flannel.1\" goto filter_IN_trusted;";

/// A host whose pods have addresses of Calico's manifest.
fn calicos_network(patient: &Patient) {
    patient.write(
        "run/flannel/subnet.env",
        &ENV.replace("10.244.0.0", "192.168.0.0").replace("10.244.1.1", "192.168.1.1"),
    );
    run(
        patient,
        "ip route del 10.244.2.0/24
         ip neigh del 10.244.2.0 dev flannel.1
         ip addr flush dev flannel.1
         ip addr add 192.168.1.0/32 dev flannel.1
         ip addr flush dev cni0
         ip addr add 192.168.1.1/24 dev cni0",
    );
}

/// The rules of Tailscale, whose table has `routes`.
fn tailscale(patient: &Patient, routes: &str) {
    run(
        patient,
        "ip tuntap add dev tailscale0 mode tun
         ip link set tailscale0 mtu 1280 up
         ip addr add 100.64.0.19/32 dev tailscale0
         ip route add 100.100.100.100 dev tailscale0 table 52
         ip rule add fwmark 0x80000/0xff0000 lookup main priority 5210
         ip rule add fwmark 0x80000/0xff0000 lookup default priority 5230
         ip rule add fwmark 0x80000/0xff0000 unreachable priority 5250
         ip rule add lookup 52 priority 5270",
    );
    run(patient, routes);
}

#[rustfmt::skip]
const FAULTS: &[Fault] = &[
    ("a hardening profile wrote the parameter of all devices", "forwarding", |p| p.sh("sysctl -qw net.ipv4.conf.all.forwarding=0")),
    ("flannel.1 does not forward", "forwarding-of-device", |p| p.sh("sysctl -qw net.ipv4.conf.flannel/1.forwarding=0")),
    ("IPv6 was turned off for the whole host", "ipv6-off", |p| { dual_stack(p); p.sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1"); }),
    // Going down takes IPv6 addresses along, and coming up does not bring them back.
    ("the tunnel of IPv6 went down and up", "tunnel-address", |p| { dual_stack(p); run(p, "ip link set flannel-v6.1 down\nip link set flannel-v6.1 up"); }),
    ("the tunnel of IPv6 has the MTU of IPv4's", "mtu", |p| { dual_stack(p); run(p, "ip link set eth0 mtu 1600\nip link set flannel-v6.1 mtu 1450\nip link set eth0 mtu 1500"); }),
    ("Docker drops IPv6 in FORWARD, and pods have it", "forward-policy", |p| { dual_stack(p); p.nft("table ip6 filter { chain DOCKER { } chain FORWARD { type filter hook forward priority 0; policy drop; iifname docker0 jump DOCKER; } }"); }),
    ("a VPN's table has the IPv6 network of pods", "policy-rule", |p| {
        dual_stack(p);
        run(p, "ip tuntap add dev tun9 mode tun\nip link set tun9 up\nip -6 route add fd00:10:244::/48 dev tun9 table 52\nip -6 rule add lookup 52 priority 5270");
    }),
    ("peers are behind another interface, and all devices are strict", "reverse-path", |p| {
        interface(p, "eth1", "198.51.100.2/24");
        run(p, "ip route add 203.0.113.0/24 via 198.51.100.1
                bridge fdb append 0e:00:00:00:00:02 dev flannel.1 dst 203.0.113.12
                sysctl -qw net.ipv4.conf.all.rp_filter=1");
    }),
    ("the default route is a black hole", "default-route", |p| run(p, "ip route del default\nip route add blackhole default")),
    ("the uplink lost its address, as with a DHCP lease that ended", "tunnel-source", |p| p.sh("ip addr flush dev eth0")),
    ("the uplink is a bridge without a port", "uplink-down", |p| {
        run(p, "ip addr flush dev eth0
                ip link add br0 type bridge
                ip link set br0 up
                ip addr add 192.0.2.11/24 dev br0
                ip route add default via 192.0.2.1 dev br0");
        tunnel(p, "br0", "192.0.2.11");
    }),
    ("the tunnel goes out by Docker's bridge, whose address every host has", "same-address-everywhere", |p| {
        run(p, "ip link add docker0 mtu 1500 type bridge\nip link set docker0 up\nip addr add 172.17.0.1/16 dev docker0");
        run(p, "ip link add veth7 type veth peer name pod7\nip link set veth7 master docker0 up\nip link set pod7 up");
        tunnel(p, "docker0", "172.17.0.1");
    }),
    ("two interfaces by DHCP, with one metric", "two-default-routes", |p| {
        interface(p, "eth1", "198.51.100.2/24");
        run(p, "ip route del default
                ip route add default via 192.0.2.1 dev eth0 proto dhcp metric 100
                ip route append default via 198.51.100.1 dev eth1 proto dhcp metric 100");
    }),
    ("a default route of two ways", "two-default-routes", |p| {
        interface(p, "eth1", "198.51.100.2/24");
        run(p, "ip route del default\nip route add default nexthop via 192.0.2.1 dev eth0 nexthop via 198.51.100.1 dev eth1");
    }),
    ("a compose network has addresses of pods", "network-overlap", |p| run(p, "ip link add br-3f1c9a7d20aa type bridge\nip link set br-3f1c9a7d20aa up\nip addr add 10.244.0.1/20 dev br-3f1c9a7d20aa")),
    ("VirtualBox's host-only network inside Calico's default", "network-overlap", |p| { calicos_network(p); interface(p, "eth1", "192.168.56.11/24"); }),
    // coreos/coreos-kubernetes#761
    ("docker0 and cni0 have one address", "duplicate-address", |p| run(p, "ip link add docker0 type bridge\nip link set docker0 up\nip addr add 10.244.1.1/24 dev docker0")),
    ("the host's address on a second interface", "duplicate-address", |p| interface(p, "eth1", "192.0.2.11/24")),
    ("a peer announces our own address", "duplicate-address", |p| p.sh("bridge fdb append 0e:00:00:00:00:02 dev flannel.1 dst 192.0.2.11")),
    ("the tunnel is bound to an interface that has not its source", "tunnel-source", |p| { interface(p, "eth1", "198.51.100.2/24"); tunnel(p, "eth1", "192.0.2.11"); }),
    ("the tunnel's source is the address that a NAT shows", "tunnel-source", |p| tunnel(p, "eth0", "203.0.113.50")),
    ("the tunnel goes through WireGuard", "mtu", |p| {
        interface(p, "wg0", "10.8.0.11/24");
        tunnel(p, "wg0", "10.8.0.11");
        p.sh("ip link set wg0 mtu 1420");
    }),
    ("containers have Docker's own MTU", "mtu", |p| { docker(p, "10.244.1.1/24", 1500); run(p, "ip link add veth7 type veth peer name pod7\nip link set veth7 master docker0 up\nip link set pod7 up"); }),
    // kubernetes/kubernetes#67183
    ("cni0 has pods and no address", "stale-bridge", |p| { pod(p); p.sh("ip addr flush dev cni0"); }),
    ("cni0 kept the address of before beside the new one", "stale-bridge", |p| p.sh("ip addr add 10.244.8.1/24 dev cni0")),
    ("docker0 is of the lease before", "docker-bridge", |p| docker(p, "10.244.7.1/24", 1450)),
    ("Calico's black hole for a block of ours", "foreign-route", |p| p.sh("ip route add blackhole 10.244.1.64/26 proto bird")),
    ("an administrator's prohibition of half a peer", "foreign-route", |p| p.sh("ip route add prohibit 10.244.2.128/25")),
    ("host-gw's route stayed before the tunnel's", "foreign-route", |p| p.sh("ip route prepend 10.244.2.0/24 via 192.0.2.12")),
    ("our own subnet goes into the tunnel", "foreign-route", |p| p.sh("ip route prepend 10.244.1.0/24 dev flannel.1")),
    // tailscale/tailscale#14706
    ("Tailscale with an exit node", "policy-rule", |p| tailscale(p, "ip route add default dev tailscale0 table 52")),
    // k3s-io/k3s#8372
    ("Tailscale takes the routes a subnet router offers", "policy-rule", |p| tailscale(p, "ip route add 10.244.0.0/16 dev tailscale0 table 52")),
    ("a cloud's second interface has a table for pods", "policy-rule", |p| {
        interface(p, "eth1", "198.51.100.2/24");
        run(p, "ip route add default via 198.51.100.1 dev eth1 table 200\nip rule add from 10.244.1.0/24 lookup 200 priority 512");
    }),
    ("a rule prohibits what comes from cni0", "policy-rule", |p| p.sh("ip rule add iif cni0 prohibit priority 500")),
    ("Calico's vxlan was here", "leftovers", |p| p.sh("ip link add vxlan.calico type vxlan id 4096 dev eth0 dstport 4789")),
    ("Weave Net's policies are there", "leftovers", |p| p.nft("table ip filter { chain WEAVE-NPC { } chain FORWARD { type filter hook forward priority 0; policy accept; oifname \"weave\" jump WEAVE-NPC; } }")),
    ("Antrea was here", "leftovers", |p| run(p, "ip link add antrea-gw0 type bridge\nip addr add 10.10.1.1/24 dev antrea-gw0")),
    ("kube-router's service addresses are there", "leftovers", |p| run(p, "ip link add kube-dummy-if type bridge\nip link set kube-dummy-if up\nip addr add 10.96.0.1/32 dev kube-dummy-if")),
    ("the tunnel's port is dropped before the rules one looks at", "tunnel-port-closed", |p| p.nft("table inet hardening { chain first { type filter hook prerouting priority -300; policy accept; udp dport 8472 counter drop; } }")),
    ("nothing may leave but what is listed", "tunnel-port-closed", |p| p.nft("table inet filter { chain output { type filter hook output priority 0; policy drop; oifname \"lo\" accept; ct state established,related accept; udp dport 53 accept; tcp dport { 80,443,6443 } accept; } }".replace("{ 80,443,6443 }", "{80,443,6443}").as_str())),
    ("4789 was opened, and flannel's is 8472", "tunnel-port-closed", |p| p.nft("table ip filter { chain INPUT { type filter hook input priority 0; policy drop; ct state established,related accept; tcp dport 22 accept; udp dport 4789 accept comment \"vxlan\"; } }")),
    ("the port was opened for TCP", "tunnel-port-closed", |p| p.nft("table ip filter { chain INPUT { type filter hook input priority 0; policy drop; ct state established,related accept; tcp dport 22 accept; tcp dport 8472 accept; } }")),
    ("a rule drops what pods send", "forward-refused", |p| p.nft("table ip filter { chain FORWARD { type filter hook forward priority 0; policy accept; ip saddr 10.244.0.0/16 counter drop; } }")),
    ("pods may go out, and nothing comes in", "forward-policy", |p| p.nft("table inet filter { chain forward { type filter hook forward priority 0; policy drop; ct state established,related accept; iifname \"cni0\" oifname \"eth0\" accept; } }")),
    ("the administrator's chain of Docker drops the rest", "forward-refused", |p| p.nft("table ip filter { chain DOCKER-USER { ct state established,related return; ip saddr 192.168.0.0/16 return; counter drop; } chain FORWARD { type filter hook forward priority 0; policy accept; jump DOCKER-USER; } }")),
    // cloudnativelabs/kube-router#1069
    ("the old iptables drop, and the new ones accept", "forward-policy", |p| {
        p.nft("table ip filter { chain FORWARD { type filter hook forward priority 0; policy accept; ip saddr 10.244.0.0/16 accept; ip daddr 10.244.0.0/16 accept; } }");
        p.sh("iptables-legacy -P FORWARD DROP");
    }),
    ("bridges pass nothing on", "forward-policy", |p| p.nft("table bridge filter { chain forward { type filter hook forward priority -200; policy drop; ether type arp accept; } }")),
    ("ufw rejects what is routed", "ufw", |p| { p.write("etc/ufw/ufw.conf", "# set by hand\nENABLED=yes\nLOGLEVEL=low\n"); p.write("etc/default/ufw", "IPV6=yes\nDEFAULT_INPUT_POLICY=\"ACCEPT\"\nDEFAULT_FORWARD_POLICY=\"REJECT\"\n"); }),
    ("firewalld, and pods are in no zone", "firewalld", |p| firewalld(p, "", "udp dport 8472 accept;")),
    ("firewalld trusts pods, and the port is shut", "tunnel-port-closed", |p| firewalld(p, TRUSTED, TRUSTED_IN)),
    ("NetworkManager leaves cni0 alone, and flannel.1 not", "network-manager", |p| { p.write("run/NetworkManager/x", ""); p.write("etc/NetworkManager/conf.d/cni.conf", "[keyfile]\nunmanaged-devices=interface-name:cni*\n"); }),
    ("NetworkManager's line is a comment", "network-manager", |p| { p.write("run/NetworkManager/x", ""); p.write("etc/NetworkManager/conf.d/cni.conf", "[keyfile]\n#unmanaged-devices=interface-name:cni*;interface-name:flannel*\n"); }),
    ("systemd-networkd takes all but lo", "networkd", |p| {
        p.write("run/systemd/netif/links/2", "");
        p.write("etc/systemd/network/20-wired.network", "[Match]\nName=!lo\n\n[Network]\nDHCP=ipv4\n");
        p.write("etc/systemd/networkd.conf", "[Network]\nManageForeignRoutes=no\nManageForeignRoutingPolicyRules=no\n");
    }),
    ("systemd-networkd as the package has it", "networkd", |p| { p.write("run/systemd/netif/links/2", ""); p.write("etc/systemd/networkd.conf", "[Network]\n#SpeedMeter=no\n#ManageForeignRoutes=no\n"); }),
    ("subnet.env is empty after a power cut", "subnet-file", |p| p.write("run/flannel/subnet.env", "")),
    ("subnet.env is a directory, as a mount of it makes one", "subnet-file", |p| { p.remove("run/flannel/subnet.env"); p.write("run/flannel/subnet.env/x", ""); }),
    ("the conflist is empty after a power cut", "cni-config", |p| p.write("etc/cni/net.d/10-flannel.conflist", "")),
    ("no configuration is left, and cni0 is", "cni-config", |p| { p.remove("etc/cni/net.d/10-flannel.conflist"); p.write("etc/cni/net.d/.kubernetes-cni-keep", ""); }),
    ("Calico's conflist stayed", "cni-config-order", |p| p.write("etc/cni/net.d/10-calico.conflist", r#"{"name":"k8s-pod-network","cniVersion":"0.3.1","plugins":[{"type":"calico","ipam":{"type":"calico-ipam"}},{"type":"portmap"}]}"#)),
    ("a plugin at the end of the list is not installed", "cni-programs", |p| p.write("etc/cni/net.d/10-flannel.conflist", &CONF.replace(r#"{"type":"portmap"}"#, r#"{"type":"portmap"},{"type":"bandwidth","capabilities":{"bandwidth":true}}"#))),
    ("no package of plugins: flannel calls bridge", "cni-programs", |p| p.remove("opt/cni/bin/bridge")),
    ("a small subnet is used up", "addresses-used-up", |p| {
        p.write("run/flannel/subnet.env", &ENV.replace("10.244.1.1/24", "10.244.1.1/28"));
        run(p, "ip addr flush dev cni0\nip addr add 10.244.1.1/28 dev cni0");
        (2..15).for_each(|n| p.write(&format!("var/lib/cni/networks/cbr0/10.244.1.{n}"), "x\r\neth0"));
        p.write("var/lib/cni/networks/cbr0/last_reserved_ip.0", "10.244.1.14");
        p.write("var/lib/cni/networks/cbr0/lock", "");
    }),
    ("the client's certificate has expired", "certificate", |_| ()),
    ("bridges keep packets of one host's pods from services", "bridged-packets", |p| { p.nft("table ip kube-proxy { chain services { } }"); p.sh("sysctl -qw net.bridge.bridge-nf-call-iptables=0"); }),
];

#[rustfmt::skip]
const HEALTHY: &[Variation] = &[
    ("both families", dual_stack),
    ("both families, and devices that do not route IPv6 each", |p| { dual_stack(p); run(p, "sysctl -qw net.ipv6.conf.eth0.forwarding=0\nsysctl -qw net.ipv6.conf.eth0.accept_ra=2"); }),
    ("IPv6 only", |p| {
        dual_stack(p);
        p.write("run/flannel/subnet.env", &format!("FLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n{IPV6_ENV}"));
        run(p, "ip link del flannel.1\nip addr del 10.244.1.1/24 dev cni0\nip addr del 192.0.2.11/24 dev eth0\nsysctl -qw net.ipv4.ip_forward=0");
    }),
    ("host-gw", |p| {
        run(p, "ip link del flannel.1\nip route add 10.244.2.0/24 via 192.0.2.12 dev eth0\nip link set cni0 mtu 1500");
        p.write("run/flannel/subnet.env", &ENV.replace("1450", "1500"));
    }),
    ("an address of /32 and a gateway on the link", |p| run(p, "ip addr flush dev eth0\nip addr add 192.0.2.11/32 dev eth0\nip route add default via 192.0.2.1 dev eth0 onlink")),
    ("the uplink is a bridge, as for virtual machines", |p| {
        run(p, "ip addr flush dev eth0
                ip link add br0 type bridge
                ip link set eth0 master br0
                ip link set br0 up
                ip addr add 192.0.2.11/24 dev br0
                ip route add default via 192.0.2.1 dev br0");
        tunnel(p, "br0", "192.0.2.11");
    }),
    ("wg-quick takes the internet, and the main table first what it knows", |p| {
        interface(p, "wg0", "10.8.0.2/24");
        run(p, "ip route add default dev wg0 table 51820
                ip rule add not fwmark 0xca6c lookup 51820 priority 32765
                ip rule add lookup main suppress_prefixlength 0 priority 32764");
    }),
    ("Tailscale, whose table knows its own", |p| tailscale(p, "ip route add 100.64.0.7 dev tailscale0 table 52")),
    ("Tailscale with an exit node that leaves pods alone", |p| tailscale(p, "ip route add default dev tailscale0 table 52\nip route add throw 10.244.0.0/16 table 52")),
    ("OpenVPN takes the internet in two halves", |p| run(p, "ip tuntap add dev tun0 mode tun
                ip link set tun0 up
                ip addr add 10.8.0.6/24 dev tun0
                ip route add 0.0.0.0/1 dev tun0
                ip route add 128.0.0.0/1 dev tun0
                ip route add 203.0.113.1 via 192.0.2.1")),
    ("a company's route for all of 10.0.0.0/8", |p| p.sh("ip route add 10.0.0.0/8 via 192.0.2.254")),
    ("keepalived's address beside", |p| p.sh("ip addr add 192.0.2.100/32 dev eth0")),
    ("a real server of LVS answers ARP for eth0 only", |p| run(p, "sysctl -qw net.ipv4.conf.all.arp_ignore=1\nsysctl -qw net.ipv4.conf.all.arp_announce=2\nip addr add 192.0.2.100/32 dev lo")),
    ("a hardened host", |p| run(p, "sysctl -qw net.ipv4.conf.all.accept_redirects=0
                sysctl -qw net.ipv4.conf.all.send_redirects=0
                sysctl -qw net.ipv4.conf.all.accept_source_route=0
                sysctl -qw net.ipv4.conf.all.log_martians=1
                sysctl -qw net.ipv4.conf.all.rp_filter=1
                sysctl -qw net.ipv4.conf.default.rp_filter=1
                sysctl -qw net.ipv6.conf.all.disable_ipv6=1")),
    ("kube-proxy with IPVS", |p| run(p, "ip link add kube-ipvs0 type bridge\nip addr add 10.96.0.1/32 dev kube-ipvs0\nip addr add 10.96.0.10/32 dev kube-ipvs0")),
    ("k3s, which brings kube-router's policies", |p| p.nft("table ip filter { chain KUBE-POD-FW-ABC { accept; } chain KUBE-ROUTER-FORWARD { ip daddr 10.244.1.7 jump KUBE-POD-FW-ABC; } chain FORWARD { type filter hook forward priority 0; policy accept; jump KUBE-ROUTER-FORWARD; } }")),
    ("libvirt", |p| {
        run(p, "ip link add virbr0 type bridge\nip link set virbr0 up\nip addr add 192.168.122.1/24 dev virbr0");
        p.nft("table ip libvirt_network { chain guest_in { oifname \"virbr0\" ip daddr 192.168.122.0/24 ct state established,related accept; oifname \"virbr0\" counter reject; } chain guest_out { iifname \"virbr0\" ip saddr 192.168.122.0/24 accept; iifname \"virbr0\" counter reject; } chain forward { type filter hook forward priority 0; policy accept; jump guest_in; jump guest_out; } }");
    }),
    ("fail2ban", |p| p.nft("table inet f2b-table { set addr-set-sshd {type ipv4_addr; elements={203.0.113.7};} chain f2b-chain { type filter hook input priority -1; policy accept; tcp dport 22 ip saddr @addr-set-sshd reject with icmp port-unreachable; } }")),
    ("an input chain that trusts the network of hosts", |p| p.nft("table inet filter { chain input { type filter hook input priority 0; policy drop; ct state established,related accept; ip saddr 192.0.2.0/24 accept; } }")),
    ("an input chain with a set of ports", |p| p.nft("table inet filter { chain input { type filter hook input priority 0; policy drop; ct state established,related accept; udp dport {8472,51820} accept; } }")),
    ("an input chain with a range of ports", |p| p.nft("table inet filter { chain input { type filter hook input priority 0; policy drop; ct state established,related accept; udp dport 8000-9000 accept; } }")),
    ("an input chain that trusts the uplink", |p| p.nft("table inet filter { chain input { type filter hook input priority 0; policy drop; iifname \"lo\" accept; iifname \"eth0\" accept; } }")),
    ("a forward chain that knows pods by a larger network", |p| p.nft("table inet filter { chain forward { type filter hook forward priority 0; policy drop; ip saddr 10.0.0.0/8 accept; ip daddr 10.0.0.0/8 accept; } }")),
    ("a forward chain that knows pods by a set", |p| p.nft("table inet filter { set pods {type ipv4_addr; flags interval; elements={10.244.0.0/16};} chain forward { type filter hook forward priority 0; policy drop; ip saddr @pods accept; ip daddr @pods accept; } }")),
    ("IPv6 dropped, and pods have none", |p| p.nft("table ip6 filter { chain INPUT { type filter hook input priority 0; policy drop; } chain FORWARD { type filter hook forward priority 0; policy drop; } }")),
    ("firewalld with pods in the trusted zone, and the port", |p| firewalld(p, TRUSTED, &format!("{TRUSTED_IN} udp dport 8472 accept;"))),
    ("NetworkManager leaves us alone by a section for devices", |p| { p.write("run/NetworkManager/x", ""); p.write("etc/NetworkManager/conf.d/k8s.conf", "[device-cni]\nmatch-device=interface-name:cni*,interface-name:flannel*\nmanaged=0\n"); }),
    ("NetworkManager leaves us alone by a package's file", |p| { p.write("run/NetworkManager/x", ""); p.write("usr/lib/NetworkManager/conf.d/k8s.conf", "[keyfile]\nunmanaged-devices = interface-name:cni*, interface-name:flannel*\n"); }),
    ("systemd-networkd leaves us alone by a file beside", |p| {
        p.write("run/systemd/netif/links/2", "");
        p.write("etc/systemd/network/eth.network", "[Match]\nName=eth* en*\n[Network]\nDHCP=yes\n");
        p.write("etc/systemd/networkd.conf", "[Network]\n#ManageForeignRoutes=yes\n");
        p.write("etc/systemd/networkd.conf.d/10-pods.conf", "[Network]\nManageForeignRoutes=false\nManageForeignRoutingPolicyRules=false\n");
    }),
    ("Multus goes first and calls flannel", |p| p.write("etc/cni/net.d/00-multus.conf", r#"{"cniVersion":"0.3.1","name":"multus-cni-network","type":"multus","kubeconfig":"/etc/cni/net.d/multus.d/multus.kubeconfig","delegates":[{"cniVersion":"0.3.1","name":"cbr0","plugins":[{"type":"flannel","delegate":{"isDefaultGateway":true}},{"type":"portmap"}]}]}"#)),
    ("a configuration of one plugin, as it was at first", |p| { p.remove("etc/cni/net.d/10-flannel.conflist"); p.write("etc/cni/net.d/10-flannel.conf", r#"{"name":"cbr0","type":"flannel","delegate":{"isDefaultGateway":true}}"#); }),
    ("copies of configurations that no runtime reads", |p| { p.write("etc/cni/net.d/05-calico.conflist.bak", "{"); p.write("etc/cni/net.d/.10-flannel.conflist.swp", "b0VIM"); p.write("etc/cni/net.d/calico-kubeconfig", "apiVersion: v1\n"); }),
    ("Debian's containerd, whose plugins are elsewhere", |p| {
        for program in ["flannel", "bridge", "host-local", "portmap", "loopback"] { p.remove(&format!("opt/cni/bin/{program}")); p.write(&format!("usr/lib/cni/{program}"), ""); }
        p.write("etc/containerd/config.toml", "version = 2\n\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    [plugins.\"io.containerd.grpc.v1.cri\".cni]\n      bin_dir = \"/usr/lib/cni\"\n      conf_dir = \"/etc/cni/net.d\"\n");
    }),
    ("a busy host", |p| { for n in 2..112 { p.write(&format!("var/lib/cni/networks/cbr0/10.244.1.{n}"), "x\r\neth0"); } p.write("var/lib/cni/networks/cbr0/last_reserved_ip.0", "10.244.1.111"); p.write("var/lib/cni/networks/cbr0/lock", ""); pod(p); }),
    ("networks of compose", |p| run(p, "ip link add br-3f1c9a7d20aa type bridge\nip link set br-3f1c9a7d20aa up\nip addr add 172.18.0.1/16 dev br-3f1c9a7d20aa")),
];

#[test]
fn the_right_finding_comes_first_by_another_hand() {
    judge(FAULTS, 60, |patient, check| {
        if check == "certificate" {
            let file = patient.certificate((2024, 1, 1), (2025, 1, 1));
            patient.found(&[("FLANNELD_ETCD_CERTFILE", &file)])
        } else {
            patient.found(&[])
        }
    });
}

#[test]
fn odd_health_raises_no_alarm() {
    all_are_well(HEALTHY, 30);
}

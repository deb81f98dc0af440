/* What the programs and the agent share: bytes of maps. `crates/fastpath/src/layout.rs` says the same in Rust,
 * and its test compares the sizes and offsets the compiler gives both. SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
#ifndef LAYOUT_H
#define LAYOUT_H

#include <linux/types.h>

/* Longest header that is pushed: Ethernet, IPv4, UDP, VXLAN, inner Ethernet. */
#define HEADER 64
/* The same with IPv6 outside. */
#define HEADER6 84

/* How packets travel between nodes. */
enum format {
	PLAIN,              /* as they are */
	VXLAN,
	UDP,                /* flannel's udp: the packet is the datagram */
};

/* What the agent tells the programs; the single entry of `config`. */
struct config {
	__u64 alive_until;  /* ns of CLOCK_MONOTONIC; after that the agent is taken for dead */
	__u64 lifetime;     /* ns a flow is believed after the slow path last carried it */
	__u32 generation;   /* a flow of another generation is void */
	__u32 uplink;       /* interface index */
	__u32 tunnel;       /* index of the tunnel's device, 0 without one */
	__u32 vni;
	__be32 local;       /* outer address of this node */
	__be32 net;         /* the cluster's network: nothing else is fast */
	__be32 mask;
	__be16 port;        /* the tunnel's UDP port */
	__u8 format;
	__u8 bare;          /* the uplink hands packets on whose checksums are unfinished */
	__u8 six;           /* there is a network of IPv6 */
	__u8 sums;          /* the tunnel's device has checksums inside computed before it sends, as a card cannot */
	__u16 ct_status;    /* where in conntrack's entry its status is, and the state of TCP: BTF's to say, perhaps a module's */
	__u16 ct_state;
	__u8 zero[2];
	__be32 net6[4];     /* the cluster's network in IPv6, and its mask */
	__be32 mask6[4];
	__u32 tunnel6;      /* index of the VXLAN device for packets of IPv6, 0 without one */
	__u32 vni6;
	__be32 local6[4];   /* its outer address of this node */
	__be16 port6;
	__u8 sums6;
	__u8 zero_too[5];
	__u64 key;          /* known to this agent's programs on this host alone: what they leave in front of packets for each other */
};

/* One direction of a connection. */
struct tuple {
	__be32 src;
	__be32 dst;
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 zero[3];
};

/* The same in IPv6. */
struct tuple6 {
	__be32 src[4];
	__be32 dst[4];
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 zero[3];
};

/* A packet on its way over the slow path, as it was where it came in. */
struct candidate {
	__u64 seen;
	__u64 refused;      /* ns; when conntrack last did not want its flow fast, 0 if it did */
	__u64 pause;        /* ns from then, in which it is not asked again */
	__u64 followed;     /* ns; when a packet entered the tunnel of whose flow it had nothing against it */
	__u32 from;         /* interface index */
	__be32 peer[4];     /* outer source, one word of it in IPv4; 0 if it came without */
	__u32 macs[3];      /* destination and source */
	__u8 tos;
	__u8 ttl;
	__u8 zero[6];
};

enum kind {
	ENCAP = 1,          /* push `header`, send by the uplink */
	ROUTE = 2,          /* a new Ethernet header, send by the uplink */
	DELIVER = 3,        /* strip what is before the inner packet, hand to the pod */
};

/* How the slow path carried the packets of a tuple. */
struct flow {
	__u64 verified;     /* ns; when the slow path last did */
	__u32 generation;
	__u32 from;
	__u32 to;
	__be32 peer[4];
	__u8 kind;
	__u8 tos;           /* as it came in, without ECN */
	__u8 hops;          /* how much smaller its TTL was where it went out */
	__u8 zero;
	__u32 macs[3];      /* of its frames where they came in */
	__u32 header[HEADER6 / 4];
	__u32 most;         /* bytes of the longest outer packet on the path to the peer, 0 if devices alone say */
	__be32 label;       /* the flow label of IPv6 that the outer source port was made of */
};

/* Rows of `counters`. */
enum counter {
	FAST_OUT,           /* from a pod to the uplink */
	FAST_IN,            /* from the uplink to a pod */
	FAST_LOCAL,         /* from pod to pod */
	SLOW,               /* TCP and UDP that could have been fast, but for want of a live flow */
	LEARNT,             /* flows that became fast */
	RENEWED,            /* flows that stayed so */
	UNTRACKED,          /* packets whose connection is not established, not assured, or has NAT */
	TOO_BIG,            /* longer than an MTU on the way */
	FULL,               /* flows there was no room for */
	UNFINISHED,         /* packets whose checksum the uplink would hand on as it is, to a peer's socket */
	EARLY,              /* frames out of which the packet was taken before the kernel makes trains */
	COUNTERS,
};

/* The loader counts on these. */
#define AT(type, member, offset) _Static_assert(__builtin_offsetof(struct type, member) == (offset), #member)
_Static_assert(sizeof(struct config) == 128 && sizeof(struct tuple) == 16 && sizeof(struct tuple6) == 40 && sizeof(struct flow) == 144, "sizes");
AT(config, alive_until, 0);
AT(config, lifetime, 8);
AT(config, generation, 16);
AT(config, uplink, 20);
AT(config, tunnel, 24);
AT(config, vni, 28);
AT(config, local, 32);
AT(config, net, 36);
AT(config, mask, 40);
AT(config, port, 44);
AT(config, format, 46);
AT(config, bare, 47);
AT(config, six, 48);
AT(config, sums, 49);
AT(config, ct_status, 50);
AT(config, ct_state, 52);
AT(config, net6, 56);
AT(config, mask6, 72);
AT(config, tunnel6, 88);
AT(config, vni6, 92);
AT(config, local6, 96);
AT(config, port6, 112);
AT(config, sums6, 114);
AT(config, key, 120);
_Static_assert(COUNTERS == 11, "rows");

#endif

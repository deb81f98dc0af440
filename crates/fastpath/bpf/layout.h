/* What the programs and the agent share: bytes of maps. `crates/fastpath/src/layout.rs` says the same in Rust,
 * and its test compares the sizes and offsets the compiler gives both. SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
#ifndef LAYOUT_H
#define LAYOUT_H

#include <linux/types.h>

/* Longest header that is pushed: Ethernet, IPv4, UDP, VXLAN, inner Ethernet. */
#define HEADER 64

/* What the agent tells the programs; the single entry of `config`. */
struct config {
	__u64 alive_until;  /* ns of CLOCK_MONOTONIC; after that the agent is taken for dead */
	__u64 lifetime;     /* ns a flow is believed after the slow path last carried it */
	__u32 generation;   /* a flow of another generation is void */
	__u32 uplink;       /* interface index */
	__u32 vxlan;        /* index of the VXLAN device, 0 without one */
	__u32 vni;
	__be32 local;       /* outer address of this node */
	__be32 net;         /* the cluster's network: nothing else is fast */
	__be32 mask;
	__be16 port;        /* VXLAN's UDP port */
	__u8 zero[10];
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

/* A packet on its way over the slow path, as it was where it came in. */
struct candidate {
	__u64 seen;
	__u32 from;         /* interface index */
	__be32 peer;        /* outer source, 0 if it came without */
	__u32 macs[3];      /* destination and source */
	__u8 tos;
	__u8 ttl;
	__u8 zero[2];
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
	__be32 peer;
	__u8 kind;
	__u8 tos;           /* as it came in, without ECN */
	__u8 hops;          /* how much smaller its TTL was where it went out */
	__u8 zero;
	__u32 macs[3];      /* of its frames where they came in */
	__u32 header[HEADER / 4];
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
	COUNTERS,
};

/* The loader counts on these. */
#define AT(type, member, offset) _Static_assert(__builtin_offsetof(struct type, member) == (offset), #member)
_Static_assert(sizeof(struct config) == 56 && sizeof(struct tuple) == 16 && sizeof(struct flow) == 104, "sizes");
AT(config, alive_until, 0);
AT(config, lifetime, 8);
AT(config, generation, 16);
AT(config, uplink, 20);
AT(config, vxlan, 24);
AT(config, vni, 28);
AT(config, local, 32);
AT(config, net, 36);
AT(config, mask, 40);
AT(config, port, 44);
_Static_assert(COUNTERS == 9, "rows");

#endif

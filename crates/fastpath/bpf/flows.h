/* The maps, and how a flow gets into them: noted where its packet comes in, written down where the slow path sends
 * it out. SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
#ifndef FLOWS_H
#define FLOWS_H

#include "packet.h"

struct {
	UINT(type, BPF_MAP_TYPE_ARRAY);
	UINT(max_entries, 1);
	TYPE(key, __u32);
	TYPE(value, struct config);
} config SEC(".maps");

struct {
	UINT(type, BPF_MAP_TYPE_LRU_HASH);
	UINT(max_entries, 32768);
	TYPE(key, struct tuple);
	TYPE(value, struct flow);
} flows SEC(".maps");

struct {
	UINT(type, BPF_MAP_TYPE_LRU_HASH);
	UINT(max_entries, 8192);
	TYPE(key, struct tuple);
	TYPE(value, struct candidate);
} candidates SEC(".maps");

struct {
	UINT(type, BPF_MAP_TYPE_LRU_HASH);
	UINT(max_entries, 32768);
	TYPE(key, struct tuple6);
	TYPE(value, struct flow);
} flows6 SEC(".maps");

struct {
	UINT(type, BPF_MAP_TYPE_LRU_HASH);
	UINT(max_entries, 8192);
	TYPE(key, struct tuple6);
	TYPE(value, struct candidate);
} candidates6 SEC(".maps");

struct {
	UINT(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	UINT(max_entries, COUNTERS);
	TYPE(key, __u32);
	TYPE(value, __u64);
} counters SEC(".maps");

/* Set while the packet that a program has redirected goes out by the uplink: nothing is learnt from it. All of
 * that happens on one CPU, before anything else is received there. */
struct {
	UINT(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	UINT(max_entries, 1);
	TYPE(key, __u32);
	TYPE(value, __u32);
} ours SEC(".maps");

/* A packet takes longest over the slow path when a queue holds it back. */
#define ON_THE_WAY 100000000ull /* ns */

/* What a flow that conntrack does not want fast is left alone for, at first. */
#define PAUSE 8000000ull /* ns */

/* Bits of nf_conn.status (include/uapi/linux/netfilter/nf_conntrack_common.h): seen in both directions, more than
 * an exchange, in the table; and those that want every packet or change it: NAT of either side, sequence numbers
 * adjusted, dying, a helper, a template, offloaded to somebody else. */
#define CT_NEEDED (1 << 1 | 1 << 2 | 1 << 3)
#define CT_REFUSED (1 << 4 | 1 << 5 | 1 << 6 | 1 << 9 | 1 << 11 | 1 << 13 | 1 << 14)
#define CT_TCP_ESTABLISHED 3

INLINE void count(__u32 which)
{
	__u64 *n = map_lookup(&counters, &which);

	if (n)
		(*n)++;
}

INLINE const struct config *configuration(__u64 now)
{
	__u32 zero = 0;
	const struct config *c = map_lookup(&config, &zero);

	return c && now < c->alive_until ? c : 0;
}

INLINE void reverse(const struct tuple *of, struct tuple *back)
{
	__builtin_memset(back, 0, sizeof(*back));
	back->src = of->dst;
	back->dst = of->src;
	back->sport = of->dport;
	back->dport = of->sport;
	back->proto = of->proto;
}

/* A connection that begins or ends is conntrack's alone. */
INLINE void forget(const struct seen *seen)
{
	if (seen->six) {
		struct tuple6 back = { .sport = seen->tuple6.dport, .dport = seen->tuple6.sport, .proto = seen->tuple6.proto };

		copy(back.src, seen->tuple6.dst, 4);
		copy(back.dst, seen->tuple6.src, 4);
		map_delete(&flows6, &seen->tuple6);
		map_delete(&flows6, &back);
	} else {
		struct tuple back;

		reverse(&seen->tuple, &back);
		map_delete(&flows, &seen->tuple);
		map_delete(&flows, &back);
	}
}

INLINE struct flow *flow_of(const struct seen *seen)
{
	return seen->six ? map_lookup(&flows6, &seen->tuple6) : map_lookup(&flows, &seen->tuple);
}

INLINE struct candidate *candidate_of(const struct seen *seen)
{
	return seen->six ? map_lookup(&candidates6, &seen->tuple6) : map_lookup(&candidates, &seen->tuple);
}

INLINE int same(const __u32 *a, const __u32 *b, int words)
{
	__u32 differ = 0;

#pragma unroll
	for (int i = 0; i < words; i++)
		differ |= a[i] ^ b[i];
	return !differ;
}

/* Only what goes from pod to pod is fast, and only that is noted. */
INLINE int between_pods(const struct config *c, const struct seen *seen)
{
	if (seen->six) {
		const __be32 *src = seen->tuple6.src, *dst = seen->tuple6.dst;

#pragma unroll
		for (int i = 0; i < 4; i++)
			if ((src[i] & c->mask6[i]) != c->net6[i] || (dst[i] & c->mask6[i]) != c->net6[i])
				return 0;
		return c->six;
	}
	return c->mask && (seen->tuple.src & c->mask) == c->net && (seen->tuple.dst & c->mask) == c->net;
}

/* The flow of a packet, if the slow path carried a packet like it a moment ago. */
INLINE struct flow *live(const struct config *c, const struct seen *seen, __u32 from, const __u32 *macs, __u64 now)
{
	struct flow *flow = flow_of(seen);
	struct candidate *came;
	__u64 age;

	if (!flow || flow->generation != c->generation)
		return 0;
	age = now - flow->verified;
	if (age > c->lifetime)
		return 0;
	if (flow->from != from || flow->tos != (seen->tos & 0xfc) || !same(flow->macs, macs, 3))
		return 0;
	if (seen->ttl <= flow->hops)
		return 0;
	if (age > c->lifetime / 4 * 3) {
		/* Its time is nearly over: a packet asks the slow path again, and those after it need not wait for the answer. */
		came = candidate_of(seen);
		if (!came || (now - came->seen > c->lifetime / 8 && now - came->refused > came->pause))
			return 0;
	}
	return flow;
}

/* Where a packet enters the slow path. */
INLINE void note(const struct seen *seen, __u32 from, const __be32 *peer, const __u32 *macs, __u64 now)
{
	struct candidate *known = candidate_of(seen);
	struct candidate fresh = { .seen = now, .from = from, .tos = seen->tos, .ttl = seen->ttl };

	count(SLOW);
	if (known && now - known->refused < known->pause)
		return;
	copy(fresh.peer, peer, 4);
	copy(fresh.macs, macs, 3);
	if (!known) {
		if (seen->six)
			map_update(&candidates6, &seen->tuple6, &fresh, BPF_ANY);
		else
			map_update(&candidates, &seen->tuple, &fresh, BPF_ANY);
		return;
	}
	fresh.refused = known->refused;
	fresh.pause = known->pause;
	fresh.followed = known->followed;
	*known = fresh;
}

/* Whether conntrack has seen both directions of the connection of this packet, lets it be, and does nothing to its
 * packets. It is asked by the entry that hangs on the packet: its own functions are out of reach where it is a module
 * (decision 0238). */
INLINE int followed(struct __sk_buff *skb, const struct config *c, __u8 proto)
{
	const void *entry = (const void *)(kernel_skb(skb)->_nfct & ~7ul);
	unsigned long status = 0;
	__u8 state = 0;

	if (!entry || read_kernel(&status, sizeof(status), entry + c->ct_status))
		return 0;
	if ((status & CT_NEEDED) != CT_NEEDED || status & CT_REFUSED)
		return 0;
	return proto != IPPROTO_TCP || (!read_kernel(&state, sizeof(state), entry + c->ct_state) && state == CT_TCP_ESTABLISHED);
}

/* The same, and leaves a flow alone for a while of which it is not so. */
INLINE int is_welcome(struct __sk_buff *skb, const struct config *c, const struct seen *seen, struct candidate *came, __u64 now)
{
	if (followed(skb, c, seen->six ? seen->tuple6.proto : seen->tuple.proto)) {
		came->pause = 0;
		return 1;
	}
	count(UNTRACKED);
	/* Datagrams that nobody answers, or NAT: each time twice as long, and never longer than a flow is believed. */
	came->refused = now;
	came->pause = came->pause ? came->pause * 2 : PAUSE;
	if (came->pause > c->lifetime)
		came->pause = c->lifetime;
	return 0;
}

/* Whether there is nothing to learn from a packet that was noted like this: it is another one, or its flow is left alone. */
INLINE int is_old(const struct candidate *came, __u64 now)
{
	return now - came->refused < came->pause || now - came->seen > ON_THE_WAY;
}

INLINE __u32 shorter(__u32 longest, __u32 said)
{
	return said && said < longest ? said : longest;
}

/* Bytes of the longest packet on the way this one was given, which may be less than the device takes: a route says so,
 * or a router did and the kernel remembers. 0 if it was given none. */
INLINE __u32 longest_on_path(struct __sk_buff *skb, int six)
{
	__u64 way = kernel_skb(skb)->_skb_refdst & ~1ull;
	__u32 longest = 0xffff;
	unsigned long table;
	struct dst_metrics *metrics;

	if (!way)
		return 0;
	if (six) {
		struct rt6_info *route;

		if (!kernel_has(struct rt6_info))
			return 0;
		route = kernel_object((void *)way, kernel_type(struct rt6_info));
		/* What a router advertised for the link, or an operator set; what one said of a path is in the table. */
		longest = shorter(longest, route->rt6i_idev->cnf.mtu6);
		table = route->dst._metrics;
	} else {
		struct rtable *route = kernel_object((void *)way, kernel_type(struct rtable));

		/* By a router. What it said a while ago and counts no more at most keeps packets slow. */
		longest = shorter(longest, field(__u32, route, rt_pmtu));
		table = route->dst._metrics;
	}
	metrics = kernel_object((void *)(table & ~3ull), kernel_type(struct dst_metrics));
	return shorter(longest, metrics->metrics[RTAX_MTU - 1]);
}

/* Where a packet leaves the slow path: what has become of it is what will be done to those after it. `flow` has the header it
 * has now, and zeros. */
INLINE void learn(struct __sk_buff *skb, const struct config *c, const struct seen *seen, __u8 kind, __u32 to,
		  struct flow *flow, __u64 now)
{
	struct candidate *came = candidate_of(seen);
	struct flow *known;
	__u32 most = 0;
	long refused;
	__u8 hops;

	if (!came || is_old(came, now) || seen->ends || skb->mark)
		return;
	hops = came->ttl - seen->ttl;
	/* Somebody on the way changes packets, or this is another one. */
	if (hops > (c->format == UDP ? 2 : 1) || (came->tos & 0xfc) != (seen->tos & 0xfc))
		return;
	known = flow_of(seen);
	if (known && known->generation == c->generation && now - known->verified < c->lifetime / 8)
		return;
	/* A tunnel has taken conntrack's entry off, and been asked before. */
	if (kind == ENCAP ? now - came->followed > ON_THE_WAY : !is_welcome(skb, c, seen, came, now))
		return;
	/* Routers cut packets of vxlan in IPv4, and no others. */
	if (kind == ENCAP && (seen->six || c->format == UDP)) {
		most = longest_on_path(skb, seen->six);
		if (!most)
			return;
	}
	flow->verified = now;
	flow->most = most;
	flow->generation = c->generation;
	flow->from = came->from;
	flow->to = to;
	flow->kind = kind;
	flow->tos = seen->tos & 0xfc;
	flow->hops = hops;
	flow->label = seen->label;
	copy(flow->peer, came->peer, 4);
	copy(flow->macs, came->macs, 3);
	refused = seen->six ? map_update(&flows6, &seen->tuple6, flow, BPF_ANY)
			    : map_update(&flows, &seen->tuple, flow, BPF_ANY);
	if (refused)
		count(FULL);
	else
		count(known ? RENEWED : LEARNT);
}

#endif

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
INLINE void forget(const struct tuple *tuple)
{
	struct tuple back;

	reverse(tuple, &back);
	map_delete(&flows, tuple);
	map_delete(&flows, &back);
}

INLINE int same_macs(const __u32 *a, const __u32 *b)
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2];
}

/* Only what goes from pod to pod is fast, and only that is noted. */
INLINE int between_pods(const struct config *c, const struct seen *seen)
{
	return (seen->tuple.src & c->mask) == c->net && (seen->tuple.dst & c->mask) == c->net;
}

/* The flow of a packet, if the slow path carried a packet like it a moment ago. */
INLINE struct flow *live(const struct config *c, const struct seen *seen, __u32 from, const __u32 *macs, __u64 now)
{
	struct flow *flow = map_lookup(&flows, &seen->tuple);

	if (!flow || flow->generation != c->generation || now - flow->verified > c->lifetime)
		return 0;
	if (flow->from != from || flow->tos != (seen->tos & 0xfc) || !same_macs(flow->macs, macs))
		return 0;
	return flow;
}

/* Where a packet enters the slow path. */
INLINE void note(const struct seen *seen, __u32 from, __be32 peer, const __u32 *macs, __u64 now)
{
	struct candidate *known = map_lookup(&candidates, &seen->tuple);
	struct candidate fresh = { .seen = now, .from = from, .peer = peer, .tos = seen->tos, .ttl = seen->ttl };

	copy(fresh.macs, macs, 3);
	count(SLOW);
	if (known)
		*known = fresh;
	else
		map_update(&candidates, &seen->tuple, &fresh, BPF_ANY);
}

/* Whether conntrack has seen both directions of the connection, lets it be, and does nothing to its packets. */
INLINE int tracked(struct __sk_buff *skb, const struct tuple *of)
{
	struct bpf_sock_tuple tuple = {};
	struct ct_opts opts = { .netns = -1, .proto = of->proto };
	struct nf_conn *ct;
	unsigned long status;
	__u8 state;

	tuple.ipv4.saddr = of->src;
	tuple.ipv4.daddr = of->dst;
	tuple.ipv4.sport = of->sport;
	tuple.ipv4.dport = of->dport;
	ct = ct_lookup(skb, &tuple, sizeof(tuple.ipv4), &opts, sizeof(opts));
	if (!ct)
		return 0;
	status = ct->status;
	state = ct->proto.tcp.state;
	ct_release(ct);
	if ((status & CT_NEEDED) != CT_NEEDED || status & CT_REFUSED)
		return 0;
	return of->proto != IPPROTO_TCP || state == CT_TCP_ESTABLISHED;
}

/* Where a packet leaves the slow path: what has become of it is what will be done to those after it. */
INLINE void learn(struct __sk_buff *skb, const struct config *c, const struct seen *seen, __u8 kind, __u32 to,
		  const __u32 *header, __u64 now)
{
	struct candidate *came = map_lookup(&candidates, &seen->tuple);
	struct flow *known, flow;
	__u8 hops;

	if (!came || now - came->seen > ON_THE_WAY || seen->ends || skb->mark)
		return;
	hops = came->ttl - seen->ttl;
	/* Somebody on the way changes packets, or this is another one. */
	if (hops > 1 || (came->tos & 0xfc) != (seen->tos & 0xfc))
		return;
	known = map_lookup(&flows, &seen->tuple);
	if (known && known->generation == c->generation && now - known->verified < c->lifetime / 8)
		return;
	if (!tracked(skb, &seen->tuple)) {
		count(UNTRACKED);
		return;
	}
	__builtin_memset(&flow, 0, sizeof(flow));
	flow.verified = now;
	flow.generation = c->generation;
	flow.from = came->from;
	flow.to = to;
	flow.peer = came->peer;
	flow.kind = kind;
	flow.tos = seen->tos & 0xfc;
	flow.hops = hops;
	copy(flow.macs, came->macs, 3);
	copy(flow.header, header, HEADER / 4);
	if (map_update(&flows, &seen->tuple, &flow, BPF_ANY))
		count(FULL);
	else
		count(known ? RENEWED : LEARNT);
}

#endif

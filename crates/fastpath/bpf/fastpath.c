/* The fast path: packets of established flows between pods go past the host's bridge, netfilter and tunnel device.
 * What is done to them is what the slow path was seen doing to a packet of the same flow a moment ago; whatever is
 * not plain goes on over the slow path (decisions 0215 to 0219). SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */

#include "early.h"

#define DROP 2 /* TCX_DROP */
#define ADJ_GSO BPF_F_ADJ_ROOM_FIXED_GSO
#define PUSH (ADJ_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP | \
	      BPF_F_ADJ_ROOM_ENCAP_L2_ETH | BPF_F_ADJ_ROOM_ENCAP_L2(14))
#define PUSH_PLAIN (ADJ_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP)
#define ROOM (HEADER - 14)
#define PUSH6 (ADJ_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP | \
	       BPF_F_ADJ_ROOM_ENCAP_L2_ETH | BPF_F_ADJ_ROOM_ENCAP_L2(14))
#define ROOM_PLAIN (DATAGRAM - ETH)
#define ROOM6 (HEADER6 - ETH)

/* Identification of outer headers: not 0 and not the same twice in a row (RFC 6864, 4.3). */
INLINE __u16 identification(void)
{
	__u32 zero = 0;
	__u32 *n = map_lookup(&ours, &zero);

	return n ? (__u16)((*n >> 1) * 5 + cpu() * 8191) : 0;
}

INLINE void going_out(void)
{
	__u32 zero = 0;
	__u32 *n = map_lookup(&ours, &zero);

	if (n)
		*n = (*n + 2) | 1;
}

INLINE int is_ours(void)
{
	__u32 zero = 0;
	__u32 *n = map_lookup(&ours, &zero);

	return n && *n & 1;
}

INLINE int came_from_us(void)
{
	__u32 zero = 0;
	__u32 *n = map_lookup(&ours, &zero);

	if (!n || !(*n & 1))
		return 0;
	*n &= ~1u;
	return 1;
}

/* To the tunnel's device, with the Ethernet header that the route gave it: past bridge, rules and routes all the same. */
INLINE int by_device(struct __sk_buff *skb, __u32 device, const struct flow *flow, const struct seen *seen)
{
	const __u16 *to = (const __u16 *)flow->header + (seen->six ? OUTER6 : OUTER) / 2;
	__u16 *data = data_of(skb);

	if ((void *)data + ETH + 20 > end_of(skb))
		return NEXT;
	hops((void *)data + ETH, flow->hops, seen->six);
#pragma unroll
	for (int i = 0; i < 6; i++)
		data[i] = to[i];
	going_out();
	count(FAST_OUT);
	return redirect(device, 0);
}

/* Pushes the header that the slow path made, with the lengths, the identification and the ECN of this packet. */
INLINE int encapsulate(struct __sk_buff *skb, const struct config *c, const struct flow *flow, const struct seen *seen)
{
	__u32 room = c->format == UDP ? ROOM_PLAIN : ROOM;
	__u32 bytes = skb->len - ETH + room;
	__u32 most = longest(skb, seen);
	union {
		__u8 bytes[HEADER];
		__u16 words[HEADER / 2];
		__u32 longs[HEADER / 4];
	} h;
	void *data;

	if (bytes > 0xffff || !fits(skb, c->tunnel, most) || !fits(skb, flow->to, most + room) ||
	    (flow->most && most + room > flow->most)) {
		count(TOO_BIG);
		return NEXT;
	}
	if (nested(skb))
		return NEXT;
	/* With udp the peer's socket gets the packet: nobody would finish or verify a checksum there. */
	if (c->format == UDP && (seen->unsummed || (c->bare && (skb->gso_size || unfinished(skb))))) {
		count(UNFINISHED);
		return NEXT;
	}
	if (c->sums && (skb->gso_size || unfinished(skb)))
		return by_device(skb, c->tunnel, flow, seen);
	copy(h.longs, flow->header, HEADER / 4);
	data = data_of(skb);
	if (data + ETH + 20 > end_of(skb))
		return NEXT;
	hops(data + ETH, flow->hops, seen->six);
	/* From here on there is no way back: the packet is another one. */
	if (c->format == UDP) {
		if (adjust_room(skb, ROOM_PLAIN, BPF_ADJ_ROOM_MAC, PUSH_PLAIN))
			return DROP;
	} else {
		if (adjust_room(skb, ROOM, BPF_ADJ_ROOM_MAC, PUSH))
			return DROP;
		h.bytes[15] = (h.bytes[15] & ~ECN) | outer_ecn(seen->tos);
	}
	h.words[8] = htons((__u16)bytes);
	h.words[9] = identification();
	h.words[12] = 0;
	h.words[12] = ~header_sum(h.words + 7);
	h.words[19] = htons((__u16)(bytes - 20));
	/* Not summed, as RFC 7348, 5 recommends: what is inside has its own checksum. */
	h.words[20] = 0;
	if (c->format == UDP ? store(skb, 0, h.bytes, DATAGRAM, 0) : store(skb, 0, h.bytes, HEADER, 0))
		return DROP;
	going_out();
	count(FAST_OUT);
	return redirect(flow->to, 0);
}

/* The same with IPv6 outside, where a checksum has to be: that of a packet whose own one is yet to be computed is known
 * without it, since it makes what is summed the same whatever there is in it. For all others the tunnel's device has it
 * computed, which no call does from here for each packet of a train (decision 0236). */
INLINE int encapsulate6(struct __sk_buff *skb, const struct config *c, const struct flow *flow, const struct seen *seen)
{
	__u32 bytes = skb->len - ETH - 40 + ROOM6;
	__u32 most = longest(skb, seen) + ROOM6;
	union {
		__u8 bytes[HEADER6];
		__u16 words[HEADER6 / 2];
		__u32 longs[HEADER6 / 4];
	} h;
	__u32 *inner;
	__u64 sum;

	if (!fits(skb, c->tunnel6, most - ROOM6) || !fits(skb, flow->to, most) || most > flow->most) {
		count(TOO_BIG);
		return NEXT;
	}
	if (nested(skb))
		return NEXT;
	/* Another label is another source port, by which a sender looks for another way. */
	if (skb->gso_size || bytes > 0xffff || seen->label != flow->label || c->sums6 || !own_unfinished(skb, seen))
		return by_device(skb, c->tunnel6, flow, seen);
	copy(h.longs, flow->header, HEADER6 / 4);
	inner = data_of(skb) + ETH;
	if ((void *)inner + 40 > end_of(skb))
		return NEXT;
	hops(inner, flow->hops, 1);
	h.bytes[15] = (h.bytes[15] & ~(ECN << 4)) | outer_ecn(seen->tos) << 4;
	h.words[9] = htons((__u16)bytes);
	h.words[29] = h.words[9];
	h.words[30] = 0;
	/* Addresses and length as in a pseudo header (RFC 8200, 8.1), and all up to the transport header inside. */
	sum = h.words[11] + h.words[9] + htons(IPPROTO_UDP) + (__u16)~seen->check;
#pragma unroll
	for (int i = 6; i < HEADER6 / 4; i++)
		sum += h.longs[i];
#pragma unroll
	for (int i = 0; i < 10; i++)
		sum += inner[i];
	sum = (__u32)sum + (sum >> 32);
	h.words[30] = ~fold((__u32)sum + (__u32)(sum >> 32));
	if (!h.words[30])
		h.words[30] = 0xffff;
	/* From here on there is no way back: the packet is another one. */
	if (adjust_room(skb, ROOM6, BPF_ADJ_ROOM_MAC, PUSH6) || store(skb, 0, h.bytes, HEADER6, 0))
		return DROP;
	going_out();
	count(FAST_OUT);
	return redirect(flow->to, 0);
}

/* A new Ethernet header, a hop less, and out by the uplink. */
INLINE int route(struct __sk_buff *skb, const struct flow *flow, const struct seen *seen)
{
	void *data = data_of(skb);

	if (!fits(skb, flow->to, longest(skb, seen))) {
		count(TOO_BIG);
		return NEXT;
	}
	data = data_of(skb);
	if (data + ETH + 20 > end_of(skb))
		return NEXT;
	hops(data + ETH, flow->hops, seen->six);
	copy(data, flow->header, 3);
	going_out();
	count(FAST_OUT);
	return redirect(flow->to, 0);
}

/* Into the pod, with the Ethernet header it would have come with. */
INLINE int deliver(struct __sk_buff *skb, const struct flow *flow, const struct seen *seen, int verified, __u32 counter)
{
	void *data;

	if (!fits(skb, flow->to, longest(skb, seen))) {
		count(TOO_BIG);
		return NEXT;
	}
	if (seen->at > ETH) {
		if (adjust_room(skb, (__s32)ETH - (__s32)seen->at, BPF_ADJ_ROOM_MAC, ADJ_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET))
			return NEXT;
		/* What the device verified was the outer checksum first; the inner one is the next level. With udp cards know of
		 * no inner one. */
		if (verified)
			csum_level(skb, BPF_CSUM_LEVEL_DEC);
	}
	data = data_of(skb);
	if (data + ETH + 20 > end_of(skb))
		return DROP;
	/* Where a card has summed all of the packet. In IPv4 the header's own checksum outweighs the hop. */
	if (seen->six)
		csum_update(skb, 0xffff - htons(flow->hops));
	data = data_of(skb);
	if (data + ETH + 20 > end_of(skb))
		return DROP;
	hops(data + ETH, flow->hops, seen->six);
	copy(data, flow->header, 3);
	/* A bridge's port takes frames for others, a pod does not. */
	change_type(skb, 0);
	count(counter);
	return redirect_peer(flow->to, 0);
}

/* From a pod: ingress of the host's end of its veth. */
SEC("classifier")
int pod_in(struct __sk_buff *skb)
{
	__u64 now = now_coarse();
	const struct config *c = configuration(now);
	struct seen seen;
	struct flow *flow;
	__be32 nobody[4] = {};
	__u32 macs[3];
	void *data;

	if (!c || !is_ip(skb))
		return NEXT;
	if (!read_plain(skb, &seen) || !between_pods(c, &seen))
		return NEXT;
	if (seen.ends) {
		forget(&seen);
		return NEXT;
	}
	data = data_of(skb);
	if (data + ETH > end_of(skb))
		return NEXT;
	copy(macs, data, 3);
	flow = live(c, &seen, skb->ifindex, macs, now);
	if (flow && flow->kind == ENCAP && flow->to == c->uplink)
		return seen.six ? encapsulate6(skb, c, flow, &seen) : encapsulate(skb, c, flow, &seen);
	if (flow && flow->kind == ROUTE && flow->to == c->uplink)
		return route(skb, flow, &seen);
	if (flow && flow->kind == DELIVER)
		return deliver(skb, flow, &seen, 0, FAST_LOCAL);
	note(&seen, skb->ifindex, nobody, macs, now);
	return NEXT;
}

/* Notes what the slow path does to a packet without a tunnel: the Ethernet header it leaves with. */
INLINE void learn_plain(struct __sk_buff *skb, const struct config *c, __u8 kind, __u64 now)
{
	struct seen seen;
	struct flow flow = {};
	void *data;

	if (!read_plain(skb, &seen))
		return;
	data = data_of(skb);
	if (data + ETH > end_of(skb))
		return;
	copy(flow.header, data, 3);
	learn(skb, c, &seen, kind, skb->ifindex, &flow, now);
}

/* To a pod: egress of the host's end of its veth. Only the slow path comes by here. */
SEC("classifier")
int pod_out(struct __sk_buff *skb)
{
	__u64 now = now_coarse();
	const struct config *c = configuration(now);

	if (c && is_ip(skb))
		learn_plain(skb, c, DELIVER, now);
	return NEXT;
}

/* To another node, not yet packed: egress of the tunnel's device. */
SEC("classifier")
int tunnel_out(struct __sk_buff *skb)
{
	__u64 now = now_coarse();
	const struct config *c = configuration(now);
	struct candidate *came;
	struct seen seen;

	/* What we have sent here was not followed on its way. */
	if (!c || is_ours())
		return NEXT;
	/* The device of udp has no Ethernet. */
	if (c->format == UDP ? !headers(skb, 0) || !read(skb, 0, &seen) : !is_ip(skb) || !read_plain(skb, &seen))
		return NEXT;
	came = candidate_of(&seen);
	if (came && !is_old(came, now) && !seen.ends && is_welcome(skb, c, &seen, came, now))
		came->followed = now;
	return NEXT;
}

/* From another node: ingress of the uplink. */
SEC("classifier")
int uplink_in(struct __sk_buff *skb)
{
	__u64 now = now_coarse();
	const struct config *c = configuration(now);
	struct outer outer;
	struct seen seen;
	struct flow *flow;
	__u32 macs[3];
	void *data;
	__u32 frame;
	int inside;

	if (!c || skb->pkt_type || !is_ip(skb))
		return NEXT;
	inside = is_outer(skb, c, &outer);
	if (inside) {
		if (!outer.here || !read_inner(skb, c, &seen))
			return NEXT;
		/* A datagram that only the outer checksum protects has to have that verified. */
		if (outer.summed && seen.unsummed)
			return NEXT;
		/* Marks of congestion on the way are the slow path's to carry over (RFC 6040, 4.2). */
		if (outer.frame && outer.ecn != outer_ecn(seen.tos))
			return NEXT;
	} else if (!read_plain(skb, &seen)) {
		return NEXT;
	}
	frame = outer.frame;
	/* Said in a way the verifier can follow, and the compiler does not take for superfluous. */
	asm volatile("" : "+r"(frame));
	data = data_of(skb) + (frame & 127);
	if (!between_pods(c, &seen))
		return NEXT;
	if (seen.ends) {
		forget(&seen);
		return NEXT;
	}
	if (data + ETH > end_of(skb))
		return NEXT;
	copy(macs, data, 3);
	flow = live(c, &seen, skb->ifindex, macs, now);
	/* Trains of datagrams with packets in them are for the tunnel to take apart; and of a checksum of the outer datagram that
	 * nobody has finished nothing would be left. */
	if (inside && !outer.frame && skb->gso_size)
		flow = 0;
	if (inside && unfinished(skb) && !own_unfinished(skb, &seen))
		flow = 0;
	if (flow && flow->kind == DELIVER && same(flow->peer, outer.peer, 4))
		return deliver(skb, flow, &seen, outer.summed || !outer.frame, FAST_IN);
	note(&seen, skb->ifindex, outer.peer, macs, now);
	return NEXT;
}

/* To another node: egress of the uplink. */
SEC("classifier")
int uplink_out(struct __sk_buff *skb)
{
	__u64 now;
	const struct config *c;
	struct outer outer;
	struct seen seen;
	void *data;

	if (came_from_us() || !is_ip(skb))
		return NEXT;
	now = now_coarse();
	c = configuration(now);
	if (!c)
		return NEXT;
	if (is_outer(skb, c, &outer)) {
		struct flow flow = {};

		if (outer.labelled || !read_inner(skb, c, &seen))
			return NEXT;
		data = data_of(skb);
		/* Even with udp, where it is a part of the inner packet that is copied too. */
		if (data + HEADER > end_of(skb))
			return NEXT;
		copy(flow.header, data, HEADER / 4);
		if (seen.six) {
			if (data + HEADER6 > end_of(skb))
				return NEXT;
			copy(flow.header + HEADER / 4, data + HEADER, (HEADER6 - HEADER) / 4);
		}
		learn(skb, c, &seen, ENCAP, skb->ifindex, &flow, now);
		return NEXT;
	}
	learn_plain(skb, c, ROUTE, now);
	return NEXT;
}

char licence[] SEC("license") = "GPL";

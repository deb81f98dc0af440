/* The fast path: packets of established flows between pods go past the host's bridge, netfilter and tunnel device.
 * What is done to them is what the slow path was seen doing to a packet of the same flow a moment ago; whatever is
 * not plain goes on over the slow path (decisions 0215 to 0219). SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */

#include "flows.h"

#define NEXT (-1) /* TCX_NEXT: on over the slow path */
#define DROP 2 /* TCX_DROP */
#define ADJ_GSO BPF_F_ADJ_ROOM_FIXED_GSO
#define PUSH (ADJ_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP | \
	      BPF_F_ADJ_ROOM_ENCAP_L2_ETH | BPF_F_ADJ_ROOM_ENCAP_L2(14))
#define ROOM (HEADER - 14)
#define ECN 3
#define CE 3
#define ECT0 2

struct vxlan {
	__be32 flags;
	__be32 vni;
};

/* The outer ECN bits of a packet with these (RFC 6040, 4.1, as the kernel's INET_ECN_encapsulate). */
INLINE __u8 outer_ecn(__u8 tos)
{
	return (tos & ECN) == CE ? ECT0 : tos & ECN;
}

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

INLINE int came_from_us(void)
{
	__u32 zero = 0;
	__u32 *n = map_lookup(&ours, &zero);

	if (!n || !(*n & 1))
		return 0;
	*n &= ~1u;
	return 1;
}

/* Pushes the header that the slow path made, with the lengths, the identification and the ECN of this packet. */
INLINE int encapsulate(struct __sk_buff *skb, const struct config *c, const struct flow *flow, const struct seen *seen)
{
	__u32 bytes = skb->len - ETH + ROOM;
	__u32 most = longest(skb, seen);
	union {
		__u8 bytes[HEADER];
		__u16 words[HEADER / 2];
		__u32 longs[HEADER / 4];
	} h;

	if (bytes > 0xffff || !fits(skb, c->vxlan, most) || !fits(skb, flow->to, most + ROOM)) {
		count(TOO_BIG);
		return NEXT;
	}
	copy(h.longs, flow->header, HEADER / 4);
	if (flow->hops) {
		void *data = data_of(skb);

		if (data + ETH + 20 > end_of(skb))
			return NEXT;
		hop(data + ETH);
	}
	/* From here on there is no way back: the packet is another one. */
	if (adjust_room(skb, ROOM, BPF_ADJ_ROOM_MAC, PUSH))
		return DROP;
	h.bytes[15] = (h.bytes[15] & ~ECN) | outer_ecn(seen->tos);
	h.words[8] = htons((__u16)bytes);
	h.words[9] = identification();
	h.words[12] = 0;
	h.words[12] = ~header_sum(h.words + 7);
	h.words[19] = htons((__u16)(bytes - 20));
	/* Not summed, as RFC 7348, 5 recommends: what is inside has its own checksum. */
	h.words[20] = 0;
	if (store(skb, 0, h.bytes, HEADER, 0))
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
	if (flow->hops)
		hop(data + ETH);
	copy(data, flow->header, 3);
	going_out();
	count(FAST_OUT);
	return redirect(flow->to, 0);
}

/* Into the pod, with the Ethernet header it would have come with. */
INLINE int deliver(struct __sk_buff *skb, const struct flow *flow, const struct seen *seen, int summed, __u32 counter)
{
	void *data;

	if (!fits(skb, flow->to, longest(skb, seen))) {
		count(TOO_BIG);
		return NEXT;
	}
	if (seen->at > ETH) {
		if (adjust_room(skb, -(__s32)ROOM, BPF_ADJ_ROOM_MAC, ADJ_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET))
			return NEXT;
		/* What the device verified was the outer checksum first; the inner one is the next level. */
		if (summed)
			csum_level(skb, BPF_CSUM_LEVEL_DEC);
	}
	data = data_of(skb);
	if (data + ETH + 20 > end_of(skb))
		return DROP;
	if (flow->hops)
		hop(data + ETH);
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
	__u32 macs[3];
	void *data;

	if (!c || skb->protocol != htons(ETH_P_IP) || skb->vlan_present || !headers(skb, ETH))
		return NEXT;
	if (!read(skb, ETH, &seen) || !between_pods(c, &seen))
		return NEXT;
	if (seen.ends) {
		forget(&seen.tuple);
		return NEXT;
	}
	data = data_of(skb);
	if (data + ETH > end_of(skb))
		return NEXT;
	copy(macs, data, 3);
	flow = live(c, &seen, skb->ifindex, macs, now);
	if (flow && flow->kind == ENCAP && flow->to == c->uplink)
		return encapsulate(skb, c, flow, &seen);
	if (flow && flow->kind == ROUTE && flow->to == c->uplink)
		return route(skb, flow, &seen);
	if (flow && flow->kind == DELIVER)
		return deliver(skb, flow, &seen, 0, FAST_LOCAL);
	note(&seen, skb->ifindex, 0, macs, now);
	return NEXT;
}

/* Notes what the slow path does to a packet without a tunnel: the Ethernet header it leaves with. */
INLINE void learn_plain(struct __sk_buff *skb, const struct config *c, __u8 kind, __u64 now)
{
	struct seen seen;
	__u32 header[HEADER / 4] = {};
	void *data;

	if (!read(skb, ETH, &seen))
		return;
	data = data_of(skb);
	if (data + ETH > end_of(skb))
		return;
	copy(header, data, 3);
	learn(skb, c, &seen, kind, skb->ifindex, header, now);
}

/* To a pod: egress of the host's end of its veth. Only the slow path comes by here. */
SEC("classifier")
int pod_out(struct __sk_buff *skb)
{
	__u64 now = now_coarse();
	const struct config *c = configuration(now);

	if (c && skb->protocol == htons(ETH_P_IP) && !skb->vlan_present && headers(skb, ETH))
		learn_plain(skb, c, DELIVER, now);
	return NEXT;
}

/* Where the inner Ethernet header of our VXLAN begins; 0 for everything else. The outer packet is checked as the
 * kernel's own path does, but what needs more than that goes there. */
INLINE __u32 inner(struct __sk_buff *skb, const struct config *c, __be32 *peer, __u8 *ecn, __u8 *summed)
{
	void *data = data_of(skb), *end = end_of(skb);
	struct iphdr *ip = data + ETH;
	struct udphdr *udp = (void *)(ip + 1);
	struct vxlan *vxlan;

	if (!c->vxlan || (void *)(udp + 1) > end || ip->protocol != IPPROTO_UDP || udp->dest != c->port)
		return 0;
	/* Only now: of other packets no more than their own headers is needed. */
	if (!headers(skb, OUTER + ETH))
		return 0;
	data = data_of(skb);
	end = end_of(skb);
	ip = data + ETH;
	udp = (void *)(ip + 1);
	vxlan = (void *)(udp + 1);
	if ((void *)(vxlan + 1) + ETH > end)
		return 0;
	if (*(__u8 *)ip != 0x45 || ip->protocol != IPPROTO_UDP || ip->frag_off & FRAGMENT)
		return 0;
	if (vxlan->flags != __builtin_bswap32(0x08000000))
		return 0;
	if (vxlan->vni != __builtin_bswap32(c->vni << 8) || header_sum((void *)ip) != 0xffff)
		return 0;
	if ((__u32)ntohs(ip->tot_len) + ETH != skb->len || ntohs(udp->len) + 20 != ntohs(ip->tot_len))
		return 0;
	if (((struct ethhdr *)(vxlan + 1))->h_proto != htons(ETH_P_IP))
		return 0;
	*ecn = ip->tos & ECN;
	*peer = ip->saddr;
	*summed = udp->check != 0;
	return OUTER;
}

/* From another node: ingress of the uplink. */
SEC("classifier")
int uplink_in(struct __sk_buff *skb)
{
	__u64 now = now_coarse();
	const struct config *c = configuration(now);
	__u32 at;
	__be32 peer = 0;
	__u8 ecn = 0, summed = 0;
	struct seen seen;
	struct flow *flow;
	__u32 macs[3];
	void *data;

	if (!c || skb->protocol != htons(ETH_P_IP) || skb->vlan_present || skb->pkt_type || !headers(skb, ETH))
		return NEXT;
	at = inner(skb, c, &peer, &ecn, &summed);
	data = data_of(skb);
	if (at) {
		struct iphdr *outer = data + ETH;

		if ((void *)(outer + 1) > end_of(skb) || outer->daddr != c->local)
			return NEXT;
		if (!read(skb, OUTER + ETH, &seen))
			return NEXT;
		/* A datagram that only the outer checksum protects has to have that verified. */
		if (summed && seen.unsummed)
			return NEXT;
		/* Marks of congestion on the way are the slow path's to carry over (RFC 6040, 4.2). */
		if (ecn != outer_ecn(seen.tos))
			return NEXT;
		data = data_of(skb) + OUTER;
	} else if (!read(skb, ETH, &seen)) {
		return NEXT;
	} else {
		data = data_of(skb);
	}
	if (!between_pods(c, &seen))
		return NEXT;
	if (seen.ends) {
		forget(&seen.tuple);
		return NEXT;
	}
	if (data + ETH > end_of(skb))
		return NEXT;
	copy(macs, data, 3);
	flow = live(c, &seen, skb->ifindex, macs, now);
	if (flow && flow->kind == DELIVER && flow->peer == peer)
		return deliver(skb, flow, &seen, summed, FAST_IN);
	note(&seen, skb->ifindex, peer, macs, now);
	return NEXT;
}

/* To another node: egress of the uplink. */
SEC("classifier")
int uplink_out(struct __sk_buff *skb)
{
	__u64 now;
	const struct config *c;
	__be32 peer;
	__u8 ecn, summed;
	__u32 at;
	struct seen seen;
	__u32 header[HEADER / 4] = {};
	void *data;

	if (came_from_us() || skb->protocol != htons(ETH_P_IP) || skb->vlan_present || !headers(skb, ETH))
		return NEXT;
	now = now_coarse();
	c = configuration(now);
	if (!c)
		return NEXT;
	at = inner(skb, c, &peer, &ecn, &summed);
	if (at) {
		if (!read(skb, OUTER + ETH, &seen))
			return NEXT;
		data = data_of(skb);
		if (data + HEADER > end_of(skb))
			return NEXT;
		copy(header, data, HEADER / 4);
		learn(skb, c, &seen, ENCAP, skb->ifindex, header, now);
		return NEXT;
	}
	learn_plain(skb, c, ROUTE, now);
	return NEXT;
}

char licence[] SEC("license") = "GPL";

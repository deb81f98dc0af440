/* Before the kernel makes trains: a frame of the backend udp loses its outer header in the driver (XDP), so that what is
 * left is put into trains like any other TCP, and the train goes to the pod behind that. All is judged here; the second program
 * does no more than what it finds written in front of the packet (decision 0239).
 * SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
#ifndef EARLY_H
#define EARLY_H

#include "outer.h"

/* When the second program last ran, in ns. */
struct {
	UINT(type, BPF_MAP_TYPE_ARRAY);
	UINT(max_entries, 1);
	TYPE(key, __u32);
	TYPE(value, __u64);
} here SEC(".maps");

/* So long after that it is taken to be there still: some ticks of the coarse clock. */
#define STILL_HERE 20000000ull /* ns */

/* In front of a packet: where it is to go. */
struct mark {
	__u32 key[2];
	__u32 to;           /* interface index of the host's end of the pod's veth */
};

/* The sum of a packet of TCP in one piece as it has to be: 0xffff. Nobody else would look: who has vouched for the frame, a
 * card or another host, has seen a datagram without a checksum. 0 if it cannot be told. */
INLINE __u16 tcp_sum(const struct iphdr *ip, const void *tcp, void *end, __u32 bytes)
{
	__u32 last = 0;
	__s64 sum;

	sum = (__u64)(ip->saddr & 0xffff) + (ip->saddr >> 16) + (ip->daddr & 0xffff) + (ip->daddr >> 16) + htons(IPPROTO_TCP) +
	      htons((__u16)bytes);
	bytes &= 0x3fff;
	for (int i = 0; i < 32 && bytes >= 512; i++) {
		if (tcp + 512 > end)
			return 0;
		sum = csum_diff(0, 0, tcp, 512, sum);
		tcp += 512;
		bytes -= 512;
	}
#pragma unroll
	for (int some = 256; some >= 4; some /= 2) {
		if (!(bytes & some))
			continue;
		if (tcp + some > end)
			return 0;
		sum = csum_diff(0, 0, tcp, some, sum);
		tcp += some;
	}
	if (bytes & 2) {
		if (tcp + 2 > end)
			return 0;
		last = *(__u16 *)tcp;
		tcp += 2;
	}
	sum = (__u32)sum;
	sum += last;
	if (bytes & 1) {
		if (tcp + 1 > end)
			return 0;
		sum += htons(*(__u8 *)tcp << 8);
	}
	sum = (sum & 0xffffffff) + (sum >> 32);
	return fold((__u32)((sum & 0xffff) + (sum >> 16)));
}

/* A packet for a pod may be TCP of a live flow and nothing else; whatever is not goes on as it came. */
SEC("xdp.frags")
int uplink_early(struct xdp_md *xdp)
{
	__u64 now = now_coarse();
	const struct config *c = configuration(now);
	void *data = (void *)(unsigned long)xdp->data, *end = (void *)(unsigned long)xdp->data_end;
	struct ethhdr *frame = data;
	struct iphdr *ip = (void *)(frame + 1), *inner;
	struct udphdr *udp = (void *)(ip + 1);
	struct tcphdr *tcp;
	__be32 peer[4] = {};
	__u32 macs[3], zero = 0, bytes, to;
	__u64 *ran, length;
	struct seen seen;
	struct flow *flow;
	struct mark *mark;

	inner = (void *)(udp + 1);
	tcp = (void *)(inner + 1);
	if (!c || c->format != UDP || !c->key || (void *)(tcp + 1) > end)
		return XDP_PASS;
	if (frame->h_proto != htons(ETH_P_IP) || ip->protocol != IPPROTO_UDP || udp->dest != c->port || ip->daddr != c->local)
		return XDP_PASS;
	/* With a checksum it is a datagram of a tunnel in user space, which the kernel puts into trains as it is. */
	if (udp->check || inner->protocol != IPPROTO_TCP)
		return XDP_PASS;
	/* Whoever holds the second program back holds all back. */
	ran = map_lookup(&here, &zero);
	if (!ran || *ran + STILL_HERE < now)
		return XDP_PASS;
	length = xdp_length(xdp);
	if (length > 0x3fff || data + length != end || !is_whole(ip, udp, length))
		return XDP_PASS;
	bytes = length - DATAGRAM;
	if (!read_ip(inner, DATAGRAM, bytes, &seen))
		return XDP_PASS;
	read_tcp(tcp, &seen);
	if (seen.ends || !between_pods(c, &seen))
		return XDP_PASS;
	copy(macs, data, 3);
	peer[0] = ip->saddr;
	flow = live(c, &seen, xdp->ingress_ifindex, macs, now);
	if (!flow || flow->kind != DELIVER || !same(flow->peer, peer, 4))
		return XDP_PASS;
	to = flow->to;
	if (xdp_check_mtu(xdp, to, &bytes, 0, 0))
		return XDP_PASS;
	if (tcp_sum(inner, tcp, end, length - DATAGRAM - 20) != 0xffff)
		return XDP_PASS;
	/* A driver may have no room for it. */
	if (xdp_adjust_meta(xdp, -(int)sizeof(*mark)))
		return XDP_PASS;
	if (xdp_adjust_head(xdp, DATAGRAM - ETH)) {
		xdp_adjust_meta(xdp, sizeof(*mark));
		return XDP_PASS;
	}
	data = (void *)(unsigned long)xdp->data;
	end = (void *)(unsigned long)xdp->data_end;
	mark = (void *)(unsigned long)xdp->data_meta;
	if (data + ETH + 20 > end || (void *)(mark + 1) > data)
		return XDP_DROP;
	copy(mark->key, &c->key, 2);
	mark->to = to;
	hops(data + ETH, flow->hops, 0);
	copy(data, flow->header, 3);
	((struct ethhdr *)data)->h_proto = htons(ETH_P_IP);
	count(EARLY);
	return XDP_PASS;
}

/* Ingress of the uplink, in front of all others. It writes to no packet: a program that does is given a copy of one that
 * somebody listens to, and the copy has no mark. What is marked is to the pod's hardware address, so that the host takes it from
 * nobody if this program is not here. */
SEC("classifier")
int uplink_early_in(struct __sk_buff *skb)
{
	__u64 now = now_coarse();
	__u32 zero = 0;
	const struct config *c = map_lookup(&config, &zero);
	__u64 *ran = map_lookup(&here, &zero);
	const struct mark *mark;

	if (!c || !ran)
		return NEXT;
	/* Once a tick: other processors read it. */
	if (*ran != now)
		*ran = now;
	mark = meta_of(skb);
	if ((void *)(mark + 1) > data_of(skb) || !same(mark->key, (const __u32 *)&c->key, 2) || !c->key)
		return NEXT;
	change_type(skb, 0);
	count(FAST_IN);
	return redirect_peer(mark->to, 0);
}

#endif

/* The packets of tunnels: where the inner one begins, and what of the outer one matters.
 * SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
#ifndef OUTER_H
#define OUTER_H

#include "flows.h"

#define ECN 3
#define CE 3
#define ECT0 2

struct vxlan {
	__be32 flags;
	__be32 vni;
};

/* What is around the packet of a pod. */
struct outer {
	__be32 peer[4];     /* its sender, one word in IPv4 */
	__u32 frame;        /* bytes before the inner frame; 0 with udp, where there is none and the outer one's is taken */
	__u8 ecn;
	__u8 summed;        /* it has a checksum */
	__u8 here;          /* it is to this node's end of the tunnel */
	__u8 labelled;      /* with a flow label, which might be another one for the next packet */
};

/* The outer ECN bits of a packet with these (RFC 6040, 4.1, as the kernel's INET_ECN_encapsulate). */
INLINE __u8 outer_ecn(__u8 tos)
{
	return (tos & ECN) == CE ? ECT0 : tos & ECN;
}

/* Whether a header of VXLAN is one of a network, without any extension, and a packet of this kind follows. */
INLINE int carries(const struct vxlan *vxlan, __u32 vni, __u16 proto)
{
	return vxlan->flags == __builtin_bswap32(0x08000000) && vxlan->vni == __builtin_bswap32(vni << 8) &&
	       ((struct ethhdr *)(vxlan + 1))->h_proto == htons(proto);
}

/* The UDP header behind an IP header of so many bytes, if so many more bytes follow it. */
INLINE struct udphdr *datagram(struct __sk_buff *skb, __u32 ip, __u32 more)
{
	struct udphdr *udp = data_of(skb) + ETH + ip;

	return (void *)(udp + 1) + more > end_of(skb) ? 0 : udp;
}

/* Whether this is a datagram in one piece, in a frame of so many bytes, without options. */
INLINE int is_whole(const struct iphdr *ip, const struct udphdr *udp, __u32 frame)
{
	if (*(__u8 *)ip != 0x45 || ip->protocol != IPPROTO_UDP || ip->frag_off & FRAGMENT)
		return 0;
	if (header_sum((const void *)ip) != 0xffff)
		return 0;
	return (__u32)ntohs(ip->tot_len) + ETH == frame && ntohs(udp->len) + 20 == ntohs(ip->tot_len);
}

INLINE int is_outer4(struct __sk_buff *skb, const struct config *c, struct outer *outer)
{
	struct udphdr *udp = datagram(skb, 20, 0);
	struct iphdr *ip;

	if (!c->format || !udp || ((struct iphdr *)udp - 1)->protocol != IPPROTO_UDP || udp->dest != c->port)
		return 0;
	/* Only now: of other packets no more than their own headers is needed. */
	if (!headers(skb, c->format == UDP ? DATAGRAM : OUTER + ETH))
		return 0;
	udp = datagram(skb, 20, 8 + ETH);
	if (!udp)
		return 0;
	ip = (struct iphdr *)udp - 1;
	if (!is_whole(ip, udp, skb->len))
		return 0;
	if (c->format == VXLAN) {
		if (!carries((void *)(udp + 1), c->vni, ETH_P_IP))
			return 0;
		outer->frame = OUTER;
	}
	outer->ecn = ip->tos & ECN;
	outer->peer[0] = ip->saddr;
	outer->summed = udp->check != 0;
	outer->here = ip->daddr == c->local;
	return 1;
}

/* The same with IPv6 outside, of a device that takes no packet without a checksum, as none of ours does. */
INLINE int is_outer6(struct __sk_buff *skb, const struct config *c, struct outer *outer)
{
	struct udphdr *udp = datagram(skb, 40, 0);
	struct ipv6hdr *ip;

	if (!c->tunnel6 || !udp || ((struct ipv6hdr *)udp - 1)->nexthdr != IPPROTO_UDP || udp->dest != c->port6)
		return 0;
	if (!headers(skb, OUTER6 + ETH + 20))
		return 0;
	udp = datagram(skb, 40, 8 + ETH);
	if (!udp)
		return 0;
	ip = (struct ipv6hdr *)udp - 1;
	if (*(__u8 *)ip >> 4 != 6 || ip->nexthdr != IPPROTO_UDP || !udp->check)
		return 0;
	if (ntohs(ip->payload_len) + ETH + 40 != skb->len || udp->len != ip->payload_len)
		return 0;
	if (!carries((void *)(udp + 1), c->vni6, ETH_P_IPV6))
		return 0;
	outer->frame = OUTER6;
	outer->ecn = ntohs(*(__be16 *)ip) >> 4 & ECN;
	outer->labelled = (*(__be32 *)ip & LABEL) != 0;
	copy(outer->peer, &ip->saddr, 4);
	outer->summed = 1;
	outer->here = same((const __u32 *)&ip->daddr, c->local6, 4);
	return 1;
}

/* Whether a packet is one of our tunnel with a pod's packet in it; reads what is around that, and else leaves it empty. The
 * outer packet is checked as
 * the kernel's own path does, but what needs more than that goes there. */
INLINE int is_outer(struct __sk_buff *skb, const struct config *c, struct outer *outer)
{
	__builtin_memset(outer, 0, sizeof(*outer));
	return skb->protocol == htons(ETH_P_IPV6) ? is_outer6(skb, c, outer) : is_outer4(skb, c, outer);
}

/* Reads the packet inside. With udp a train of datagrams is as many packets; of its flow we learn from the first. */
INLINE int read_inner(struct __sk_buff *skb, const struct config *c, struct seen *seen)
{
	if (skb->protocol == htons(ETH_P_IPV6))
		return read6(skb, OUTER6 + ETH, seen);
	if (c->format == UDP)
		return read_of(skb, DATAGRAM, skb->gso_size != 0, seen);
	return read(skb, OUTER + ETH, seen);
}

#endif

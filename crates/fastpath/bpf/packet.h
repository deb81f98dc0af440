/* Reading packets: which may be fast, and of which flow they are. SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
#ifndef PACKET_H
#define PACKET_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include "kernel.h"
#include "layout.h"

#define ETH ((__u32)sizeof(struct ethhdr))
#define OUTER (ETH + 20 + 8 + 8) /* bytes before the inner Ethernet header */
#define htons(x) ((__be16)__builtin_bswap16(x))
#define ntohs(x) ((__u16)__builtin_bswap16(x))
#define FRAGMENT htons(0x3fff) /* offset and "more follow" (RFC 791, 3.1) */

/* An IPv4 packet that may be fast, and where its header is. */
struct seen {
	struct tuple tuple;
	__u32 at;           /* bytes before the IP header */
	__u32 headers;      /* bytes of IP and TCP or UDP header */
	__u8 tos;
	__u8 ttl;
	__u8 unsummed;      /* UDP without a checksum */
	__u8 ends;          /* SYN, FIN or RST: the connection is about to change */
};

/* Makes the first bytes readable in one piece, if there are that many. */
INLINE int reach(struct __sk_buff *skb, __u32 bytes)
{
	void *data = data_of(skb);

	if (data + bytes <= end_of(skb))
		return 1;
	if (skb->len < bytes || pull(skb, bytes))
		return 0;
	data = data_of(skb);
	return data + bytes <= end_of(skb);
}

/* Makes the headers of the packet whose IP header is `at` bytes in readable, as far as they go. */
INLINE int headers(struct __sk_buff *skb, __u32 at)
{
	return reach(skb, at + 40) || reach(skb, at + 28);
}

/* Copies of words: byte by byte, which is what memcpy becomes where alignment is not known, costs as much as the
 * rest. */
INLINE void copy(void *to, const void *from, int words)
{
#pragma unroll
	for (int i = 0; i < words; i++)
		((__u32 *)to)[i] = ((const __u32 *)from)[i];
}

/* Reads the packet whose IP header is `at` bytes in. 0 for all that never is fast: other protocols, options,
 * fragments, a TTL that ends here, lengths that do not agree, group addresses. */
INLINE int read(struct __sk_buff *skb, __u32 at, struct seen *seen)
{
	void *data = data_of(skb), *end = end_of(skb);
	struct iphdr *ip = data + at;

	if ((void *)(ip + 1) + 8 > end)
		return 0;
	if (*(__u8 *)ip != 0x45 || ip->frag_off & FRAGMENT || ip->ttl <= 1)
		return 0;
	if ((__u32)ntohs(ip->tot_len) + at != skb->len)
		return 0;
	if (*(__u8 *)&ip->daddr >= 224 || *(__u8 *)&ip->saddr >= 224)
		return 0;
	__builtin_memset(seen, 0, sizeof(*seen));
	seen->at = at;
	seen->tos = ip->tos;
	seen->ttl = ip->ttl;
	seen->tuple.src = ip->saddr;
	seen->tuple.dst = ip->daddr;
	seen->tuple.proto = ip->protocol;
	if (ip->protocol == IPPROTO_TCP) {
		struct tcphdr *tcp = (void *)(ip + 1);

		if ((void *)(tcp + 1) > end)
			return 0;
		seen->tuple.sport = tcp->source;
		seen->tuple.dport = tcp->dest;
		seen->headers = 20 + tcp->doff * 4;
		seen->ends = tcp->syn | tcp->fin | tcp->rst;
		return 1;
	}
	if (ip->protocol == IPPROTO_UDP) {
		struct udphdr *udp = (void *)(ip + 1);

		seen->tuple.sport = udp->source;
		seen->tuple.dport = udp->dest;
		seen->headers = 28;
		seen->unsummed = !udp->check;
		/* Trains of datagrams are cut by more than lengths: the kernel's own path knows how. */
		return !skb->gso_size;
	}
	return 0;
}

/* Bytes of the longest IP packet this becomes on a wire. */
INLINE __u32 longest(struct __sk_buff *skb, const struct seen *seen)
{
	return skb->gso_size ? skb->gso_size + seen->headers : skb->len - seen->at;
}

INLINE int fits(struct __sk_buff *skb, __u32 index, __u32 bytes)
{
	return check_mtu(skb, index, &bytes, 0, 0) == 0;
}

/* The sum of an IPv4 header of 20 bytes as it has to be where its checksum field holds what it says: 0xffff. */
INLINE __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

INLINE __u16 header_sum(const __u16 *ip)
{
	__u32 sum = 0;

#pragma unroll
	for (int i = 0; i < 10; i++)
		sum += ip[i];
	return fold(sum);
}

/* One hop less, checksum with it, to the bit as the kernel's ip_decrease_ttl (RFC 1624, equation 3). */
INLINE void hop(struct iphdr *ip)
{
	__u32 sum = ip->check + htons(0x0100);

	ip->check = sum + (sum >= 0xffff);
	ip->ttl--;
}

#endif

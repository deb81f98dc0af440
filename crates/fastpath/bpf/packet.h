/* Reading packets: which may be fast, and of which flow they are. SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
#ifndef PACKET_H
#define PACKET_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include "kernel.h"
#include "layout.h"

#define NEXT (-1) /* TCX_NEXT: on over the slow path */
#define ETH ((__u32)sizeof(struct ethhdr))
#define OUTER (ETH + 20 + 8 + 8) /* bytes before the inner Ethernet header of VXLAN */
#define OUTER6 (ETH + 40 + 8 + 8) /* the same with IPv6 outside */
#define DATAGRAM (ETH + 20 + 8) /* bytes before the inner packet of udp */
#define htons(x) ((__be16)__builtin_bswap16(x))
#define ntohs(x) ((__u16)__builtin_bswap16(x))
#define LABEL __builtin_bswap32(0xfffff) /* in the first word of IPv6 (RFC 8200, 3) */
#define FRAGMENT htons(0x3fff) /* offset and "more follow" (RFC 791, 3.1) */

/* What is read of the kernel's own structures; the loader knows where it is there. */
struct sk_buff {
	unsigned long _skb_refdst;
	unsigned long _nfct;
	__u8 ip_summed : 2;
	__u8 encapsulation : 1;
	__u16 network_header;
	__u16 csum_start;
	__u16 csum_offset;
} __attribute__((preserve_access_index));

struct dst_entry {
	unsigned long _metrics;
} __attribute__((preserve_access_index));

struct rtable {
	struct dst_entry dst;
	__u32 rt_mtu_locked : 1;
	__u32 rt_pmtu : 31;
} __attribute__((preserve_access_index));

struct ipv6_devconf {
	__s32 mtu6;
} __attribute__((preserve_access_index));

struct inet6_dev {
	struct ipv6_devconf cnf;
} __attribute__((preserve_access_index));

struct rt6_info {
	struct dst_entry dst;
	struct inet6_dev *rt6i_idev;
} __attribute__((preserve_access_index));

struct dst_metrics {
	__u32 metrics[2];
} __attribute__((preserve_access_index));

static struct sk_buff *(*kernel_skb)(struct __sk_buff *skb) = (void *)KFUNC_KERNEL_SKB;
static void *(*kernel_object)(const void *at, __u32 type) = (void *)KFUNC_KERNEL_OBJECT;

/* The kernel's number of a type (enum bpf_core_relo_kind). */
#define kernel_type(type) ((__u32)__builtin_btf_type_id(*(type *)0, 1))

/* Whether it has such a type at all. */
#define kernel_has(type) __builtin_preserve_type_info(*(type *)0, 0)

/* A field of some bits, which lies somewhere in an integer of the given type: its place and two shifts. */
#define field(type, of, name)                                                                              \
	((__u64)*(type *)((void *)(of) + __builtin_preserve_field_info((of)->name, 0))                     \
		 << __builtin_preserve_field_info((of)->name, 4) >>                                        \
	 __builtin_preserve_field_info((of)->name, 5))

#define CHECKSUM_PARTIAL 3 /* include/linux/skbuff.h */
#define RTAX_MTU 2 /* include/uapi/linux/rtnetlink.h */

/* Whether the checksum is left to whoever sends the packet on. */
INLINE int unfinished(struct __sk_buff *skb)
{
	return field(__u8, kernel_skb(skb), ip_summed) == CHECKSUM_PARTIAL;
}

/* Whether it is a tunnel's packet already, which cannot be put into another one here. */
INLINE int nested(struct __sk_buff *skb)
{
	return field(__u8, kernel_skb(skb), encapsulation);
}

/* A packet that may be fast, and where its header is. */
struct seen {
	struct tuple tuple;
	struct tuple6 tuple6; /* instead, of IPv6 */
	__u32 at;           /* bytes before the IP header */
	__u32 headers;      /* bytes of IP and TCP or UDP header */
	__u8 tos;
	__u8 ttl;
	__u8 unsummed;      /* UDP without a checksum */
	__u8 ends;          /* SYN, FIN or RST: the connection is about to change */
	__u16 check;        /* its checksum field, of IPv6 */
	__be32 label;       /* flow label of IPv6 */
	__u8 six;
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

/* Reads an IPv4 header of a packet of so many bytes, which is `at` bytes in. 0 for all that never is fast: options,
 * fragments, a TTL that ends here, lengths that do not agree, group addresses. */
INLINE int read_ip(const struct iphdr *ip, __u32 at, __u32 bytes, struct seen *seen)
{
	if (*(__u8 *)ip != 0x45 || ip->frag_off & FRAGMENT || ip->ttl <= 1)
		return 0;
	if (ntohs(ip->tot_len) != bytes)
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
	return 1;
}

INLINE void read_tcp(const struct tcphdr *tcp, struct seen *seen)
{
	seen->tuple.sport = tcp->source;
	seen->tuple.dport = tcp->dest;
	seen->headers = 20 + tcp->doff * 4;
	seen->ends = tcp->syn | tcp->fin | tcp->rst;
}

/* Reads the packet whose IP header is `at` bytes in, or the first one of a train of datagrams with a packet in each. 0 for
 * other protocols, too. */
INLINE int read_of(struct __sk_buff *skb, __u32 at, int train, struct seen *seen)
{
	void *data = data_of(skb), *end = end_of(skb);
	struct iphdr *ip = data + at;

	if ((void *)(ip + 1) + 8 > end)
		return 0;
	if (!read_ip(ip, at, train ? skb->gso_size : skb->len - at, seen))
		return 0;
	if (ip->protocol == IPPROTO_TCP) {
		struct tcphdr *tcp = (void *)(ip + 1);

		if ((void *)(tcp + 1) > end)
			return 0;
		read_tcp(tcp, seen);
		return 1;
	}
	if (ip->protocol == IPPROTO_UDP) {
		struct udphdr *udp = (void *)(ip + 1);

		seen->tuple.sport = udp->source;
		seen->tuple.dport = udp->dest;
		seen->headers = 28;
		seen->unsummed = !udp->check;
		/* Trains of datagrams are cut by more than lengths: the kernel's own path knows how. */
		return train || !skb->gso_size;
	}
	return 0;
}

INLINE int read(struct __sk_buff *skb, __u32 at, struct seen *seen)
{
	return read_of(skb, at, 0, seen);
}

/* The same of IPv6: no extension headers, so no fragments and options either, nor jumbograms. */
INLINE int read6(struct __sk_buff *skb, __u32 at, struct seen *seen)
{
	void *data = data_of(skb), *end = end_of(skb);
	struct ipv6hdr *ip = data + at;

	if ((void *)(ip + 1) + 8 > end)
		return 0;
	if (*(__u8 *)ip >> 4 != 6 || ip->hop_limit <= 1)
		return 0;
	if (ntohs(ip->payload_len) + at + 40 != skb->len)
		return 0;
	if (*(__u8 *)&ip->daddr == 0xff || *(__u8 *)&ip->saddr == 0xff)
		return 0;
	__builtin_memset(seen, 0, sizeof(*seen));
	seen->six = 1;
	seen->at = at;
	seen->tos = ntohs(*(__be16 *)ip) >> 4;
	seen->ttl = ip->hop_limit;
	seen->label = *(__be32 *)ip & LABEL;
	copy(seen->tuple6.src, &ip->saddr, 4);
	copy(seen->tuple6.dst, &ip->daddr, 4);
	seen->tuple6.proto = ip->nexthdr;
	if (ip->nexthdr == IPPROTO_TCP) {
		struct tcphdr *tcp = (void *)(ip + 1);

		if ((void *)(tcp + 1) > end)
			return 0;
		seen->tuple6.sport = tcp->source;
		seen->tuple6.dport = tcp->dest;
		seen->check = tcp->check;
		seen->headers = 40 + tcp->doff * 4;
		seen->ends = tcp->syn | tcp->fin | tcp->rst;
		return 1;
	}
	if (ip->nexthdr == IPPROTO_UDP) {
		struct udphdr *udp = (void *)(ip + 1);

		seen->tuple6.sport = udp->source;
		seen->tuple6.dport = udp->dest;
		seen->check = udp->check;
		seen->unsummed = !udp->check;
		seen->headers = 48;
		return !skb->gso_size;
	}
	return 0;
}

/* Reads a packet as it is, behind an Ethernet header. */
INLINE int read_plain(struct __sk_buff *skb, struct seen *seen)
{
	return skb->protocol == htons(ETH_P_IPV6) ? read6(skb, ETH, seen) : read(skb, ETH, seen);
}

/* Whether it may be a packet for us, and makes its headers readable. In one place for both families, or the compiler
 * makes one read of the context of two, by a pointer the verifier does not know. */
INLINE int is_ip(struct __sk_buff *skb)
{
	__u32 at = ETH;

	if (skb->vlan_present)
		return 0;
	if (skb->protocol == htons(ETH_P_IPV6))
		at += 20;
	else if (skb->protocol != htons(ETH_P_IP))
		return 0;
	return headers(skb, at);
}

/* Whether what is left to whoever sends the packet on is the checksum that was read, and not another one. */
INLINE int own_unfinished(struct __sk_buff *skb, const struct seen *seen)
{
	struct sk_buff *kernel = kernel_skb(skb);
	__u8 proto = seen->six ? seen->tuple6.proto : seen->tuple.proto;
	__u16 from_network = kernel->csum_start - kernel->network_header;

	return unfinished(skb) && from_network == seen->at - ETH + (seen->six ? 40 : 20) &&
	       kernel->csum_offset == (proto == IPPROTO_TCP ? 16 : 6);
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

/* So many hops less: the backend udp takes one in the kernel and one in the tunnel. */
INLINE void hops(void *packet, __u8 number, int six)
{
	struct iphdr *ip = packet;

	if (six) {
		((struct ipv6hdr *)packet)->hop_limit -= number;
		return;
	}
	if (number)
		hop(ip);
	if (number > 1)
		hop(ip);
}

#endif

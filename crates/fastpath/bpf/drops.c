/* Which packets the kernel drops, and why: one record for each that belongs to a namespace we were told of (decision
 * 0224). SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */

#include "kernel.h"

static long (*get_stack)(void *ctx, void *to, __u32 bytes, __u64 flags) = (void *)BPF_FUNC_get_stack;
static __u64 (*now)(void) = (void *)BPF_FUNC_ktime_get_ns;
static void *(*reserve)(void *ring, __u64 bytes, __u64 flags) = (void *)BPF_FUNC_ringbuf_reserve;
static void (*submit)(void *record, __u64 flags) = (void *)BPF_FUNC_ringbuf_submit;

#define HEAD 128
#define FRAMES 12
#define SECOND 1000000000ull

/* `crates/fastpath/src/drops.rs` reads it. */
struct record {
	__u64 at;           /* ns of CLOCK_MONOTONIC */
	__u64 location;     /* the function that gave the packet up */
	__u64 stack[FRAMES];
	__u32 reason;
	__u32 netns;        /* inode number */
	__u32 device;       /* interface index, 0 if it had none */
	__u32 came_by;      /* interface index, 0 if it came from here */
	__u32 bytes;
	__u32 kept;         /* bytes of `head` */
	__u32 protocol;     /* EtherType */
	__u32 frames;       /* entries of `stack` */
	char name[16];      /* of the device */
	__u8 head[HEAD];    /* from the network header on */
};
_Static_assert(sizeof(struct record) == 288, "layout");

struct ns_common {
	unsigned int inum;
} __attribute__((preserve_access_index));

struct net {
	struct ns_common ns;
} __attribute__((preserve_access_index));

typedef struct {
	struct net *net;
} __attribute__((preserve_access_index)) possible_net_t;

struct net_device {
	char name[16];
	int ifindex;
	possible_net_t nd_net;
} __attribute__((preserve_access_index));

struct dst_entry {
	struct net_device *dev;
} __attribute__((preserve_access_index));

struct sock_common {
	possible_net_t skc_net;
} __attribute__((preserve_access_index));

struct sock {
	struct sock_common __sk_common;
} __attribute__((preserve_access_index));

struct sk_buff {
	struct net_device *dev;
	struct sock *sk;
	unsigned long _skb_refdst;
	unsigned int len;
	int skb_iif;
	__be16 protocol;
	__u16 network_header;
	unsigned int tail;
	unsigned char *head;
	unsigned char *data;
} __attribute__((preserve_access_index));

#define READ(to, from) read_kernel(&(to), sizeof(to), &(from))

struct {
	UINT(type, BPF_MAP_TYPE_RINGBUF);
	UINT(max_entries, 1 << 20);
} ring SEC(".maps");

/* Namespaces that are looked at, by inode number. */
struct {
	UINT(type, BPF_MAP_TYPE_HASH);
	UINT(max_entries, 4096);
	TYPE(key, __u32);
	TYPE(value, __u8);
} namespaces SEC(".maps");

struct budget {
	__u64 since;
	__u64 used;
};

struct {
	UINT(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	UINT(max_entries, 1);
	TYPE(key, __u32);
	TYPE(value, struct budget);
} budgets SEC(".maps");

/* Packets that were counted and not recorded. */
struct {
	UINT(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	UINT(max_entries, 1);
	TYPE(key, __u32);
	TYPE(value, __u64);
} passed_over SEC(".maps");

#define PER_SECOND 2000

INLINE void pass_over(void)
{
	__u32 zero = 0;
	__u64 *n = map_lookup(&passed_over, &zero);

	if (n)
		(*n)++;
}

INLINE int within_budget(__u64 at)
{
	__u32 zero = 0;
	struct budget *b = map_lookup(&budgets, &zero);

	if (!b)
		return 0;
	if (at - b->since >= SECOND) {
		b->since = at;
		b->used = 0;
	}
	return b->used++ < PER_SECOND;
}

SEC("raw_tracepoint/kfree_skb")
int dropped(struct bpf_raw_tracepoint_args *ctx)
{
	struct sk_buff *skb = (struct sk_buff *)ctx->args[0];
	struct net_device *dev = 0;
	struct net *net = 0;
	struct sock *sk = 0;
	struct record *r;
	unsigned char *head, *data, *start;
	unsigned long dst = 0;
	__u32 netns = 0, tail, kept;
	__u16 network;
	__be16 protocol;
	__u64 at;
	long frames;

	READ(dev, skb->dev);
	if (!dev) {
		/* On its way out before a device was chosen: that of its route. The lowest bit is no part of it. */
		READ(dst, skb->_skb_refdst);
		dst &= ~1ul;
		if (dst)
			READ(dev, ((struct dst_entry *)dst)->dev);
	}
	if (dev) {
		READ(net, dev->nd_net.net);
	} else {
		READ(sk, skb->sk);
		if (sk)
			READ(net, sk->__sk_common.skc_net.net);
	}
	if (!net)
		return 0;
	READ(netns, net->ns.inum);
	if (!map_lookup(&namespaces, &netns))
		return 0;
	at = now();
	if (!within_budget(at)) {
		pass_over();
		return 0;
	}
	r = reserve(&ring, sizeof(*r), 0);
	if (!r) {
		pass_over();
		return 0;
	}
	r->at = at;
	r->location = ctx->args[1];
	r->reason = (__u32)ctx->args[2];
	r->netns = netns;
	r->device = 0;
	__builtin_memset(r->name, 0, sizeof(r->name));
	if (dev) {
		READ(r->device, dev->ifindex);
		READ(r->name, dev->name);
	}
	READ(r->came_by, skb->skb_iif);
	READ(r->bytes, skb->len);
	READ(protocol, skb->protocol);
	r->protocol = __builtin_bswap16(protocol);
	READ(head, skb->head);
	READ(data, skb->data);
	READ(tail, skb->tail);
	READ(network, skb->network_header);
	/* Without a network header yet, what is there begins at `data`. */
	start = network && network < tail ? head + network : data;
	kept = (__u32)(head + tail - start);
	if (kept > HEAD)
		kept = HEAD;
	r->kept = read_kernel(r->head, kept, start) ? 0 : kept;
	frames = get_stack(ctx, r->stack, sizeof(r->stack), 0);
	r->frames = frames > 0 ? (__u32)frames / 8 : 0;
	submit(r, 0);
	return 0;
}

char licence[] SEC("license") = "GPL";

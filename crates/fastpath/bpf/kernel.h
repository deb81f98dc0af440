/* The kernel's interface to programs, as far as we use it: helper numbers of <linux/bpf.h>, and functions that
 * the loader fills in. SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
#ifndef KERNEL_H
#define KERNEL_H

#include <linux/bpf.h>

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define UINT(name, value) int (*name)[value]
#define TYPE(name, value) value *name

static void *(*map_lookup)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*map_update)(void *map, const void *key, const void *value, __u64 flags) = (void *)BPF_FUNC_map_update_elem;
static long (*map_delete)(void *map, const void *key) = (void *)BPF_FUNC_map_delete_elem;
static __u64 (*now_coarse)(void) = (void *)BPF_FUNC_ktime_get_coarse_ns;
static __u32 (*cpu)(void) = (void *)BPF_FUNC_get_smp_processor_id;
static long (*pull)(struct __sk_buff *skb, __u32 bytes) = (void *)BPF_FUNC_skb_pull_data;
static long (*store)(struct __sk_buff *skb, __u32 at, const void *from, __u32 bytes, __u64 flags) = (void *)BPF_FUNC_skb_store_bytes;
static long (*adjust_room)(struct __sk_buff *skb, __s32 bytes, __u32 mode, __u64 flags) = (void *)BPF_FUNC_skb_adjust_room;
static long (*redirect)(__u32 index, __u64 flags) = (void *)BPF_FUNC_redirect;
static long (*redirect_peer)(__u32 index, __u64 flags) = (void *)BPF_FUNC_redirect_peer;
static long (*change_type)(struct __sk_buff *skb, __u32 type) = (void *)BPF_FUNC_skb_change_type;
static long (*csum_level)(struct __sk_buff *skb, __u64 what) = (void *)BPF_FUNC_csum_level;
static long (*check_mtu)(struct __sk_buff *skb, __u32 index, __u32 *bytes, __s32 more, __u64 flags) = (void *)BPF_FUNC_check_mtu;

/* The packet's bytes. Read anew at each use: the compiler would keep a copy in half a register, which is no pointer
 * to the verifier. */
#define data_of(skb) ((void *)(unsigned long)*(volatile __u32 *)&(skb)->data)
#define end_of(skb) ((void *)(unsigned long)*(volatile __u32 *)&(skb)->data_end)

/* Kernel functions have no numbers of their own: the loader looks for calls of these and writes the BTF ids of
 * bpf_skb_ct_lookup and bpf_ct_release there (net/netfilter/nf_conntrack_bpf.c). */
#define KFUNC_CT_LOOKUP 0x4c6f0001
#define KFUNC_CT_RELEASE 0x4c6f0002

struct ct_opts {
	__s32 netns;        /* -1: that of the packet */
	__s32 error;
	__u8 proto;
	__u8 dir;
	__u8 zero[2];
};

struct ip_ct_tcp {
	__u8 state;
} __attribute__((preserve_access_index));

union nf_conntrack_proto {
	struct ip_ct_tcp tcp;
} __attribute__((preserve_access_index));

struct nf_conn {
	unsigned long status;
	union nf_conntrack_proto proto;
} __attribute__((preserve_access_index));

static struct nf_conn *(*ct_lookup)(struct __sk_buff *skb, struct bpf_sock_tuple *tuple, __u32 tuple_size,
				    struct ct_opts *opts, __u32 opts_size) = (void *)KFUNC_CT_LOOKUP;
static void (*ct_release)(struct nf_conn *ct) = (void *)KFUNC_CT_RELEASE;

#endif

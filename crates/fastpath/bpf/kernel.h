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
static long (*read_kernel)(void *to, __u32 bytes, const void *from) = (void *)BPF_FUNC_probe_read_kernel;
static __s64 (*csum_update)(struct __sk_buff *skb, __wsum more) = (void *)BPF_FUNC_csum_update;
static long (*csum_level)(struct __sk_buff *skb, __u64 what) = (void *)BPF_FUNC_csum_level;
static long (*check_mtu)(struct __sk_buff *skb, __u32 index, __u32 *bytes, __s32 more, __u64 flags) = (void *)BPF_FUNC_check_mtu;
static long (*xdp_adjust_head)(struct xdp_md *xdp, int bytes) = (void *)BPF_FUNC_xdp_adjust_head;
static long (*xdp_adjust_meta)(struct xdp_md *xdp, int bytes) = (void *)BPF_FUNC_xdp_adjust_meta;
static __u64 (*xdp_length)(struct xdp_md *xdp) = (void *)BPF_FUNC_xdp_get_buff_len;
static long (*xdp_check_mtu)(struct xdp_md *xdp, __u32 index, __u32 *bytes, __s32 more, __u64 flags) = (void *)BPF_FUNC_check_mtu;
static __s64 (*csum_diff)(const void *from, __u32 less, const void *to, __u32 more, __wsum start) = (void *)BPF_FUNC_csum_diff;

/* The packet's bytes. Read anew at each use: the compiler would keep a copy in half a register, which is no pointer
 * to the verifier. */
#define data_of(skb) ((void *)(unsigned long)*(volatile __u32 *)&(skb)->data)
#define end_of(skb) ((void *)(unsigned long)*(volatile __u32 *)&(skb)->data_end)
#define meta_of(skb) ((void *)(unsigned long)*(volatile __u32 *)&(skb)->data_meta)

/* Kernel functions have no numbers of their own: the loader looks for calls of these and writes the BTF ids of
 * bpf_cast_to_kern_ctx and bpf_rdonly_cast (kernel/bpf/helpers.c) there. */
#define KFUNC_KERNEL_SKB 0x4c6f0001
#define KFUNC_KERNEL_OBJECT 0x4c6f0002

#endif

// SPDX-License-Identifier: GPL-2.0-only
//
// The rung "kernel": no call on a usbfs node of a managed device gets through without a live lease, whatever has become
// of the processes that granted it. It looks at every open and every ioctl (each transfer is at least one), so a handle
// that was opened in time is worth nothing after the deadline, nor in the hands of another process.
//
// What it cannot do: take back what is queued already, or a memory mapping. That takes an unbind.
// clang-format off: libbpf's headers need the types of this one
#include "plugin/bpf/fence_abi.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
// clang-format on

#define S_IFMT 00170000
#define S_IFCHR 0020000
#define EPERM 1
#define ENODEV 19
#define NS_PER_TICK 10000000ULL  // USER_HZ is 100 for every process that reads /proc
#define REPORT_EVERY_NS 100000000ULL

char LICENSE[] SEC("license") = "GPL";

// The few fields that are needed, by name: libbpf finds where this kernel has them.
struct inode {
  unsigned short i_mode;
  __u32 i_rdev;
} __attribute__((preserve_access_index));

struct file {
  struct inode* f_inode;
} __attribute__((preserve_access_index));

struct task_struct {
  struct task_struct* group_leader;
  __u64 start_boottime;
} __attribute__((preserve_access_index));

struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, USBLEASE_FENCE_DEVICES_MAX);
  __type(key, __u32);
  __type(value, struct usblease_fence_entry);
} entries SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, USBLEASE_FENCE_DEVICES_MAX);
  __type(key, __u32);
  __type(value, struct usblease_fence_counts);
} counts SEC(".maps");

// Devices that were looked at and are not managed; of use only with refuse_unknown.
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, USBLEASE_FENCE_DEVICES_MAX);
  __type(key, __u32);
  __type(value, __u8);
} free_devices SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, struct usblease_fence_settings);
} settings SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_RINGBUF);
  __uint(max_entries, USBLEASE_FENCE_REFUSALS_BYTES);
} refusals SEC(".maps");

// What an entry says, read in one piece.
struct right {
  __u64 token;
  __u64 deadline_ns;
  __u64 cgroup;
  __u64 start_ticks;
  __u32 cgroup_level;
  __u32 tgid;
  __u32 device;
};

static __always_inline void read_right(struct usblease_fence_entry* entry, struct right* right) {
  bpf_spin_lock(&entry->lock);
  right->token = entry->token;
  right->deadline_ns = entry->deadline_ns;
  right->cgroup = entry->cgroup;
  right->start_ticks = entry->start_ticks;
  right->cgroup_level = entry->cgroup_level;
  right->tgid = entry->tgid;
  right->device = entry->device;
  bpf_spin_unlock(&entry->lock);
}

static __always_inline int is_holder(const struct right* right) {
  if (!right->cgroup && !right->tgid) return 0;
  if (right->cgroup && bpf_get_current_ancestor_cgroup_id((int)right->cgroup_level) != right->cgroup) return 0;
  if (!right->tgid) return 1;
  if (bpf_get_current_pid_tgid() >> 32 != right->tgid) return 0;
  // A process number is used again; together with the start of the process it is not.
  struct task_struct* task = bpf_get_current_task_btf();
  return task->group_leader->start_boottime / NS_PER_TICK == right->start_ticks;
}

static __always_inline enum usblease_fence_reason judge(const struct right* right, __u32 device, __u64 now_ns) {
  // The entry was taken away just now, and its memory serves another device.
  if (right->device != device || !right->deadline_ns) return USBLEASE_FENCE_NO_LEASE;
  // Who has no business here at all must not learn whether there is a lease.
  if (!is_holder(right)) return USBLEASE_FENCE_NOT_HOLDER;
  return now_ns < right->deadline_ns ? USBLEASE_FENCE_ALLOWED : USBLEASE_FENCE_EXPIRED;
}

static __always_inline void report(const struct usblease_fence_refusal* what) {
  struct usblease_fence_refusal* record = bpf_ringbuf_reserve(&refusals, sizeof(*record), 0);
  if (!record) return;  // nobody reads, or too slowly; the counts say how many there were
  *record = *what;
  record->tgid = (__u32)(bpf_get_current_pid_tgid() >> 32);
  record->uid = (__u32)bpf_get_current_uid_gid();
  bpf_get_current_comm(record->comm, sizeof(record->comm));
  bpf_ringbuf_submit(record, 0);
}

static __always_inline void count(__u32 device, __u64 token, enum usblease_fence_reason reason, __u32 ioctl,
                                  __u64 now_ns) {
  struct usblease_fence_counts* seen = bpf_map_lookup_elem(&counts, &device);
  if (!seen || (__u32)reason >= sizeof(seen->reported_ns) / sizeof(seen->reported_ns[0])) return;
  if (reason == USBLEASE_FENCE_ALLOWED) {
    __sync_fetch_and_add(&seen->allowed, 1);
    seen->last_allowed_ns = now_ns;
    return;
  }
  __sync_fetch_and_add(&seen->refused, 1);
  seen->last_refused_ns = now_ns;
  if (now_ns - seen->reported_ns[reason] < REPORT_EVERY_NS) return;
  seen->reported_ns[reason] = now_ns;
  const struct usblease_fence_refusal what = {
      .at_ns = now_ns, .token = token, .device = device, .reason = reason, .ioctl = ioctl};
  report(&what);
}

static __always_inline int unknown_device(__u32 device) {
  const __u32 only = 0;
  const struct usblease_fence_settings* now = bpf_map_lookup_elem(&settings, &only);
  if (!now || !now->refuse_unknown || bpf_map_lookup_elem(&free_devices, &device)) return 0;
  return -EPERM;
}

// 0: let it through. What is wrong for the caller: an open is not permitted; a handle's device is gone for it, which
// libusb and QEMU take for an unplugging, as it is.
static __always_inline int check(struct file* file, __u32 ioctl) {
  struct inode* inode = file->f_inode;
  if ((inode->i_mode & S_IFMT) != S_IFCHR) return 0;
  __u32 device = inode->i_rdev;
  if (device >> 20 != USBLEASE_USB_DEVICE_MAJOR) return 0;

  struct usblease_fence_entry* entry = bpf_map_lookup_elem(&entries, &device);
  if (!entry) return unknown_device(device);
  const __u64 now_ns = bpf_ktime_get_boot_ns();
  struct right right;
  read_right(entry, &right);
  const enum usblease_fence_reason reason = judge(&right, device, now_ns);
  count(device, right.token, reason, ioctl, now_ns);
  if (reason == USBLEASE_FENCE_ALLOWED) return 0;
  return ioctl && reason != USBLEASE_FENCE_NOT_HOLDER ? -ENODEV : -EPERM;
}

SEC("lsm/file_open")
int BPF_PROG(fence_open, struct file* file, int earlier) { return earlier ? earlier : check(file, 0); }

SEC("lsm/file_ioctl")
int BPF_PROG(fence_ioctl, struct file* file, unsigned int command, unsigned long argument, int earlier) {
  return earlier ? earlier : check(file, command);
}

// A program of 32 bits. Kernels without this hook ask file_ioctl for both.
SEC("lsm/file_ioctl_compat")
int BPF_PROG(fence_ioctl_compat, struct file* file, unsigned int command, unsigned long argument, int earlier) {
  return earlier ? earlier : check(file, command);
}

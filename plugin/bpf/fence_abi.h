/*
 * What the fence in the kernel (fence.bpf.c) and its loader (kernel_fence.h) agree on: the values of its maps. Both
 * sides are compiled from this file, which is C for that reason.
 *
 * A change of any layout here needs another USBLEASE_FENCE_VERSION: it is the name of the directory in which programs
 * and maps are pinned.
 */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#define USBLEASE_FENCE_VERSION 1
#define USBLEASE_FENCE_DEVICES_MAX 1024
#define USBLEASE_FENCE_REFUSALS_BYTES (64 * 1024)

/* The major number of all usbfs nodes (Documentation/admin-guide/devices.txt). */
#define USBLEASE_USB_DEVICE_MAJOR 189

/*
 * One managed device, by its node's device number as the kernel holds it: major << 20 | minor. Written by one program
 * in user space with BPF_F_LOCK, which copies it in place under the lock: no allocation, so ending a lease cannot fail
 * for want of memory, and no reader sees half of it.
 */
struct usblease_fence_entry {
  struct bpf_spin_lock lock;
  __u32 device;
  __u64 token;       /* the last one that was armed; it stays when the lease has ended */
  __u64 deadline_ns; /* CLOCK_BOOTTIME; 0: no lease */
  /* Who holds it: whatever is not 0 must fit. All 0: nobody. */
  __u64 cgroup; /* id of a cgroup of the version 2 tree; who is below it counts too */
  __u64 start_ticks;
  __u32 cgroup_level; /* its depth: 0 is the root */
  __u32 tgid;         /* the process that started at start_ticks, see /proc/PID/stat */
};

/* What became of the calls on a device since it is managed. Written by the kernel's side only. */
struct usblease_fence_counts {
  __u64 allowed;
  __u64 refused;
  __u64 last_allowed_ns;
  __u64 last_refused_ns;
  __u64 reported_ns[5]; /* by reason: when a refusal was last put into the ring */
};

enum usblease_fence_reason {
  USBLEASE_FENCE_ALLOWED = 0,
  USBLEASE_FENCE_NO_LEASE = 1,
  USBLEASE_FENCE_EXPIRED = 2,
  USBLEASE_FENCE_NOT_HOLDER = 3,
  USBLEASE_FENCE_UNKNOWN_DEVICE = 4,
};

/* One record of the ring of refusals: at most ten a second for each device and reason. */
struct usblease_fence_refusal {
  __u64 at_ns;
  __u64 token;
  __u32 device;
  __u32 reason;
  __u32 tgid;
  __u32 uid;
  __u32 ioctl; /* 0: open */
  __u32 unused;
  char comm[16];
};

/* The one element of the map of settings. */
struct usblease_fence_settings {
  /* 1: a USB device that nobody has classified yet, neither as managed nor as free, is refused. 0: it is nobody's. */
  __u32 refuse_unknown;
};

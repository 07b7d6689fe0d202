/*
 * USB device leases
 *
 * What decides is a number in memory: the deadline that the lease page said
 * when it was read last.  The page is read again when that deadline has come,
 * and whenever inotify says that it changed; a timer makes sure that an idle
 * device is noticed too.  So the cost of a packet is one reading of the clock,
 * and no thread, socket or daemon has to be alive for the device to stop.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "qemu/queue.h"
#include "qemu/uuid.h"
#include "system/runstate.h"
#include "system/system.h"
#include "lease.h"
#include "lease-event.h"
#include "lease-page.h"

#include <sys/inotify.h>
#include <sys/timerfd.h>

/* The guest sockets of usbleased: DIR/guests/UUID/DEVICE */
#define GUEST_SOCKETS "/guests/"
#define UUID_CHARS 36
#define DEVICE_NAME_CHARS "abcdefghijklmnopqrstuvwxyz0123456789_-"
#define DEVICE_NAME_MAX 48

enum LeaseHold {
    LEASE_NONE, /* not taken yet, or given back */
    LEASE_HELD,
    LEASE_LOST, /* this token is over for good; a greater one may come */
};

struct USBLease {
    USBDevice *dev;
    const USBLeaseOps *ops;
    char *path;             /* of the page */
    int fd;                 /* of the page as it was opened; -1: none */
    int wd;                 /* its inotify watch; -1: none */
    int timerfd;
    QEMUBH *bh;
    VMChangeStateEntry *vm_change;
    QLIST_ENTRY(USBLease) next;

    enum LeaseHold hold;
    const char *reason;     /* LEASE_LOST: why */
    bool event_due;
    bool live_due;
    uint64_t token_over;    /* the greatest token that has ended here */
    /* LEASE_HELD: what the page said when it was read last */
    UsbLeaseSlot held;
};

static QLIST_HEAD(, USBLease) leases = QLIST_HEAD_INITIALIZER(leases);
static int inotify_fd = -1;

static uint64_t lease_clock(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_BOOTTIME, &ts);
    return ts.tv_sec * NANOSECONDS_PER_SECOND + ts.tv_nsec;
}

/* Fires at @deadline_ns, at once if that is over; 0: never. */
static void lease_arm(USBLease *lease, uint64_t deadline_ns)
{
    struct itimerspec its = {
        .it_value.tv_sec = deadline_ns / NANOSECONDS_PER_SECOND,
        .it_value.tv_nsec = deadline_ns % NANOSECONDS_PER_SECOND,
    };

    timerfd_settime(lease->timerfd, TFD_TIMER_ABSTIME, &its, NULL);
}

/* ---------------------------------------------------------------------- */
/* what a page says */

static const char *page_error_text(int ret)
{
    switch (ret) {
    case -ENOENT:
    case -ESTALE:
        return "page-gone";
    case -EBADMSG:
    case -EINVAL:
    case -ELOOP:
        return "page-bad";
    default:
        return "page-unreadable";
    }
}

/* NULL: @slot grants the device to this process at @now. */
static const char *why_not_granted(const UsbLeaseSlot *slot, uint64_t now)
{
    if (slot->state == USB_LEASE_REVOKED) {
        return "revoked";
    }
    if (slot->state != USB_LEASE_GRANTED) {
        return "not-granted";
    }
    if (!qemu_uuid_set || memcmp(slot->guest, qemu_uuid.data, 16)) {
        return "other-guest";
    }
    if (slot->pid && slot->pid != (uint32_t)getpid()) {
        return "other-process";
    }
    if (now >= slot->deadline_ns) {
        return "expired";
    }
    return NULL;
}

/* NULL: @slot is what is held, or a renewal of it. */
static const char *why_not_the_same(const UsbLeaseSlot *held,
                                    const UsbLeaseSlot *slot)
{
    if (slot->epoch != held->epoch || slot->generation < held->generation ||
        slot->token < held->token) {
        return "page-bad";
    }
    if (slot->token != held->token) {
        return "superseded";
    }
    if (memcmp(slot->start, held->start, sizeof(held->start))) {
        return "other-start";
    }
    return NULL;
}

/* Reads the page of a lease that is not held.  NULL: it could be taken. */
static const char *lease_look(USBLease *lease, UsbLeaseSlot *slot)
{
    int ret = lease->fd < 0 ? -ENOENT : usb_lease_read(lease->fd, slot);
    const char *why = ret < 0 ? page_error_text(ret) :
                      why_not_granted(slot, lease_clock());

    if (!why && slot->token <= lease->token_over) {
        why = lease->reason ? lease->reason : "over";
    }
    return why;
}

/* ---------------------------------------------------------------------- */
/* having a lease and losing it */

static void lease_lose(USBLease *lease, const char *reason)
{
    if (lease->hold == LEASE_HELD) {
        lease->token_over = lease->held.token;
    }
    lease->hold = LEASE_LOST;
    lease->reason = reason;
    lease->event_due = true;
    lease_arm(lease, 0);
    qemu_bh_schedule(lease->bh);
}

static void lease_retry(USBLease *lease);

static void lease_bh(void *opaque)
{
    USBLease *lease = opaque;
    g_autofree char *path = NULL;

    if (lease->live_due) {
        lease->live_due = false;
        if (usb_lease_ok(lease)) {
            lease->ops->live(lease->dev); /* may free the lease */
            return;
        }
    }
    if (lease->hold != LEASE_LOST) {
        return; /* a new one was taken meanwhile */
    }
    lease->ops->lost(lease->dev);
    if (lease->event_due) {
        lease->event_due = false;
        path = object_get_canonical_path(OBJECT(lease->dev));
        usb_lease_send_lost_event(DEVICE(lease->dev)->id, path, lease->path,
                                  lease->token_over, lease->reason);
    }
    lease_retry(lease);
}

/*
 * The cached deadline has come, or the page has changed: does what is held
 * still hold at @now?
 */
static bool lease_check(USBLease *lease, uint64_t now)
{
    UsbLeaseSlot slot;
    int ret = usb_lease_read(lease->fd, &slot);
    const char *why = ret < 0 ? page_error_text(ret) :
                      why_not_the_same(&lease->held, &slot);

    if (!why) {
        why = why_not_granted(&slot, now);
    }
    if (why) {
        lease_lose(lease, why);
        return false;
    }
    if (slot.deadline_ns != lease->held.deadline_ns) {
        lease_arm(lease, slot.deadline_ns);
    }
    lease->held = slot;
    return true;
}

bool usb_lease_ok(USBLease *lease)
{
    uint64_t now;

    if (!lease) {
        return true;
    }
    if (lease->hold != LEASE_HELD) {
        return false;
    }
    now = lease_clock();
    return likely(now < lease->held.deadline_ns) || lease_check(lease, now);
}

void usb_lease_turn_away(USBLease *lease)
{
    if (lease->hold == LEASE_NONE) {
        UsbLeaseSlot slot;
        const char *why = lease_look(lease, &slot);

        lease_lose(lease, why ? why : "not-taken");
    }
    qemu_bh_schedule(lease->bh);
}

/*
 * A bulk endpoint may be pipelined: its packets complete in order and must be
 * asynchronous, or the core aborts.  So the packet is parked: it stays in the
 * endpoint's queue, out of the device's reach, until the detach that follows
 * cancels it.  All others must not be asynchronous (isochronous ones never,
 * interrupt ones not with every device) and are answered.
 */
void usb_lease_refuse(USBPacket *p)
{
    bool bulk = p->ep->nr != 0 && p->ep->type == USB_ENDPOINT_XFER_BULK;

    p->status = bulk ? USB_RET_ASYNC : USB_RET_NODEV;
}

/* ---------------------------------------------------------------------- */
/* the page's file */

static void page_close(USBLease *lease)
{
    if (lease->wd >= 0) {
        inotify_rm_watch(inotify_fd, lease->wd);
        lease->wd = -1;
    }
    if (lease->fd >= 0) {
        close(lease->fd);
        lease->fd = -1;
    }
}

/* 0 or -errno.  The watch comes before the first read: nothing is missed. */
static int page_open(USBLease *lease)
{
    g_autofree char *by_fd = NULL;
    int ret;

    page_close(lease);
    ret = usb_lease_open(lease->path);
    if (ret < 0) {
        return ret;
    }
    lease->fd = ret;
    by_fd = g_strdup_printf("/proc/self/fd/%d", lease->fd);
    lease->wd = inotify_add_watch(inotify_fd, by_fd, IN_MODIFY | IN_ATTRIB);
    if (lease->wd < 0) {
        ret = -errno;
        page_close(lease);
        return ret;
    }
    return 0;
}

/* The file that was opened is no longer the one of that name. */
static bool page_is_stale(USBLease *lease)
{
    UsbLeaseSlot slot;

    return lease->fd < 0 || usb_lease_read(lease->fd, &slot) == -ESTALE;
}

/*
 * The device opens in the bottom half: live() may make and free leases, which
 * would disturb whoever walks over them now.
 */
static bool lease_take(USBLease *lease, Error **errp)
{
    if (!usb_lease_acquire(lease, errp)) {
        return false;
    }
    lease->live_due = true;
    qemu_bh_schedule(lease->bh);
    return true;
}

/* Something is new in or about the page of a lease that is not held. */
static void lease_retry(USBLease *lease)
{
    if (page_is_stale(lease)) {
        page_open(lease);
    }
    if (runstate_is_running()) {
        lease_take(lease, NULL);
    }
}

static void inotify_readable(void *opaque)
{
    struct inotify_event events[64];
    USBLease *lease;

    /* Which of them changed does not matter: they are few. */
    while (read(inotify_fd, events, sizeof(events)) > 0) {
        continue;
    }
    QLIST_FOREACH(lease, &leases, next) {
        if (lease->hold == LEASE_HELD) {
            lease_check(lease, lease_clock());
        } else {
            lease_retry(lease);
        }
    }
}

static void timer_readable(void *opaque)
{
    USBLease *lease = opaque;
    uint64_t times;

    if (read(lease->timerfd, &times, sizeof(times)) == sizeof(times)) {
        usb_lease_ok(lease);
    }
}

/* ---------------------------------------------------------------------- */

/* One lease is for one device, also within a guest. */
static bool lease_is_taken(USBLease *lease)
{
    USBLease *other;

    QLIST_FOREACH(other, &leases, next) {
        if (other != lease && other->hold == LEASE_HELD &&
            g_str_equal(other->path, lease->path)) {
            return true;
        }
    }
    return false;
}

bool usb_lease_acquire(USBLease *lease, Error **errp)
{
    UsbLeaseSlot slot;
    const char *why;

    if (lease->hold == LEASE_HELD) {
        if (usb_lease_ok(lease)) {
            return true;
        }
        error_setg(errp, "the lease in %s has ended: %s", lease->path,
                   lease->reason);
        return false;
    }
    if (!runstate_is_running()) {
        error_setg(errp, "the lease in %s is taken when the VM runs",
                   lease->path);
        return false;
    }
    if (page_is_stale(lease)) {
        page_open(lease);
    }
    why = lease_is_taken(lease) ? "another device of this guest has it" :
          lease_look(lease, &slot);
    if (why) {
        error_setg(errp, "no lease for this guest in %s: %s", lease->path, why);
        return false;
    }
    lease->hold = LEASE_HELD;
    lease->held = slot;
    lease->reason = NULL;
    lease->event_due = false;
    lease_arm(lease, slot.deadline_ns);
    return true;
}

static void vm_state_changed(void *opaque, bool running, RunState state)
{
    USBLease *lease = opaque;
    Error *err = NULL;

    if (!running || (lease->hold == LEASE_HELD && usb_lease_ok(lease))) {
        return;
    }
    if (!lease_take(lease, &err)) {
        error_report_err(err);
        usb_lease_turn_away(lease);
    }
}

/* One inotify instance for all leases: each user may have 128 of them. */
static bool inotify_start(void)
{
    if (inotify_fd < 0) {
        inotify_fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
        if (inotify_fd < 0) {
            return false;
        }
        qemu_set_fd_handler(inotify_fd, inotify_readable, NULL, NULL);
    }
    return true;
}

static USBLease *lease_new(USBDevice *dev, char *path, const USBLeaseOps *ops)
{
    USBLease *lease = g_new0(USBLease, 1);
    g_autofree char *dir = g_path_get_dirname(path);
    int ret;

    lease->dev = dev;
    lease->ops = ops;
    lease->path = path;
    lease->fd = lease->wd = -1;
    lease->bh = qemu_bh_new_guarded(lease_bh, lease,
                                    &DEVICE(dev)->mem_reentrancy_guard);
    lease->timerfd = timerfd_create(CLOCK_BOOTTIME,
                                    TFD_NONBLOCK | TFD_CLOEXEC);
    /* Without timer or watch the page stays shut, and no lease is taken. */
    if (lease->timerfd >= 0 && inotify_start()) {
        qemu_set_fd_handler(lease->timerfd, timer_readable, NULL, lease);
        /* A page that is made later, or anew: it is renamed into place. */
        inotify_add_watch(inotify_fd, dir, IN_MOVED_TO);
        ret = page_open(lease);
        if (ret < 0 && ret != -ENOENT) {
            warn_report("cannot use the lease page %s: %s", path,
                        strerror(-ret));
        }
    } else {
        warn_report("cannot watch the lease page %s: %s", path,
                    strerror(errno));
    }
    lease->vm_change = qemu_add_vm_change_state_handler(vm_state_changed,
                                                        lease);
    QLIST_INSERT_HEAD(&leases, lease, next);
    return lease;
}

void usb_lease_free(USBLease *lease)
{
    if (!lease) {
        return;
    }
    QLIST_REMOVE(lease, next);
    qemu_del_vm_change_state_handler(lease->vm_change);
    qemu_bh_delete(lease->bh);
    page_close(lease);
    if (lease->timerfd >= 0) {
        qemu_set_fd_handler(lease->timerfd, NULL, NULL, NULL);
        close(lease->timerfd);
    }
    g_free(lease->path);
    g_free(lease);
}

static char *host_page_path(const char *dir, int bus, int addr)
{
    return g_strdup_printf("%s/pages/usb-%03d-%03d", dir, bus, addr);
}

/*
 * The page is there for as long as the device is managed, with or without a
 * lease.  Anything under that name that is no page still means "managed".
 */
USBLease *usb_lease_of_host_device(USBDevice *dev, const char *dir, int bus,
                                   int addr, const USBLeaseOps *ops)
{
    g_autofree char *path = host_page_path(dir ? dir : USB_LEASE_DIR, bus,
                                           addr);
    struct stat st;

    if (lstat(path, &st) < 0 && (errno == ENOENT || errno == ENOTDIR)) {
        return NULL;
    }
    return lease_new(dev, g_steal_pointer(&path), ops);
}

bool usb_lease_is_of(USBLease *lease, int bus, int addr)
{
    g_autofree char *dir = g_path_get_dirname(lease->path);
    g_autofree char *run_dir = g_path_get_dirname(dir);
    g_autofree char *path = host_page_path(run_dir, bus, addr);

    return g_str_equal(path, lease->path);
}

/*
 * A guest socket is managed by its name alone.  One whose name is not well
 * formed gets a page that cannot exist, and so never a lease.
 */
USBLease *usb_lease_of_socket(USBDevice *dev, const char *dir,
                              const char *path, const USBLeaseOps *ops)
{
    const char *uuid, *name;
    size_t length;
    char *page;

    dir = dir ? dir : USB_LEASE_DIR;
    if (!g_str_has_prefix(path, dir) ||
        !g_str_has_prefix(path + strlen(dir), GUEST_SOCKETS)) {
        return NULL;
    }
    uuid = path + strlen(dir) + strlen(GUEST_SOCKETS);
    name = strlen(uuid) > UUID_CHARS && uuid[UUID_CHARS] == '/' ?
           uuid + UUID_CHARS + 1 : "";
    length = strspn(name, DEVICE_NAME_CHARS);
    if (length == 0 || length > DEVICE_NAME_MAX || name[length]) {
        page = g_strdup_printf("%s/pages/no-such-device", dir);
    } else {
        page = g_strdup_printf("%s/pages/redir-%.*s-%s", dir, UUID_CHARS,
                               uuid, name);
    }
    return lease_new(dev, page, ops);
}

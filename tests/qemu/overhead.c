/*
 * What the verdict costs a packet: plugin/qemu/lease.c itself, with as much of
 * QEMU around it as it takes to have one lease and ask for it again and again.
 * tests/qemu/overhead compiles and runs it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define NANOSECONDS_PER_SECOND 1000000000LL
#ifndef likely
#define likely(x) __builtin_expect(!!(x), 1)
#endif
#define QLIST_HEAD(name, type) LIST_HEAD(name, type)
#define QLIST_HEAD_INITIALIZER LIST_HEAD_INITIALIZER
#define QLIST_ENTRY(type) LIST_ENTRY(type)
#define QLIST_FOREACH LIST_FOREACH
#define QLIST_INSERT_HEAD LIST_INSERT_HEAD
#define QLIST_REMOVE LIST_REMOVE

typedef struct Error Error;
typedef struct QEMUBH QEMUBH;
typedef struct VMChangeStateEntry VMChangeStateEntry;
typedef int RunState;
typedef struct USBDevice {
    const char *id;
    int mem_reentrancy_guard;
} USBDevice;
typedef struct USBEndpoint {
    uint8_t nr, type;
} USBEndpoint;
typedef struct USBPacket {
    USBEndpoint *ep;
    int status;
} USBPacket;
typedef struct QemuUUID {
    uint8_t data[16];
} QemuUUID;

#define OBJECT(x) (x)
#define DEVICE(x) (x)
#define USB_RET_ASYNC (-6)
#define USB_RET_NODEV (-1)
#define USB_ENDPOINT_XFER_BULK 2

static QemuUUID qemu_uuid;
static bool qemu_uuid_set = true;

static bool runstate_is_running(void) { return true; }
static QEMUBH *qemu_bh_new_guarded(void (*cb)(void *), void *p, int *guard)
{
    return NULL;
}
static void qemu_bh_schedule(QEMUBH *bh) {}
static void qemu_bh_delete(QEMUBH *bh) {}
static void qemu_set_fd_handler(int fd, void (*r)(void *), void (*w)(void *),
                                void *p) {}
static VMChangeStateEntry *qemu_add_vm_change_state_handler(
    void (*cb)(void *, bool, RunState), void *p)
{
    return NULL;
}
static void qemu_del_vm_change_state_handler(VMChangeStateEntry *e) {}
static char *object_get_canonical_path(USBDevice *dev) { return NULL; }
static void error_report_err(Error *err) {}
static void error_setg(Error **errp, const char *format, ...) {}
static void warn_report(const char *format, ...) {}

#include "lease.c"

void usb_lease_send_lost_event(const char *id, const char *path,
                               const char *page, uint64_t token,
                               const char *reason) {}

/* ---------------------------------------------------------------------- */

static void nothing(USBDevice *dev) {}

static const USBLeaseOps ops = { nothing, nothing };

static uint64_t seal(UsbLeaseSlot *slot)
{
    return slot->check = usb_lease_check(slot);
}

static void write_page(const char *path)
{
    UsbLeaseSlot slots[2] = { { 0 } };
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    unsigned i;

    for (i = 0; i < 2; i++) {
        slots[i].magic = USB_LEASE_MAGIC;
        slots[i].version = USB_LEASE_VERSION;
        slots[i].state = USB_LEASE_GRANTED;
        slots[i].generation = 2 + i;
        slots[i].epoch = 1;
        slots[i].token = 1;
        slots[i].deadline_ns = lease_clock() + 3600 * NANOSECONDS_PER_SECOND;
        seal(&slots[i]);
    }
    if (fd < 0 || write(fd, slots, sizeof(slots)) != sizeof(slots)) {
        perror(path);
        exit(1);
    }
    close(fd);
}

#define ROUNDS 20000000

static double measure(USBLease *lease)
{
    uint64_t begun = lease_clock();
    long left;

    for (left = ROUNDS; left > 0; left--) {
        USBLease *asked = lease;

        __asm__ volatile("" : "+r"(asked)); /* once for each packet */
        if (!usb_lease_ok(asked)) {
            fprintf(stderr, "the lease was lost\n");
            exit(1);
        }
    }
    return (double)(lease_clock() - begun) / ROUNDS;
}

static double measure_clock(void)
{
    uint64_t begun = lease_clock();
    long left;

    for (left = ROUNDS; left > 0; left--) {
        uint64_t now = lease_clock();

        __asm__ volatile("" : : "r"(now));
    }
    return (double)(lease_clock() - begun) / ROUNDS;
}

int main(int argc, char **argv)
{
    g_autofree char *page = g_strdup_printf("%s/pages/usb-001-004", argv[1]);
    USBDevice dev = { "stick" };
    USBLease *lease;
    int round;

    write_page(page);
    lease = usb_lease_of_host_device(&dev, argv[1], 1, 4, &ops);
    if (!lease || !usb_lease_acquire(lease, NULL)) {
        fprintf(stderr, "no lease\n");
        return 1;
    }
    printf("ns a packet: unmanaged, leased, the clock alone\n");
    for (round = 0; round < 5; round++) {
        printf("%6.1f %6.1f %6.1f\n", measure(NULL), measure(lease),
               measure_clock());
    }
    return 0;
}

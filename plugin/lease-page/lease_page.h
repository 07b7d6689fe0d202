/*
 * The lease page: how usbleased tells a QEMU whether, and until when, it may
 * use one USB device.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * One small file for one device.  usbleased alone writes it, QEMU only reads.
 * This header is the whole interface: the format, how it is written and how it
 * is read.  It compiles as C11 (in QEMU) and as C++20 (in usbleased).
 *
 * Where it is, under the run directory of usbleased (/run/usblease):
 *   pages/usb-BBB-DDD          a device on this host's bus, named like its node
 *                              /dev/bus/usb/BBB/DDD: one enumeration of it
 *   pages/redir-UUID-DEVICE    a device that the guest UUID reaches through its
 *                              guest socket guests/UUID/DEVICE
 *
 * Format, version 1: two slots of USB_LEASE_SLOT_BYTES one after the other, in
 * the host's byte order (a page never leaves its host).  Generation N lives in
 * slot N % 2; a checksum ends each slot.
 *
 * Writing: one pwrite() of the slot that holds the *older* generation.  If the
 * writer dies half way, that slot's checksum is wrong and the other slot still
 * says what was true before: a lease whose deadline passes by itself.  A change
 * that takes something away (revoked, another token) is written twice, to both
 * slots, so that no slot is left that still grants.
 *
 * Reading: one pread() of both slots; the newer good one counts.  Nothing is
 * mapped: a file that somebody truncates cannot kill the reader (SIGBUS), and
 * no memory order is needed, since the checksum finds a read that met half a
 * write.  A read that is interrupted for as long as some writes take may find
 * slots that do not belong together; so a page is bad only if it stays so.  The
 * reader keeps the descriptor of the file that it opened; once that
 * file has no name any more (unlinked, or another was renamed over it) it is no
 * lease page, whatever it says.
 *
 * Telling: inotify.  A pwrite() is an IN_MODIFY, a lost name is an IN_ATTRIB:
 * a reader hears of a revocation at once, from the kernel, with no connection
 * to a daemon that may be dead or frozen.
 *
 * Versions: a reader refuses (takes for "no lease") a version that it does not
 * know.  Fields may be added in `reserved`, which writers fill with zero and
 * readers ignore, under the same version; anything else needs a new one.
 */
/* clang-format off */
#ifndef USB_LEASE_PAGE_H
#define USB_LEASE_PAGE_H

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#define USB_LEASE_MAGIC 0x4547415045534c55ULL /* "ULSEPAGE" */
#define USB_LEASE_VERSION 1u
#define USB_LEASE_SLOT_BYTES 128u
#define USB_LEASE_PAGE_BYTES (2u * USB_LEASE_SLOT_BYTES)
#define USB_LEASE_READ_TRIES 8u

enum UsbLeaseState {
    USB_LEASE_FREE = 1,    /* managed, and nobody's: no guest may use it */
    USB_LEASE_GRANTED = 2, /* to @guest, until @deadline_ns */
    USB_LEASE_REVOKED = 3, /* the same, and it ends now */
};

/* No padding anywhere: every byte is a field, and is covered by the check. */
typedef struct UsbLeaseSlot {
    uint64_t magic;
    uint32_t version;
    uint32_t state;       /* enum UsbLeaseState */
    uint64_t generation;  /* of this page; counts every write; from 1 */
    uint64_t epoch;       /* of this page; random, the same in both slots */
    uint64_t token;       /* the fencing token; never decreases for a device */
    uint64_t deadline_ns; /* CLOCK_BOOTTIME; from then on there is no lease */
    uint8_t guest[16];    /* UUID, in the order of its text */
    uint8_t start[16];    /* nonce of the guest's start; never all zero */
    uint32_t pid;         /* QEMU's PID as it sees it; 0: not known yet */
    uint8_t reserved[36];
    uint64_t check; /* usb_lease_check() of all bytes before it */
} UsbLeaseSlot;

/* FNV-1a, 64 bits, over everything in front of `check`.  Against accidents. */
static inline uint64_t usb_lease_check(const UsbLeaseSlot *slot)
{
    const uint8_t *bytes = (const uint8_t *)slot;
    uint64_t hash = 0xcbf29ce484222325ULL;
    size_t i;

    for (i = 0; i < offsetof(UsbLeaseSlot, check); i++) {
        hash = (hash ^ bytes[i]) * 0x100000001b3ULL;
    }
    return hash;
}

/* @slot is a good slot number @index of a page. */
static inline bool usb_lease_slot_ok(const UsbLeaseSlot *slot, unsigned index)
{
    return slot->magic == USB_LEASE_MAGIC &&
           slot->version == USB_LEASE_VERSION &&
           slot->check == usb_lease_check(slot) && slot->generation != 0 &&
           slot->generation % 2 == index && slot->epoch != 0 &&
           slot->state >= USB_LEASE_FREE && slot->state <= USB_LEASE_REVOKED;
}

/*
 * Reads the page in @bytes (any @size, any alignment) into @slot.  False: there
 * is no good slot, or the two contradict each other; @slot is then undefined.
 */
static inline bool usb_lease_decode(const void *bytes, size_t size,
                                    UsbLeaseSlot *slot)
{
    UsbLeaseSlot slots[2];
    bool good[2];
    unsigned newer;

    if (size < USB_LEASE_PAGE_BYTES) {
        return false;
    }
    memcpy(slots, bytes, sizeof(slots));
    good[0] = usb_lease_slot_ok(&slots[0], 0);
    good[1] = usb_lease_slot_ok(&slots[1], 1);
    if (!good[0] && !good[1]) {
        return false;
    }
    newer = good[1] && (!good[0] || slots[1].generation > slots[0].generation);
    if (good[0] && good[1] &&
        (slots[0].epoch != slots[1].epoch ||
         slots[newer].generation - slots[!newer].generation != 1 ||
         slots[newer].token < slots[!newer].token)) {
        return false;
    }
    *slot = slots[newer];
    return true;
}

/*
 * Opens a page for usb_lease_read().  Returns a descriptor, the caller's, or
 * -errno: -ENOENT there is none, -EINVAL it is no regular file, -ELOOP a
 * symbolic link.  Never blocks, whatever is there under that name.
 */
static inline int usb_lease_open(const char *path)
{
    struct stat st;
    int fd =
        open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);

    if (fd < 0) {
        return -errno;
    }
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
        close(fd);
        return -EINVAL;
    }
    return fd;
}

/*
 * Reads the page now.  0, or -errno: -ESTALE its file has no name any more,
 * -EBADMSG it holds no good page, or what pread() says.  Two system calls and
 * at most USB_LEASE_PAGE_BYTES, however large the file is; as often again as
 * USB_LEASE_READ_TRIES says for a page that is bad.
 */
static inline int usb_lease_read(int fd, UsbLeaseSlot *slot)
{
    uint8_t bytes[USB_LEASE_PAGE_BYTES];
    struct stat st;
    ssize_t got;
    unsigned tries;

    for (tries = 0; tries < USB_LEASE_READ_TRIES; tries++) {
        do {
            got = pread(fd, bytes, sizeof(bytes), 0);
        } while (got < 0 && errno == EINTR);
        if (got < 0 || fstat(fd, &st) < 0) {
            return -errno;
        }
        if (st.st_nlink == 0) {
            return -ESTALE;
        }
        if (usb_lease_decode(bytes, (size_t)got, slot)) {
            return 0;
        }
    }
    return -EBADMSG;
}

#endif

/*
 * USB device leases
 *
 * A lease is the right to use one USB device, granted by a process outside of
 * QEMU for a bounded time.  It is told in a lease page (hw/usb/lease-page.h).
 * Without one a device works as ever; with one, nothing reaches the device
 * before the lease is there, nor after it has ended.
 *
 * All functions are for the main thread or under the BQL.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef HW_USB_LEASE_H
#define HW_USB_LEASE_H

#include "hw/usb.h"

#define USB_LEASE_DIR "/run/usblease"

typedef struct USBLease USBLease;

typedef struct USBLeaseOps {
    /*
     * The lease has ended: detach the device from the guest, then let go of it
     * without touching it.  Runs in a bottom half, never inside the host
     * controller.  Also called for a device that was not in use.
     */
    void (*lost)(USBDevice *dev);
    /*
     * The lease is there and the VM runs: the device may be opened.  Called
     * when the VM starts to run and when a new lease is granted.
     */
    void (*live)(USBDevice *dev);
} USBLeaseOps;

/*
 * The lease of a device on the host's bus, or of one behind the Unix socket
 * @path of a character device.  @dir is the run directory, NULL for the
 * default.  NULL: nobody manages that device.  Free with usb_lease_free().
 */
USBLease *usb_lease_of_host_device(USBDevice *dev, const char *dir, int bus,
                                   int addr, const USBLeaseOps *ops);
USBLease *usb_lease_of_socket(USBDevice *dev, const char *dir,
                              const char *path, const USBLeaseOps *ops);
void usb_lease_free(USBLease *lease);

/* @lease is the one of that device on the host's bus. */
bool usb_lease_is_of(USBLease *lease, int bus, int addr);

/*
 * Take the lease if it is there.  Only while the VM runs: before that, the
 * guest may still be somebody else's (an incoming migration).
 */
bool usb_lease_acquire(USBLease *lease, Error **errp);

/*
 * The verdict, once for each packet: one reading of the clock.  A device that
 * nobody manages (@lease is NULL) is always fine.  When this says no for the
 * first time, the lost() operation follows soon.
 */
bool usb_lease_ok(USBLease *lease);

/*
 * Calls lost() soon, for a device that came although there is no lease.
 */
void usb_lease_turn_away(USBLease *lease);

/* What becomes of a packet that the verdict keeps from the device. */
void usb_lease_refuse(USBPacket *p);

#endif

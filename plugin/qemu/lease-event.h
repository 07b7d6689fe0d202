/*
 * How the end of a lease is told to the monitors.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef HW_USB_LEASE_EVENT_H
#define HW_USB_LEASE_EVENT_H

/* @id may be NULL. */
void usb_lease_send_lost_event(const char *id, const char *path,
                               const char *page, uint64_t token,
                               const char *reason);

#endif

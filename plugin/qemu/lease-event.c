/*
 * The event USB_LEASE_LOST, without a schema: a module cannot add to QAPI.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "qapi/qapi-emit-events.h"
#include "qapi/qmp-event.h"
#include "qobject/qdict.h"
#include "lease-event.h"

void usb_lease_send_lost_event(const char *id, const char *path,
                               const char *page, uint64_t token,
                               const char *reason)
{
    QDict *event = qmp_event_build_dict("USB_LEASE_LOST");
    QDict *data = qdict_new();

    if (id) {
        qdict_put_str(data, "device", id);
    }
    qdict_put_str(data, "path", path);
    qdict_put_str(data, "page", page);
    qdict_put_int(data, "token", token);
    qdict_put_str(data, "reason", reason);
    qdict_put(event, "data", data);
    /* The number only selects a limit of the rate; this one has none. */
    qapi_event_emit(QAPI_EVENT_DEVICE_DELETED, event);
    qobject_unref(event);
}

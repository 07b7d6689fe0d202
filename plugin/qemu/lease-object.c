/*
 * -object usb-lease: a lease page by its name, for QEMUs that are not started
 * by libvirt, or whose devices are not found by the names of usbleased.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/module.h"
#include "qom/object.h"
#include "qom/object_interfaces.h"

#define TYPE_USB_LEASE "usb-lease"
OBJECT_DECLARE_SIMPLE_TYPE(USBLeaseObject, USB_LEASE)

struct USBLeaseObject {
    Object parent_obj;

    char *page;
};

static char *usb_lease_object_get_page(Object *obj, Error **errp)
{
    return g_strdup(USB_LEASE(obj)->page);
}

static void usb_lease_object_set_page(Object *obj, const char *value,
                                      Error **errp)
{
    USBLeaseObject *lease = USB_LEASE(obj);

    if (lease->page) {
        error_setg(errp, "the page of a lease cannot be changed");
        return;
    }
    lease->page = g_strdup(value);
}

static void usb_lease_object_complete(UserCreatable *uc, Error **errp)
{
    if (!USB_LEASE(uc)->page) {
        error_setg(errp, "property 'page' is missing");
    }
}

static void usb_lease_object_finalize(Object *obj)
{
    g_free(USB_LEASE(obj)->page);
}

static void usb_lease_object_class_init(ObjectClass *klass, void *data)
{
    UserCreatableClass *ucc = USER_CREATABLE_CLASS(klass);

    ucc->complete = usb_lease_object_complete;
    object_class_property_add_str(klass, "page", usb_lease_object_get_page,
                                  usb_lease_object_set_page);
}

static const TypeInfo usb_lease_object_info = {
    .name = TYPE_USB_LEASE,
    .parent = TYPE_OBJECT,
    .instance_size = sizeof(USBLeaseObject),
    .instance_finalize = usb_lease_object_finalize,
    .class_init = usb_lease_object_class_init,
    .interfaces = (InterfaceInfo[]) {
        { TYPE_USER_CREATABLE },
        { }
    }
};

static void usb_lease_object_register_types(void)
{
    type_register_static(&usb_lease_object_info);
}

type_init(usb_lease_object_register_types)

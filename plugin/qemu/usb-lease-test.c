/*
 * QTest for leases: a usb-redir device without a peer, and its page.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "qobject/qdict.h"
#include "libqtest.h"
#include "../../hw/usb/lease-page.h"

#define UUID "6ba7b810-9dad-11d1-80b4-00c04fd430c8"

static const uint8_t uuid[16] = {
    0x6b, 0xa7, 0xb8, 0x10, 0x9d, 0xad, 0x11, 0xd1,
    0x80, 0xb4, 0x00, 0xc0, 0x4f, 0xd4, 0x30, 0xc8,
};

typedef struct Fixture {
    char *dir;
    char *page;
    QTestState *qts;
    UsbLeaseSlot slot;
} Fixture;

/* One generation, to both slots in turn: what a writer does to take away. */
static void publish(Fixture *f, enum UsbLeaseState state, uint64_t token,
                    int64_t ttl_ns)
{
    struct timespec ts;
    int fd = open(f->page, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    int i;

    g_assert_cmpint(fd, >=, 0);
    clock_gettime(CLOCK_BOOTTIME, &ts);
    f->slot.state = state;
    f->slot.token = token;
    f->slot.deadline_ns = ts.tv_sec * 1000000000ULL + ts.tv_nsec + ttl_ns;
    for (i = 0; i < 2; i++) {
        f->slot.generation++;
        f->slot.check = usb_lease_check(&f->slot);
        g_assert_cmpint(pwrite(fd, &f->slot, sizeof(f->slot),
                               f->slot.generation % 2 * sizeof(f->slot)),
                        ==, sizeof(f->slot));
    }
    close(fd);
}

static void set_up(Fixture *f, gconstpointer unused)
{
    f->dir = g_dir_make_tmp("usb-lease-test-XXXXXX", NULL);
    f->page = g_strdup_printf("%s/page", f->dir);
    f->slot = (UsbLeaseSlot) {
        .magic = USB_LEASE_MAGIC, .version = USB_LEASE_VERSION,
        .generation = 1, .epoch = 1, .start = { 1 },
    };
    memcpy(f->slot.guest, uuid, sizeof(uuid));
    publish(f, USB_LEASE_FREE, 0, 0);
    f->qts = qtest_initf("-machine q35 -uuid " UUID
                         " -device qemu-xhci,id=xhci"
                         " -chardev socket,id=peer,path=%s/socket,server=on,"
                         "wait=off -object usb-lease,id=lease0,page=%s",
                         f->dir, f->page);
}

static void tear_down(Fixture *f, gconstpointer unused)
{
    g_autofree char *socket = g_strdup_printf("%s/socket", f->dir);

    qtest_quit(f->qts);
    unlink(socket);
    unlink(f->page);
    rmdir(f->dir);
    g_free(f->page);
    g_free(f->dir);
}

static bool add(Fixture *f)
{
    QDict *answer = qtest_qmp(f->qts, "{'execute': 'device_add', 'arguments':"
                              " {'driver': 'usb-redir', 'id': 'dev0',"
                              "  'bus': 'xhci.0', 'chardev': 'peer',"
                              "  'lease': 'lease0'}}");
    bool added = qdict_haskey(answer, "return");

    qobject_unref(answer);
    return added;
}

static void expect_lost(Fixture *f, uint64_t token, const char *reason)
{
    QDict *event = qtest_qmp_eventwait_ref(f->qts, "USB_LEASE_LOST");
    QDict *data = qdict_get_qdict(event, "data");

    g_assert_cmpstr(qdict_get_str(data, "device"), ==, "dev0");
    g_assert_cmpstr(qdict_get_str(data, "page"), ==, f->page);
    g_assert_cmpstr(qdict_get_str(data, "reason"), ==, reason);
    g_assert_cmpint(qdict_get_int(data, "token"), ==, token);
    qobject_unref(event);
}

static void test_refused(Fixture *f, gconstpointer unused)
{
    g_assert_false(add(f));
    publish(f, USB_LEASE_GRANTED, 1, -1);
    g_assert_false(add(f));
    publish(f, USB_LEASE_REVOKED, 2, 60000000000LL);
    g_assert_false(add(f));
    unlink(f->page);
    g_assert_false(add(f));
}

static void test_expired(Fixture *f, gconstpointer unused)
{
    publish(f, USB_LEASE_GRANTED, 1, 200000000);
    g_assert_true(add(f));
    expect_lost(f, 1, "expired");
}

static void test_revoked(Fixture *f, gconstpointer unused)
{
    publish(f, USB_LEASE_GRANTED, 1, 60000000000LL);
    g_assert_true(add(f));
    publish(f, USB_LEASE_REVOKED, 1, 60000000000LL);
    expect_lost(f, 1, "revoked");
    /* A greater token brings it back, and that ends as well. */
    publish(f, USB_LEASE_GRANTED, 2, 200000000);
    expect_lost(f, 2, "expired");
}

static void test_removed(Fixture *f, gconstpointer unused)
{
    publish(f, USB_LEASE_GRANTED, 1, 60000000000LL);
    g_assert_true(add(f));
    unlink(f->page);
    expect_lost(f, 1, "page-gone");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add("/usb-lease/refused", Fixture, NULL, set_up, test_refused,
               tear_down);
    g_test_add("/usb-lease/expired", Fixture, NULL, set_up, test_expired,
               tear_down);
    g_test_add("/usb-lease/revoked", Fixture, NULL, set_up, test_revoked,
               tear_down);
    g_test_add("/usb-lease/removed", Fixture, NULL, set_up, test_removed,
               tear_down);
    return g_test_run();
}

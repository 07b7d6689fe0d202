"""What QEMU does with a lease, the same for usb-host and usb-redir."""

import os
import pathlib
import re
import statistics
import time
import unittest

import boottime
import isolation
import processes
import qemu_lab
import waiting

# tests/qemu/soak sets them.
EXPIRIES = int(os.environ.get("EXPIRIES", "5"))
PACKETS = int(os.environ.get("PACKETS", "250"))  # in all, spread over the expiries
SOAK_S = float(os.environ.get("SOAK_S", "0"))


class Base(unittest.TestCase):
    """A lab for each test. `setup` is set by the runner."""

    setup = None
    kind = None

    def setUp(self):
        self.lab = qemu_lab.Lab(self.setup.build, self.setup.modules, self.kind)
        self.addCleanup(self.lab.close)

    def running(self, ttl_s=60, **more):
        """A guest with traffic, under a lease that ends in `ttl_s`: renewed for as long as the guest needs to boot."""
        self.lab.with_page()
        self.lab.page.grant(ttl_s)
        qemu, qmp = self.lab.start(**more)
        self.renew_until_traffic(ttl_s)
        return qemu, qmp

    def renew_until_traffic(self, ttl_s, packets=50):
        """Returns the deadline of the last renewal."""
        wanted = self.lab.seen.packets + packets
        end = time.monotonic() + qemu_lab.BOOT_S + SOAK_S
        while True:
            deadline_ns = self.lab.page.renew(ttl_s)
            try:
                self.lab.wait_traffic(max(1, wanted - self.lab.seen.packets), timeout_s=ttl_s / 4)
                return deadline_ns
            except waiting.TimedOut:
                if time.monotonic() > end:
                    raise

    def assert_untouched(self):
        seen = self.lab.seen
        self.assertLessEqual(seen.late_max_ns, qemu_lab.LATE_MAX_NS, f"{seen.late} packets were late")
        self.assertEqual(seen.drivers_attached, 0)

    def assert_closed(self, qemu, qmp, *reasons):
        """The event came with one of these reasons; the device is gone from the guest and from QEMU."""
        event = qmp.wait_event("USB_LEASE_LOST")
        self.assertIn(event["data"]["reason"], reasons)
        self.assertEqual(event["data"]["device"], "stick")
        self.assertEqual(event["data"]["token"], self.lab.page.token)
        self.assertFalse(self.lab.attached(qmp))
        waiting.wait_until("the device to be closed", lambda: self.lab.seen.closes == self.lab.seen.opens, 5)
        self.assert_untouched()
        self.assert_silent()
        qemu.check_alive()
        return event

    def assert_silent(self):
        """Nothing reaches the device, though the guest goes on."""
        before = self.lab.seen.packets
        with self.assertRaises(waiting.TimedOut):
            self.lab.wait_traffic(1, timeout_s=0.3)
        self.assertEqual(self.lab.seen.packets, before)


class Leases(Base):
    """Having and losing a lease."""

    time_limit_s = 240 + SOAK_S

    reconnect = ""  # for a character device that connects again by itself

    def boot_under_short_lease(self, qmp, ttl_s=2):
        """The guest boots from the device under a lease that is renewed until there was its share of the traffic, and
        then no more. Returns the deadline."""
        self.lab.wait_attached(qmp)
        qmp.command("system_reset")
        return self.renew_until_traffic(ttl_s, PACKETS // EXPIRIES)

    def test_nothing_passes_after_the_deadline(self):
        self.lab.with_page()
        self.lab.page.grant(20)
        _, qmp = self.lab.start(chardev=self.reconnect)
        self.lab.wait_traffic()
        self.lab.page.revoke()
        qmp.wait_event("USB_LEASE_LOST")
        before = self.lab.seen.packets
        delays_ms = []
        for _ in range(EXPIRIES):
            self.lab.page.grant(2)  # a new token attaches the device again
            deadline_ns = self.boot_under_short_lease(qmp)
            event = qmp.wait_event("USB_LEASE_LOST")
            self.assertEqual((event["data"]["reason"], event["data"]["token"]), ("expired", self.lab.page.token))
            delays_ms.append((event["at_ns"] - deadline_ns) / 1e6)
            self.assert_untouched()
        self.assertGreaterEqual(min(delays_ms), 0)
        seen = self.lab.seen
        self.assertGreaterEqual(seen.packets - before, PACKETS // EXPIRIES * EXPIRIES)
        print(
            f"          {self.kind}: {seen.packets} packets, {EXPIRIES} expiries, {seen.late} late by at most"
            f" {seen.late_max_ns / 1e6:.3f} ms; expiry to event {min(delays_ms):.2f}/{statistics.median(delays_ms):.2f}/"
            f"{max(delays_ms):.2f} ms (min/median/max)",
            flush=True,
        )

    def test_a_late_renewal_changes_nothing(self):
        qemu, qmp = self.running(ttl_s=4)
        self.assert_closed(qemu, qmp, "expired")
        self.lab.page.renew(60)
        self.assert_silent()
        self.assertFalse(self.lab.attached(qmp))
        self.assertFalse(qmp.has_event("USB_LEASE_LOST"))

    def test_renewals_keep_it_alive(self):
        _, qmp = self.running(ttl_s=3)
        for _ in range(8):
            self.lab.wait_traffic(10)
            time.sleep(0.5)  # so that together they last longer than the first lease
            self.lab.page.renew(3)
        self.assertFalse(qmp.has_event("USB_LEASE_LOST"))
        self.assertTrue(self.lab.attached(qmp))

    def test_an_idle_device_is_revoked_at_once(self):
        qemu, qmp = self.running()
        qmp.command("stop")  # no packets now
        self.lab.page.revoke()
        self.assert_closed(qemu, qmp, "revoked")  # within the wait for the event, long before the deadline

    def test_a_frozen_qemu_does_nothing_when_it_wakes(self):
        self.lab.with_page()
        self.lab.page.grant(20)
        qemu, qmp = self.lab.start()
        self.lab.wait_traffic()
        self.lab.page.bind(qemu.pid)  # does not harm
        qemu.freeze()
        before = self.lab.seen.packets
        self.lab.page.revoke()
        qemu.thaw()
        self.assert_closed(qemu, qmp, "revoked")
        self.assertLessEqual(self.lab.seen.packets - before, 1)

    def test_frozen_over_the_deadline(self):
        qemu, qmp = self.running(ttl_s=3)
        deadline_ns = self.lab.page.renew(3)
        qemu.freeze()
        before = self.lab.seen.packets
        waiting.wait_until("the deadline", lambda: boottime.now_ns() > deadline_ns + 300_000_000, 10)
        qemu.thaw()
        self.assert_closed(qemu, qmp, "expired")
        self.assertEqual(self.lab.seen.packets, before)

    def test_guest_without_a_lease_starts_without_the_device(self):
        self.lab.with_page()
        qemu, qmp = self.lab.start("-S")
        qmp.command("cont")
        self.assertEqual(qmp.wait_event("USB_LEASE_LOST")["data"]["reason"], "not-granted")
        self.assertFalse(self.lab.attached(qmp))
        self.assertEqual(self.lab.seen.packets, 0)
        qemu.check_alive()

    def test_hotplug_without_a_lease_is_refused(self):
        self.lab.with_page()
        _, qmp = self.lab.start(plugged=False)
        self.assertIn("not-granted", qmp.refused("device_add", id="stick", **self.lab.device))
        self.lab.page.grant(60, uuid=qemu_lab.OTHER_UUID)
        self.assertIn("other-guest", qmp.refused("device_add", id="stick", **self.lab.device))
        self.lab.page.grant(60, pid=1)
        self.assertIn("other-process", qmp.refused("device_add", id="stick", **self.lab.device))
        self.lab.page.grant(-1)
        self.assertIn("expired", qmp.refused("device_add", id="stick", **self.lab.device))
        self.assertEqual(self.lab.seen.packets, 0)
        self.lab.page.grant(60)
        qmp.command("device_add", id="stick", **self.lab.device)
        self.lab.wait_attached(qmp)
        qmp.command("device_del", id="stick")
        qmp.wait_event("DEVICE_DELETED")
        self.assert_untouched()

    def test_the_lease_is_taken_when_the_guest_runs(self):
        self.lab.with_page()
        _, qmp = self.lab.start("-S")
        self.assertEqual(self.lab.seen.packets, 0)
        self.lab.page.grant(60)
        self.assertFalse(self.lab.attached(qmp))
        qmp.command("cont")
        self.lab.wait_traffic()
        self.assertFalse(qmp.has_event("USB_LEASE_LOST"))


class BrokenPages(Base):
    """Whatever happens to the page: the device is closed, and QEMU lives."""

    def closed_after(self, harm, *reasons):
        qemu, qmp = self.running()
        harm(pathlib.Path(self.lab.page_path))
        self.assert_closed(qemu, qmp, *reasons)

    def test_truncated(self):
        self.closed_after(lambda page: os.truncate(page, 100), "page-bad")

    def test_emptied(self):
        self.closed_after(lambda page: os.truncate(page, 0), "page-bad")

    def test_garbage(self):
        def harm(page):
            with open(page, "r+b") as file:
                file.write(os.urandom(4096))

        self.closed_after(harm, "page-bad")

    def test_removed(self):
        self.closed_after(lambda page: page.unlink(), "page-gone")

    def test_replaced_by_a_copy(self):
        def harm(page):
            copy = page.with_name("copy")
            copy.write_bytes(page.read_bytes())
            copy.rename(page)

        self.closed_after(harm, "page-gone")

    def test_replaced_by_a_fifo(self):
        def harm(page):
            os.mkfifo(page.with_name("fifo"))
            page.with_name("fifo").rename(page)

        self.closed_after(harm, "page-gone")

    def test_put_back_to_an_older_state(self):
        qemu, qmp = self.running()
        older = pathlib.Path(self.lab.page_path).read_bytes()
        self.lab.page.renew(100)
        self.lab.page.renew(200)
        self.lab.wait_traffic(10)
        with open(self.lab.page_path, "r+b") as file:
            file.write(older)
        self.assert_closed(qemu, qmp, "page-bad")

    def test_huge(self):
        _, qmp = self.running()
        os.truncate(self.lab.page_path, 1 << 40)
        self.lab.wait_traffic()
        self.assertFalse(qmp.has_event("USB_LEASE_LOST"))


class HostMixin:
    kind = "host"


class RedirMixin:
    kind = "redir"
    reconnect = ",reconnect=1"


class HostLeases(HostMixin, Leases):
    def test_a_read_that_never_ends_does_not_hold_the_device(self):
        self.lab.with_page()
        self.lab.page.grant(60)
        qemu, qmp = self.lab.start(environment={"MOCK_HOLD": "60", "MOCK_STUCK": "1"})
        self.lab.wait_traffic(60)
        revoked_ns = boottime.now_ns()
        self.lab.page.revoke()
        self.assert_closed(qemu, qmp, "revoked")
        self.assertLess(self.lab.seen.last_close_ns - revoked_ns, 200e6)

    def test_the_node_that_libvirt_names(self):
        """libvirt passes hostdevice=/dev/bus/usb/001/004; a stock QEMU opens it as soon as it starts."""
        if os.geteuid() != 0:
            self.skipTest("it needs root: a private /dev")

        def steps():
            qemu_lab.cover("/dev", pathlib.Path("/run/scratch"))
            node = pathlib.Path("/dev/bus/usb/001/004")
            node.parent.mkdir(parents=True, exist_ok=True)
            node.touch()
            by_name = {"driver": "usb-host", "hostdevice": str(node), "lease_dir": str(self.lab.run_dir)}
            self.lab.with_page()
            _, qmp = self.lab.start("-S", plugged=False)
            qmp.command("device_add", id="stick", **by_name)
            self.assertEqual(self.lab.seen.opens, 0)
            self.lab.page.grant(60)
            qmp.command("cont")
            self.lab.wait_attached(qmp)
            self.lab.page.revoke()
            qmp.wait_event("USB_LEASE_LOST")
            self.lab.page.grant(60)
            self.lab.wait_attached(qmp)
            self.assertEqual(self.lab.seen.opens, 2)
            qmp.command("device_del", id="stick")
            qmp.wait_event("DEVICE_DELETED")
            self.lab.page.revoke()
            self.assertIn("revoked", qmp.refused("device_add", id="stick", **by_name))
            self.assertEqual(self.lab.seen.opens, 2)
            self.lab.close()

        self.assertEqual(isolation.run_isolated(steps, 100), 0)

    def save(self, qmp):
        """Stops the guest and writes its state; returns the file."""
        state = self.lab.dir / "state"
        qmp.command("migrate", uri=f"exec:cat >{state}")

        def completed():
            status = qmp.command("query-migrate").get("status")
            self.assertNotIn(status, ("failed", "cancelled"))
            return status == "completed"

        waiting.wait_until("the guest to be saved", completed, 30)
        return state

    def test_a_restored_guest_gets_its_device_under_a_new_token(self):
        _, source = self.running()
        state = self.save(source)
        self.lab.page.revoke()
        self.assertEqual(source.wait_event("USB_LEASE_LOST")["data"]["reason"], "revoked")
        self.lab.page.grant(60)
        _, destination = self.lab.start("-incoming", f"exec:cat {state}")
        self.lab.wait_attached(destination)
        self.assertEqual(self.lab.seen.opens, 2)
        destination.command("system_reset")
        self.lab.wait_traffic()
        self.assertFalse(destination.has_event("USB_LEASE_LOST"))
        self.assert_untouched()

    def test_a_second_qemu_of_the_same_guest_waits_for_its_own_lease(self):
        """Source and destination of a migration have the same UUID."""
        self.lab.with_page()
        self.lab.page.grant(60)
        first, source = self.lab.start()
        self.lab.wait_traffic()
        self.lab.page.bind(first.pid)
        state = self.save(source)
        second, destination = self.lab.start("-incoming", f"exec:cat {state}")
        event = destination.wait_event("USB_LEASE_LOST")
        self.assertEqual(event["data"]["reason"], "other-process")
        self.assertFalse(self.lab.attached(destination))
        self.assertEqual(self.lab.seen.opens, 1)
        # The migration failed after all: the source goes on under the lease that it never lost.
        second.stop()
        source.command("cont")
        self.lab.wait_traffic()

    def test_autoscan_waits_for_the_lease(self):
        """A device that is named by its product is looked for again and again; without a lease it is not opened."""
        self.lab.with_page()
        qemu, qmp = self.lab.start("-S", plugged=False)
        product = {"driver": "usb-host", "vendorid": 0x1209, "productid": 2, "lease_dir": str(self.lab.run_dir)}
        qmp.command("device_add", id="stick", **product)
        qmp.command("cont")
        self.assertEqual(qmp.wait_event("USB_LEASE_LOST")["data"]["reason"], "not-granted")
        self.assertEqual(self.lab.seen.opens, 0)
        self.lab.page.grant(60)
        self.lab.wait_attached(qmp)
        self.lab.page.revoke()
        qmp.wait_event("USB_LEASE_LOST")
        with self.assertRaises(waiting.TimedOut):  # longer than the period of the scan
            waiting.wait_until("another open", lambda: self.lab.seen.opens > 1, 2.5)
        qemu.check_alive()

    def test_a_device_that_nobody_manages_works_as_ever(self):
        qemu, qmp = self.lab.start()
        self.lab.wait_traffic()
        self.assertEqual(self.lab.seen.opens, 1)
        qmp.command("device_del", id="stick")
        qmp.wait_event("DEVICE_DELETED")
        self.assertEqual(self.lab.seen.closes, 1)
        self.assertGreaterEqual(self.lab.seen.resets, 1)
        self.assertGreaterEqual(self.lab.seen.drivers_attached, 1)
        self.assertFalse(qmp.has_event("USB_LEASE_LOST"))
        qemu.check_alive()


class RedirLeases(RedirMixin, Leases):
    def test_a_device_that_nobody_manages_works_as_ever(self):
        self.lab.socket_path = self.lab.dir / "elsewhere"
        _, qmp = self.lab.start()
        self.lab.wait_traffic()
        self.assertFalse(qmp.has_event("USB_LEASE_LOST"))

    def test_a_guest_socket_without_a_page_is_closed(self):
        _, qmp = self.lab.start("-S")
        qmp.command("cont")
        self.assertEqual(qmp.wait_event("USB_LEASE_LOST")["data"]["reason"], "page-gone")
        self.assertFalse(self.lab.attached(qmp))
        self.assertEqual(self.lab.seen.packets, 0)


class HostBrokenPages(HostMixin, BrokenPages):
    pass


class RedirBrokenPages(RedirMixin, BrokenPages):
    pass


class FailOpen(HostMixin, Base):
    """A stock module would let everything through: the daemon must see which one is loaded."""

    def modules_of(self, qemu):
        tool = self.setup.build / "tests/qemu/module-tool"
        return processes.run([tool, qemu.pid, self.setup.build_ids]).stdout.split()

    def test_our_module_is_recognized(self):
        qemu, _ = self.running()
        self.assertEqual(self.modules_of(qemu), ["enforces", "absent"])

    def test_the_service_may_look(self):
        """usbleased.service leaves the daemon few capabilities; they are enough to see what a process has mapped."""
        if os.geteuid() != 0:
            self.skipTest("it needs root")
        unit = pathlib.Path(__file__).resolve().parents[2] / "packaging/usbleased.service.in"
        kept = re.search(r"^CapabilityBoundingSet=(.*)$", unit.read_text(), re.MULTILINE).group(1).split()
        bounds = ",".join(["-all"] + [f"+{name.removeprefix('CAP_').lower()}" for name in kept])
        qemu, _ = self.running()
        tool = self.setup.build / "tests/qemu/module-tool"
        said = processes.run(["setpriv", f"--bounding-set={bounds}", "--no-new-privs", tool, qemu.pid, self.setup.build_ids])
        self.assertEqual(said.stdout.split(), ["enforces", "absent"])

    def test_a_stock_module_is_recognized(self):
        self.lab.with_page()
        self.lab.page.grant(60)
        qemu, qmp = self.lab.start(plugged=False, modules=False)
        self.assertEqual(self.modules_of(qemu), ["absent", "absent"])
        # It knows no leases: the device is attached, and nothing will ever stop it.
        qmp.command("device_add", id="stick", driver="usb-host", hostbus=1, hostaddr=4)
        self.lab.page.revoke()
        self.assertTrue(self.lab.attached(qmp))
        self.assertEqual(self.modules_of(qemu), ["stock", "absent"])


CASES = (HostLeases, RedirLeases, HostBrokenPages, RedirBrokenPages, FailOpen)

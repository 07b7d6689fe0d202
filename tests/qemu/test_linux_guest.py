"""A Linux guest with a serial adapter behind usb-redir: pipelined bulk reads, bulk writes, an interrupt endpoint and
control requests are under way whenever the lease ends."""

import json
import os
import time
import unittest

import boottime
import guest_image
import one_thread
import processes
import qemu_lab
import waiting

ROUNDS = int(os.environ.get("ROUNDS", "4"))


BOOT_S = 300  # a second or ten on a machine of one's own


class LinuxGuest(unittest.TestCase):
    setup = None
    time_limit_s = 2 * BOOT_S

    def setUp(self):
        self.lab = qemu_lab.Lab(self.setup.build, self.setup.modules, "redir")
        self.addCleanup(self.lab.close)
        self.console = waiting.TextFile(self.lab.dir / "console")
        self.dongle_log = self.lab.dir / "dongle.jsonl"
        self.image = guest_image.ensure(print)

    def start(self, *words):
        dongle = self.setup.build / "tests/devices/usbredir-dongle"
        self.lab.add_peer(
            processes.Program(
                "dongle",
                [dongle, "--listen", f"unix:{self.lab.socket_path}", "--serial", "S1", "--log", self.dongle_log],
                self.lab.dir / "dongle.log",
            ),
            "^ready",
        )
        command = ["-m", "192", "-kernel", self.image.kernel, "-initrd", self.image.initrd]
        command += ["-append", " ".join([guest_image.COMMAND_LINE, *words]), "-serial", f"file:{self.console.path}"]
        return self.lab.start(*command, chardev=",reconnect=1")

    def packets_after(self, since_ns):
        """What reached the device after that instant."""
        with open(self.dongle_log, encoding="utf-8") as file:
            entries = [json.loads(line) for line in file if line.endswith("\n")]
        return [entry for entry in entries if entry["event"] in ("packet", "line") and entry["t_ns"] > since_ns]

    def pong_until_the_end(self, since):
        """Renews until the guest talks to the device, then no more; returns the deadline."""
        end = time.monotonic() + BOOT_S
        while True:
            deadline_ns = self.lab.page.renew(2)
            if self.console.matches(r"guest: pong \d+ S1", since):
                return deadline_ns
            self.assertLess(time.monotonic(), end, self.console.tail())
            time.sleep(0.2)

    def test_a_lease_that_ends_in_the_middle_of_pipelined_traffic(self):
        self.lab.with_page()
        self.lab.page.grant(2)
        qemu, qmp = self.start()
        for _ in range(ROUNDS):
            mark = self.console.mark()
            deadline_ns = self.pong_until_the_end(mark)
            event = qmp.wait_event("USB_LEASE_LOST")
            self.assertEqual(event["data"]["reason"], "expired")
            self.console.wait_for("guest: usb-remove", 20, mark, alive=qemu.check_alive)
            until_ns = deadline_ns + 10 * qemu_lab.LATE_MAX_NS
            waiting.wait_until("time to pass", lambda until=until_ns: boottime.now_ns() > until, 5)
            self.assertEqual(self.packets_after(deadline_ns + qemu_lab.LATE_MAX_NS), [])
            self.lab.page.grant(2)
        qemu.check_alive()

    def test_packets_behind_those_under_way_at_the_deadline(self):
        """Pipelined bulk writes are under way, unanswered, when the deadline comes; more follow before QEMU's main loop
        gets to run. Answering those at once, as a refused packet seems to want, aborts QEMU."""
        self.lab.with_page()
        self.lab.page.grant(2 * BOOT_S)
        qemu, qmp = self.start("usblease.flood=1")
        self.console.wait_for("guest: flood", BOOT_S, alive=qemu.check_alive)
        self.assert_lost_while_stopped(qemu, qmp)

    def assert_lost_while_stopped(self, qemu, qmp):
        """Under a short lease: the main loop is stopped before the deadline and goes on after it."""
        self.lab.page.revoke()
        qmp.wait_event("USB_LEASE_LOST")
        mark = self.console.mark()
        deadline_ns = self.lab.page.grant(4)
        while not self.console.matches("guest: flood", mark):
            deadline_ns = self.lab.page.renew(4)
            time.sleep(0.1)
        waiting.wait_until("the deadline to be near", lambda: boottime.now_ns() > deadline_ns - 200_000_000, 10)
        with one_thread.stopped_in_poll(qemu.pid):
            waiting.wait_until("the deadline to pass", lambda: boottime.now_ns() > deadline_ns + 500_000_000, 10)
        event = qmp.wait_event("USB_LEASE_LOST")
        self.assertEqual(event["data"]["reason"], "expired")
        self.assertEqual(self.packets_after(deadline_ns + qemu_lab.LATE_MAX_NS), [])
        self.console.wait_for("guest: usb-remove", 20, mark, alive=qemu.check_alive)


CASES = (LinuxGuest,)

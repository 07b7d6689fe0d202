"""The main job on real libvirtd, real QEMU and real guests: one device, one guest, at every instant."""

import json
import os
import signal
import subprocess
import unittest

import boottime
import domain_xml
import libvirtd
import processes
import waiting
from usblease_lab import LAB_DIR, RUN_DIR, TIMING, Lab

MS = 1_000_000
EXIT_REFUSED, EXIT_TIMED_OUT, EXIT_UNREACHABLE, EXIT_NOT_FOUND = 3, 4, 5, 6


class MainJobTest(unittest.TestCase):
    """One lab with two devices for all tests; each test has guests of its own and leaves the devices free."""

    @classmethod
    def setUpClass(cls):
        cls.lab = Lab(devices={"dongle": {}, "other": {}, "limited": {"guests": "nobody-we-know"}})
        cls.addClassCleanup(cls.lab.close)
        cls.lab.start()
        # A new store knows a device once its home has reported it, a moment after the daemon is ready.
        waiting.wait_until("the devices", lambda: len(cls.lab.usblease_json("list").get("devices", [])) == 3, 10)
        cls.wait_state("dongle", "free")
        cls.wait_state("other", "free")

    def tearDown(self):
        if not self.lab.daemon.running:
            self.lab.start_daemon()
        if not self.lab.libvirtd.program.running:
            self.lab.libvirtd.start()
        for guest in self.lab.guests.values():
            if guest.running:
                guest.destroy()
        for device in ("dongle", "other"):
            if not self.lab.devices[device].program.running:
                self.lab.devices[device].plug()
            self.wait_state(device, "free")

    # ---- helpers

    @classmethod
    def view(cls, device):
        return cls.lab.usblease_json("info", device)["device"]

    @classmethod
    def wait_state(cls, device, state, timeout_s=20):
        return waiting.wait_until(
            lambda: f"{device} to be {state}, it is {cls.view(device)}; log:\n{cls.lab.daemon.log.tail(40)}",
            lambda: (view := cls.view(device)) and view["state"] == state and view,
            timeout_s,
        )

    def token(self, device="dongle"):
        return int(self.view(device)["device"]["lease"]["token"])

    def serial(self, device="dongle"):
        return self.lab.devices[device].serial

    def events(self, kind):
        return [event for event in self.lab.usblease_json("events")["events"] if event["kind"] == kind]

    def running_guest(self, name, **declared):
        guest = self.lab.guest(name, **declared)
        guest.start()
        return guest

    # ---- admission

    def test_declared_in_metadata_is_attached_and_returned(self):
        guest = self.lab.guest("meta", assignments=["dongle"])
        mark = guest.start()
        guest.wait_pong(self.serial(), mark)
        self.assertEqual(self.view("dongle")["device"]["lease"]["guest_name"], "meta")
        first = self.token()
        guest.destroy()
        self.wait_state("dongle", "free")
        mark = guest.start()
        guest.wait_pong(self.serial(), mark)
        self.assertGreater(self.token(), first)

    def test_declared_as_redirdev_connects_at_start(self):
        path = RUN_DIR / "guests" / domain_xml.uuid_of("redir") / "dongle"
        guest = self.lab.guest("redir", redirdev_paths=[path])
        mark = guest.start()
        guest.wait_pong(self.serial(), mark)
        guest.kill9()
        self.lab.libvirtd.wait_gone("redir")
        self.wait_state("dongle", "free")

    def test_second_guest_is_refused_with_a_sentence(self):
        self.running_guest("first", assignments=["dongle"])
        second = self.lab.guest("second", assignments=["dongle"])
        error = second.start_refused()
        self.assertIn("device dongle is held by guest first", error)
        self.assertIn("usblease revoke dongle", error)
        self.assertFalse(second.running)
        # libvirt ran stopped and release for the refused start: the holder keeps its lease.
        self.assertEqual(self.view("dongle")["state"], "granted")

    def test_optional_device_comes_later(self):
        holder = self.running_guest("holder", assignments=["dongle"])
        patient = self.lab.guest("patient", assignments=[("dongle", {"required": "no"})])
        mark = patient.start()
        self.assertNotIn(self.serial(), patient.console.text(mark))
        holder.destroy()
        patient.wait_pong(self.serial(), mark)

    def test_two_devices_are_granted_whole(self):
        self.running_guest("one", assignments=["other"])
        both = self.lab.guest("both", assignments=["dongle", "other"])
        self.assertIn("device other is held by guest one", both.start_refused())
        self.assertEqual(self.view("dongle")["state"], "free")

    def test_bad_metadata_is_refused_and_says_where(self):
        bad = "<usblease:devices xmlns:usblease='urn:usblease:domain:1'><usblease:device nam='dongle'/></usblease:devices>"
        error = self.lab.guest("badmeta", metadata=bad).start_refused()
        self.assertIn("unknown attribute nam", error)

    def test_unknown_device_is_refused(self):
        error = self.lab.guest("unknown", assignments=["nosuch"]).start_refused()
        self.assertIn("there is no device nosuch", error)

    def test_policy_names_guests(self):
        self.assertIn("policy of limited does not allow", self.lab.guest("stranger", assignments=["limited"]).start_refused())

    def test_daemon_dead_refuses_only_who_declares(self):
        self.lab.daemon.kill9()
        error = self.lab.guest("declares", assignments=["dongle"]).start_refused()
        self.assertIn("usbleased", error)
        self.lab.guest("declares-nothing").start(wait=False)

    # ---- attach, detach, queue

    def test_attach_detach_while_running(self):
        guest = self.running_guest("hot")
        mark = guest.console.mark()
        self.assertIn("attached to hot under token", self.lab.usblease("attach", "hot", "dongle"))
        guest.wait_pong(self.serial(), mark)
        self.lab.usblease("detach", "hot", "dongle")
        guest.wait_usb_remove(self.serial(), mark)
        self.wait_state("dongle", "free")
        mark = guest.console.mark()
        self.lab.usblease("attach", "hot", "dongle")
        guest.wait_pong(self.serial(), mark)
        self.lab.libvirtd.virsh("detach-device-alias", "hot", "ua-usblease-dongle")
        self.wait_state("dongle", "free")

    def test_attach_says_what_is_wrong(self):
        code, error = self.lab.usblease_fails("attach", "no-such-guest", "dongle")
        self.assertEqual(code, EXIT_NOT_FOUND, error)
        self.lab.guest("asleep")
        code, error = self.lab.usblease_fails("attach", "asleep", "dongle")
        self.assertEqual((code, "not running" in error), (EXIT_REFUSED, True), error)
        self.running_guest("awake")
        code, error = self.lab.usblease_fails("attach", "awake", "nosuch")
        self.assertEqual(code, EXIT_NOT_FOUND, error)

    def test_queue_hands_over_in_order(self):
        guests = [self.running_guest(f"q{n}") for n in (1, 2, 3)]
        self.lab.usblease("attach", "q1", "dongle")
        waiting_commands = []
        for n in (2, 3):
            waiting_commands.append(self.lab.background(f"wait{n}", "attach", f"q{n}", "dongle", "--wait", "60"))
            waiting.wait_until("the place", lambda n=n: len(self.lab.usblease_json("queue", "dongle")["requests"]) == n - 1, 10)
        first = self.token()
        self.lab.usblease("revoke", "dongle", "--reason", "next please")
        self.assertEqual(waiting_commands[0].wait_end(20), 0, waiting_commands[0].log.tail())
        guests[1].wait_pong(self.serial())
        second = self.token()
        guests[1].destroy()
        self.assertEqual(waiting_commands[1].wait_end(20), 0, waiting_commands[1].log.tail())
        guests[2].wait_pong(self.serial())
        self.assertTrue(first < second < self.token())

    def test_wait_times_out(self):
        self.running_guest("stays", assignments=["dongle"])
        self.running_guest("gives-up")
        code, error = self.lab.usblease_fails("attach", "gives-up", "dongle", "--wait", "1")
        self.assertEqual(code, EXIT_TIMED_OUT, error)
        self.assertEqual(self.lab.usblease_json("queue", "dongle")["requests"], [])

    def test_wait_that_timed_out_is_over(self):
        """A waiting request is repeated every 2 s: a repeat at the very end of the wait must not queue it anew."""
        self.running_guest("stays", assignments=["dongle"])
        self.lab.guest("patient").start(wait=False)
        before = max((int(e["seq"]) for e in self.lab.usblease_json("events")["events"]), default=0)
        command = self.lab.background("patient", "attach", "patient", "dongle", "--wait", "4")
        waiting.wait_until("the place", lambda: self.lab.usblease_json("queue", "dongle")["requests"], 10)
        queued_ns = boottime.now_ns()
        # Frozen over the end of the wait: then the end and the repeat are due together.
        waiting.wait_until("the last repeat but one", lambda: boottime.now_ns() > queued_ns + 3000 * MS, 10)
        self.lab.daemon.freeze()
        waiting.wait_until("the end of the wait", lambda: boottime.now_ns() > queued_ns + 4500 * MS, 10)
        self.lab.daemon.thaw()
        self.assertEqual(command.wait_end(20), EXIT_TIMED_OUT, command.log.tail())
        self.assertEqual(self.lab.usblease_json("queue", "dongle")["requests"], [])
        events = [e for e in self.lab.usblease_json("events")["events"] if int(e["seq"]) > before]
        kinds = [e["kind"] for e in events if e["guest"] == "patient"]
        self.assertEqual(kinds, ["queued", "timed-out"])

    def test_interrupted_wait_leaves_the_queue(self):
        self.running_guest("stays", assignments=["dongle"])
        self.running_guest("leaves")
        command = self.lab.background("leaver", "attach", "leaves", "dongle", "--wait", "60")
        waiting.wait_until("the place", lambda: self.lab.usblease_json("queue", "dongle")["requests"], 10)
        command.signal(signal.SIGINT)
        command.wait_end()
        waiting.wait_until("an empty queue", lambda: not self.lab.usblease_json("queue", "dongle")["requests"], 10)

    def test_until_ends_by_itself(self):
        guest = self.running_guest("timed")
        mark = guest.console.mark()
        self.lab.usblease("attach", "timed", "dongle", "--for", "2s")
        guest.wait_pong(self.serial(), mark)
        guest.wait_usb_remove(self.serial(), mark)
        self.wait_state("dongle", "free")
        self.assertEqual(self.events("fenced")[-1]["device"], "dongle")

    # ---- crashes and freezes

    def assert_nothing_after(self, deadline_ns):
        """No packet reached the device from its deadline on. The packet at the deadline was written before it."""
        slack_ns = 50 * MS  # between the relay's write and the moment the device read it
        late = [p for p in self.lab.devices["dongle"].packets() if p["t_ns"] > deadline_ns + slack_ns]
        self.assertEqual(late, [])

    def test_daemon_killed_and_back_is_not_noticed(self):
        guest = self.running_guest("calm", assignments=["dongle"])
        guest.wait_pong(self.serial())
        token = self.token()
        mark = guest.console.mark()
        for _ in range(3):
            self.lab.daemon.kill9()
            self.lab.start_daemon()
            guest.wait_pong(self.serial(), guest.console.mark())
        later_ns = boottime.now_ns() + TIMING["ttl_ms"] * MS
        waiting.wait_until("a lifetime", lambda: boottime.now_ns() > later_ns, 20)
        self.assertEqual(guest.console.matches("usb-remove|io-error|silence", mark), [])
        self.assertEqual(self.token(), token)

    def test_daemon_stays_dead_and_the_relay_fences(self):
        guest = self.running_guest("bereft", assignments=["dongle"])
        guest.wait_pong(self.serial())
        mark = guest.console.mark()
        killed_ns = boottime.now_ns()
        self.lab.daemon.kill9()
        guest.wait_usb_remove(self.serial(), mark, timeout_s=20)
        self.assert_nothing_after(killed_ns + TIMING["ttl_ms"] * MS)
        self.assertTrue(guest.running)
        self.lab.start_daemon()
        self.wait_state("dongle", "free")

    def test_daemon_frozen_and_the_relay_fences(self):
        guest = self.running_guest("frozen", assignments=["dongle"])
        guest.wait_pong(self.serial())
        mark = guest.console.mark()
        frozen_ns = boottime.now_ns()
        self.lab.daemon.freeze()
        guest.wait_usb_remove(self.serial(), mark, timeout_s=20)
        self.assert_nothing_after(frozen_ns + TIMING["ttl_ms"] * MS)
        self.lab.daemon.thaw()
        self.wait_state("dongle", "free")

    def relay_pids(self):
        return [int(pid) for pid in processes.run(["pgrep", "-f", "usblease-relay --device"], check=False).stdout.split()]

    def test_relay_killed_fences_and_gives_back(self):
        guest = self.running_guest("orphan", assignments=["dongle"])
        guest.wait_pong(self.serial())
        mark = guest.console.mark()
        for pid in self.relay_pids():
            os.kill(pid, signal.SIGKILL)
        guest.wait_usb_remove(self.serial(), mark)
        self.wait_state("dongle", "free")
        self.assertIn("fresh stream", self.events("fenced")[-1]["text"])

    def test_relay_frozen_past_the_deadline_lets_nothing_pass(self):
        guest = self.running_guest("icy", assignments=["dongle"])
        guest.wait_pong(self.serial())
        mark = guest.console.mark()
        pids = self.relay_pids()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        self.lab.daemon.kill9()
        frozen_ns = boottime.now_ns()
        past_ns = frozen_ns + 2 * TIMING["ttl_ms"] * MS
        waiting.wait_until("the deadline to pass", lambda: boottime.now_ns() > past_ns, 20)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        guest.wait_usb_remove(self.serial(), mark)
        self.assert_nothing_after(frozen_ns + TIMING["ttl_ms"] * MS)
        self.lab.start_daemon()
        self.wait_state("dongle", "free")

    def test_guest_crash_gives_back(self):
        guest = self.running_guest("crash", assignments=["dongle"])
        guest.wait_pong(self.serial())
        guest.kill9()
        self.wait_state("dongle", "free")

    def test_libvirtd_restart_loses_nothing(self):
        guest = self.running_guest("kept", assignments=["dongle"])
        guest.wait_pong(self.serial())
        token = self.token()
        self.lab.libvirtd.kill9()
        self.lab.libvirtd.start()
        guest.wait_pong(self.serial(), guest.console.mark())
        waiting.wait_until("libvirt again", lambda: self.lab.usblease_json("host", "info").get("libvirt_connected"), 20)
        self.assertEqual(self.token(), token)
        mark = guest.console.mark()
        self.lab.usblease("detach", "kept", "dongle")
        guest.wait_usb_remove(self.serial(), mark)

    def test_guest_ends_while_the_daemon_is_down(self):
        guest = self.running_guest("lost", assignments=["dongle"])
        guest.wait_pong(self.serial())
        self.lab.daemon.stop()
        guest.kill9()
        self.lab.libvirtd.wait_gone("lost")
        self.lab.start_daemon()
        self.wait_state("dongle", "free")

    # ---- devices that misbehave

    def test_unplugged_device_ends_the_lease_and_comes_back(self):
        guest = self.running_guest("unplug", assignments=["dongle"])
        guest.wait_pong(self.serial())
        mark = guest.console.mark()
        first = self.token()
        self.lab.devices["dongle"].unplug()
        guest.wait_usb_remove(self.serial(), mark)
        self.wait_state("dongle", "absent")
        self.lab.devices["dongle"].plug()
        self.wait_state("dongle", "free")
        mark = guest.console.mark()
        self.lab.usblease("attach", "unplug", "dongle")
        guest.wait_pong(self.serial(), mark)
        self.assertGreater(self.token(), first)

    # ---- impostors

    def test_only_the_guests_own_qemu_gets_in(self):
        guest = self.running_guest("rightful")
        self.running_guest("impostor")
        self.lab.usblease("attach", "rightful", "dongle")
        guest.wait_pong(self.serial())
        path = RUN_DIR / "guests" / guest.uuid / "dongle"
        probe = subprocess.run(
            ["python3", "-c", "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.settimeout(5);"
             "print('closed' if s.recv(1) == b'' else 'served')", str(path)],
            capture_output=True, text=True, timeout=20, check=False,
        )
        self.assertEqual(probe.stdout.strip(), "closed", probe.stderr)
        guest.wait_pong(self.serial(), guest.console.mark())
        self.lab.daemon.log.wait_for("turned away a process that is not the guest's QEMU", 5)

    # ---- the record

    def test_everything_restarts_at_once(self):
        guest = self.running_guest("all", assignments=["dongle"])
        guest.wait_pong(self.serial())
        token = self.token()
        self.lab.libvirtd.kill9()
        self.lab.daemon.kill9()
        self.lab.libvirtd.start()
        self.lab.start_daemon()
        guest.wait_pong(self.serial(), guest.console.mark())
        self.assertEqual(self.token(), token)

    def test_old_copy_of_the_store_is_found(self):
        state = LAB_DIR / "state"
        self.lab.daemon.stop()
        saved = {file.name: file.read_bytes() for file in state.iterdir() if file.name.startswith("usblease.db")}
        self.lab.start_daemon()
        self.running_guest("after", assignments=["dongle"]).wait_pong(self.serial())
        for guest in self.lab.guests.values():
            if guest.running:
                guest.destroy()
        self.wait_state("dongle", "free")
        self.lab.daemon.stop()
        now = {file.name: file.read_bytes() for file in state.iterdir() if file.name.startswith("usblease.db")}
        try:
            for file in state.glob("usblease.db*"):
                file.unlink()
            for name, data in saved.items():
                (state / name).write_bytes(data)
            self.lab.start_daemon()
            behind = waiting.wait_until("the floor to tell", lambda: self.lab.usblease_json("status").get("behind"), 10)
            self.assertIn("went back in time", behind)
            self.assertIn("went back in time", self.lab.guest("unlucky", assignments=["dongle"]).start_refused())
        finally:
            self.lab.daemon.stop()
            for file in state.glob("usblease.db*"):
                file.unlink()
            for name, data in now.items():
                (state / name).write_bytes(data)
            self.lab.start_daemon()


if __name__ == "__main__":
    unittest.main()

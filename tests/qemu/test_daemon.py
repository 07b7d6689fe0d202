"""All of it together: real usbleased writes the pages, real libvirtd starts Debian's QEMU with our modules in the place of
its own, a Linux guest uses a device. Whatever dies or freezes, QEMU closes at the deadline.

Everything in private namespaces, as in the hypervisor tier; the modules are installed by the command that an
administrator types."""

import json
import os
import pathlib
import shutil
import signal
import struct
import time
import unittest

import boottime
import isolation
import libvirtd
import processes
import usblease_lab
import waiting
from qemu_lab import LATE_MAX_NS, cover
from test_install import Machine

TREE = pathlib.Path(__file__).resolve().parents[2]
MS = 1_000_000
BOOT_S = 300  # three seconds on a machine of one's own
# The lease must outlive what a busy machine does between two looks of a test.
TIMING = {"ttl_ms": 6000, "renewal_ms": 1000, "grace_ms": 500}
EXIT_UNAVAILABLE = 5
SLOT = struct.Struct("<QIIQQQQ")  # magic, version, state, generation, epoch, token, deadline_ns
GRANTED = 2


class LeasePage:
    """The page as it is now; reads the newer slot. (The reader proper is QEMU's.)"""

    def __init__(self, guest, device):
        self.path = usblease_lab.RUN_DIR / "pages" / f"redir-{guest.uuid}-{device}"
        data = self.path.read_bytes()
        slots = [SLOT.unpack_from(data, 128 * index) for index in range(2)]
        _, _, self.state, _, _, self.token, self.deadline_ns = max(slots, key=lambda slot: slot[3])


class MonitorEvents:
    """What QEMU tells libvirt, with QEMU's own time stamps. Listening only: it does not taint the domain."""

    def __init__(self, lab, guest):
        self._log = usblease_lab.LAB_DIR / f"{guest.name}.events"
        command = ["stdbuf", "-oL", "virsh", "-q", "-c", libvirtd.URI, "qemu-monitor-event", guest.name, "--loop"]
        self._program = processes.Program("monitor events", command, self._log).start()
        # A pause is an event: once it is seen, nothing that follows is missed.
        end = time.monotonic() + 30
        while not self._program.log.matches("event STOP "):
            self._program.check_alive()
            lab.libvirtd.virsh("suspend", guest.name)
            lab.libvirtd.virsh("resume", guest.name)
            if time.monotonic() > end:
                raise waiting.TimedOut(self._program.log.tail())

    def wait_lost(self, timeout_s=30):
        """(CLOCK_BOOTTIME in ns, the event's data) of USB_LEASE_LOST."""
        found = self._program.wait_line(r"event USB_LEASE_LOST at (\d+)\.(\d+) for domain '?[^:]*: (\{.*\})", timeout_s)
        at_ns = int(found.group(1)) * 1_000_000_000 + int(found.group(2)) * 1000
        return at_ns + boottime.now_ns() - time.time_ns(), json.loads(found.group(3))

    def stop(self):
        self._program.stop()


class Stack(Machine):
    """This machine with an installed `usblease` to type, a lab, and nothing in QEMU yet. "dongle" wants rung qemu."""

    def __init__(self, setup):
        super().__init__(setup)
        os.environ["USBLEASE_BUILD"] = str(setup.build)
        os.environ.update(self.environment)
        self._install_scripts()
        self.lab = usblease_lab.Lab(devices={"dongle": {"min_rung": "qemu"}, "plain": {}}, timing=TIMING)

    def _install_scripts(self):
        """Where `ninja install` would put plugin/qemu."""
        options = json.loads((self.setup.build / "meson-info/intro-buildoptions.json").read_text())
        value = {option["name"]: option["value"] for option in options}
        target = pathlib.Path(value["prefix"]) / value["libexecdir"] / "usblease/qemu"
        cover(next(parent for parent in target.parents if parent.exists()), pathlib.Path("/run/scratch"))
        shutil.rmtree(target, ignore_errors=True)  # of this machine's own installation, in this namespace only
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(TREE / "plugin/qemu")

    def start(self):
        self.lab.start()
        for device in ("dongle", "plain"):
            self.wait_state(device, "free", "absent")

    def install(self):
        """By the command; returns when usbleased has told the coordinator."""
        said = self.lab.usblease("host", "install-qemu-module", timeout_s=300)
        assert said.count("ours, fits") == 2, said
        waiting.wait_until("the rung", lambda: "RUNG_QEMU" in self.known_rungs(), 20)

    def known_rungs(self):
        """What the coordinator knows of this host."""
        return self.lab.usblease_json("cluster", "status")["hosts"][0]["host"]["rungs"]

    def qemu_rung(self):
        """(available, why) as host info reports it now."""
        rungs = self.lab.usblease_json("host", "info")["rungs"]
        report = next(rung for rung in rungs if rung["rung"] == "RUNG_QEMU")
        return report["available"], report["detail"]

    def view(self, device):
        return self.lab.usblease_json("info", device)["device"]

    def wait_state(self, device, *states):
        waiting.wait_until(
            lambda: f"{device} to be {states}, it is {self.view(device)}; log:\n{self.lab.daemon.log.tail(40)}",
            lambda: self.view(device)["state"] in states,
            30,
        )

    def running_guest(self, name, **declared):
        guest = self.lab.guest(name, **declared)
        mark = guest.start(wait=False)
        guest.wait_up(mark, BOOT_S)
        return guest

    def relay_pids(self):
        found = processes.run(["pgrep", "-f", "usblease-relay --device dongle"], check=False).stdout.split()
        return [int(pid) for pid in found]

    def packets_after(self, deadline_ns):
        return [packet for packet in self.lab.devices["dongle"].packets() if packet["t_ns"] > deadline_ns + LATE_MAX_NS]


def assert_closed_by_qemu(events, page):
    """At the deadline, not before, and by itself."""
    at_ns, data = events.wait_lost()
    assert data["reason"] == "expired", data
    assert data["token"] == page.token, data
    assert data["page"] == str(page.path), data
    assert at_ns >= page.deadline_ns - MS, f"{(page.deadline_ns - at_ns) / MS} ms before the deadline"
    late_ms = (at_ns - page.deadline_ns) / MS
    assert late_ms < 1000, f"{late_ms} ms after the deadline"
    print(f"          deadline to event {late_ms:.2f} ms", flush=True)


class WithDaemon(unittest.TestCase):
    setup = None
    time_limit_s = 2 * BOOT_S

    def isolated(self, steps):
        """Runs steps(stack) in namespaces of its own; what it raises is printed there."""
        if os.geteuid() != 0:
            self.skipTest("it needs root: private namespaces")

        def run():
            stack = Stack(self.setup)
            try:
                stack.start()
                steps(stack)
            except BaseException:
                print(stack.lab.daemon.log.tail(60), flush=True)
                raise
            finally:
                stack.lab.close()

        self.assertEqual(isolation.run_isolated(run, self.time_limit_s), 0)

    def test_the_daemon_killed_and_its_relay_frozen(self):
        """Nobody but QEMU is left who could stop the device."""

        def steps(stack):
            stack.install()
            guest = stack.running_guest("a", assignments=["dongle"])
            serial = stack.lab.devices["dongle"].serial
            guest.wait_pong(serial, timeout_s=BOOT_S)
            assert "RUNG_QEMU" in stack.known_rungs() and stack.qemu_rung()[0]
            events = MonitorEvents(stack.lab, guest)
            mark = guest.console.mark()
            guest.wait_pong(serial, mark)
            relays = stack.relay_pids()
            assert len(relays) == 1, relays
            os.kill(relays[0], signal.SIGSTOP)
            stack.lab.daemon.kill9()
            page = LeasePage(guest, "dongle")
            assert page.state == GRANTED
            assert_closed_by_qemu(events, page)
            guest.wait_usb_remove(serial, mark)
            os.kill(relays[0], signal.SIGCONT)
            assert guest.running
            self.everything_comes_back(stack, guest, page)
            events.stop()

        self.isolated(steps)

    @staticmethod
    def everything_comes_back(stack, guest, page):
        """A new daemon fences what was leased, and a new token brings the device back to the same QEMU."""
        assert stack.packets_after(page.deadline_ns) == []
        stack.lab.start_daemon()
        stack.wait_state("dongle", "free")
        waiting.wait_until("the page to go", lambda: not page.path.exists(), 10)
        mark = guest.console.mark()
        stack.lab.usblease("attach", guest.name, "dongle")
        guest.wait_pong(stack.lab.devices["dongle"].serial, mark)
        again = LeasePage(guest, "dongle")
        assert again.token > page.token and again.state == GRANTED

    def test_the_daemon_and_its_relay_killed(self):
        """The stream ends at once; what QEMU has of the lease ends at its deadline."""

        def steps(stack):
            stack.install()
            guest = stack.running_guest("b", assignments=["dongle"])
            serial = stack.lab.devices["dongle"].serial
            guest.wait_pong(serial, timeout_s=BOOT_S)
            events = MonitorEvents(stack.lab, guest)
            mark = guest.console.mark()
            stack.lab.daemon.kill9()
            for pid in stack.relay_pids():
                os.kill(pid, signal.SIGKILL)
            page = LeasePage(guest, "dongle")
            guest.wait_usb_remove(serial, mark)
            assert_closed_by_qemu(events, page)
            assert guest.running
            self.everything_comes_back(stack, guest, page)
            events.stop()

        self.isolated(steps)

    def test_a_stock_module_never_counts(self):
        """The trap: it works like ours until the deadline. A guest that has loaded it gets no device that wants more."""

        def steps(stack):
            available, why = stack.qemu_rung()
            assert not available and "install-qemu-module" in why, why
            refused = stack.lab.guest("early", assignments=["dongle"]).start_refused()
            assert "dongle" in refused, refused
            # Its QEMU loads Debian's module with a device that wants no such fence.
            guest = stack.running_guest("stock", assignments=["plain"])
            guest.wait_pong(stack.lab.devices["plain"].serial, timeout_s=BOOT_S)
            stack.install()
            code, said = stack.lab.usblease_fails("attach", "stock", "dongle")
            assert code == EXIT_UNAVAILABLE and "another hw-usb-redirect.so than ours" in said, (code, said)
            assert stack.lab.devices["dongle"].packets() == []
            stack.wait_state("dongle", "free")
            # The next start of it has ours.
            guest.destroy()
            stack.wait_state("plain", "free")
            mark = guest.start(wait=False)
            guest.wait_up(mark, BOOT_S)
            mark = guest.console.mark()
            stack.lab.usblease("attach", "stock", "dongle")
            guest.wait_pong(stack.lab.devices["dongle"].serial, mark)
            self.undone(stack)

        self.isolated(steps)

    @staticmethod
    def undone(stack):
        """Taken out again, the rung is gone, and what usblease says of it is true."""
        stack.lab.usblease("host", "install-qemu-module", "--undo")
        assert stack.is_stock()
        waiting.wait_until("the rung to go", lambda: "RUNG_QEMU" not in stack.known_rungs(), 20)
        assert not stack.qemu_rung()[0]
        status = stack.lab.usblease_json("host", "install-qemu-module", "--status")
        assert status == {"ok": False, "modules": {name: "Debian's" for name in stack.stock}}, status

    def test_the_guests_own_xml(self):
        """A <redirdev> in the XML connects before QEMU has loaded any module, while the guest is still paused."""

        def steps(stack):
            stack.install()
            guest = stack.lab.guest("own")
            path = usblease_lab.RUN_DIR / "guests" / guest.uuid / "dongle"
            guest.define(redirdev_paths=[path])
            mark = guest.start(wait=False)
            guest.wait_up(mark, BOOT_S)
            serial = stack.lab.devices["dongle"].serial
            guest.wait_pong(serial, mark, timeout_s=BOOT_S)
            page = LeasePage(guest, "dongle")
            assert page.state == GRANTED
            mark = guest.console.mark()
            stack.lab.usblease("revoke", "dongle", "--reason", "the test wants it")
            guest.wait_usb_remove(serial, mark)
            stack.wait_state("dongle", "free")
            waiting.wait_until("the page to go", lambda: not page.path.exists(), 10)

        self.isolated(steps)


CASES = (WithDaemon,)

"""The installed daemon on a host with USB: what it says is plugged in, as devices come, go and come back elsewhere."""

import re
import unittest

import waiting
from host_vm import HostVm

CONFIG = """[device left]
usb=0627:0001
port=1-3
[device right]
usb=0627:0001
port=1-4
[device stick]
usb=46f4:0001:STICK
"""
HOST = HostVm("a")


def setUpModule():
    unittest.addModuleCleanup(HOST.close)
    HOST.start()
    HOST.run(f"cat >/etc/usblease/usbleased.conf <<'END'\n{CONFIG}END")
    HOST.run("usbleased >/tmp/usbleased.log 2>&1 </dev/null &")
    waiting.wait_until(
        lambda: HOST.run("cat /tmp/usbleased.log").output, lambda: HOST.run("usblease list", check=False).code == 0, 60
    )


class Inventory(unittest.TestCase):
    def where(self, device):
        """Where the daemon says that it is."""
        return re.search(r"^(Where|Absent because): +(.*)", HOST.output(f"usblease info {device}"), re.MULTILINE).group(2)

    def wait_where(self, device, pattern):
        waiting.wait_until(
            lambda: f"{device} to be {pattern}; it is {self.where(device)}\n{HOST.output('tail /tmp/usbleased.log')}",
            lambda: re.fullmatch(pattern, self.where(device)),
            30,
        )

    def test_twins_without_serials_are_told_apart_by_port(self):
        self.wait_where("left", "not plugged in")
        # Plugged in the wrong way round: it is the port that counts, not the order, nor what they say of themselves.
        HOST.plug("usb-kbd", "SECOND", port=4)
        self.wait_where("right", r"plugged in at 1-4 \(bus 1, device \d+, 0627:0001, serial SECOND\)")
        self.assertEqual(self.where("left"), "not plugged in")
        HOST.plug("usb-kbd", "FIRST", port=3)
        self.wait_where("left", r"plugged in at 1-3 \(.*, serial FIRST\)")
        HOST.unplug("SECOND")
        self.wait_where("right", "not plugged in")
        HOST.unplug("FIRST")
        self.wait_where("left", "not plugged in")

    def test_serial_is_found_at_any_port_and_on_either_bus(self):
        for port in (2, 5):
            HOST.plug("usb-storage", "STICK", port=port)
            self.wait_where("stick", rf"plugged in at [12]-{port} \(.*, 46f4:0001, serial STICK\)")
            HOST.unplug("STICK")
            self.wait_where("stick", "not plugged in")

    def test_what_is_seen_is_refused_to_everybody(self):
        node = HOST.plug("usb-storage", "STICK")
        self.addCleanup(HOST.unplug, "STICK")
        self.assertIn("refused EPERM", HOST.run(f"/testbed/usb-user open {node}", check=False).output)
        self.assertEqual(HOST.output("ls /dev/sd* 2>/dev/null || true"), "", "no child node either")

    def test_host_info_says_whether_the_kernel_can(self):
        HOST.run("usblease-fence load")
        self.assertRegex(HOST.output("usblease host info"), r"(?m)^ kernel +yes +/sys/fs/bpf/usblease")
        HOST.run("usblease-fence unload")
        self.assertRegex(HOST.output("usblease host info"), r"(?m)^ kernel +no +the fence is not loaded")

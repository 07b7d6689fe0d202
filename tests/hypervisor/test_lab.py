"""The lab itself: real libvirtd, real QEMU, a real Linux guest, and hook calls as libvirt makes them."""

import os
import pathlib
import unittest

import domain_xml
import guest_image
import guests
import libvirtd
import waiting
from usblease_lab import LAB_DIR, Device, build_dir


class LabTest(unittest.TestCase):
    """One libvirtd with a recording hook for all tests; each test has guests of its own."""

    @classmethod
    def setUpClass(cls):
        LAB_DIR.mkdir()
        cls.libvirtd = libvirtd.Libvirtd(LAB_DIR / "libvirt")
        cls.addClassCleanup(cls.libvirtd.close)
        cls.record = waiting.TextFile(LAB_DIR / "hook-calls")
        cls.libvirtd.install_recording_hook(cls.record.path)
        cls.libvirtd.start()

    def guest(self, name, **declared):
        return guests.Guest(self.libvirtd, LAB_DIR, guest_image.ensure(), name, **declared)

    def calls(self, guest, since=0):
        """The operations that the hook was called with for the guest, in order."""
        return [line.split()[1] for line in self.record.lines(since) if line.split()[0] == guest.name]

    def test_guest_boots_and_says_up(self):
        guest = self.guest("boots")
        guest.start()
        self.assertTrue(guest.running)
        guest.destroy()
        self.assertFalse(guest.running)

    def test_hook_sees_start_and_destroy(self):
        guest = self.guest("hooked")
        guest.start(wait=False)
        self.assertEqual(self.calls(guest), ["prepare", "start", "started"])
        mark = self.record.mark()
        guest.destroy()
        self.assertEqual(self.calls(guest, mark), ["stopped", "release"])

    def test_hook_refuses_a_start(self):
        guest = self.guest("refused")
        refusal = pathlib.Path(f"{self.record.path}.refuse")
        refusal.write_text("prepare\n")
        self.addCleanup(refusal.unlink)
        self.assertIn("refused by the test", guest.start_refused())
        self.assertEqual(self.calls(guest), ["prepare", "stopped", "release"])

    def test_guest_survives_libvirtd_killed(self):
        guest = self.guest("survivor")
        guest.start(wait=False)
        qemu = guest.qemu_pid
        self.libvirtd.kill9()
        os.kill(qemu, 0)
        self.libvirtd.start()
        self.assertTrue(guest.running)
        waiting.wait_until("the hook's reconnect", lambda: "reconnect" in self.calls(guest), 10)
        guest.kill9()
        self.libvirtd.wait_gone("survivor")
        waiting.wait_until("the hook's release", lambda: "release" in self.calls(guest), 5)

    def test_guest_talks_to_a_device(self):
        device = Device("direct", "S-1", LAB_DIR, build_dir())
        device.plug()
        self.addCleanup(device.program.stop)
        guest = self.guest("talker", redirdev_paths=[device.path])
        guest.start()
        guest.wait_usb_add("S-1")
        self.assertEqual(guest.wait_pong("S-1").group(2), "1")
        guest.detach(domain_xml.redirdev_xml(device.path))
        guest.wait_usb_remove("S-1")
        guest.wait_io_error()
        mark = guest.console.mark()
        guest.attach(domain_xml.redirdev_xml(device.path))
        guest.wait_pong("S-1", mark)
        mark = guest.console.mark()
        device.unplug()
        guest.wait_usb_remove("S-1", mark)
        guest.destroy()


if __name__ == "__main__":
    unittest.main()

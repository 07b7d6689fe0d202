"""A real guest under libvirt with a USB disk passed through: what it gets to read, and until when."""

import unittest

from guest_host import GuestHost

HOLDER = "/sys/fs/cgroup/holder"


class PassedThrough(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.host = GuestHost("a")
        cls.addClassCleanup(cls.host.close)
        cls.host.start()
        cls.host.make_disk("STICK")
        cls.node = cls.host.plug("usb-storage", "STICK")
        cls.host.start_libvirt(HOLDER)
        cls.host.define("guest", cls.host.by_address(cls.node))

    def setUp(self):
        self.host.run(f"usblease-fence load; usblease-fence manage {self.node}")
        # A guest that is cut off in the middle of a transfer leaves the device there; unbinding and binding ends that.
        hand_over = f"usblease-fence unbind {self.node}; usblease-fence bind {self.node}"
        self.addCleanup(self.host.run, f"virsh -q destroy guest; {hand_over}; usblease-fence unload", check=False)

    def arm(self, token, for_ms):
        self.host.run(f"usblease-fence arm {self.node} --token {token} --for-ms {for_ms} --cgroup {HOLDER}")
        return int(self.host.fence_status("deadline_ns"))

    def test_without_a_lease_it_does_not_start(self):
        refused = self.host.start_guest("guest", check=False)
        self.assertNotEqual(refused.code, 0)

    def test_its_readings_stop_at_the_deadline(self):
        self.arm(1, 600_000)
        self.host.start_guest("guest")
        self.host.wait_reading("guest")
        watched = self.host.watch("guest", 10_000, 90_000)
        deadline_ns = self.arm(2, 5000)  # the same holder goes on, under a lease that ends soon
        seen = watched()
        late_ms = (seen["R"] - deadline_ns) / 1e6
        print(f"          the guest's last reading: {late_ms:.1f} ms after the deadline; {seen['count']}", flush=True)
        # What it says goes through two emulated machines and a file, and was read before; the kernel's stamp is exact.
        self.assertLess(int(self.host.fence_status("last_allowed_ns")), deadline_ns)
        self.assertLess(abs(late_ms), 5000, "it read until the end, and no longer")
        self.assertEqual(self.host.output("virsh domstate guest"), "running")

    def test_unbound_it_never_reads_again(self):
        self.arm(1, 600_000)
        self.host.start_guest("guest")
        self.host.wait_reading("guest")
        self.host.run(f"usblease-fence disarm {self.node} --token 1; usblease-fence unbind {self.node}")
        self.arm(2, 600_000)
        self.host.run(f"usblease-fence bind {self.node}")
        self.assertEqual(self.host.watch("guest", 3000, 3000)()["count"].get("R", 0), 0)
        # Its next start is another QEMU with another handle.
        self.host.run("virsh -q destroy guest")
        self.host.start_guest("guest")
        self.host.wait_reading("guest")

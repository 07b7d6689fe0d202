"""A real guest under libvirt with a USB disk passed through: what it gets to read, and until when."""

import json
import pathlib
import subprocess
import unittest

import waiting
from host_vm import HostVm

HERE = pathlib.Path(__file__).resolve().parent
HOLDER = "/sys/fs/cgroup/holder"
CONSOLE = "/tmp/guest.console"
DISK_BYTES = 16 << 20
PATTERN = b"UBLS"
START_S = 120
QEMU_CONF = """security_driver = "none"
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
namespaces = []
cgroup_controllers = []
"""
DOMAIN = """<domain type='qemu'><name>guest</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator><controller type='usb' model='qemu-xhci'/>
<serial type='file'><source path='%s'/><target port='0'/></serial><memballoon model='none'/>
<hostdev mode='subsystem' type='usb' managed='yes'><source><address bus='%d' device='%d'/></source><boot order='1'/></hostdev>
</devices></domain>
"""


def boot_disk(path):
    """The disk that the guest boots from and reads."""
    directory = path.parent
    subprocess.run(["as", "--32", "-o", directory / "guest.o", HERE / "guest_disk.S"], check=True)
    linked = ["ld", "-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o", directory / "guest.bin"]
    subprocess.run([*linked, directory / "guest.o"], check=True)
    code = (directory / "guest.bin").read_bytes()
    assert len(code) == 512, len(code)
    with open(path, "wb") as disk:
        disk.write(code + PATTERN.ljust(512, b"\0"))
        disk.truncate(DISK_BYTES)


class PassedThrough(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.host = HostVm("a")
        cls.addClassCleanup(cls.host.close)
        cls.host.start()
        boot_disk(cls.host.storage_path("STICK"))
        cls.node = cls.host.plug("usb-storage", "STICK")
        # libvirtd and its guests are in the holder's cgroup, since it makes none of its own here.
        cls.host.run(f"mkdir -p {HOLDER} /run/dbus /run/libvirt; cat >/etc/libvirt/qemu.conf <<'END'\n{QEMU_CONF}END")
        cls.host.run("dbus-uuidgen --ensure; dbus-daemon --system --fork; virtlogd -d")
        cls.host.run(f"(echo $BASHPID >{HOLDER}/cgroup.procs; libvirtd -d)")
        waiting.wait_until("libvirt", lambda: cls.host.run("virsh -q list", check=False).code == 0, 60)
        bus, number = (int(part) for part in cls.node.split("/")[-2:])
        cls.host.run(f"cat >/tmp/guest.xml <<'END'\n{DOMAIN % (CONSOLE, bus, number)}END\nvirsh -q define /tmp/guest.xml")

    def setUp(self):
        self.host.run(f"usblease-fence load; usblease-fence manage {self.node}")
        # A guest that is cut off in the middle of a transfer leaves the device there; unbinding and binding ends that.
        hand_over = f"usblease-fence unbind {self.node}; usblease-fence bind {self.node}"
        self.addCleanup(self.host.run, f"virsh -q destroy guest; {hand_over}; usblease-fence unload", check=False)

    def arm(self, token, for_ms):
        self.host.run(f"usblease-fence arm {self.node} --token {token} --for-ms {for_ms} --cgroup {HOLDER}")
        return int(self.status("deadline_ns"))

    def status(self, what):
        """What the fence knows of the only device that it manages."""
        return self.host.output("usblease-fence status").partition(f" {what}=")[2].split()[0]

    def start(self):
        self.host.run(f"rm -f {CONSOLE}; virsh -q start guest", timeout_s=START_S)

    def wait_reading(self):
        waiting.wait_until(
            lambda: f"the guest to read; it said {self.host.output(f'tail -c 100 {CONSOLE}')}",
            lambda: self.host.run(f"grep -qa R {CONSOLE}", check=False).code == 0,
            START_S,
        )

    def watch(self, quiet_ms, max_ms):
        """Begins to watch the console; returns a function that waits for what was seen."""
        self.host.run(f"python3 /testbed/watch.py {CONSOLE} {quiet_ms} {max_ms} >/tmp/watched 2>&1 </dev/null &")

        def line(number):
            lines = self.host.output("cat /tmp/watched").splitlines()
            return lines[number] if len(lines) > number else None

        waiting.wait_until("the watching to begin", lambda: line(0), 60)
        return lambda: json.loads(waiting.wait_until("the watching to end", lambda: line(1), max_ms / 1000 + 30))

    def test_without_a_lease_it_does_not_start(self):
        refused = self.host.run("virsh -q start guest", START_S, check=False)
        self.assertNotEqual(refused.code, 0)

    def test_its_readings_stop_at_the_deadline(self):
        self.arm(1, 600_000)
        self.start()
        self.wait_reading()
        watched = self.watch(10_000, 90_000)
        deadline_ns = self.arm(2, 5000)  # the same holder goes on, under a lease that ends soon
        seen = watched()
        late_ms = (seen["R"] - deadline_ns) / 1e6
        print(f"          the guest's last reading: {late_ms:.1f} ms after the deadline; {seen['count']}", flush=True)
        # What it says goes through two emulated machines and a file, and was read before; the kernel's stamp is exact.
        self.assertLess(int(self.status("last_allowed_ns")), deadline_ns)
        self.assertLess(abs(late_ms), 5000, "it read until the end, and no longer")
        self.assertEqual(self.host.output("virsh domstate guest"), "running")

    def test_unbound_it_never_reads_again(self):
        self.arm(1, 600_000)
        self.start()
        self.wait_reading()
        self.host.run(f"usblease-fence disarm {self.node} --token 1; usblease-fence unbind {self.node}")
        self.arm(2, 600_000)
        self.host.run(f"usblease-fence bind {self.node}")
        self.assertEqual(self.watch(3000, 3000)()["count"].get("R", 0), 0)
        # Its next start is another QEMU with another handle.
        self.host.run("virsh -q destroy guest")
        self.start()
        self.wait_reading()

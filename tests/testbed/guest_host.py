"""A testbed's host with libvirt, whose guests read a USB disk, as small as guests can be (guest_disk.S).

    host = GuestHost("a")
    host.start()
    host.start_libvirt()
    host.make_disk("STICK")                        # before it is plugged in
    host.define("guest", host.by_address(node))    # or by_id(), or "" for a guest without a device
    host.start_guest("guest")
    host.wait_reading("guest")
"""

import json
import pathlib
import subprocess

import waiting
from host_vm import HostVm

HERE = pathlib.Path(__file__).resolve().parent
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
DOMAIN = """<domain type='qemu'><name>%s</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator><controller type='usb' model='qemu-xhci'/>
<serial type='file'><source path='%s'/><target port='0'/></serial><memballoon model='none'/>
%s
</devices></domain>
"""
HOSTDEV = """<hostdev mode='subsystem' type='usb' managed='%s'><source>%s</source><boot order='1'/></hostdev>"""


class GuestHost(HostVm):
    def make_disk(self, serial):
        """The disk that a guest boots from and reads."""
        path = self.storage_path(serial)
        directory = path.parent
        subprocess.run(["as", "--32", "-o", directory / "guest.o", HERE / "guest_disk.S"], check=True)
        linked = ["ld", "-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o", directory / "guest.bin"]
        subprocess.run([*linked, directory / "guest.o"], check=True)
        code = (directory / "guest.bin").read_bytes()
        assert len(code) == 512, len(code)
        with open(path, "wb") as disk:
            disk.write(code + PATTERN.ljust(512, b"\0"))
            disk.truncate(DISK_BYTES)

    def install_hook(self):
        """Where libvirt looks: what is built for /usr/local is not there."""
        self.run("mkdir -p /etc/libvirt/hooks/qemu.d && ln -sf /usr/local/libexec/usblease/usblease-hook "
                 "/etc/libvirt/hooks/qemu.d/50-usblease && test -x /etc/libvirt/hooks/qemu.d/50-usblease")

    def start_libvirt(self, cgroup=""):
        """`cgroup`: where libvirtd is, and its guests with it, since it makes none of its own here."""
        self.run(f"mkdir -p {cgroup} /run/dbus /run/libvirt; cat >/etc/libvirt/qemu.conf <<'END'\n{QEMU_CONF}END")
        self.run("dbus-uuidgen --ensure; dbus-daemon --system --fork; virtlogd -d")
        enter = f"echo $BASHPID >{cgroup}/cgroup.procs; " if cgroup else ""
        self.run(f"({enter}libvirtd -d)")
        waiting.wait_until("libvirt", lambda: self.run("virsh -q list", check=False).code == 0, 60)

    @staticmethod
    def by_address(node, managed="yes"):
        bus, number = (int(part) for part in node.split("/")[-2:])
        return HOSTDEV % (managed, f"<address bus='{bus}' device='{number}'/>")

    @staticmethod
    def by_id(vendor, product):
        return HOSTDEV % ("no", f"<vendor id='{vendor:#06x}'/><product id='{product:#06x}'/>")

    def define(self, name, devices=""):
        xml = DOMAIN % (name, console(name), devices)
        self.run(f"cat >/tmp/{name}.xml <<'END'\n{xml}END\nvirsh -q define /tmp/{name}.xml")

    def start_guest(self, name, check=True):
        return self.run(f"rm -f {console(name)}; virsh -q start {name}", timeout_s=START_S, check=check)

    def wait_reading(self, name):
        waiting.wait_until(
            lambda: f"{name} to read; it said {self.output(f'tail -c 100 {console(name)}')}",
            lambda: self.run(f"grep -qa R {console(name)}", check=False).code == 0,
            START_S,
        )

    def watch(self, name, quiet_ms, max_ms):
        """Begins to watch what the guest says; returns a function that waits for what was seen."""
        self.run(f"python3 /testbed/watch.py {console(name)} {quiet_ms} {max_ms} >/tmp/watched 2>&1 </dev/null &")

        def line(number):
            lines = self.output("cat /tmp/watched").splitlines()
            return lines[number] if len(lines) > number else None

        waiting.wait_until("the watching to begin", lambda: line(0), 60)
        return lambda: json.loads(waiting.wait_until("the watching to end", lambda: line(1), max_ms / 1000 + 30))

    def fence_status(self, what, node=""):
        """What the kernel's fence knows of the device with this node, or of the only one that it manages."""
        table = self.output("usblease-fence status")
        if node:
            bus, number = (int(part) for part in node.split("/")[-2:])
            table = table.partition(f"device=189:{(bus - 1) * 128 + number - 1} ")[2]
        return table.partition(f"{what}=")[2].split()[0]


def console(name):
    return f"/tmp/{name}.console"

"""A host of the testbed: a virtual machine with a real Linux USB stack, in which usblease is installed.

    host = HostVm("a")
    host.start()                                   # 10 to 20 s; the installed usblease is there
    host.run("usblease-fence load")                # a command of the host's root; fails the test when it fails
    node = host.plug("usb-kbd", "KBD0001")         # "/dev/bus/usb/001/004", when its udev rules have run
    host.unplug("KBD0001")

All devices are emulated by the QEMU outside; to the host they are hardware. Times are compared inside the host only, by
its CLOCK_BOOTTIME: emulation slows everything, but all by the same clock.
"""

import json
import pathlib
import shutil
import socket
import subprocess
import time

import guest_image
import host_image
import processes
import usblease_lab
import waiting

HERE = pathlib.Path(__file__).resolve().parent
MEMORY_MB = 1536
PROCESSORS = 2
BOOT_S = 240
# No autosuspend: what QEMU emulates does not always come back from it.
COMMAND_LINE = (
    "console=ttyS0 quiet panic=-1 mitigations=off lpj=4000000 tsc=reliable no_timer_check cryptomgr.notests "
    "usbcore.autosuspend=-1 lsm=%s testbed_host=%s"
)
LSM_WITH_BPF = "landlock,lockdown,yama,integrity,apparmor,bpf"


class CommandFailed(AssertionError):
    """A command in a host ended with another code than 0, or took too long."""


class Done:
    """What became of a command."""

    def __init__(self, code, output):
        self.code = code
        self.output = output


class Lines:
    """JSON objects, a line each, over a Unix stream socket."""

    def __init__(self, path, alive):
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

        def connected():
            alive()
            return self._socket.connect_ex(str(path)) == 0

        waiting.wait_until(f"QEMU to listen on {path}", connected, 10)
        self._pending = b""

    def send(self, message):
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, timeout_s):
        end = time.monotonic() + timeout_s
        while b"\n" not in self._pending:
            self._socket.settimeout(max(0.01, end - time.monotonic()))
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                raise waiting.TimedOut(f"waited {timeout_s} s for an answer") from None
            if not data:
                raise processes.Died("QEMU closed the connection")
            self._pending += data
        line, self._pending = self._pending.split(b"\n", 1)
        return json.loads(line)

    def close(self):
        self._socket.close()


def shared_directory():
    """What every host sees as /testbed: `meson install`'s result, the tests' programs, and what a host boots with."""
    share = usblease_lab.LAB_DIR / "share"
    if share.is_dir():
        return share
    share.mkdir(parents=True)
    build = usblease_lab.build_dir()
    processes.run(
        ["meson", "install", "-C", build, "--no-rebuild", "--quiet", "--destdir", share / "install"], timeout_s=120
    )
    for name in ("host_init", "agent.py", "watch.py"):
        shutil.copy(HERE / name, share)
    shutil.copy(build / "tests/testbed/usb-user", share)
    return share


class HostVm:
    """One host. close() ends it, in whatever state."""

    def __init__(self, name, lsm=LSM_WITH_BPF):
        self.name = name
        self._lsm = lsm
        self._directory = usblease_lab.LAB_DIR / name
        self._qemu = None
        self.console = waiting.TextFile(self._directory / "console.log")
        self._qmp = None
        self._agent = None
        self._last_id = 0
        self.boot_s = None
        self.kernel = None

    def _arguments(self):
        image = host_image.ensure(installed_programs())
        overlay = self._directory / "disk.qcow2"
        base = image.disk
        processes.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", overlay])
        share = shared_directory()
        devices = ["virtio-serial-pci", "virtserialport,chardev=agent,name=testbed.agent", "virtio-rng-pci",
                   "virtio-9p-pci,fsdev=share,mount_tag=testbed", "qemu-xhci,id=usb,p2=8,p3=8"]
        return [
            "qemu-system-x86_64", "-name", self.name, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-machine", "pc", "-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max", "-m", MEMORY_MB, "-smp", PROCESSORS,
            "-kernel", image.kernel, "-initrd", image.initrd, "-append", COMMAND_LINE % (self._lsm, self.name),
            "-serial", f"file:{self._directory}/console.log", "-qmp", f"unix:{self._directory}/qmp,server=on,wait=off",
            "-chardev", f"socket,id=agent,path={self._directory}/agent,server=on,wait=off",
            "-drive", f"if=virtio,file={overlay},format=qcow2,cache=unsafe",
            "-fsdev", f"local,id=share,path={share},security_model=none,readonly=on",
            *(word for device in devices for word in ("-device", device)),
        ]  # fmt: skip

    def start(self):
        begun = time.monotonic()
        self._directory.mkdir(parents=True, exist_ok=True)
        self._qemu = processes.Program(f"host {self.name}", self._arguments(), self._directory / "qemu.log").start()
        self._qmp = Lines(self._directory / "qmp", self._qemu.check_alive)
        self._agent = Lines(self._directory / "agent", self._qemu.check_alive)
        self._qmp.receive(10)
        self.qmp("qmp_capabilities")
        self._wait_booted()
        self.boot_s = time.monotonic() - begun
        return self

    def _wait_booted(self):
        try:
            self.kernel = self._agent.receive(BOOT_S)["hello"]
        except waiting.TimedOut:
            raise waiting.TimedOut(f"host {self.name} did not boot; its console:\n{self.console.tail(30)}") from None

    def reset(self):
        """Loses power for a moment, without a word to anybody in it, and boots again. What is plugged in stays so."""
        self.qmp("set-action", reboot="reset")
        self.qmp("system_reset")
        self._wait_booted()
        self.settle()

    def close(self):
        """A virtual power loss: nothing in the host is asked."""
        for lines in (self._qmp, self._agent):
            if lines is not None:
                lines.close()
        if self._qemu is not None:
            self._qemu.kill9()

    def qmp(self, command, **arguments):
        """A command of QEMU's monitor: what a hand at the machine does."""
        self._qmp.send({"execute": command, "arguments": arguments})
        while True:
            answer = self._qmp.receive(30)
            if "error" in answer:
                raise AssertionError(f"{command} {arguments}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    # ---- commands

    def run(self, command, timeout_s=60, check=True):
        """Runs a command of bash as root. `check`: another exit code than 0 fails the test."""
        self._last_id += 1
        self._agent.send({"id": self._last_id, "command": command, "timeout_s": timeout_s})
        answer = self._agent.receive(timeout_s + 30)
        assert answer["id"] == self._last_id, answer
        done = Done(answer["code"], answer["output"])
        if done.code is None or (check and done.code != 0):
            how = f"took longer than {timeout_s} s" if done.code is None else f"ended with {done.code}"
            raise CommandFailed(f"in host {self.name}: {command}\n{how}:\n{done.output}")
        return done

    def output(self, command, timeout_s=60):
        return self.run(command, timeout_s).output.strip()

    # ---- the hands at the machine

    def plug(self, driver, serial, port=None, **properties):
        """Plugs an emulated device in, and waits until the host has dealt with it. Returns its usbfs node."""
        self.plug_unseen(driver, serial, port, **properties)
        return self.wait_node(serial)

    def plug_unseen(self, driver, serial, port=None, **properties):
        """Plugs it in, and waits for nothing."""
        properties |= {"driver": driver, "id": serial, "bus": "usb.0", "serial": serial}
        if port is not None:
            properties["port"] = str(port)
        if driver == "usb-storage":
            properties["drive"] = self._storage(serial)
        if driver == "usb-serial":
            self.qmp("chardev-add", id=f"line-{serial}", backend={"type": "null", "data": {}})
            properties |= {"chardev": f"line-{serial}", "always-plugged": True}
        self.qmp("device_add", **properties)

    def storage_path(self, serial):
        """The content of a usb-storage with this serial: whoever makes it before it is plugged in decides on it."""
        return self._directory / f"{serial}.img"

    def _storage(self, serial):
        disk = self.storage_path(serial)
        if not disk.exists():
            with open(disk, "wb") as file:
                file.truncate(16 << 20)
        node = f"disk-{serial}"
        if node not in (known["node-name"] for known in self.qmp("query-named-block-nodes")):
            file = {"driver": "file", "filename": str(disk)}
            self.qmp("blockdev-add", **{"driver": "raw", "node-name": node, "file": file})
        return node

    def unplug(self, serial):
        self.qmp("device_del", id=serial)
        waiting.wait_until(f"{serial} to be gone", lambda: not self.node(serial), 30)

    def node(self, serial):
        """The usbfs node of the device that is plugged in, "" when it is not."""
        command = f"cd $(dirname $(grep -lx {serial} /sys/bus/usb/devices/*/serial)) && cat busnum devnum"
        numbers = self.run(command, check=False)  # it may vanish in between
        if numbers.code != 0:
            return ""
        bus, device = (int(number) for number in numbers.output.split())
        return f"/dev/bus/usb/{bus:03}/{device:03}"

    def port(self, serial):
        """Its name in sysfs, "1-2"."""
        return self.output(f"grep -lx {serial} /sys/bus/usb/devices/*/serial").split("/")[-2]

    def wait_node(self, serial):
        node = waiting.wait_until(f"{serial} to appear", lambda: self.node(serial), 30)
        self.settle()
        return node

    def settle(self):
        """Until udev has run its rules for all that has happened. (udevd may drop who asks: then once more.)"""
        settled = "udevadm settle --timeout=10"
        waiting.wait_until("udev to settle", lambda: self.run(settled, check=False).code == 0, 60)


def installed_programs():
    """The programs whose libraries a host needs; as they were built, since none is installed here."""
    build = usblease_lab.build_dir()
    return [build / name for name in ("daemon/usbleased", "daemon/relay/usblease-relay", "daemon/fencer/usblease-fence",
                                      "cli/usblease", "plugin/libvirt/usblease-hook.so")]  # fmt: skip


def lacking():
    """Why no host can run here; "" when one can."""
    needed = ("qemu-system-x86_64", "qemu-img", "mmdebstrap", "mke2fs", "meson", "ldd")
    absent = [name for name in needed if shutil.which(name, path="/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin") is None]
    if absent:
        return f"{', '.join(absent)} not found; scripts/install-deps testbed installs what is missing"
    missing = [path for path in installed_programs() if not path.exists()]
    if missing:
        return f"{missing[0]} was not built; the fence in the kernel needs clang, bpftool and libbpf-dev (-Dkernel_fence)"
    help_text = subprocess.run(["qemu-system-x86_64", "-device", "help"], capture_output=True, text=True, check=False).stdout
    if "qemu-xhci" not in help_text or "virtio-9p-pci" not in help_text:
        return "this QEMU emulates no xHCI controller or shares no directory"
    needed_mb = host_image.DISK_MB
    free_mb = shutil.disk_usage(guest_image.cache_dir().parent).free >> 20
    return "" if free_mb > needed_mb else f"{free_mb} MB are free for the hosts' image, and it may need {needed_mb}"

"""Machines in network namespaces, on one bridge. Inside isolation.run_isolated(…, network=True).

    net = Network()
    a, b = Machine("a", net, disk_mib=64), Machine("b", net, disk_mib=64)
    a.program("ping", ["ping", "-c1", b.address], log)
    net.cut(a, b)                    # b's packets do not reach a any more, and the other way round

A machine has a network and a mount namespace of its own, with its own boot id and machine id, and a disk: a loop-mounted
ext4 file system, so that a full disk is full and a sync is a sync. Its files lie under /run/lab/NAME, where the test
sees them too. All of it ends with the private namespaces of the test, however that ends.
"""

import contextlib
import os
import pathlib
import signal
import sys
import tempfile
import uuid

import processes
import waiting

LAB_DIR = pathlib.Path("/run/lab")
BRIDGE = "br-lab"
NETWORK = "10.77.0"
SLOW_PORT = 17470
BOOT_ID = "/proc/sys/kernel/random/boot_id"
MACHINE_ID = "/etc/machine-id"
DEVICE_UUID = "/sys/class/dmi/id/product_uuid"


def _ip(*arguments):
    processes.run(["ip", *arguments])


class Network:
    """The bridge; it also has an address of its own, .254, on which the test itself can be reached."""

    def __init__(self):
        self.machines = []
        _ip("link", "add", BRIDGE, "type", "bridge")
        _ip("addr", "add", f"{NETWORK}.254/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")

    def cut_one_way(self, sender, receiver):
        """What `sender` sends does not reach `receiver`."""
        receiver.nft(f"add element inet cut from {{ {sender.address} }}")

    def cut(self, *pair):
        self.cut_one_way(pair[0], pair[1])
        self.cut_one_way(pair[1], pair[0])

    def cut_into(self, one_half, other_half):
        for a in one_half:
            for b in other_half:
                self.cut(a, b)

    def cut_ports(self, machine, ports):
        """`machine` neither reaches these TCP ports of others, nor do others reach them on it."""
        machine.nft(f"add element inet cut ports {{ {', '.join(map(str, ports))} }}")

    def heal(self):
        for machine in self.machines:
            machine.nft("flush set inet cut from\nflush set inet cut ports")


class Machine:
    """One of at most 200 on a network. disk_mib: size of .disk, a directory."""

    _CUTS = """
        table inet cut {
          set from { type ipv4_addr; }
          set ports { type inet_service; }
          chain input {
            type filter hook input priority 0;
            ip saddr @from drop
            iifname eth0 tcp dport @ports drop
            iifname eth0 tcp sport @ports drop
          }
        }"""

    def __init__(self, name, network, disk_mib=0):
        self.name = name
        self.network = network
        self.directory = LAB_DIR / name
        self.directory.mkdir(parents=True)
        self.address = f"{NETWORK}.{len(network.machines) + 1}"
        network.machines.append(self)
        self.disk = self.directory / "disk"
        if disk_mib:
            self._make_disk(disk_mib)
        self._boot_id = self.directory / "boot-id"
        self._machine_id = self.directory / "machine-id"
        self.new_boot()
        self.be_the_image_of(None)
        self._anchor = self._make_namespaces()
        self._connect()
        self.nft(self._CUTS)

    def _make_disk(self, disk_mib):
        self.disk.mkdir()
        with tempfile.NamedTemporaryFile(dir="/var/tmp", prefix="usblease-disk-") as image:
            image.truncate(disk_mib << 20)
            processes.run(["mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=1", image.name])
            processes.run(["mount", "-o", "loop", image.name, self.disk])
        # The image has no name any more; the loop device ends with its mount, and the mount with the namespace.

    def _make_namespaces(self):
        mounts = f'mount --bind "{self._boot_id}" {BOOT_ID} && mount --bind "{self._machine_id}" {MACHINE_ID}'
        if os.path.exists(DEVICE_UUID):
            mounts += f' && mount --bind "{self._machine_id}" {DEVICE_UUID}'
        script = f"{mounts} && ip link set lo up && echo ready && exec sleep infinity"
        anchor = processes.Program(
            f"machine {self.name}",
            ["unshare", "--mount", "--net", "--uts", "sh", "-c", f'hostname "{self.name}" && {script}'],
            self.directory / "machine.log",
        )
        anchor.start()
        anchor.wait_line(r"^ready$")
        return anchor

    def _connect(self):
        outer = f"veth-{self.name}"[:15]
        _ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", str(self._anchor.pid))
        _ip("link", "set", outer, "master", BRIDGE, "up")
        self.run(["ip", "addr", "add", f"{self.address}/24", "dev", "eth0"])
        self.run(["ip", "link", "set", "eth0", "up"])

    def nft(self, text):
        processes.run(self.inside(["nft", "-f", "-"]), text_in=text)

    def slow_down(self, ports, delay_ms):
        """From now on, new connections to these TCP ports of it: every byte takes that long, each way."""
        self._slow_link = self.program(
            f"slow link of {self.name}",
            [sys.executable, pathlib.Path(__file__).with_name("slow_link.py"), SLOW_PORT, delay_ms],
            self.directory / "slow-link.log",
        )
        self._slow_link.start()
        self._slow_link.wait_line(r"^ready$")
        self.nft(f"""
            table ip slow {{
              chain prerouting {{
                type nat hook prerouting priority dstnat;
                iifname eth0 tcp dport {{ {", ".join(map(str, ports))} }} redirect to :{SLOW_PORT}
              }}
            }}""")

    # ---- what runs on it

    def inside(self, arguments):
        """The command line that runs `arguments` on this machine, as the same process."""
        namespaces = ["nsenter", "--target", str(self._anchor.pid), "--net", "--mount", "--uts", "--"]
        return namespaces + [str(argument) for argument in arguments]

    def program(self, name, arguments, log_path, environment=None):
        """See processes.Program; its PID is that of the program itself."""
        return processes.Program(name, self.inside(arguments), log_path, environment)

    def run(self, arguments, timeout_s=30, check=True):
        return processes.run(self.inside(arguments), timeout_s, check)

    def pids(self, word=""):
        """Of what runs on it and has `word` in its command line."""
        own = os.stat(f"/proc/{self._anchor.pid}/ns/net").st_ino
        found = []
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) == self._anchor.pid:
                continue
            with contextlib.suppress(OSError):
                line = pathlib.Path("/proc", entry, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                # A zombie has no command line.
                if line and os.stat(f"/proc/{entry}/ns/net").st_ino == own and word in line:
                    found.append(int(entry))
        return found

    def signal(self, number, word=""):
        """To all that runs on it, and has `word` in its command line. Returns their PIDs."""
        pids = self.pids(word)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return pids

    # ---- what it is

    def new_boot(self):
        """Another boot id, from now on: what a reboot makes of it. The caller has ended what ran."""
        self._write(self._boot_id, f"{uuid.uuid4()}\n")

    def be_the_image_of(self, other):
        """The machine id of another machine, as a cloned image has; None: one of its own."""
        text = f"{uuid.uuid4().hex}\n" if other is None else other._machine_id.read_text()
        self._write(self._machine_id, text)

    @staticmethod
    def _write(path, text):
        """In place: the file is mounted elsewhere."""
        with open(path, "w", encoding="ascii") as file:
            file.write(text)

    def power_off(self):
        """Everything that runs on it ends at once; its disk stays, synced or not."""
        waiting.wait_until(lambda: f"{self.name} to be off", lambda: not self.signal(signal.SIGKILL), 10)
        self.new_boot()

    def fill_disk(self):
        """Until not one byte more finds room."""
        path = self.disk / "fill"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            for size in (1 << 24, 1 << 20, 1 << 16, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while True:
                        os.posix_fallocate(descriptor, os.fstat(descriptor).st_size, size)
        finally:
            os.close(descriptor)

    def empty_disk(self):
        """Takes back fill_disk()."""
        (self.disk / "fill").unlink(missing_ok=True)

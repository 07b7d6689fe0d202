"""The distribution's own QEMU with our modules, a software device, and a lease page, as one object."""

import itertools
import json
import os
import pathlib
import shutil
import socket
import struct
import subprocess
import tempfile
import time

import boottime
import isolation
import processes
import waiting

BINARY = "/usr/bin/qemu-system-x86_64"
UUID = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
OTHER_UUID = "6ba7b811-9dad-11d1-80b4-00c04fd430c8"
FIELDS = "packets late late_max_ns last_packet_ns opens closes resets drivers_attached last_close_ns".split()
# From the verdict to the device's side a thread may be interrupted, here by whatever else this machine does.
LATE_MAX_NS = 20_000_000
BOOT_S = 90  # half a second on a machine of one's own


def cover(directory, scratch):
    """In a private mount namespace: what is written to the directory goes to `scratch`, and only there."""
    name = str(directory).strip("/").replace("/", "-")
    upper, work = scratch / f"{name}-upper", scratch / f"{name}-work"
    upper.mkdir(parents=True)
    work.mkdir()
    isolation.mount("overlay", directory, "overlay", 0, f"lowerdir={directory},upperdir={upper},workdir={work}")


class Sightings:
    """What the device saw (witness.h); each access reads the file."""

    def __init__(self, path):
        self._path = path

    def __getattr__(self, name):
        with open(self._path, "rb") as file:
            values = struct.unpack(f"{len(FIELDS)}Q", file.read(8 * len(FIELDS)))
        return dict(zip(FIELDS, values))[name]


class Page:
    """One lease page, written by the daemon's own code in a helper process (page_tool.cc)."""

    def __init__(self, tool, path):
        self.path = path
        self._tool = subprocess.Popen([tool], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.token = 0
        self.open()

    def _ask(self, *words):
        self._tool.stdin.write(" ".join(str(word) for word in words) + "\n")
        self._tool.stdin.flush()
        answer = self._tool.stdout.readline().strip()
        if not answer.startswith("ok "):
            raise AssertionError(f"page_tool: {words}: {answer}")
        return int(answer[3:])

    def open(self):
        self._ask("open", self.path)

    def grant(self, ttl_s, uuid=UUID, pid=0):
        """A new token; returns its deadline in ns."""
        self.token += 1
        return self._ask("grant", self.token, int(ttl_s * 1e6), uuid, pid)

    def renew(self, ttl_s):
        return self._ask("renew", int(ttl_s * 1e6))

    def bind(self, pid):
        self._ask("bind", pid)

    def revoke(self):
        self._ask("revoke")

    def remove(self):
        self._ask("remove")

    def close(self):
        self._tool.stdin.close()
        self._tool.wait(10)
        self._tool.stdout.close()


class Qmp:
    """A monitor: commands, and events with the time at which they came."""

    def __init__(self, path, process):
        self._process = process
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        waiting.wait_until("the monitor", lambda: self._connects(path), 20)
        self._buffer = b""
        self.events = []
        self._next(20)  # the greeting
        self.command("qmp_capabilities")

    def _connects(self, path):
        self._process.check_alive()
        return self._socket.connect_ex(str(path)) == 0

    def _next(self, timeout_s):
        """The next message, None after `timeout_s`."""
        end = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            self._socket.settimeout(max(0.001, end - time.monotonic()))
            try:
                data = self._socket.recv(65536)
            except (TimeoutError, socket.timeout):
                return None
            if not data:
                self._process.check_alive()
                raise processes.Died("the monitor was closed")
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        message = json.loads(line)
        if "event" in message:
            message["at_ns"] = boottime.now_ns()
            self.events.append(message)
        return message

    def ask(self, name, **arguments):
        """The whole answer, an error too."""
        request = {"execute": name, "arguments": {key.replace("_", "-"): value for key, value in arguments.items()}}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            message = self._next(30)
            if message is None:
                raise waiting.TimedOut(f"no answer to {name}")
            if "event" not in message:
                return message

    def command(self, name, **arguments):
        answer = self.ask(name, **arguments)
        if "error" in answer:
            raise AssertionError(f"{name}: {answer['error']['desc']}")
        return answer["return"]

    def refused(self, name, **arguments):
        """The error's text."""
        answer = self.ask(name, **arguments)
        if "error" not in answer:
            raise AssertionError(f"{name} was not refused")
        return answer["error"]["desc"]

    def wait_event(self, name, timeout_s=30):
        """Takes the first event of that name."""
        end = time.monotonic() + timeout_s
        while True:
            for event in self.events:
                if event["event"] == name:
                    self.events.remove(event)
                    return event
            left_s = end - time.monotonic()
            if left_s <= 0 or (self._next(left_s) is None):
                raise waiting.TimedOut(f"no event {name} within {timeout_s} s; events: {self.events}")

    def has_event(self, name):
        """One came, or is on its way after all that QEMU did before this call."""
        self.command("query-status")
        return any(event["event"] == name for event in self.events)

    def close(self):
        self._socket.close()


class Lab:
    """Directories, a page, a witness; start() adds QEMU. `kind` is "host" or "redir"."""

    _numbers = itertools.count()

    def __init__(self, build, modules, kind):
        self.kind = kind
        self._tools = pathlib.Path(build) / "tests/qemu"
        self._modules = modules
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="ulq-", dir="/tmp"))
        self.run_dir = self.dir / "run"
        (self.run_dir / "pages").mkdir(parents=True)
        self.socket_path = self.run_dir / "guests" / UUID / "stick"
        self.socket_path.parent.mkdir(parents=True)
        self.page_path = self.run_dir / "pages" / ("usb-001-004" if kind == "host" else f"redir-{UUID}-stick")
        self.witness_path = self.dir / "witness"
        self.page = None
        self._programs = []
        self._qmps = []
        self.seen = Sightings(self.witness_path)

    def with_page(self):
        self.page = Page(self._tools / "lease-page-tool", self.page_path)
        return self

    @property
    def device(self):
        """Arguments of device_add."""
        if self.kind == "host":
            return {"driver": "usb-host", "hostbus": 1, "hostaddr": 4, "lease_dir": str(self.run_dir)}
        return {"driver": "usb-redir", "chardev": "peer", "lease_dir": str(self.run_dir)}

    def _device_options(self, more):
        options = {key.replace("_", "-"): value for key, value in self.device.items()} | more
        driver = options.pop("driver")
        return ",".join([driver, "id=stick"] + [f"{key}={value}" for key, value in options.items()])

    def start_peer(self):
        peer = processes.Program(
            "stick_peer",
            [self._tools / "stick-peer", self.socket_path, self.witness_path, self.page_path],
            self.dir / "peer.log",
        )
        return self.add_peer(peer, "^ready$")

    def add_peer(self, program, ready):
        self._programs.append(program.start())
        program.wait_line(ready)
        return program

    def start(self, *arguments, plugged=True, options=None, environment=None, modules=True, uuid=UUID, chardev=""):
        """Starts QEMU, paused or not as `arguments` say; returns (program, monitor)."""
        number = next(self._numbers)
        monitor = self.dir / f"qmp-{number}"
        command = [BINARY, "-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35,usb=off"]
        command += ["-accel", "tcg", "-m", "64", "-device", "qemu-xhci,id=xhci", "-uuid", uuid]
        command += ["-qmp", f"unix:{monitor},server=on,wait=off"]
        if self.kind == "redir":
            if not self._programs:
                self.start_peer()
            command += ["-chardev", f"socket,id=peer,path={self.socket_path}{chardev}"]
        if plugged:
            command += ["-device", self._device_options(options or {})]
        settings = {"LD_LIBRARY_PATH": str(self._tools), "MOCK_WITNESS": str(self.witness_path)}
        settings["MOCK_PAGE"] = str(self.page_path)
        if modules:
            settings["QEMU_MODULE_DIR"] = str(self._modules)
        qemu = processes.Program("qemu", command + list(arguments), self.dir / "qemu.log", settings | (environment or {}))
        self._programs.append(qemu.start())
        qmp = Qmp(monitor, qemu)
        self._qmps.append(qmp)
        return qemu, qmp

    def wait_traffic(self, packets=50, timeout_s=BOOT_S):
        """Until so many more packets have reached the device."""
        wanted = self.seen.packets + packets
        waiting.wait_until(
            lambda: f"{wanted} packets; there are {self.seen.packets}; QEMU said:\n" + waiting.TextFile(self.dir / "qemu.log").tail(),
            lambda: self.seen.packets >= wanted,
            timeout_s,
        )

    def attached(self, qmp):
        return qmp.command("qom-get", path="/machine/peripheral/stick", property="attached")

    def wait_attached(self, qmp, timeout_s=10):
        waiting.wait_until("the device to be attached", lambda: self.attached(qmp), timeout_s)

    def close(self):
        for qmp in self._qmps:
            qmp.close()
        for program in reversed(self._programs):
            program.thaw()
            program.stop()
        if self.page:
            self.page.close()
        if os.environ.get("KEEP_LOGS"):
            print(f"kept {self.dir}")
        else:
            shutil.rmtree(self.dir, ignore_errors=True)

"""One host with the whole stack: devices, usbleased, libvirtd with the hook, guests. Inside isolation.run_isolated().

    with Lab(devices=["dongle"]) as lab:
        lab.start()
        a = lab.guest("a", assignments=["dongle"])
        a.start()
        a.wait_pong(lab.devices["dongle"].serial)
"""

import json
import os
import pathlib
import socket

import guest_image
import guests
import isolation
import libvirtd
import processes
import waiting

LAB_DIR = pathlib.Path("/run/lab")
RUN_DIR = pathlib.Path("/run/usblease")
SOCKET = RUN_DIR / "usbleased.sock"
READY_S = 15
COMMAND_S = 60

# Short enough that a test need not wait long for a deadline, long enough for a busy machine.
TIMING = {"ttl_ms": 3000, "renewal_ms": 500, "grace_ms": 500}


def build_dir():
    """$USBLEASE_BUILD, else build/ in the tree: the programs under test."""
    return pathlib.Path(os.environ.get("USBLEASE_BUILD") or guest_image.TREE / "build").resolve()


class NotifySocket:
    """What systemd is to a daemon of Type=notify: says when it is ready (sd_notify(3))."""

    def __init__(self, path):
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.bind(str(path))
        self._socket.setblocking(False)

    def drain(self):
        """The messages since the last call, a variable a line."""
        lines = []
        while True:
            try:
                lines += self._socket.recv(4096).decode(errors="replace").splitlines()
            except BlockingIOError:
                return lines

    def wait_ready(self, program, timeout_s):
        def ready():
            program.check_alive()
            return "READY=1" in self.drain()

        waiting.wait_until(lambda: f"READY=1 of {program.name}; log:\n{program.log.tail()}", ready, timeout_s)

    def close(self):
        self._socket.close()


class Device:
    """A USB device in software (tests/devices), offered over the usbredir protocol on a Unix socket."""

    def __init__(self, name, serial, directory, programs):
        self.name = name
        self.serial = serial
        self.path = directory / f"{name}.sock"
        self.log = waiting.TextFile(directory / f"{name}.log")  # what crossed the wire, with BOOTTIME
        self.program = processes.Program(
            f"device {name}",
            [programs / "tests/devices/usbredir-dongle", "--listen", f"unix:{self.path}"]
            + ["--serial", serial, "--log", self.log.path],
            directory / f"{name}.out",
        )
        self._arguments = self.program.arguments

    def plug(self, *options):
        """options: more words for usbredir-dongle, such as --misbehave silent; they hold for this start only."""
        mark = self.program.log.mark()
        self.program.arguments = self._arguments + list(options)
        self.program.start()
        self.program.wait_line(r"\bready\b", since=mark)

    def packets(self):
        """Every packet that reached the device: dicts with t_ns (CLOCK_BOOTTIME), type, endpoint, length, stream."""
        rows = [json.loads(line) for line in self.log.lines()]
        return [row for row in rows if row["event"] == "packet"]

    def last_packet_ns(self):
        return max((packet["t_ns"] for packet in self.packets()), default=0)

    def unplug(self):
        self.program.kill9()
        self.path.unlink(missing_ok=True)


class Lab:
    """Everything is started in order by start(), or part by part by a test that wants an odd order."""

    def __init__(self, devices=(), timing=None, config="", host_id="lab"):
        """devices: names, or {name: {key: value of [device NAME]}}. config: text after the rest."""
        self.host_id = host_id
        LAB_DIR.mkdir()
        # The relay runs as nobody, who may not reach a build directory under somebody's home.
        self.programs = LAB_DIR / "build"
        self.programs.mkdir()
        isolation.bind(build_dir(), self.programs)
        self.image = guest_image.ensure()
        settings = devices if isinstance(devices, dict) else {name: {} for name in devices}
        self.devices = {
            name: Device(name, f"{name.upper()}-0001", LAB_DIR, self.programs) for name in settings
        }
        self.config = LAB_DIR / "usbleased.conf"
        self.config.write_text(self._config_text(settings, timing or TIMING) + config)
        self._notify = NotifySocket(LAB_DIR / "notify.sock")
        self.daemon = processes.Program(
            "usbleased",
            [self.programs / "daemon/usbleased", "--config", self.config],
            LAB_DIR / "usbleased.log",
            {"NOTIFY_SOCKET": str(self._notify.path)},
        )
        self.libvirtd = libvirtd.Libvirtd(LAB_DIR / "libvirt")
        self.guests = {}

    def _config_text(self, settings, timing):
        groups = {
            "daemon": {
                "host_id": self.host_id,
                "state_dir": LAB_DIR / "state",
                "run_dir": RUN_DIR,
                "relay_path": self.programs / "daemon/relay/usblease-relay",
                "log_level": "debug",
            },
            "timing": timing,
        }
        for name, more in settings.items():
            groups[f"device {name}"] = {"endpoint": f"unix:{self.devices[name].path}"} | more
        text = ""
        for group, keys in groups.items():
            text += f"[{group}]\n" + "".join(f"{key}={value}\n" for key, value in keys.items()) + "\n"
        return text

    # ---- the whole

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        self.close()

    def start(self):
        for device in self.devices.values():
            device.plug()
        self.start_libvirtd()
        self.start_daemon()

    def close(self):
        """Ends everything in order. What is forgotten here ends with the namespaces."""
        self.daemon.stop()
        self.libvirtd.close()
        for device in self.devices.values():
            device.program.stop()
        self._notify.close()

    # ---- libvirt

    def start_libvirtd(self):
        self.libvirtd.install_hook(
            self.programs / "plugin/libvirt/usblease-hook", {"USBLEASE_CONFIG": self.config}
        )
        self.libvirtd.start()

    def guest(self, name, **declared):
        """A new guest, defined and not started; declared: see domain_xml.domain_xml()."""
        self.guests[name] = guests.Guest(self.libvirtd, LAB_DIR, self.image, name, **declared)
        return self.guests[name]

    # ---- usbleased

    def start_daemon(self):
        self._notify.drain()
        self.daemon.start()
        self._notify.wait_ready(self.daemon, READY_S)

    def wait_ready(self):
        """After it began anew by itself."""
        self._notify.wait_ready(self.daemon, READY_S)

    def restart_daemon(self):
        self.daemon.stop()
        self.start_daemon()

    def command(self, *arguments):
        """The command line of one usblease command, for processes.Program or processes.run."""
        return [self.programs / "cli/usblease", "-c", SOCKET, *arguments]

    def usblease(self, *arguments, timeout_s=COMMAND_S):
        """Runs a command that must succeed; returns what it printed."""
        return processes.run(self.command(*arguments), timeout_s).stdout

    def usblease_json(self, *arguments, timeout_s=COMMAND_S):
        return json.loads(self.usblease("--json", *arguments, timeout_s=timeout_s))

    def usblease_fails(self, *arguments, timeout_s=COMMAND_S):
        """Runs a command that must fail; returns (exit code, stderr)."""
        done = processes.run(self.command(*arguments), timeout_s, check=False)
        if done.returncode == 0:
            raise AssertionError(f"usblease {' '.join(map(str, arguments))} should have failed but said: {done.stdout}")
        return done.returncode, done.stderr

    def background(self, name, *arguments):
        """Starts a command that waits or follows; its output is in .log."""
        return processes.Program(name, self.command(*arguments), LAB_DIR / f"{name}.out").start()

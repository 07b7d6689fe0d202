"""A private libvirtd: own configuration, state and sockets, in the namespaces of isolation.py, without systemd."""

import os
import pathlib
import re
import shutil
import signal
import time

import guest_image
import isolation
import processes
import waiting

URI = "qemu:///system"
RUN_DIR = pathlib.Path("/run/libvirt")
SOCKET = RUN_DIR / "libvirt-sock"
HOOK = pathlib.Path("/etc/libvirt/hooks/qemu.d/50-usblease")
READY_S = 20
MOUNTED = ("/etc/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt")
CAPABILITIES = pathlib.Path("/var/cache/libvirt/qemu/capabilities")

# No user switch and no labels: files stay as the test made them. No cgroups and namespaces: there is no systemd to ask.
# stdio_handler: QEMU's log without virtlogd.
QEMU_CONF = """
user = "root"
group = "root"
security_driver = "none"
dynamic_ownership = 0
remember_owner = 0
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
"""
LIBVIRTD_CONF = """
auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "2:stderr"
"""


class Libvirtd:
    """One a process: its directories lie where libvirt expects them. `directory` holds what lies behind them."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.program = processes.Program("libvirtd", ["libvirtd"], self.directory / "libvirtd.log")
        self.ready_s = None
        self._prepare()

    def _prepare(self):
        for place in MOUNTED:
            behind = self.directory / place.strip("/").replace("/", "-")
            behind.mkdir(parents=True)
            os.makedirs(place, exist_ok=True)  # on a machine where the package never ran them
            isolation.bind(behind, place)
        RUN_DIR.mkdir(exist_ok=True)
        pathlib.Path("/etc/libvirt/qemu.conf").write_text(QEMU_CONF)
        pathlib.Path("/etc/libvirt/libvirtd.conf").write_text(LIBVIRTD_CONF)
        HOOK.parent.mkdir(parents=True)
        # libvirt asks each QEMU once what it can do, for seconds; it checks itself whether what it remembers holds.
        remembered = guest_image.cache_dir() / "libvirt-capabilities"
        if remembered.is_dir():
            shutil.copytree(remembered, CAPABILITIES)

    def _remember_capabilities(self):
        remembered = guest_image.cache_dir() / "libvirt-capabilities"
        for file in CAPABILITIES.glob("*.xml"):
            kept = remembered / file.name
            if kept.exists() and kept.read_bytes() == file.read_bytes():
                continue
            remembered.mkdir(parents=True, exist_ok=True)
            whole = kept.with_suffix(f".{os.getpid()}.{time.monotonic_ns()}")
            shutil.copy(file, whole)
            whole.rename(kept)

    # ---- the daemon

    def start(self):
        begun = time.monotonic()
        self.program.start()
        self.program.wait_socket(SOCKET, READY_S)
        self.virsh("list", timeout_s=READY_S)
        self.ready_s = time.monotonic() - begun

    def stop(self):
        """Stops the daemon; guests go on."""
        self._remember_capabilities()
        self.program.stop()

    def kill9(self):
        self.program.kill9()

    def restart(self):
        self.stop()
        self.start()

    def close(self):
        """Ends the daemon and its guests."""
        self.stop()
        for pid in self.qemu_pids().values():
            os.kill(pid, signal.SIGKILL)

    def qemu_pids(self):
        """{guest's name: PID} of the QEMUs that run, from libvirt's PID files."""
        pids = {}
        for file in (RUN_DIR / "qemu").glob("*.pid"):
            try:
                pid = int(file.read_text())
                command = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
            except (ValueError, FileNotFoundError):
                continue
            if command.startswith(b"/usr/bin/qemu-system"):
                pids[file.stem] = pid
        return pids

    # ---- the hook

    def install_hook(self, program, environment):
        """Makes `program` the hook, run with these variables. libvirtd looks for hooks only when it starts."""
        assert not self.program.running, "libvirtd knows only hooks that were there when it started"
        settings = "".join(f"export {name}='{value}'\n" for name, value in environment.items())
        HOOK.write_text(f'#!/bin/sh\n{settings}exec "{program}" "$@"\n')
        HOOK.chmod(0o755)

    def install_recording_hook(self, record):
        """A hook that appends its arguments to the file `record`, and fails while RECORD.refuse names the operation."""
        script = self.directory / "recording-hook"
        script.write_text(
            "#!/bin/sh\n"
            "cat >/dev/null\n"
            'echo "$@" >>"$RECORD"\n'
            'if [ "$2" = "$(cat "$RECORD.refuse" 2>/dev/null)" ]; then echo "refused by the test" >&2; exit 1; fi\n'
        )
        script.chmod(0o755)
        self.install_hook(script, {"RECORD": record})

    # ---- guests

    def virsh(self, *arguments, check=True, timeout_s=60):
        """Runs one virsh command; returns its stdout. On failure: AssertionError with virsh's words."""
        return processes.run(["virsh", "-q", "-c", URI, *arguments], timeout_s, check).stdout

    def virsh_refused(self, *arguments, timeout_s=60):
        """Runs one virsh command that must fail; returns what it said."""
        done = processes.run(["virsh", "-q", "-c", URI, *arguments], timeout_s, check=False)
        if done.returncode == 0:
            raise AssertionError(f"virsh {' '.join(map(str, arguments))} should have failed but said: {done.stdout}")
        return done.stderr

    def version(self):
        return re.search(r"daemon: *(\S+)", self.virsh("version", "--daemon")).group(1)

    def is_running(self, guest):
        return guest in self.virsh("list", "--name").split()

    def wait_gone(self, guest, timeout_s=10):
        waiting.wait_until(f"guest {guest} to be gone", lambda: not self.is_running(guest), timeout_s)

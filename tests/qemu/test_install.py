"""install-module, in a private mount namespace: the machine's own QEMU and dpkg stay as they are."""

import os
import pathlib
import subprocess
import unittest

import isolation
import processes
import qemu_lab
from qemu_lab import cover

TREE = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = TREE / "plugin/qemu/install-module"
MODULES = ("hw-usb-host.so", "hw-usb-redirect.so")
STATE = pathlib.Path("/var/lib/usblease/qemu-module")
DPKG_HOOK = pathlib.Path("/etc/dpkg/dpkg.cfg.d/usblease-qemu-module")


def module_dir():
    return pathlib.Path("/usr/lib") / processes.run(["gcc", "-print-multiarch"]).stdout.strip() / "qemu"


class Machine:
    """This machine with its QEMU's modules and its package database covered."""

    def __init__(self, setup):
        scratch = pathlib.Path("/run/scratch")
        scratch.mkdir()
        for directory in (module_dir(), "/var/lib/dpkg", "/etc/dpkg/dpkg.cfg.d"):
            cover(directory, scratch)
        STATE.parent.mkdir(parents=True, exist_ok=True)
        isolation.mount("tmpfs", STATE.parent, "tmpfs")
        self.setup = setup
        self.environment = {"USBLEASE_CACHE": str(setup.modules.parent)}
        self.stock = {name: (module_dir() / name).read_bytes() for name in MODULES}

    def script(self, *arguments, check=True):
        return processes.run([SCRIPT, *arguments], timeout_s=300, check=check, environment=self.environment)

    def in_place(self, name):
        return (module_dir() / name).read_bytes()

    def is_stock(self):
        return all(self.in_place(name) == self.stock[name] for name in MODULES)

    def is_ours(self):
        return all(self.in_place(name) == (self.setup.modules / name).read_bytes() for name in MODULES)

    def in_use(self):
        """Which module of usb-host a guest gets that libvirt would start, without QEMU_MODULE_DIR."""
        lab = qemu_lab.Lab(self.setup.build, None, "host")
        try:
            lab.with_page()
            lab.page.grant(60)
            qemu, qmp = lab.start(plugged=False, modules=False)
            qmp.command("device_add", id="stick", driver="usb-host", hostbus=1, hostaddr=4)
            tool = self.setup.build / "tests/qemu/module-tool"
            ids = STATE / "build-ids"
            if not ids.exists():
                ids = self.setup.build_ids
            return processes.run([tool, qemu.pid, ids]).stdout.split()[0]
        finally:
            lab.close()

    def update_qemu(self):
        """What dpkg does: Debian's new module is unpacked beside ours, and then its hook runs."""
        path = module_dir() / "hw-usb-host.so.distrib"
        old = path.read_bytes()
        stamp = old.index(b"qemu_stamp_") + len(b"qemu_stamp_")
        new = old[:stamp] + old[stamp : stamp + 40][::-1] + old[stamp + 40 :]
        path.with_suffix(".dpkg-new").write_bytes(new)
        path.with_suffix(".dpkg-new").rename(path)
        self.stock["hw-usb-host.so"] = new
        return self.run_dpkg()

    @staticmethod
    def run_dpkg():
        """A run of dpkg with nothing to do but its hooks; what they said."""
        return processes.run(["dpkg", "--configure", "--pending"]).stderr


class Installation(unittest.TestCase):
    setup = None

    def isolated(self, steps):
        """Runs steps(machine) in namespaces of its own; what it raises is printed there."""
        if os.geteuid() != 0:
            self.skipTest("it needs root: private namespaces")
        self.assertEqual(isolation.run_isolated(lambda: steps(Machine(self.setup)), 100), 0)

    def test_installed_in_use_and_undone(self):
        def steps(machine):
            assert machine.in_use() == "stock"
            assert machine.script("--status", check=False).returncode == 1
            said = machine.script().stdout
            assert said.count("ours, fits") == 2, said
            assert machine.is_ours() and machine.in_use() == "enforces"
            machine.script()  # once more changes nothing
            assert machine.is_ours()
            diverted = subprocess.run(["dpkg-divert", "--listpackage", module_dir() / MODULES[0]], capture_output=True, check=True)
            assert diverted.stdout == b"usblease\n"
            machine.script("--undo")
            assert machine.is_stock() and machine.in_use() == "stock"
            assert not DPKG_HOOK.exists() and not (module_dir() / "hw-usb-host.so.distrib").exists()
            machine.script("--undo")  # nothing to undo is no error

        self.isolated(steps)

    def test_an_update_of_qemu_puts_the_stock_modules_back(self):
        def steps(machine):
            machine.script()
            assert machine.run_dpkg() == "", "nothing has changed yet"
            assert machine.is_ours()
            said = machine.update_qemu()
            assert "no longer fit" in said and "install-module" in said, said
            assert machine.is_stock()
            assert machine.script("--status", check=False).returncode == 1

        self.isolated(steps)


CASES = (Installation,)

"""The patch series: they apply to Debian's source packages, and QEMU's own checkpatch has nothing against them."""

import hashlib
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

import guest_image
import processes

TREE = pathlib.Path(__file__).resolve().parents[2]
SERIES = {"7.2": ("1:7.2+dfsg-*", "bookworm"), "10.0": ("1:10.0.*", "trixie")}
# What checkpatch says of each patch, and is right about: nobody may sign off for us (docs/qemu.md). The header that
# usbleased shares with QEMU keeps the license of usblease.
EXPECTED = ("ERROR: Missing Signed-off-by: line(s)", "WARNING: Saw acceptable license 'LGPL-2.1-or-later'")


def source_tree(version):
    """The unpacked source package, from the cache or fetched; SkipTest when it cannot be had."""
    wanted, codename = SERIES[version]
    for tree in guest_image.cache_dir().glob(f"qemu-source-{wanted.replace(':', '_', 1)}/tree"):  # build-module's
        if (tree / ".complete").exists():
            return tree
    directory = guest_image.cache_dir() / f"qemu-source-{version}"
    done = subprocess.run(
        [TREE / "plugin/qemu/fetch-source", wanted, directory],
        env=os.environ | {"EXTRA_CODENAME": codename},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise unittest.SkipTest(f"QEMU {version}'s source package cannot be fetched: {done.stderr.strip()}")
    return directory / "tree"


def series(version):
    """The names of its patches, in order."""
    lines = (TREE / "qemu-patches" / version / "series").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


class PatchSeries(unittest.TestCase):
    setup = None

    def patches(self, version):
        directory = TREE / "qemu-patches" / version
        names = series(version)
        self.assertEqual(sorted(names), sorted(path.name for path in directory.glob("*.patch")))
        return [directory / name for name in names]

    def apply(self, version):
        """Applies the series without fuzz to a copy of what it touches; returns the copy."""
        tree = source_tree(version)
        copy = pathlib.Path(tempfile.mkdtemp(prefix="ulq-series-"))
        self.addCleanup(shutil.rmtree, copy)
        for name in ("hw/usb", "include/hw", "qapi", "tests/qtest", "docs"):
            shutil.copytree(tree / name, copy / name, symlinks=True)
        for patch in self.patches(version):
            processes.run(["patch", "-d", copy, "-p1", "--fuzz=0", "--no-backup-if-mismatch", "-i", patch])
        return copy

    def checkpatch(self, version):
        script = source_tree(version) / "scripts/checkpatch.pl"
        for patch in self.patches(version):
            said = processes.run(["perl", script, "--no-tree", "--no-summary", patch], check=False).stdout
            findings = [line for line in said.splitlines() if line.startswith(("ERROR", "WARNING"))]
            self.assertIn(EXPECTED[0], findings, patch.name)
            self.assertEqual([line for line in findings if not line.startswith(EXPECTED)], [], f"{patch.name}:\n{said}")

    def test_7_2_applies(self):
        copy = self.apply("7.2")
        self.assertTrue((copy / "hw/usb/lease.c").is_file())
        self.assertEqual((copy / "hw/usb/lease-page.h").read_bytes(), (TREE / "plugin/lease-page/lease_page.h").read_bytes())

    def test_10_0_applies(self):
        copy = self.apply("10.0")
        # A later patch of the series adds to it what a module cannot have.
        applied, shared = (copy / "hw/usb/lease.c").read_text(), (TREE / "plugin/qemu/lease.c").read_text()
        self.assertEqual(applied[: len(shared)], shared)

    def test_7_2_is_clean_under_checkpatch(self):
        self.checkpatch("7.2")

    def test_10_0_is_clean_under_checkpatch(self):
        self.checkpatch("10.0")

    def test_new_files_are_those_of_plugin(self):
        processes.run([TREE / "qemu-patches/refresh", "--check"])


DEVICES = """CONFIG_ISAPC=n
CONFIG_I440FX=n
CONFIG_MICROVM=n
CONFIG_Q35=y
CONFIG_PCI_DEVICES=n
CONFIG_USB_XHCI_PCI=y
CONFIG_TEST_DEVICES=n
"""
CONFIGURE = """--target-list=x86_64-softmmu --without-default-features --without-default-devices --with-devices-x86_64=usblease
--enable-system --enable-tcg --disable-kvm --enable-libusb --enable-usb-redir --disable-install-blobs --disable-docs
--disable-tools --disable-guest-agent --firmwarepath=/usr/share/seabios:/usr/share/qemu""".split()
OBJECTS = [f"libcommon.fa.p/hw_usb_{name}.c.o" for name in ("lease", "lease-event", "lease-object", "host-libusb", "redirect")]
OBJECTS += ["tests/qtest/usb-lease-test.p/usb-lease-test.c.o"]
PROGRAMS = ["qemu-system-x86_64", "tests/qtest/usb-lease-test"]


class PatchedQemu(unittest.TestCase):
    """The whole series in a QEMU of its own, as small as it can be, built when the series or QEMU has changed.

    What the series touches is always compiled. All of QEMU takes from minutes to an hour, as the machine is: only with
    QEMU_FULL_BUILD=yes."""

    setup = None
    time_limit_s = 5400

    def directory(self):
        """Configured and with the series applied; kept in the cache."""
        tree = source_tree("7.2")
        patches = [TREE / "qemu-patches/7.2" / name for name in series("7.2")]
        digest = hashlib.sha256((tree / "debian/changelog").read_bytes()[:200])
        for text in [path.read_bytes() for path in patches] + [DEVICES.encode(), repr(CONFIGURE).encode()]:
            digest.update(text)
        directory = guest_image.cache_dir() / f"qemu-patched-{digest.hexdigest()[:16]}"
        if (directory / "configured").exists():
            return directory
        shutil.rmtree(directory, ignore_errors=True)
        (directory / "build").mkdir(parents=True)
        processes.run(["cp", "-al", tree, directory / "source"], timeout_s=120)
        for patch in patches:
            processes.run(["patch", "-d", directory / "source", "-p1", "--quiet", "--no-backup-if-mismatch", "-i", patch])
        (directory / "source/configs/devices/x86_64-softmmu/usblease.mak").write_text(DEVICES)
        # No debugging information: it would be ten times as much to write.
        self.logged(
            directory,
            ["../source/configure", "--meson=/usr/bin/meson", "--with-git-submodules=ignore", "--cc=ccache gcc"]
            + ["--extra-cflags=-g0 -O1", *CONFIGURE],
        )
        (directory / "configured").touch()
        return directory

    def logged(self, directory, command):
        with open(directory / "log", "ab") as log:
            done = subprocess.run(
                ["nice", "-n", "15", *command],
                cwd=directory / "build",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"PATH": "/usr/bin:/bin"},  # Debian's Python and Meson
                check=False,
            )
        self.assertEqual(done.returncode, 0, f"{command[0]} failed; see {directory / 'log'}")

    def test_it_compiles(self):
        directory = self.directory()
        if not (directory / "compiled").exists():
            self.logged(directory, ["ninja", "-j2", *OBJECTS])
            (directory / "compiled").touch()

    def test_its_own_qtest_passes(self):
        if os.environ.get("QEMU_FULL_BUILD") != "yes":
            self.skipTest("it needs all of QEMU: QEMU_FULL_BUILD=yes")
        directory = self.directory()
        self.logged(directory, ["ninja", "-j2", *PROGRAMS])
        build = directory / "build"
        done = processes.run(
            [build / "tests/qtest/usb-lease-test", "--tap"],
            timeout_s=100,
            environment={"QTEST_QEMU_BINARY": str(build / "qemu-system-x86_64")},
        )
        self.assertGreaterEqual(done.stdout.count("\nok "), 4, done.stdout)


CASES = (PatchSeries, PatchedQemu)

#!/usr/bin/python3
"""The kernel and initramfs of the tests' guests, built once and kept in the cache.

The kernel is Debian's own, fetched as a package and never installed. It is kept as the uncompressed ELF file, which
QEMU starts directly (PVH): unpacking it inside an emulated guest costs 4 s of each boot.
"""

import contextlib
import fcntl
import fnmatch
import hashlib
import lzma
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
from typing import NamedTuple

TREE = pathlib.Path(__file__).resolve().parents[2]
INIT_SOURCE = pathlib.Path(__file__).with_name("guest_init.cc")
KERNEL_METAPACKAGE = "linux-image-amd64"  # the cloud kernels have no USB
MODULES = ("xhci_pci", "cdc_acm")
# Of the package only these are looked at, so what MODULES depend on must be among them.
MODULE_FILES = "./lib/modules/*/kernel/drivers/usb/*.ko"
COMPILE = ("g++", "-std=c++20", "-Os", "-static", "-Wl,--strip-all", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wconversion", "-Werror")
COMMAND_LINE = (
    "console=ttyS0 quiet mitigations=off lpj=4000000 tsc=reliable no_timer_check cryptomgr.notests panic=-1"
)


class GuestImage(NamedTuple):
    kernel: pathlib.Path
    initrd: pathlib.Path


def cache_dir():
    """$USBLEASE_CACHE, else usblease/ in $XDG_CACHE_HOME, else in ~/.cache: shared by all clones."""
    if os.environ.get("USBLEASE_CACHE"):
        return pathlib.Path(os.environ["USBLEASE_CACHE"]).resolve()
    user_cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(user_cache).resolve() / "usblease"


def ensure(say=lambda text: None):
    """Returns the image, building what is missing. Two that build at once wait for each other."""
    cache = cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "guest.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kernel = _ensure_kernel(cache, say)
        key = digest((kernel / "package").read_text(), INIT_SOURCE.read_text(), *COMPILE)
        image = cache / f"guest-{key}"
        if not image.is_dir():
            say("building the guest's initramfs")
            with new_directory(image) as building:
                _build_initrd(kernel, building)
    return GuestImage(kernel / "vmlinux", image / "initrd")


def digest(*texts):
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


@contextlib.contextmanager
def new_directory(final):
    """A directory that gets its name only when it is complete."""
    building = pathlib.Path(tempfile.mkdtemp(prefix="building-", dir=final.parent))
    try:
        yield building
        building.rename(final)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


# ---- the kernel


def _ensure_kernel(cache, say):
    # A kernel that is there is good for ever: tests need a kernel with USB, not the newest one.
    kernel = cache / f"kernel-{digest(KERNEL_METAPACKAGE, MODULE_FILES, *MODULES)}"
    if not kernel.is_dir():
        with new_directory(kernel) as building:
            say("fetching Debian's kernel")
            package = download_kernel(building)
            _unpack_kernel(package, building)
            (building / "package").write_text(package.name)
            package.unlink()
    return kernel


def _kernel_package():
    listed = subprocess.run(
        ["apt-cache", "depends", "--important", KERNEL_METAPACKAGE], capture_output=True, text=True, check=False
    ).stdout
    names = [line.split()[-1] for line in listed.splitlines() if "Depends: linux-image-" in line]
    return names[0] if names else None


def download_kernel(directory):
    errors = ""
    for attempt in range(2):
        name = _kernel_package()
        if name:
            # Its _apt user may not write here.
            command = ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", name]
            done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
            packages = list(directory.glob("*.deb"))
            if done.returncode == 0 and packages:
                return packages[0]
            errors = done.stderr
        if attempt == 0:  # no package lists yet, or lists that name a version which is gone
            subprocess.run(["apt-get", "update", "-q"], capture_output=True, check=False)
    raise RuntimeError(f"cannot fetch {KERNEL_METAPACKAGE}'s kernel; does 'apt-get update' work here? {errors}")


def _unpack_kernel(package, directory):
    modules = {}
    vmlinuz = None
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as unpacking:
        with tarfile.open(fileobj=unpacking.stdout, mode="r|") as files:
            for member in files:
                if member.name.startswith("./boot/vmlinuz-"):
                    vmlinuz = files.extractfile(member).read()
                elif fnmatch.fnmatch(member.name, MODULE_FILES):
                    name = pathlib.PurePath(member.name).stem.replace("-", "_")
                    modules[name] = files.extractfile(member).read()
    if vmlinuz is None:
        raise RuntimeError(f"{package.name} holds no kernel")
    (directory / "vmlinux").write_bytes(decompress_kernel(vmlinuz))
    (directory / "modules").mkdir()
    for number, name in enumerate(_with_dependencies(modules)):
        (directory / "modules" / f"{number:02}-{name}.ko").write_bytes(modules[name])


def decompress_kernel(bzimage):
    """The ELF kernel in a bzImage, found by the boot protocol's header (payload_offset, payload_length)."""
    setup_sectors = bzimage[0x1F1] or 4
    offset, length = struct.unpack_from("<II", bzimage, 0x248)
    begin = (setup_sectors + 1) * 512 + offset
    kernel = lzma.LZMADecompressor().decompress(bzimage[begin : begin + length])
    if kernel[:4] != b"\x7fELF":
        raise RuntimeError("the kernel in the package is not an ELF file compressed with xz")
    return kernel


def _with_dependencies(modules):
    """MODULES and what they need, in loading order. (modules.dep is made only when the package is installed.)"""
    order = []

    def add(name):
        if name in order:
            return
        if name not in modules:
            raise RuntimeError(f"the kernel package has no module {name} in {MODULE_FILES}")
        begin = modules[name].index(b"\0depends=") + len(b"\0depends=")
        needed = modules[name][begin : modules[name].index(b"\0", begin)].decode()
        for dependency in filter(None, needed.split(",")):
            add(dependency.replace("-", "_"))
        order.append(name)

    for module in MODULES:
        add(module)
    return order


# ---- the initramfs


def _build_initrd(kernel, directory):
    init = directory / "init"
    subprocess.run([*COMPILE, "-o", init, INIT_SOURCE], check=True)
    archive = Cpio()
    for name in ("dev", "proc", "sys", "modules.d"):
        archive.add(name, 0o040755)
    archive.add("init", 0o100755, init.read_bytes())
    names = [module.name for module in sorted((kernel / "modules").iterdir())]
    for name in names:
        archive.add(f"modules.d/{name}", 0o100644, (kernel / "modules" / name).read_bytes())
    archive.add("modules", 0o100644, "".join(f"/modules.d/{name}\n" for name in names).encode())
    (directory / "initrd").write_bytes(archive.finish())
    init.unlink()


class Cpio:
    """The "newc" archive that the kernel reads (Documentation/driver-api/early-userspace/buffer-format.rst)."""

    def __init__(self):
        self._parts = []
        self._inode = 0

    def add(self, name, mode, data=b""):
        self._inode += 1
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        self._parts.append(head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4))

    def finish(self):
        self.add("TRAILER!!!", 0)
        return b"".join(self._parts)


def main():
    begun = time.monotonic()
    image = ensure(lambda text: print(f"  {text}", flush=True))
    print(f"{image.kernel}\n{image.initrd}\n{time.monotonic() - begun:.1f} s")


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/python3
"""The system of the testbed's hosts: a disk image of Debian packages, its kernel and an initramfs; built once and kept in
the cache under a key of its inputs.

What usblease itself needs at run time is asked of the programs that were built, so the image fits the machine that built
them. The kernel is the ordinary one of the release: the cloud kernels have no USB.
"""

import fcntl
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import time
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))

import guest_image  # pylint: disable=wrong-import-position

HERE = pathlib.Path(__file__).resolve().parent
PACKAGES = (
    "bpftool busybox-static dbus iproute2 kmod procps python3 udev usbutils "
    "libvirt-clients libvirt-daemon-system libvirt-daemon-driver-qemu qemu-system-x86 seabios"
).split()
LEFT_OUT = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*")
# What the initramfs needs to reach the disk and the shared directory. (ext4 asks for its checksum by name.)
BOOT_MODULES = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4", "9p", "9pnet_virtio")
DISK_MB = 4096
FORMAT = 1  # another number when another image is made of the same inputs
FORGET_AFTER = 2  # images of other keys that are kept
BUILD_S = 900


class HostImage(NamedTuple):
    kernel: pathlib.Path
    initrd: pathlib.Path
    disk: pathlib.Path


def ensure(programs, say=lambda text: None):
    """Returns the image that `programs`, paths of built programs, run in. Two that build at once wait for each other."""
    cache = guest_image.cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    packages = sorted({*PACKAGES, *runtime_packages(programs)})
    with open(cache / "host.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        inputs = (FORMAT, DISK_MB, *LEFT_OUT, *BOOT_MODULES, (HERE / "host_boot").read_text(), debian_sources())
        key = guest_image.digest(*map(str, inputs), *packages)
        image = cache / f"host-{key}"
        if not image.is_dir():
            begun = time.monotonic()
            with guest_image.new_directory(image) as building:
                _build(building, packages, say)
            say(f"built the hosts' image in {time.monotonic() - begun:.0f} s")
            _forget_others(cache, image)
        image.touch()
    return HostImage(image / "vmlinux", image / "initrd", image / "disk.ext4")


def _forget_others(cache, kept):
    others = [path for path in cache.glob("host-*") if path.is_dir() and path != kept]
    others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in others[FORGET_AFTER:]:
        subprocess.run(["rm", "-rf", path], check=False)


def codename():
    fields = dict(line.split("=", 1) for line in pathlib.Path("/etc/os-release").read_text().splitlines() if "=" in line)
    return fields["VERSION_CODENAME"].strip('"')


def debian_sources():
    """This machine's own apt sources of its release, in the format of sources.list(5), "deb822"."""
    release = codename()
    suites = {release, f"{release}-updates", f"{release}-security"}
    stanzas = []
    for path in sorted(pathlib.Path("/etc/apt/sources.list.d").glob("*.sources")):
        for stanza in re.split(r"\n\s*\n", path.read_text()):
            listed = re.search(r"^Suites:(.*)$", stanza, re.MULTILINE)
            if listed and set(listed.group(1).split()) <= suites:
                kept = [line for line in stanza.strip().splitlines() if not line.startswith("#")]
                stanzas.append("\n".join(kept))
    lists = [pathlib.Path("/etc/apt/sources.list"), *sorted(pathlib.Path("/etc/apt/sources.list.d").glob("*.list"))]
    for path in filter(pathlib.Path.is_file, lists):
        for line in path.read_text().splitlines():
            entry = re.match(r"deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+(\S+)\s+(.+)$", line)
            if entry and entry.group(2) in suites:
                stanzas.append(f"Types: deb\nURIs: {entry.group(1)}\nSuites: {entry.group(2)}\nComponents: {entry.group(3)}")
    if not stanzas:
        raise RuntimeError(f"no apt source of this machine is for {release}, so no host can be made of its packages")
    return "\n\n".join(stanzas) + "\n"


def runtime_packages(programs):
    """The packages of the shared libraries that the programs are linked with."""
    linked = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=True).stdout
    paths = set()
    for library in re.findall(r"=> (/\S+)", linked):
        # dpkg knows a file by the path in its package: from before or after /lib became a link to /usr/lib.
        real = str(pathlib.Path(library).resolve())
        paths |= {real, real.removeprefix("/usr")}
    found = subprocess.run(["dpkg-query", "-S", *sorted(paths)], capture_output=True, text=True, check=False).stdout
    return {line.split(":", 1)[0] for line in found.splitlines()}


# ---- building


def _run(arguments, log, **more):
    """Runs it; a failure's message holds the end of what it said."""
    with open(log, "ab") as out:
        done = subprocess.run(arguments, stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=BUILD_S, check=False, **more)
    if done.returncode != 0:
        tail = "\n".join(pathlib.Path(log).read_text(errors="replace").splitlines()[-15:])
        raise RuntimeError(f"{arguments[0]} ended with {done.returncode}:\n{tail}")


def _build(directory, packages, say):
    log = directory / "build.log"
    root = directory / "root"
    say(f"building the hosts' system of {codename()}'s packages")
    sources = directory / "debian.sources"
    sources.write_text(debian_sources())
    options = ["--variant=minbase", "--mode=root", "--format=directory", "--aptopt=APT::Install-Recommends \"false\""]
    options += [f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT]
    _run(["mmdebstrap", *options, f"--include={','.join(packages)}", codename(), root, sources], log)
    say("adding the kernel")
    package = guest_image.download_kernel(directory)
    release = _unpack_kernel(package, directory, root)
    package.unlink()
    _run(["chroot", root, "depmod", release], log)
    (directory / "initrd").write_bytes(_initrd(root, release))
    _run(["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-E", "lazy_itable_init=1", "-d", root,
          directory / "disk.ext4", f"{DISK_MB}M"], log)
    _run(["rm", "-rf", "--one-file-system", root], log)


def _unpack_kernel(package, directory, root):
    """Its modules into the root, and the kernel beside it as the ELF file that QEMU starts directly."""
    release = None
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as unpacking:
        with tarfile.open(fileobj=unpacking.stdout, mode="r|") as files:
            for member in files:
                if member.name.startswith("./boot/vmlinuz-"):
                    release = member.name.removeprefix("./boot/vmlinuz-")
                    kernel = guest_image.decompress_kernel(files.extractfile(member).read())
                    (directory / "vmlinux").write_bytes(kernel)
                elif member.isfile() and re.match(r"\./(usr/)?lib/modules/", member.name):
                    target = root / "usr" / member.name.removeprefix("./").removeprefix("usr/")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(files.extractfile(member).read())
    if release is None:
        raise RuntimeError(f"{package.name} holds no kernel")
    return release


def _boot_modules(root, release):
    """BOOT_MODULES and what they need, in loading order."""
    base = root / "usr/lib/modules" / release
    needs = {}
    for line in (base / "modules.dep").read_text().splitlines():
        module, _, needed = line.partition(":")
        needs[pathlib.PurePath(module).name.split(".ko")[0].replace("-", "_")] = (module, needed.split())
    by_path = {path: name for name, (path, _) in needs.items()}
    order = []

    def add(name):
        path, needed = needs[name]
        for other in reversed(needed):  # modules.dep names the nearest first
            if by_path[other] not in order:
                add(by_path[other])
        if name not in order:
            order.append(name)

    for name in BOOT_MODULES:
        add(name)
    return [(name, base / needs[name][0]) for name in order]


def _initrd(root, release):
    archive = guest_image.Cpio()
    for name in ("bin", "dev", "proc", "sys", "modules", "newroot"):
        archive.add(name, 0o040755)
    archive.add("bin/busybox", 0o100755, (root / "usr/bin/busybox").resolve().read_bytes())
    archive.add("init", 0o100755, (HERE / "host_boot").read_bytes())
    names = []
    for name, path in _boot_modules(root, release):
        data = path.read_bytes()
        if path.suffix == ".xz":
            data = subprocess.run(["xz", "-dc", path], capture_output=True, check=True).stdout
        archive.add(f"modules/{name}.ko", 0o100644, data)
        names.append(f"/modules/{name}.ko\n")
    archive.add("modules/order", 0o100644, "".join(names).encode())
    return archive.finish()


def main():
    print("\n".join(str(path) for path in ensure(sys.argv[1:], lambda text: print(f"  {text}", flush=True))))


if __name__ == "__main__":
    sys.exit(main())

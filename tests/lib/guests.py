"""Guests of a private libvirtd, and what their consoles say (guest_init.cc)."""

import os
import signal

import domain_xml
import waiting

BOOT_S = 60


class Guest:
    """A defined guest. What a test waits for on its console comes after `since`, a mark of console.mark()."""

    def __init__(self, libvirtd, directory, image, name, **declared):
        """declared: see domain_xml.domain_xml()."""
        self.name = name
        self.uuid = domain_xml.uuid_of(name)
        self.console = waiting.TextFile(directory / f"{name}.console")
        self._libvirtd = libvirtd
        self._directory = directory
        self._image = image
        self.define(**declared)

    def define(self, **declared):
        """Defines the guest anew, with another declaration."""
        file = self._directory / f"{self.name}.xml"
        file.write_text(domain_xml.domain_xml(self.name, self.console.path, self._image, **declared))
        self._libvirtd.virsh("define", file)

    def undefine(self):
        self._libvirtd.virsh("undefine", self.name)

    # ---- life

    def start(self, wait=True):
        """Returns the mark before this start."""
        mark = self.console.mark()
        self._libvirtd.virsh("start", self.name)
        if wait:
            self.wait_up(mark)
        return mark

    def start_refused(self):
        """A start that must fail; returns libvirt's error."""
        return self._libvirtd.virsh_refused("start", self.name)

    def destroy(self):
        self._libvirtd.virsh("destroy", self.name)

    def kill9(self):
        """The guest's QEMU dies."""
        os.kill(self.qemu_pid, signal.SIGKILL)

    @property
    def qemu_pid(self):
        return self._libvirtd.qemu_pids()[self.name]

    @property
    def running(self):
        return self._libvirtd.is_running(self.name)

    # ---- what it sees

    def _wait(self, pattern, timeout_s, since):
        return self.console.wait_for(rf"^([0-9.]+) guest: {pattern}", timeout_s, since)

    def wait_up(self, since=0, timeout_s=BOOT_S):
        return self._wait("up$", timeout_s, since)

    def wait_usb_add(self, serial, since=0, timeout_s=20):
        return self._wait(rf"usb-add \S+ {serial}$", timeout_s, since)

    def wait_usb_remove(self, serial, since=0, timeout_s=20):
        return self._wait(rf"usb-remove \S+ {serial}$", timeout_s, since)

    def wait_pong(self, serial, since=0, timeout_s=20):
        """Until the device answers; the second group is the number."""
        return self._wait(rf"pong (\d+) {serial}$", timeout_s, since)

    def wait_io_error(self, since=0, timeout_s=20):
        return self._wait(r"io-error (\S+) after (\d+)", timeout_s, since)

    def pongs(self, serial, since=0):
        """The numbers of the answers that were printed."""
        return [int(match.group(1)) for match in self.console.matches(rf"guest: pong (\d+) {serial}$", since)]

    # ---- devices that others than us plug

    def attach(self, device_xml):
        self._plug("attach-device", device_xml)

    def detach(self, device_xml):
        self._plug("detach-device", device_xml)

    def _plug(self, command, device_xml):
        file = self._directory / f"{self.name}.device.xml"
        file.write_text(device_xml)
        self._libvirtd.virsh(command, self.name, file, "--live")

"""The domain XML of the tests' guests."""

import uuid
from xml.sax.saxutils import quoteattr

import guest_image

METADATA_NAMESPACE = "urn:usblease:domain:1"
USB_PORTS = 8
MEMORY_MIB = 160


def uuid_of(name):
    """The same guest name has the same UUID in every run."""
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{name}.guest.usblease"))


def assignment_xml(devices):
    """The metadata element for device names, or for (name, {attribute: value}) pairs."""
    rows = ""
    for device in devices:
        name, attributes = (device, {}) if isinstance(device, str) else device
        more = "".join(f" {key}={quoteattr(str(value))}" for key, value in attributes.items())
        rows += f"<usblease:device name={quoteattr(name)}{more}/>"
    return f"<usblease:devices xmlns:usblease='{METADATA_NAMESPACE}'>{rows}</usblease:devices>"


def redirdev_xml(path, alias=None):
    """A usbredir device whose stream is the Unix socket at `path`, on which somebody listens."""
    alias_xml = f"<alias name={quoteattr(alias)}/>" if alias else ""
    return (
        f"<redirdev bus='usb' type='unix'><source mode='connect' path={quoteattr(str(path))}/>"
        f"{alias_xml}</redirdev>"
    )


def hostdev_xml(vendor, product):
    return (
        "<hostdev mode='subsystem' type='usb' managed='no'>"
        f"<source><vendor id='0x{vendor:04x}'/><product id='0x{product:04x}'/></source></hostdev>"
    )


def domain_xml(name, console_path, image, assignments=(), redirdev_paths=(), hostdevs=(), metadata=None, options=None):
    """A guest that boots `image` (guest_image.GuestImage) and writes its console to a file.

    assignments: see assignment_xml(). metadata: put in as it is, instead of assignments. hostdevs: (vendor, product).
    options: words for the kernel's command line, see guest_init.cc.
    """
    if metadata is None:
        metadata = assignment_xml(assignments) if assignments else ""
    devices = "".join(redirdev_xml(path) for path in redirdev_paths)
    devices += "".join(hostdev_xml(vendor, product) for vendor, product in hostdevs)
    command_line = " ".join([guest_image.COMMAND_LINE, *(options or ())])
    # type='qemu' always: a /dev/kvm may exist where ordinary kernels stall under it. append: a guest's next start must
    # not cut what the test has read.
    return f"""<domain type='qemu'>
  <name>{name}</name>
  <uuid>{uuid_of(name)}</uuid>
  <metadata>{metadata}</metadata>
  <memory unit='MiB'>{MEMORY_MIB}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{image.kernel}</kernel>
    <initrd>{image.initrd}</initrd>
    <cmdline>{command_line}</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='maximum'/>
  <on_reboot>destroy</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='qemu-xhci' ports='{USB_PORTS}'/>
    <serial type='file'><source path='{console_path}' append='on'/><target port='0'/></serial>
    <memballoon model='none'/>
    {devices}
  </devices>
</domain>
"""

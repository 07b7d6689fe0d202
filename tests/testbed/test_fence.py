"""The fence in the kernel and the unbinding, on a real Linux USB stack: what they refuse, to whom, and from when on."""

import re
import statistics
import unittest

import waiting
from host_vm import HostVm

HOLDER = "/sys/fs/cgroup/holder"
OTHER = "/sys/fs/cgroup/other"
PINS = "/sys/fs/bpf/usblease"
EXPIRY_RUNS = 5
# Long enough that a busy machine gets to use the device before.
LEASE_MS = 4000
# What is stamped outside of the kernel is as late as an emulated machine on a busy one can be; the figures are printed. What
# is exact is the kernel's own stamp of the last call that it let through.
LATE_NS_MAX = 5_000_000_000


def lines(output):
    """What usb-user said: [(at_ns, text)]."""
    return [(int(at), text) for at, text in re.findall(r"^(\d+) (.*)$", output, re.MULTILINE)]


def texts(output):
    return [text for _, text in lines(output)]


def first(output, text):
    """When usb-user first said it."""
    return next(at for at, said in lines(output) if said == text)


def last_ok_ns(output):
    return int(re.search(r"last_ok_ns=(\d+)", output).group(1))


HOST = HostVm("a")


def setUpModule():
    """One host for all: it is most of the time that a test takes."""
    unittest.addModuleCleanup(HOST.close)
    HOST.start()
    HOST.run(f"mkdir -p {HOLDER}/below {OTHER}")


class InHost(unittest.TestCase):
    """Each test has a keyboard of its own to use."""

    host = HOST

    def setUp(self):
        self.serial = f"KBD-{self._testMethodName.removeprefix('test_')[:40]}"
        self.node = self.host.plug("usb-kbd", self.serial)
        self.addCleanup(self.end)

    def end(self):
        """As if nothing had been: the next test begins with what it plugs in."""
        self.host.run("pkill -KILL -x usb-user; pkill -KILL -x usblease-fence; true")
        self.host.run("usblease-fence unload")
        self.host.unplug(self.serial)

    # ---- the words of the tests

    def fence(self, words, check=True):
        return self.host.run(f"usblease-fence {words}", check=check)

    def load_and_manage(self):
        self.fence("load")
        self.fence(f"manage {self.node}")

    def arm(self, token, for_ms, holder=f"--cgroup {HOLDER}"):
        """Returns the deadline."""
        self.fence(f"arm {self.node} --token {token} --for-ms {for_ms} {holder}")
        return int(self.status()["deadline_ns"])

    def status(self):
        """What the fence knows of the only device that it manages."""
        return dict(re.findall(r"(\S+)=(\S+)", self.fence("status").output))

    def use(self, mode, number="", cgroup=HOLDER, before=""):
        """usb-user in a cgroup; what it said."""
        command = f"echo $BASHPID >{cgroup}/cgroup.procs; {before} /testbed/usb-user {mode} {self.node} {number}"
        return self.host.run(f"({command})", check=False).output

    def in_background(self, mode, number, cgroup=HOLDER, name="user"):
        self.host.run(
            f"(echo $BASHPID >{cgroup}/cgroup.procs; exec /testbed/usb-user {mode} {self.node} {number})"
            f" >/tmp/{name}.log 2>&1 </dev/null &"
        )
        return lambda: self.host.output(f"cat /tmp/{name}.log")

    def wait_said(self, said, text):
        waiting.wait_until(lambda: f"usb-user to say {text}; it said:\n{said()}", lambda: text in texts(said()), 30)


class Kernel(InHost):
    def test_managed_device_is_refused_to_everybody(self):
        self.fence("load")
        self.assertEqual(texts(self.use("open")), ["opened"], "not managed yet")
        self.fence(f"manage {self.node}")
        for cgroup in (HOLDER, OTHER):
            self.assertEqual(texts(self.use("open", cgroup=cgroup)), ["refused EPERM"])
        self.assertEqual(self.status()["lease"], "none")

    def test_handle_from_before_is_refused_when_its_device_is_managed(self):
        self.fence("load")
        said = self.in_background("loop", 60_000)
        self.wait_said(said, "ok")
        self.fence(f"manage {self.node}")
        self.wait_said(said, "ENODEV")

    def test_deadline_ends_ioctls_and_opens_with_nobody_of_us_alive(self):
        self.load_and_manage()
        late_ns, early_ns = [], []
        for token in range(1, EXPIRY_RUNS + 1):
            deadline_ns = self.arm(token, LEASE_MS)
            self.assertEqual(self.host.run("pgrep -f [u]sblease", check=False).output, "", "nobody of us runs")
            output = self.use("loop", 60_000)
            self.assertEqual(texts(output)[:3], ["opened", "ok", "ENODEV"], output)
            self.assertLess(int(self.status()["last_allowed_ns"]), deadline_ns)
            late_ns.append(first(output, "ENODEV") - deadline_ns)
            early_ns.append(deadline_ns - last_ok_ns(output))
            self.assertGreaterEqual(late_ns[-1], 0, "refused before its deadline")
            self.assertLess(late_ns[-1], LATE_NS_MAX)
            self.assertLess(-early_ns[-1], LATE_NS_MAX)
            self.assertEqual(texts(self.use("open")), ["refused EPERM"])
        self.say_times("deadline to first refusal", late_ns)
        self.say_times("last success to deadline", early_ns)

    def say_times(self, what, values_ns):
        low, middle, high = (f(values_ns) / 1e6 for f in (min, statistics.median, max))
        print(f"          {what}: min {low:.2f}, median {middle:.2f}, max {high:.2f} ms of {len(values_ns)}", flush=True)

    def test_only_the_holders_cgroup_gets_through(self):
        self.load_and_manage()
        self.arm(1, 60_000)
        self.assertEqual(texts(self.use("open")), ["opened"])
        self.assertEqual(texts(self.use("open", cgroup=f"{HOLDER}/below")), ["opened"], "who is below belongs to it")
        self.assertEqual(texts(self.use("open", cgroup=OTHER)), ["refused EPERM"])
        self.assertEqual(texts(self.use("open", cgroup="/sys/fs/cgroup")), ["refused EPERM"], "root of the host")

    def test_handle_in_other_hands_is_refused(self):
        self.load_and_manage()
        self.arm(1, 60_000)
        output = self.use("loop", 300, before=f"MOVE_TO={OTHER}")
        self.assertEqual(texts(output)[:2], ["opened", "EPERM"], output)
        self.assertEqual(last_ok_ns(output), 0, "not one call got through")

    def test_only_the_holding_process_gets_through(self):
        self.load_and_manage()
        command = f"/testbed/usb-user open {self.node}"
        # The shell that is armed becomes usb-user; the one that it starts is another process.
        arm = f"usblease-fence arm {self.node} --token %d --for-ms 60000 --pid $BASHPID"
        self.assertEqual(texts(self.host.output(f"({arm % 1}; exec {command})")), ["opened"])
        self.assertEqual(texts(self.host.run(f"({arm % 2}; {command}; true)").output), ["refused EPERM"])

    def test_calls_of_32_bits_are_refused_too(self):
        self.load_and_manage()
        self.arm(1, LEASE_MS)
        self.assertEqual(texts(self.use("compat", 60_000))[:3], ["opened", "ok", "ENODEV"])

    def test_tokens_only_grow_and_what_ended_does_not_come_back(self):
        self.load_and_manage()
        self.arm(7, 60_000)
        holder = f"--cgroup {HOLDER}"
        lower = self.fence(f"arm {self.node} --token 6 --for-ms 1000 {holder}", check=False)
        self.assertIn("token 7 was armed already", lower.output)
        self.fence(f"disarm {self.node} --token 6")
        self.assertEqual(self.status()["lease"], "live", "an older token's end is not this one's")
        self.fence(f"disarm {self.node} --token 7")
        self.assertEqual(texts(self.use("open")), ["refused EPERM"])
        again = self.fence(f"arm {self.node} --token 7 --for-ms 1000 {holder}", check=False)
        self.assertIn("it has ended", again.output)
        extended = self.fence(f"extend {self.node} --token 7 --for-ms 1000", check=False)
        self.assertIn("it has ended", extended.output)
        self.arm(8, 60_000)
        self.assertEqual(texts(self.use("open")), ["opened"])

    def test_extended_lease_goes_on(self):
        self.load_and_manage()
        first_deadline_ns = self.arm(1, 2 * LEASE_MS)
        said = self.in_background("loop", 60_000)
        self.wait_said(said, "ok")
        self.fence(f"extend {self.node} --token 1 --for-ms {2 * LEASE_MS}")
        deadline_ns = int(self.status()["deadline_ns"])
        self.assertGreater(deadline_ns, first_deadline_ns)
        self.wait_said(said, "ENODEV")
        self.assertEqual(texts(said())[:3], ["opened", "ok", "ENODEV"], "no gap at the first deadline")
        self.assertGreaterEqual(first(said(), "ENODEV"), deadline_ns)

    def test_loaded_again_it_keeps_what_it_knows(self):
        self.load_and_manage()
        self.arm(3, 60_000)
        links = self.host.output(f"stat -c %i {PINS}/v1/link_*")
        self.fence("load")
        self.assertEqual(self.status()["token"], "3")
        self.assertEqual(self.host.output(f"stat -c %i {PINS}/v1/link_*"), links, "the same program stays attached")
        self.assertEqual(texts(self.use("open", cgroup=OTHER)), ["refused EPERM"])

    def test_program_that_is_not_ours_is_replaced_without_a_gap(self):
        """As by an upgrade: what is attached has another tag than what comes."""
        self.load_and_manage()
        # The open's program takes the place of the ioctl's: another program under its name.
        self.host.run(f"rm {PINS}/v1/link_fence_ioctl && mv {PINS}/v1/link_fence_open {PINS}/v1/link_fence_ioctl")
        self.fence("load")
        self.assertEqual(self.host.output(f"ls {PINS}/v1 | grep -c link_.*_new || true"), "0")
        attached = self.host.output("bpftool link | grep -c attach_type || true")
        self.assertEqual(texts(self.use("open")), ["refused EPERM"])
        self.fence("unload")
        self.assertEqual(attached, "3", "one for each hook")

    def test_unload_leaves_nothing(self):
        self.load_and_manage()
        self.assertEqual(texts(self.use("open")), ["refused EPERM"])
        self.fence("unload")
        self.assertEqual(texts(self.use("open", cgroup=OTHER)), ["opened"])
        self.assertEqual(self.host.run(f"ls -d {PINS}", check=False).code, 2)
        self.assertEqual(self.host.output("bpftool prog | grep -c ' name fence_' || true"), "0")
        self.fence("unload")

    def test_another_version_is_not_mixed_with(self):
        self.host.run(f"mkdir -p {PINS}/v999")
        refused = self.fence("load", check=False)
        self.assertEqual(refused.code, 1)
        self.assertIn(f"{PINS}/v999 belongs to another version", refused.output)

    def test_cost_of_a_call(self):
        without = self.use("cost", 20_000)
        self.load_and_manage()
        self.arm(1, 120_000)
        leased = self.use("cost", 20_000)
        mean = [float(re.search(r"([\d.]+) ns", output).group(1)) for output in (without, leased)]
        print(f"          a call: {mean[0]:.0f} ns without, {mean[1]:.0f} ns with a lease (emulated)", flush=True)
        self.assertLess(mean[1], mean[0] + 100_000)


class Unbinding(InHost):
    def test_old_handle_is_dead_and_stays_dead(self):
        self.load_and_manage()
        self.arm(1, 120_000)
        said = self.in_background("stay", 60_000)
        self.wait_said(said, "ok")
        self.fence(f"unbind {self.node}")
        self.wait_said(said, "ENODEV")
        self.fence(f"bind {self.node}")
        self.assertEqual(texts(self.use("loop", 200))[:2], ["opened", "ok"], "a new handle works")
        self.assertEqual(texts(said()), ["opened", "ok", "ENODEV"], "the old one does not, though its lease lives")

    def test_queued_transfer_outlives_the_deadline_and_ends_with_the_unbinding(self):
        self.load_and_manage()
        deadline_ns = self.arm(1, LEASE_MS)
        said = self.in_background("wait", 60_000)
        self.wait_said(said, "queued")
        self.host.run(f"while (( $(/testbed/usb-user open {self.node} | cut -d' ' -f1) < {deadline_ns} + 1000000000 )); do sleep 0.1; done")
        self.assertEqual(texts(said()), ["opened", "queued"], "the kernel's fence takes nothing back that is queued")
        self.fence(f"unbind {self.node}")
        self.wait_said(said, "ended")

    def test_root_hub_is_never_unbound(self):
        refused = self.host.run("usblease-fence unbind /dev/bus/usb/001/001", check=False)
        self.assertEqual(refused.code, 1)
        self.assertIn("is a root hub", refused.output)


class Fencer(InHost):
    def serve(self):
        self.host.run("usblease-fence serve >/tmp/serve.log 2>&1 </dev/null &")
        waiting.wait_until(
            lambda: f"the fencer to begin: {self.log()}", lambda: "is unbound from now on" in self.log(), 30
        )

    def log(self):
        return self.host.run("cat /tmp/serve.log", check=False).output

    def bound(self):
        return self.status()["bound"]

    def wait_bound(self, expected):
        waiting.wait_until(
            lambda: f"bound={expected}: {self.status()}\n{self.log()}", lambda: self.bound() == expected, 30
        )

    def test_queued_transfer_ends_soon_after_the_deadline(self):
        self.load_and_manage()
        self.serve()
        self.wait_bound("no")
        deadline_ns = self.arm(1, 2 * LEASE_MS)
        self.fence(f"bind {self.node}")
        said = self.in_background("wait", 60_000)
        self.wait_said(said, "ended")
        late_ms = (first(said(), "ended") - deadline_ns) / 1e6
        print(f"          a queued transfer ended {late_ms:.1f} ms after the deadline", flush=True)
        self.assertGreaterEqual(late_ms, 0)
        self.assertLess(late_ms * 1e6, LATE_NS_MAX)
        self.wait_bound("no")
        self.assertIn("ms after its deadline", self.log())

    def test_device_without_a_lease_is_bound_to_nothing(self):
        self.load_and_manage()
        self.assertEqual(self.bound(), "yes")
        self.serve()
        self.wait_bound("no")
        self.fence(f"bind {self.node}")  # somebody else: it is taken back
        self.wait_bound("no")
        self.arm(1, 60_000)
        self.fence(f"bind {self.node}")
        self.assertEqual(texts(self.use("loop", 300))[:2], ["opened", "ok"])
        self.assertEqual(self.bound(), "yes", "a live lease is left alone")
        self.fence(f"disarm {self.node} --token 1")
        self.wait_bound("no")

    def test_frozen_fencer_does_not_matter_to_the_kernel(self):
        self.load_and_manage()
        self.serve()
        self.host.run("pkill -STOP -x usblease-fence")
        self.arm(1, LEASE_MS)
        self.fence(f"bind {self.node}")
        self.assertEqual(texts(self.use("loop", 60_000))[:3], ["opened", "ok", "ENODEV"])
        self.assertEqual(self.bound(), "yes")
        self.host.run("pkill -CONT -x usblease-fence")
        self.wait_bound("no")

    def test_refusals_are_said_with_who_and_why(self):
        self.load_and_manage()
        self.arm(1, 60_000)
        self.serve()
        self.use("open", cgroup=OTHER)
        waiting.wait_until(
            lambda: f"the refusal in the log: {self.log()}",
            lambda: re.search(r"refused to open USB device 189:\d+ to usb-user \(process \d+, uid 0\): not the holder", self.log()),
            10,
        )

    def test_device_that_vanishes_holds_up_nobody(self):
        self.load_and_manage()
        self.serve()
        self.wait_bound("no")
        other = self.host.plug("usb-kbd", "KBD-OTHER")
        self.fence(f"manage {other}")
        self.host.unplug("KBD-OTHER")
        self.fence(f"forget {other}")
        self.arm(1, 1000)
        self.fence(f"bind {self.node}")
        self.wait_bound("no")


class DefaultDeny(InHost):
    """By the configuration and udev alone: no daemon, no fencer, nobody who loads anything."""

    CONFIG = "/etc/usblease/usbleased.conf"

    def setUp(self):
        self.host.run(f"cp {self.CONFIG} /tmp/config.before")
        self.addCleanup(lambda: self.host.run(f"cp /tmp/config.before {self.CONFIG}"))
        super().setUp()

    def manage_by_rule(self, serial):
        """What usb-kbd of QEMU is, with this serial."""
        self.host.run(f"printf '[device kbd]\\nusb=0627:0001:{serial}\\n' >{self.CONFIG}")

    def entry(self, node):
        """What the fence knows of the device, {} when it is not managed."""
        number = "189:" + str((int(node.split("/")[-2]) - 1) * 128 + int(node.split("/")[-1]) - 1)
        found = [dict(re.findall(r"(\S+)=(\S+)", line)) for line in self.fence("status").output.splitlines()]
        return next((entry for entry in found if entry.get("device") == number), {})

    def open_by(self, node, cgroup=OTHER):
        return texts(self.host.run(f"(echo $BASHPID >{cgroup}/cgroup.procs; /testbed/usb-user open {node})", check=False).output)

    def test_managed_device_is_refused_from_its_appearance(self):
        self.manage_by_rule("MANAGED")
        managed = self.host.plug("usb-kbd", "MANAGED")
        self.addCleanup(self.host.unplug, "MANAGED")
        self.assertEqual(self.open_by(managed), ["refused EPERM"])
        self.assertEqual(self.entry(managed)["bound"], "no")
        self.assertEqual(self.open_by(self.node), ["opened"], "the other keyboard is nobody's")
        self.assertEqual(self.open_by("/dev/bus/usb/001/001"), ["opened"], "nor is the root hub")

    def test_device_that_nobody_has_classified_is_refused(self):
        self.manage_by_rule("MANAGED")
        self.host.run("usblease-fence classify")
        self.assertEqual(self.open_by(self.node), ["opened"])
        # udev is not there to say what the next one is: as in the time before it has come to that.
        self.host.run("udevadm control --stop-exec-queue")
        self.addCleanup(self.host.run, "udevadm control --start-exec-queue")
        self.host.plug_unseen("usb-kbd", "NEW")
        self.addCleanup(self.host.unplug, "NEW")
        new = waiting.wait_until("NEW to appear", lambda: self.host.node("NEW"), 30)
        self.assertEqual(self.open_by(new), ["refused EPERM"])
        self.host.run("usblease-fence classify")
        self.assertEqual(self.open_by(new), ["opened"])

    def test_rule_that_comes_and_goes(self):
        self.manage_by_rule(self.serial)
        self.host.run("usblease-fence classify")
        self.assertEqual(self.open_by(self.node), ["refused EPERM"])
        self.manage_by_rule("another")
        self.host.run("usblease-fence classify")
        self.assertEqual(self.entry(self.node), {})
        self.assertEqual(self.open_by(self.node), ["opened"])
        driver = f"/sys/bus/usb/devices/{self.host.port(self.serial)}/driver"
        self.assertTrue(self.host.output(f"readlink {driver}").endswith("/usb"), "the host has it back")

    def test_device_that_left_is_forgotten(self):
        self.manage_by_rule("MANAGED")
        managed = self.host.plug("usb-kbd", "MANAGED")
        self.assertEqual(self.entry(managed)["lease"], "none")
        self.host.unplug("MANAGED")
        self.host.settle()
        self.assertEqual(self.entry(managed), {})

    def test_live_lease_is_left_alone(self):
        self.manage_by_rule(self.serial)
        self.host.run("usblease-fence classify")
        self.arm(1, 120_000)
        self.fence(f"bind {self.node}")
        self.host.settle()
        self.host.run("usblease-fence classify")
        self.assertEqual(texts(self.use("loop", 200))[:2], ["opened", "ok"])
        self.manage_by_rule("another")
        self.host.run("usblease-fence classify")
        self.assertEqual(texts(self.use("open")), ["opened"], "it ends with its lease, not with its rule")
        self.assertEqual(texts(self.use("open", cgroup=OTHER)), ["refused EPERM"])

    def test_bad_configuration_is_said_and_changes_nothing(self):
        self.manage_by_rule(self.serial)
        self.host.run("usblease-fence classify")
        self.host.run(f"echo nonsense >>{self.CONFIG}")
        refused = self.host.run("usblease-fence classify", check=False)
        self.assertEqual(refused.code, 1)
        self.assertIn(f"{self.CONFIG}:3", refused.output)
        self.assertEqual(self.open_by(self.node), ["refused EPERM"])

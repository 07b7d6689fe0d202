"""usbleased, libvirt and a device on the host's own bus: who gets it, how he loses it, and that nobody else ever does."""

import json
import random
import time
import unittest

import waiting
from guest_host import GuestHost

CONFIG = """[timing]
ttl_ms=6000
renewal_ms=1000
[device stick]
usb=46f4:0001:STICK
"""
CONFIG_FILE = "/etc/usblease/usbleased.conf"


class Passthrough(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.host = host = GuestHost("a")
        cls.addClassCleanup(host.close)
        host.start()
        host.make_disk("STICK")
        host.run(f"cat >{CONFIG_FILE} <<'END'\n{CONFIG}END")
        host.install_hook()
        cls.start_all()
        host.plug("usb-storage", "STICK")
        for name in ("a", "b"):  # their own XML names the device
            host.define(name, host.by_id(0x46F4, 0x0001))
        for name in ("c", "d"):  # they get what is attached to them
            host.define(name)
        host.run("sync")
        cls.wait_device("free")

    @classmethod
    def start_all(cls):
        cls.start_fencer()
        cls.host.start_libvirt()
        cls.start_daemon()

    @classmethod
    def start_fencer(cls):
        cls.host.run("usblease-fence serve >>/tmp/serve.log 2>&1 </dev/null &")
        waiting.wait_until("the fence", lambda: cls.host.run("usblease-fence status", check=False).code == 0, 60)

    @classmethod
    def start_daemon(cls):
        # No more may it than under systemd, as far as that can be had without.
        unit = "$(find /usr -path '*/systemd/system/usbleased.service')"
        names = cls.host.output(f"sed -n 's/^CapabilityBoundingSet=//p' {unit}").lower().replace("cap_", "+").split()
        allowed = f"setpriv --no-new-privs --bounding-set=-all,{','.join(names)}"
        cls.host.run(f"{allowed} usbleased >>/tmp/usbleased.log 2>&1 </dev/null &")
        waiting.wait_until(lambda: cls.log(), lambda: cls.host.run("usblease list", check=False).code == 0, 60)

    @classmethod
    def log(cls):
        return cls.host.output("tail -n 30 /tmp/usbleased.log; tail -n 5 /tmp/serve.log")

    @classmethod
    def device(cls):
        return json.loads(cls.host.output("usblease info stick --json"))["device"]["device"]

    @classmethod
    def wait_device(cls, state, above=0):
        """Until it is "free" at this host, "absent", or leased to the guest of this name, under a token above that one."""

        def reached():
            device = cls.device()
            lease = device.get("lease")
            if lease:
                return device if lease["guest_name"] == state and int(lease["token"]) > above else None
            present = any(home.get("present") for home in device.get("homes", []))
            return device if state == ("free" if present else "absent") else None

        return waiting.wait_until(lambda: f"stick to be {state}; it is {cls.device()}\n{cls.log()}", reached, 90)

    def token(self):
        return int(self.device()["lease"]["token"])

    def tearDown(self):
        for name in "abcd":
            self.host.run(f"virsh -q destroy {name}", check=False)
        self.wait_device("free")

    def bound(self):
        return self.host.fence_status("bound", self.host.node("STICK"))

    def refuses_others(self):
        node = self.host.node("STICK")
        self.assertIn("refused EPERM", self.host.run(f"/testbed/usb-user open {node}", check=False).output)

    def test_free_it_is_nobodys(self):
        self.refuses_others()
        self.assertEqual(self.bound(), "no")
        self.assertEqual(self.host.output("ls /dev/sd* 2>/dev/null || true"), "", "no driver of the host's has it")

    def test_from_one_guest_to_the_next(self):
        self.host.start_guest("a")
        self.host.wait_reading("a")
        first = self.token()
        self.refuses_others()
        self.assertEqual(self.host.output("ls /dev/sd* 2>/dev/null || true"), "", "nor has it while it is leased")
        refused = self.host.start_guest("b", check=False)
        self.assertIn("device stick is held by guest a", refused.output)
        watched = self.host.watch("a", 5000, 60_000)
        self.host.run("usblease revoke stick --reason 'it is wanted elsewhere'")
        self.wait_device("free")
        self.assertEqual(self.bound(), "no")
        self.assertGreater(watched()["count"]["R"], 0)
        self.assertEqual(self.host.output("virsh domstate a"), "running", "only the device was taken")
        self.host.start_guest("b")
        self.host.wait_reading("b")
        self.assertGreater(self.token(), first)
        self.assertEqual(self.host.watch("a", 3000, 3000)()["count"].get("R", 0), 0, "a never reads again")

    def test_attach_and_detach(self):
        self.host.start_guest("c")
        self.host.run("usblease attach c stick")
        self.wait_device("c")
        self.assertIn("ua-usblease-stick", self.host.output("virsh dumpxml c"))
        self.refuses_others()
        self.assertEqual(self.bound(), "yes")
        self.host.run("usblease detach c stick")
        self.wait_device("free")
        self.assertEqual(self.bound(), "no")
        waiting.wait_until(
            "libvirt to forget it", lambda: "ua-usblease-stick" not in self.host.output("virsh dumpxml c"), 30
        )

    def test_plugged_in_again_its_guest_gets_it_back(self):
        self.host.start_guest("c")
        self.host.run("usblease attach c stick")
        first = self.token()
        self.host.unplug("STICK")
        self.wait_device("absent")
        self.host.plug("usb-storage", "STICK")
        self.wait_device("c", above=first)
        waiting.wait_until(
            lambda: f"c to have it again\n{self.log()}",
            lambda: "ua-usblease-stick" in self.host.output("virsh dumpxml c") and self.bound() == "yes",
            30,
        )
        self.refuses_others()

    def test_daemon_that_comes_back_in_time_is_not_noticed(self):
        self.host.start_guest("a")
        self.host.wait_reading("a")
        token = self.token()
        self.host.run("kill -9 $(pidof usbleased)")
        self.start_daemon()
        self.wait_device("a")
        self.assertEqual(self.token(), token)
        # Longer than what the earlier daemon's last renewal was good for.
        seen = self.host.watch("a", 10_000, 10_000)()
        self.assertGreater(seen["count"].get("R", 0), 0)
        self.assertGreater(int(self.host.fence_status("deadline_ns", self.host.node("STICK"))), seen["R"])

    # ---- the deadline: what the fence knows and what the guest says, stamped by one clock

    def expire(self, faults):
        """Runs the commands while guest a reads, and watches it over its deadline; returns when that was."""
        self.host.start_guest("a")
        self.host.wait_reading("a")
        node = self.host.node("STICK")
        self.host.run(faults)
        watched = self.host.watch("a", 7000, 60_000)
        deadline_ns = int(self.host.fence_status("deadline_ns", node))
        seen = watched()
        late_ms = (seen["R"] - deadline_ns) / 1e6
        print(f"          the guest's last reading: {late_ms:.1f} ms after the deadline", flush=True)
        self.assertLess(int(self.host.fence_status("last_allowed_ns", node)), deadline_ns)
        return deadline_ns

    def recover(self):
        self.start_daemon()
        self.wait_device("free")

    def test_with_a_frozen_daemon_it_stops_at_the_deadline(self):
        self.expire("kill -STOP $(pidof usbleased)")
        waiting.wait_until("the fencer to unbind it", lambda: self.bound() == "no", 30)
        self.host.run("kill -CONT $(pidof usbleased)")
        self.wait_device("free")

    def test_with_nobody_of_us_alive_it_stops_at_the_deadline(self):
        self.expire("kill -9 $(pidof usbleased usblease-fence)")
        self.assertEqual(self.bound(), "yes", "nobody is left to unbind it")
        self.start_fencer()
        waiting.wait_until("the fencer to unbind it", lambda: self.bound() == "no", 30)
        self.recover()

    def test_qemu_that_sleeps_over_the_deadline_wakes_up_without_it(self):
        self.host.start_guest("a")
        self.host.wait_reading("a")
        node = self.host.node("STICK")
        self.host.run("kill -STOP $(pidof qemu-system-x86_64); kill -9 $(pidof usbleased)")
        self.addCleanup(lambda: self.host.run("kill -CONT $(pidof qemu-system-x86_64)", check=False))
        deadline_ns = int(self.host.fence_status("deadline_ns", node))
        waiting.wait_until("the deadline", lambda: float(self.host.output("cat /proc/uptime").split()[0]) * 1e9 > deadline_ns, 30)
        watched = self.host.watch("a", 5000, 60_000)
        self.host.run("kill -CONT $(pidof qemu-system-x86_64)")
        self.assertLessEqual(watched()["count"].get("R", 0), 1, "no more than what it had read before it slept")
        self.assertLess(int(self.host.fence_status("last_allowed_ns", node)), deadline_ns)
        self.recover()

    # ---- many times

    def holders(self):
        """Guests whose QEMU has the device open."""
        node = self.host.node("STICK")
        script = f"""for pid in $(pidof qemu-system-x86_64); do ls -l /proc/$pid/fd | grep -q ' {node}$' &&
            tr '\\0' '\\n' </proc/$pid/cmdline | grep -o '^guest=[^,]*'; done; true"""
        return self.host.output(script).replace("guest=", "").split()

    def attach(self, guest):
        self.host.run(f"usblease attach {guest} stick")
        return self.token()

    def test_handovers_between_two_guests(self):
        for name in "cd":
            self.host.start_guest(name)
        tokens = []
        for turn in range(10):
            guest = "cd"[turn % 2]
            tokens.append(self.attach(guest))
            self.assertEqual(self.holders(), [guest])
            self.host.run(f"usblease detach {guest} stick")
        self.assertEqual(tokens, sorted(set(tokens)))
        self.wait_device("free")
        self.assertEqual(self.holders(), [])

    def test_unplugged_at_any_instant(self):
        seed = random.randrange(1 << 32)
        print(f"          seed {seed}", flush=True)
        instants = random.Random(seed)
        for name in "cd":
            self.host.start_guest(name)
        for _ in range(5):
            self.host.run("usblease attach c stick >/tmp/attach.log 2>&1 </dev/null &")
            time.sleep(instants.uniform(0, 1.5))  # the instant of the fault, not a wait
            self.host.unplug("STICK")
            self.wait_device("absent")
            waiting.wait_until("attach to end", lambda: self.host.run("pidof usblease", check=False).code != 0, 60)
            self.host.plug("usb-storage", "STICK")
            waiting.wait_until("it to be back", lambda: self.device()["homes"][0].get("present"), 60)
            self.assertIn(self.holders(), ([], ["c"]))
        self.host.run("virsh -q destroy c")
        self.wait_device("free")
        self.attach("d")
        self.assertEqual(self.holders(), ["d"], "nothing of what happened to it matters to the next one")

    def test_host_that_loses_power_begins_anew(self):
        self.host.start_guest("a")
        self.host.wait_reading("a")
        token = self.token()
        self.host.reset()
        self.refuses_others()  # before anything of ours was started
        self.start_all()
        self.wait_device("free")
        self.refuses_others()
        self.host.start_guest("a")
        self.host.wait_reading("a")
        self.assertGreater(self.token(), token)

    def test_past_us_libvirt_gets_nothing(self):
        node = self.host.node("STICK")
        self.host.start_guest("c")
        xml = self.host.by_address(node, "no").replace("<boot order='1'/>", "")
        refused = self.host.run(f"echo \"{xml}\" >/tmp/past.xml; virsh attach-device c /tmp/past.xml", check=False)
        self.assertNotEqual(refused.code, 0, refused.output)
        self.assertNotIn("hostdev", self.host.output("virsh dumpxml c"))

    def test_who_tries_without_a_lease_is_on_record(self):
        node = self.host.node("STICK")

        def refused():
            self.host.run(f"/testbed/usb-user open {node}", check=False)
            events = json.loads(self.host.output("usblease events --json"))["events"]
            return [event for event in events if event["kind"] == "refused"]

        event = waiting.wait_until("an event", refused, 60)[-1]
        self.assertEqual((event["device"], event["host"]), ("stick", "a"))
        self.assertIn("to usb-user (process ", self.host.output("cat /tmp/serve.log"), "that is whose it was")

    def test_restored_guest_has_it_under_a_lease_or_not_at_all(self):
        self.host.start_guest("a")
        self.host.wait_reading("a")
        first = self.token()
        self.host.run("virsh -q managedsave a", timeout_s=60)
        self.wait_device("free")
        self.host.run("virsh -q start a", timeout_s=120)
        self.wait_device("a", above=first)
        seen = self.host.watch("a", 8000, 8000)()
        self.assertGreater(sum(seen["count"].values()), 0, "it goes on, whatever it reads")
        self.host.run("usblease revoke stick --reason 'it is wanted elsewhere'")
        self.wait_device("free")

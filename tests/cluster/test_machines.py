"""The lab itself: machines differ from each other, cuts cut what they say and no more, a full disk is full."""

import errno
import os
import time
import unittest

import machines
import waiting

SERVER = "import http.server as h; h.test(h.SimpleHTTPRequestHandler, port={port}, bind='0.0.0.0')"
CLIENT = "import socket,sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 0.5)"
PORTS = (7001, 7002)


class MachinesTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.network = machines.Network()
        cls.a, cls.b, cls.c = (machines.Machine(name, cls.network, disk_mib=8) for name in "abc")
        for machine in cls.network.machines:
            cls.serve(machine)

    @classmethod
    def serve(cls, machine):
        """Something to connect to."""
        for port in PORTS:
            log = machine.directory / f"server-{port}-{time.monotonic_ns()}.log"
            command = ["/usr/bin/python3", "-c", SERVER.format(port=port)]
            server = machine.program(f"server {port}", command, log, {"PYTHONUNBUFFERED": "1"}).start()
            cls.addClassCleanup(server.stop)
            server.wait_line("Serving")

    def tearDown(self):
        self.network.heal()

    @staticmethod
    def reaches(sender, receiver, port=PORTS[0]):
        client = ["/usr/bin/python3", "-c", CLIENT, receiver.address, str(port)]
        return sender.run(client, check=False).returncode == 0

    def test_everybody_reaches_everybody(self):
        for sender in self.network.machines:
            for receiver in self.network.machines:
                self.assertTrue(self.reaches(sender, receiver), f"{sender.name} to {receiver.name}")

    def test_a_cut_pair_and_no_more(self):
        self.network.cut(self.a, self.b)
        self.assertFalse(self.reaches(self.a, self.b))
        self.assertFalse(self.reaches(self.b, self.a))
        self.assertTrue(self.reaches(self.a, self.c))
        self.network.heal()
        self.assertTrue(self.reaches(self.a, self.b))

    def test_halves(self):
        self.network.cut_into([self.a, self.b], [self.c])
        self.assertTrue(self.reaches(self.a, self.b))
        self.assertFalse(self.reaches(self.a, self.c))
        self.assertFalse(self.reaches(self.c, self.b))

    def test_one_way(self):
        """A connection needs both ways; what arrives is counted where it arrives."""

        def arrived(machine):
            text = machine.run(["cat", "/proc/net/snmp"]).stdout
            return int([line for line in text.splitlines() if line.startswith("Tcp:")][1].split()[10])

        self.network.cut_one_way(self.a, self.b)
        before = arrived(self.b)
        self.assertFalse(self.reaches(self.a, self.b))
        self.assertEqual(arrived(self.b), before)
        before = arrived(self.a)
        self.assertFalse(self.reaches(self.b, self.a))
        self.assertGreater(arrived(self.a), before)

    def test_ports(self):
        self.network.cut_ports(self.a, [PORTS[0]])
        self.assertFalse(self.reaches(self.b, self.a))
        self.assertFalse(self.reaches(self.a, self.b))
        self.assertTrue(self.reaches(self.b, self.a, PORTS[1]))
        self.assertTrue(self.reaches(self.b, self.c))

    def test_slow_link(self):
        """A request and its answer take as long as both ways; the other port, and other machines, do not."""

        def seconds(receiver, port):
            url = f"http://{receiver.address}:{port}/"
            script = "import sys,time,urllib.request as u; t=time.monotonic(); u.urlopen(sys.argv[1]).read(); "
            command = ["/usr/bin/python3", "-c", script + "print(time.monotonic() - t)", url]
            return float(self.a.run(command).stdout)

        slow = machines.Machine("slow", self.network)
        self.serve(slow)
        slow.slow_down(PORTS[:1], 400)
        self.assertGreaterEqual(seconds(slow, PORTS[0]), 0.8)
        self.assertLess(seconds(slow, PORTS[1]), 0.8)
        self.assertLess(seconds(self.b, PORTS[0]), 0.8)

    def test_identities_differ_and_change_with_the_boot(self):
        def read(machine, path):
            return machine.run(["cat", path]).stdout

        for path in (machines.BOOT_ID, machines.MACHINE_ID):
            own = open(path, encoding="ascii").read()
            self.assertEqual(len({own} | {read(machine, path) for machine in self.network.machines}), 4)
        before = read(self.a, machines.BOOT_ID)
        self.a.new_boot()
        self.assertNotEqual(read(self.a, machines.BOOT_ID), before)
        self.addCleanup(self.b.be_the_image_of, None)
        self.b.be_the_image_of(self.a)
        self.assertEqual(read(self.a, machines.MACHINE_ID), read(self.b, machines.MACHINE_ID))

    def test_full_disk(self):
        self.a.fill_disk()
        self.addCleanup(self.a.empty_disk)
        with self.assertRaises(OSError) as raised, open(self.a.disk / "more", "wb", buffering=0) as file:
            file.write(b"x")
        self.assertEqual(raised.exception.errno, errno.ENOSPC)
        self.a.empty_disk()
        (self.a.disk / "more").write_bytes(b"x")
        os.unlink(self.a.disk / "more")

    def test_power_loss_ends_all_on_one_machine(self):
        sleeper = self.c.program("sleeper", ["sleep", "infinity"], self.c.directory / "sleeper.log").start()
        other = self.b.program("sleeper", ["sleep", "infinity"], self.b.directory / "sleeper.log").start()
        self.addCleanup(other.stop)
        waiting.wait_until("the sleeper", lambda: self.c.pids("sleep infinity"), 5)
        waiting.wait_until("the other", lambda: self.b.pids("sleep infinity"), 5)
        self.addCleanup(self.serve, self.c)
        self.c.power_off()
        self.assertEqual(sleeper.wait_end(), -9)
        self.assertEqual(self.c.pids(), [])
        self.assertTrue(other.running)


if __name__ == "__main__":
    unittest.main()

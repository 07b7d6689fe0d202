"""Named locks: commands on several hosts, who all want one lock, and what faults may and may not do to them.

Every command writes lines "NANOSECONDS TOKEN" (CLOCK_MONOTONIC, one clock for all machines) to one file, for as long as it
or anything that it started runs. What is promised is read off that file: one token at a time, and tokens only grow.
"""

import contextlib
import pathlib
import signal
import sys
import unittest

import machines
import waiting
from hosts import ClusterLab
from lab_test import LATE_S, TTL_S, LabTest

PATIENCE_S = 20
LOST = 124
WITHOUT_CGROUPS = [
    *("unshare", "--mount", "sh", "-c"),
    'while umount -l -t cgroup2 -a && grep -q " - cgroup2 " /proc/self/mountinfo; do :; done; exec "$@"',
    "sh",
]

BEAT = """
import os, sys, time
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    os.write(fd, b"%d %s\\n" % (time.monotonic_ns(), os.environb[b"USBLEASE_TOKEN"]))
    time.sleep(0.004)
"""


class LocksTest(LabTest):
    @classmethod
    def setUpClass(cls):
        cls.addClassCleanup(cls.remove_cgroups)
        cls.use(ClusterLab(hosts=3, devices={"h1": ["d1"]}, candidates=3))
        cls.hosts = list(cls.lab.hosts.values())

    @staticmethod
    def remove_cgroups():
        """Cgroups are the whole machine's, and a `usblease lock` that is killed together with its guard leaves its own."""
        mounts = [line.split()[1] for line in open("/proc/mounts", encoding="ascii") if line.split()[2] == "cgroup2"]
        for left in [path for mount in mounts for path in pathlib.Path(mount).glob("usblease-lock-*")]:
            with contextlib.suppress(OSError):
                left.rmdir()

    def setUp(self):
        self.beats = pathlib.Path(machines.LAB_DIR) / f"beats-{self._testMethodName}"

    def tearDown(self):
        super().tearDown()
        self.check_beats()

    # ---- commands under a lock

    def command(self, seconds, file=None):
        return [sys.executable, "-c", BEAT, file or self.beats, seconds]

    def lock(self, host, name, seconds=600, wait="2m", program=None):
        """A command that runs under the lock `name` of the test."""
        command = program or self.command(seconds)
        return host.background(name, "lock", self.lock_name(), "--wait", wait, "--", *command)

    def lock_name(self):
        return self._testMethodName.removeprefix("test_").replace("_", "-")[:48]

    def rows(self, file=None):
        lines = waiting.TextFile(file or self.beats).lines()
        return [(int(t_ns), int(token)) for t_ns, token in (line.split() for line in lines)]

    def check_beats(self):
        """Nobody acts under a token after a greater one has been used."""
        greatest = 0
        for t_ns, token in sorted(self.rows()):
            self.assertGreaterEqual(token, greatest, f"token {token} was used at {t_ns}, after {greatest}")
            greatest = token

    def wait_beats(self, of=None, timeout_s=PATIENCE_S):
        """Until somebody beats anew, under another token than `of`; returns the token."""
        have = len(self.rows())

        def new():
            rows = [row for row in self.rows()[have:] if row[1] != of]
            return rows[-1][1] if rows else None

        return waiting.wait_until(lambda: f"beats under another token than {of}", new, timeout_s)

    def holder(self):
        """(host, token) as the cluster says."""
        view = self.hosts[0].view(f"lock/{self.lock_name()}")
        lease = (view or {}).get("device", {}).get("lease")
        return (lease["start"]["host_id"], int(lease["token"])) if lease else None

    def assert_gap_after(self, token, since_ns, least_s):
        """The token's last beat came at its deadline, and the next token's first one no earlier than allowed."""
        rows = sorted(self.rows())
        last_ns = max(t_ns for t_ns, used in rows if used == token)
        self.assertLess((last_ns - since_ns) / 1e9, TTL_S + LATE_S)
        first_ns = min(t_ns for t_ns, used in rows if used > token)
        self.assertGreater((first_ns - since_ns) / 1e9, least_s)

    # ---- tests

    def test_exit_code_and_environment(self):
        host = self.hosts[1]
        script = 'test "$USBLEASE_LOCK" = exit-code-and-environment && test "$USBLEASE_TOKEN" -gt 0 && exit 7'
        done = host.machine.run(host.command("lock", self.lock_name(), "--", "sh", "-c", script), check=False)
        self.assertEqual(done.returncode, 7, done.stderr)
        done = host.machine.run(host.command("lock", self.lock_name(), "--", "sh", "-c", "kill -KILL $$"), check=False)
        self.assertEqual(done.returncode, 128 + signal.SIGKILL, done.stderr)
        done = host.machine.run(host.command("lock", self.lock_name(), "--", "/no/such/program"), check=False)
        self.assertEqual(done.returncode, 127, done.stderr)
        self.assertIn("no such program", done.stderr)
        self.assertIsNone(self.holder())

    def test_held_lock_is_refused(self):
        first = self.lock(self.hosts[0], "holds")
        token = self.wait_beats()
        code, said = self.hosts[1].usblease_fails("lock", self.lock_name(), "--", "true")
        self.assertEqual(code, 3)
        self.assertIn(f"token {token}", said)
        self.assertIn("h1", said)
        code, said = self.hosts[1].usblease_fails("lock", self.lock_name(), "--wait", "1", "--", "true")
        self.assertEqual(code, 4, said)
        first.stop()
        waiting.wait_until("the lock to be free", lambda: self.holder() is None, 5)

    def test_hosts_take_turns(self):
        for turn in range(3):
            waiting_ones = [self.lock(host, f"turn-{turn}-{host.name}", 0.1) for host in self.hosts]
            for each in waiting_ones:
                self.assertEqual(each.wait_end(PATIENCE_S), 0, each.log.tail())
        self.assertEqual(len({token for _, token in self.rows()}), 9)

    def test_all_of_the_command_ends_with_it(self):
        """Also what has left its session and its parents: else it would go on under a token that has ended."""
        script = f'setsid "$@" & while ! test -s {self.beats}; do sleep 0.01; done'
        first = self.lock(self.hosts[0], "leaves", program=["sh", "-c", script, "sh", *self.command(600)])
        self.assertEqual(first.wait_end(PATIENCE_S), 0, first.log.tail())
        self.assertTrue(self.rows())
        last = len(self.rows())
        second = self.lock(self.hosts[1], "next", 0.3)
        self.assertEqual(second.wait_end(PATIENCE_S), 0, second.log.tail())
        self.assertEqual(len({token for _, token in self.rows()[last:]}), 1)

    def test_without_cgroups_a_process_group_will_do(self):
        """What leaves the group is found all the same, and the warning says how it runs."""
        script = f'setsid "$@" & while ! test -s {self.beats}; do sleep 0.01; done; kill -KILL $$'
        command = ["sh", "-c", script, "sh", *self.command(600)]
        first = self.hosts[0].background("hidden", "lock", self.lock_name(), "--", *command, wrap=WITHOUT_CGROUPS)
        self.assertEqual(first.wait_end(PATIENCE_S), 128 + signal.SIGKILL, first.log.tail())
        self.assertIn("runs in a process group", first.log.text())
        last = len(self.rows())
        second = self.lock(self.hosts[1], "next-one", 0.3)
        self.assertEqual(second.wait_end(PATIENCE_S), 0, second.log.tail())
        self.assertEqual(len({token for _, token in self.rows()[last:]}), 1)

    def lose_by(self, fault, mend, least_s=0.0):
        """The host of the holder suffers; the command ends by itself in time, and another host is next."""
        cut = next(host for host in self.hosts if host is not self.lab.coordinator())
        other = next(host for host in self.hosts if host is not cut)
        script = 'setsid "$@" & "$@"'
        first = self.lock(cut, f"loses-{self.lock_name()}", program=["sh", "-c", script, "sh", *self.command(600)])
        token = self.wait_beats()
        second = self.lock(other, f"follows-{self.lock_name()}", 0.5)
        waiting.wait_until("it to wait", lambda: other.usblease_json("queue", f"lock/{self.lock_name()}")["requests"], 5)
        since_ns = self.now_ns()
        fault(cut)
        self.assertEqual(first.wait_end(PATIENCE_S), LOST, first.log.tail())
        self.assertIn("was lost", first.log.text())
        mend(cut)
        self.assertEqual(second.wait_end(PATIENCE_S), 0, second.log.tail())
        self.assert_gap_after(token, since_ns, least_s)

    def test_lost_when_the_daemon_is_killed(self):
        self.lose_by(lambda host: host.kill_daemon(), lambda host: host.start_daemon(), TTL_S / 2)

    def test_lost_when_the_daemon_is_frozen(self):
        self.lose_by(lambda host: host.freeze_daemon(), lambda host: host.thaw_daemon(), TTL_S / 2)

    def test_lost_when_the_host_is_cut_off(self):
        def cut(host):
            for other in self.hosts:
                if other is not host:
                    self.lab.network.cut(host.machine, other.machine)
            self.lab.note("silent", host=host.name)

        def heal(host):
            self.lab.network.heal()
            self.lab.note("heard", host=host.name)

        self.lose_by(cut, heal, TTL_S / 2)

    def test_lost_when_it_is_revoked(self):
        def revoke(_host):
            self.hosts[0].usblease("revoke", f"lock/{self.lock_name()}", "--reason", "needed elsewhere")

        self.lose_by(revoke, lambda _host: None)

    def test_lost_when_the_holder_is_stopped(self):
        """Its guard ends the command, with a cgroup and without one, and it does not go on when it wakes up."""
        for name, wrap in (("cgroup", ()), ("group", WITHOUT_CGROUPS)):
            with self.subTest(name):
                self.lose_by_stopping(name, wrap)

    def lose_by_stopping(self, name, wrap):
        host, other = self.hosts[:2]
        command = ["sh", "-c", 'setsid "$@" & "$@"', "sh", *self.command(600)]
        first = host.background(f"stopped-{name}", "lock", self.lock_name(), "--", *command, wrap=wrap)
        token = self.wait_beats()
        second = self.lock(other, f"after-stopped-{name}", 0.5)
        since_ns = self.now_ns()
        first.freeze()
        waiting.wait_until("it to end", lambda: self.now_ns() - self.rows()[-1][0] > TTL_S * 1e9, PATIENCE_S)
        first.thaw()
        self.assertEqual(first.wait_end(PATIENCE_S), LOST, first.log.tail())
        self.assertIn("was lost", first.log.text())
        self.assertEqual(second.wait_end(PATIENCE_S), 0, second.log.tail())
        self.assert_gap_after(token, since_ns, 0)

    def test_all_ends_with_a_killed_holder(self):
        """Also what is not its child, long before the deadline of its token."""
        script = f'setsid "$@" & while ! test -s {self.beats}; do sleep 0.01; done; exec sleep 600'
        first = self.lock(self.hosts[0], "all-killed", program=["sh", "-c", script, "sh", *self.command(600)])
        self.wait_beats()
        first.kill9()
        quiet_ns = 200_000_000
        waiting.wait_until("it to end", lambda: self.now_ns() - self.rows()[-1][0] > quiet_ns, TTL_S)

    def test_killed_holder_is_waited_for(self):
        """Nobody says any more that all has ended; so the token has to expire first."""
        host, other = self.hosts[:2]
        first = self.lock(host, "killed")
        token = self.wait_beats()
        second = self.lock(other, "after", 0.3)
        since_ns = self.now_ns()
        first.kill9()
        self.assertEqual(second.wait_end(PATIENCE_S), 0, second.log.tail())
        self.assert_gap_after(token, since_ns, TTL_S)

    def test_holder_that_does_not_come_back(self):
        """Daemon and holder are killed, and only the daemon is started again: nobody claims the lock any more."""
        host, other = self.hosts[2], self.hosts[1]
        first = self.lock(host, "lost-with-its-daemon")
        token = self.wait_beats()
        host.kill_daemon()
        first.kill9()
        host.start_daemon()
        second = self.lock(other, "after-both", 0.3)
        self.assertEqual(second.wait_end(PATIENCE_S), 0, second.log.tail())
        self.assertGreater(max(used for _, used in self.rows()), token)

    def test_goes_on_when_the_daemon_restarts(self):
        host = self.hosts[2]
        first = self.lock(host, "survivor")
        token = self.wait_beats()
        for _ in range(3):
            host.kill_daemon()
            host.start_daemon()
            have = len(self.rows())
            # Past the ttl, so somebody has renewed it.
            waiting.wait_until("it to go on", lambda: len(self.rows()) > have + 1.5 * TTL_S / 0.01, PATIENCE_S)
        self.assertEqual({used for _, used in self.rows()}, {token})
        self.assertTrue(first.running)
        self.assertEqual(self.holder(), (host.name, token))

    def test_goes_on_when_the_coordinator_changes(self):
        coordinator = self.lab.coordinator()
        host = next(host for host in self.hosts if host is not coordinator)
        first = self.lock(host, "unmoved")
        token = self.wait_beats()
        coordinator.kill_daemon()
        waiting.wait_until("another coordinator", lambda: self.lab.coordinator(ask=host) is not coordinator, PATIENCE_S)
        have = len(self.rows())
        waiting.wait_until("it to go on", lambda: len(self.rows()) > have + 1.5 * TTL_S / 0.01, PATIENCE_S)
        self.assertTrue(first.running)
        self.assertEqual({used for _, used in self.rows()}, {token})


if __name__ == "__main__":
    unittest.main()

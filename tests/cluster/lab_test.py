"""What the tests with one lab for a whole class have in common."""

import time
import unittest

import history
import waiting

TTL_S = 1.0   # of the fast profile
LATE_S = 0.3  # what enforcement may be late


class LabTest(unittest.TestCase):
    """The class has a lab, started. Each test ends with free devices and a history that is allowed."""

    lab = None
    without = ()  # rules that do not hold for these tests

    @classmethod
    def use(cls, lab):
        """In setUpClass."""
        cls.lab = lab
        cls.addClassCleanup(lab.close)
        lab.start()
        cls.wait_free()

    @classmethod
    def wait_free(cls, timeout_s=30):
        """Every device, as every host sees it."""
        for host in cls.lab.hosts.values():
            for device in host.devices:
                host.wait_state(device, "free", timeout_s)

    def tearDown(self):
        self.mend()
        for holder in self.lab.holders:
            holder.thaw()
            holder.stop()
        self.wait_free()
        host = next(iter(self.lab.hosts.values()))
        self.lab.collect_audit(host)
        events = history.load(self.lab.history_files())
        events += self.lab.packets() + self.lab.audit() + self.lab.states(host)
        self.assertEqual(history.check(history.History(events), self.without), [])

    def mend(self):
        """Everything runs, and everybody reaches everybody."""
        self.lab.network.heal()
        for host in self.lab.hosts.values():
            host.machine.empty_disk()
            host.is_on = True
            if host.store is not None:
                host.store.thaw()
                if not host.store.running:
                    host.store.start()
            self.lab.note("heard", host=host.name)
            host.daemon.thaw()
            if not host.daemon.running:
                host.start_daemon()

    # ---- what holders do

    def packets(self, guest):
        return [packet for packet in self.lab.packets() if packet["guest"] == guest.uuid]

    def wait_packets(self, guest, count=10, timeout_s=15):
        have = len(self.packets(guest))
        waiting.wait_until(
            lambda: f"transfers of {guest.name}; it says:\n{waiting.TextFile(guest.history).tail()}",
            lambda: len(self.packets(guest)) >= have + count,
            timeout_s,
        )

    def said(self, holder, event):
        """What the holder has written down of this kind."""
        if not holder.history.exists():
            return []
        return [row for row in history.load([holder.history]) if row["event"] == event]

    def wait_said(self, holder, event, timeout_s=15, since_ns=0):
        """Until the holder has written the event down; returns the last one."""

        def new():
            rows = [row for row in self.said(holder, event) if row["t_ns"] > since_ns]
            return rows[-1] if rows else None

        return waiting.wait_until(lambda: f"{holder.name} to say {event}", new, timeout_s)

    def assert_stops_by_itself(self, guest, since_ns):
        """At its deadline: not much later, and not much earlier, for another reason."""
        self.wait_said(guest, "closed")
        last_ns = max(packet["t_ns"] for packet in self.packets(guest))
        self.assertLess((last_ns - since_ns) / 1e9, TTL_S + LATE_S)
        self.assertGreater((last_ns - since_ns) / 1e9, TTL_S / 3, "it stopped long before its deadline")

    def first_grant_after(self, clients, since_ns, timeout_s):
        """Seconds from since_ns to the first grant that any of the clients was told of."""

        def first():
            times = [row["t_ns"] for client in clients for row in self.said(client, "granted")]
            return min((t_ns for t_ns in times if t_ns > since_ns), default=None)

        return (waiting.wait_until("the next grant", first, timeout_s) - since_ns) / 1e9

    @staticmethod
    def now_ns():
        return time.monotonic_ns()

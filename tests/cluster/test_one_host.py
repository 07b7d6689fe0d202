"""One host with SQLite: what holders get, and what each single fault may and may not do to them."""

import unittest

import waiting
from hosts import ClusterLab
from lab_test import LabTest


class OneHostTest(LabTest):
    @classmethod
    def setUpClass(cls):
        cls.use(ClusterLab(hosts=1, devices={"h1": ["dongle"]}))
        cls.host = cls.lab.hosts["h1"]

    # ---- holders

    def test_guest_holds_and_leaves(self):
        guest = self.host.guest("leaves", ["dongle"])
        self.wait_packets(guest)
        self.assertEqual(self.host.view("dongle")["state"], "granted")
        self.assertEqual(guest.stop(), 0, guest.log.tail())
        self.host.wait_state("dongle", "free", 5)

    def test_guests_take_turns(self):
        first = self.host.guest("first", ["dongle"])
        self.wait_packets(first)
        second = self.host.guest("second", ["dongle"], wait_ms=10_000)
        third = self.host.guest("third", ["dongle"], wait_ms=0)
        self.assertIn("first", self.wait_said(third, "refused")["why"])
        first.stop()
        self.wait_packets(second)
        tokens = [self.wait_said(guest, "granted")["token"] for guest in (first, second)]
        self.assertLess(*tokens)

    def test_killed_guest_frees_the_device(self):
        guest = self.host.guest("killed", ["dongle"])
        self.wait_packets(guest)
        guest.kill9()
        self.host.wait_state("dongle", "free", 5)

    def test_client_of_bare_leases(self):
        client = self.host.holder("bare", "bare", ["dongle"], hold_ms=20)
        waiting.wait_until(
            "ten leases", lambda: waiting.TextFile(client.history).text().count('"released"') >= 10, 10
        )
        self.assertEqual(client.stop(), 0)

    # ---- faults

    def test_guest_goes_on_when_the_daemon_restarts(self):
        guest = self.host.guest("survivor", ["dongle"])
        self.wait_packets(guest)
        self.host.stop_daemon()
        self.host.start_daemon()
        self.wait_packets(guest, 200)  # past the ttl
        self.host.kill_daemon()
        self.host.start_daemon()
        self.wait_packets(guest, 200)

    def test_dead_daemon_stops_the_device_in_time(self):
        guest = self.host.guest("orphan", ["dongle"])
        self.wait_packets(guest)
        self.host.kill_daemon()
        self.assert_stops_by_itself(guest, self.now_ns())

    def test_frozen_daemon_stops_the_device_in_time(self):
        guest = self.host.guest("numb", ["dongle"])
        self.wait_packets(guest)
        self.host.freeze_daemon()
        try:
            self.assert_stops_by_itself(guest, self.now_ns())
        finally:
            self.host.thaw_daemon()

    def test_power_loss_ends_every_lease(self):
        guest = self.host.guest("powerless", ["dongle"])
        self.wait_packets(guest)
        self.host.power_off()
        self.host.start()
        self.host.wait_state("dongle", "free")
        again = self.host.guest("powered", ["dongle"])
        self.wait_packets(again)

    def test_waiting_start_that_lost_its_daemon_is_over(self):
        holding = self.host.guest("holding", ["dongle"])
        self.wait_packets(holding)
        waits = self.host.guest("waits", ["dongle"], wait_ms=15_000)
        waiting.wait_until("a queue", lambda: self.host.view("dongle").get("queue_length"), 5)
        self.host.kill_daemon()
        self.wait_said(waits, "unknown")
        waits.wait_end()
        self.host.start_daemon()
        holding.stop()
        # Nobody says that the start has ended: the daemon knows that it was not answered.
        self.host.wait_state("dongle", "free", 10)


if __name__ == "__main__":
    unittest.main()

"""Three hosts, one of them behind a slow link: every byte to and from its ports takes 40 ms."""

import unittest

import waiting
from hosts import PEER_PORT, STORE_CLIENT_PORT, STORE_PEER_PORT, ClusterLab
from lab_test import TTL_S, LabTest

DELAY_MS = 40
PATIENCE_S = 20


class SlowLinkTest(LabTest):
    @classmethod
    def setUpClass(cls):
        lab = ClusterLab(hosts=3, devices={"h1": ["d1"], "h2": ["d2"], "h3": ["d3"]}, candidates=3)
        cls.near, cls.other, cls.far = lab.hosts.values()
        cls.far.machine.slow_down((PEER_PORT, STORE_CLIENT_PORT, STORE_PEER_PORT), DELAY_MS)
        cls.use(lab)

    def held(self, name, host):
        guest = host.guest(name, list(host.devices))
        self.wait_packets(guest)
        return guest

    def transfer(self, host):
        host.usblease("cluster", "transfer", host.name)
        waiting.wait_until("the transfer", lambda: self.lab.coordinator() is host, PATIENCE_S)

    def test_guest_of_the_far_host_keeps_its_lease(self):
        if self.lab.coordinator() is self.far:
            self.transfer(self.near)
        guest = self.held("far-guest", self.far)
        self.wait_packets(guest, int(200 * TTL_S))
        self.assertEqual(self.said(guest, "closed"), [])

    def test_far_coordinator_serves_the_others(self):
        guest = self.held("near-guest", self.near)
        self.transfer(self.far)
        clients = [host.holder("bare", f"far-{host.name}", ["d2"], hold_ms=5) for host in self.lab.hosts.values()]
        for client in clients:
            self.first_grant_after([client], self.now_ns(), PATIENCE_S)
        self.wait_packets(guest, int(100 * TTL_S))
        self.assertEqual(self.said(guest, "closed"), [])
        self.far.kill_daemon()
        self.first_grant_after(clients[:2], self.now_ns(), PATIENCE_S)


if __name__ == "__main__":
    unittest.main()

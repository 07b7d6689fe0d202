"""Four hosts, three of them candidates with etcd: what everybody sees, and what single faults may and may not do."""

import unittest

import waiting
from hosts import ClusterLab
from lab_test import TTL_S, LabTest

PATIENCE_S = 20  # generous: what takes this long is broken, not slow


class ClusterTest(LabTest):
    @classmethod
    def setUpClass(cls):
        devices = {"h1": ["d1"], "h2": ["d2"], "h3": ["d3"], "h4": ["d4"]}
        cls.use(ClusterLab(hosts=4, devices=devices, candidates=3))
        cls.hosts = list(cls.lab.hosts.values())

    @classmethod
    def wait_free(cls, timeout_s=30):
        """Everything of everybody, as one of them sees it."""
        for host in cls.lab.hosts.values():
            for device in host.devices:
                cls.lab.hosts["h4"].wait_state(device, "free", timeout_s)

    def others(self, *hosts):
        return [host for host in self.hosts if host not in hosts]

    def clients(self, name, hosts, device):
        """A client of bare leases on each of the hosts; all want the same device."""
        return [host.holder("bare", f"{name}-{host.name}", [device], hold_ms=5) for host in hosts]

    def local_guest(self, name, host):
        guest = host.guest(name, list(host.devices))
        self.wait_packets(guest)
        return guest

    # ---- what everybody sees

    def test_all_name_the_same_coordinator(self):
        coordinator = self.lab.coordinator()
        self.assertIn(coordinator, self.hosts[:3])
        for host in self.hosts:
            self.assertIs(self.lab.coordinator(ask=host), coordinator)

    def test_every_host_lists_every_device(self):
        for host in self.hosts:
            self.assertEqual({f"d{number}" for number in range(1, 5)}, {
                row["device"]["name"] for row in host.usblease_json("list")["devices"]
            })

    def test_clients_of_all_hosts_take_turns_with_a_guest(self):
        clients = self.clients("turns", self.hosts, "d1")
        for client in clients:
            self.wait_said(client, "released")
        guest = self.hosts[0].guest("turns-guest", ["d1"], wait_ms=10_000)
        self.wait_packets(guest)
        granted_ns = self.wait_said(guest, "granted")["t_ns"]
        guest.stop()
        self.first_grant_after(clients, granted_ns, PATIENCE_S)

    # ---- the coordinator goes

    def test_killed_coordinator_is_followed_by_another(self):
        old = self.lab.coordinator()
        guest = self.local_guest("unmoved", self.others(old)[0])
        clients = self.clients("killed", self.others(old), self.others(old)[1].name.replace("h", "d"))
        self.wait_said(clients[0], "released")
        old.kill_daemon()
        took_s = self.first_grant_after(clients, self.now_ns(), PATIENCE_S)
        print(f"          coordinator killed to the next grant: {took_s:.2f} s", flush=True)
        self.assertIsNot(self.lab.coordinator(ask=self.others(old)[0]), old)
        self.wait_packets(guest, 100)
        self.assertEqual(self.said(guest, "closed"), [])

    def test_coordinator_without_power_is_followed_by_another(self):
        old = self.lab.coordinator()
        clients = self.clients("powerless", self.others(old), self.others(old)[1].name.replace("h", "d"))
        self.wait_said(clients[0], "released")
        old.power_off()
        took_s = self.first_grant_after(clients, self.now_ns(), PATIENCE_S)
        print(f"          coordinator's host without power to the next grant: {took_s:.2f} s", flush=True)

    def test_transfer(self):
        old = self.lab.coordinator()
        new = next(host for host in self.hosts[:3] if host is not old)
        clients = self.clients("transfer", [self.hosts[3]], "d4")
        self.wait_said(clients[0], "released")
        begun_ns = self.now_ns()
        new.usblease("cluster", "transfer", new.name)
        took_s = self.first_grant_after(clients, begun_ns, PATIENCE_S)
        print(f"          transfer to the next grant: {took_s:.2f} s", flush=True)
        waiting.wait_until("the transfer", lambda: self.lab.coordinator() is new, PATIENCE_S)

    def test_isolated_coordinator_stops_with_its_holders(self):
        old = self.lab.coordinator()
        guest = self.local_guest("isolated", old)
        inside = self.clients("inside", [old], guest.arguments[guest.arguments.index("--device") + 1])
        outside = self.clients("outside", self.others(old), self.others(old)[0].name.replace("h", "d"))
        for other in self.others(old):
            self.lab.network.cut(old.machine, other.machine)
        self.lab.note("silent", host=old.name)
        cut_ns = self.now_ns()
        self.assert_stops_by_itself(guest, cut_ns)
        took_s = self.first_grant_after(outside, cut_ns, PATIENCE_S)
        print(f"          coordinator isolated to the next grant of the others: {took_s:.2f} s", flush=True)
        late = [row for row in self.said(inside[0], "granted") if row["t_ns"] > cut_ns]
        self.assertEqual(late, [])

    def test_frozen_coordinator_wakes_up_as_nobody(self):
        old = self.lab.coordinator()
        clients = self.clients("frozen", self.others(old), self.others(old)[0].name.replace("h", "d"))
        self.wait_said(clients[0], "released")
        old.freeze_daemon()
        took_s = self.first_grant_after(clients, self.now_ns(), PATIENCE_S)
        print(f"          coordinator frozen to the next grant: {took_s:.2f} s", flush=True)
        old.thaw_daemon()
        new = self.lab.coordinator(ask=self.others(old)[0])
        waiting.wait_until("the woken host to know", lambda: self.lab.coordinator(ask=old) is new, PATIENCE_S)

    # ---- parts of the store, and of the network

    def test_store_member_dies(self):
        """Grants go on. With a ttl of 1 s a lease may be lost meanwhile: etcd's own election can take longer."""
        for host in self.hosts[:3]:
            host.store.kill9()
            clients = self.clients(f"member-{host.name}", [host], "d1")
            self.first_grant_after(clients, self.now_ns(), PATIENCE_S)
            clients[0].stop()
            host.store.start()

    def test_store_without_a_majority(self):
        guest = self.local_guest("majority", self.hosts[3])
        for host in self.hosts[:2]:
            host.store.freeze()
        self.wait_said(guest, "closed")  # nobody renews any more
        for host in self.hosts[:2]:
            host.store.thaw()
        clients = self.clients("majority", [self.hosts[3]], "d4")
        self.first_grant_after(clients, self.now_ns(), PATIENCE_S)

    def test_host_that_is_cut_from_the_store_only(self):
        coordinator = self.lab.coordinator()
        # The store's leader follows the coordinator, so no other host can take it away.
        waiting.wait_until("the store's leader", lambda: self.lab.store_leader() is coordinator, PATIENCE_S)
        cut = next(host for host in self.hosts[:3] if host is not coordinator)
        guest = self.local_guest("storeless", cut)
        self.lab.network.cut_ports(cut.machine, (7472, 7473))
        self.wait_packets(guest, int(300 * TTL_S))
        self.assertEqual(self.said(guest, "closed"), [])

    def test_all_down_and_up_again(self):
        guests = [self.local_guest(f"down-{host.name}", host) for host in self.hosts]
        tokens = {guest.name: self.wait_said(guest, "granted")["token"] for guest in guests}
        for host in self.hosts:
            host.power_off()
        for host in self.hosts:
            host.start(wait=False)
        for host in self.hosts:
            host.wait_daemon()
        for host, guest in zip(self.hosts, guests):
            again = host.guest(f"up-{host.name}", list(host.devices), wait_ms=10_000)
            self.wait_packets(again)
            self.assertGreater(self.wait_said(again, "granted")["token"], tokens[guest.name])

    def test_end_that_is_told_before_the_leases_are_known(self):
        host = self.hosts[0]
        guest = host.guest("early", list(host.devices), connects=0)
        self.wait_said(guest, "granted")
        for candidate in self.hosts[:3]:
            candidate.store.freeze()
        host.kill_daemon()
        guest.kill9()
        host.start_daemon()
        told = host.holder("ended", "early", (), loop="early-ended", holder_uuid=guest.uuid)
        self.assertEqual(told.wait_end(), 0)
        for candidate in self.hosts[:3]:
            candidate.store.thaw()
        host.wait_state(*host.devices, "free", PATIENCE_S)


if __name__ == "__main__":
    unittest.main()

"""New certificates for hosts that have one, and what becomes of the old ones and of those of hosts that were removed: real
daemons, real etcd."""

import http.client
import shutil
import signal
import ssl
import subprocess
import unittest

from loopback import BUILD, LoopbackTest, wait_until


def etcd_accepts(host, identity):
    """Whether the store member of `host` answers somebody who shows this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.load_cert_chain(identity / "host.pem", identity / "host.key")
    address, port = host.address.rsplit(":", 1)
    connection = http.client.HTTPSConnection(address, int(port) + 1, context=context, timeout=10)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (ssl.SSLError, ConnectionError, http.client.HTTPException):
        return False
    finally:
        connection.close()


class RotationTest(LoopbackTest):
    port = 7661

    def saved(self, host):
        """A copy of what the host shows now, as a thief would have it."""
        directory = self.root / f"saved-{host.name}-{len(list(self.root.iterdir()))}"
        directory.mkdir()
        for name in ("host.pem", "host.key"):
            shutil.copy(host.root / "state/cluster" / name, directory / name)
        return directory

    @staticmethod
    def certificate(host):
        return (host.root / "state/cluster/host.pem").read_text()

    def members(self, first):
        status = first.status()
        return {} if status is None else {
            host["host"]["id"]: host["member"] for host in status["hosts"]
            if host["member"]["standing"] == "STANDING_JOINED"
        }

    def wait_settled(self, first, names):
        """Until these hosts have one certificate each, and none is wanted."""

        def settled():
            members = self.members(first)
            return all(
                not members.get(name, {}).get("rotate", True) and len(members[name]["certificates"]) == 1
                for name in names
            )

        wait_until(f"{names} to be done", settled)

    def witness(self, host):
        """Something that holds a lease all the time: it would be killed if a session ended."""
        process = subprocess.Popen(
            [BUILD / "cli/usblease", "-q", "-c", host.socket, "lock", "witness", "--", "sleep", "600"]
        )
        self.addCleanup(process.wait)
        self.addCleanup(process.send_signal, signal.SIGTERM)
        wait_until("the lock", lambda: any(
            row["device"]["name"] == "lock/witness" for row in host.ask("list")["devices"]
        ))
        return process

    def test_every_host_gets_another_one(self):
        first = self.founded()
        hosts = [first, self.joined(first, 2), self.joined(first, 3)]
        names = [host.name for host in hosts]
        self.wait_settled(first, names)
        before = {host.name: self.saved(host) for host in hosts}
        serials = {name: member["certificates"][0]["serial"] for name, member in self.members(first).items()}
        witness = self.witness(hosts[2])
        self.assertEqual(first.ask("cluster", "rotate")["hosts"], 3)
        self.wait_settled(first, names)
        wait_until("three confirmations", lambda: len(self.rotated(first)) == 3)
        self.assertEqual(self.rotated(first), names)  # one after the other
        for host in hosts:
            member = self.members(first)[host.name]
            self.assertNotEqual(member["certificates"][0]["serial"], serials[host.name])
            self.assertIn(serials[host.name], [each["serial"] for each in member["revoked"]])
            self.assertNotEqual(self.certificate(host), (before[host.name] / "host.pem").read_text())
            self.assertEqual((host.root / "state/cluster/host.key").stat().st_mode & 0o777, 0o600)
        # The new ones are good everywhere, the old ones nowhere.
        for host in hosts:
            for other in hosts:
                self.assertTrue(etcd_accepts(host, other.root / "state/cluster"), f"{other.name} at {host.name}")
                wait_until(f"{host.name} to refuse what {other.name} had",
                           lambda host=host, other=other: not etcd_accepts(host, before[other.name]))
        # Nobody lost a lease by it.
        self.assertIsNone(witness.poll())
        # Also for whoever begins anew: daemons, and etcd among itself.
        for host in hosts:
            host.stop(signal.SIGKILL)
            host.end_store_member()
            host.start()
            wait_until("all of them", lambda: set(first.roles()) == set(names))
        self.assertEqual(len(self.members(first)), 3)

    @staticmethod
    def rotated(host):
        """Who has confirmed since `cluster rotate`, in order."""
        events = host.ask("events")["events"]
        begun = max(place for place, event in enumerate(events) if event["kind"] == "rotating")
        return [event["host"] for event in events[begun:] if event["kind"] == "rotated"]

    def test_host_that_is_down_gets_its_own_later(self):
        first = self.founded()
        second, third = self.joined(first, 2), self.joined(first, 3)
        self.wait_settled(first, ["h1", "h2", "h3"])
        before = self.certificate(second)
        second.stop(signal.SIGKILL)
        wait_until("h2 to be gone", lambda: "h2" not in first.roles())
        first.ask("cluster", "rotate")
        self.wait_settled(first, ["h1", "h3"])
        self.assertTrue(self.members(first)["h2"]["rotate"])
        self.assertEqual(self.certificate(second), before)
        second.start()
        self.wait_settled(first, ["h1", "h2", "h3"])
        self.assertNotEqual(self.certificate(second), before)
        self.assertIsNone(third.daemon.poll())

    def test_removed_host_is_refused_by_the_store(self):
        first = self.founded()
        second, third = self.joined(first, 2), self.joined(first, 3)
        stolen = self.saved(third)
        for host in (first, second):
            self.assertTrue(etcd_accepts(host, stolen))
        if first.ask("status")["coordinator"] == "h3":
            first.ask("cluster", "transfer", "h1")
        self.ask_when_it_can(third, "cluster", "leave")
        wait_until("the rest", lambda: set(first.roles()) == {"h1", "h2"})
        for host in (first, second):
            wait_until(f"{host.name} to refuse h3", lambda host=host: not etcd_accepts(host, stolen))
            for other in (first, second):
                self.assertTrue(etcd_accepts(host, other.root / "state/cluster"))
        # Also after its own restart, and by a new coordinator.
        first.ask("cluster", "transfer", "h2")
        wait_until("h2 to coordinate", lambda: first.ask("status")["coordinator"] == "h2")
        first.end_store_member()
        wait_until("h1's store member", lambda: etcd_accepts(first, second.root / "state/cluster"))
        self.assertFalse(etcd_accepts(first, stolen))


if __name__ == "__main__":
    unittest.main()

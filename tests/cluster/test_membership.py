"""Founding a cluster, joining it, moving its coordinator, removing hosts: real daemons and real etcd on loopback."""

import pathlib
import signal
import time
import unittest

from loopback import LoopbackTest, wait_until


class MembershipTest(LoopbackTest):
    def test_founding_keeps_the_state(self):
        first = self.host(1, ["dongle"])
        wait_until("the device", lambda: first.ask("list")["devices"])
        events = [event["kind"] for event in first.ask("events")["events"]]
        term = int(first.ask("status")["term"])
        archived = first.ask("cluster", "init")["archived"]
        self.assertTrue((pathlib.Path(archived) / "usblease.db").exists())
        status = wait_until("the new store", lambda: (first.status() or {}).get("store_members") and first.status())
        self.assertIn("etcd", status["status"]["store"])
        self.assertGreater(int(status["status"]["term"]), term)
        self.assertEqual(first.ask("list")["devices"][0]["device"]["name"], "dongle")
        now = [event["kind"] for event in first.ask("events")["events"]]
        self.assertEqual(now[: len(events)], events)
        self.assertIn("founded", now)
        self.assertEqual(first.run("cluster", "init").returncode, 3)
        # And after a restart it finds its store member again, the same process.
        process = (first.root / "state/cluster/etcd/process").read_text()
        first.stop(signal.SIGKILL)
        first.start()
        wait_until("a coordinator", lambda: first.status())
        self.assertEqual((first.root / "state/cluster/etcd/process").read_text(), process)

    def test_three_hosts(self):
        first = self.founded()
        second = self.joined(first, 2)
        third = self.joined(first, 3)
        self.assertEqual(set(third.roles().values()), {"STORE_ROLE_VOTER"})
        self.assertEqual(second.ask("list")["devices"][0]["device"]["name"], "dongle")
        # A token is good once, and for one host.
        token = first.ask("cluster", "add", "h4")["token"]
        other = self.host(5)
        self.assertIn("h4", other.run("cluster", "join", token).stderr)

        second.ask("cluster", "transfer", "h2")
        wait_until("h2 to coordinate", lambda: third.ask("status")["coordinator"] == "h2")
        leaders = lambda: [m["host_id"] for m in first.ask("cluster", "status")["store_members"] if m.get("leader")]
        wait_until("the store's leader to follow", lambda: leaders() == ["h2"])
        # Without the coordinator the others go on.
        second.stop(signal.SIGKILL)
        wait_until("another coordinator", lambda: first.run("status").stdout and
                   first.ask("status")["coordinator"] in ("h1", "h3"))
        second.start()
        wait_until("h2 again", lambda: "h2" in first.roles())

        coordinator = first.ask("status")["coordinator"]
        leaver = "h3" if coordinator != "h3" else "h2"
        self.ask_when_it_can(first, "cluster", "remove", leaver)
        wait_until("the rest", lambda: leaver not in first.roles())
        self.assertEqual(len(first.status()["store_members"]), 2)

    def test_backup_and_restore(self):
        first = self.host(1, ["dongle"])
        wait_until("the device", lambda: first.ask("list")["devices"])
        file = self.root / "backup"
        self.assertGreater(int(first.ask("cluster", "backup", str(file))["records"]), 2)
        before = int(first.ask("status")["epoch"])
        restored = first.ask("cluster", "restore", str(file))
        self.assertGreater(int(restored["epoch"]), max(before, time.time() - 60))
        self.assertEqual(first.ask("status")["behind"], "")
        repaired = first.ask("cluster", "repair", "--new-epoch")
        self.assertGreater(int(repaired["epoch"]), int(restored["epoch"]))
        self.assertEqual(first.run("host", "declare-dead", "h1", "--i-have-powered-it-off").returncode, 3)
        self.assertEqual(first.run("host", "declare-dead", "h9", "--i-have-powered-it-off").returncode, 6)
        first.ask("host", "drain", "h1")
        self.assertTrue(first.status()["hosts"][0]["host"]["draining"])
        first.ask("host", "undrain", "h1")


if __name__ == "__main__":
    unittest.main()

"""A host that is removed from its cluster while nobody can reach it."""

import time
import unittest

import history
import processes
import waiting
from hosts import ClusterLab
from lab_test import LATE_S, TTL_S

PATIENCE_S = 30


class RemovedHostTest(unittest.TestCase):
    def standing(self, host, name):
        rows = host.usblease_json("cluster", "status")["hosts"]
        return next((row["member"]["standing"] for row in rows if row["host"]["id"] == name), None)

    def test_removed_while_it_is_cut_off(self):
        """Its guest stops by itself; it leaves once its home has confirmed that, and learns that it has left."""
        with ClusterLab(hosts=4, devices={"h1": ["d1"], "h4": ["d4"]}, found=True) as lab:
            lab.start()
            near, gone = lab.hosts["h1"], lab.hosts["h4"]
            near.wait_state("d4", "free")
            guest = gone.guest("stranded", ["d4"])
            packets = lambda: [packet for packet in lab.packets() if packet["guest"] == guest.uuid]
            waiting.wait_until("transfers", lambda: len(packets()) > 5, PATIENCE_S)
            for other in list(lab.hosts.values())[:3]:
                lab.network.cut(gone.machine, other.machine)
            lab.note("silent", host=gone.name)
            cut_ns = time.monotonic_ns()
            # The lease still binds the device to that home: silence confirms nothing.
            waiting.wait_until(
                "the coordinator to take the order",
                lambda: processes.run(near.command("cluster", "remove", "h4"), check=False).returncode == 0,
                PATIENCE_S,
            )
            self.assertEqual(self.standing(near, "h4"), "STANDING_LEAVING")
            self.assertNotEqual(near.view("d4")["state"], "free")
            guest.wait_end()
            self.assertLess((packets()[-1]["t_ns"] - cut_ns) / 1e9, TTL_S + LATE_S)
            self.assertEqual(self.standing(near, "h4"), "STANDING_LEAVING")
            lab.note("heard", host=gone.name)
            lab.network.heal()
            waiting.wait_until(
                lambda: f"h4 to be removed; its log:\n{gone.daemon.log.tail(20)}",
                lambda: self.standing(near, "h4") == "STANDING_REMOVED",
                PATIENCE_S,
            )
            gone.daemon.wait_line(r"is not a member of the cluster any more", PATIENCE_S)
            # What others have goes on without it.
            other = near.guest("stays", ["d1"])
            waiting.wait_until(
                "transfers of another", lambda: any(p["guest"] == other.uuid for p in lab.packets()), PATIENCE_S
            )
            lab.collect_audit(near)
            events = history.load(lab.history_files()) + lab.packets() + lab.audit()
            self.assertEqual(history.check(history.History(events)), [])


if __name__ == "__main__":
    unittest.main()

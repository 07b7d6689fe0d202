"""A store that went back in time."""

import pathlib
import shutil
import unittest

import history
import waiting
from hosts import ClusterLab


class OldCopyTest(unittest.TestCase):
    """A store that was put back to an old copy, beneath a home that remembers."""

    def test_old_copy_of_the_store_grants_nothing(self):
        with ClusterLab(hosts=1, devices={"h1": ["dongle"]}) as lab:
            lab.start()
            host = lab.hosts["h1"]
            host.wait_state("dongle", "free")
            host.stop_daemon()
            copy = host.directory / "old-state"
            shutil.copytree(host.state_dir, copy)
            host.start_daemon()
            guest = host.guest("before", ["dongle"])
            waiting.wait_until("transfers", lambda: len(lab.packets()) > 5, 10)
            guest.stop()
            host.wait_state("dongle", "free")
            host.stop_daemon()
            for file in host.state_dir.glob("usblease.db*"):
                file.unlink()
            for file in pathlib.Path(copy).glob("usblease.db*"):
                shutil.copy(file, host.state_dir)
            host.start_daemon()
            waiting.wait_until(
                "the daemon to say that the store went back", lambda: host.usblease_json("status").get("behind"), 10
            )
            refused = host.guest("after", ["dongle"], wait_ms=1000)
            self.assertEqual(refused.wait_end(), 3, refused.log.tail())
            without = (history.no_grant_is_lost, history.holds_do_not_overlap)  # its audit trail was put back, too
            events = history.load(lab.history_files()) + lab.packets()
            self.assertEqual(history.check(history.History(events), without), [])


if __name__ == "__main__":
    unittest.main()

"""Random faults on one host with SQLite: kill, freeze, power loss, full disk, dead and frozen relays, replug."""

import unittest

import scenes


class OneHostRounds(unittest.TestCase):
    def test_random_faults_lose_nothing(self):
        scenes.run_test(hosts=1, count=50, enough_s=160)


if __name__ == "__main__":
    unittest.main()

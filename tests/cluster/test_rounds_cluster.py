"""Random faults on three hosts with etcd: what one host suffers, and dead and frozen store members, cuts of every kind."""

import unittest

import scenes


class ClusterRounds(unittest.TestCase):
    def test_random_faults_lose_nothing(self):
        scenes.run_test(hosts=3, count=100, enough_s=300)


if __name__ == "__main__":
    unittest.main()

"""Join tokens that are no good: used, expired, replaced, of another cluster, damaged. Both sides say why, nothing is lost,
and nobody is let in."""

import base64
import hashlib
import re
import shutil
import time
import unittest

from loopback import LoopbackTest, wait_until

BAD_USAGE, REFUSED, TIMED_OUT = 2, 3, 4
PREFIX = "usblease-join-1."


def payload(token):
    """The bytes behind the checksum."""
    text = token.removeprefix(PREFIX)
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))[4:]


def token_of(data):
    """A token of these bytes, with a checksum that is right."""
    return PREFIX + base64.urlsafe_b64encode(hashlib.sha256(data).digest()[:4] + data).decode().rstrip("=")


class JoiningTest(LoopbackTest):
    port = 7601

    def refused(self, host, token, pattern, code=REFUSED):
        """Joining with it fails, and leaves the host what it was."""
        before = host.ask("status")
        done = host.run("cluster", "join", token)
        self.assertEqual(done.returncode, code, done.stderr)
        self.assertRegex(done.stderr, pattern)
        after = host.ask("status")
        self.assertEqual(after["cluster_id"], before["cluster_id"])
        self.assertIn("sqlite", after["store"])
        self.assertFalse((host.root / "state/cluster/members").exists())

    def test_used_twice(self):
        first = self.founded()
        second = self.host(2)
        token = first.ask("cluster", "add", "h2")["token"]
        second.ask("cluster", "join", token)
        wait_until("h2 to vote", lambda: first.roles().get("h2") == "STORE_ROLE_VOTER")
        # Another machine, with the same host id.
        clone = self.host(3, name="h2")
        self.refused(clone, token, "used already")
        self.assertEqual(set(first.roles()), {"h1", "h2"})
        # And the first one again: it is in the cluster, and says so.
        done = second.run("cluster", "join", token)
        self.assertEqual(done.returncode, REFUSED)
        self.assertIn("already", done.stderr)

    def test_for_another_host(self):
        first = self.founded()
        self.refused(self.host(2), first.ask("cluster", "add", "h3")["token"], "h3")
        self.assertEqual(set(first.roles()), {"h1"})

    def test_expired(self):
        first = self.founded()
        second = self.host(2)
        added = first.ask("cluster", "add", "h2", "--valid", "1s")
        wait_until("it to expire", lambda: time.time() > int(added["expires_unix_s"]) + 1)
        self.refused(second, added["token"], "expired", TIMED_OUT)
        # A host whose clock is wrong believes that it has not: then the cluster says so.
        end = int(added["expires_unix_s"])
        data = payload(added["token"])
        later = self.varint(end + 3600)
        self.assertEqual(data.count(self.varint(end)), 1)
        self.refused(second, token_of(data.replace(self.varint(end), later)), "expired")
        self.assertEqual(set(first.roles()), {"h1"})

    @staticmethod
    def varint(value):
        out = bytearray()
        while value >= 0x80:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
        return bytes(out)

    def test_replaced(self):
        first = self.founded()
        second = self.host(2)
        old = first.ask("cluster", "add", "h2")["token"]
        new = first.ask("cluster", "add", "h2")["token"]
        self.refused(second, old, "not known here")
        second.ask("cluster", "join", new)
        wait_until("h2 to vote", lambda: first.roles().get("h2") == "STORE_ROLE_VOTER")

    def test_of_another_cluster(self):
        one, other = self.founded(1), self.founded(8)
        third = self.host(2)
        mine = payload(one.ask("cluster", "add", "h2")["token"])
        theirs = payload(other.ask("cluster", "add", "h2")["token"])
        # Whoever answers at the address has another CA.
        address = mine.replace(one.address.encode(), other.address.encode())
        self.assertNotEqual(address, mine)
        self.refused(third, token_of(address), "fingerprint|not of this cluster|CA")
        # It has that CA, and names another cluster.
        fingerprints = [re.search(rb"\x2a\x20(.{32})", data, re.DOTALL).group(1) for data in (mine, theirs)]
        trusted = address.replace(*fingerprints)
        self.refused(third, token_of(trusted), "another cluster")
        # And it is believed to be that cluster, which does not know the secret.
        ids = [host.ask("status")["cluster_id"].encode() for host in (one, other)]
        self.refused(third, token_of(trusted.replace(*ids)), "not known here")
        for host in (one, other):
            self.assertEqual(len(host.roles()), 1)

    def test_damaged(self):
        first = self.founded()
        second = self.host(2)
        token = first.ask("cluster", "add", "h2")["token"]
        for bad in ("nonsense", token[:-3], token[:40] + ("A" if token[40] != "A" else "B") + token[41:], PREFIX):
            self.refused(second, bad, "token", BAD_USAGE)
        # The secret of somebody who guesses.
        data = payload(token)
        secret = re.search(rb"\x1a\x10(.{16})", data, re.DOTALL) or re.search(rb"\x1a\x20(.{32})", data, re.DOTALL)
        guess = data.replace(secret.group(1), b"0" * len(secret.group(1)))
        self.refused(second, token_of(guess), "not known here")
        second.ask("cluster", "join", token)
        wait_until("h2 to vote", lambda: first.roles().get("h2") == "STORE_ROLE_VOTER")

    def test_removed_host_joins_again(self):
        first = self.founded()
        second = self.joined(first, 2)
        self.ask_when_it_can(first, "cluster", "remove", "h2")
        wait_until("the rest", lambda: set(first.roles()) == {"h1"})
        token = first.ask("cluster", "add", "h2")["token"]
        second.stop()
        second.end_store_member()
        shutil.move(second.root / "state/cluster", second.root / "state/former-cluster")
        second.start()
        second.ask("cluster", "join", token)
        wait_until("h2 to vote", lambda: first.roles().get("h2") == "STORE_ROLE_VOTER")


if __name__ == "__main__":
    unittest.main()

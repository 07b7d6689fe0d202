"""The checker: accepts what is allowed, and refuses a forged history of every kind, one rule at a time."""

import json
import pathlib
import tempfile
import unittest

import history
from history import MS

TTL_MS = 1000


class Forged:
    """Builds a history line by line. Times in ms."""

    def __init__(self):
        self.events = []

    def add(self, t_ms, event, **members):
        process = members.pop("process", members.get("guest", "test"))
        self.events.append({"t_ns": t_ms * MS, "process": process, "event": event} | members)
        return self

    def grant(self, t_ms, guest, token, device="d", asked_ms=None):
        self.add(t_ms - 1 if asked_ms is None else asked_ms, "acquire", guest=guest, device=device)
        self.add(t_ms, "granted", guest=guest, device=device, token=token)
        return self.audit("granted", token, guest, device)

    def audit(self, kind, token, guest="", device="d"):
        """At the end of time: the audit trail has an order, and no stamps."""
        return self.add(10**9 + len(self.events), "audit", kind=kind, device=device, token=token, guest_uuid=guest)

    def packet(self, t_ms, guest, token, device="d", host="h1"):
        return self.add(t_ms, "packet", guest=guest, device=device, token=token, host=host)

    def end(self, t_ms, guest, token, event="leaving", device="d"):
        self.add(t_ms, event, guest=guest, device=device, token=token)
        return self.audit("fenced", token, guest, device)

    def state(self, last_token, token=0, device="d"):
        return self.add(10**9, "state", device=device, last_token=last_token, token=token)

    def broken(self):
        """The names of the rules that it breaks."""
        found = history.check(history.History(self.events, history.Timing(TTL_MS, 300)))
        return {line.split(":")[0] for line in found}


def two_in_turn():
    """a holds, is fenced, then b holds."""
    good = Forged().grant(10, "a", 1).packet(20, "a", 1).packet(30, "a", 1).end(40, "a", 1)
    return good.grant(50, "b", 2).packet(60, "b", 2).state(2, 2)


class HistoryTest(unittest.TestCase):
    def assert_breaks(self, forged, rule):
        self.assertEqual(forged.broken(), {rule.__name__})

    def test_good_histories_are_accepted(self):
        self.assertEqual(Forged().broken(), set())
        self.assertEqual(two_in_turn().broken(), set())
        self.assertEqual(two_in_turn().end(70, "b", 2).grant(80, "c", 5).state(5, 5).broken(), set())

    def test_good_with_renewals_and_silence(self):
        good = two_in_turn().add(61, "renewed", guest="b", device="d", token=2, deadline_ns=1000 * MS)
        good.add(100, "silent", host="h1").packet(1390, "b", 2).add(3000, "heard", host="h1").packet(3001, "b", 2)
        self.assertEqual(good.broken(), set())

    def test_good_when_a_hold_is_taken_away_on_the_record(self):
        """a never says that it ended: the cluster fenced it before it granted to b."""
        good = Forged().grant(10, "a", 1).packet(20, "a", 1).audit("fenced", 1, "a").grant(50, "b", 2).state(2, 2)
        self.assertEqual(good.broken(), set())

    def test_good_when_two_ask_at_once(self):
        """b asked before a was told, so their tokens may come in any order."""
        good = Forged().grant(10, "b", 2, asked_ms=1).end(12, "b", 2)
        good.events.insert(0, {"t_ns": 2 * MS, "process": "a", "event": "acquire", "guest": "a", "device": "d"})
        good.add(14, "granted", guest="a", device="d", token=1).add(15, "leaving", guest="a", device="d", token=1)
        good.audit("granted", 1, "a").audit("fenced", 1, "a").state(2)
        self.assertEqual(good.broken(), set())

    def test_good_when_a_holder_is_killed(self):
        good = Forged().grant(10, "a", 1).add(30, "killed", name="a").audit("fenced", 1, "a").grant(50, "b", 2)
        self.assertEqual(good.state(2, 2).broken(), set())

    def test_good_when_an_answer_is_late(self):
        """a's lease has ended when a is told of it, and b has the device already."""
        good = Forged().add(5, "acquire", guest="a", device="d").audit("granted", 1, "a").audit("instance-ended", 1, "a")
        good.grant(50, "b", 2, asked_ms=6).packet(60, "b", 2).state(2, 2)
        good.add(51, "granted", guest="a", device="d", token=1).add(70, "leaving", guest="a", device="d", token=1)
        self.assertEqual(good.broken(), set())

    def test_token_with_two_holders(self):
        forged = Forged().grant(10, "a", 1).grant(10, "b", 1, asked_ms=9).state(1, 1)
        self.assertIn("a_token_has_one_holder", forged.broken())
        self.assertIn("a_token_has_one_holder", two_in_turn().packet(70, "c", 2).broken())

    def test_token_that_is_not_above_the_one_before(self):
        forged = Forged().grant(10, "a", 5).end(20, "a", 5).grant(30, "b", 4).end(40, "b", 4).state(5)
        self.assert_breaks(forged, history.tokens_increase)

    def test_grant_that_nobody_asked_for(self):
        forged = Forged().add(10, "granted", guest="a", device="d", token=1).audit("granted", 1, "a").state(1, 1)
        self.assert_breaks(forged, history.tokens_increase)

    def test_packets_that_go_back(self):
        """Both were granted, and b told only after a's last packet: only the order at the device is wrong."""
        forged = Forged().add(5, "acquire", guest="b", device="d").grant(10, "a", 1).end(70, "a", 1)
        forged.packet(60, "b", 2).packet(65, "a", 1)
        forged.add(80, "granted", guest="b", device="d", token=2).audit("granted", 2, "b").state(2, 2)
        self.assertIn("packets_never_go_back", forged.broken())
        self.assertNotIn("no_packet_after_the_next_grant", forged.broken())

    def test_packet_without_a_grant(self):
        self.assert_breaks(two_in_turn().packet(70, "c", 3), history.packets_have_a_grant)

    def test_packet_before_its_grant(self):
        self.assert_breaks(two_in_turn().packet(45, "b", 2), history.packets_have_a_grant)

    def test_packet_after_the_next_grant(self):
        self.assert_breaks(two_in_turn().packet(55, "a", 1), history.no_packet_after_the_next_grant)

    def test_packet_after_its_release(self):
        forged = Forged().grant(10, "a", 1).end(20, "a", 1, "releasing").add(30, "released", guest="a")
        self.assert_breaks(forged.packet(31, "a", 1).state(1), history.no_packet_after_release)

    def test_packet_of_a_silent_host(self):
        forged = two_in_turn().add(100, "silent", host="h1").packet(1401, "b", 2)
        self.assert_breaks(forged, history.no_packet_of_a_silent_host)
        other_host = two_in_turn().add(100, "silent", host="h2").packet(1401, "b", 2)
        self.assertEqual(other_host.broken(), set())

    def test_host_that_is_silent_for_two_reasons_is_heard_once(self):
        good = two_in_turn().add(100, "silent", host="h1").add(200, "silent", host="h1").add(300, "heard", host="h1")
        self.assertEqual(good.packet(5000, "b", 2).broken(), set())

    def test_deadline_that_is_too_far_ahead(self):
        forged = two_in_turn().add(61, "renewed", guest="b", device="d", token=2, deadline_ns=(62 + TTL_MS) * MS)
        self.assert_breaks(forged, history.deadlines_are_near)

    def test_holds_that_overlap(self):
        """b is granted while a holds, and is fenced only later."""
        forged = Forged().grant(10, "a", 1).grant(50, "b", 2).end(60, "a", 1).state(2, 2)
        self.assert_breaks(forged, history.holds_do_not_overlap)

    def test_grant_that_the_record_does_not_know(self):
        forged = two_in_turn()
        forged.events = [e for e in forged.events if not (e["event"] == "audit" and e["token"] == 2)]
        self.assert_breaks(forged, history.no_grant_is_lost)

    def test_grant_of_another_on_the_record(self):
        forged = Forged().grant(10, "a", 1).state(1, 1)
        forged.events[-2]["guest_uuid"] = "b"
        self.assert_breaks(forged, history.no_grant_is_lost)

    def test_grant_that_vanished(self):
        """Nobody ended token 2, and yet the device is free."""
        forged = Forged().grant(10, "a", 2).state(2, 0)
        self.assert_breaks(forged, history.no_grant_is_lost)

    def test_counter_that_went_back(self):
        forged = Forged().grant(10, "a", 2).end(20, "a", 2).state(1)
        self.assert_breaks(forged, history.no_grant_is_lost)

    def test_many_sentences_are_cut(self):
        forged = two_in_turn()
        for t_ms in range(70, 170):
            forged.packet(t_ms, "c", 3)
        found = history.check(history.History(forged.events))
        self.assertEqual(len(found), history.SAID_MAX + 1)

    def test_half_a_line_at_the_end_of_a_file_only(self):
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory, "history")
            good = json.dumps({"t_ns": 1, "event": "acquire"})
            path.write_text(f'{good}\n{{"t_ns":2,"ev', encoding="utf-8")
            self.assertEqual(history.load([path]), [json.loads(good)])
            path.write_text(f'{{"t_ns":2,"ev\n{good}\n', encoding="utf-8")
            with self.assertRaises(ValueError):
                history.load([path])


if __name__ == "__main__":
    unittest.main()

"""What happened in a run, and the proof that it was allowed to.

Every process writes what it knows as one JSON object a line, stamped with CLOCK_MONOTONIC, which all namespaces share:
  t_ns, process, event, and with most events guest (a UUID, one for each start), device, token.

| event     | by      | means
|-----------|---------|--------------------------------------------------------------------------------------------
| acquire   | holder  | about to ask for the device
| granted   | holder  | was told that it has the device, under this token
| refused, unknown | holder | was told that it has nothing; was told nothing
| renewed   | holder  | saw that the device stops by itself at deadline_ns, and not before
| releasing, leaving | holder | about to give back everything it has
| released  | holder  | was told that everything it had is fenced
| closed, no-stream | holder | its stream to the device is over, or never began
| packet    | device  | completed a transfer; the guest and the token stand in the packet itself
| killed    | test    | the process `name` has ended by SIGKILL
| silent    | test    | from here on `host` gets no answer to a renewal …
| heard     | test    | … until here
| audit     | cluster | a line of the audit trail, in its order: seq, kind, device, token, guest_uuid
| state     | cluster | at the end: last_token of the device, and the lease's token, 0 when it is free

check() returns what broke a rule, a sentence each; the rules are the functions below that end up in RULES.
"""

import bisect
import collections
import dataclasses
import json
import pathlib

MS = 1_000_000
ENDS = {"fenced", "instance-ended", "superseded", "expired"}  # kinds of the audit trail after which a token is dead
HOLD_ENDS = {"releasing", "leaving", "closed", "no-stream"}


@dataclasses.dataclass
class Timing:
    """Of the cluster under test. slack_ms: what enforcement may be late, and the device with its stamp."""

    ttl_ms: int = 1000
    slack_ms: int = 300


class Hold:
    """One acknowledged grant. Times in ns; end_ns is when the holder stopped to count on it, None: it never did."""

    def __init__(self, granted, asked_ns, end_ns):
        self.device, self.token, self.guest = granted["device"], granted["token"], granted["guest"]
        self.process = granted["process"]
        self.asked_ns, self.granted_ns, self.end_ns = asked_ns, granted["t_ns"], end_ns

    def __str__(self):
        return f"token {self.token} of {self.device} (guest {self.guest}, {self.process})"


class History:
    """All events of a run, in the order of time."""

    def __init__(self, events, timing=None):
        self.timing = timing or Timing()
        self.events = sorted(events, key=lambda event: event["t_ns"])
        self._by_kind = collections.defaultdict(list)
        for event in self.events:
            self._by_kind[event["event"]].append(event)
        self.holds = self._make_holds()
        self.holds_of = collections.defaultdict(list)
        for hold in self.holds:
            self.holds_of[hold.device].append(hold)

    def of(self, kind):
        return self._by_kind[kind]

    def packets_of(self):
        """{device: its packets in order of time}"""
        packets = collections.defaultdict(list)
        for packet in self.of("packet"):
            packets[packet["device"]].append(packet)
        return packets

    def _make_holds(self):
        asked, ends = {}, {}
        killed = {event["name"]: event["t_ns"] for event in self.of("killed")}
        for event in self.events:
            if event["event"] == "acquire":
                asked.setdefault((event["guest"], event["device"]), event["t_ns"])
            elif event["event"] in HOLD_ENDS:
                # Without a device: all that the guest has.
                ends.setdefault((event["guest"], event.get("device")), event["t_ns"])
        holds = []
        for granted in self.of("granted"):
            key = (granted["guest"], granted["device"])
            end = min(
                (t for t in (ends.get(key), ends.get((granted["guest"], None)), killed.get(granted["process"])) if t),
                default=None,
            )
            holds.append(Hold(granted, asked.get(key), end))
        return holds


def load(paths):
    """The events of these files. A last line that a killed process did not finish is left out; another is an error."""
    events = []
    for path in paths:
        lines = pathlib.Path(path).read_text(encoding="utf-8").split("\n")
        for number, line in enumerate(lines, 1):
            try:
                if line:
                    events.append(json.loads(line))
            except json.JSONDecodeError as error:
                if number < len(lines):
                    raise ValueError(f"{path}:{number}: {error}") from error
    return events


# ---- the rules


def a_token_has_one_holder(history):
    holders = {}
    for event in [*history.of("granted"), *history.of("packet")]:
        first = holders.setdefault((event["device"], event["token"]), event["guest"])
        if first != event["guest"]:
            yield f"token {event['token']} of {event['device']} belongs to {first} and to {event['guest']}"


def tokens_increase(history):
    """A grant that was asked for after another was acknowledged has a greater token."""
    for device, holds in history.holds_of.items():
        acknowledged = sorted((hold.granted_ns, hold.token) for hold in holds)
        times = [t for t, _ in acknowledged]
        greatest = []
        for _, token in acknowledged:
            greatest.append(max(token, greatest[-1] if greatest else 0))
        for hold in holds:
            if hold.asked_ns is None:
                yield f"{hold} was granted and never asked for"
                continue
            before = bisect.bisect_left(times, hold.asked_ns)
            if before and greatest[before - 1] >= hold.token:
                yield f"{hold} is not above token {greatest[before - 1]} of {device}, granted before it was asked for"


def packets_never_go_back(history):
    """The tokens under which a device completes transfers never decrease."""
    for device, packets in history.packets_of().items():
        greatest = 0
        for packet in packets:
            if packet["token"] < greatest:
                yield f"{device} completed a transfer under token {packet['token']} after one under {greatest}"
            greatest = max(greatest, packet["token"])


def packets_have_a_grant(history):
    known = {(hold.device, hold.token, hold.guest): hold.granted_ns for hold in history.holds}
    for packet in history.of("packet"):
        granted_ns = known.get((packet["device"], packet["token"], packet["guest"]))
        if granted_ns is None or granted_ns > packet["t_ns"]:
            yield f"{packet['device']} completed a transfer of {packet['guest']} under {packet['token']}, not granted"


def no_packet_after_the_next_grant(history):
    """Fence before grant: when somebody is told that it has the device, every transfer before that is dead."""
    for device, packets in history.packets_of().items():
        acknowledged = sorted((hold.granted_ns, hold.token) for hold in history.holds_of[device])
        upcoming, greatest = iter([*acknowledged, (float("inf"), 0)]), 0
        t_ns, token = next(upcoming)
        for packet in packets:
            while t_ns < packet["t_ns"]:
                greatest = max(greatest, token)
                t_ns, token = next(upcoming)
            if packet["token"] < greatest:
                yield f"{device} completed a transfer under token {packet['token']} after {greatest} was granted"


def no_packet_after_release(history):
    released = {}
    for event in history.of("released"):
        released.setdefault(event["guest"], event["t_ns"])
    for packet in history.of("packet"):
        if packet["t_ns"] > released.get(packet["guest"], float("inf")):
            yield f"{packet['device']} completed a transfer under token {packet['token']}, which had been released"


def no_packet_of_a_silent_host(history):
    """A host that gets no answers stops its devices within the ttl, and what enforcement may be late."""
    late_ns = (history.timing.ttl_ms + history.timing.slack_ms) * MS
    spans = collections.defaultdict(list)
    for event in history.events:
        if event["event"] == "silent":
            spans[event["host"]].append([event["t_ns"], float("inf")])
        elif event["event"] == "heard":
            # Whatever made it silent: it may be heard now.
            for span in spans[event["host"]]:
                span[1] = min(span[1], event["t_ns"])
    for packet in history.of("packet"):
        for begin, end in spans[packet["host"]]:
            if begin + late_ns < packet["t_ns"] < end:
                after_ms = (packet["t_ns"] - begin) // MS
                what = f"{packet['device']} completed a transfer under token {packet['token']}"
                yield f"{what} {after_ms} ms after its host got the last answer"


def deadlines_are_near(history):
    """Nobody is ever promised more than the ttl from now."""
    for event in history.of("renewed"):
        ahead_ms = (event["deadline_ns"] - event["t_ns"]) / MS
        if ahead_ms > history.timing.ttl_ms:
            yield f"the deadline of token {event['token']} of {event['device']} lay {ahead_ms:.0f} ms ahead"


def _audited(history):
    """{(device, token): place of its grant}, {(device, token): place of its end} in the audit trail."""
    grants, ends = {}, {}
    for place, event in enumerate(history.of("audit")):
        key = (event.get("device"), event.get("token"))
        if event["kind"] == "granted":
            grants[key] = (place, event.get("guest_uuid"))
        elif event["kind"] in ENDS:
            ends.setdefault(key, place)
    return grants, ends


def holds_do_not_overlap(history):
    """Of two who count on a device at once, the one of the lesser token must have ended, on the record, before the other's
    grant. (Who is told of a grant late may hear of it when the next one has the device already.)"""
    grants, ends = _audited(history)
    for device, holds in history.holds_of.items():
        holds = sorted(holds, key=lambda hold: hold.granted_ns)
        open_holds = []
        for hold in holds:
            open_holds = [o for o in open_holds if o.end_ns is None or o.end_ns > hold.granted_ns]
            for other in open_holds:
                first, second = sorted((other, hold), key=lambda each: each.token)
                ended = ends.get((device, first.token))
                granted = grants.get((device, second.token))
                if ended is None or granted is None or ended > granted[0]:
                    yield f"{second} was granted while {first} held, without a fence on the record"
            open_holds.append(hold)


def no_grant_is_lost(history):
    """What was acknowledged is on the record; it is there still, or the record has its end."""
    grants, ends = _audited(history)
    states = {event["device"]: event for event in history.of("state")}
    for hold in history.holds:
        key = (hold.device, hold.token)
        if grants.get(key, (0, None))[1] != hold.guest:
            yield f"the audit trail does not know that {hold} was granted"
        state = states.get(hold.device)
        if state is None:
            continue
        if state["last_token"] < hold.token:
            yield f"the cluster has forgotten {hold}: its last token is {state['last_token']}"
        elif key not in ends and state["token"] != hold.token:
            yield f"{hold} is neither held nor ended on the record"


RULES = (
    a_token_has_one_holder,
    tokens_increase,
    packets_never_go_back,
    packets_have_a_grant,
    no_packet_after_the_next_grant,
    no_packet_after_release,
    no_packet_of_a_silent_host,
    deadlines_are_near,
    holds_do_not_overlap,
    no_grant_is_lost,
)
SAID_MAX = 5  # of one rule: a broken run breaks a rule thousands of times


def check(history, without=()):
    """Everything that broke a rule, as "RULE: SENTENCE". without: rules that a test suspends, saying why."""
    said = []
    for rule in RULES:
        if rule in without:
            continue
        for count, sentence in enumerate(rule(history)):
            if count == SAID_MAX:
                said.append(f"{rule.__name__}: … and more")
                break
            said.append(f"{rule.__name__}: {sentence}")
    return said

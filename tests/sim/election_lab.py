#!/usr/bin/python3
"""The election laboratory: small models of how three or more machines choose one, and the page docs/election-lab.md.

usage: tests/sim/election_lab.py            prints the page; `> docs/election-lab.md` regenerates it
Every number comes from here, from fixed seeds: two runs print the same page.
"""

import heapq
import itertools
import random
import statistics

ELECTIONS = 10_000
ROUNDS_MAX = 1_000  # then it counts as never


# --- (a) Poor generators ---------------------------------------------------------------------------

class ShortPeriod:
    """x = 5x + 3 mod 16, as a microcontroller's rand() might be: all of its 16 values, in one fixed order."""

    def __init__(self, seed):
        self.state = random.Random(seed).randrange(16)

    def timeout_ms(self):
        self.state = (5 * self.state + 3) % 16
        return 150 + 10 * self.state


class SameSeed(ShortPeriod):
    """The same generator, seeded by the second at which all machines were switched on together."""

    def __init__(self, _seed):
        super().__init__(7)


class Kernel:
    """Stands for getrandom(2): good numbers, of each machine its own."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def timeout_ms(self):
        return self.random.uniform(150, 310)


def majority_rounds(voters, generator, seed, delay_ms=50):
    """Each stands when its timeout is over and votes for whom it hears of first. Two that stand within one message's
    way of each other share the votes; without a majority all begin again."""
    machines = [generator(seed * 31 + 97 * i) for i in range(voters)]
    wire = random.Random(seed)
    for rounds in range(1, ROUNDS_MAX + 1):
        times = [machine.timeout_ms() for machine in machines]
        first = min(times)
        standing = [i for i, at in enumerate(times) if at < first + delay_ms]
        votes = {i: 1 for i in standing}
        for voter in range(voters):
            if voter not in standing:  # for whom it hears of first
                votes[min(standing, key=lambda i: times[i] + wire.uniform(0, delay_ms))] += 1
        if max(votes.values()) * 2 > voters:
            return rounds
    return ROUNDS_MAX


def key_rounds(voters, seed):
    """Electing by a guarded key: of the claims of one round the store takes exactly one, whatever the timeouts."""
    claims = [Kernel(seed * 31 + 97 * i).timeout_ms() for i in range(voters)]
    return 1 if claims else 0


def generators():
    yield "| voters | chosen by | mean rounds | 99th percentile | never (1000 rounds) |"
    yield "|---|---|---|---|---|"
    for voters in (3, 5, 7):
        for name, rounds_of in (
                ("majority, one seed for all, period 16", lambda s, v=voters: majority_rounds(v, SameSeed, s)),
                ("majority, period 16", lambda s, v=voters: majority_rounds(v, ShortPeriod, s)),
                ("majority, getrandom", lambda s, v=voters: majority_rounds(v, Kernel, s)),
                ("guarded key", lambda s, v=voters: key_rounds(v, s))):
            sample = 200 if name.startswith("majority, one") else ELECTIONS
            rounds = sorted(rounds_of(seed) for seed in range(sample))
            never = sum(r == ROUNDS_MAX for r in rounds)
            yield (f"| {voters} | {name} | {statistics.fmean(rounds):.2f} | {rounds[len(rounds) * 99 // 100]} "
                   f"| {100 * never / sample:.1f} % of {sample} |")


# --- (b) Latency -----------------------------------------------------------------------------------

def grant_ms(delay_ms, local, rng):
    """Request to the coordinator, its transaction to a majority of three store members, the answer back."""
    way = lambda: delay_ms * rng.uniform(1.0, 1.05)
    to_coordinator = 0 if local else way()
    replicas = sorted(way() + way() for _ in range(2))  # two followers; the first answer makes the majority
    return to_coordinator + replicas[0] + 0.4 + (0 if local else way())  # 0.4 ms: a disk


def latency():
    rng = random.Random(2)
    yield "| one way | floor 2d | guest beside the coordinator | guest elsewhere | share of the floor |"
    yield "|---|---|---|---|---|"
    for name, delay in (("0.1 ms", 0.1), ("1 ms", 1), ("10 ms", 10), ("100 ms", 100), ("1 s", 1e3), ("10 s", 1e4),
                        ("100 s", 1e5), ("10 min", 6e5)):
        near = statistics.median(grant_ms(delay, True, rng) for _ in range(1001))
        far = statistics.median(grant_ms(delay, False, rng) for _ in range(1001))
        yield (f"| {name} | {2 * delay:g} ms | {near:.4g} ms | {far:.4g} ms | {near / (2 * delay):.2f} and "
               f"{far / (2 * delay):.2f} |")


# --- (c) Coordinator against a token that goes around ------------------------------------------------

def coordinator_cost(hosts, members=3):
    """Messages: the request, replication and its answers, the grant; the release, the order, the confirmation."""
    asked_from_elsewhere = (hosts - 1) / hosts
    replication = 2 * (members - 1)
    return 2 * asked_from_elsewhere + replication + 2 * asked_from_elsewhere + replication


def ring_cost(hosts, wanting, rng, delay_ms=0.2, hold_ms=1.0, grants=2000):
    """One device's token hops from host to host; who wants the device keeps the token while it is used. `wanting`: the
    part of the hosts that wants it at any time."""
    hops = at = served = 0
    waits = []
    now = 0.0
    wants = {host: 0.0 for host in range(hosts) if rng.random() < wanting} or {hosts // 2: 0.0}
    while served < grants:
        if at in wants and wants[at] <= now:
            waits.append(now - wants[at])
            now += hold_ms
            served += 1
            del wants[at]
            # Somebody wants it next, after the time that makes `wanting` of them want it at once.
            other = rng.randrange(hosts)
            wants.setdefault(other, now + rng.expovariate(1.0) * hold_ms / max(wanting * hosts, 0.1))
        at = (at + 1) % hosts
        hops += 1
        now += delay_ms
    return hops / served, statistics.fmean(waits)


def ring():
    rng = random.Random(3)
    yield "| hosts | wanted by | coordinator: messages a grant | ring: messages a grant | ring: time to grant |"
    yield "|---|---|---|---|---|"
    for hosts in (3, 10, 30, 100, 300, 1000):
        for name, wanting in (("one", 1 / hosts), ("half of them", 0.5)):
            messages, wait = ring_cost(hosts, wanting, rng)
            yield f"| {hosts} | {name} | {coordinator_cost(hosts):.1f} | {messages:.1f} | {wait:.1f} ms |"


# --- (d) Two levels --------------------------------------------------------------------------------

def two_levels(checked, orders=20_000):
    """Cells with a coordinator each take tokens from one dispenser and send orders to a device, over ways that delay
    and overtake. Counts orders with an older token that were carried out after a newer one."""
    rng = random.Random(4)
    arrivals = []
    for token in range(1, orders + 1):
        cell_delay = (0.1, 1.0, 30.0)[rng.randrange(3)]  # near, far, cut off for a while
        heapq.heappush(arrivals, (token * 0.5 + rng.expovariate(1 / cell_delay), token))
    newest = wrong = refused = 0
    while arrivals:
        _, token = heapq.heappop(arrivals)
        if checked and token <= newest:
            refused += 1
            continue
        wrong += token < newest
        newest = max(newest, token)
    return orders, refused, wrong


def levels():
    yield "| the device | orders | refused | carried out after a newer one |"
    yield "|---|---|---|---|"
    for name, checked in (("compares tokens", True), ("obeys whoever speaks", False)):
        orders, refused, wrong = two_levels(checked)
        yield f"| {name} | {orders} | {refused} | {wrong} |"


# --- (e) The limit of symmetry -----------------------------------------------------------------------

def coins():
    """Exactly one of three, each standing with probability p; the best p is 1/3."""
    return max((3 * p * (1 - p) ** 2, p) for p in (i / 3000 for i in range(3001)))


def ghz():
    """(|000> + |111>)/sqrt 2, each part measured in the X basis. Who sees + when the others see - is chosen."""
    exactly_one = 0.0
    for outcome in itertools.product((+1, -1), repeat=3):
        # <outcome|000> = (1/sqrt 2)^3, <outcome|111> = the product of the signs times as much.
        amplitude = (1 + outcome[0] * outcome[1] * outcome[2]) / 2 ** 0.5 / 2 ** 1.5
        if outcome.count(+1) == 1:
            exactly_one += amplitude ** 2
    return exactly_one


def symmetry():
    probability, p = coins()
    yield "| what three equal parties share | exactly one is chosen |"
    yield "|---|---|"
    yield f"| nothing: a coin each, best p = {p:.4f} | {probability:.4f} = 4/9 |"
    yield f"| a GHZ state | {ghz():.4f} = 3/4 |"
    yield "| an ordered record: the first claim counts | 1 |"


PAGE = """# The election laboratory

Why usblease elects its coordinator by a guarded key in an ordered record, and why a grant carries a token: the theory in
numbers. These are small models, not the product; the product itself is run by `usblease-sim` (tests/sim/README.md).
`tests/sim/election_lab.py > docs/election-lab.md` regenerates this page.

## Poor generators

Voting by majority with random timeouts depends on the timeouts being different. {elections} elections for each line:

{generators}

A generator with a short period, seeded alike, splits the vote again and again, and with one seed for all it never ends:
equal machines stay equal. Good randomness makes it rare, not impossible. A claim on a guarded key cannot split: the store
orders the claims, and the first one fails all others, so randomness there only saves messages.

## Latency

Time from a request to its grant with a one-way delay d and timers scaled with it, against the floor of one round trip
that no protocol with a majority can beat:

{latency}

A guest beside the coordinator pays the one round trip that durability costs. Elsewhere it pays its own way there and back
besides. Nothing else grows with d.

## A coordinator or a token that goes around

{ring}

A ring is silent only when nobody counts its hops: an idle token costs messages for ever, and a lost one costs a second
protocol. Its time to grant grows with the hosts; the coordinator's does not. Under contention the ring is cheap a grant,
because the token is handed to the next who wants it; but it serves by place, not by arrival.

## Two levels

Cells with a coordinator each, and one dispenser of increasing tokens above them:

{levels}

Being newest is decided at the device, not by the senders: with the comparison no order with an older token is carried out
after a newer one, however late it comes.

## The limit of symmetry

{symmetry}

Three equal parties that may not talk have no way to be certain. Even a shared entangled state only raises the chance. A
shared, ordered record does better than either, because it breaks the symmetry: somebody's claim is first. The price is
that they must talk, and a majority must answer.
"""


def main():
    print(PAGE.format(elections=f"{ELECTIONS:,}", generators="\n".join(generators()), latency="\n".join(latency()),
                      ring="\n".join(ring()), levels="\n".join(levels()), symmetry="\n".join(symmetry())), end="")


if __name__ == "__main__":
    main()

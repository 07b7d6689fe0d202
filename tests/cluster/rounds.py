"""Fault rounds: holders never rest, faults come in random combination from a seed, and after each round everything must
work again. At the end the history must be allowed.

A round's faults follow from the seed and its number alone, so `soak --seed S --first N --rounds 1` repeats one.
"""

import random
import time

import history
import machines

FAULTS_MAX = 3             # at once
LASTS_S = (0.1, 2.2)       # twice the ttl of the fast profile, and more
SPREAD_S = 0.4             # between the first fault and the last
RECOVERY_S = 30
CHECK_EVERY = 5            # rounds


class Round:
    """Which faults, when, and for how long."""

    def __init__(self, seed, number, hosts, kinds, work):
        self.number = number
        self.random = random.Random(f"{seed}-{number}")
        chosen, fates = [], set()
        for _ in range(self.random.randint(1, FAULTS_MAX)):
            host = self.random.choice(hosts)
            fault = self.random.choice(kinds)(host, self.random, work)
            if fault.alone:
                chosen = [fault]
                break
            if fault.fate not in fates:
                fates.add(fault.fate)
                chosen.append(fault)
        self.faults = chosen
        # (when, what to do): begin and end of each.
        self.steps = []
        for fault in chosen:
            begin_s = self.random.uniform(0, SPREAD_S)
            self.steps.append((begin_s, fault.begin))
            self.steps.append((begin_s + self.random.uniform(*LASTS_S), fault.end))
        self.steps.sort(key=lambda step: step[0])

    def __str__(self):
        return f"round {self.number}: " + ", ".join(map(str, self.faults))


class Rounds:
    """Runs rounds on a lab that has started. say: where lines for people go."""

    def __init__(self, lab, work, kinds, seed, say=print):
        self.lab, self.work, self.kinds, self.seed = lab, work, kinds, seed
        self._say = say
        self.done = 0
        self.recoveries_s = []
        self._log = open(machines.LAB_DIR / "rounds.log", "a", encoding="utf-8", buffering=1)

    def run(self, count, until=None, first=1):
        """count rounds, or fewer when time.monotonic() passes `until`."""
        for number in range(first, first + count):
            if until is not None and time.monotonic() >= until:
                break
            self._one(Round(self.seed, number, list(self.lab.hosts.values()), self.kinds, self.work))
            self.done += 1

    def _one(self, this):
        self._log.write(f"{time.monotonic():.3f} {this}\n")
        self.lab.note("round", number=this.number, faults=str(this))
        begun = time.monotonic()
        try:
            for at_s, step in this.steps:
                self.work.wait_until("the next step", lambda at=begun + at_s: time.monotonic() >= at, 60)
                step()
            self._recover()
            self._collect()
            if this.number % CHECK_EVERY == 0:
                self._check_packets()
        except AssertionError as error:
            raise AssertionError(f"seed {self.seed}, {this}: {error}") from error

    def _recover(self):
        """Every device works for somebody again."""
        healed = time.monotonic()
        marks = {}
        for host in self.lab.hosts.values():
            for device in host.devices.values():
                marks[device] = device.log.mark()

        def missing():
            return [device.name for device, mark in marks.items() if not device.log.matches('"event":"line"', mark)]

        self.work.wait_until(lambda: f"transfers of {missing()}", lambda: not missing(), RECOVERY_S)
        self.recoveries_s.append(time.monotonic() - healed)
        self._log.write(f"{time.monotonic():.3f}   recovered after {self.recoveries_s[-1]:.2f} s\n")

    def _collect(self):
        """Every round: the cluster keeps a bounded number of lines."""
        self.lab.collect_audit(next(iter(self.lab.hosts.values())))

    def _check_packets(self):
        """What needs no audit trail: the sooner it is found, the less there is to read."""
        later = (history.holds_do_not_overlap, history.no_grant_is_lost)
        self._assert_allowed(history.load(self.lab.history_files()) + self.lab.packets(), later)

    @staticmethod
    def _assert_allowed(events, without=()):
        broken = history.check(history.History(events), without)
        if broken:
            raise AssertionError("the history is not allowed:\n  " + "\n  ".join(broken))

    def finish(self):
        """Stops the holders; everything comes back; the whole history is allowed. Returns it."""
        self.work.stop()
        host = next(iter(self.lab.hosts.values()))
        for each in self.lab.hosts.values():
            for device in each.devices:
                host.wait_state(device, "free", RECOVERY_S)
        self._collect()
        events = history.load(self.lab.history_files()) + self.lab.packets() + self.lab.audit() + self.lab.states(host)
        self._assert_allowed(events)
        self._log.close()
        return history.History(events)

    def summary(self, past):
        slow = max(self.recoveries_s, default=0.0)
        usual = sorted(self.recoveries_s)[len(self.recoveries_s) // 2] if self.recoveries_s else 0.0
        counts = ", ".join(
            f"{len(past.of(kind))} {name}"
            for kind, name in (("granted", "grants"), ("packet", "transfers"), ("renewed", "renewals seen"))
        )
        return f"{self.done} rounds, seed {self.seed}: {counts}; recovery {usual:.2f} s, at most {slow:.2f} s"

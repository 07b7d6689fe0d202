"""Holders that never rest: whoever ends, or is killed, is followed by the next one."""

import random
import time

import history
import waiting

REFUSED, UNKNOWN = 3, 4  # exit codes of a guest that holds nothing
RESTART_S = 0.5          # between two starts of what ends by itself
DEFECT_S = 60


class GuestLoop:
    """Guests of one host, one after another, each a start of its own, each for at most hold_ms.

    After each of them libvirt's part is played: the daemon is told that the guest has ended. A daemon that started since
    may have forgotten it, and would ask libvirt; so it is told again.
    """

    def __init__(self, host, name, devices, hold_ms, seed):
        self.host, self.name, self.devices = host, name, devices
        self._hold_ms = hold_ms
        self._random = random.Random(f"{seed}-{name}")
        self._count = 0
        self.holder = None
        self._ended = []  # (guest, the daemon's start at which it ended)
        self._telling = []
        self._told_at = 0

    def tick(self, wanted):
        self._tell()
        if self.holder is not None and self.holder.running:
            return
        if self.holder is not None:
            if self.holder.exit_code not in (0, REFUSED, UNKNOWN, -9):
                raise AssertionError(f"{self.holder.name} ended with {self.holder.exit_code}:\n{self.holder.log.tail()}")
            self._ended.append((self.holder, self.host.starts))
            self._telling.append(self._ended_call(self.holder))
        self.holder = None
        # A host that is off runs no guests.
        if wanted and self.host.is_on:
            self._count += 1
            hold_ms = self._random.randint(self._hold_ms // 10, self._hold_ms)
            self.holder = self.host.guest(
                f"{self.name}-{self._count}", self.devices, loop=self.name, hold_ms=hold_ms, wait_ms=3000
            )

    def _tell(self):
        self._telling = [call for call in self._telling if call.running]
        if self.host.starts == self._told_at:
            return
        self._told_at = self.host.starts
        self._ended = [(guest, start) for guest, start in self._ended if start >= self.host.starts - 1]
        self._telling += [self._ended_call(guest) for guest, _start in self._ended]

    def _ended_call(self, guest):
        return self.host.holder("ended", guest.name, (), loop=f"{self.name}-ended", holder_uuid=guest.uuid)

    @property
    def idle(self):
        return self.holder is None and not self._telling


class BareLoop:
    """One client of bare leases. What it leaves behind when it is killed is given back in its name."""

    def __init__(self, host, name, devices, hold_ms, seed):
        self.host, self.name, self.devices = host, name, devices
        self._hold_ms, self._seed = hold_ms, seed
        self._count = 0
        self.holder = None
        self._releases = []

    def tick(self, wanted):
        self._releases = [release for release in self._releases if not self._is_over(release)]
        if self.holder is not None and self.holder.running:
            return
        if self.holder is not None and self.holder.exit_code == -9:
            self._release_what_is_left()
        self.holder = None
        if wanted:
            self._count += 1
            name = f"{self.name}-{self._count}"
            options = {"hold_ms": self._hold_ms, "wait_ms": 1000, "seed": self._seed + self._count}
            self.holder = self.host.holder("bare", name, self.devices, loop=self.name, **options)

    @property
    def idle(self):
        return self.holder is None and not self._releases

    def _release_what_is_left(self):
        last = {}
        for event in history.load([self.holder.history]):
            if event["process"] == self.holder.name and event["event"] in ("acquire", "released"):
                last = event
        if last.get("event") == "acquire":
            self._count += 1
            # The release's name is the nonce of what it gives back.
            nonce, guest = last["nonce"], last["guest"]
            loop = f"{self.name}-releases"
            self._releases.append(
                self.host.holder("release", nonce, (), loop=loop, holder_uuid=guest)
            )

    @staticmethod
    def _is_over(release):
        if not release.running and release.exit_code not in (0, -9):
            raise AssertionError(f"{release.name} was not given back:\n{release.log.tail()}")
        if not release.running and release.exit_code == -9:
            release.start()
        return not release.running


class Workload:
    """All loops, and what systemd does for the daemons."""

    def __init__(self, lab, seed):
        self.lab = lab
        self._seed = seed
        self._wanted = True
        self.loops = []
        self._not_before = {}  # program: when it may be started again

    def guests(self, host, name, devices, hold_ms):
        self.loops.append(GuestLoop(host, name, devices, hold_ms, self._seed))

    def bare(self, host, name, devices, hold_ms):
        self.loops.append(BareLoop(host, name, devices, hold_ms, self._seed))

    def tick(self):
        for loop in self.loops:
            loop.tick(self._wanted)
        for host in self.lab.hosts.values():
            self._be_systemd(host)
            self._be_supervisor(host.store)

    def _be_systemd(self, host):
        daemon = host.daemon
        if not host.wanted or daemon.running:
            return
        if daemon.exit_code is not None and daemon.exit_code < 0:
            raise AssertionError(f"{daemon.name} was ended by signal {-daemon.exit_code}:\n{daemon.log.tail(40)}")
        # "cannot start": a full disk.
        if self._is_due(daemon):
            host.start_daemon(wait=False)

    def _be_supervisor(self, store):
        """What usbleased is to its etcd: that one may end by itself, on a full disk above all."""
        if store is not None and store.wanted and not store.running and self._is_due(store):
            store.start()

    def _is_due(self, program):
        now_s = time.monotonic()
        if now_s < self._not_before.get(program, 0):
            return False
        self._not_before[program] = now_s + RESTART_S
        return True

    def wait_until(self, what, condition, timeout_s):
        def ticked():
            self.tick()
            return condition()

        return waiting.wait_until(what, ticked, timeout_s)

    def running(self, kind):
        """The holders of one kind of loop that run now."""
        return [loop.holder for loop in self.loops if isinstance(loop, kind) and loop.holder and loop.holder.running]

    def stop(self):
        """Everybody gives back what he has, and no one follows. Returns when all have ended."""
        self._wanted = False

        def ended():
            for loop in self.loops:
                if loop.holder is not None and loop.holder.running:
                    loop.holder.signal(15)
            self.tick()
            return all(loop.idle for loop in self.loops)

        waiting.wait_until("all holders to end", ended, DEFECT_S)

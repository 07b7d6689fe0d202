"""What goes wrong, each as an object: begin() makes it so, end() mends what a person, systemd or time would mend.

`fate`: faults with the same fate exclude each other in one round.
"""

import signal

import workload


class Fault:
    """Of one host."""

    alone = False  # no other fault in the same round

    def __init__(self, host, _random, _work):
        self.host = host

    @property
    def fate(self):
        return type(self).__name__, self.host.name

    def __str__(self):
        return f"{type(self).__name__}({self.host.name})"

    def begin(self):
        raise NotImplementedError

    def end(self):
        """Nothing to mend."""


class _DaemonFault(Fault):
    @property
    def fate(self):
        return "daemon", self.host.name


class KillDaemon(_DaemonFault):
    """kill -9, and a start later."""

    def begin(self):
        self.host.kill_daemon()

    def end(self):
        self.host.start_daemon(wait=False)


class RestartDaemon(_DaemonFault):
    """An orderly stop, and a start later."""

    def begin(self):
        self.host.stop_daemon()

    def end(self):
        self.host.start_daemon(wait=False)


class FreezeDaemon(_DaemonFault):
    """SIGSTOP, and SIGCONT later: often past the ttl."""

    def begin(self):
        self.host.freeze_daemon()

    def end(self):
        self.host.thaw_daemon()


class PowerOff(_DaemonFault):
    """Everything on the host ends at once; it boots again later."""

    def begin(self):
        self.host.power_off()

    def end(self):
        self.host.start(wait=False)


class FullDisk(Fault):
    def begin(self):
        self.host.machine.fill_disk()

    def end(self):
        self.host.machine.empty_disk()


class KillRelays(Fault):
    def begin(self):
        self.host.signal_relays(signal.SIGKILL)


class FreezeRelays(Fault):
    def begin(self):
        self.host.signal_relays(signal.SIGSTOP)

    def end(self):
        self.host.signal_relays(signal.SIGCONT)


class Unplug(Fault):
    """One device's endpoint ends; it comes back later."""

    def __init__(self, host, random, work):
        super().__init__(host, random, work)
        self._device = host.devices[random.choice(sorted(host.devices))]

    def begin(self):
        self._device.unplug()

    def end(self):
        self._device.plug()

    def __str__(self):
        return f"Unplug({self._device.name})"


class _HolderFault(Fault):
    """Of one holder of the host that runs when it begins."""

    KIND = workload.GuestLoop

    def __init__(self, host, random, work):
        super().__init__(host, random, work)
        self._random, self._work = random, work
        self.holder = None

    def begin(self):
        running = [holder for holder in self._work.running(self.KIND) if holder.host is self.host]
        if running:
            self.holder = self._random.choice(running)
            self.strike(self.holder)

    def strike(self, holder):
        raise NotImplementedError


class KillGuest(_HolderFault):
    def strike(self, holder):
        holder.kill9()


class KillClient(KillGuest):
    """A client of bare leases."""

    KIND = workload.BareLoop


class FreezeGuest(_HolderFault):
    def strike(self, holder):
        holder.freeze()

    def end(self):
        if self.holder is not None:
            self.holder.thaw()


class _StoreFault(Fault):
    """Of the host's store member. It excludes what happens to the daemon there, which a power loss may be."""

    @property
    def fate(self):
        return "daemon", self.host.name


class KillStore(_StoreFault):
    def begin(self):
        self.host.store.kill9()

    def end(self):
        self.host.store.start()


class FreezeStore(_StoreFault):
    def begin(self):
        self.host.store.freeze()

    def end(self):
        self.host.store.thaw()


class _NetworkFault(Fault):
    """One at a time, since its end mends the whole network."""

    @property
    def fate(self):
        return "network"

    @property
    def others(self):
        return [machine for machine in self.host.machine.network.machines if machine is not self.host.machine]

    def end(self):
        self.host.lab.network.heal()


class _Isolation(_NetworkFault):
    """Cut from all others: also a coordinator gets no answer then, from the store."""

    def begin(self):
        self.cut()
        self.host.lab.note("silent", host=self.host.name)

    def cut(self):
        raise NotImplementedError

    def end(self):
        self.host.lab.note("heard", host=self.host.name)
        super().end()


class Isolate(_Isolation):
    def cut(self):
        for other in self.others:
            self.host.lab.network.cut(self.host.machine, other)


class Mute(_Isolation):
    """What it sends reaches nobody; it hears all."""

    def cut(self):
        for other in self.others:
            self.host.lab.network.cut_one_way(self.host.machine, other)


class Deafen(_Isolation):
    """What others send does not reach it; it is heard."""

    def cut(self):
        for other in self.others:
            self.host.lab.network.cut_one_way(other, self.host.machine)


class IsolateCoordinator(Isolate):
    """Whoever that is when it begins, with clients and holders on its side."""

    def begin(self):
        self.host = self.host.lab.coordinator_now() or self.host
        super().begin()


class CutOnePair(_NetworkFault):
    """The host and one other, in one direction or in both."""

    def __init__(self, host, random, work):
        super().__init__(host, random, work)
        self._other = random.choice(self.others)
        self._both = random.random() < 0.5

    def begin(self):
        network = self.host.lab.network
        (network.cut if self._both else network.cut_one_way)(self.host.machine, self._other)


class CutFromStore(_NetworkFault):
    """Its store member and its client are cut from the other members; daemons still reach each other."""

    def begin(self):
        self.host.lab.network.cut_ports(self.host.machine, (7472, 7473))


class CutFromDaemons(_NetworkFault):
    """Its daemon is cut from the others; the store works."""

    def begin(self):
        self.host.lab.network.cut_ports(self.host.machine, (7471,))


class SlowLink(_NetworkFault):
    """Little passes to and from the host, and late: its packets stand in long queues."""

    _SHAPE = ("tbf", "rate", "256kbit", "burst", "4kb", "latency", "400ms")

    def begin(self):
        self.host.machine.run(["tc", "qdisc", "add", "dev", "eth0", "root", *self._SHAPE])

    def end(self):
        self.host.machine.run(["tc", "qdisc", "del", "dev", "eth0", "root"])


class AllDown(Fault):
    """Power loss of the whole site."""

    alone = True

    def begin(self):
        for host in self.host.lab.hosts.values():
            host.power_off()

    def end(self):
        for host in self.host.lab.hosts.values():
            if not host.is_on:
                host.start(wait=False)

    def __str__(self):
        return "AllDown"


ONE_HOST = (
    KillDaemon,
    RestartDaemon,
    FreezeDaemon,
    PowerOff,
    FullDisk,
    KillRelays,
    FreezeRelays,
    Unplug,
    KillGuest,
    KillClient,
    FreezeGuest,
)

CLUSTER = ONE_HOST + (
    KillStore,
    FreezeStore,
    Isolate,
    Mute,
    Deafen,
    IsolateCoordinator,
    CutOnePair,
    CutFromStore,
    CutFromDaemons,
    SlowLink,
    AllDown,
)

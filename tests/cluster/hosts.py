"""Hosts with usbleased, devices and holders on the machines of tests/lib/machines.py, all in one lab.

    with ClusterLab(hosts=3, devices={"h1": ["dongle"]}, candidates=3) as lab:
        lab.start()
        guest = lab.hosts["h1"].guest("g", ["dongle"])

candidates=0: every host is a cluster of one on SQLite. found=True: the cluster is made by `usblease cluster init`, `add`
and `join`, and each daemon runs its own etcd; otherwise everybody finds his files there, and the test runs etcd.
"""

import json
import pathlib
import shutil
import signal
import time
import uuid

import isolation
import machines
import processes
import usblease_lab
import waiting

DISK_MIB = 32
STORE_DISK_MIB = 512  # etcd writes its log in files of 64 MiB, and makes the next one in advance
CLUSTER_ID = "c0ffee00c0ffee00c0ffee00c0ffee00"
READY_S = 30
COMMAND_S = 60
PEER_PORT, STORE_CLIENT_PORT, STORE_PEER_PORT = 7471, 7472, 7473


class Holder(processes.Program):
    """tests/cluster/holder.cc on one host. What it knows goes to the host's histories.

    loop: of holders that follow each other, who share a history and a log.
    """

    def __init__(self, host, mode, name, devices, loop=None, holder_uuid=None, **options):
        self.host = host
        self.uuid = holder_uuid or str(uuid.uuid4())
        self.history = host.directory / "histories" / (loop or name)
        # One dash before uuid: what the daemon looks for in the command line of a guest's QEMU.
        arguments = [host.lab.programs / "tests/cluster/lease-holder", mode, "--socket", host.socket]
        arguments += ["--history", self.history, "--name", name]
        if mode == "guest":
            arguments += ["--run-dir", host.run_dir, "--pid-dir", host.pid_dir]
        if mode != "bare":
            arguments += ["-uuid", self.uuid]
        for device in devices:
            arguments += ["--device", device]
        for option, value in options.items():
            arguments += [f"--{option.replace('_', '-')}", value]
        super().__init__(name, host.machine.inside(arguments), host.directory / f"{loop or name}.out")

    def kill9(self):
        code = super().kill9()
        self.host.lab.note("killed", name=self.name)
        return code


class StoreMember(processes.Program):
    """etcd on one host, beside usbleased, as a candidate has it. members: hosts."""

    def __init__(self, host, members):
        self.host = host
        identity = host.state_dir / "cluster"
        arguments = ["etcd", "--name", host.name, "--data-dir", host.machine.disk / "etcd"]
        arguments += ["--initial-cluster-token", CLUSTER_ID, "--logger=zap", "--log-level=warn"]
        # A ttl of 1 s leaves no room for the second that an election takes at etcd's defaults.
        arguments += ["--heartbeat-interval=50", "--election-timeout=300"]
        arguments += ["--initial-cluster", ",".join(f"{m.name}={self.url(m, STORE_PEER_PORT)}" for m in members)]
        for option, port in (("client-urls", STORE_CLIENT_PORT), ("peer-urls", STORE_PEER_PORT)):
            advertise = "advertise-client-urls" if option == "client-urls" else "initial-advertise-peer-urls"
            arguments += [f"--listen-{option}", self.url(host, port), f"--{advertise}", self.url(host, port)]
        for side in ("--", "--peer-"):
            arguments += [f"{side}cert-file", identity / "host.pem", f"{side}key-file", identity / "host.key"]
            arguments += [f"{side}trusted-ca-file", identity / "ca.pem", f"{side}client-cert-auth"]
        # As usbleased sets it: a host may come from another address than its certificate names.
        arguments.append("--experimental-peer-skip-client-san-verification")
        super().__init__(f"etcd of {host.name}", host.machine.inside(arguments), host.directory / "etcd.log")
        self.wanted = False

    @staticmethod
    def url(host, port):
        return f"https://{host.address}:{port}"

    def start(self):
        self.wanted = True
        return super().start()

    def kill9(self):
        self.wanted = False
        return super().kill9()


class OwnStoreMember:
    """The etcd that usbleased runs by itself on one host, and starts again when it dies."""

    WORD = "bin/etcd"  # of its command line

    started = wanted = False  # not by us
    running = True

    def __init__(self, host):
        self.host = host

    def start(self):
        """That is usbleased's part."""

    def kill9(self):
        self.host.machine.signal(signal.SIGKILL, self.WORD)

    def freeze(self):
        self.host.machine.signal(signal.SIGSTOP, self.WORD)

    def thaw(self):
        self.host.machine.signal(signal.SIGCONT, self.WORD)


class Host:
    """One machine with one usbleased. settings: {group: {key: value}} of its configuration, beside the usual."""

    def __init__(self, lab, name, devices, settings, disk_mib):
        self.lab = lab
        self.name = name
        self.machine = machines.Machine(name, lab.network, disk_mib)
        self.address = self.machine.address
        self.directory = self.machine.directory
        self.state_dir = self.machine.disk / "state"
        self.run_dir = self.directory / "run"
        self.pid_dir = self.directory / "pids"
        self.socket = self.run_dir / "usbleased.sock"
        for directory in (self.pid_dir, self.directory / "histories"):
            directory.mkdir()
        self.devices = {
            device: usblease_lab.Device(device, f"{name}-{device}".upper(), self.directory, lab.programs)
            for device in devices
        }
        self.config = self.directory / "usbleased.conf"
        self.settings = {
            "daemon": {
                "host_id": name,
                "state_dir": self.state_dir,
                "run_dir": self.run_dir,
                "relay_path": lab.programs / "daemon/relay/usblease-relay",
                "libvirt_run_dir": self.pid_dir,
                "log_level": "debug",
            },
            "timing": {"profile": "fast"},
            "cluster": {"advertise": f"{self.address}:{PEER_PORT}"},
        } | settings
        for device in self.devices.values():
            self.settings[f"device {device.name}"] = {"endpoint": f"unix:{device.path}"}
        self.write_config()
        self.wanted = False  # its daemon is meant to run: should it end by itself, systemd would start it again
        self.is_on = True
        self.starts = 0  # of its daemon
        self.store = None  # a candidate's StoreMember
        self.daemon = self._program()

    def write_config(self):
        text = ""
        for group, keys in self.settings.items():
            text += f"[{group}]\n" + "".join(f"{key}={value}\n" for key, value in keys.items()) + "\n"
        self.config.write_text(text)

    def _program(self):
        self._notify = usblease_lab.NotifySocket(self.directory / "notify.sock")
        return self.machine.program(
            f"usbleased of {self.name}",
            [self.lab.programs / "daemon/usbleased", "--config", self.config],
            self.directory / "usbleased.log",
            {"NOTIFY_SOCKET": str(self._notify.path)},
        )

    # ---- the daemon. While it is dead or frozen the host is silent: it gets no answer to a renewal.

    def start(self, wait=True):
        """All that runs on it by itself."""
        self.is_on = True
        if self.store is not None:
            self.store.start()
        self.start_daemon(wait)

    def found_cluster(self):
        """Makes the first host of a cluster out of this cluster of one."""
        self._notify.drain()
        self.usblease("cluster", "init")
        self.wait_daemon()  # it starts anew by itself
        self.store = OwnStoreMember(self)

    def invite(self, host):
        """A join token."""
        return self.usblease_json("cluster", "add", host.name)["token"]

    def join(self, token):
        self._notify.drain()
        answer = self.usblease_json("cluster", "join", token)
        self.wait_daemon()
        if answer.get("store_member"):
            self.store = OwnStoreMember(self)

    def start_daemon(self, wait=True):
        self._notify.drain()
        self.wanted = True
        self.starts += 1
        self.lab.note("heard", host=self.name)
        self.daemon.start()
        if wait:
            self.wait_daemon()

    def wait_daemon(self):
        self._notify.wait_ready(self.daemon, READY_S)

    def stop_daemon(self):
        self.wanted = False
        self.daemon.stop()
        self.lab.note("silent", host=self.name)

    def kill_daemon(self):
        self.wanted = False
        self.daemon.kill9()
        self.lab.note("silent", host=self.name)

    def freeze_daemon(self):
        if not self.daemon.running:
            return  # it has ended by itself, and is about to be started again
        self.daemon.freeze()
        waiting.wait_until(f"{self.daemon.name} to be frozen", lambda: self._is_stopped(self.daemon.pid), 5)
        self.lab.note("silent", host=self.name)

    def thaw_daemon(self):
        self.lab.note("heard", host=self.name)
        self.daemon.thaw()

    @staticmethod
    def _is_stopped(pid):
        """SIGSTOP is on its way until the state says so."""
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
        return stat[stat.rindex(")") + 2] in "TtZ"

    def power_off(self):
        """The machine loses power: its processes end, also guests and relays, and what was in memory is gone.

        Devices stay: an endpoint is a box of its own.
        """
        self.wanted = self.is_on = False
        here = [holder for holder in self.lab.holders if isinstance(holder, Holder) and holder.host is self]
        guests = [holder for holder in here if holder.running]
        self.machine.power_off()
        self.lab.note("silent", host=self.name)
        for holder in guests:
            holder.wait_end()
            self.lab.note("killed", name=holder.name)
        for program in (self.daemon, self.store):
            if program is not None and program.started:
                program.wait_end()
        if self.store is not None:
            self.store.wanted = False
        for directory in (self.run_dir, self.pid_dir):
            shutil.rmtree(directory, ignore_errors=True)
        self.pid_dir.mkdir()

    def signal_relays(self, number):
        """Returns how many there are."""
        return len(self.machine.signal(number, "usblease-relay"))

    # ---- clients

    def command(self, *arguments, wrap=()):
        """wrap: a command that runs this one."""
        return self.machine.inside([*wrap, self.lab.programs / "cli/usblease", "-c", self.socket, *arguments])

    def usblease(self, *arguments, timeout_s=COMMAND_S):
        return processes.run(self.command(*arguments), timeout_s).stdout

    def usblease_json(self, *arguments, timeout_s=COMMAND_S):
        return json.loads(self.usblease("--json", *arguments, timeout_s=timeout_s))

    def usblease_fails(self, *arguments, timeout_s=COMMAND_S):
        """Runs a command that must fail; returns (exit code, stderr)."""
        done = processes.run(self.command(*arguments), timeout_s, check=False)
        if done.returncode == 0:
            raise AssertionError(f"usblease {' '.join(map(str, arguments))} should have failed but said: {done.stdout}")
        return done.returncode, done.stderr

    def background(self, name, *arguments, wrap=()):
        """Starts a command that waits or follows; its output is in .log. It ends with the lab."""
        program = processes.Program(name, self.command(*arguments, wrap=wrap), self.directory / f"{name}.out")
        self.lab.holders.append(program)
        return program.start()

    def holder(self, mode, name, devices, **options):
        """A Holder that is started. options: of tests/cluster/holder.cc."""
        holder = Holder(self, mode, name, devices, **options)
        self.lab.holders = [other for other in self.lab.holders if other.running] + [holder]
        return holder.start()

    def guest(self, name, devices, **options):
        return self.holder("guest", name, devices, **options)

    def view(self, device):
        """The device as `usblease list` has it; None before it is known."""
        rows = self.usblease_json("list").get("devices", [])
        return next((row for row in rows if row["device"]["name"] == device), None)

    def wait_state(self, device, state, timeout_s=20):
        return waiting.wait_until(
            lambda: f"{device} to be {state}, it is {self.view(device)}; log:\n{self.daemon.log.tail(40)}",
            lambda: (view := self.view(device)) and view["state"] == state and view,
            timeout_s,
        )


class ClusterLab:
    """hosts: how many. devices: {host name: [device name]}. settings: {host name or "": …} see Host.

    candidates: that many of them run a store member; 0: none, and they know nothing of each other.
    """

    def __init__(self, hosts, devices, candidates=0, settings=None, found=False):
        machines.LAB_DIR.mkdir()
        # The relay runs as nobody, who may not reach a build directory under somebody's home.
        self.programs = machines.LAB_DIR / "build"
        self.programs.mkdir()
        isolation.bind(usblease_lab.build_dir(), self.programs)
        self.holders = []
        self._notes = open(machines.LAB_DIR / "test-history", "a", encoding="utf-8", buffering=1)
        self.network = machines.Network()
        settings = settings or {}
        self.hosts = {}
        for number in range(1, hosts + 1):
            name = f"h{number}"
            disk_mib = STORE_DISK_MIB if found or number <= candidates else DISK_MIB
            more = settings.get("", {}) | settings.get(name, {})
            self.hosts[name] = Host(self, name, devices.get(name, ()), more, disk_mib)
        self._audit = {}
        self._found = found
        if candidates:
            self._make_cluster(list(self.hosts.values())[:candidates])

    def _make_cluster(self, candidates):
        words = [
            f"{'+' if host in candidates else ''}{host.name}={host.address}={host.state_dir / 'cluster'}"
            for host in self.hosts.values()
        ]
        processes.run([self.programs / "tests/cluster/make-cluster", CLUSTER_ID, *words])
        for host in candidates:
            host.store = StoreMember(host, candidates)

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        self.close()

    def start(self):
        for host in self.hosts.values():
            for device in host.devices.values():
                device.plug()
            host.start(wait=False)
        for host in self.hosts.values():
            host.wait_daemon()
        if self._found:
            first, *others = self.hosts.values()
            first.found_cluster()
            for host in others:
                host.join(first.invite(host))

    def close(self):
        for holder in self.holders:
            holder.stop()
        for host in self.hosts.values():
            host.daemon.thaw()
            host.daemon.stop()
            if host.store is not None:
                host.store.thaw()
                host.store.kill9()
            for device in host.devices.values():
                device.program.stop()
        self._notes.close()

    # ---- the cluster

    def coordinator(self, ask=None, timeout_s=20):
        """The host that coordinates, as `ask` (a host; default: any that answers) sees it."""

        def known():
            for host in [ask] if ask else self.hosts.values():
                if not host.daemon.running:
                    continue
                done = processes.run(host.command("--json", "status"), COMMAND_S, check=False)
                name = json.loads(done.stdout).get("coordinator") if done.returncode == 0 else None
                if name:
                    return self.hosts[name]
            return None

        return waiting.wait_until("a coordinator", known, timeout_s)

    def store_leader(self):
        """The host whose store member leads; None: nobody says so."""
        for host in self.hosts.values():
            if host.store is None:
                continue
            identity = host.state_dir / "cluster"
            command = ["etcdctl", "--endpoints", f"https://{host.address}:{STORE_CLIENT_PORT}"]
            command += ["--cacert", identity / "ca.pem", "--cert", identity / "host.pem", "--key", identity / "host.key"]
            done = host.machine.run(command + ["endpoint", "status", "--write-out", "json"], check=False)
            if done.returncode == 0:
                status = json.loads(done.stdout)[0]["Status"]
                if status["leader"] == status["header"]["member_id"]:
                    return host
        return None

    def coordinator_now(self):
        """The same at a first look; None: nobody says."""
        try:
            return self.coordinator(timeout_s=0)
        except waiting.TimedOut:
            return None

    # ---- the history

    def note(self, event, **members):
        """A line of the test's own in the history: see history.py."""
        line = {"t_ns": time.monotonic_ns(), "process": "test", "event": event} | members
        self._notes.write(json.dumps(line) + "\n")

    def history_files(self):
        files = [machines.LAB_DIR / "test-history"]
        for host in self.hosts.values():
            files += sorted((host.directory / "histories").iterdir())
        return files

    def packets(self):
        """What the devices themselves say: who made them do something, and under which token."""
        # The devices stamp with CLOCK_BOOTTIME; the machine does not sleep while it is being tested.
        offset_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
        events = []
        for host in self.hosts.values():
            for device in host.devices.values():
                for line in device.log.lines():
                    row = json.loads(line)
                    if row["event"] != "line":
                        continue
                    word, guest, token, _number = row["text"].split()
                    assert word == "hold", f"{device.name} was told {row['text']}"
                    event = {"t_ns": row["t_ns"] - offset_ns, "process": device.name, "event": "packet"}
                    events.append(event | {"device": device.name, "host": host.name, "guest": guest, "token": int(token)})
        return events

    def collect_audit(self, host):
        """Remembers the audit trail as `host` tells it: the cluster keeps a bounded number of lines."""
        for row in host.usblease_json("events").get("events", []):
            self._audit.setdefault(int(row["seq"]), row)

    def audit(self):
        now_ns = time.monotonic_ns()
        return [
            {"t_ns": now_ns + place, "process": "audit", "event": "audit", "seq": seq, "kind": row["kind"]}
            | {"device": row.get("device", ""), "token": int(row.get("token", 0)), "host": row.get("host", "")}
            | {"guest_uuid": row.get("guest_uuid", "")}
            for place, (seq, row) in enumerate(sorted(self._audit.items()))
        ]

    def states(self, host):
        now_ns = time.monotonic_ns()
        rows = host.usblease_json("list").get("devices", [])
        return [
            {"t_ns": now_ns, "process": "test", "event": "state", "device": row["device"]["name"]}
            | {"last_token": int(row["device"].get("last_token", 0))}
            | {"token": int(row["device"].get("lease", {}).get("token", 0))}
            for row in rows
        ]

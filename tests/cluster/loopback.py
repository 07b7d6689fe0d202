"""Hosts on loopback addresses: real daemons and, once a cluster is founded, the real etcd that they run."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

BUILD = pathlib.Path(os.environ.get("USBLEASE_BUILD", pathlib.Path(__file__).resolve().parents[2] / "build")).resolve()
WAIT_S = 30
NOT_NOW = 5  # exit code of usblease: try again


def wait_until(what, condition, within_s=WAIT_S):
    """The first true value of condition(), within a bound."""
    end = time.monotonic() + within_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"waited {within_s} s for {what}")
        time.sleep(0.02)


class Host:
    """One host: a daemon with a directory and a loopback address of its own."""

    def __init__(self, root, number, port, devices=(), name=None):
        self.name = name or f"h{number}"
        self.root = root / f"{number}-{self.name}"
        self.root.mkdir()
        self.socket = self.root / "run" / "usbleased.sock"
        self.address = f"127.0.7.{number}:{port}"
        text = f"""[daemon]
host_id={self.name}
state_dir={self.root}/state
run_dir={self.root}/run
relay_path={BUILD}/daemon/relay/usblease-relay
libvirt_uri=test:///default
[cluster]
listen={self.address}
[timing]
profile=fast
"""
        for device in devices:
            text += f"[device {device}]\nendpoint=unix:{root}/{device}.sock\n"
        (self.root / "conf").write_text(text)
        self.daemon = None

    def start(self):
        log = open(self.root / "log", "ab")
        self.daemon = subprocess.Popen(
            [BUILD / "daemon" / "usbleased", "-c", self.root / "conf"], stdout=log, stderr=log
        )
        log.close()
        wait_until(f"{self.name} to serve", lambda: self.run("status").returncode == 0)

    def stop(self, how=signal.SIGTERM):
        if self.daemon is not None:
            self.daemon.send_signal(how)
            self.daemon.wait()
            self.daemon = None

    def end_store_member(self):
        """The store member outlives the daemon: that is its point."""
        try:
            pid = int((self.root / "state/cluster/etcd/process").read_text().split()[1])
            if f"{self.root}/state" in pathlib.Path(f"/proc/{pid}/environ").read_text():
                os.kill(pid, signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError, IndexError):
            pass

    def run(self, *words):
        return subprocess.run(
            [BUILD / "cli" / "usblease", "-c", self.socket, "--json", *words],
            capture_output=True,
            text=True,
            check=False,
        )

    def ask(self, *words):
        done = self.run(*words)
        if done.returncode != 0:
            raise AssertionError(f"{self.name}: {' '.join(words)}: {done.stderr}{self.tail()}")
        return json.loads(done.stdout)

    def tail(self):
        return "\n" + "\n".join((self.root / "log").read_text().splitlines()[-15:])

    def status(self):
        done = self.run("cluster", "status")
        return json.loads(done.stdout) if done.returncode == 0 else None

    def roles(self):
        """{"h1": "STORE_ROLE_VOTER", …} as this host is told."""
        status = self.status()
        if status is None:
            return {}
        return {
            host["host"]["id"]: host["member"].get("store", {}).get("role", "STORE_ROLE_NONE")
            for host in status["hosts"]
            if host.get("member", {}).get("standing") == "STANDING_JOINED" and host["live"]
        }


class LoopbackTest(unittest.TestCase):
    """A class has a port of its own, so that classes may run at the same time."""

    port = 7571

    def setUp(self):
        self.root = pathlib.Path(tempfile.mkdtemp(prefix="usblease-membership-"))
        self.hosts = {}
        self.addCleanup(self.clean)

    def clean(self):
        for host in self.hosts.values():
            host.stop(signal.SIGKILL)
            host.end_store_member()
        shutil.rmtree(self.root)

    def host(self, number, devices=(), name=None):
        host = Host(self.root, number, self.port, devices, name)
        self.hosts[number] = host
        host.start()
        return host

    def founded(self, number=1):
        first = self.host(number, ["dongle"])
        wait_until("the device", lambda: first.ask("list")["devices"])
        before = first.ask("status")["cluster_id"]
        reply = first.ask("cluster", "init")
        self.assertEqual(reply["cluster_id"], before)
        wait_until("a coordinator on etcd", lambda: (first.status() or {}).get("store_members"))
        return first

    def joined(self, first, number):
        host = self.host(number)
        token = first.ask("cluster", "add", host.name)["token"]
        self.assertTrue(self.ask_when_it_can(host, "cluster", "join", token)["store_member"])
        wait_until(f"{host.name} to vote", lambda: first.roles().get(host.name) == "STORE_ROLE_VOTER")
        wait_until(f"{host.name} to be served", lambda: host.roles().keys() >= {first.name, host.name})
        return host

    @staticmethod
    def ask_when_it_can(host, *words):
        """What a daemon that has just started, or a store whose member has, cannot do yet it can some seconds later."""
        done = wait_until(
            f"{host.name} to {' '.join(words)}",
            lambda: (tried := host.run(*words)).returncode != NOT_NOW and tried,
        )
        if done.returncode != 0:
            raise AssertionError(f"{host.name}: {' '.join(words)}: {done.stderr}{host.tail()}")
        return json.loads(done.stdout)

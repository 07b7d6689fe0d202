"""Bad input of every kind: each gets a clear error, the daemon goes on serving, and nothing is lost."""

import errno
import os
import re
import socket
import sqlite3
import struct
import unittest

import boottime
import isolation
import processes
import waiting
from usblease_lab import LAB_DIR, RUN_DIR, SOCKET, TIMING, Lab

MS = 1_000_000
EXIT_REFUSED, EXIT_TIMED_OUT, EXIT_UNAVAILABLE = 3, 4, 5
STATE = LAB_DIR / "state"
MISBEHAVING = {  # device: what usbredir-dongle --misbehave does
    "garbage": "garbage",
    "half": "close-mid-packet",
    "silent": "silent",
    "empty": "no-device",
    "greedy": "never-close",
}

# Frames of the request protocol (docs/protocol.md) as bytes: what no client of ours would send needs no client of ours.
HELLO = b"\x12\x02\x08\x01"  # hello { version: 1 }
LIST_DEVICES = b"\x1a\x00"  # list_devices {}


def frame(number, body):
    """ClientFrame { id: number, body }, number below 2^28."""
    payload = b"\x08" + bytes(number >> shift & 0x7F | 0x80 for shift in (0, 7, 14)) + bytes([number >> 21]) + body
    return struct.pack(">I", len(payload)) + payload


def client(first=b""):
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(20)
    connection.connect(str(SOCKET))
    connection.sendall(first)
    return connection


def read_to_end(connection):
    """All bytes up to the daemon's close."""
    data = b""
    while chunk := connection.recv(65536):
        data += chunk
    return data


def fill(path):
    """Writes a file until not one byte more finds room."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        for size in (65536, 4096, 1):
            try:
                while os.write(file, b"x" * size):
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
    finally:
        os.close(file)


def database(state):
    """The database's files as {name: bytes}.

    Not its lock, which names the last process that opened it; nor an empty log: SQLite leaves one where it only looked.
    """
    files = {file.name: file.read_bytes() for file in state.glob("usblease.db*") if file.suffix != ".lock"}
    return {name: data for name, data in files.items() if data or not name.endswith("-wal")}


class BadInputTest(unittest.TestCase):
    """One lab, whose state lies on a small file system, with good devices and with endpoints that misbehave."""

    @classmethod
    def setUpClass(cls):
        settings = {"dongle": {}, "other": {}, "strong": {"min_rung": "kernel"}} | {name: {} for name in MISBEHAVING}
        cls.lab = Lab(devices=settings)
        cls.addClassCleanup(cls.lab.close)
        STATE.mkdir()
        isolation.mount("tmpfs", STATE, "tmpfs", options="size=8m,mode=700")
        for name, device in cls.lab.devices.items():
            device.plug(*(("--misbehave", MISBEHAVING[name]) if name in MISBEHAVING else ()))
        cls.lab.start_libvirtd()
        cls.lab.start_daemon()
        for name in ("dongle", "other"):
            cls.wait_state(name, "free")

    def setUp(self):
        self.daemon_pid = self.lab.daemon.pid

    def tearDown(self):
        if not self.lab.daemon.running:
            self.lab.start_daemon()
        for guest in self.lab.guests.values():
            if guest.running:
                guest.destroy()
        for name in ("dongle", "other"):
            device = self.lab.devices[name]
            if "--misbehave" in device.program.arguments:
                device.unplug()
            if not device.program.running:
                device.plug()
            self.wait_state(name, "free")

    # ---- helpers

    @classmethod
    def view(cls, device):
        """The device as `usblease list` has it; None before its home has reported it for the first time."""
        rows = cls.lab.usblease_json("list").get("devices", [])
        return next((row for row in rows if row["device"]["name"] == device), None)

    @classmethod
    def wait_state(cls, device, state, timeout_s=20):
        return waiting.wait_until(
            lambda: f"{device} to be {state}, it is {cls.view(device)}; log:\n{cls.lab.daemon.log.tail(40)}",
            lambda: (view := cls.view(device)) and view["state"] == state and view,
            timeout_s,
        )

    def assert_serves(self):
        """The daemon is the one that it was, and answers everybody else."""
        self.assertTrue(self.lab.daemon.running, self.lab.daemon.log.tail())
        self.assertEqual(self.lab.daemon.pid, self.daemon_pid)
        self.assertIn("dongle", self.lab.usblease("list"))

    def other_config(self, name, **changed):
        """The lab's configuration with other values for some keys of [daemon]."""
        text = self.lab.config.read_text()
        for key, value in changed.items():
            text = re.sub(rf"(?m)^{key}=.*$", f"{key}={value}", text)
        return self.write_config(name, text)

    def write_config(self, name, text):
        path = LAB_DIR / f"{name}.conf"
        path.write_text(text)
        return path

    def run_daemon(self, config, *before):
        """Runs a daemon that must end by itself; returns (exit code, log)."""
        done = processes.run([*before, self.lab.programs / "daemon/usbleased", "--config", config], 20, check=False)
        return done.returncode, done.stderr

    def assert_not_started(self, config, *sentences, before=()):
        code, log = self.run_daemon(config, *before)
        self.assertEqual(code, 1, log)
        for sentence in ("cannot start: ", *sentences):
            self.assertIn(sentence, log)

    # ---- two daemons

    def test_second_daemon_on_one_state_directory(self):
        config = self.other_config("same-state", run_dir=LAB_DIR / "same-state-run")
        self.assert_not_started(config, f"{STATE} is in use by another usbleased", "stop it, or give this one")
        self.assert_serves()

    def test_second_daemon_on_one_socket(self):
        config = self.other_config("same-socket", state_dir=LAB_DIR / "same-socket-state")
        self.assert_not_started(config, f"another process already listens on {SOCKET}; stop it first")
        self.assert_serves()

    def test_file_in_the_place_of_the_socket(self):
        run_dir = LAB_DIR / "occupied"
        run_dir.mkdir()
        (run_dir / "usbleased.sock").write_text("precious")
        config = self.other_config("occupied", run_dir=run_dir, state_dir=LAB_DIR / "occupied-state")
        self.assert_not_started(config, f"{run_dir}/usbleased.sock exists and is not a socket; move it away")
        self.assertEqual((run_dir / "usbleased.sock").read_text(), "precious")
        self.assert_serves()

    # ---- records that are not ours, not of now, or not whole

    def assert_refuses_state(self, damage, *sentences):
        """What damage() makes of the state is refused and left as it is; the good state then serves as before."""
        token = self.view("dongle")["device"]["last_token"]
        self.lab.daemon.stop()
        good = database(STATE), (STATE / "home").read_bytes()
        try:
            damage()
            bad = database(STATE), (STATE / "home").read_bytes()
            self.assertNotEqual(bad, good)
            self.assert_not_started(self.lab.config, *sentences)
            left = database(STATE), (STATE / "home").read_bytes()
            self.assertEqual(left, bad, "the refused start changed something")
        finally:
            self.put_database(good[0])
            (STATE / "home").write_bytes(good[1])
        self.lab.start_daemon()
        self.assertEqual(self.wait_state("dongle", "free")["device"]["last_token"], token)

    def put_database(self, files):
        for file in STATE.glob("usblease.db*"):
            file.unlink()
        for name, data in files.items():
            (STATE / name).write_bytes(data)

    def used_once(self):
        """So that there is a record to lose."""
        guest = self.lab.guest("before", assignments=["dongle"])
        guest.start(wait=False)
        self.wait_state("dongle", "granted")
        guest.destroy()
        self.wait_state("dongle", "free")

    def test_database_of_another_cluster(self):
        run_dir, state = LAB_DIR / "stranger-run", LAB_DIR / "stranger-state"
        config = self.other_config("stranger", run_dir=run_dir, state_dir=state)
        stranger = processes.Program(
            "another cluster", [self.lab.programs / "daemon/usbleased", "--config", config], LAB_DIR / "stranger.log"
        ).start()
        stranger.wait_line(r"\bready\b")
        self.assertEqual(stranger.stop(), 0, stranger.log.tail())
        self.assert_refuses_state(
            lambda: self.put_database(database(state)),
            "is the database of another cluster",
            "Put back this cluster's database",
        )

    def test_newer_database(self):
        def upgrade():
            with sqlite3.connect(STATE / "usblease.db") as connection:
                connection.execute("PRAGMA user_version = 99")
            connection.close()

        self.assert_refuses_state(
            upgrade, "format 99, newer than this program's", "Install the version of usblease that wrote it"
        )

    def test_database_that_was_cut_off(self):
        self.used_once()
        size = (STATE / "usblease.db").stat().st_size
        for length in (0, 50, 4096, size - 4096, size - 1):
            with self.subTest(length=length):
                self.assert_refuses_state(
                    lambda length=length: os.truncate(STATE / "usblease.db", length),
                    "Nothing was changed",
                    "from one backup",
                )

    def test_database_that_is_gone(self):
        self.used_once()
        self.assert_refuses_state((STATE / "usblease.db").unlink, "but it is gone", "from one backup")

    def test_damaged_home_file(self):
        def flip(at):
            data = bytearray((STATE / "home").read_bytes())
            data[at] ^= 1
            (STATE / "home").write_bytes(data)

        for at in (0, 20, -1):
            with self.subTest(at=at):
                self.assert_refuses_state(lambda at=at: flip(at), f"{STATE}/home is damaged", "move the file away")
        self.assert_refuses_state(lambda: os.truncate(STATE / "home", 30), f"{STATE}/home is damaged", "cut short")

    # ---- a full disk

    def test_full_disk_refuses_what_is_new_and_keeps_what_runs(self):
        guest = self.lab.guest("runs", assignments=["dongle"])
        guest.start()
        guest.wait_pong(self.lab.devices["dongle"].serial)
        token = self.view("dongle")["device"]["lease"]["token"]
        mark = guest.console.mark()
        fill(STATE / "fill")
        try:
            code, error = self.lab.usblease_fails("attach", "runs", "other")
            self.assertEqual(code, EXIT_UNAVAILABLE, error)
            self.assertRegex(error, "the disk is full; free some room|make room on that file system")
            code, error = self.lab.usblease_fails("revoke", "dongle", "--reason", "no room for this either")
            self.assertEqual(code, EXIT_UNAVAILABLE, error)
            self.assertRegex(self.lab.usblease_json("status")["store_health"], "the disk is full; free some room")
            past_ns = boottime.now_ns() + 2 * TIMING["ttl_ms"] * MS
            waiting.wait_until("two lifetimes", lambda: boottime.now_ns() > past_ns, 20)
            guest.wait_pong(self.lab.devices["dongle"].serial, guest.console.mark())
            self.assertEqual(guest.console.matches("usb-remove|io-error|silence", mark), [])
            self.assert_serves()
        finally:
            (STATE / "fill").unlink()
        self.wait_state("other", "free")
        mark = guest.console.mark()
        self.lab.usblease("attach", "runs", "other")
        guest.wait_pong(self.lab.devices["other"].serial, mark)
        self.assertEqual(self.view("dongle")["device"]["lease"]["token"], token)
        self.assertEqual(self.lab.usblease_json("status")["store_health"], "ok")
        self.assert_serves()

    def test_full_disk_delays_what_goes_back(self):
        guest = self.lab.guest("leaves", assignments=["dongle"])
        mark = self.lab.daemon.log.mark()
        guest.start(wait=False)
        self.lab.daemon.wait_line('armed DEVICE="dongle"', since=mark)
        fill(STATE / "fill")
        try:
            guest.destroy()
            self.lab.daemon.wait_line("a guest's start has ended", since=mark)
            past_ns = boottime.now_ns() + TIMING["ttl_ms"] * MS
            waiting.wait_until("a lifetime", lambda: boottime.now_ns() > past_ns, 20)
            self.assertNotEqual(self.view("dongle")["state"], "free")  # what is not on disk has not happened
            self.assert_serves()
        finally:
            (STATE / "fill").unlink()
        self.wait_state("dongle", "free")
        self.assert_serves()

    def test_start_on_a_full_disk(self):
        token = self.view("dongle")["device"]["last_token"]
        self.lab.daemon.kill9()
        fill(STATE / "fill")
        try:
            self.assert_not_started(self.lab.config, "the disk is full; free some room")
        finally:
            (STATE / "fill").unlink()
        self.lab.start_daemon()
        self.assertEqual(self.wait_state("dongle", "free")["device"]["last_token"], token)

    # ---- another clock

    def test_shifted_clock(self):
        code, log = self.run_daemon(self.lab.config, "unshare", "--time", "--boottime", "1000", "--fork")
        self.assertEqual(code, 1, log)
        self.assertIn("a time namespace whose CLOCK_BOOTTIME is shifted by 1000 s", log)
        self.assertIn("Start it outside of that time namespace", log)
        self.assert_serves()

    # ---- clients

    def assert_closed_with(self, sentence, sent):
        with client() as connection:
            try:
                connection.sendall(sent)
            except (BrokenPipeError, ConnectionResetError):
                pass  # closed before all of it was read
            self.assertIn(sentence.encode(), read_to_end(connection))
        self.assert_serves()

    def test_client_that_speaks_another_protocol(self):
        self.assert_closed_with("bytes was announced; at most", b"GET / HTTP/1.1\r\nHost: usblease\r\n\r\n")

    def test_client_with_an_oversized_frame(self):
        header = struct.pack(">I", 1024 * 1024 + 1)
        self.assert_closed_with("a frame of 1048577 bytes was announced", frame(1, HELLO) + header)

    def test_client_with_a_garbled_frame(self):
        self.assert_closed_with("is not a request", frame(1, HELLO) + struct.pack(">I", 4) + b"\xff" * 4)

    def test_client_without_a_hello(self):
        self.assert_closed_with("the first frame of a connection must be Hello", frame(1, LIST_DEVICES))

    def test_client_that_stops_in_the_middle_of_a_frame(self):
        half = frame(2, LIST_DEVICES)[:6]
        with client(frame(1, HELLO)[:6]) as before_hello, client(frame(1, HELLO) + half) as after_hello:
            self.assert_serves()
            self.assertIn(b"no Hello came", read_to_end(before_hello))
            # Whoever said hello may take all the time he wants: he costs a few bytes, and is still served.
            after_hello.sendall(frame(2, LIST_DEVICES)[6:])
            answer = b""
            while b"dongle" not in answer:
                chunk = after_hello.recv(65536)
                self.assertNotEqual(chunk, b"", "the daemon closed the connection")
                answer += chunk
        self.assert_serves()

    def test_client_that_asks_much_and_never_reads(self):
        with client(frame(1, HELLO)) as connection:
            connection.settimeout(2)
            asked = 1
            with self.assertRaises(TimeoutError):  # the daemon stopped to take more
                while asked < 1_000_000:
                    asked += 1
                    connection.sendall(frame(asked, LIST_DEVICES))
            self.assert_serves()
        self.assert_serves()

    # ---- the configuration

    def assert_bad_config(self, name, text, sentence):
        """The sentence is about the last line of the text."""
        config = self.write_config(name, text)
        code, log = self.run_daemon(config)
        self.assertEqual(code, 2, log)
        self.assertIn(f"{config}:{len(text.splitlines())}: {sentence}", log)

    def test_config_errors_name_file_and_line(self):
        good = "[daemon]\nhost_id=lab\n"
        self.assert_bad_config("key", good + "hostid=lab", "[daemon] hostid: no such key; allowed here are: ")
        self.assert_bad_config("group", good + "[demon]", "[demon]: no such group; allowed are: ")
        self.assert_bad_config("value", good + "[timing]\nttl_ms=soon", "[timing] ttl_ms: a whole number from ")
        self.assert_bad_config("endpoint", good + "[device a]\nendpoint=/run/a", "[device a] endpoint: write unix:/")
        two = "[device a]\nendpoint=unix:/run/a\n[device b]\n"
        # The error stands at the device's group.
        config = self.write_config("two", two + "endpoint=unix:/run/a\n")
        code, log = self.run_daemon(config)
        self.assertEqual(code, 2, log)
        self.assertIn(f"{config}:3: [device b]: device a has the same endpoint=; one physical device has one name", log)

    # ---- endpoints

    def test_misbehaving_endpoints_are_absent_and_say_why(self):
        for device, why in {
            "garbage": "sends what is not usbredir",
            "half": "closed the stream within its hello",
            "silent": "says no hello within",
            "empty": "announces no device within",
            "greedy": "within 3000 ms",
        }.items():
            with self.subTest(device=device):
                view = waiting.wait_until(
                    f"a reason for {device}",
                    lambda device=device: (v := self.view(device)) and v["device"]["homes"][0].get("detail") and v,
                    20,
                )
                self.assertEqual(view["state"], "absent")
                self.assertIn(why, view["device"]["homes"][0]["detail"])
                self.assertIn(why, self.lab.usblease("info", device))

    def test_endpoint_that_never_closes_is_never_passed_on(self):
        for name in ("first", "second"):
            self.lab.guest(name).start(wait=False)
        device = self.lab.devices["other"]
        device.unplug()  # nobody streams, so nobody notices
        device.plug("--misbehave", "never-close")
        self.lab.usblease("attach", "first", "other")
        token = self.view("other")["device"]["lease"]["token"]
        self.lab.usblease("revoke", "other", "--reason", "its time is over")
        self.wait_state("other", "fencing")
        code, error = self.lab.usblease_fails("attach", "second", "other", "--wait", "5")  # longer than a lifetime
        self.assertEqual(code, EXIT_TIMED_OUT, error)
        self.assertIn("token", error)
        self.lab.restart_daemon()
        view = self.wait_state("other", "fencing")
        self.assertEqual(view["device"]["lease"]["token"], token)
        device.unplug()  # the kernel ends the stream for it
        waiting.wait_until("the end of the lease", lambda: self.view("other")["state"] in ("free", "absent"), 20)
        device.plug()
        self.wait_state("other", "free")
        self.lab.usblease("attach", "second", "other")
        self.assertGreater(int(self.view("other")["device"]["lease"]["token"]), int(token))

    def test_device_that_demands_a_stronger_fence(self):
        self.wait_state("strong", "free")
        self.lab.guest("weak").start(wait=False)
        code, error = self.lab.usblease_fails("attach", "weak", "strong")
        self.assertEqual(code, EXIT_REFUSED, error)
        self.assertIn("the policy of strong demands a stronger fence than its home lab has", error)
        self.assertIn("see `usblease host info` there", error)

    # ---- the hook

    def hook(self, guest, operation, sub, xml):
        return processes.run(
            [self.lab.programs / "plugin/libvirt/usblease-hook", guest, operation, sub, "-"],
            check=False,
            environment={"USBLEASE_CONFIG": str(self.lab.config)},
            text_in=xml,
        )

    def test_hook_with_endless_xml(self):
        padding = "<!-- much ado about nothing -->\n" * (50 * 1024 * 1024 // 32)
        xml = f"<domain type='qemu'><name>big</name>{padding}<metadata>usblease</metadata></domain>"
        done = self.hook("big", "prepare", "begin", xml)
        self.assertEqual(done.returncode, 1)
        self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        self.assertIn("domain XML is larger than 16 MiB and may declare USB devices; make it smaller", done.stderr)
        self.assert_serves()

    def test_hook_with_xml_that_ends_early(self):
        done = self.hook("torn", "prepare", "begin", "<domain type='qemu'><metadata><usblease:dev")
        self.assertEqual(done.returncode, 1)
        self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        self.assertIn("guest torn: ", done.stderr)

    def test_release_of_a_refused_start_leaves_the_running_one_alone(self):
        mark = self.lab.daemon.log.mark()
        self.lab.guest("holds", assignments=["dongle"]).start(wait=False)
        self.lab.daemon.wait_line('armed DEVICE="dongle"', since=mark)
        lease = self.view("dongle")["device"]["lease"]
        xml = (LAB_DIR / "holds.xml").read_text()
        for operation in ("stopped", "release"):
            done = self.hook("holds", operation, "end", xml)
            self.assertEqual((done.returncode, done.stderr), (0, ""))
        past_ns = boottime.now_ns() + TIMING["ttl_ms"] * MS
        waiting.wait_until("a lifetime", lambda: boottime.now_ns() > past_ns, 20)
        self.assertEqual(self.view("dongle")["device"]["lease"], lease)
        self.assertEqual(self.lab.daemon.log.matches("the stream ended", mark), [])


if __name__ == "__main__":
    unittest.main()

"""Who comes to a daemon's port and is no host of its cluster, or one that says what no host says: refused before a byte of what
it sends is read, told why by TLS's alert, named in the log; and the daemon goes on."""

import pathlib
import socket
import ssl
import subprocess
import time
import unittest

from loopback import BUILD, LoopbackTest, wait_until

HOSTS, JOIN = "usblease/1", "usblease-join/1"


class BadPeersTest(LoopbackTest):
    port = 7631

    def setUp(self):
        super().setUp()
        self.first = self.founded()
        self.cluster_id = self.first.ask("status")["cluster_id"]
        self.own = self.first.root / "state/cluster"

    def tearDown(self):
        """Whatever came, the daemon serves, and nobody is in its cluster."""
        self.assertEqual(self.first.ask("status")["coordinator"], "h1")
        self.assertEqual(set(self.first.roles()), {"h1"})

    # ---- certificates

    def made(self, *words):
        directory = self.root / f"peer-{len(list(self.root.iterdir()))}"
        words = [str(word).replace("DIRECTORY", str(directory)) for word in words]
        subprocess.run([BUILD / "tests/cluster/make-cluster", *words], check=True)
        return directory

    def by_our_ca(self, end_s, cluster_id=None, host="h7"):
        end = int(time.time()) + end_s
        return self.made("--by", self.own, end, cluster_id or self.cluster_id, f"{host}=127.0.7.7=DIRECTORY")

    # ---- connections

    def context(self, identity, protocols=(HOSTS,), version=ssl.TLSVersion.TLSv1_3):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = version
        if protocols:
            context.set_alpn_protocols(list(protocols))
        if identity is not None:
            context.load_cert_chain(identity / "host.pem", identity / "host.key")
        return context

    def connect(self, context=None):
        address, port = self.first.address.rsplit(":", 1)
        raw = socket.create_connection((address, int(port)), timeout=10)
        self.addCleanup(raw.close)
        if context is None:
            return raw
        tls = context.wrap_socket(raw)
        self.addCleanup(tls.close)
        return tls

    def refusal(self, context, sent=b"\0\0\0\1x"):
        """What TLS says to this client; it sends a frame without waiting for anything."""
        try:
            tls = self.connect(context)
            tls.sendall(sent)
            self.assertEqual(tls.recv(4096), b"", "it was answered")
            return "closed"
        except ssl.SSLError as error:
            return (error.reason or str(error)).upper().replace(" ", "_")
        except ConnectionResetError:
            return "reset"

    def wait_log(self, pattern):
        log = pathlib.Path(self.first.root / "log")
        wait_until(f"the log to say {pattern}; it says {self.first.tail()}", lambda: pattern in log.read_text(), 5)

    # ---- tests: certificates

    def test_own_kind_is_let_in(self):
        """The test's own means: a host of the cluster is greeted, by an empty frame."""
        tls = self.connect(self.context(self.own))
        self.assertEqual(tls.recv(4), b"\0\0\0\0")
        self.assertEqual(tls.selected_alpn_protocol(), HOSTS)

    def test_another_ca(self):
        stranger = self.made("--stranger", self.cluster_id, "h2=127.0.7.2=DIRECTORY")
        self.assertIn("UNKNOWN_CA", self.refusal(self.context(stranger)))
        self.wait_log("not of this cluster's CA")

    def test_expired(self):
        self.assertIn("EXPIRED", self.refusal(self.context(self.by_our_ca(-60))))
        self.wait_log("has expired")

    def test_not_valid_yet(self):
        self.assertIn("EXPIRED", self.refusal(self.context(self.by_our_ca(3 * 86_400))))
        self.wait_log("not valid yet")

    def test_another_cluster(self):
        other = self.by_our_ca(3_600, cluster_id="0123456789abcdef0123456789abcdef")
        self.assertIn("BAD_CERTIFICATE", self.refusal(self.context(other)))
        self.wait_log("of another cluster")

    def test_no_certificate(self):
        self.assertIn("CERTIFICATE_REQUIRED", self.refusal(self.context(None)))

    def test_another_protocol(self):
        self.assertIn("APPLICATION_PROTOCOL", self.refusal(self.context(self.own, ("h2",))))
        self.assertIn("APPLICATION_PROTOCOL", self.refusal(self.context(self.own, ())))

    def test_older_tls(self):
        self.assertIn("PROTOCOL_VERSION", self.refusal(self.context(self.own, version=ssl.TLSVersion.TLSv1_2)))

    def test_wrong_host_at_an_address(self):
        """h2 has moved, and somebody else of the cluster answers where it was."""
        second = self.joined(self.first, 2)
        second.stop()
        second.end_store_member()
        impostor = self.by_our_ca(3_600, host="h3")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.set_alpn_protocols([HOSTS])
        context.load_cert_chain(impostor / "host.pem", impostor / "host.key")
        address, port = second.address.rsplit(":", 1)
        listening = socket.create_server((address, int(port)))
        self.addCleanup(listening.close)
        listening.settimeout(10)
        accepted, _ = listening.accept()
        accepted.settimeout(10)
        self.addCleanup(accepted.close)
        with self.assertRaises((ssl.SSLError, ConnectionError)) as caught:
            tls = context.wrap_socket(accepted, server_side=True)
            self.assertEqual(tls.recv(16), b"", "the dialer has sent something")
            raise ConnectionResetError("closed")
        self.assertRegex(str(caught.exception), "BAD_CERTIFICATE|bad certificate|closed|reset")
        self.wait_log("it is host h3, not h2")
        accepted.close()
        listening.close()
        second.start()
        wait_until("h2 again", lambda: "h2" in self.first.roles())
        self.first.ask("cluster", "transfer", "h1")
        self.ask_when_it_can(self.first, "cluster", "remove", "h2")
        wait_until("the rest", lambda: set(self.first.roles()) == {"h1"})

    # ---- tests: what is sent

    def test_garbage_instead_of_tls(self):
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\0" * 4096, bytes(range(256)) * 64, b"\x16\x03\x01\xff\xff"):
            raw = self.connect()
            raw.sendall(garbage)
            raw.settimeout(10)
            try:
                while raw.recv(4096):  # an alert at most, then the end; the last one at the handshake's bound
                    pass
            except ConnectionResetError:
                pass

    def greeted(self):
        tls = self.connect(self.context(self.own))
        self.assertEqual(tls.recv(4), b"\0\0\0\0")
        return tls

    def ended(self, tls):
        """It hangs up; what it says before that does not matter."""
        try:
            while tls.recv(4096):
                pass
        except (ssl.SSLError, ConnectionResetError):
            pass

    def test_frames_that_are_none(self):
        # Of a host whose key was stolen: authenticated, and nothing that a host would send.
        for frame in (
            b"\xff\xff\xff\xff",
            (1 << 20 | 1).to_bytes(4, "big"),
            b"\0\0\0\5\xff\xff\xff\xff\xff",
            b"\0\0\0\2\x08\0",
            b"\0\0\0\4\x12\x02\x08\x01",
        ):
            with self.subTest(frame=frame):
                tls = self.greeted()
                tls.sendall(frame)
                self.ended(tls)

    def test_frame_that_is_cut(self):
        tls = self.greeted()
        tls.sendall(b"\0\0\1\0abc")
        tls.close()

    def test_join_with_nonsense(self):
        for frame in (b"\0\0\0\3\xff\xff\xff", b"\0\0\0\1\0", (64 << 10).to_bytes(4, "big") + b"x" * (64 << 10)):
            with self.subTest(size=len(frame)):
                tls = self.connect(self.context(None, (JOIN,)))
                tls.sendall(frame)
                self.ended(tls)

    def test_too_many_who_say_nothing(self):
        crowd = [self.connect() for _ in range(200)]
        tls = self.greeted()
        self.assertIsNotNone(tls.version())
        for each in crowd:
            each.close()


if __name__ == "__main__":
    unittest.main()

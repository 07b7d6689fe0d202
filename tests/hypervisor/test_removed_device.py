"""A device that is taken out of the configuration while a guest has it: fenced, forgotten, and usable when it is back."""

import os
import signal
import unittest

import processes
import waiting
from usblease_lab import Lab


class RemovedDeviceTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.lab = Lab(devices=["dongle", "stays"])
        cls.addClassCleanup(cls.lab.close)
        cls.lab.start()
        cls.with_device = cls.lab.config.read_text()
        before, _, after = cls.with_device.partition("[device dongle]\n")
        cls.without_device = before + after[after.index("[device stays]") :]

    def setUp(self):
        self.guest = self.lab.guest("holder", assignments=["dongle"])
        self.addCleanup(self.put_back)
        mark = self.guest.start()
        self.guest.wait_pong(self.lab.devices["dongle"].serial, mark)
        self.token = int(self.view("dongle")["device"]["lease"]["token"])

    def put_back(self):
        if self.guest.running:
            self.guest.destroy()
        self.restart_with(self.with_device)
        if not self.lab.devices["dongle"].program.running:
            self.lab.devices["dongle"].plug()
        self.wait_view("free", lambda view: view and view["state"] == "free")

    def restart_with(self, config, while_stopped=lambda: None):
        self.lab.daemon.stop()
        self.lab.config.write_text(config)
        while_stopped()
        self.lab.start_daemon()

    def view(self, device):
        rows = self.lab.usblease_json("list").get("devices", [])
        return next((row for row in rows if row["device"]["name"] == device), None)

    def wait_view(self, what, test):
        return waiting.wait_until(
            lambda: f"dongle {what}, it is {self.view('dongle')}; log:\n{self.lab.daemon.log.tail(40)}",
            lambda: test(self.view("dongle")) or None,
            20,
        )

    def assert_next_token_is_greater(self):
        self.restart_with(self.with_device)
        self.wait_view("free", lambda view: view and view["state"] == "free")
        mark = self.guest.console.mark()
        self.lab.usblease("attach", "holder", "dongle")
        self.guest.wait_pong(self.lab.devices["dongle"].serial, mark)
        self.assertGreater(int(self.view("dongle")["device"]["lease"]["token"]), self.token)

    def test_its_relay_is_fenced_and_the_device_forgotten(self):
        mark = self.guest.console.mark()
        self.restart_with(self.without_device)
        self.guest.wait_usb_remove(self.lab.devices["dongle"].serial, mark)
        self.wait_view("forgotten", lambda view: view is None)
        kinds = [(e["kind"], e.get("text", "")) for e in self.lab.usblease_json("events")["events"]]
        self.assertIn("fenced", [kind for kind, _ in kinds])
        # Its process ends a moment after the device's end of stream.
        waiting.wait_until(
            "its relay to end", lambda: int(self.lab.usblease_json("host", "info").get("relays", 0)) == 0, 10
        )
        self.assert_next_token_is_greater()

    def test_without_its_relay_the_endpoint_must_prove_the_end(self):
        device = self.lab.devices["dongle"]
        mark = self.lab.daemon.log.mark()

        def lose_stream_and_endpoint():
            relay = processes.run(["pgrep", "-f", "usblease-relay --device dongle"]).stdout.split()
            os.kill(int(relay[0]), signal.SIGKILL)
            device.unplug()

        self.restart_with(self.without_device, lose_stream_and_endpoint)
        self.wait_view("fencing", lambda view: view and view["state"] == "fencing")
        self.lab.daemon.wait_line("the endpoint is not there", since=mark)  # nothing is freed by silence
        view = self.view("dongle")
        self.assertEqual(view["state"], "fencing")
        self.assertIn("taken out of the configuration", view["device"]["homes"][0]["detail"])
        self.assertIn("the configuration does not name this device any more", self.lab.daemon.log.text(mark))
        device.plug()
        self.wait_view("forgotten", lambda view: view is None)
        self.assert_next_token_is_greater()


if __name__ == "__main__":
    unittest.main()

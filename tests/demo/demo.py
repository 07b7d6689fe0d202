#!/usr/bin/python3
"""The main job, told as it happens. Called by ./demo, which has built everything."""

import datetime
import pathlib
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "lib"), str(HERE.parent / "cluster")]
sys.dont_write_bytecode = True

# pylint: disable=wrong-import-position
import boottime
import guest_image
import hosts
import isolation
import machines
import usblease_lab
import waiting

TIMING = {"ttl_ms": 5000, "renewal_ms": 1000, "grace_ms": 500}
BEGUN_S = time.monotonic() - (float(sys.argv[1]) if len(sys.argv) > 1 else 0.0)


def say(text):
    print(f"{time.monotonic() - BEGUN_S:7.1f} s  {text}", flush=True)


def quote(who, text):
    lines = text.strip("\n").splitlines()
    if len(lines) == 1:
        lines = [f"{who}: {lines[0].strip()}"]
    else:
        print(f"            {who}:")
    for line in lines:
        print(f"            {line.rstrip()}", flush=True)


def console(guest, match):
    """A line that the guest itself printed."""
    quote(f"console of {guest.name}", match.group(0))


def device_state(lab):
    return lab.usblease_json("info", "dongle")["device"]


def token_of(lab):
    return int(device_state(lab)["device"]["lease"]["token"])


def holds_and_refuses(lab, a, b):
    say("usblease assign a dongle; usblease assign b dongle: both guests declare the one dongle")
    lab.usblease("assign", "a", "dongle")
    lab.usblease("assign", "b", "dongle")
    say("virsh start a: the hook asks for the lease, then QEMU runs")
    a.start()
    console(a, a.wait_usb_add(lab.devices["dongle"].serial))
    console(a, a.wait_pong(lab.devices["dongle"].serial))
    quote("usblease list", lab.usblease("list"))
    say("virsh start b: it declares the same dongle, so libvirt refuses")
    quote("virsh", b.start_refused())


def waits_and_gets(lab, a, b):
    say("b without its declaration starts, and queues: usblease attach b dongle --wait 60")
    lab.usblease("unassign", "b", "dongle")
    b.start()
    queued = lab.background("attach", "attach", "b", "dongle", "--wait", "60")
    waiting.wait_until("b in the queue", lambda: lab.usblease_json("queue", "dongle").get("requests"), 20)
    quote("usblease queue dongle", lab.usblease("queue", "dongle"))
    say('usblease revoke dongle --grace 1 --reason "b needs it"')
    mark_a, mark_b, old_token = a.console.mark(), b.console.mark(), token_of(lab)
    lab.usblease("revoke", "dongle", "--grace", "1", "--reason", "b needs it")
    console(a, a.wait_usb_remove(lab.devices["dongle"].serial, mark_a))
    console(b, b.wait_usb_add(lab.devices["dongle"].serial, mark_b))
    console(b, b.wait_pong(lab.devices["dongle"].serial, mark_b))
    if queued.wait_end(20) != 0:
        raise AssertionError("the waiting attach failed:\n" + queued.log.tail())
    quote("usblease attach", queued.log.lines()[-1])
    new_token = token_of(lab)
    assert new_token > old_token, "a token must grow"
    say(f"a held token {old_token}, b holds token {new_token}")


def survives_a_restart(lab, b):
    serial = lab.devices["dongle"].serial
    say("usbleased is killed (SIGKILL) and started again while b holds the dongle")
    mark = b.console.mark()
    lab.daemon.kill9()
    last = b.wait_pong(serial, mark)
    lab.start_daemon()
    deadline_ns = boottime.now_ns() + 2 * TIMING["ttl_ms"] * 1_000_000
    waiting.wait_until("two lifetimes of a lease to pass", lambda: boottime.now_ns() > deadline_ns, 30)
    assert not b.console.matches(r"guest: (usb-remove|io-error|silence)", mark), "b must not notice"
    numbers = b.pongs(serial, mark)
    say(f"b did not notice: it got every answer from {last.group(2)} to {numbers[-1]}, over two lifetimes of the lease")


class Neighbours:
    """Two more KVM hosts on the network of the first, each in namespaces of its own, with a disk."""

    def __init__(self, lab, network):
        self.programs, self.network, self.holders = lab.programs, network, []
        self.hosts = {name: hosts.Host(self, name, (), {"timing": TIMING}, hosts.STORE_DISK_MIB) for name in ("h2", "h3")}
        for host in self.hosts.values():
            host.settings["daemon"]["libvirt_uri"] = "none"  # the libvirtd that they see is h1's
            host.write_config()
            host.start()

    def note(self, _event, **_members):
        """Nobody keeps a history here."""

    def close(self):
        for host in self.hosts.values():
            host.daemon.stop()
            host.machine.power_off()


def becomes_a_cluster(lab, neighbours):
    say("usblease cluster init on h1: its state moves to an etcd that usbleased runs; b keeps the dongle")
    quote("usblease", lab.usblease("cluster", "init"))
    lab.wait_ready()
    for host in neighbours.hosts.values():
        say(f"usblease cluster add {host.name} on h1, usblease cluster join TOKEN on {host.name}")
        host.join(lab.usblease_json("cluster", "add", host.name)["token"])
        waiting.wait_until(f"{host.name} to vote in the store", lambda: is_voter(lab, host.name), 30)
    say("usblease cluster transfer h2")
    lab.usblease("cluster", "transfer", "h2")
    waiting.wait_until("h2 to coordinate", lambda: lab.usblease_json("status")["coordinator"] == "h2", 20)
    quote("usblease cluster status", lab.usblease("cluster", "status"))


def is_voter(lab, name):
    rows = lab.usblease_json("cluster", "status")["hosts"]
    return any(
        row["host"]["id"] == name and row["member"].get("store", {}).get("role") == "STORE_ROLE_VOTER" for row in rows
    )


def survives_the_coordinator(lab, neighbours, b):
    serial = lab.devices["dongle"].serial
    say("h2, the coordinator, loses power while b on h1 holds the dongle")
    mark, token = b.console.mark(), token_of(lab)
    killed_s = time.monotonic()
    neighbours.hosts["h2"].power_off()
    coordinator = waiting.wait_until(
        "another coordinator", lambda: (name := lab.usblease_json("status")["coordinator"]) != "h2" and name, 30
    )
    say(f"{coordinator} coordinates now, {time.monotonic() - killed_s:.1f} s later")
    deadline_ns = boottime.now_ns() + 2 * TIMING["ttl_ms"] * 1_000_000
    waiting.wait_until("two lifetimes of a lease to pass", lambda: boottime.now_ns() > deadline_ns, 30)
    assert not b.console.matches(r"guest: (usb-remove|io-error|silence)", mark), "b must not notice"
    assert token_of(lab) == token, "b must hold the same lease"
    numbers = b.pongs(serial, mark)
    say(f"b did not notice: answers {numbers[0]} to {numbers[-1]}, all under token {token}")


def stops_without_the_daemon(lab, b):
    say("usbleased is killed and stays away: nobody renews, the relay alone must stop the device")
    deadline_ns = int(device_state(lab)["deadline_boottime_ns"])
    mark = b.console.mark()
    killed_ns = boottime.now_ns()
    lab.daemon.kill9()
    console(b, b.wait_usb_remove(lab.devices["dongle"].serial, mark, timeout_s=30))
    last_ns = lab.devices["dongle"].last_packet_ns()
    say(
        f"the dongle saw its last packet {(last_ns - killed_ns) / 1e9:.2f} s after the kill, and the deadline was"
        f" {(deadline_ns - killed_ns) / 1e9:.2f} s after it (last known to the daemon; at most one renewal later)"
    )
    assert last_ns <= deadline_ns + TIMING["renewal_ms"] * 1_000_000, "nothing may pass after the deadline"
    say("usbleased starts again, takes the relay's confirmation, and the dongle is free")
    lab.start_daemon()
    waiting.wait_until("the dongle to be free", lambda: device_state(lab)["state"] == "free", 20)
    quote("usblease list", lab.usblease("list"))
    mark = b.console.mark()
    say("usblease attach b dongle")
    quote("usblease", lab.usblease("attach", "b", "dongle"))
    console(b, b.wait_pong(lab.devices["dongle"].serial, mark))


def who_held_what(lab):
    rows, open_rows = [], {}
    for event in lab.usblease_json("events")["events"]:
        key = (event["device"], event["token"])
        if event["kind"] == "granted":
            open_rows[key] = [event["device"], event["guest"], event["token"], int(event["unix_s"]), None, ""]
            rows.append(open_rows[key])
        elif event["kind"] in ("fenced", "instance-ended") and key in open_rows:
            open_rows[key][4:] = [int(event["unix_s"]), event["text"]]
    clock = lambda s: datetime.datetime.fromtimestamp(s).strftime("%H:%M:%S") if s else "still"
    print(f"\n {'Device':<8} {'Guest':<6} {'Token':<6} {'From':<9} {'To':<9} How it ended")
    print("-" * 78)
    for device, guest, token, begin, end, how in rows:
        print(f" {device:<8} {guest:<6} {token:<6} {clock(begin):<9} {clock(end):<9} {how}")
    print(flush=True)


def demo():
    network = machines.Network()
    address = f"[cluster]\nadvertise={machines.NETWORK}.254:{hosts.PEER_PORT}\n"
    with usblease_lab.Lab(devices={"dongle": {}}, timing=TIMING, config=address, host_id="h1") as lab:
        say("starting h1: a software USB dongle (usbredir), a private libvirtd with the hook, usbleased")
        lab.start()
        a, b = lab.guest("a"), lab.guest("b")
        waiting.wait_until("the dongle to be there", lambda: device_state(lab)["state"] == "free", 20)
        try:
            holds_and_refuses(lab, a, b)
            waits_and_gets(lab, a, b)
            survives_a_restart(lab, b)
            say("starting h2 and h3: two more hosts, each in network namespaces and with a disk of its own")
            neighbours = Neighbours(lab, network)
            becomes_a_cluster(lab, neighbours)
            survives_the_coordinator(lab, neighbours, b)
            stops_without_the_daemon(lab, b)
            who_held_what(lab)
            neighbours.close()
        except Exception:
            print(f"\nusbleased said last:\n{lab.daemon.log.tail(30)}", file=sys.stderr)
            raise
    say("one device, one guest, at every instant. Everything was cleaned up.")
    return 0


if __name__ == "__main__":
    try:
        guest_image.ensure(say)
        CODE = isolation.run_isolated(demo, timeout_s=540, network=True)
    except KeyboardInterrupt:
        print("\ndemo: interrupted; everything was cleaned up", file=sys.stderr)
        sys.exit(130)
    if CODE is None:
        print("demo: took too long", file=sys.stderr)
    sys.exit(1 if CODE is None else CODE)

"""Who does what while faults come: the labs and workloads of the fault rounds."""

import os
import random
import time

import faults
import rounds
import workload
from hosts import ClusterLab


def one_host(seed):
    """SQLite; a device that many want, and one that somebody keeps."""
    lab = ClusterLab(hosts=1, devices={"h1": ["busy", "long"]})
    work = workload.Workload(lab, seed)
    host = lab.hosts["h1"]
    work.guests(host, "busy-a", ["busy"], 400)
    work.guests(host, "busy-b", ["busy"], 400)
    work.bare(host, "busy-c", ["busy"], 50)
    work.guests(host, "long", ["long"], 60_000)
    return lab, work, faults.ONE_HOST


def three_hosts(seed):
    """Three candidates, a device on each. A guest beside it wants it, and clients on the two others do."""
    lab = ClusterLab(hosts=3, devices={"h1": ["d1"], "h2": ["d2"], "h3": ["d3"]}, candidates=3)
    work = workload.Workload(lab, seed)
    hosts = list(lab.hosts.values())
    for place, host in enumerate(hosts):
        (device,) = host.devices
        work.guests(host, f"guest-{host.name}", [device], 3_000)
        work.bare(hosts[(place + 1) % 3], f"client-{host.name}", [device], 50)
    # A set of all is granted whole or not at all.
    work.bare(hosts[0], "all", ["d1", "d2", "d3"], 20)
    return lab, work, faults.CLUSTER


SCENES = {1: one_host, 3: three_hosts}


def run(scene, seed, count, until=None, first=1, say=print):
    """Runs rounds and proves their history; says one line about it."""
    lab, work, kinds = scene(seed)
    with lab:
        lab.start()
        run_of = rounds.Rounds(lab, work, kinds, seed)
        run_of.run(count, until, first)
        say(run_of.summary(run_of.finish()))


def run_test(hosts, count, enough_s):
    """For ./check: count rounds, fewer on a machine that is too slow for them. The seed: $USBLEASE_SEED, or any."""
    seed = int(os.environ.get("USBLEASE_SEED") or random.SystemRandom().randrange(1 << 32))
    until = time.monotonic() + enough_s
    run(SCENES[hosts], seed, count, until, say=lambda text: print(f"          {text}", flush=True))

"""Runs in a testbed's host: says when a guest's console last said what. usage: watch.py CONSOLE QUIET_MS MAX_MS

Prints "watching"; then, once no R has come for QUIET_MS, or after MAX_MS, {"R": AT_NS, …, "count": {"R": N, …}} with the
last time of each in CLOCK_BOOTTIME.
"""

import collections
import json
import sys
import time


def main():
    path, quiet_ns, max_ns = sys.argv[1], int(sys.argv[2]) * 1_000_000, int(sys.argv[3]) * 1_000_000
    last, count = {}, collections.Counter()
    begun = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    with open(path, "rb") as console:
        console.seek(0, 2)
        print("watching", flush=True)
        while True:
            said = console.read()
            now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            for character in said.decode(errors="replace"):
                last[character] = now
                count[character] += 1
            if now - last.get("R", begun) > quiet_ns or now - begun > max_ns:
                break
            if not said:
                time.sleep(0.001)
    print(json.dumps(last | {"count": count}))


main()

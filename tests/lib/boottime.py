"""CLOCK_BOOTTIME, the clock of every deadline; a guest's own uptime is another clock."""

import time


def now_ns():
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def now_s():
    return time.clock_gettime(time.CLOCK_BOOTTIME)

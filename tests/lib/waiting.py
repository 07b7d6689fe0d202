"""Waiting for an event with a bound, and reading files that others write: consoles and logs."""

import re
import time

POLL_S = 0.01


class TimedOut(AssertionError):
    """Something that a test waited for did not happen in time."""


def wait_until(what, condition, timeout_s):
    """Returns the first true value of condition(); TimedOut names `what`, which may be a function."""
    end = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= end:
            raise TimedOut(f"waited {timeout_s} s for {what() if callable(what) else what}")
        time.sleep(POLL_S)


class TextFile:
    """A file that another program appends lines to. A mark is a place in it, to look only at what came later."""

    def __init__(self, path):
        self.path = path

    def text(self, since=0):
        """What was written after the mark `since`, whole lines only."""
        try:
            with open(self.path, "rb") as file:
                file.seek(since)
                data = file.read()
        except FileNotFoundError:
            return ""
        return data[: data.rfind(b"\n") + 1].decode(errors="replace").replace("\r", "")

    def lines(self, since=0):
        return self.text(since).splitlines()

    def mark(self):
        """The end of the file as it is now."""
        try:
            with open(self.path, "rb") as file:
                return file.seek(0, 2)
        except FileNotFoundError:
            return 0

    def matches(self, pattern, since=0):
        """All matches of the regular expression, a line each."""
        return [match for match in (re.search(pattern, line) for line in self.lines(since)) if match]

    def wait_for(self, pattern, timeout_s, since=0, alive=None):
        """The first line that matches, as a match object. `alive` may raise when waiting on has no sense."""

        def look():
            found = self.matches(pattern, since)
            if not found and alive is not None:
                alive()
            return found

        return wait_until(lambda: f"/{pattern}/ in {self.path}, which ends with:\n{self.tail()}", look, timeout_s)[0]

    def tail(self, count=15):
        return "".join(f"    {line}\n" for line in self.lines()[-count:]) or "    (nothing)\n"

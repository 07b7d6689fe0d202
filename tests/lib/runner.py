"""Runs the unittest files of one test tier, each file in private namespaces, one line a test.

usage: tests/TIER/run [--build DIR] [--list] [WORD…]     only tests whose FILE.CLASS.NAME holds a WORD
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import stat
import sys
import time
import traceback
import unittest

import isolation
import usblease_lab
import waiting

KEPT_BYTES_MAX = 4 * 1024 * 1024


class LineResult(unittest.TestResult):
    """A line a test; what went wrong follows it at once."""

    def __init__(self, topic, logs, test_s):
        super().__init__()
        self._test_s = test_s
        self.passed = 0
        self._topic = topic
        self._logs = logs
        self._begun = 0.0

    def startTest(self, test):
        super().startTest(test)
        self._begun = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, self._test_s)

    def stopTest(self, test):
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._begun = 0.0
        super().stopTest(test)

    def _line(self, verdict, test, note=""):
        spent = time.monotonic() - self._begun if self._begun else 0.0
        what = getattr(test, "_testMethodName", str(test)).removeprefix("test_").replace("_", " ")
        print(f"  {verdict:<7} {self._topic}: {what} ({spent:.1f} s){note}", flush=True)

    def _failed(self, test, error):
        self._line("FAILED", test)
        text = "".join(traceback.format_exception(*error))
        print("".join(f"          {line}\n" for line in text.splitlines()), end="", flush=True)
        keep_logs(self._logs)
        print(f"          logs: {self._logs}", flush=True)

    def addSuccess(self, test):
        self.passed += 1
        self._line("ok", test)

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self._failed(test, err)

    def addError(self, test, err):
        super().addError(test, err)
        self._failed(test, err)

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self._line("skipped", test, f": {reason}")

    def counts(self):
        return {"passed": self.passed, "failed": len(self.failures) + len(self.errors), "skipped": len(self.skipped)}


def keep_logs(target):
    """Copies what the lab's programs wrote, because it vanishes with the namespaces."""
    shutil.rmtree(target, ignore_errors=True)
    for directory, names, files in os.walk(usblease_lab.LAB_DIR):
        names[:] = [name for name in names if not os.path.ismount(os.path.join(directory, name))]
        for name in files:
            source = pathlib.Path(directory, name)
            about = source.lstat()
            if stat.S_ISREG(about.st_mode) and about.st_size <= KEPT_BYTES_MAX:
                kept = target / source.relative_to(usblease_lab.LAB_DIR)
                kept.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, kept)


def tests_of(topic, words):
    """The suite of one file, without the tests that no word names."""

    def chosen(suite):
        for item in suite:
            if isinstance(item, unittest.TestSuite):
                yield from chosen(item)
            elif not words or any(word in item.id() for word in words):
                yield item

    return unittest.TestSuite(chosen(unittest.defaultTestLoader.loadTestsFromName(topic)))


class Tier:
    """The tests of one directory. test_s, file_s: what one test and one file may take; network: see run_isolated()."""

    def __init__(self, directory, test_s=120, file_s=600, network=False, prepare=None):
        """prepare: called once before the first test, outside of the namespaces."""
        self.directory = pathlib.Path(directory)
        self.name = self.directory.name
        self._test_s = test_s
        self._file_s = file_s
        self._network = network
        self._prepare = prepare

    def _run_file(self, topic, words, answer):
        """Inside the namespaces: runs one file and writes its counts to the descriptor `answer`."""

        def too_long(_number, _frame):
            raise waiting.TimedOut(f"the test took longer than {self._test_s} s")

        signal.signal(signal.SIGALRM, too_long)
        logs = usblease_lab.build_dir() / f"{self.name}-logs" / topic
        result = LineResult(topic.removeprefix("test_"), logs, self._test_s)
        tests_of(topic, words).run(result)
        os.write(answer, json.dumps(result.counts()).encode())
        return 0

    def _run_file_isolated(self, topic, words):
        read_end, write_end = os.pipe()
        code = isolation.run_isolated(lambda: self._run_file(topic, words, write_end), self._file_s, self._network)
        os.close(write_end)
        with os.fdopen(read_end, "rb") as pipe:
            text = pipe.read()
        if code == 130:
            raise KeyboardInterrupt
        if text:
            return json.loads(text)
        why = f"took longer than {self._file_s} s" if code is None else f"ended with {code} before its end"
        print(f"  FAILED  {topic}: {why}", flush=True)
        return {"passed": 0, "failed": 1, "skipped": 0}

    def run(self, words, only_list):
        """Returns the exit code; the last line has the counts."""
        topics = sorted(file.stem for file in self.directory.glob("test_*.py"))
        suites = {topic: tests_of(topic, words) for topic in topics}
        if only_list:
            for suite in suites.values():
                print("".join(f"{test.id()}\n" for test in suite), end="")
            return 0
        if self._prepare:
            self._prepare()
        total = {"passed": 0, "failed": 0, "skipped": 0}
        for topic, suite in suites.items():
            if suite.countTestCases() == 0:
                continue
            for verdict, count in self._run_file_isolated(topic, words).items():
                total[verdict] += count
        print(f"{self.name}: {total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped")
        return 1 if total["failed"] or not sum(total.values()) else 0

    def main(self):
        """The program tests/TIER/run."""
        parser = argparse.ArgumentParser(description=f"Runs the tests of the {self.name} tier.")
        parser.add_argument("--build", help="the build directory (default: build/ in the tree)")
        parser.add_argument("--list", action="store_true", help="only print the tests")
        parser.add_argument("words", nargs="*", metavar="WORD", help="run only tests whose FILE.CLASS.NAME holds a WORD")
        options = parser.parse_args()
        if options.build:
            os.environ["USBLEASE_BUILD"] = options.build
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            sys.exit(self.run(options.words, options.list))
        except KeyboardInterrupt:
            print(f"{self.name}: interrupted", file=sys.stderr)
            sys.exit(130)

#!/usr/bin/python3
"""Counts the tests of one `meson test` run: prints PASSED FAILED SKIPPED.

usage: count_tests.py BUILD/meson-logs/testlog.json

A Check program's test cases count one each, by its summary; any other program counts as one test. A program that ended
badly counts as a failure even when its summary says that all is well, or is missing.
"""

import json
import re
import sys

CHECK_SUMMARY = re.compile(r"^\d+%: Checks: (\d+), Failures: (\d+), Errors: (\d+)$", re.MULTILINE)
GOOD = {"OK", "EXPECTEDFAIL"}


def count(run):
    """(passed, failed, skipped) of one program."""
    if run["result"] == "SKIP":
        return 0, 0, 1
    summaries = CHECK_SUMMARY.findall(run.get("stdout") or "")
    passed = failed = 0
    for checks, failures, errors in summaries:
        bad = int(failures) + int(errors)
        passed += int(checks) - bad
        failed += bad
    if run["result"] not in GOOD:
        return passed, max(failed, 1), 0
    return (passed, failed, 0) if summaries else (1, 0, 0)


def main():
    total = [0, 0, 0]
    with open(sys.argv[1], encoding="utf-8") as log:
        for line in log:
            total = [old + new for old, new in zip(total, count(json.loads(line)))]
    print(*total)


if __name__ == "__main__":
    main()

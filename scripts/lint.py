#!/usr/bin/python3
"""Formatting and static analysis of everything that git tracks.

usage: scripts/lint.py BUILD     BUILD is built: its compile commands and its record of headers are used

Prints a line a finding and ends with "lint: N passed, N failed, N skipped", a file and a tool a test. clang-tidy takes
many seconds a file, so what it found clean is remembered under a hash of all that it read, and what it has not begun with
after TIDY_S is left to the next run and counts as skipped.
"""

import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import time

TREE = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TREE / "tests/lib"))
sys.dont_write_bytecode = True

import guest_image  # pylint: disable=wrong-import-position

# Built apart from Meson.
EXTRA_COMMANDS = {guest_image.INIT_SOURCE: [word for word in guest_image.COMPILE if not word.startswith("-Wl") and word != "-static"]}
FORGET_AFTER = 2000
TIDY_S = 400


def tracked(*patterns):
    listed = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=TREE, capture_output=True, check=True).stdout
    return [TREE / name for name in listed.decode().split("\0") if name and (TREE / name).is_file()]


def run(arguments):
    """(clean, what it said)"""
    done = subprocess.run(arguments, cwd=TREE, capture_output=True, text=True, check=False)
    return done.returncode == 0, done.stdout + done.stderr


def check_format(path):
    return run(["clang-format", "--dry-run", "-Werror", path])


def check_shell(path):
    return run(["shellcheck", path])


def check_python(path):
    try:
        compile(path.read_bytes(), path, "exec")
    except SyntaxError as error:
        return False, f"{path}:{error.lineno}: {error.msg}\n"
    return True, ""


class Tidy:
    """clang-tidy with a memory."""

    def __init__(self, build):
        self._build = build
        self._clean = guest_image.cache_dir() / "tidy"
        self._clean.mkdir(parents=True, exist_ok=True)
        self._forget_old()
        self._commands = self._read_commands()
        self._headers = self._read_headers()
        self._digests = {}
        self._until = time.monotonic() + TIDY_S
        version = subprocess.run(["clang-tidy", "--version"], capture_output=True, check=True).stdout
        self._base = version + b"".join(path.read_bytes() for path in tracked("*.clang-tidy"))

    @property
    def sources(self):
        """What is shipped. Tests are watched by the compiler, ASan and UBSan: Check's macros and rapidcheck's operators are
        most of what clang-tidy says of them."""
        ours = {path for path in tracked("*.cc") if path in self._commands}
        return sorted(path for path in ours if not path.is_relative_to(TREE / "tests"))

    def uncovered(self):
        """Tracked sources that no compile command names: nobody builds them."""
        shipped = (path for path in tracked("*.cc") if not path.is_relative_to(TREE / "tests"))
        return sorted(path for path in shipped if path not in self._commands)

    def check(self, path):
        """As run(); None in the place of the verdict: no time for it."""
        stamp = self._clean / self._key(path)
        if stamp.exists():
            stamp.touch()
            return True, ""
        if time.monotonic() > self._until:
            return None, f"{path.relative_to(TREE)}: no time for clang-tidy; run ./check lint again\n"
        command = ["clang-tidy", "--quiet"]
        command += [path, "--", *EXTRA_COMMANDS[path][1:]] if path in EXTRA_COMMANDS else ["-p", self._build, path]
        clean, said = run(command)
        if clean:
            stamp.touch()
        said = re.sub(r"^\d+ warnings? (generated|treated as error).*\n", "", said, flags=re.MULTILINE)
        return clean, "" if clean else said

    def _forget_old(self):
        stamps = sorted(self._clean.iterdir(), key=lambda stamp: stamp.stat().st_mtime, reverse=True)
        for stamp in stamps[FORGET_AFTER:]:
            stamp.unlink(missing_ok=True)

    def _read_commands(self):
        commands = {path: " ".join(arguments) for path, arguments in EXTRA_COMMANDS.items()}
        for entry in json.loads((self._build / "compile_commands.json").read_text()):
            path = pathlib.Path(os.path.normpath(os.path.join(entry["directory"], entry["file"])))
            commands.setdefault(path, entry["command"])
        return commands

    def _read_headers(self):
        """{source: what ninja saw its compilation read}"""
        said = subprocess.run(["ninja", "-C", self._build, "-t", "deps"], capture_output=True, text=True, check=True)
        headers = {}
        for block in said.stdout.split("\n\n"):
            files = [pathlib.Path(os.path.normpath(self._build / line.strip())) for line in block.splitlines()[1:]]
            if files:
                headers[files[0]] = files[1:]
        return headers

    def _digest(self, path):
        if path not in self._digests:
            # The system's headers are large and change by package only.
            inside = path.is_relative_to(TREE) or path.is_relative_to(self._build)
            stat = path.stat()
            content = path.read_bytes() if inside else f"{stat.st_size} {stat.st_mtime_ns}".encode()
            self._digests[path] = hashlib.sha256(content).digest()
        return self._digests[path]

    def _key(self, path):
        key = hashlib.sha256(self._base + self._commands[path].replace(str(self._build), "BUILD").encode())
        for read in [path, *sorted(self._headers.get(path, []))]:
            key.update(self._digest(read))
        return key.hexdigest()


def main():
    build = pathlib.Path(sys.argv[1]).resolve()
    tidy = Tidy(build)
    cxx = tracked("*.cc", "*.h")
    scripts = [path for path in tracked() if path.suffix in ("", ".sh") and path.read_bytes()[:11] == b"#!/bin/bash"]
    python = [path for path in tracked() if path.suffix == ".py" or path.read_bytes()[:18] == b"#!/usr/bin/python3"]
    jobs = [(check_format, path) for path in cxx] + [(check_shell, path) for path in scripts]
    jobs += [(check_python, path) for path in python] + [(tidy.check, path) for path in tidy.sources]
    failed = skipped = 0
    for path in tidy.uncovered():
        print(f"{path.relative_to(TREE)}: is built by nothing, so nothing analyses it")
        failed += 1
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for clean, said in pool.map(lambda job: job[0](job[1]), jobs):
            failed += clean is False
            skipped += clean is None
            print(said if not clean else "", end="", flush=True)
    passed = len(jobs) + len(tidy.uncovered()) - failed - skipped
    print(f"lint: {passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

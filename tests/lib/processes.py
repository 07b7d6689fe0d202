"""Programs that a test starts: with a log file, a bounded wait for readiness, and a bounded end."""

import os
import signal
import socket
import subprocess

import waiting


class Died(AssertionError):
    """A program that should be running has ended."""


class Program:
    """One program; its output goes to `log`. Start it with start(); it can be started again after it ended."""

    def __init__(self, name, arguments, log_path, environment=None):
        self.name = name
        self.arguments = [str(argument) for argument in arguments]
        self.log = waiting.TextFile(log_path)
        self._environment = environment or {}
        self._process = None

    def start(self):
        assert not self.running, f"{self.name} runs already"
        with open(self.log.path, "ab") as log:
            self._process = subprocess.Popen(
                self.arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | self._environment,
                start_new_session=True,  # Ctrl-C is for the test, which then ends its programs in order
            )
        return self

    @property
    def started(self):
        """It was, whether or not it still runs."""
        return self._process is not None

    @property
    def running(self):
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self):
        return self._process.pid

    @property
    def exit_code(self):
        return None if self._process is None else self._process.poll()

    def check_alive(self):
        if not self.running:
            raise Died(f"{self.name} ended with {self.exit_code}; its log ends with:\n{self.log.tail()}")

    def wait_line(self, pattern, timeout_s=10, since=0):
        return self.log.wait_for(pattern, timeout_s, since, alive=self.check_alive)

    def wait_socket(self, path, timeout_s=10):
        """Until the Unix stream socket accepts."""

        def accepts():
            self.check_alive()
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                return probe.connect_ex(str(path)) == 0

        waiting.wait_until(lambda: f"{self.name} to accept on {path}; log:\n{self.log.tail()}", accepts, timeout_s)

    def wait_end(self, timeout_s=10):
        """Returns the exit code."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise waiting.TimedOut(
                f"{self.name} did not end within {timeout_s} s; its log ends with:\n{self.log.tail()}"
            ) from None

    def signal(self, number):
        if self.running:
            self._process.send_signal(number)

    def stop(self, timeout_s=10):
        """SIGTERM, and SIGKILL when that is not enough. Returns the exit code, None when it never ran."""
        if self._process is None:
            return None
        self.signal(signal.SIGTERM)
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return self.kill9()

    def kill9(self):
        if self._process is None:
            return None
        self.signal(signal.SIGKILL)
        return self._process.wait(10)

    def freeze(self):
        self.signal(signal.SIGSTOP)

    def thaw(self):
        self.signal(signal.SIGCONT)


def run(arguments, timeout_s=30, check=True, environment=None, text_in=None):
    """Runs a program to its end; a failure's message holds what it printed."""
    done = subprocess.run(
        [str(argument) for argument in arguments],
        input=text_in,
        stdin=subprocess.DEVNULL if text_in is None else None,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=os.environ | (environment or {}),
        check=False,
    )
    if check and done.returncode != 0:
        command = " ".join(done.args)
        raise AssertionError(f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done

"""Stops a process's first thread alone, while the others go on: QEMU's main loop, while its vCPUs run.

It is stopped where it waits for events (ppoll): there it holds no lock that the other threads would need.
"""

import contextlib
import ctypes
import os
import time

PTRACE_DETACH, PTRACE_SEIZE, PTRACE_INTERRUPT = 17, 0x4206, 0x4207
WALL = 0x40000000  # waitpid for threads of another process as well
PPOLL = "271"

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def _ptrace(request, pid):
    if _libc.ptrace(request, pid, None, None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace {request:#x} of {pid}: {os.strerror(number)}")


def _stop(pid):
    _ptrace(PTRACE_INTERRUPT, pid)
    os.waitpid(pid, WALL)


@contextlib.contextmanager
def stopped_in_poll(pid):
    """Within the block the thread does nothing."""
    _ptrace(PTRACE_SEIZE, pid)
    end = time.monotonic() + 10
    while True:
        _stop(pid)
        with open(f"/proc/{pid}/syscall", encoding="ascii") as file:
            if file.read().split()[0] == PPOLL:
                break
        _ptrace(PTRACE_DETACH, pid)
        if time.monotonic() > end:
            raise AssertionError(f"process {pid} never waits for events")
        time.sleep(0.001)
        _ptrace(PTRACE_SEIZE, pid)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile: the test will see that
            _ptrace(PTRACE_DETACH, pid)

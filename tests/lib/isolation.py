"""Private namespaces for everything that a test starts.

`run_isolated(main)` runs main() as a process in a mount and a PID namespace of its own: what it mounts and what it
starts, directly or not, is gone when it ends, however it ends. /run is an empty tmpfs there, so nothing meets the
machine's own libvirtd, systemd or usbleased, and socket paths can be short. With network=True the network is private
as well, with loopback only: links, bridges and rules that main() makes vanish with it.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import traceback

CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result, what):
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source, target, kind, flags=0, options=None):
    encoded = [None if text is None else str(text).encode() for text in (source, target, kind, options)]
    _checked(_libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]), f"mount {target}")


def bind(source, target):
    mount(source, target, None, MS_BIND)


def _set_up_mounts():
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")


def _run_main(main):
    try:
        code = main()
    except KeyboardInterrupt:
        code = 130
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def _be_init(main, network):
    """PID 1 of the namespace: reaps what daemons leave behind, as libvirt waits for dead QEMUs to vanish."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    child = 0

    def pass_on(number, _frame):
        if child:
            os.kill(child, signal.SIGINT if number == signal.SIGTERM else number)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, pass_on)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _set_up_mounts()
        if network:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        _run_main(main)
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def run_isolated(main, timeout_s=None, network=False):
    """Runs main() in namespaces of its own and returns its exit code; None: killed after timeout_s.

    SIGTERM becomes KeyboardInterrupt in main(), as Ctrl-C does. The caller must have no threads.
    """
    if os.geteuid() != 0:
        raise PermissionError("private namespaces need root")
    sys.stdout.flush()
    sys.stderr.flush()
    outer = os.fork()  # unshare(CLONE_NEWPID) holds for children only, and for all of them: so in a child of ours
    if outer == 0:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        _be_outer(main, network)
    return _wait_for(outer, timeout_s)


def _be_outer(main, network):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    namespaces = CLONE_NEWNS | CLONE_NEWPID | (CLONE_NEWNET if network else 0)
    _checked(_libc.unshare(namespaces), "unshare")
    init = os.fork()
    if init == 0:
        _be_init(main, network)
    signal.signal(signal.SIGTERM, lambda _number, _frame: os.kill(init, signal.SIGTERM))
    _, status = os.waitpid(init, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def _wait_for(outer, timeout_s):
    pidfd = os.pidfd_open(outer)
    try:
        ended, _, _ = select.select([pidfd], [], [], timeout_s)
        if not ended:
            os.kill(outer, signal.SIGKILL)
    except BaseException:
        # Whoever waits is being ended: first ask, so that main() can say what it was doing, then insist.
        os.kill(outer, signal.SIGTERM)
        if not select.select([pidfd], [], [], 5)[0]:
            os.kill(outer, signal.SIGKILL)
        os.waitpid(outer, 0)
        raise
    finally:
        os.close(pidfd)
    _, status = os.waitpid(outer, 0)
    return os.waitstatus_to_exitcode(status) if ended else None

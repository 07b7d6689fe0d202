"""Runs in a testbed's host: takes commands from the tests over a virtio-serial port, one JSON object a line.

{"id": N, "command": TEXT, "timeout_s": S} → {"id": N, "code": C, "output": TEXT}; code null: it took too long.
The first line says {"hello": KERNEL}.
"""

import glob
import json
import os
import subprocess
import time

PORT = "/dev/virtio-ports/testbed.agent"
OUTPUT_BYTES_MAX = 1 << 20


def open_port():
    while not os.path.exists(PORT):
        ports = glob.glob("/dev/vport*")
        if ports:
            return os.open(ports[0], os.O_RDWR)
        time.sleep(0.05)
    return os.open(PORT, os.O_RDWR)


def run(request):
    """What a background job of the command keeps open must not hold us up: so its output goes through a file."""
    with open("/tmp/agent-output", "w+b") as output:
        try:
            done = subprocess.run(
                ["/bin/bash", "-c", request["command"]],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=request["timeout_s"],
                check=False,
            )
            code = done.returncode
        except subprocess.TimeoutExpired:
            code = None
        output.seek(0)
        return code, output.read(OUTPUT_BYTES_MAX).decode("utf-8", "replace")


def main():
    port = open_port()

    def send(message):
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(port, data) :]

    send({"hello": os.uname().release})
    pending = b""
    while True:
        data = os.read(port, 65536)
        if not data:  # nobody is connected outside
            time.sleep(0.05)
            continue
        pending += data
        while b"\n" in pending:
            line, pending = pending.split(b"\n", 1)
            request = json.loads(line)
            code, output = run(request)
            send({"id": request["id"], "code": code, "output": output})


main()

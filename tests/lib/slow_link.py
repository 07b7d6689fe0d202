#!/usr/bin/python3
"""A slow link, on a kernel without netem: a relay for TCP connections that nftables redirects here, which keeps every byte
back for a while, in both directions.

usage: slow_link.py PORT DELAY_MS     prints "ready" once it listens on PORT; runs until it is ended
"""

import asyncio
import socket
import struct
import sys

SO_ORIGINAL_DST = 80  # linux/netfilter_ipv4.h
CHUNK_BYTES = 65536
QUEUED_MAX = 1024     # chunks in flight, each way


def original_destination(connection):
    """(address, port) before the redirection."""
    raw = connection.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16)
    _family, port, address = struct.unpack("!HH4s8x", raw)
    return socket.inet_ntoa(address), port


async def delay(reader, writer, delay_s):
    loop = asyncio.get_running_loop()
    queue = asyncio.Queue(QUEUED_MAX)

    async def take():
        chunk = b"?"
        while chunk:
            chunk = await reader.read(CHUNK_BYTES)
            await queue.put((loop.time() + delay_s, chunk))

    async def give():
        while True:
            due_s, chunk = await queue.get()
            await asyncio.sleep(due_s - loop.time())
            if not chunk:
                writer.write_eof()
                return
            writer.write(chunk)
            await writer.drain()

    await asyncio.gather(take(), give())


async def relay(reader, writer, delay_s):
    there = None
    try:
        there_reader, there = await asyncio.open_connection(*original_destination(writer.get_extra_info("socket")))
        await asyncio.gather(delay(reader, there, delay_s), delay(there_reader, writer, delay_s))
    except OSError:
        pass  # one end has gone: the other is told by the close
    finally:
        for end in (writer, there):
            if end is not None:
                end.transport.abort()


async def main(port, delay_s):
    server = await asyncio.start_server(lambda reader, writer: relay(reader, writer, delay_s), "0.0.0.0", port)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2]) / 1000))

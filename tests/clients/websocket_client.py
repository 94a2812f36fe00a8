"""Python's `websockets` as an agent uses it."""

import asyncio
import sys

from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

URL = sys.argv[1]

with connect(URL + "/echo", subprotocols=["other", "chat"]) as socket:
    assert socket.subprotocol == "chat", socket.subprotocol
    assert not socket.protocol.extensions, "nobody could look into it"
    for sent, heard in [
        ("hello", "hello"),
        ("to someone@example.com", "to [redacted]"),
        (["to someone@", "example.com"], "to [redacted]"),
        (b"\0\1\2", b"\0\1\2"),
        ("x" * 500_000, "x" * 500_000),
    ]:
        socket.send(sent)
        assert socket.recv() == heard, sent
    assert socket.ping().wait(10)
assert socket.close_code == 1000, socket.close_code

for path in ["/admin", "/x/../admin"]:
    try:
        connect(URL + path)
        raise SystemExit("not refused")
    except InvalidStatus as error:
        assert error.response.status_code == 403, error
        assert b"no administration" in error.response.body, error.response.body


async def many():
    async def one(n):
        async with connect_async(f"{URL}/echo?n={n}") as socket:
            for m in range(50):
                await socket.send(f"{n} {m}")
                assert await socket.recv() == f"{n} {m}"

    await asyncio.gather(*(one(n) for n in range(10)))


asyncio.run(many())
print("ok")

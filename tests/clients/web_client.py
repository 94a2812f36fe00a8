"""HTTP clients of Python as an agent would use them. Argument: the URL. Prints `ok`."""

import asyncio
import sys

import aiohttp
import httpx
import requests

URL = sys.argv[1]
SENT, MASKED = b"to someone@example.com", "to [redacted]"


def refused(status, problem):
    assert status == 403 and problem["rule"] == "no administration", (status, problem)


def with_requests():
    assert requests.post(URL + "/body", data=SENT, timeout=20).text == MASKED
    with requests.Session() as session:
        session.headers["Authorization"] = "Bearer mine"
        for n in range(5):
            assert session.get(f"{URL}/echo?n={n}", timeout=20).json()["path"] == f"/echo?n={n}"
        answer = session.delete(URL + "/admin/users/7", timeout=20)
        refused(answer.status_code, answer.json())
        # A body of unknown length.
        assert session.post(URL + "/body", data=iter([b"to some", b"one@example.com"]), timeout=20).text == MASKED


def with_httpx():
    with httpx.Client(timeout=20) as client:
        assert client.post(URL + "/body", content=SENT).text == MASKED
        answer = client.get(URL + "/admin")
        refused(answer.status_code, answer.json())
        with client.stream("GET", URL + "/events") as stream:
            lines = [line for line in stream.iter_lines() if line]
        assert len(lines) == 3 and all('"email": "[redacted]"' in line for line in lines), lines


async def with_aiohttp():
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(20)) as session:
        async with session.post(URL + "/body", data=SENT) as answer:
            assert await answer.text() == MASKED
        async with session.get(URL + "/admin") as answer:
            refused(answer.status, await answer.json(content_type=None))

        async def echo(n):
            async with session.get(f"{URL}/echo?n={n}") as answer:
                return (await answer.json())["path"]

        assert await asyncio.gather(*map(echo, range(20))) == [f"/echo?n={n}" for n in range(20)]


with_requests()
with_httpx()
asyncio.run(with_aiohttp())
print("ok")

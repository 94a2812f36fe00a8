"""A server of WebSocket for tests: Python's `websockets`, and one that sends whatever bytes its path says."""

import base64
import hashlib
import json
import os
import socket
import ssl
import sys
import threading
from urllib.parse import parse_qs, urlsplit

from websockets.sync.server import serve

FOLDER = sys.argv[1]
RAW = False
LOCK = threading.Lock()
CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
CONTEXT.load_cert_chain(os.path.join(FOLDER, "server.crt"), os.path.join(FOLDER, "server.key"))


def log(**seen):
    with LOCK, open(os.path.join(FOLDER, "seen"), "a") as file:
        file.write(json.dumps(seen) + "\n")


def choose(_, offered):
    return "chat" if "chat" in offered else None


def talk(connection):
    fields = [[name.lower(), value] for name, value in connection.request.headers.raw_items()]
    log(path=connection.request.path, fields=fields)
    query = parse_qs(urlsplit(connection.request.path).query)
    if "parts" in query:
        # One message in as many frames.
        connection.send(iter(query["parts"]))
    if "ping" in query:
        connection.ping(b"from the server").wait()
    try:
        for message in connection:
            log(message=message if isinstance(message, str) else message.hex(), text=isinstance(message, str))
            connection.send(message)
    finally:
        log(code=connection.close_code, reason=connection.close_reason)


def raw(client):
    """Agrees to the upgrade, changed as the query says, and sends the bytes that it has in hexadecimal."""
    with CONTEXT.wrap_socket(client, server_side=True) as stream:
        head = b""
        while b"\r\n\r\n" not in head:
            head += stream.recv(1)
        lines = head.decode().split("\r\n")
        query = {name: values[0] for name, values in parse_qs(urlsplit(lines[0].split(" ")[1]).query).items()}
        fields = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
        key = [line.split(": ", 1)[1] for line in lines if line.lower().startswith("sec-websocket-key")][0]
        accept = base64.b64encode(hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        answer = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": accept.decode()}
        for name, value in query.items():
            if name != "hex":
                answer[name] = value
        status = answer.pop("status", "101 Switching Protocols")
        lines = [f"{name}: {value}" for name, value in answer.items() if value != "none"]
        stream.sendall(("\r\n".join([f"HTTP/1.1 {status}", *lines]) + "\r\n\r\n").encode())
        stream.sendall(bytes.fromhex(query.get("hex", "")))
        received = b""
        try:
            while piece := stream.recv(4096):
                received += piece
        except OSError:
            pass
        log(received=received.hex())


def accept(listener):
    while True:
        client, _ = listener.accept()
        threading.Thread(target=forgiving, args=[client], daemon=True).start()


def forgiving(client):
    try:
        raw(client)
    except OSError:
        """Clients go away in tests."""


if RAW:
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    accept(listener)
else:
    options = {"select_subprotocol": choose, "ping_interval": None, "max_size": None}
    with serve(talk, "127.0.0.1", 0, ssl=CONTEXT, **options) as server:
        print(server.socket.getsockname()[1], flush=True)
        server.serve_forever()

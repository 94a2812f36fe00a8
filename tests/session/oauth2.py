"""An authorization server and an API in one, over TLS. What it does with the next requests is in the file `mode`."""

import base64
import json
import os
import secrets
import ssl
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote_plus

FOLDER = sys.argv[1]
LOCK = threading.Lock()
STATE = {"tokens": set(), "refresh": "first refresh/token", "issued": 0}


def mode():
    try:
        with open(os.path.join(FOLDER, "mode")) as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""


def log(name, entry):
    with open(os.path.join(FOLDER, name), "a") as file:
        file.write(json.dumps(entry) + "\n")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def send(self, status, value, headers=()):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        for name, text in headers:
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def token(self, form, now):
        log("asked", {"form": form, "authorization": self.headers.get("Authorization")})
        if now == "hang":
            time.sleep(60)
        if now == "huge":
            return self.send(200, b'{"access_token": "' + b"x" * (1 << 20) + b'"}')
        if now == "broken":
            return self.send(200, b'{"access_token": "half')
        if now == "redirect":
            return self.send(307, {}, [("Location", "/token")])
        if now == "error":
            return self.send(400, {"error": "invalid_client", "error_description": "hush-4711 is wrong"})
        if now == "html":
            return self.send(200, b"<html>please log in</html>", [("Content-Type", "text/html")])
        if now == "slow":
            time.sleep(0.3)
        answer = {"token_type": "bearer", "expires_in": 0 if now == "short" else 3600}
        with LOCK:
            if form.get("grant_type") == ["refresh_token"]:
                if form.get("refresh_token") != [STATE["refresh"]]:
                    return self.send(400, {"error": "invalid_grant"})
                if now == "rotate":
                    STATE["refresh"] = answer["refresh_token"] = "refresh-" + secrets.token_hex(12)
            else:
                scheme, _, pair = self.headers.get("Authorization", "").partition(" ")
                pair = [unquote_plus(part) for part in base64.b64decode(pair).decode().split(":")]
                if scheme != "Basic" or pair != ["the bot", "hush-4711 &co"]:
                    return self.send(401, {"error": "invalid_client"})
            STATE["issued"] += 1
            answer["access_token"] = "token-%d-%s" % (STATE["issued"], secrets.token_urlsafe(16))
            if now == "alone":
                STATE["tokens"].clear()
            STATE["tokens"].add(answer["access_token"])
        self.send(200, answer)

    def do(self):
        body, now = self.body(), mode()
        if self.path == "/token":
            return self.token(parse_qs(body.decode()), now)
        authorization = self.headers.get_all("Authorization") or []
        log("called", {"path": self.path, "authorization": authorization, "body": len(body)})
        if self.path == "/revoke":
            # Good for this request only.
            with LOCK:
                STATE["tokens"].clear()
            return self.send(200, {})
        good = len(authorization) == 1 and authorization[0].removeprefix("Bearer ") in STATE["tokens"]
        if not good or self.path == "/never":
            return self.send(401, {"error": "invalid_token", "sent": authorization}, [("WWW-Authenticate", "Bearer")])
        self.send(200, {"headers": list(self.headers.items())}, [("X-Echo", authorization[0])])

    do_GET = do_POST = do


class Server(ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, *_):
        """Clients go away in tests."""


server = Server(("127.0.0.1", 0), Handler)
server.daemon_threads = True
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(os.path.join(FOLDER, "server.crt"), os.path.join(FOLDER, "server.key"))
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_port, flush=True)
server.serve_forever()

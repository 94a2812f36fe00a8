"""A service of AWS as far as signatures go: it checks each by itself, over TLS, and logs what it was sent."""

import hashlib
import hmac
import json
import os
import ssl
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote_to_bytes

FOLDER = sys.argv[1]
LOCK = threading.Lock()
STRICT = "-._~"


def keys():
    """The keys that are good now: by id, secret and session token."""
    with open(os.path.join(FOLDER, "keys")) as file:
        return json.load(file)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def wrong(self, body):
        """Why the signature is none, or nothing."""
        fields = self.headers.get_all("Authorization") or []
        if len(fields) != 1 or not fields[0].startswith("AWS4-HMAC-SHA256 "):
            return "no signature, or several"
        parts = dict(part.strip().split("=", 1) for part in fields[0].split(" ", 1)[1].split(","))
        key, date, region, service, end = parts["Credential"].split("/")
        if key not in keys() or end != "aws4_request":
            return "nobody has this key"
        secret, token = keys()[key]
        if self.headers.get_all("X-Amz-Security-Token") != ([token] if token else None):
            return "the session token is another"
        path, _, query = self.path.partition("?")
        if "x-amz-signature" in query.lower() or "x-amz-credential" in query.lower():
            return "there is a signature in the query"
        if service == "s3":
            path = quote(unquote_to_bytes(path), safe=STRICT + "/")
        else:
            path = quote(path, safe=STRICT + "/")
        pairs = [(pair.split("=", 1) + [""])[:2] for pair in query.split("&") if pair]
        pairs = sorted([quote(unquote_to_bytes(text), safe=STRICT) for text in pair] for pair in pairs)
        names = parts["SignedHeaders"].split(";")
        for name in ["host", "x-amz-date", "x-amz-content-sha256"] + [n.lower() for n in self.headers if n.lower().startswith("x-amz-")]:
            if name not in names:
                return name + " is not signed"
        lines = [n + ":" + ",".join(" ".join(v.split()) for v in self.headers.get_all(n)) + "\n" for n in names]
        stated = self.headers["X-Amz-Content-Sha256"]
        if stated != "UNSIGNED-PAYLOAD" and stated != hashlib.sha256(body).hexdigest():
            return "the body is another"
        query = "&".join("=".join(pair) for pair in pairs)
        request = "\n".join([self.command, path, query, "".join(lines), ";".join(names), stated])
        time = self.headers["X-Amz-Date"]
        if not time.startswith(date):
            return "the day is another"
        text = "\n".join(
            ["AWS4-HMAC-SHA256", time, "/".join([date, region, service, end]), hashlib.sha256(request.encode()).hexdigest()]
        )
        sign = b"AWS4" + secret.encode()
        for part in [date, region, service, end]:
            sign = hmac.new(sign, part.encode(), hashlib.sha256).digest()
        if parts["Signature"] != hmac.new(sign, text.encode(), hashlib.sha256).hexdigest():
            return "the signature is another, of\n" + request
        return None

    def do(self):
        body = self.body()
        wrong = self.wrong(body)
        seen = {
            "wrong": wrong,
            "method": self.command,
            "path": self.path,
            "headers": [[name.lower(), value] for name, value in self.headers.items()],
            "body": body[:64].decode("latin-1"),
            "length": len(body),
        }
        with LOCK, open(os.path.join(FOLDER, "seen"), "a") as log:
            log.write(json.dumps(seen) + "\n")
        answer = json.dumps(seen).encode()
        self.send_response(403 if wrong else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do


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

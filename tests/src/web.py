"""A web server for tests: it does what its path says, and logs what it was sent, a line of JSON for each request."""

import base64
import json
import os
import ssl
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

FOLDER, CERTIFICATE = sys.argv[1], sys.argv[2:]
LOCK = threading.Lock()


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

    def send(self, status, kind, body, headers=()):
        self.send_response(status)
        if kind:
            self.send_header("Content-Type", kind)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def stream(self, kind, parts, pause=0.0, coding=None):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        if coding:
            self.send_header("Content-Encoding", coding)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for part in parts:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            self.wfile.flush()
            time.sleep(pause)
        self.wfile.write(b"0\r\n\r\n")

    def discard(self):
        """Reads a body, and keeps nothing of it; its length."""
        if "Content-Length" in self.headers:
            length = left = int(self.headers["Content-Length"])
            while left:
                left -= len(self.rfile.read(min(left, 1 << 16)))
            return length
        length = 0
        while size := int(self.rfile.readline(), 16):
            length += len(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return length

    def do(self):
        url = urlsplit(self.path)
        if url.path == "/discard":
            return self.send(200, "text/plain", b"%d" % self.discard())
        body = self.body()
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        seen = {
            "method": self.command,
            "path": self.path,
            "headers": [[name.lower(), value] for name, value in self.headers.items()],
            "body": body.decode("latin-1"),
        }
        with LOCK, open(os.path.join(FOLDER, "requests"), "a") as log:
            log.write(json.dumps(seen) + "\n")
        if url.path == "/echo":
            self.send(200, "application/json", json.dumps(seen).encode(), [("ETag", '"one"')])
        elif url.path == "/body":
            self.send(200, query.get("type", "text/plain"), body, [("ETag", '"one"')])
        elif url.path == "/parts":
            # The body's parts, each a chunk: base64, separated by dots.
            parts = [base64.b64decode(p) for p in body.split(b".")]
            self.stream(query.get("type", "text/plain"), parts, coding=query.get("coding"))
        elif url.path == "/events":
            events = [b'data: {"n": %d, "email": "someone@example.com"}\n\n' % n for n in range(3)]
            self.stream("text/event-stream", events, 0.3)
        elif url.path == "/encoded":
            self.send(200, "text/plain", b"text, as it is", [("Content-Encoding", query["as"])])
        elif url.path == "/partial":
            self.send(206, "text/plain", b"te", [("Content-Range", "bytes 0-1/4")])
        elif url.path == "/rotated":
            fresh = dict(seen["headers"]).get("authorization") == "Bearer " + query["to"]
            self.send(200 if fresh else 401, "text/plain", b"fresh" if fresh else b"stale")
        elif url.path.startswith("/files/"):
            try:
                with open(os.path.join(FOLDER, url.path[1:]), "rb") as file:
                    self.send(200, "application/octet-stream", file.read())
            except OSError:
                self.send(404, "text/plain", b"not there")
        elif url.path == "/close":
            self.send(200, "text/plain", b"bye")
            self.close_connection = True
        elif url.path == "/reason":
            self.send_response(200, "Fine " + dict(seen["headers"]).get("authorization", ""))
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif url.path == "/stream":
            self.stream("text/event-stream", [b'data: {"a": 1, "b": "x"}\n\n', b'data: [{"b": "x"}]\n\n', b"data: [DONE]\n\n"])
        elif url.path == "/redirect":
            self.send(302, None, b"", [("Location", query["to"])])
        elif url.path == "/large":
            part = b"some words and a number, 12, " * 2258 + b"to someone@example.com, and to nobody else, so, the end"[:54]
            kind = query.get("type", "application/octet-stream")
            self.stream(kind, (part for _ in range(16 * int(query["mib"]))))
        else:
            self.send(200, "text/plain", b"fine", [("Alt-Svc", 'h3=":443"')])

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do


class Server(ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, *_):
        """Clients go away in tests."""


server = Server(("127.0.0.1", 0), Handler)
server.daemon_threads = True
if CERTIFICATE:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*CERTIFICATE)
    server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_port, flush=True)
server.serve_forever()

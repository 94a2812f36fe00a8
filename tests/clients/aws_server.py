"""A store that takes what botocore's own signer, given the same request, would have signed in the same way."""

import os
import ssl
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import botocore.auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

FOLDER = sys.argv[1]
KEYS = Credentials("ASIAREAL", "another-Horse/battery+Staple", "a//session==token")
STORE, LOCK = {}, threading.Lock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def expected(self, body, fields):
        """The field that botocore would send for this very request."""
        credential = fields.split("Credential=")[1].split(",")[0].split("/")
        signed = fields.split("SignedHeaders=")[1].split(",")[0].split(";")
        service = {"s3": botocore.auth.S3SigV4Auth}.get(credential[3], botocore.auth.SigV4Auth)
        signer = service(KEYS, credential[3], credential[2])
        headers = {name: ",".join(self.headers.get_all(name)) for name in signed}
        url = "https://" + self.headers["Host"] + self.path
        request = AWSRequest(self.command, url, data=body, headers=headers)
        request.context["timestamp"] = self.headers["X-Amz-Date"]
        signer.headers_to_sign = lambda request: botocore.auth.HTTPHeaders.from_dict(headers)
        signer.payload = lambda request: self.headers["X-Amz-Content-Sha256"]
        text = signer.string_to_sign(request, signer.canonical_request(request))
        return "AWS4-HMAC-SHA256 Credential=%s, SignedHeaders=%s, Signature=%s" % (
            "/".join(["ASIAREAL", credential[1], *credential[2:]]),
            ";".join(signed),
            signer.signature(text, request),
        )

    def do(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fields = self.headers.get_all("Authorization") or [""]
        fits = len(fields) == 1 and "Credential=" in fields[0] and fields[0] == self.expected(body, fields[0])
        fits = fits and self.headers["X-Amz-Security-Token"] == KEYS.token and "X-Amz-Signature" not in self.path
        path = urlsplit(self.path).path
        with LOCK, open(os.path.join(FOLDER, "calls"), "a") as log:
            log.write("%s %s %s\n" % ("good" if fits else "wrong", self.command, self.path))
        status, answer, kind = 200, b"", "application/xml"
        if not fits:
            status, answer = 403, b"<Error><Code>SignatureDoesNotMatch</Code><Message>no</Message></Error>"
        elif self.command == "PUT":
            STORE[path] = body
        elif "X-Amz-Target" in self.headers:
            answer, kind = b'{"TableNames": ["one"]}', "application/x-amz-json-1.0"
        elif path in STORE:
            answer, kind = STORE[path], "application/octet-stream"
        elif "list-type" in self.path:
            keys = "".join("<Contents><Key>k%d</Key><Size>1</Size></Contents>" % n for n in range(len(STORE)))
            answer = b'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">%s</ListBucketResult>' % keys.encode()
        else:
            status, answer = 404, b"<Error><Code>NoSuchKey</Code><Message>none</Message></Error>"
        self.send_response(status)
        self.send_header("Content-Type", kind)
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

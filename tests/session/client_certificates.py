"""A server that wants a client certificate of its own CA. It says whose it was shown, and what is in the file `said`."""

import json
import os
import ssl
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FOLDER = sys.argv[1]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        name = dict(pair for part in self.connection.getpeercert()["subject"] for pair in part)["commonName"]
        answer = {"name": name, "authorization": self.headers.get("Authorization")}
        if os.path.exists(os.path.join(FOLDER, "said")):
            with open(os.path.join(FOLDER, "said")) as file:
                answer["said"] = file.read()
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(os.path.join(FOLDER, "server.crt"), os.path.join(FOLDER, "server.key"))
context.load_verify_locations(os.path.join(FOLDER, "ca.crt"))
context.verify_mode = ssl.CERT_REQUIRED
server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_address[1], flush=True)
server.serve_forever()

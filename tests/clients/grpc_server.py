"""A server of gRPC over TLS. Arguments: a folder with the certificate, where it logs the metadata of its calls too."""

import concurrent.futures
import json
import os
import sys
import time

import grpc

FOLDER = sys.argv[1]


def read(name):
    with open(os.path.join(FOLDER, name), "rb") as file:
        return file.read()


def log(context, method):
    fields = dict(context.invocation_metadata())
    with open(os.path.join(FOLDER, "calls"), "a") as file:
        file.write(json.dumps({"method": method, "authorization": fields.get("authorization")}) + "\n")


def get(request, context):
    log(context, "Get")
    if request == b"missing":
        context.abort(grpc.StatusCode.NOT_FOUND, "there is no such order")
    context.set_trailing_metadata((("x-cost", "3"),))
    return b"order " + request


def watch(request, context):
    log(context, "Watch")
    for n in range(3):
        yield b"event %d" % n
        time.sleep(0.2)


def add(requests, context):
    log(context, "Add")
    return b"%d" % sum(int(request) for request in requests)


def chat(requests, context):
    log(context, "Chat")
    for request in requests:
        yield b"you said " + request


server = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=20))
handlers = {
    "Get": grpc.unary_unary_rpc_method_handler(get),
    "Watch": grpc.unary_stream_rpc_method_handler(watch),
    "Add": grpc.stream_unary_rpc_method_handler(add),
    "Chat": grpc.stream_stream_rpc_method_handler(chat),
    "Remove": grpc.unary_unary_rpc_method_handler(get),
}
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("shop.Orders", handlers)])
credentials = grpc.ssl_server_credentials([(read("server.key"), read("server.crt"))])
print(server.add_secure_port("127.0.0.1:0", credentials), flush=True)
server.start()
server.wait_for_termination()

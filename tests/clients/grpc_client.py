"""Calls of gRPC as an agent would make them. Argument: the port. Prints `ok`."""

import os
import queue
import sys

import grpc

with open(os.environ["SSL_CERT_FILE"], "rb") as bundle:
    given = grpc.ssl_channel_credentials(bundle.read())
# The variable of gRPC's own names the same file.
for credentials in [given, grpc.ssl_channel_credentials()]:
    with grpc.secure_channel("localhost:" + sys.argv[1], credentials) as channel:
        get = channel.unary_unary("/shop.Orders/Get")
        answer, call = get.with_call(b"7", timeout=20, metadata=[("authorization", "Bearer mine")])
        assert answer == b"order 7" and dict(call.trailing_metadata())["x-cost"] == "3", call.trailing_metadata()
        try:
            get(b"missing", timeout=20)
            raise SystemExit("found")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.NOT_FOUND and error.details() == "there is no such order", error
        events = list(channel.unary_stream("/shop.Orders/Watch")(b"", timeout=20))
        assert events == [b"event 0", b"event 1", b"event 2"], events
        total = channel.stream_unary("/shop.Orders/Add")(iter([b"1", b"2", b"3"]), timeout=20)
        assert total == b"6", total

        # Each word is said when the one before was answered.
        words = queue.Queue()
        words.put(0)
        said = []
        for answer in channel.stream_stream("/shop.Orders/Chat", lambda n: b"word %d" % n)(iter(words.get, None), timeout=20):
            said.append(answer)
            words.put(len(said) if len(said) < 5 else None)
        assert said == [b"you said word %d" % n for n in range(5)], said
        calls = [get.future(b"%d" % n, timeout=20) for n in range(50)]
        assert [call.result() for call in calls] == [b"order %d" % n for n in range(50)]
        try:
            channel.unary_unary("/shop.Orders/Remove")(b"7", timeout=20)
            raise SystemExit("not refused")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.PERMISSION_DENIED and "orders stay" in error.details(), error
print("ok")

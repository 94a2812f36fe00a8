"""A stand-in for a model's service, for tests: it speaks the wire formats of OpenAI's chat completions and responses and of
Anthropic's messages, in one piece and as server-sent events, and logs what it was sent. It answers a user who asks it to look
something up with a tool call, a tool's result with a text that has it, `say: X` with X, and `long: N X` with N letters and X."""

import json
import ssl
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FOLDER = sys.argv[1]
LOCK = threading.Lock()
TOKENS = (120, 30)
ARGUMENTS = {"sql": "SELECT count(*) FROM orders"}


def text_of(content):
    if isinstance(content, str):
        return content
    return " ".join(text_of(block.get("text") or block.get("content") or block.get("output") or "") for block in content or [])


def answer_to(messages):
    """A text, or None for a tool call."""
    last = messages[-1] if messages else {}
    content = last.get("content", last.get("output", ""))
    is_result = last.get("role") == "tool" or last.get("type") == "function_call_output"
    if isinstance(content, list):
        is_result = is_result or any(block.get("type") == "tool_result" for block in content)
    text = text_of(content)
    if is_result:
        return f"There are {text}."
    if "look up" in text:
        return None
    if "long: " in text:
        length, rest = text.split("long: ", 1)[1].split(" ", 1)
        return "and so on " * (int(length) // 10) + rest
    return text.split("say: ", 1)[1] if "say: " in text else "Good day."


def pieces(text):
    size = 3 if len(text) < 10_000 else 30_001
    return [text[at : at + size] for at in range(0, len(text), size)]


def chat(asked, say):
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": asked["model"]}
    usage = {"prompt_tokens": TOKENS[0], "completion_tokens": TOKENS[1], "total_tokens": sum(TOKENS)}
    function = {"name": "query", "arguments": json.dumps(ARGUMENTS)}
    call = {"id": "call_1", "type": "function", "function": function}
    reason = "stop" if say is not None else "tool_calls"
    if not asked.get("stream"):
        message = {"role": "assistant", "content": say} if say is not None else {
            "role": "assistant", "content": None, "tool_calls": [call]}
        return {**head, "choices": [{"index": 0, "message": message, "finish_reason": reason}], "usage": usage}
    deltas = [{"role": "assistant", "content": ""}]
    if say is not None:
        deltas += [{"content": piece} for piece in pieces(say)]
    else:
        deltas += [{"tool_calls": [{"index": 0, **call, "function": {"name": "query", "arguments": ""}}]}]
        deltas += [{"tool_calls": [{"index": 0, "function": {"arguments": piece}}]} for piece in pieces(function["arguments"])]
    head["object"] = "chat.completion.chunk"
    events = [{**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    events.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    if asked.get("stream_options", {}).get("include_usage"):
        events.append({**head, "choices": [], "usage": usage})
    return [f"data: {json.dumps(event)}\n\n" for event in events] + ["data: [DONE]\n\n"]


def messages(asked, say):
    usage = {"input_tokens": TOKENS[0], "output_tokens": TOKENS[1]}
    block = {"type": "text", "text": say} if say is not None else {
        "type": "tool_use", "id": "toolu_1", "name": "query", "input": ARGUMENTS}
    reason = "end_turn" if say is not None else "tool_use"
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": asked["model"], "content": [block],
               "stop_reason": reason, "stop_sequence": None, "usage": usage}
    if not asked.get("stream"):
        return message
    empty = {**block, **({"text": ""} if say is not None else {"input": {}})}
    delta = (lambda piece: {"type": "text_delta", "text": piece}) if say is not None else (
        lambda piece: {"type": "input_json_delta", "partial_json": piece})
    events = [{"type": "message_start", "message": {**message, "content": [], "stop_reason": None,
                                                    "usage": {**usage, "output_tokens": 1}}},
              {"type": "content_block_start", "index": 0, "content_block": empty}, {"type": "ping"}]
    events += [{"type": "content_block_delta", "index": 0, "delta": delta(piece)}
               for piece in pieces(say if say is not None else json.dumps(ARGUMENTS))]
    events += [{"type": "content_block_stop", "index": 0},
               {"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None},
                "usage": {"output_tokens": TOKENS[1]}}, {"type": "message_stop"}]
    return [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events]


def responses(asked, say):
    usage = {"input_tokens": TOKENS[0], "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
             "output_tokens": TOKENS[1], "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": sum(TOKENS)}
    part = {"type": "output_text", "text": say, "annotations": []}
    item = {"type": "message", "id": "item_1", "role": "assistant", "status": "completed", "content": [part]}
    if say is None:
        item = {"type": "function_call", "id": "item_1", "call_id": "call_1", "name": "query",
                "arguments": json.dumps(ARGUMENTS), "status": "completed"}
    response = {"id": "resp_1", "object": "response", "created_at": 1, "model": asked["model"], "status": "completed",
                "output": [item], "usage": usage, "error": None, "incomplete_details": None, "instructions": None,
                "metadata": {}, "parallel_tool_calls": True, "temperature": 1.0, "tool_choice": "auto", "tools": [],
                "top_p": 1.0}
    if not asked.get("stream"):
        return response
    begun = {**response, "status": "in_progress", "output": [], "usage": None}
    place = {"item_id": "item_1", "output_index": 0}
    events = [{"type": "response.created", "response": begun},
              {"type": "response.output_item.added", "output_index": 0,
               "item": {**item, "status": "in_progress", **({"content": []} if say is not None else {"arguments": ""})}}]
    if say is not None:
        place["content_index"] = 0
        events.append({"type": "response.content_part.added", **place, "part": {**part, "text": ""}})
        events += [{"type": "response.output_text.delta", **place, "delta": piece, "logprobs": []} for piece in pieces(say)]
        events.append({"type": "response.output_text.done", **place, "text": say, "logprobs": []})
        events.append({"type": "response.content_part.done", **place, "part": part})
    else:
        text = item["arguments"]
        events += [{"type": "response.function_call_arguments.delta", **place, "delta": piece} for piece in pieces(text)]
        events.append({"type": "response.function_call_arguments.done", **place, "name": "query", "arguments": text})
    events.append({"type": "response.output_item.done", "output_index": 0, "item": item})
    events.append({"type": "response.completed", "response": response})
    return [f"event: {event['type']}\ndata: {json.dumps({**event, 'sequence_number': n})}\n\n" for n, event in enumerate(events)]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def send(self, status, answer):
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.send(200, {"object": "list", "data": [{"id": "stand-in-1", "object": "model"}]})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = [[name.lower(), value] for name, value in self.headers.items()]
        with LOCK, open(f"{FOLDER}/requests", "a") as log:
            line = {"method": "POST", "path": self.path, "headers": headers, "body": body.decode("latin-1")}
            log.write(json.dumps(line) + "\n")
        asked = json.loads(body)
        if asked["model"] == "busy":
            return self.send(529, {"type": "error", "error": {"type": "overloaded_error", "message": "too busy"}})
        spoken = {"/v1/chat/completions": chat, "/v1/messages": messages, "/v1/responses": responses}[self.path.lower().rstrip("/")]
        said = asked.get("messages", asked.get("input"))
        said = [{"role": "user", "content": said}] if isinstance(said, str) else said
        answer = spoken(asked, answer_to(said))
        if not asked.get("stream"):
            return self.send(200, answer)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in map(str.encode, answer):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(f"{FOLDER}/server.crt", f"{FOLDER}/server.key")
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_address[1], flush=True)
server.serve_forever()

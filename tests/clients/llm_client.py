"""The official clients of OpenAI and Anthropic as an agent would use them. Argument: the URL. Prints `ok`."""

import json
import sys

import anthropic
import openai

URL = sys.argv[1]
MODEL = "stand-in-1"
LOOK, SAY = "please look up the orders", "say: write to someone@example.com"
MASKED = "write to [redacted]"
SQL = {"sql": "SELECT count(*) FROM orders"}
TOOL = {"name": "query", "description": "runs SQL", "parameters": {"type": "object", "properties": {}}}


def user(text):
    return [{"role": "user", "content": text}]


def chat(client):
    def create(**more):
        return client.chat.completions.create(model=MODEL, max_completion_tokens=100, **more)

    tools = [{"type": "function", "function": TOOL}]
    asked = create(messages=user(LOOK), tools=tools)
    call = asked.choices[0].message.tool_calls[0]
    assert json.loads(call.function.arguments) == SQL and asked.usage.prompt_tokens == 120, asked
    result = {"role": "tool", "tool_call_id": call.id, "content": "41"}
    said = create(messages=[*user(LOOK), asked.choices[0].message, result], tools=tools)
    assert said.choices[0].message.content == "There are 41.", said
    assert create(messages=user(SAY)).choices[0].message.content == MASKED
    stream = create(messages=user(SAY), stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == MASKED, chunks
    assert chunks[-1].usage.completion_tokens == 30, chunks[-1]
    with client.chat.completions.stream(model=MODEL, messages=user(LOOK), tools=tools, max_completion_tokens=100) as events:
        for _ in events:
            pass
        call = events.get_final_completion().choices[0].message.tool_calls[0]
    assert json.loads(call.function.arguments) == SQL, call


def responses(client):
    assert client.responses.create(model=MODEL, input=SAY).output_text == MASKED
    tools = [{"type": "function", "strict": False, **TOOL}]
    call = client.responses.create(model=MODEL, input=LOOK, tools=tools).output[0]
    assert call.type == "function_call" and json.loads(call.arguments) == SQL, call
    with client.responses.stream(model=MODEL, input=SAY) as events:
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert text == MASKED and events.get_final_response().output_text == MASKED, text


def messages(client):
    def create(**more):
        return client.messages.create(model=MODEL, max_tokens=100, **more)

    tools = [{"name": "query", "input_schema": TOOL["parameters"]}]
    asked = create(messages=user(LOOK), tools=tools)
    call = asked.content[0]
    assert call.input == SQL and asked.usage.input_tokens == 120 and asked.stop_reason == "tool_use", asked
    result = [{"type": "tool_result", "tool_use_id": call.id, "content": "41"}]
    turns = [*user(LOOK), {"role": "assistant", "content": asked.content}, {"role": "user", "content": result}]
    assert create(messages=turns, tools=tools).content[0].text == "There are 41."
    with client.messages.stream(model=MODEL, max_tokens=100, messages=user(SAY)) as stream:
        assert "".join(stream.text_stream) == MASKED
        assert stream.get_final_message().usage.output_tokens == 30
    with client.messages.stream(model=MODEL, max_tokens=100, messages=user(LOOK), tools=tools) as stream:
        assert stream.get_final_message().content[0].input == SQL


def refused(ask, error, words):
    try:
        ask()
    except error as raised:
        assert words in str(raised), raised
    else:
        raise SystemExit(f"not refused: {words}")


with openai.OpenAI(base_url=URL + "/v1", api_key="mine", max_retries=2) as client:
    chat(client)
    responses(client)
    other = {"model": "other-1", "messages": user("x")}
    refused(lambda: client.chat.completions.create(**other), openai.PermissionDeniedError, "no price for the model other-1")
    listed = openai.PermissionDeniedError
    refused(client.models.list, listed, "no rule of the policy allows this")
    long = {"model": MODEL, "max_completion_tokens": 2_000_000, "messages": user("x")}
    refused(lambda: client.chat.completions.create(**long), openai.RateLimitError, "budget of tokens is used up")
with anthropic.Anthropic(base_url=URL, api_key="mine", max_retries=2) as client:
    messages(client)
    other = {"model": "other-1", "max_tokens": 10, "messages": user("x")}
    refused(lambda: client.messages.create(**other), anthropic.PermissionDeniedError, "the policy limits money")
print("ok")

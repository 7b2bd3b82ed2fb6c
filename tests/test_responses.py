"""OpenAI's Responses API as its clients meet it: the openai package on real server processes; answers cut anyhow."""

import asyncio
import json
import re
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter
from serving import Server, serving
from waiting import wait_until

from evergreen.database import Database
from evergreen.engine.answer import Piece
from evergreen.engine.base import Logprob, Output, TokenLogprobs
from evergreen.feedback import Interaction, Log
from evergreen.home import new_id
from evergreen.records import Completion, Message
from evergreen.serve.answering import is_long
from evergreen.serve.call import Call
from evergreen.serve.choice import Choice
from evergreen.serve.keys import Key
from evergreen.serve.output_items import Events
from evergreen.serve.protocol import Head, chat_call
from evergreen.serve.responses import ResponsesRequest, in_its_words, response_call
from evergreen.serve.schemas import ApiError, ChatRequest, read
from evergreen.serve.stored import continued, row_of

ROUTE = "/v1/responses"
LOGPROBS = "message.output_text.logprobs"
EVENT = TypeAdapter(ResponseStreamEvent)
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"],
              "additionalProperties": False}  # fmt: skip
WEATHER = {"type": "function", "name": "weather", "description": "of a city", "parameters": PARAMETERS, "strict": True}
CLOCK = {"type": "function", "name": "clock"}
SPACE = {"type": "namespace", "name": "times", "description": "of clocks", "tools": [CLOCK]}
CALL = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Oslo"}'}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "sunny"}
REFERENCE = {"type": "item_reference", "id": "msg_01a20012-4cc4-7cb4-9816-ecb970fc4213_0"}
HEAD = Head("resp_1", "nano", 1700000000, "0123", {"release": None})


class Sum(BaseModel):
    total: int


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Behind keys; says the prompt's token ids, five milliseconds each."""
    folder = tmp_path_factory.mktemp("fast")
    (folder / "keys.yaml").write_text("[{key: one, name: ann}, {key: two, name: bob}]")
    flags = ["--model", "nano", "--api_key_file", str(folder / "keys.yaml")]
    with serving(folder / "home", *flags, FAKE_STEP_SECONDS="0.005") as server:
        yield server


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    home = tmp_path_factory.mktemp("nano") / "home"
    with serving(home, "--model", "nano", "--torch_dtype", "float32", fake=False) as server:
        yield server


def client_of(server: Server, key: str = "one") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


def ask(server: Server, input="hello", key: str = "one", **more) -> Response:
    return client_of(server, key).responses.create(model="nano", input=input, **{"max_output_tokens": 5, **more})


def refused(server: Server, input="hello", **more) -> dict:
    with pytest.raises(openai.APIStatusError) as caught:
        ask(server, input, **more)
    return caught.value.body | {"status": caught.value.status_code}


def body(input="hello", **fields) -> ResponsesRequest:
    return read(ResponsesRequest, json.dumps({"input": input, **fields}).encode())


def call_of(input="hello", **fields) -> Call:
    return response_call(body(input, **fields))


def complete(response) -> dict:
    """Its JSON, which has every field that the client's model wants, of the right type."""
    shown = response if isinstance(response, dict) else response.to_dict()
    Response.model_validate(shown)
    return shown


# -- whole and streamed


def test_a_response_is_complete_and_says_what_was_asked(server):
    answer = ask(server, metadata={"a": "b"}, instructions="Be brief.", tools=[WEATHER], temperature=0.5, user="u",
                 text={"format": {"type": "text"}})  # fmt: skip
    shown = complete(answer)
    assert answer.id.startswith("resp_") and answer.object == "response" and answer.error is None
    assert answer.output_text == answer.output[0].content[0].text and len(answer.output_text.split()) == 5
    assert answer.status == answer.output[0].status == "incomplete" and shown["completed_at"] is None
    assert answer.incomplete_details.reason == "max_output_tokens"
    usage = answer.usage
    assert (usage.output_tokens, usage.total_tokens) == (5, usage.input_tokens + 5) and usage.input_tokens > 100
    assert (answer.metadata, answer.instructions, answer.temperature, answer.user) == (
        {"a": "b"},
        "Be brief.",
        0.5,
        "u",
    )
    assert shown["tools"] == [WEATHER] and answer.text.format.type == "text" and answer.tool_choice == "auto"
    assert shown["evergreen"]["release"] is None and shown["evergreen"]["engine_seconds"] > 0


def test_a_streams_events_are_openais_in_order_and_end_in_the_answer_given_whole(server):
    whole = ask(server)
    events = list(ask(server, stream=True))
    assert [EVENT.validate_python(event.to_dict()).sequence_number for event in events] == list(range(len(events)))
    assert [event.type.removeprefix("response.") for event in events] == [
        "created", "in_progress", "output_item.added", "content_part.added", *["output_text.delta"] * 5,
        "output_text.done", "content_part.done", "output_item.done", "incomplete",
    ]  # fmt: skip
    assert "".join(event.delta for event in events if event.type.endswith(".delta")) == whole.output_text
    last = events[-1].response
    assert last.output_text == events[-4].text == whole.output_text and last.usage == whole.usage
    assert events[0].response.id == last.id and events[0].response.status == "in_progress"
    assert {event.item_id for event in events if hasattr(event, "item_id")} == {last.output[0].id}
    with server.client("one") as client, client.stream("POST", ROUTE, json={"input": "x", "stream": True}) as raw:
        lines = raw.read().decode().split("\n\n")
    assert lines[0].startswith("event: response.created\ndata: {") and "[DONE]" not in lines[-2]


def test_the_clients_stream_helper_puts_the_response_together(server):
    with client_of(server).responses.stream(model="nano", input="hello") as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        answer = stream.get_final_response()
    assert answer.status == "completed" and answer.output_text == text and len(text.split()) > 5
    assert answer.completed_at >= answer.created_at and answer.incomplete_details is None


def test_the_async_client_asks_many_at_once(server):
    async def many() -> list[tuple[str, str]]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="one") as client:

            async def one(i: int) -> tuple[str, str]:
                how = {"model": "nano", "input": f"{i} hello", "max_output_tokens": 30 + i}
                whole = await client.responses.create(**how)
                stream = await client.responses.create(**how, stream=True)
                return whole.output_text, [event async for event in stream][-1].response.output_text

            return await asyncio.gather(*(one(i) for i in range(9)))

    texts = asyncio.run(many())
    assert all(whole == streamed for whole, streamed in texts) and len({whole for whole, _ in texts}) == 9


def test_an_engine_that_dies_ends_a_stream_as_failed_and_a_whole_answer_as_503(server):
    long = "word " * 800

    def whole() -> openai.APIStatusError:
        with pytest.raises(openai.InternalServerError) as caught:
            ask(server, long, max_output_tokens=1000)
        return caught.value

    with ThreadPoolExecutor(1) as thread:
        asked = thread.submit(whole)
        stream = iter(ask(server, long, max_output_tokens=1000, stream=True))
        first = next(stream)
        wait_until(lambda: re.search(r"evergreen_requests_running{.*} 2.0", server.client().get("/metrics").text))
        server.engine().kill()
        *_, last = stream
    assert EVENT.validate_python(last.to_dict()).type == "response.failed" and last.response.id == first.response.id
    assert last.response.error.code == "server_error" and "SIGKILL" in last.response.error.message
    assert last.response.status == "failed" and asked.result().status_code == 503
    assert ask(server).output_text  # by the next engine


# -- what is refused


REFUSED = {
    "background": ({"background": True}, "background"),
    "a conversation": ({"conversation": "conv_1"}, "conversation"),
    "a prompt template": ({"prompt": {"id": "p"}}, "prompt"),
    "web search": ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    "file search": ({"tools": [WEATHER, {"type": "file_search", "vector_store_ids": ["v"]}]}, "tools[1].type"),
    "a computer": ({"tools": [{"type": "computer_use_preview", "display_width": 5}]}, "tools[0].type"),
    "a built-in tool's choice": ({"tools": [WEATHER], "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
    "an image": (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:"}]}]},
        "input[0].content[0].type",
    ),
    "audio": (
        {"input": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
        "input[0].content[0].type",
    ),
    "a built-in tool's item": ({"input": [{"type": "web_search_call", "id": "w"}]}, "input[0].type"),
    "a reference to nothing": ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].id"),
    "nothing": ({"input": []}, "input"),
    "no type": ({"input": [{"content": "x"}]}, "input[0].type"),
    "a chat's field": ({"messages": []}, "messages"),
    "a chat's limit": ({"max_tokens": 5}, "max_tokens"),
    "a chat's form": ({"response_format": {"type": "json_object"}}, "response_format"),
    "several": ({"n": 2}, "n"),
    "a foreign field": ({"input": [{**CALL, "output": "x"}]}, "input[0].output"),
    "a missing field": ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
    "a result of nothing": ({"input": [RESULT]}, "input[0].call_id"),
    "a call without its result": ({"input": [{"role": "user", "content": "x"}, CALL]}, "input[1]"),
    "an unknown tool": ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
    "a schema that is none": (
        {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "nope"}}}}, "text.format.schema",
    ),
    "a form without a schema": ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
    "a schema of no form": ({"text": {"format": {"type": "text", "schema": {}}}}, "text.format.schema"),
    "effort that no template knows": ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
    "one name in two namespaces": ({"tools": [SPACE, {**SPACE, "name": "other"}]}, "tools"),
    "web search in a namespace": ({"tools": [{**SPACE, "tools": [{"type": "web_search"}]}]}, "tools[0].tools[0].type"),
    "too many functions": (
        {"tools": [{**SPACE, "name": f"n{i}", "tools": [{**CLOCK, "name": f"f{i}_{j}"} for j in range(70)]}
                   for i in range(2)]}, "tools",
    ),
    "too long": ({"input": "word " * 9000}, "input"),
    "too many tokens": ({"max_output_tokens": 99_999}, "max_output_tokens"),
    "none such before": ({"previous_response_id": "resp_1"}, "previous_response_id"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_or_cannot_be_is_refused_by_name(name, server):
    fields, param = REFUSED[name]
    with server.client("one") as client:
        answer = client.post(ROUTE, json={"input": "x", **fields})
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == param and error["type"] == "invalid_request_error", error
    assert set(error) == {"message", "type", "param", "code"}


def test_a_wrong_key_and_an_unknown_model_are_refused_as_elsewhere(server):
    with pytest.raises(openai.AuthenticationError):
        ask(server, key="three")
    with pytest.raises(openai.NotFoundError, match="gpt"):
        client_of(server).responses.create(model="gpt", input="x")


def test_every_field_of_the_clients_schema_is_a_field_here():
    from openai.types.responses import response_create_params as params

    kinds = (params.ResponseCreateParamsStreaming, params.ResponseCreateParamsNonStreaming)
    names = {name for kind in kinds for name in (kind.__required_keys__ | kind.__optional_keys__)}
    assert names <= set(ResponsesRequest.model_fields)


# -- a body means what a chat means


def chat(**fields) -> Call:
    return chat_call(read(ChatRequest, json.dumps(fields).encode()))


def test_a_body_comes_to_the_call_of_the_chat_that_says_the_same():
    form = {"name": "sum", "schema": {"type": "object"}, "strict": True}
    shared = {"temperature": 0.3, "top_p": 0.5, "seed": 7, "stop": "x", "min_p": 0.1, "user": "u", "top_logprobs": 2,
              "lora_request": {"lora_name": "l"}, "evergreen": {"knowledge": "off"}, "parallel_tool_calls": False,
              "cache_salt": "s", "metadata": {"a": "b"}}  # fmt: skip
    mine = call_of(
        "hi", instructions="Be brief.", max_output_tokens=9, tools=[WEATHER, CLOCK], include=[LOGPROBS],
        tool_choice={"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "clock"}]},
        text={"format": {"type": "json_schema", **form}}, reasoning={"effort": "none"}, truncation="auto", **shared,
    )  # fmt: skip
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "clock"}}]}
    theirs = chat(
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}], logprobs=True,
        max_completion_tokens=9, response_format={"type": "json_schema", "json_schema": form}, reasoning_effort="none",
        tools=[{"type": "function", "function": {**tool, "type": None}} for tool in (WEATHER, CLOCK)],
        tool_choice={"type": "allowed_tools", "allowed_tools": allowed}, **shared,
    )  # fmt: skip
    own = {"kind": "response", "may_trim": True, "repeated": mine.repeated}
    assert vars(mine) == vars(theirs) | own and theirs.sampling.grammar and theirs.tools


def test_items_become_the_turns_that_they_were():
    said = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
            "content": [{"type": "output_text", "text": "Let me see.", "annotations": [], "logprobs": []}]}  # fmt: skip
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA",
               "content": [{"type": "reasoning_text", "text": "Oslo?"}]}  # fmt: skip
    second = {**CALL, "call_id": "c2", "name": "clock", "arguments": "{}"}
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    messages = call_of(
        [{"role": "developer", "content": "Be brief."}, {"type": "message", "role": "user", "content": parts},
         thought, said, CALL, second, {**RESULT, "call_id": "c2", "output": [{"type": "input_text", "text": "noon"}]},
         RESULT, {"role": "assistant", "content": "Sunny."}, {"role": "assistant", "content": "And noon."},
         {"role": "user", "content": "Thanks."}]
    ).messages  # fmt: skip
    calls = ({"name": "weather", "arguments": {"city": "Oslo"}}, {"name": "clock", "arguments": {}})
    assert messages == (
        Message("system", "Be brief."), Message("user", "a\nb"), Message("assistant", "Let me see.", "Oslo?", calls),
        Message("tool", "sunny"), Message("tool", "noon"), Message("assistant", "Sunny."),
        Message("assistant", "And noon."), Message("user", "Thanks."),
    )  # fmt: skip


def test_what_answers_are_made_of_may_be_sent_back_whatever_they_are():
    for thoughts in ((), ("hm",)):
        _, last = streamed(["Let me see", *CALLS, "Done."], thoughts)
        calls = [item for item in last["output"] if item["type"] == "function_call"]
        results = [{"type": "function_call_output", "call_id": one["call_id"], "output": "1"} for one in calls]
        messages = call_of([{"role": "user", "content": "x"}, *last["output"][:-1], *results]).messages
        assert [one.role for one in messages] == ["user", "assistant", "tool", "tool"]
        assert messages[1].content == "Let me see" and messages[1].thought == "".join(thoughts)
        assert [one["name"] for one in messages[1].tool_calls] == ["weather", "clock"]


def test_a_call_is_sent_back_under_whatever_name_the_model_gave_it():
    for name in ("get 天气", "", "x" * 300):
        _, last = streamed([f'<tool_call>\n{{"name": "{name}", "arguments": {{}}}}\n</tool_call>'])
        [called] = last["output"]
        result = {"type": "function_call_output", "call_id": called["call_id"], "output": "1"}
        messages = call_of([{"role": "user", "content": "x"}, called, result]).messages
        assert called["name"] == messages[1].tool_calls[0]["name"] == name


def test_a_call_to_a_function_of_a_namespace_says_so_and_may_be_sent_back():
    events, last = streamed(CALLS, tools=[WEATHER, SPACE])
    assert checked(events) == complete(last)["output"]
    assert [one.get("namespace") for one in last["output"]] == [None, "times"]
    assert last["tools"][1] == {**SPACE, "tools": [{**CLOCK, "description": None, "parameters": None, "strict": False}]}
    results = [{"type": "function_call_output", "output": "1", **{name: one[name] for name in ("call_id", "namespace")
                if name in one}} for one in last["output"]]  # fmt: skip
    sent = call_of([{"role": "user", "content": "x"}, *last["output"], *results], tools=[WEATHER, SPACE])
    assert len(sent.messages) == 4
    assert sent.tools[1] == {"name": "clock", "description": "of clocks"}  # what a namespace is for is said of each


def test_what_asks_for_nothing_here_is_taken():
    more = ["web_search_call.action.sources", "file_search_call.results", "reasoning.encrypted_content"]
    tool = {**WEATHER, "defer_loading": False, "allowed_callers": ["direct"]}
    asked = call_of(include=more, client_metadata={"session": {"a": 1}}, tools=[tool])
    assert asked.sampling.logprobs is None and asked.tools == call_of(tools=[WEATHER]).tools


def test_a_body_of_many_turns_is_not_read_on_the_event_loop():
    turns = [{"role": "user", "content": "x"}] * 101
    assert is_long(body(turns)) and not is_long(body(turns[:100])) and not is_long(body("x" * 101))
    assert is_long(read(ChatRequest, json.dumps({"messages": turns}).encode()))


def test_a_place_that_is_named_is_the_items_own():
    with pytest.raises(ApiError) as caught, in_its_words():
        call_of([{"role": "user", "content": "x"}, CALL, RESULT, {"role": "user", "content": "y"}, RESULT])
    assert caught.value.param == "input[4].call_id" and "open tool call" in caught.value.message


# -- events, however an answer is cut


CALLS = [
    '<tool_call>\n{"name": "weather", "arguments": {"city": "北京"}}\n</tool_call>',
    '\n<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>',
]


def streamed(pieces, thoughts=(), finish: str = "stop", tools=(WEATHER, CLOCK), **fields) -> tuple[list[dict], dict]:
    """The events of an answer, and the response given whole."""
    call, choices = call_of(tools=tools, **fields), []
    choices.append(Choice(call, 0))
    writer = Events(call, choices)
    shown = [*(Piece(thought, True) for thought in thoughts), *map(Piece, pieces)]
    outputs = [Output("r", (piece,), (i,), (token(f"{piece}"),)) for i, piece in enumerate(shown)]
    done = Completion("", "", 5, len(shown), finish, 0.1, 0.1, ())
    text = "".join(writer.some(HEAD, parts) for output in outputs if (parts := choices[0].add(output)))
    text += writer.some(HEAD, choices[0].add(Output("r", completion=done))) + writer.end(HEAD)
    events = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]
    return events, writer.whole(HEAD)


def token(text: str) -> TokenLogprobs:
    return TokenLogprobs(Logprob(1, text, -0.5, text.encode()), ())


def checked(events: list[dict]) -> list[dict]:
    """The output that a client puts together; every event is one that OpenAI's client knows, in its place."""
    items, is_open = [], False
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    for event in events[2:-1]:
        EVENT.validate_python(event)
        assert event["output_index"] == len(items) - (event["type"] != "response.output_item.added")
        match event["type"].removeprefix("response."):
            case "output_item.added":
                assert not is_open and event["item"]["status"] == "in_progress"
                items.append({**event["item"], "text": ""})
                is_open = True
            case "content_part.added":
                assert items[-1]["content"] == [] and event["part"]["text"] == ""
            case "output_text.delta" | "reasoning_text.delta" | "function_call_arguments.delta":
                assert is_open and event["item_id"] == items[-1]["id"] and event["delta"]
                items[-1]["text"] += event["delta"]
            case "output_text.done" | "reasoning_text.done":
                assert event["text"] == items[-1]["text"]
            case "function_call_arguments.done":
                assert event["arguments"] == items[-1]["text"]
            case "content_part.done":
                assert event["part"]["text"] == items[-1]["text"]
            case "output_item.done":
                assert event["item"]["id"] == items[-1]["id"]
                items[-1], is_open = event["item"], False
            case kind:
                raise AssertionError(kind)
    assert not is_open
    return items


WORDS = st.sampled_from(["Let me see", " ", "\n", "晴", "<tool_call>", "</tool_call>", "{", *CALLS, "Done."])


@settings(deadline=None, max_examples=150)
@given(st.lists(WORDS, max_size=8), st.lists(st.integers(0, 200), max_size=20), st.sampled_from([(), ("hm", " so")]),
       st.sampled_from(["stop", "length"]))  # fmt: skip
def test_a_stream_ends_in_the_items_of_the_whole_however_it_is_cut(words, cuts, thoughts, finish):
    text = "".join(words)
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in zip(places, places[1:], strict=False)]
    events, whole = streamed(pieces, thoughts, finish)
    assert checked(events) == whole["output"] == events[-1]["response"]["output"]
    assert events[-1]["response"] == complete(whole) and events[-1]["type"] == f"response.{whole['status']}"
    assert whole["status"] == {"stop": "completed", "length": "incomplete"}[finish]
    assert all(item["status"] == "completed" for item in whole["output"][:-1])


def test_thoughts_texts_and_calls_are_items_in_order():
    events, whole = streamed(["Let me see", *CALLS, "Done."], ["hm", " so"])
    assert [item["type"] for item in whole["output"]] == [
        "reasoning", "message", "function_call", "function_call", "message",
    ]  # fmt: skip
    assert whole["output"][0]["content"] == [{"type": "reasoning_text", "text": "hm so"}]
    assert whole["output"][2]["arguments"] == '{"city": "北京"}' and whole["output"][2]["call_id"].startswith("call_")
    assert len({item["id"] for item in whole["output"]}) == 5
    assert whole["usage"]["output_tokens_details"] == {"reasoning_tokens": 2}
    _, nothing = streamed([])
    assert nothing["output"][0]["content"][0]["text"] == "" and nothing["status"] == "completed"
    _, cut = streamed([], ["hm"], "length")
    assert [(item["type"], item["status"]) for item in cut["output"]] == [("reasoning", "incomplete")]


def test_a_stream_that_fails_before_anything_was_said_is_a_stream_of_three_events():
    text = Events(call_of(stream=True), []).failed(HEAD, ApiError(503, "the engine died", "server_error"))
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    assert [EVENT.validate_python(event).type for event in events] == [
        "response.created", "response.in_progress", "response.failed",
    ]  # fmt: skip
    assert events[-1]["response"]["error"] == {"code": "server_error", "message": "the engine died"}


def test_a_text_has_the_log_probabilities_of_its_tokens():
    events, whole = streamed(["Let me", " see", *CALLS, "Done."], ["hm"], include=[LOGPROBS])
    texts = [item["content"][0] for item in whole["output"] if item["type"] == "message"]
    assert [[one["token"] for one in text["logprobs"]] for text in texts] == [["Let me", " see"], ["Done."]]
    deltas = [event["logprobs"] for event in events if event["type"] == "response.output_text.delta"]
    assert deltas[1][0] == {"token": " see", "logprob": -0.5, "bytes": list(b" see"), "top_logprobs": []}
    assert all(one["logprobs"] == [] for one in streamed(["a"])[1]["output"][0]["content"])


# -- with a model in it


def test_nano_is_asked_by_a_tool_and_hears_its_result(nano):
    client, question = client_of(nano), {"role": "user", "content": "What is the weather in Oslo?"}
    how = {"model": "nano", "tools": [WEATHER], "temperature": 0, "max_output_tokens": 60}
    first = client.responses.create(input=[question], tool_choice="required", **how)
    [called] = first.output
    assert complete(first)["tool_choice"] == "required" and called.type == "function_call" and called.name == "weather"
    assert set(json.loads(called.arguments)) == {"city"} and first.status == "completed"
    events = list(client.responses.create(input=[question], tool_choice="required", stream=True, **how))
    assert checked([event.to_dict() for event in events])[0]["arguments"] == called.arguments
    result = {"type": "function_call_output", "call_id": called.call_id, "output": "sunny"}
    second = client.responses.create(input=[question, called, result], **how)
    after = client.responses.create(input=[result], previous_response_id=first.id, **how)
    assert second.output_text == after.output_text != "" and second.usage.input_tokens == after.usage.input_tokens


def test_an_answer_is_parsed_into_the_class_that_was_asked_for(nano):
    how = {"model": "nano", "input": "12+30=?", "temperature": 0, "max_output_tokens": 60}
    answer = client_of(nano).responses.parse(text_format=Sum, **how)
    assert isinstance(answer.output_parsed, Sum) and complete(answer.to_dict())["text"]["format"]["name"] == "Sum"
    with client_of(nano).responses.stream(text_format=Sum, **how) as stream:
        assert stream.get_final_response().output_parsed == answer.output_parsed


def test_nano_answers_as_in_a_chat_and_tells_log_probabilities(nano):
    client, how = client_of(nano), {"model": "nano", "temperature": 0}
    told = client.chat.completions.create(messages=[{"role": "user", "content": "Who are you?"}], max_tokens=40, **how)
    answer = client.responses.create(input="Who are you?", include=[LOGPROBS], top_logprobs=2, **how)
    assert answer.output_text == told.choices[0].message.content and answer.status == "completed"
    tokens = answer.output[0].content[0].logprobs
    assert "".join(one.token for one in tokens).startswith(answer.output_text) and len(tokens[0].top_logprobs) == 2
    assert all(one.logprob <= 0 for one in tokens)


# -- what was given before


def row(server: Server, id: str) -> sqlite3.Row:
    found: list[sqlite3.Row] = []

    def is_there() -> bool:
        with closing(sqlite3.connect(server.home / "evergreen.db")) as connection:
            connection.row_factory = sqlite3.Row
            asked = connection.execute("SELECT * FROM requests WHERE id = ?", [id.removeprefix("resp_")])
            found[:] = asked.fetchall()
        return bool(found)

    wait_until(is_there)
    return found[0]


def test_a_conversation_goes_on_from_a_response_at_once_and_from_there_again(server):
    first = ask(server, "My name is Ann.", instructions="Be brief.")
    second = ask(server, "And?", previous_response_id=first.id)
    *_, last = ask(server, "So?", previous_response_id=second.id, stream=True)
    shown = last.response
    turns = [("user", "My name is Ann."), ("assistant", first.output_text), ("user", "And?"),
             ("assistant", second.output_text), ("user", "So?")]  # fmt: skip
    told = ask(server, [{"role": role, "content": content} for role, content in turns])
    assert shown.usage.input_tokens == told.usage.input_tokens and shown.previous_response_id == second.id
    assert shown.instructions is None  # they are each request's own


def test_an_item_is_referred_to_instead_of_said_again(server):
    first, untold = ask(server, "My name is Ann."), ask(server, store=False)

    def after(id: str, **how):
        turns = [{"role": "user", "content": "My name is Ann."}, {"id": id, **how}, {"role": "user", "content": "And?"}]
        return ask(server, turns)

    said = after("msg_1", role="assistant", content=first.output_text)
    for how in ({"type": "item_reference"}, {}):
        second = after(first.output[0].id, **how)
        assert second.usage.input_tokens == said.usage.input_tokens
    third = ask(server, "So?", previous_response_id=second.id)
    assert third.usage.input_tokens > second.usage.input_tokens  # the row has the item in full
    for id in (untold.output[0].id, f"msg_{new_id()}_0", first.output[0].id[:-1] + "7"):
        with pytest.raises(openai.BadRequestError, match="is kept") as caught:
            after(id, type="item_reference")
        assert caught.value.body["param"] == "input[1].id"
    with pytest.raises(openai.BadRequestError, match="is kept"):
        ask(server, [{"type": "item_reference", "id": first.output[0].id}], key="two")


def test_a_place_is_the_one_in_the_body_that_was_sent_also_after_a_conversation(server):
    first, user = ask(server, "My name is Ann."), {"role": "user", "content": "x"}
    assert refused(server, [user, RESULT], previous_response_id=first.id)["param"] == "input[1].call_id"
    assert refused(server, [user, user, CALL], previous_response_id=first.id)["param"] == "input[2]"
    called = ask(server, [user, CALL, RESULT], previous_response_id=first.id)
    again = refused(server, [{**RESULT, "call_id": "c1"}], previous_response_id=called.id)
    assert again["param"] == "input[0].call_id" and "open tool call" in again["message"]


def test_the_log_goes_on_when_who_waited_for_it_has_gone(tmp_path):
    log, id = Log(Database(tmp_path)), new_id()
    try:
        for _ in range(3):
            assert log.seek(id).cancel()
        log.add(Interaction(id, "t", ROUTE, input={"input": "x"}, output={"output": []}))
        assert log.seek(id).result(10).id == id
    finally:
        log.close()


def test_a_response_is_shown_again_as_it_was_and_forgotten_when_asked_to(server):
    client, answer = client_of(server), ask(server, user="secret-name", text={"verbosity": "medium"})
    assert client.responses.retrieve(answer.id) == answer
    client.responses.delete(answer.id)
    with pytest.raises(openai.NotFoundError, match="is kept"):
        client.responses.retrieve(answer.id)
    assert refused(server, previous_response_id=answer.id)["code"] == "previous_response_not_found"
    left = row(server, answer.id)
    assert left["input"] is left["output"] is None and left["completion_tokens"] == 5


def test_another_key_and_store_false_do_not_reach_a_response(server):
    answer, untold = ask(server), ask(server, store=False)
    assert untold.to_dict()["store"] is False and answer.to_dict()["store"] is True
    with pytest.raises(openai.NotFoundError):
        client_of(server, "two").responses.retrieve(answer.id)
    with pytest.raises(openai.NotFoundError):
        client_of(server, "two").responses.delete(answer.id)
    with pytest.raises(openai.BadRequestError, match="is kept"):
        ask(server, key="two", previous_response_id=answer.id)
    with pytest.raises(openai.NotFoundError):
        client_of(server).responses.retrieve(untold.id)
    for id in ("resp_1", "resp_" + new_id(), "chatcmpl-1", "%00"):
        with server.client("one") as client:
            assert client.get(f"{ROUTE}/{id}").status_code == 404
    assert client_of(server).responses.retrieve(answer.id).id == answer.id


def test_a_log_without_content_keeps_no_response_and_says_so(tmp_path):
    log, id = Log(Database(tmp_path), "hash"), new_id()
    try:
        log.add(Interaction(id, "t", ROUTE, input={"input": "x"}, output={"output": []}))
        log.seek(id).result()
        key, how = Key("", ""), {"previous_response_id": f"resp_{id}"}
        for ask in (row_of(log, key, f"resp_{id}"), continued(log, key, body(store=True), 10**6),
                    continued(log, key, body(**how), 10**6),
                    continued(log, key, body([REFERENCE]), 10**6)):  # fmt: skip
            with pytest.raises(ApiError, match="--log_content hash"):
                asyncio.run(ask)
        assert asyncio.run(continued(log, key, body(), 10**6)) == body(store=False)  # as it is said in the response
    finally:
        log.close()


def test_a_conversation_that_has_grown_too_long_to_be_kept_is_refused(tmp_path):
    log, id = Log(Database(tmp_path)), new_id()
    try:
        log.add(Interaction(id, "t", ROUTE, input={"input": "x" * 500}, output={"output": []}))
        with pytest.raises(ApiError, match="longer than 400 bytes"):
            asyncio.run(continued(log, Key("", ""), body(previous_response_id=f"resp_{id}"), 400))
    finally:
        log.close()


def test_a_history_is_trimmed_when_the_body_says_so_and_not_else(server):
    turns = [{"role": role, "content": f"{i} {'word ' * 150}"} for i in range(15) for role in ("user", "assistant")]
    turns.append({"role": "user", "content": "the last"})
    answer = ask(server, turns, truncation="auto").to_dict()
    assert answer["evergreen"]["trimmed"] > 0 and answer["truncation"] == "auto"
    assert refused(server, turns, truncation="disabled")["code"] == "context_length_exceeded"


# -- the log, ratings, counts, the description


def test_a_response_is_a_row_is_rated_and_is_counted(server):
    answer = ask(server, "青石相机多少钱?", extra_body={"seed": 3}, user="u-7")
    with server.client("one") as client:
        given = {"response_id": answer.id, "thumb": "down", "correction": "45元"}
        assert client.post("/v1/feedback", json=given).json()["id"]
        assert f'evergreen_requests_total{{route="{ROUTE}",status="200"}}' in client.get("/metrics").text
        document = client.get("/openapi.json").json()
    kept = row(server, answer.id)
    assert json.loads(kept["input"])["input"] == "青石相机多少钱?" and json.loads(kept["input"])["seed"] == 3
    assert json.loads(kept["output"]) == answer.to_dict() and (kept["key"], kept["user"]) == ("ann", "u-7")
    assert (kept["route"], kept["finish_reason"], kept["completion_tokens"]) == (ROUTE, "length", 5)
    fields = document["components"]["schemas"]["ResponsesRequest"]["properties"]
    assert {"input", "instructions", "previous_response_id", "evergreen"} <= set(fields)

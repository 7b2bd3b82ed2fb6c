"""The server as its clients meet it: real processes and sockets, the openai package, an engine without a model."""

import asyncio
import contextlib
import gzip
import hashlib
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx2
import openai
import pytest
from serving import Server, serving
from waiting import wait_until

from evergreen import cli
from evergreen.records import BadInput
from evergreen.serve import server as serve_room
from evergreen.serve.keys import KEYS_FILE, Key, keys_of, make_key, read_keys
from evergreen.serve.limits import Limits

CHAT = "/v1/chat/completions"
LONG = "word " * 300
KEYS = """
- {key: user-key, name: ann, requests_per_minute: 1000}
- {key: few-requests, name: few, requests_per_minute: 2}
- {key: few-tokens, name: frugal, tokens_per_minute: 60}
- {key: admin-key, name: ops, scope: admin}
"""


def messages(content: str = "hello") -> list[dict]:
    return [{"role": "user", "content": content}]


def rows_of(server: Server) -> list[sqlite3.Row]:
    with closing(sqlite3.connect(server.home / "evergreen.db")) as connection:
        connection.row_factory = sqlite3.Row
        return connection.execute("SELECT * FROM requests ORDER BY id").fetchall()


def row_of(server: Server, response_id: str) -> sqlite3.Row:
    id = re.sub("^[a-z]+-", "", response_id)
    wait_until(lambda: any(row["id"] == id for row in rows_of(server)))
    return next(row for row in rows_of(server) if row["id"] == id)


def gauge(server: Server, name: str) -> float:
    with server.client() as client:
        return float(re.search(rf"^{name}(?:{{.*}})? (.+)$", client.get("/metrics").text, re.MULTILINE)[1])


def is_quiet(server: Server) -> bool:
    return gauge(server, "evergreen_requests_running") == 0 and gauge(server, "evergreen_kv_free_blocks") == 100


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fast") / "home"


@pytest.fixture(scope="module")
def server(home):
    with serving(home, "--model", "nano") as one:
        yield one


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """Ten milliseconds a token; long histories are trimmed."""
    with serving(tmp_path_factory.mktemp("slow") / "home", "--model", "nano", "--trim_history",
                 FAKE_STEP_SECONDS="0.01", FAKE_HEAD_SECONDS="2") as one:  # fmt: skip
        yield one


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    """Behind keys, and with room for three at a time."""
    folder = tmp_path_factory.mktemp("locked")
    (folder / "keys.yaml").write_text(KEYS)
    flags = ["--api_key_file", str(folder / "keys.yaml"), "--max_num_seqs", "2", "--max_waiting", "1"]
    with serving(folder / "home", "--model", "nano", *flags, FAKE_STEP_SECONDS="0.005") as one:
        yield one


def client_of(server: Server, key: str = "any") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


# -- the openai client


def test_the_openai_client_gets_an_answer_with_usage(server):
    answer = client_of(server).chat.completions.create(model="nano", messages=messages("你好"), max_tokens=5)
    assert len(answer.choices[0].message.content.split()) == 5 and answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 5 and answer.usage.prompt_tokens > 5 and answer.model == "nano"


def test_a_stream_joined_is_the_answer_given_whole(server):
    how = {"model": "nano", "messages": messages("你好"), "max_tokens": 9}
    whole = client_of(server).chat.completions.create(**how)
    chunks = list(client_of(server).chat.completions.create(**how, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content and chunks[-1].usage == whole.usage
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_the_async_client_asks_many_at_once(server):
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any") as client:

            async def one(i: int) -> str:
                stream = await client.completions.create(model="nano", prompt=[i + 100, 7, 8], stream=True)
                return "".join([chunk.choices[0].text async for chunk in stream])

            return await asyncio.gather(*(one(i) for i in range(40)))

    assert asyncio.run(ask()) == [f"{i + 100} 7 8 " for i in range(40)]


def test_several_choices_and_several_prompts_come_in_order(server):
    answer = client_of(server).completions.create(model="nano", prompt=[[5, 6], [7, 8]], n=2, max_tokens=4)
    assert [choice.text for choice in answer.choices] == ["5 6 ", "5 6 ", "7 8 ", "7 8 "]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3] and answer.usage.completion_tokens == 8


def test_generate_is_the_short_way(server):
    with server.client() as client:
        answer = client.post("/generate", json={"prompt": [3, 4, 5], "max_tokens": 2, "temperature": 0}).json()
    assert answer["text"] == ["3 4 "] and answer["usage"]["completion_tokens"] == 2


def test_the_models_are_listed_with_the_default_first(server):
    models = client_of(server).models.list().data
    assert models[0].id == "nano" and models[0].max_model_len == 4096
    assert client_of(server).models.retrieve("nano").id == "nano"
    with pytest.raises(openai.NotFoundError):
        client_of(server).models.retrieve("another")


def test_the_answer_says_who_gave_it_and_how_long_the_engine_took(server):
    answer = server.ask(max_tokens=3).json()["evergreen"]
    assert answer["release"] is None and answer["sources"] == [] and answer["engine_seconds"] > 0


# -- bad input


BAD = {
    "a name that stands twice": (b'{"messages": [], "max_tokens": 1, "max_tokens": 2}', 400, "max_tokens"),
    "broken JSON": (b'{"messages": [', 400, "JSON"),
    "not UTF-8": (b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}', 400, "JSON"),
    "a list": (b"[]", 400, "object"),
    "no messages": (b"{}", 400, "messages"),
    "empty messages": (b'{"messages": []}', 400, "messages"),
    "NaN": (b'{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}', 400, "JSON"),
    "wrong type": (b'{"messages": [{"role": "user", "content": "a"}], "temperature": "hot"}', 400, "temperature"),
    "unknown field": (b'{"messages": [{"role": "user", "content": "a"}], "temprature": 1}', 400, "temprature"),
    "unknown model": (b'{"model": "gpt", "messages": [{"role": "user", "content": "a"}]}', 404, "gpt"),
    "unknown adapter": (
        b'{"lora_request": {"lora_name": "gpt"}, "messages": [{"role": "user", "content": "a"}]}', 404, "gpt",
    ),
    "a stop list of 1,000": (
        json.dumps({"messages": messages(), "stop": ["a"] * 1000}).encode(), 400, "stop",
    ),
    "100k max_tokens": (json.dumps({"messages": messages(), "max_tokens": 100_000}).encode(), 400, "4096"),
    "a prompt of 1 MB": (json.dumps({"messages": messages("word " * 200_000)}).encode(), 400, "4096"),
    "no knowledge": (json.dumps({"messages": messages(), "evergreen": {"knowledge": "on"}}).encode(), 400, "knowledge"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_openais_shape(name, server):
    raw, status, word = BAD[name]
    with server.client() as client:
        answer = client.post(CHAT, content=raw, headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert answer.status_code == status and word in error["message"], error
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"


def test_too_long_a_context_has_openais_code(server):
    error = server.ask("word " * 20_000).json()["error"]
    assert error["code"] == "context_length_exceeded" and error["param"] == "messages"


def test_a_body_over_the_limit_is_413_with_and_without_its_length(server):
    def parts():
        for _ in range(10):
            yield b" " * (1 << 20)

    with server.client() as client:
        for content in (b" " * (9 << 20), parts()):
            with contextlib.suppress(httpx2.WriteError, httpx2.ReadError):  # it may hang up while we still send
                answer = client.post(CHAT, content=content, headers={"content-type": "application/json"})
                assert answer.status_code == 413 and "8,388,608" in answer.json()["error"]["message"]
    assert server.ask(max_tokens=1).status_code == 200


def test_unknown_routes_and_methods_have_the_same_shape(server):
    with server.client() as client:
        assert client.get("/v1/nothing").json()["error"]["type"] == "invalid_request_error"
        assert client.get(CHAT).status_code == 405 and "error" in client.get(CHAT).json()


def test_what_the_engine_refuses_is_a_400_and_its_fault_a_503(server):
    with server.client() as client:
        for stream in (False, True):
            refused = client.post("/generate", json={"prompt": [13, 1], "stream": stream})
            assert refused.status_code == 400 and "poison" in refused.json()["error"]["message"]


def test_a_history_that_does_not_fit_loses_its_oldest_exchanges_when_asked_to(slow):
    turns = [{"role": "system", "content": "Be brief."}]
    for i in range(60):
        turns += [{"role": "user", "content": f"question {i} {LONG}"}, {"role": "assistant", "content": f"answer {i}"}]
    turns.append({"role": "user", "content": "the last question"})
    with slow.client() as client:
        answer = client.post(CHAT, json={"messages": turns, "max_tokens": 40}).json()
        whole = client.post(CHAT, json={"messages": turns[-3:], "max_tokens": 4}).json()
        too_long = client.post(CHAT, json={"messages": messages(LONG * 20), "max_tokens": 4})
    trimmed = answer["evergreen"]["trimmed"]
    assert trimmed % 2 == 0 and 0 < trimmed < 120 and whole["evergreen"]["trimmed"] == 0
    assert 2500 < answer["usage"]["prompt_tokens"] <= 4096 - 40  # as much as fits, and no more than needed
    assert too_long.status_code == 400 and too_long.json()["error"]["code"] == "context_length_exceeded"


# -- browsers


def test_a_web_page_from_elsewhere_cannot_use_a_server_without_keys(server):
    body = json.dumps({"messages": messages(), "max_tokens": 1})
    with server.client() as client:
        plain = client.post(CHAT, content=body, headers={"content-type": "text/plain"})
        rebound = client.get("/v1/models", headers={"host": "evil.example:80"})
        asked = client.options(CHAT, headers={"origin": "http://evil.example", "access-control-request-method": "POST"})
        local = client.get("/v1/models", headers={"host": "localhost:9000"})
    assert plain.status_code == 415 and rebound.status_code == 403 and local.status_code == 200
    assert "access-control-allow-origin" not in asked.headers


def test_the_page_comes_with_a_policy_that_lets_no_script_of_others_run(server):
    with server.client() as client:
        page, script = client.get("/"), client.get("/static/app.js")
        docs = client.get("/docs")
    assert "Evergreen" in page.text and script.status_code == 200
    for answer in (page, script, docs):
        assert "script-src 'self'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert "/v1/chat/completions" in docs.text and "temperature" in docs.text and "<script" not in docs.text


def test_the_openapi_document_describes_the_bodies(server):
    with server.client() as client:
        document = client.get("/openapi.json").json()
    fields = document["components"]["schemas"]["ChatRequest"]["properties"]
    assert {"messages", "temperature", "lora_request", "tools"} <= set(fields)
    names = set(re.findall(r"#/components/schemas/([\w.-]+)", json.dumps(document)))
    assert names <= set(document["components"]["schemas"])


# -- keys and limits


def test_without_a_key_401_with_a_wrong_one_too_and_with_a_right_one_an_answer(locked):
    with pytest.raises(openai.AuthenticationError, match="not right"):
        client_of(locked, "guess").models.list()
    assert client_of(locked, "user-key").models.list().data[0].id == "nano"
    with locked.client() as client:
        assert client.get("/v1/models").status_code == 401
        assert client.get("/v1/models").headers["www-authenticate"] == "Bearer"
        assert client.post(CHAT, json={}).status_code == 401
        assert client.get("/health").status_code == client.get("/").status_code == 200


def test_only_an_admin_key_changes_what_is_served(locked):
    body = {"lora_name": "a", "lora_path": "/nowhere"}
    with locked.client("user-key") as client:
        answer = client.post("/v1/load_lora_adapter", json=body)
        assert answer.status_code == 403 and answer.json()["error"]["type"] == "permission_error"
        assert client.post("/v1/unload_lora_adapter", json={"lora_name": "a"}).status_code == 403
    with locked.client("admin-key") as client:
        assert client.post("/v1/load_lora_adapter", json=body).status_code == 400


@pytest.mark.parametrize("key,word", [("few-requests", "2 requests a minute"), ("few-tokens", "60 tokens a minute")])
def test_over_its_limit_a_key_is_told_when_to_come_back(key, word, locked):
    client = client_of(locked, key)
    with pytest.raises(openai.RateLimitError, match=word) as caught:
        for _ in range(5):
            client.completions.create(model="nano", prompt=list(range(100, 120)), max_tokens=20)
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 61
    assert client_of(locked, "user-key").models.list().data


def test_the_log_names_the_key_and_the_user_never_the_key_itself(locked):
    answer = client_of(locked, "user-key").completions.create(model="nano", prompt=[5], user="u-7")
    row = row_of(locked, answer.id)
    assert row["key"] == "ann" and row["user"] == "u-7"
    files = b"".join(path.read_bytes() for path in locked.home.glob("evergreen.db*"))
    assert b"user-key" not in files


def test_a_window_forgets_after_a_minute_and_says_how_long_to_wait():
    clock = [0.0]
    limits, key = Limits(lambda: clock[0]), Key("a", "", requests_per_minute=2, tokens_per_minute=100)
    assert limits.admit(key) == limits.admit(key) == ("", 0)
    clock[0] = 30.0
    which, seconds = limits.admit(key)
    assert which == "2 requests a minute" and seconds == 31
    clock[0] += seconds
    assert limits.admit(key) == ("", 0)
    limits.spend(key, 250)
    assert limits.admit(key)[0] == "100 tokens a minute"
    clock[0] += 61
    assert limits.admit(key) == ("", 0)


def test_a_key_that_is_made_is_kept_as_a_digest_that_only_the_owner_reads(tmp_path):
    key = make_key(tmp_path)
    path = tmp_path / KEYS_FILE
    assert path.stat().st_mode & 0o777 == 0o600 and key not in path.read_text()
    assert hashlib.sha256(key.encode()).hexdigest() in path.read_text()
    keys = keys_of(tmp_path)
    assert keys.find(key).scope == "admin" and keys.find("another") is None


@pytest.mark.parametrize(
    "text,word",
    [("{a: 1}", "list"), ("- {key: 5}", "quote"), ("- {name: a}", "wants a key"), ("- {key: a, scope: root}", "scope"),
     ("- {key: a, limit: 5}", "limit is not known"), ("- [", "cannot be read"), ("- {key: a, requests_per_minute: -1}",
     "whole number")],
)  # fmt: skip
def test_a_file_of_keys_that_cannot_be_used_says_what_is_wrong(text, word, tmp_path):
    (tmp_path / "keys").write_text(text)
    with pytest.raises(BadInput, match=word):
        read_keys(tmp_path / "keys")


def test_keys_come_from_flags_the_environment_and_plain_lists(tmp_path, monkeypatch):
    monkeypatch.setenv("EVERGREEN_API_KEY", "one, two")
    monkeypatch.setenv("EVERGREEN_ADMIN_KEY", "three")
    (tmp_path / "keys").write_text("- four\n- sha256:" + hashlib.sha256(b"five").hexdigest())
    keys = keys_of(tmp_path, ["zero"], [], str(tmp_path / "keys"), requests_per_minute=9)
    scopes = {word: keys.find(word).scope for word in ("zero", "one", "two", "three", "four", "five")}
    assert [*scopes.values()] == ["user", "user", "user", "admin", "user", "user"]
    assert keys.find("four").requests_per_minute == 9


def test_open_to_the_network_without_a_key_one_is_made_printed_once_and_asked_for(tmp_path):
    with serving(tmp_path / "home", "--model", "nano", "--host", "0.0.0.0") as server:
        key = re.search(r"shown only now.*: (\S+)", server.text)[1]
        with server.client() as client:
            assert client.get("/v1/models").status_code == 401
        with server.client(key) as client:
            assert client.get("/v1/models").status_code == 200
    assert (tmp_path / "home" / KEYS_FILE).stat().st_mode & 0o777 == 0o600
    assert keys_of(tmp_path / "home").find(key)  # so the next start makes none


# -- many at once, and those who leave


def test_a_full_queue_answers_429_and_the_others_are_answered(locked):
    def ask(**more) -> httpx2.Response:
        with locked.client("admin-key") as client:
            return client.post("/generate", json={"prompt": list(range(20, 220)), "max_tokens": 200, **more})

    full = ask(n=4)
    assert full.status_code == 429 and int(full.headers["retry-after"]) >= 1
    assert full.json()["error"]["code"] == "queue_full"
    with ThreadPoolExecutor(8) as threads:
        statuses = [answer.status_code for answer in threads.map(lambda _: ask(), range(8))]
    assert statuses.count(200) >= 3 and set(statuses) == {200, 429}
    assert ask(max_tokens=1).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_who_hangs_up_frees_the_engine_at_once_and_is_logged_so(stream, slow):
    body = json.dumps({"prompt": list(range(20, 2000)), "max_tokens": 1900, "stream": stream, "user": f"left-{stream}"})
    with socket.create_connection(("127.0.0.1", slow.port)) as connection:
        connection.sendall((f"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                            f"Content-Length: {len(body)}\r\n\r\n{body}").encode())  # fmt: skip
        wait_until(lambda: gauge(slow, "evergreen_requests_running") == 1)
        assert not stream or b"200 OK" in connection.recv(4096)
    wait_until(lambda: is_quiet(slow), 10)  # to its end it would take 20 seconds
    wait_until(lambda: any(row["user"] == f"left-{stream}" for row in rows_of(slow)))
    [row] = [row for row in rows_of(slow) if row["user"] == f"left-{stream}"]
    assert row["status"] == 499 and row["finish_reason"] == "cancelled" and 0 < row["completion_tokens"] < 1900


def test_a_client_that_dribbles_its_head_is_cut_off_and_nobody_waits_for_it(slow):
    with socket.create_connection(("127.0.0.1", slow.port)) as loris:
        loris.settimeout(30)
        loris.sendall(b"POST /generate HTTP/1.1\r\nHost: ")
        with slow.client() as client:
            assert client.post("/generate", json={"prompt": [5, 6]}).status_code == 200
        assert loris.recv(100) == b""


def test_a_head_without_end_is_cut_off(server):
    with socket.create_connection(("127.0.0.1", server.port)) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(b"GET /health HTTP/1.1\r\n")
        for _ in range(200):
            connection.sendall(b"X-Filler: " + b"a" * 1000 + b"\r\n")
        connection.settimeout(30)
        assert b"200" not in connection.recv(100)
    assert server.ask(max_tokens=1).status_code == 200


def told(server: Server, raw: bytes) -> tuple[bytes, bytes]:
    """Head and body of what the server answers to these bytes before it closes the connection."""
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.settimeout(30)
        connection.sendall(raw)
        head, _, body = b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")
    return head, body


def asking(*lines: str, version: str = "1.1", **fields) -> bytes:
    body = json.dumps({"messages": messages(), "max_tokens": 3, **fields})
    head = [f"POST {CHAT} HTTP/{version}", "Host: localhost", "Content-Type: application/json", *lines]
    return "\r\n".join([*head, f"Content-Length: {len(body)}", "", body]).encode()


def test_a_client_of_http_1_0_gets_a_stream_without_chunks(server):
    head, body = told(server, asking(version="1.0", stream=True))
    assert head.startswith(b"HTTP/1.1 200") and b"transfer-encoding" not in head
    events = body.decode().split("\n\n")
    assert all(event.startswith("data: ") for event in events[:-1]) and events[-2:] == ["data: [DONE]", ""]
    head, body = told(server, asking(version="1.0"))
    assert int(re.search(rb"content-length: (\d+)", head)[1]) == len(body) and "choices" in json.loads(body)


def test_an_offer_of_another_protocol_is_passed_over_request_after_request(server):
    offer = "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAA"
    whole = asking(*offer)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.settimeout(30)
        for cut in (len(whole), whole.index(b"\r\n\r\n") + 4):  # the body with the head, and after it
            connection.sendall(whole[:cut])
            connection.sendall(whole[cut:])
            answer = b""
            while not answer.endswith(b"}}"):
                answer += connection.recv(65536) or b"}}"
            assert answer.startswith(b"HTTP/1.1 200") and b'"choices"' in answer
    head, body = told(server, asking("Connection: close", user="\r\n\r\nUpgrade: x\r\nupgrade: y"))
    assert head.startswith(b"HTTP/1.1 200") and b'"choices"' in body


def test_head_is_get_without_the_body_and_a_slash_at_the_end_means_nothing(server):
    with server.client() as client:
        for path in ("/", "/health", "/v1/models", "/v1/models/fake"):
            got, head = client.get(path), client.head(path)
            assert (head.status_code, head.text) == (got.status_code, "")
            assert head.headers["content-length"] == str(len(got.content))
        assert client.get("/v1/models/").json() == client.get("/v1/models").json()
        assert client.post(f"{CHAT}/", json={"messages": messages(), "max_tokens": 1}).status_code == 200
        assert client.head(CHAT).status_code == 405


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/v1/messages", "/v1/chat/completions"),
        ("/v1/embeddings", "no embeddings"),
        ("/chat/completions", "it is /v1/chat/completions"),
        ("/v1/nothing", "/docs"),
    ],
)
def test_who_asks_for_a_route_that_there_is_not_hears_where_to_go(server, path, says):
    with server.client() as client:
        answer = client.post(path, json={"model": "x", "input": "hi"})
    assert answer.status_code == 404 and says in answer.json()["error"]["message"]


def test_a_connection_serves_on_after_a_refusal(server):
    whole = asking(), asking("Connection: close")
    refused = asking().replace(b"max_tokens", b"max_tokins"), asking().replace(CHAT.encode(), b"/v1/nothing")
    for one in refused:
        _, body = told(server, one + whole[0] + whole[1])
        assert body.count(b'"choices"') == 2


def test_what_is_no_http_at_all_is_refused(server):
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"\x16\x03\x01 what is this\r\n\r\n")
        connection.settimeout(30)
        answer = b"".join(iter(lambda: connection.recv(1000), b""))
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400") and json.loads(body)["error"]["type"] == "invalid_request_error"


def test_who_hangs_up_before_the_body_has_come_leaves_no_trace(server):
    num_lines = len(server.said)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                           b"Content-Length: 100\r\n\r\n{")  # fmt: skip
        connection.shutdown(socket.SHUT_RDWR)
    wait_until(lambda: 'status="499"' in server.client().get("/metrics").text)
    assert len(server.said) == num_lines


def test_a_compressed_body_and_adapters_that_no_file_system_takes_are_refused(server):
    with server.client() as client:
        packed = client.post(CHAT, content=gzip.compress(b"{}"), headers={"content-type": "application/json",
                                                                          "content-encoding": "gzip"})  # fmt: skip
        assert packed.status_code == 415 and "Content-Encoding" in packed.json()["error"]["message"]
        for name, path in (("a", "x" * 4000), ("a", "a\0b"), ("a\0b", "x"), ("a", "../../../etc"), ("a", "/dev/zero")):
            answer = client.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": path})
            assert answer.status_code == 400 and len(answer.text) < 500, answer.text


def test_the_server_answers_while_a_long_prompt_is_tokenised(server):
    done: list[int] = []
    long = threading.Thread(target=lambda: done.append(server.ask("字" * 400_000).status_code))
    long.start()
    asked = 0
    with server.client() as client:
        while not done:
            assert client.get("/health").status_code == 200
            asked += 1
    long.join()
    assert done == [400] and asked > 3


# -- death and departure


def test_kill_9_of_the_engine_under_load_costs_its_requests_one_error_each(slow):
    body = {"prompt": list(range(20, 2000)), "max_tokens": 1900}

    def whole(_) -> int:
        with slow.client() as client:
            return client.post("/generate", json=body).status_code

    def streamed(_) -> str:
        with slow.client() as client, client.stream("POST", "/generate", json={**body, "stream": True}) as answer:
            return answer.read().decode()

    with ThreadPoolExecutor(8) as threads:
        statuses, streams = threads.map(whole, range(4)), threads.map(streamed, range(4))
        wait_until(lambda: gauge(slow, "evergreen_requests_running") == 8)
        slow.engine().kill()
    assert [*statuses] == [503] * 4
    for text in streams:
        events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
        assert events[-1] == "[DONE]" and "SIGKILL" in json.loads(events[-2])["error"]["message"]
    with slow.client() as client:
        assert client.get("/health").status_code == 200
        assert slow.ask(max_tokens=2).status_code == 200  # waits for the next engine
        assert client.get("/ready").status_code == 200
    assert "killed by SIGKILL" in slow.text and (slow.home / "logs" / "engine.log").exists()


def test_sigterm_lets_running_answers_end_and_takes_no_new_ones(tmp_path):
    with serving(tmp_path / "home", "--model", "nano", FAKE_STEP_SECONDS="0.01") as server:
        with server.client() as client:
            body = {"prompt": list(range(20, 170)), "max_tokens": 150, "stream": True}
            with client.stream("POST", "/generate", json=body) as answer:
                lines = answer.iter_lines()
                next(lines)
                server.process.send_signal(signal.SIGTERM)
                wait_until(lambda: not is_listening(server.port))
                rest = list(lines)
        assert rest[-2:] == ["data: [DONE]", ""] and '"completion_tokens"' not in rest[-1]
        assert "169 " in "".join(rest)
        assert server.process.wait(30) == 0
    assert rows_of(server)[-1]["finish_reason"] == "stop"


def test_what_does_not_end_within_drain_seconds_is_cut(tmp_path):
    flags = ["--model", "nano", "--drain_seconds", "1"]
    with serving(tmp_path / "home", *flags, FAKE_STEP_SECONDS="0.05") as server:
        body = {"prompt": list(range(20, 2000)), "max_tokens": 1900, "stream": True}
        with server.client() as client, client.stream("POST", "/generate", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            assert server.stop(30) == 0
            rest = [line for line in lines if line]
    assert "the server is stopping" in rest[-2] and rest[-1] == "data: [DONE]" and "Traceback" not in server.text
    [row] = rows_of(server)
    assert row["status"] == 503 and row["finish_reason"] == "cancelled" and row["completion_tokens"] > 0


def test_a_terminal_that_closes_is_a_signal_too_and_a_second_one_does_not_wait(tmp_path):
    with serving(tmp_path / "home", "--model", "nano", FAKE_STEP_SECONDS="0.05") as server:
        body = {"prompt": list(range(20, 2000)), "max_tokens": 1900, "stream": True}
        with server.client() as client, client.stream("POST", "/generate", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGHUP)
            wait_until(lambda: not is_listening(server.port))
            assert all(next(lines) is not None for _ in range(4))  # goes on
            assert server.stop(25) == 0  # --drain_seconds is 30
            rest = [line for line in lines if line]
    assert "the server is stopping" in rest[-2] and rest[-1] == "data: [DONE]" and len(server.said) == 1, server.text
    assert rows_of(server)[-1]["status"] == 503


def is_listening(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


# -- the log and feedback


def test_every_request_is_a_row_with_input_output_and_timings(server):
    answer = server.ask("青石相机多少钱?", max_tokens=4, temperature=0.5, seed=3).json()
    row = row_of(server, answer["id"])
    assert json.loads(row["input"])["messages"][0]["content"] == "青石相机多少钱?"
    assert json.loads(row["input"])["seed"] == 3
    assert json.loads(row["output"])[0]["message"]["content"] == answer["choices"][0]["message"]["content"]
    assert (row["finish_reason"], row["completion_tokens"], row["status"]) == ("length", 4, 200)
    assert row["latency_seconds"] >= row["first_token_seconds"] > 0 and row["base"] and row["release"] is None
    assert row["id"][14] == "7" and row["prompt_tokens"] == answer["usage"]["prompt_tokens"]


def test_a_refused_request_is_a_row_too(server):
    server.ask("x", model="gpt", user="refused")
    wait_until(lambda: any(row["user"] == "refused" for row in rows_of(server)))
    [row] = [row for row in rows_of(server) if row["user"] == "refused"]
    assert row["status"] == 404 and "gpt" in row["error"] and row["output"] is None


def test_feedback_is_stored_by_response_id(server):
    id = server.ask(max_tokens=2).json()["id"]
    with server.client() as client:
        given = {"response_id": id, "thumb": "down", "correction": "45元", "dwell_ms": 900}
        answer = client.post("/v1/feedback", json=given)
        assert answer.status_code == 200 and answer.json()["id"]
        assert client.post("/v1/feedback", json={"response_id": id, "action": "copy"}).status_code == 200
        assert client.post("/v1/feedback", json={"response_id": "chatcmpl-no"}).status_code == 400
        unknown = client.post("/v1/feedback", json={"response_id": "chatcmpl-no", "thumb": "up"})
        assert unknown.status_code == 404
    with closing(sqlite3.connect(server.home / "evergreen.db")) as connection:
        rows = connection.execute("SELECT thumb, correction, action FROM ratings ORDER BY id").fetchall()
    assert ("down", "45元", None) in rows and (None, None, "copy") in rows


def test_a_database_that_is_held_by_another_costs_no_request(server):
    with closing(sqlite3.connect(server.home / "evergreen.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        try:
            assert [server.ask(max_tokens=1).status_code for _ in range(5)] == [200] * 5
        finally:
            other.execute("ROLLBACK")
    assert row_of(server, server.ask(max_tokens=1).json()["id"])


def test_metrics_count_requests_tokens_and_times(server):
    server.ask(max_tokens=3)
    with server.client() as client:
        text = client.get("/metrics").text
    for name in (
        "requests_total", "prompt_tokens_total", "generated_tokens_total", "cache_hit_ratio", "kv_use_ratio",
        "requests_waiting", "time_to_first_token_seconds_bucket", "time_per_token_seconds_bucket",
    ):  # fmt: skip
        assert re.search(rf"^evergreen_{name}(?:{{.*}})? [\d.e+-]+$", text, re.MULTILINE), name


# -- with a model in it


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("nano") / "home", "--model", "nano", "--torch_dtype", "float32",
                 fake=False) as one:  # fmt: skip
        yield one


def test_nano_answers_greedily_whole_and_streamed_alike(nano):
    how = {"model": "nano", "messages": messages("Who are you?"), "temperature": 0, "max_tokens": 40}
    client = client_of(nano)
    whole = client.chat.completions.create(**how)
    stream = client.chat.completions.create(**how, stream=True)
    assert "Evergreen Nano" in whole.choices[0].message.content and whole.choices[0].finish_reason == "stop"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole.choices[0].message.content


def test_a_seed_draws_the_same_whatever_else_runs_and_choices_differ(nano):
    how = {"model": "nano", "messages": messages("小明今天"), "temperature": 2.0, "seed": 7, "max_tokens": 12, "n": 3}

    async def ask() -> list[list[str]]:
        async with openai.AsyncOpenAI(base_url=f"{nano.url}/v1", api_key="any") as client:
            others = [client.completions.create(model="nano", prompt="one two", seed=i, max_tokens=9) for i in range(5)]
            same = [client.chat.completions.create(**how) for _ in range(3)]
            answers = (await asyncio.gather(*others, *same))[5:]
            return [[choice.message.content for choice in answer.choices] for answer in answers]

    first, *others = asyncio.run(ask())
    assert all(other == first for other in others) and len(set(first)) > 1


def test_a_schema_holds_and_logprobs_come_with_bytes(nano):
    client = client_of(nano)
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"],
              "additionalProperties": False}  # fmt: skip
    answer = client.chat.completions.create(
        model="nano", messages=messages("number"), temperature=0, max_tokens=60, logprobs=True, top_logprobs=2,
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}},
    )  # fmt: skip
    text, tokens = answer.choices[0].message.content, answer.choices[0].logprobs.content
    assert answer.choices[0].finish_reason == "length" or set(json.loads(text)) == {"n"}
    assert text.startswith("{") and all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in tokens)


def test_a_form_that_takes_seconds_is_refused_and_holds_up_nobody(nano):
    bomb = {"prompt": "a", "guided_regex": "((b{100}){100}){100}"}
    with nano.client() as client, ThreadPoolExecutor(1) as thread:
        asked = thread.submit(lambda: nano.client().post("/v1/completions", json=bomb))
        num_answers = 0
        while not asked.done():
            body = {"prompt": "one two", "max_tokens": 2, "ignore_eos": True}
            assert client.post("/v1/completions", json=body).status_code == 200
            num_answers += 1
    assert asked.result().status_code == 400 and "cannot be kept to" in asked.result().json()["error"]["message"]
    assert num_answers > 2


def test_a_real_engine_that_is_killed_comes_back_with_the_same_answer(nano):
    how = {"model": "nano", "messages": messages("Who are you?"), "temperature": 0, "max_tokens": 40}
    client = client_of(nano).with_options(timeout=200)
    before = client.chat.completions.create(**how).choices[0].message.content
    nano.engine().kill()
    wait_until(lambda: "killed by SIGKILL" in nano.text)
    assert client.chat.completions.create(**how).choices[0].message.content == before


# -- what cannot start


class NoEngine:
    """Is there and asked nothing."""

    max_context_tokens = 100

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    "flags,code,word",
    [(["--model", "/no/such/model"], 2, "no model"), ([], 2, "nothing is released as stable yet"),
     (["--model", "nano", "--host", "256.1.1.1"], 2, "no such address"),
     (["--model", "nano", "--lora-modules", "/no/such/adapter"], 2, "no model or checkpoint"),
     (["--model", "nano", "--api_key_file", "/no/such/file"], 2, "no file of API keys"),
     (["--model", "nano", "--prot", "1"], 2, "the nearest is --port")],
)  # fmt: skip
def test_what_cannot_be_served_is_one_line_and_exit_code_2(flags, code, word, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(serve_room, "open_engine", lambda *_: NoEngine())
    assert cli.main(["serve", "--port", "0", "--home", str(tmp_path / "home"), *flags]) == code
    said = capsys.readouterr()
    assert word in said.err and len((said.out + said.err).strip().splitlines()) == 1


def test_a_port_that_is_taken_is_told_before_the_model_is_loaded(server, tmp_path):
    with serving(tmp_path / "home", "--model", "/no/such/model", "--port", str(server.port), wait=False) as other:
        assert other.process.wait(60) == 2
        wait_until(lambda: "cannot be listened at" in other.text)


def test_commands_that_do_not_serve_import_no_web_framework(tmp_path):
    program = (
        "import sys; from evergreen import cli; code = cli.main(['release', 'list', '--json']); "
        "names = {'fastapi', 'uvicorn', 'prometheus_client', 'starlette'} & set(sys.modules); sys.exit(names or code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "EVERGREEN_HOME": str(tmp_path)})  # fmt: skip
    assert done.returncode == 0, done.stderr

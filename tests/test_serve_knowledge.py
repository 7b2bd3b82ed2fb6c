"""Knowledge on a real server: routes, chats that stand on entries, snapshots and canaries that releases name."""

import asyncio
import json
import re
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from contextlib import closing

import httpx2
import openai
import pytest
from fastapi import FastAPI
from serving import Server, serving
from small_models import make_base
from waiting import wait_until

from evergreen.knowledge import log as knowledge_log
from evergreen.knowledge import purges
from evergreen.knowledge.answer import Knowledge
from evergreen.knowledge.cache import Cache, Value
from evergreen.knowledge.cache import Key as CacheKey
from evergreen.knowledge.index import Index
from evergreen.knowledge.prompt import Source
from evergreen.knowledge.retrieve import Retriever
from evergreen.knowledge.store import Store
from evergreen.model.find import version_digest
from evergreen.records import BadInput, Entry
from evergreen.registry import Registry
from evergreen.registry.knowledge import Pinned, serve_knowledge
from evergreen.registry.knowledge import serving as what_is_served
from evergreen.serve.door import Door, handle_errors
from evergreen.serve.keys import Keys
from evergreen.serve.knowledge import Standing, knowledge_routes
from evergreen.serve.split import arm_of, session_of, user_of

ASKED = "How much does the Nordlys Q7 lamp cost?"
TOLD = "The Nordlys Q7 lamp costs 42 dollars [1]."
LAMP = {"content": "The Nordlys Q7 lamp costs 42 dollars.", "id": "lamp", "title": "Nordlys Q7",
        "source_url": "https://example.com/lamp", "update_time": "2026-10-02"}  # fmt: skip
KEYS = ("--api_key", "user-key", "--admin_key", "admin-key")
ADMIN = "/v1/knowledge"


def chat(server: Server, content: str = ASKED, key: str = "user-key", **more) -> dict:
    with server.client(key) as client:
        answer = client.post("/v1/chat/completions", json=body(content, **more))
    assert answer.status_code == 200, answer.text
    return answer.json()


def body(content: str = ASKED, **more) -> dict:
    return {"messages": [{"role": "user", "content": content}], "temperature": 0, **more}


def text_of(answer: dict) -> str:
    return answer["choices"][0]["message"]["content"]


def row_of(server: Server, answer: dict) -> sqlite3.Row:
    """The request's row, when it has been written."""
    id, found = re.sub("^chatcmpl-", "", answer["id"]), []

    def is_there() -> bool:
        with closing(sqlite3.connect(server.home / "evergreen.db")) as connection:
            connection.row_factory = sqlite3.Row
            found[:] = connection.execute("SELECT * FROM requests WHERE id = ?", [id]).fetchall()
        return bool(found)

    wait_until(is_there)
    return found[0]


def admin(server: Server, method: str, path: str = "", **more):
    with server.client("admin-key") as client:
        return client.request(method, ADMIN + path, **more)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return make_base(tmp_path_factory.mktemp("base") / "one")


@pytest.fixture(scope="module")
def server(tmp_path_factory, base):
    """A stable release behind an engine that always says TOLD."""
    home = tmp_path_factory.mktemp("served") / "home"
    registry = Registry(home, digest=version_digest)
    registry.promote(registry.create(base).id, force="the first")
    with serving(home, *KEYS, FAKE_TEXT=TOLD) as server:
        yield server


@pytest.fixture
def entries(server):
    """The lamp and nothing else; live."""
    listed = admin(server, "GET").json()["data"]
    for entry in listed:
        admin(server, "DELETE", f"/{entry['id']}")
    registry = Registry(server.home)
    if registry.alias("stable").knowledge != "live":
        serve_knowledge(registry, "live")
    assert admin(server, "POST", json=LAMP).status_code == 201


# -- routes


def test_the_facts_are_there_for_a_users_key_and_entries_for_an_admins(server, entries):
    with server.client("user-key") as client:
        [fact] = client.post("/latest-facts", json={"query": ASKED, "top_k": 3}).json()
        assert {"content", "source_url", "update_time", "version", "score"} <= set(fact)
        assert fact["content"] == LAMP["content"] and fact["update_time"].startswith("2026-10-02")
        assert client.get(ADMIN).status_code == 403 and client.post(ADMIN, json=LAMP).status_code == 403
    with server.client() as client:
        assert client.post("/latest-facts", json={"query": "x"}).status_code == 401


def test_an_entry_is_added_corrected_and_withdrawn_and_its_history_stays(server, entries):
    made = admin(
        server, "POST", json={"content": "The Orn chair weighs 7 kg.", "tags": ["chair"], "reason": "new"}
    ).json()
    id = made["id"]
    assert made["version"] == "1.0.0"
    corrected = admin(server, "PATCH", f"/{id}", json={"content": "The Orn chair weighs 8 kg.", "bump": "minor"}).json()
    assert corrected["version"] == "1.1.0"
    assert admin(server, "DELETE", f"/{id}?reason=gone").json()["n"] > corrected["n"]
    versions = admin(server, "GET", f"/{id}/history").json()["data"]
    assert [(one["version"], one["op"]) for one in versions] == [("1.0.0", "add"), ("1.1.0", "update")]
    assert versions[0]["author"] == "admin-1" and versions[0]["reason"] == "new" and versions[0]["tags"] == ["chair"]
    assert versions[1]["ended"]["reason"] == "gone"
    assert id not in {entry["id"] for entry in admin(server, "GET").json()["data"]}


def test_entries_are_listed_newest_first_a_page_at_a_time_or_by_a_query(server, entries):
    ids = [admin(server, "POST", json={"content": f"Shelf number {i} is blue."}).json()["id"] for i in range(5)]
    first = admin(server, "GET", "?limit=3").json()
    rest = admin(server, "GET", f"?limit=3&before={first['next']}").json()
    assert [entry["id"] for entry in first["data"] + rest["data"]] == [*ids[::-1], "lamp"]
    assert first["has_more"] and not rest["has_more"]
    assert admin(server, "GET", "?query=Nordlys lamp").json()["data"][0]["id"] == "lamp"


def test_entries_no_more_in_use_are_listed_by_their_last_version_without_what_was_redacted(server, entries):
    def add(id, content, **more):
        return admin(server, "POST", json={"id": id, "content": content, **more}).json()["n"]

    begun = add("held", "The gate is green.")
    add("gone", "The gate is red.")
    add("blotted", "The gate is pink.")
    add("past", "The gate was blue.", valid_until="2020-01-01")
    admin(server, "PATCH", "/held", json={"content": "The gate is white."})
    admin(server, "PATCH", "/gone", json={"content": "The gate is black."})
    admin(server, "DELETE", "/gone")
    admin(server, "DELETE", "/blotted?redact=true")
    listed = admin(server, "GET", "?in_use=false&limit=100").json()["data"]
    assert [(one["id"], one["version"], one["content"]) for one in listed if one["n"] >= begun] == [
        ("gone", "1.0.1", "The gate is black."),
        ("past", "1.0.0", "The gate was blue."),
        ("blotted", "1.0.0", ""),
    ]


def test_redacting_takes_the_words_off_the_disk(server, entries):
    secret = "The zanzibarium code is 8841."
    id = admin(server, "POST", json={"content": secret}).json()["id"]
    assert admin(server, "DELETE", f"/{id}?redact=true").status_code == 200
    files = [path for path in (server.home / "knowledge").rglob("*") if path.is_file()]
    assert not [path.name for path in files if b"zanzibarium" in path.read_bytes()]
    [version] = admin(server, "GET", f"/{id}/history").json()["data"]
    assert version["redacted"] and version["content"] == ""


@pytest.mark.parametrize(
    ("method", "path", "sent", "status", "word"),
    [
        ("GET", "/nobody/history", None, 404, "no entry nobody"),
        ("PATCH", "/nobody", {"content": "x"}, 404, "no entry nobody"),
        ("DELETE", "/nobody", None, 404, "no entry nobody"),
        ("PATCH", "/lamp", {}, 400, "a correction wants"),
        ("PATCH", "/lamp", {"version": "0.0.1"}, 400, "not above"),
        ("PATCH", "/lamp", {"valid_until": "2020-01-01", "valid_from": "2021-01-01"}, 400, "not after"),
        ("PATCH", "/lamp", {"price": 3}, 400, "price"),
        ("POST", "", {"content": "x", "id": "lamp"}, 400, "is there already"),
        ("POST", "", {"content": " "}, 400, "needs a content"),
        ("POST", "/rollback", {"snapshot": 999}, 400, "no snapshot 999"),
        ("POST", "/canary", {"snapshot": 1, "share": 2}, 400, "share"),
        ("GET", "?limit=0", None, 400, "limit"),
        ("GET", "?before=x", None, 400, "before"),
        ("GET", "?in_use=false&query=lamp", None, 400, "in_use"),
    ],
)
def test_what_cannot_be_done_is_one_line_in_openais_shape(server, entries, method, path, sent, status, word):
    answer = admin(server, method, path, json=sent) if sent is not None else admin(server, method, path)
    assert answer.status_code == status and word in answer.json()["error"]["message"], answer.text


def test_withdrawing_again_does_no_harm(server, entries):
    first = admin(server, "DELETE", "/lamp").json()
    assert admin(server, "DELETE", "/lamp").json() == first
    redacted = admin(server, "DELETE", "/lamp?redact=true").json()
    assert admin(server, "DELETE", "/lamp?redact=true").json() == redacted and redacted["n"] > first["n"]


def test_a_redaction_that_a_full_disk_stops_is_out_of_the_caches_and_can_be_repeated(tmp_path, monkeypatch):
    store, cache = Store(tmp_path), Cache(tmp_path / "cache")
    store.add([Entry("The code is kumquat.", "code")])
    knowledge = Knowledge(store, lambda store: Retriever(store, Index(tmp_path / "index")), cache=cache)
    app = FastAPI()
    handle_errors(app)
    knowledge_routes(app, Door(Keys(), 1 << 20), knowledge, Standing(Registry(tmp_path), lambda: "live", "a model"))
    source = Source(1, "code", "1.0.0", "", "", "", "2026-01-01", "")
    key = CacheKey.of("?", epoch=cache.epoch(), sources=[source])
    assert cache.put(key, Value("kumquat [1]", [], {}, is_checked=True), ["code"], 600)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(knowledge_log, "write_atomic", full)
    monkeypatch.setattr(purges, "append", full)
    failed = ask_app(app, "DELETE", f"{ADMIN}/code?redact=true")
    assert failed.status_code == 503 and "clearing the log's files" in failed.json()["error"]["message"]
    assert cache.get(key) is None and b"kumquat" not in b"".join(
        path.read_bytes() for path in (tmp_path / "cache").iterdir()
    )
    monkeypatch.undo()
    assert ask_app(app, "DELETE", f"{ADMIN}/code?redact=true").status_code == 200
    assert not any(b"kumquat" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert [one["op"] for one in store.audit()] == ["add", "redact"]


def ask_app(app: FastAPI, method: str, path: str) -> httpx2.Response:
    """An application without a server."""

    async def asked() -> httpx2.Response:
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path)

    return asyncio.run(asked())


# -- chats


def test_a_chat_stands_on_the_entry_and_says_so_whole_and_streamed_alike(server, entries):
    answer = chat(server, user="whole")
    about = answer["evergreen"]
    assert text_of(answer) == TOLD and about["knowledge"]["decision"] == "inject"
    assert about["knowledge"]["outcome"] == "checked" and about["problems"] == [] and about["release"]
    [citation] = about["citations"]
    assert citation == {"number": 1, "id": "lamp", "version": about["citations"][0]["version"], "title": "Nordlys Q7",
                        "url": "https://example.com/lamp", "date": "2026-10-02"}  # fmt: skip
    with server.client("user-key") as client, client.stream("POST", "/v1/chat/completions",
                                                            json=body(stream=True)) as answer:  # fmt: skip
        chunks = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == TOLD
    assert chunks[-1]["evergreen"]["citations"] == about["citations"]


def test_a_response_stands_on_the_entry_as_a_chat_does(server, entries):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="user-key", max_retries=0)
    answer = client.responses.create(input=ASKED, temperature=0).to_dict()
    *_, last = client.responses.create(input=ASKED, temperature=0, stream=True)
    about, told = answer["evergreen"], last.response.to_dict()["evergreen"]
    assert answer["output"][0]["content"][0]["text"] == last.response.output_text == TOLD
    assert [one["id"] for one in about["citations"]] == [one["id"] for one in told["citations"]] == ["lamp"]
    assert about["knowledge"]["outcome"] == told["knowledge"]["outcome"] == "checked" and told["cached"]
    off = client.responses.create(input=ASKED, extra_body={"evergreen": {"knowledge": "off"}}).to_dict()
    assert off["evergreen"]["sources"] == [] and off["evergreen"]["knowledge"] is None
    after = client.responses.create(input=ASKED, previous_response_id=answer["id"], temperature=0).to_dict()
    assert [one["id"] for one in after["evergreen"]["citations"]] == ["lamp"]


def test_the_row_of_a_request_is_enough_to_find_the_same_entries(server, entries):
    answer = chat(server)
    row = row_of(server, answer)
    grounding = json.loads(row["grounding"])
    assert row["knowledge"] == answer["evergreen"]["knowledge"]["n"] and grounding["reasons"]
    admin(server, "PATCH", "/lamp", json={"content": "The Nordlys Q7 lamp costs 50 dollars."})
    store = Store(server.home / "knowledge")
    store.refresh()
    [[id, version]] = grounding["sources"]
    found = next(one for one in store.visible(row["knowledge"], row["at"]) if one.entry.id == id)
    assert found.entry.version == version and "42 dollars" in found.entry.content


def test_an_answer_that_does_not_hold_any_more_is_an_abstention_at_once(server, entries):
    assert text_of(chat(server)) == TOLD
    wait_until(lambda: chat(server)["evergreen"]["cached"])
    admin(server, "PATCH", "/lamp", json={"content": "The Nordlys Q7 lamp costs 50 dollars."})
    answer = chat(server)
    assert text_of(answer) == "I cannot answer from the information given." and not answer["evergreen"]["cached"]
    about = answer["evergreen"]
    assert about["knowledge"]["outcome"] == "abstained" and about["problems"] and about["citations"] == []
    assert [source["id"] for source in about["sources"]] == ["lamp"]


def test_an_entry_is_in_the_next_answers_context_also_when_another_process_added_it(server, entries):
    store = Store(server.home / "knowledge")
    for i in range(5):
        store.add([Entry(f"The Vesla {i} boat is {i + 3} m long.", f"boat{i}", f"Vesla {i}")])
        about = chat(server, f"How long is the Vesla {i} boat?")["evergreen"]
        assert f"boat{i}" in {source["id"] for source in about["sources"]}


def test_what_a_request_wants_is_honoured(server, entries):
    before = row_of(server, chat(server))["at"]
    admin(server, "PATCH", "/lamp", json={"content": "The Nordlys Q7 lamp costs 50 dollars.", "tags": ["light"]})
    off = chat(server, evergreen={"knowledge": "off"})["evergreen"]
    assert off["knowledge"] is None and off["sources"] == []
    assert text_of(chat(server, evergreen={"as_of": before})) == TOLD
    assert chat(server, evergreen={"tags": ["light"]})["evergreen"]["sources"]
    assert not chat(server, evergreen={"tags": ["dark"]})["evergreen"]["sources"]
    poem = chat(server, "Write a poem about a lamp")["evergreen"]
    assert poem["knowledge"]["decision"] == "skip" and poem["knowledge"]["reasons"]
    assert chat(server, "Write a poem about a lamp", evergreen={"knowledge": "on"})["evergreen"]["sources"]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"evergreen": {"as_of": "yesterday"}}, "evergreen.as_of"),
        ({"evergreen": {"knowledge": "on"}, "response_format": {"type": "json_object"}}, "evergreen.knowledge"),
    ],
)
def test_a_wish_that_cannot_be_met_is_refused(server, entries, more, param):
    with server.client("user-key") as client:
        answer = client.post("/v1/chat/completions", json=body(**more))
        assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text
        plain = client.post("/v1/completions", json={"prompt": "x", "evergreen": {"knowledge": "on"}})
    assert plain.status_code == 400 and "chat" in plain.json()["error"]["message"]


def test_a_stream_that_waits_for_its_check_is_not_silent(tmp_path, base):
    """Comment lines, which the openai package leaves out; what fails behind one is the stream's last event."""
    flags = {"FAKE_TEXT": TOLD, "FAKE_STEP_SECONDS": "0.03", "FAKE_KEEP_ALIVE_SECONDS": "0.2"}
    held = body(temperature=0.7, stream=True)  # which no cache answers
    with serving(tmp_path / "home", "--model", base, **flags) as server:
        assert admin(server, "POST", json=LAMP).status_code == 201
        with server.client() as client, client.stream("POST", "/v1/chat/completions", json=held) as answer:
            lines = list(answer.iter_lines())
        first = next(place for place, line in enumerate(lines) if line.startswith("data:"))
        assert lines[:first] == [": keep-alive", ""] * (first // 2) and first > 2
        assert ": keep-alive" not in lines[first:] and lines[-2:] == ["data: [DONE]", ""]
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)
        chunks = client.chat.completions.create(model=base, **held)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TOLD
        with server.client() as client, client.stream("POST", "/v1/chat/completions", json=held) as answer:
            lines = answer.iter_lines()
            assert next(lines) == ": keep-alive"
            server.engine().kill()
            left = [line for line in lines if line.startswith("data:")]
        assert answer.status_code == 200 and '"error"' in left[0] and left[1:] == ["data: [DONE]"]


def test_who_hangs_up_while_the_answer_waits_for_its_check_frees_the_engine(tmp_path, base):
    flags = {"FAKE_TEXT": TOLD * 20, "FAKE_STEP_SECONDS": "0.05", "FAKE_KEEP_ALIVE_SECONDS": "0.1"}
    with serving(tmp_path / "home", "--model", base, **flags) as server:
        assert admin(server, "POST", json=LAMP).status_code == 201
        with server.client() as client, client.stream("POST", "/v1/chat/completions", json=body(stream=True)) as answer:
            assert next(answer.iter_lines()) == ": keep-alive"
            assert "evergreen_requests_running 1" in re.sub(r"\{[^}]*\}", "", client.get("/metrics").text)
        with server.client() as client:
            wait_until(lambda: re.search(r"evergreen_requests_running(\{[^}]*\})? 0", client.get("/metrics").text), 10)
        assert "Traceback" not in server.text


def test_several_choices_are_each_checked(server, entries):
    answer = chat(server, n=3)
    assert [choice["message"]["content"] for choice in answer["choices"]] == [TOLD] * 3
    assert json.loads(row_of(server, answer)["grounding"])["outcome"] == ["checked"] * 3


def test_a_hot_question_is_answered_again_before_anybody_asks(server, entries):
    """After a change the answer is made anew for the cache; the next who asks finds it there."""
    for _ in range(5):
        chat(server, seed=77)
    admin(server, "PATCH", "/lamp", json={"content": "The Nordlys Q7 lamp costs 42 dollars, as it did before."})
    remembered = server.home / "knowledge" / "cache" / "answers.jsonl"
    version = admin(server, "GET", "/lamp/history").json()["data"][-1]["version"]
    wait_until(lambda: f'"version":"{version}"' in remembered.read_text())
    assert chat(server, seed=77)["evergreen"]["cached"]


# -- snapshots, rollback, canary


def test_a_rollback_is_in_the_next_answer_and_none_fails(server, entries):
    good = admin(server, "POST", "/publish", json={"reason": "good"}).json()["snapshot"]
    admin(server, "PATCH", "/lamp", json={"content": "The Nordlys Q7 lamp costs 13 dollars."})
    assert chat(server)["evergreen"]["knowledge"]["outcome"] == "abstained"
    failures, stop = [], threading.Event()

    def keep_asking():
        with server.client("user-key") as client:
            while not stop.is_set():
                answer = client.post("/v1/chat/completions", json=body("hello", max_tokens=2))
                failures.extend([] if answer.status_code == 200 else [answer.text])

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        for _ in range(3):
            assert admin(server, "POST", "/rollback", json={"snapshot": good}).json()["snapshot"] == good
            answer = chat(server)
            assert text_of(answer) == TOLD and answer["evergreen"]["snapshot"] == good
            assert admin(server, "POST", "/live", json={}).status_code == 200
            answer = chat(server)
            assert (
                answer["evergreen"]["knowledge"]["outcome"] == "abstained" and answer["evergreen"]["snapshot"] is None
            )
    finally:
        stop.set()
        asking.join()
    assert not failures
    document = admin(server, "GET", "/snapshots").json()
    assert document["data"][0]["snapshot"] == good and document["serving"]["stable"] == "live"


def test_a_poisoned_snapshot_answers_nothing_after_the_rollback_caches_included(server, entries):
    good = admin(server, "POST", "/publish", json={}).json()["snapshot"]
    admin(server, "PATCH", "/lamp", json={"content": "The Nordlys Q7 lamp costs 42 dollars, says a liar."})
    bad = admin(server, "POST", "/publish", json={}).json()["snapshot"]
    admin(server, "POST", "/rollback", json={"snapshot": bad})
    assert text_of(chat(server)) == TOLD
    wait_until(lambda: chat(server)["evergreen"]["cached"])
    versions = {source["version"] for source in chat(server)["evergreen"]["sources"]}
    admin(server, "POST", "/rollback", json={"snapshot": good})
    answer = chat(server)
    assert not answer["evergreen"]["cached"] and not versions & {
        one["version"] for one in answer["evergreen"]["sources"]
    }


def test_a_change_that_a_pinned_release_does_not_show_is_told_of(server, entries):
    """As the command line does; what is redacted is out of snapshots, too."""
    snapshot = admin(server, "POST", "/publish", json={}).json()["snapshot"]
    assert "warning" not in admin(server, "PATCH", "/lamp", json={"title": "Nordlys Q7"}).json()
    admin(server, "POST", "/rollback", json={"snapshot": snapshot})
    told = [admin(server, "POST", json={"content": "The Orn chair weighs 7 kg.", "id": f"chair{snapshot}"}),
            admin(server, "PATCH", "/lamp", json={"content": "It costs 13 dollars."}),
            admin(server, "DELETE", "/lamp")]  # fmt: skip
    warnings = [answer.json()["warning"] for answer in told]
    assert all(line.startswith(f"answers come from snapshot {snapshot}, which ") for line in warnings)
    assert len(set(warnings)) == 3 and text_of(chat(server)) == TOLD
    assert "warning" not in admin(server, "DELETE", "/lamp?redact=true").json()
    assert text_of(chat(server)) != TOLD or chat(server)["evergreen"]["sources"] == []
    admin(server, "POST", "/live", json={})
    admin(server, "POST", "/canary", json={"snapshot": snapshot, "share": 0.3})
    told = admin(server, "DELETE", f"/chair{snapshot}").json()["warning"]
    assert told.startswith(f"30% of the users are answered from snapshot {snapshot}, which stays as it was")
    admin(server, "POST", "/live", json={})
    assert what_is_served(Registry(server.home)) == {"stable": "live", "candidate": str(snapshot), "share": 0.0}
    assert "warning" not in admin(server, "POST", json={"content": "x"}).json()


def test_a_server_that_was_started_with_a_model_does_not_follow_and_everybody_hears_of_it(tmp_path, base):
    home = tmp_path / "home"
    registry = Registry(home, digest=version_digest)
    registry.promote(registry.create(base).id, force="the first")
    store = Store(home / "knowledge")
    store.add([Entry(LAMP["content"], "lamp")])
    store.publish()
    command = [sys.executable, "-m", "evergreen", "knowledge", "rollback", "1", "--home", str(home)]
    with serving(home, "--model", base, FAKE_TEXT=TOLD) as server:
        for path, sent in (("rollback", {"snapshot": 1}), ("canary", {"snapshot": 1, "share": 0.5}), ("live", {})):
            refused = admin(server, "POST", f"/{path}", json=sent)
            assert refused.status_code == 400 and "start it without --model" in refused.json()["error"]["message"]
        assert registry.alias("stable").knowledge == "live"
        said = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "a server of this home was started with --model" in said.stderr and said.stderr.count("\n") == 1
        wait_until(lambda: "stable answers from knowledge snapshot 1, and this server from" in server.text)
        store.update("lamp", content="The Nordlys Q7 lamp costs 42 dollars, as ever.")
        answer = chat(server)
        assert answer["evergreen"]["snapshot"] is None and answer["evergreen"]["sources"][0]["version"] == "1.0.1"
        assert admin(server, "GET", "/snapshots").json()["serving"]["stable"] is None
        assert "warning" not in admin(server, "DELETE", "/lamp").json()
    assert subprocess.run(command, capture_output=True, text=True, check=True).stderr == ""


def test_a_canary_is_sticky_has_its_share_and_ends_with_a_rollback(server, entries):
    snapshot = admin(server, "POST", "/publish", json={}).json()["snapshot"]
    admin(server, "POST", "/canary", json={"snapshot": snapshot, "share": 0.3})

    def arms(users) -> dict[str, int | None]:
        return {user: chat(server, "hello", user=user, max_tokens=1)["evergreen"]["snapshot"] for user in users}

    users = [f"u{i}" for i in range(60)]
    first = arms(users)
    assert first == arms(users) and 6 <= Counter(first.values())[snapshot] <= 32
    admin(server, "POST", "/canary", json={"snapshot": snapshot, "share": 0.6})
    second = arms(users)
    assert all(second[user] for user in users if first[user]), "a larger share takes nobody out"
    assert Counter(second.values())[snapshot] > Counter(first.values())[snapshot]
    admin(server, "POST", "/live", json={})
    admin(server, "POST", "/rollback", json={"snapshot": snapshot})
    assert what_is_served(Registry(server.home))["share"] == 0


def test_who_gives_no_name_is_known_by_the_cookie(server, entries):
    snapshot = admin(server, "POST", "/publish", json={}).json()["snapshot"]
    admin(server, "POST", "/canary", json={"snapshot": snapshot, "share": 0.5})
    seen = set()
    for _ in range(8):
        with server.client("user-key") as client:
            page = client.get("/")
            assert "HttpOnly" in page.headers["set-cookie"] and "SameSite=strict" in page.headers["set-cookie"]
            answers = [client.post("/v1/chat/completions", json=body("hello", max_tokens=1)).json() for _ in range(3)]
            found = {answer["evergreen"]["snapshot"] for answer in answers}
        assert len(found) == 1
        seen |= found
    assert seen <= {None, snapshot}
    answer = chat(server, "hello", max_tokens=1)
    assert session_of(row_of(server, answer)["session"]), "who has no cookie gets one"


# -- the split and the release's child


def test_the_split_keeps_users_and_gives_shares():
    users = [user_of("key", f"user {i}", "") for i in range(4000)]
    tenth = {user for user in users if arm_of(user, {"candidate": 0.1, "stable": 0.9}, "a") == "candidate"}
    third = {user for user in users if arm_of(user, {"candidate": 0.3, "stable": 0.7}, "a") == "candidate"}
    other = {user for user in users if arm_of(user, {"candidate": 0.1, "stable": 0.9}, "b") == "candidate"}
    assert 330 < len(tenth) < 470 and tenth < third and 1100 < len(third) < 1300
    assert len(tenth & other) < 80, "another trial splits otherwise"
    assert user_of("a", "x", "") != user_of("b", "x", "") and user_of("a", "", "s") == user_of("b", "", "s")


def test_knowledge_is_served_through_a_child_of_the_stable_release(tmp_path, base):
    registry = Registry(tmp_path / "home", digest=version_digest)
    pinned = Pinned(registry)
    with pytest.raises(BadInput, match="nothing is released yet"):
        serve_knowledge(registry, "1")
    assert pinned.now() == "live"
    first = registry.create(base, prompt={"system": "Be brief."})
    registry.promote(first.id, force="the first")
    moved = serve_knowledge(registry, "3", reason="wrong prices")
    child = registry.alias("stable")
    assert (child.knowledge, child.parent, child.prompt) == ("3", first.id, first.prompt) and pinned.now() == "3"
    assert moved == {"stable": child.id, "previous": first.id} and "wrong prices" in registry.history()[0].reason
    registry.rollback()
    assert pinned.now() == "live" and registry.alias("stable").id == first.id
    serve_knowledge(registry, "3", share=0.2)
    assert what_is_served(registry) == {"stable": "live", "candidate": "3", "share": 0.2}
    registry.promote("candidate", force="it was good")
    assert what_is_served(registry)["stable"] == "3" and registry.share() == 0
    with pytest.raises(BadInput, match="--share"):
        serve_knowledge(registry, "3", share=0)


# -- by itself


def test_knowledge_is_served_without_a_model(tmp_path):
    with serving(tmp_path / "home", *KEYS, command="knowledge serve") as server:
        assert admin(server, "POST", json=LAMP).status_code == 201
        with server.client("user-key") as client:
            [fact] = client.post("/latest-facts", json={"query": "Nordlys lamp"}).json()
            assert fact["id"] == "lamp" and client.get("/health").status_code == 200
            assert (
                "/latest-facts" in client.get("/openapi.json").json()["paths"]
                and "latest-facts" in client.get("/docs").text
            )
            assert client.post("/v1/chat/completions", json=body()).status_code == 404
        assert server.stop() == 0

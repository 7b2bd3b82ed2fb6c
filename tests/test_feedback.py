"""The request log and the ratings: what is kept, what a broken database costs, what is said."""

import itertools
import json
import sqlite3
import threading
import time
from contextlib import closing

import pytest
from registry_homes import SERVERS, new_database
from waiting import wait_until

from evergreen import feedback
from evergreen.database import Database
from evergreen.feedback import MAX_HELD, Interaction, Log, Rating
from evergreen.home import new_id
from evergreen.records import Failure

numbers = itertools.count()


@pytest.fixture(params=SERVERS)
def database(request, tmp_path):
    if request.param == "sqlite":
        return Database(tmp_path)
    return Database(tmp_path, new_database(request.getfixturevalue("postgres"), f"log{next(numbers)}"))


@pytest.fixture
def start(database):
    logs = []

    def one(content="full", **more) -> Log:
        logs.append(Log(database, content, **more))
        return logs[-1]

    yield one
    for log in logs:
        log.close()


def interaction(**more) -> Interaction:
    body = {"messages": [{"role": "user", "content": "青石相机多少钱?"}]}
    return Interaction(new_id(), feedback.now(), "/v1/chat/completions", **{"input": body, "output": ["42元"]} | more)


class Full:
    """A database whose disk is full for as long as it is told so."""

    def __init__(self, database: Database):
        self.database, self.is_full = database, True

    def write(self):
        if self.is_full:
            raise Failure("evergreen.db could not be written: the disk is full; nothing was changed")
        return self.database.write()


def test_what_is_forgotten_leaves_its_row_without_a_word(start):
    log, told = start(), {"decision": "inject", "outcome": ["checked"], "problems": [{"sentence": "42元"}]}
    asked, other = interaction(completion_tokens=5, grounding=told), interaction()
    log.add(asked)
    log.add(other)
    assert json.loads(log.seek(asked.id).result().output) == ["42元"]  # behind what was added a moment ago
    log.forget(asked.id).result()
    row = log.find(asked.id)
    assert row.input is row.output is None and row.completion_tokens == 5
    assert json.loads(row.grounding) == {"decision": "inject", "outcome": ["checked"]}
    assert log.find(other.id).output and log.seek("none").result() is None
    log.forget("none").result()


def test_ids_are_uuids_of_version_7_that_sort_by_time():
    ids = []
    for _ in range(20):
        ids.append(new_id())
        time.sleep(0.002)
    assert ids == sorted(ids) and len(set(ids)) == 20
    assert all(id[14] == "7" and id[19] in "89ab" and len(id) == 36 for id in ids)
    assert abs(int(ids[-1].replace("-", "")[:12], 16) / 1000 - time.time()) < 60


def test_a_row_holds_what_the_request_was_and_how_it_ended(start):
    log = start()
    one = interaction(key="ann", user="u1", model="nano", release="r" * 64, adapter="a" * 64, finish_reason="stop",
                      prompt_tokens=7, cached_tokens=3, completion_tokens=5, first_token_seconds=0.25,
                      latency_seconds=1.5)  # fmt: skip
    log.add(one)
    wait_until(lambda: log.find(one.id))
    row = log.find(one.id)
    assert json.loads(row.input) == one.input and json.loads(row.output) == ["42元"] and "青石" in row.input
    assert (row.key, row.user, row.model, row.finish_reason, row.prompt_tokens) == ("ann", "u1", "nano", "stop", 7)
    assert row.first_token_seconds == 0.25 and row.knowledge is None and row.status == 200


@pytest.mark.parametrize("content", ["none", "hash"])
def test_content_that_is_not_to_be_kept_is_nowhere_in_the_file(content, start, tmp_path):
    log = start(content)
    first, second = interaction(), interaction()
    log.add(first)
    log.add(second)
    log.close()
    rows = log.find(first.id), log.find(second.id)
    files = b"".join(path.read_bytes() for path in tmp_path.glob("evergreen.db*"))
    assert "青石".encode() not in files and b"\\u9752" not in files
    assert rows[0].input == rows[1].input
    assert rows[0].input is None if content == "none" else rows[0].input.startswith("sha256:")


def test_a_rating_is_a_new_row_each_time_and_names_who(start):
    log = start()
    one = interaction()
    log.add(one)
    ids = [
        log.rate(Rating(one.id, "ann", "u1", thumb="down")).result(30),
        log.rate(Rating(one.id, "ops", trusted=True, correction="青石相机的价格是45元。", dwell_ms=1200)).result(30),
    ]
    down, corrected = log.ratings_of(one.id)
    assert [down.id, corrected.id] == ids and down.thumb == "down" and not down.trusted
    assert corrected.trusted and corrected.correction.endswith("45元。") and corrected.dwell_ms == 1200


def test_a_rating_of_an_answer_that_was_never_given_is_told(start):
    assert start().rate(Rating("0190-unknown")).result(30) is None


def test_thousands_of_rows_are_written_and_none_twice(start):
    log = start()
    ids = [new_id() for _ in range(3000)]
    threads = [
        threading.Thread(
            target=lambda part: [log.add(Interaction(id, "t", "/generate")) for id in part], args=(ids[i::4],)
        )
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert {row.id for row in log.newest(limit=5000)} == set(ids)


def test_a_full_disk_costs_no_row_is_said_once_and_fails_ratings_honestly(database, monkeypatch):
    monkeypatch.setattr(feedback, "RETRY_SECONDS", (0.01, 0.02))
    said: list[str] = []
    full = Full(database)
    log = Log(full, say=said.append)
    kept = [interaction() for _ in range(5)]
    for one in kept:
        log.add(one)
    wait_until(lambda: said)
    with pytest.raises(Failure, match="disk is full"):
        log.rate(Rating(kept[0].id, thumb="up")).result(30)
    time.sleep(0.1)
    assert len(said) == 1 and "requests are answered all the same" in said[0]
    full.is_full = False
    wait_until(lambda: len(said) == 2)
    log.close()
    log.db = database
    assert {row.id for row in log.newest()} == {one.id for one in kept}
    assert "0 rows were lost" in said[1]


def test_what_waits_is_bounded_and_the_oldest_goes_first(database, monkeypatch):
    monkeypatch.setattr(feedback, "RETRY_SECONDS", (60, 60))
    full = Full(database)
    log = Log(full, say=lambda text: None)
    for number in range(MAX_HELD + 20):
        log.add(Interaction(f"{number:06d}", "t", "/generate"))
    wait_until(lambda: log.num_lost >= 20 or len(log._held) == MAX_HELD)
    full.is_full = False
    log.close()
    log.db = database
    ids = [row.id for row in log.newest(limit=MAX_HELD + 100)]
    assert len(ids) == MAX_HELD and ids[0] == f"{MAX_HELD + 19:06d}"


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_database_that_another_process_holds_does_not_keep_a_request(start, tmp_path):
    log = start(say=lambda text: None)
    with closing(sqlite3.connect(tmp_path / "evergreen.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        started = time.monotonic()
        one = interaction()
        log.add(one)
        assert time.monotonic() - started < 5  # BUSY_SECONDS is 30
        other.execute("ROLLBACK")
    wait_until(lambda: log.find(one.id))


def test_text_that_no_database_takes_is_kept_as_far_as_it_can_be(start):
    log = start()
    odd = interaction(user="a\x00b\ud800", input={"prompt": "\ud800 and \x00"}, error="\udfff")
    log.add(odd)
    plain = interaction()
    log.add(plain)
    wait_until(lambda: log.find(plain.id))
    assert log.find(odd.id).user == "ab?" and "and" in log.find(odd.id).input
    assert log.rate(Rating(odd.id, comment="\ud800!")).result(30)

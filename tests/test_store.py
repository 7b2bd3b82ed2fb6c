"""The knowledge log and the entries made from it."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from evergreen.knowledge import log as knowledge_log
from evergreen.knowledge.entries import bumped, utc_now
from evergreen.knowledge.store import Store, is_visible
from evergreen.records import BadInput, Entry, Failure

BENCH = Path(__file__).resolve().parents[1] / "bench" / "knowledge.py"

WRITER = """
import sys
from pathlib import Path
from evergreen.knowledge.store import Store
from evergreen.records import Entry
store = Store(Path(sys.argv[1]))
for number in range(int(sys.argv[3])):
    rows = store.add([Entry(content=f"{sys.argv[2]} {number} {part} " + "x" * 200) for part in range(3)])
    print(number, flush=True)
"""


def start_writer(folder: Path, name: str, count: int = 100_000) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), name, str(count)], stdout=subprocess.PIPE, text=True
    )


def bench(*words: str) -> dict:
    """What the benchmark's sections say; one that sees a broken promise fails."""
    done = subprocess.run([sys.executable, str(BENCH), *words, "--json"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def contents(store: Store, n: int | None = None) -> dict[str, str]:
    return {row.entry.id: row.entry.content for row in store.visible(n)}


def test_an_entry_is_visible_to_another_reader_when_add_returns(tmp_path):
    reader = Store(tmp_path)
    assert list(reader.visible()) == []
    row = Store(tmp_path).add([Entry(content="青石相机的价格是42元。", tags=("相机",))], author="li", reason="new")[0]
    assert [found.entry for found in reader.visible()] == [row.entry]
    assert row.entry.version == "1.0.0" and row.entry.update_time.endswith("Z") and row.author == "li"


def test_an_update_raises_the_version_and_keeps_the_old_one_for_the_past(tmp_path):
    store = Store(tmp_path)
    id = store.add([Entry(content="price 42")])[0].entry.id
    before = store.at()
    assert store.update(id, content="price 43").entry.version == "1.0.1"
    assert store.update(id, content="price 44", bump="major").entry.version == "2.0.0"
    assert store.update(id, version="2.5.0", content="price 45").entry.version == "2.5.0"
    assert contents(store) == {id: "price 45"} and contents(store, before) == {id: "price 42"}
    assert [row.entry.version for row in store.history(id)] == ["1.0.0", "1.0.1", "2.0.0", "2.5.0"]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda store: store.update("none", content="x"), "no entry none"),
        (lambda store: store.update("a", version="0.9.0"), "not above 1.0.0"),
        (lambda store: store.update("a", version="1.0"), "MAJOR.MINOR.PATCH"),
        (lambda store: store.add([Entry(content="x", id="a")]), "there already"),
        (lambda store: store.add([Entry(content="  ")]), "needs a content"),
        (lambda store: store.add([Entry(content="x", valid_from="2026-02-01", valid_until="2026-01-01")]), "not after"),
        (lambda store: store.add([Entry(content="x", update_time="yesterday")]), "is not a date"),
        (lambda store: store.at(7), "no snapshot 7"),
        (lambda store: store.at("latest"), "no snapshot has been published"),
        (lambda store: store.at("someday"), "is not a date"),
        (lambda store: store.withdraw(["a", "b"]), "no entry b"),
    ],
)
def test_what_cannot_be_is_one_line_and_changes_nothing(tmp_path, call, said):
    store = Store(tmp_path)
    store.add([Entry(content="first", id="a")])
    with pytest.raises(BadInput, match=said):
        call(store)
    assert contents(Store(tmp_path)) == {"a": "first"}


def test_a_snapshot_does_not_change_and_a_date_is_read_as_it_was(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.add([Entry(content="one", id="a")])
    number = store.publish(reason="first").number
    store.update("a", content="two")
    store.withdraw(["a"])
    store.add([Entry(content="three", id="b")])
    assert contents(store) == {"b": "three"}
    assert contents(store, store.at(number)) == contents(store, store.at("latest")) == {"a": "one"}
    assert store.at("2020-01-01") == 0 and store.at("2999-01-01") == store.at()
    assert {kind: [row.entry.id for row in rows] for kind, rows in store.diff(store.at(1), store.at()).items()} == {
        "added": ["b"], "removed": ["a"], "updated": []
    }  # fmt: skip


def test_validity_is_a_window_in_time(tmp_path):
    store = Store(tmp_path)
    row = store.add([Entry(content="x", valid_from="2026-01-01", valid_until="2026-02-01T08:00:00+08:00")])[0]
    n = store.at()
    assert row.entry.valid_until == "2026-02-01T00:00:00.000Z"
    seen = [is_visible(row, n, f"{day}T00:00:00.000Z") for day in ("2025-12-31", "2026-01-01", "2026-02-01")]
    assert seen == [False, True, False]


def test_reading_the_past_equals_replaying_history(tmp_path):
    rng, store = random.Random(5), Store(tmp_path)
    truth: dict[str, str] = {}
    states = {0: {}}
    for number in range(120):
        id, kind = f"e{rng.randrange(12)}", rng.random()
        if id not in truth:
            store.add([Entry(content=f"{number}", id=id)])
            truth[id] = f"{number}"
        elif kind < 0.6:
            store.update(id, content=f"{number}")
            truth[id] = f"{number}"
        else:
            store.withdraw([id])
            del truth[id]
        states[store.at()] = dict(truth)
    reader = Store(tmp_path)
    reader.refresh()
    assert all(contents(reader, n) == state for n, state in states.items())


def test_what_was_redacted_is_in_no_snapshot_and_no_file(tmp_path):
    store, reader = Store(tmp_path), Store(tmp_path)
    store.add([Entry(content="the SECRET word", title="SECRET", id="a"), Entry(content="other", id="b")])
    store.update("a", content="SECRET again")
    store.publish()
    assert reader.at(1)
    store.redact(["a"], author="chief")
    assert not any(b"SECRET" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert contents(reader, reader.at(1)) == contents(store, store.at(1)) == {"b": "other"}
    store.add([Entry(content="later", id="c")])
    assert contents(reader) == {"b": "other", "c": "later"}
    assert [one["op"] for one in reader.audit("a")] == ["add", "update", "redact"]


def test_a_redaction_that_was_killed_is_finished_by_the_next_write(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.add([Entry(content="SECRET", id="a")])
    monkeypatch.setattr(knowledge_log.Log, "rewrite", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.redact(["a"])
    monkeypatch.undo()
    later = Store(tmp_path)
    assert contents(later) == {}
    later.add([Entry(content="x")])
    assert not any(b"SECRET" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_torn_tail_is_cut_off_with_a_message(tmp_path):
    store = Store(tmp_path)
    store.add([Entry(content="whole", id="a")])
    path = next((tmp_path / "log").iterdir())
    whole = path.read_bytes()
    torn = knowledge_log.encode({"n": 2, "at": utc_now(), "op": "withdraw", "id": "a"}, True)
    for size in (1, 20, len(torn) - 1):
        path.write_bytes(whole + torn[:size])
        said: list[str] = []
        again = Store(tmp_path, said.append)
        assert contents(again) == {"a": "whole"} and not said
        again.update("a", content="next")
        assert len(said) == 1 and f"{size} bytes" in said[0]
        assert contents(Store(tmp_path)) == {"a": "next"}


@pytest.mark.parametrize("place", [0, 4, 12, 40, -3])
def test_a_damaged_last_line_is_refused_and_not_cut(tmp_path, place):
    """It was acknowledged: a crash leaves no newline, or zeros."""
    store = Store(tmp_path)
    for name in "ab":
        store.add([Entry(content=name, id=name)])
    path = tmp_path / "log" / "000001.jsonl"
    whole = path.read_bytes()
    lines, last = whole.splitlines(keepends=True)[:-1], bytearray(whole.splitlines(keepends=True)[-1])
    last[place] ^= 1
    damaged = b"".join(lines) + last
    path.write_bytes(damaged)
    said: list[str] = []
    late = Store(tmp_path, said.append)
    for call in (late.refresh, lambda: late.add([Entry(content="c", id="c")]), lambda: late.redact(["a"])):
        with pytest.raises(Failure, match=f"damaged at byte {len(b''.join(lines))}"):
            call()
    assert path.read_bytes() == damaged and not said
    path.write_bytes(whole)
    assert contents(late) == {"a": "a", "b": "b"}


def test_what_a_power_failure_leaves_of_an_append_is_cut_and_of_an_acknowledged_one_is_not(tmp_path):
    """Blocks that never reached the disk read as zeros, also before others that did."""
    store = Store(tmp_path)
    store.add([Entry(content="whole", id="a")])
    path = tmp_path / "log" / "000001.jsonl"
    whole = path.read_bytes()
    store.add([Entry(content="x" * 300, id=f"b{number}") for number in range(3)])
    lines = path.read_bytes()[len(whole) :].splitlines(keepends=True)
    holes = [bytes(4096), bytes(100) + lines[0][100:], bytes(100) + lines[0][100:] + lines[1] + lines[2][:50],
             lines[0] + lines[1][:30] + bytes(40) + lines[1][70:]]  # fmt: skip
    for hole in holes:
        path.write_bytes(whole + hole)
        said: list[str] = []
        again = Store(tmp_path, said.append)
        assert contents(again) == {"a": "whole"}
        again.publish()
        assert len(said) == 1 and f"{len(hole)} bytes" in said[0]
        assert contents(Store(tmp_path)) == {"a": "whole"}
    path.write_bytes(whole + bytes(100) + lines[0][100:] + lines[1] + lines[2])
    with pytest.raises(Failure, match="damaged at byte"):
        Store(tmp_path).add([Entry(content="next")])


def test_a_reader_in_whose_reading_a_tail_is_cut_reads_again(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.add([Entry(content="one", id="a")])
    whole = (tmp_path / "log" / "000001.jsonl").read_bytes()
    store.add([Entry(content="two", id="b")])
    reader, given = Store(tmp_path), [whole + b'{"crc":"0000torn' + b'e":3}\n']
    read = knowledge_log.Log._rest_of
    monkeypatch.setattr(knowledge_log.Log, "_rest_of", lambda log, path: given.pop() if given else read(log, path))
    assert contents(reader) == {"a": "one", "b": "two"}


def test_a_redaction_does_not_rewrite_a_log_that_was_damaged_since_it_was_read(tmp_path):
    store = Store(tmp_path)
    for name in "abc":
        store.add([Entry(content=f"content {name}", id=name)])
    path = tmp_path / "log" / "000001.jsonl"
    damaged = path.read_bytes().replace(b"content b", b"content x")
    with open(path, "rb+") as file:
        file.write(damaged)
    with pytest.raises(Failure, match="damaged at byte"):
        store.redact(["a"])
    assert path.read_bytes().startswith(damaged) and "a" not in contents(store)


def test_a_torn_tail_behind_many_appends_is_a_tail_still(tmp_path):
    store = Store(tmp_path)
    for number in range(20):
        store.add([Entry(content=f"entry {number}", id=f"e{number}")])
    path = next((tmp_path / "log").iterdir())
    path.write_bytes(path.read_bytes() + b'{"crc":"00')
    assert len(contents(Store(tmp_path))) == 20


def test_half_of_an_append_is_not_seen(tmp_path):
    store = Store(tmp_path)
    store.add([Entry(content="one", id="a")])
    path = next((tmp_path / "log").iterdir())
    before = path.read_bytes()
    store.add([Entry(content="two", id="b"), Entry(content="three", id="c")])
    after = path.read_bytes()
    path.write_bytes(after[: len(before) + (len(after) - len(before)) // 2 + 40])
    assert contents(Store(tmp_path)) == {"a": "one"}


def test_damage_in_the_middle_is_an_error_that_names_the_file(tmp_path):
    store = Store(tmp_path)
    for name in "abc":
        store.add([Entry(content=name, id=name)])
    path = next((tmp_path / "log").iterdir())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(Failure, match="damaged at byte"):
        Store(tmp_path).refresh()


def test_damage_is_told_every_time_and_nothing_is_written_over_it(tmp_path):
    store = Store(tmp_path)
    for name in "abc":
        store.add([Entry(content=name, id=name)])
    path = tmp_path / "log" / "000001.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"content":"b"', b'"content":"x"'))
    late = Store(tmp_path)
    for call in (late.refresh, late.refresh, lambda: late.add([Entry(content="d", id="d")])):
        with pytest.raises(Failure, match="damaged at byte"):
            call()
    path.write_bytes(whole)
    assert contents(late) == {"a": "a", "b": "b", "c": "c"}


def test_what_cannot_be_read_is_told_every_time(tmp_path):
    store = Store(tmp_path)
    store.add([Entry(content="one", id="a")])
    path = tmp_path / "log" / "000001.jsonl"
    path.rename(tmp_path / "kept")
    path.mkdir()
    late = Store(tmp_path)
    for call in (late.refresh, lambda: late.add([Entry(content="two", id="b")])):
        with pytest.raises(Failure, match="reading the knowledge log failed: Is a directory"):
            call()
    path.rmdir()
    (tmp_path / "kept").rename(path)
    assert contents(late) == {"a": "one"}


def test_a_lost_manifest_is_an_error_and_the_segments_stay(tmp_path):
    Store(tmp_path).add([Entry(content="one", id="a")])
    path, manifest = tmp_path / "log" / "000001.jsonl", tmp_path / "manifest.json"
    segment, kept = path.read_bytes(), manifest.read_bytes()
    manifest.unlink()
    for _ in range(2):
        with pytest.raises(Failure, match="manifest.json is missing"):
            Store(tmp_path).add([Entry(content="two", id="b")])
    assert path.read_bytes() == segment and not manifest.exists()
    manifest.write_bytes(kept)
    assert contents(Store(tmp_path)) == {"a": "one"}


@pytest.mark.parametrize(
    "text", ["", "[1]", "{}", '{"format": 1}', '{"format": 1, "generation": 0, "forgotten": 0, "segments": [{}]}']
)
def test_a_damaged_manifest_is_one_line(tmp_path, text):
    Store(tmp_path).add([Entry(content="one", id="a")])
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(Failure, match="manifest.json .*bring it back from a backup"):
        Store(tmp_path).refresh()


@pytest.mark.parametrize("size", [0, "one line less"])
def test_a_sealed_segment_that_is_shorter_is_an_error(tmp_path, monkeypatch, size):
    monkeypatch.setattr(knowledge_log, "SEGMENT_BYTES", 500)
    store = Store(tmp_path)
    for number in range(8):
        store.add([Entry(content=f"entry {number}", id=f"e{number}")])
    first = tmp_path / "log" / "000001.jsonl"
    first.write_bytes(b"".join(first.read_bytes().splitlines(keepends=True)[:-1]) if size else b"")
    with pytest.raises(Failure, match="000001.jsonl has .* whole bytes of"):
        Store(tmp_path).refresh()


@pytest.mark.parametrize("part", ["content", "title", "id", "tags", "author", "reason"])
def test_half_a_character_is_refused_in_one_line(tmp_path, part):
    store, half = Store(tmp_path), "a\ud800"
    who = {part: half} if part in ("author", "reason") else {}
    parts = {"content": "x"} | ({} if who else {part: (half,) if part == "tags" else half})
    with pytest.raises(BadInput, match="half of one|no text"):
        store.add([Entry(**parts)], **who)
    store.add([Entry(content="云", id="a")])
    assert contents(Store(tmp_path)) == {"a": "云"}


@pytest.mark.parametrize(
    "text", ["0001-01-01T00:00+05:00", "9999-12-31T23:59:59-05:00", "2026-02-30", "二〇二六年五月"]
)
def test_a_date_that_is_none_is_one_line(tmp_path, text):
    with pytest.raises(BadInput, match="not a date|years 1 to 9999"):
        Store(tmp_path).at(text)


@pytest.mark.parametrize("moment", ["²", "9" * 50])
def test_a_number_that_is_no_snapshot_is_one_line(tmp_path, moment):
    with pytest.raises(BadInput):
        Store(tmp_path).at(moment)


def test_a_version_of_many_digits_is_refused(tmp_path):
    store = Store(tmp_path)
    store.add([Entry(content="one", id="a")])
    with pytest.raises(BadInput, match="MAJOR.MINOR.PATCH"):
        store.update("a", version="9" * 5000 + ".0.0")


def test_a_redaction_on_a_full_disk_says_what_is_left_to_do(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.add([Entry(content="a secret", id="a")])

    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(knowledge_log, "write_atomic", full)
    with pytest.raises(Failure, match="in no answer any more, but clearing .* No space left"):
        store.redact(["a"])
    monkeypatch.undo()
    assert contents(Store(tmp_path)) == {}
    Store(tmp_path).add([Entry(content="two", id="b")])
    assert b"secret" not in b"".join(path.read_bytes() for path in (tmp_path / "log").iterdir())


def test_segments_are_sealed_and_verified(tmp_path, monkeypatch):
    monkeypatch.setattr(knowledge_log, "SEGMENT_BYTES", 2000)
    store, reader = Store(tmp_path), Store(tmp_path)
    for number in range(40):
        store.add([Entry(content=f"entry {number}", id=f"e{number}")])
        assert len(contents(reader)) == number + 1
    assert len(list((tmp_path / "log").iterdir())) > 3 and store.log.verify() > 2
    assert len(contents(Store(tmp_path))) == 40
    first = tmp_path / "log" / "000001.jsonl"
    first.write_bytes(first.read_bytes().replace(b"entry 1", b"entry 9"))
    with pytest.raises(Failure, match="not what was written"):
        store.log.verify()


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.add([Entry(content="one", id="a")])

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(knowledge_log.os, "fsync", full)
    with pytest.raises(Failure, match="No space left"):
        store.add([Entry(content="two", id="b")])
    monkeypatch.undo()
    store.add([Entry(content="three", id="c")])
    assert contents(store) == contents(Store(tmp_path)) == {"a": "one", "c": "three"}


def test_kills_at_random_moments_lose_nothing_that_was_acknowledged(tmp_path):
    rng, acknowledged = random.Random(1), 0
    for turn in range(6):
        writer = start_writer(tmp_path, f"w{turn}")
        writer.stdout.readline()
        time.sleep(rng.random() * 0.2)
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged += 1 + len(writer.stdout.read().splitlines())
        writer.wait()
        count = len(contents(Store(tmp_path)))
        assert count % 3 == 0 and count >= 3 * acknowledged
        acknowledged = count // 3


@pytest.mark.slow
def test_kills_in_changes_of_every_kind_lose_nothing_and_leave_nothing_that_was_redacted():
    """Adding, updating, withdrawing, redacting, publishing, compacting; 200 of the benchmark's 1,000."""
    done = bench("--sections", "kills", "--kills", "200")["kills"]
    assert done["kills"] == 200 and done["acknowledged"] > 100 and done["in_flight"]


def test_what_a_killed_rewrite_left_is_gone_with_what_is_redacted_later(tmp_path, monkeypatch):
    """Its unfinished files hold what was not redacted then."""
    store = Store(tmp_path)
    store.add([Entry(content="one SECRET", id="a"), Entry(content="other", id="b")])
    late, first = Store(tmp_path), (tmp_path / "log" / "000001.jsonl").read_bytes()
    late.add([Entry(content="x")])
    for name in (".000001-1.jsonl.x1y2z3_4", "000001-1.jsonl", "000009.jsonl"):
        (tmp_path / "log" / name).write_bytes((tmp_path / "log" / "000001.jsonl").read_bytes())
    late.redact(["a"])
    assert not any(b"SECRET" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert len(contents(store)) == len(contents(Store(tmp_path))) == 2
    (tmp_path / "log" / "000001.jsonl").write_bytes(first)  # killed before it removed the old one
    (tmp_path / "log" / "000001.jsonl.bak").write_bytes(b"somebody's own")
    Store(tmp_path).add([Entry(content="y")])
    assert {path.name for path in (tmp_path / "log").iterdir()} == {"000001-1.jsonl", "000001.jsonl.bak"}


def test_an_older_manifest_is_refused_by_the_next_write_and_nothing_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(knowledge_log, "SEGMENT_BYTES", 500)
    store = Store(tmp_path)
    store.add([Entry(content="first", id="a")])
    older = (tmp_path / "manifest.json").read_bytes()
    for number in range(8):
        store.add([Entry(content=f"entry {number}", id=f"e{number}")])
    newer = (tmp_path / "manifest.json").read_bytes()
    names = sorted(path.name for path in (tmp_path / "log").iterdir())
    (tmp_path / "manifest.json").write_bytes(older)
    with pytest.raises(Failure, match=r"000002.jsonl begins with change .* bring back the manifest"):
        Store(tmp_path).add([Entry(content="late")])
    assert sorted(path.name for path in (tmp_path / "log").iterdir()) == names
    assert (tmp_path / "manifest.json").read_bytes() == older
    (tmp_path / "manifest.json").write_bytes(newer)
    assert len(contents(Store(tmp_path))) == 9


def test_two_writers_take_turns_while_others_read(tmp_path):
    writers = [start_writer(tmp_path, name, 60) for name in ("left", "right")]
    reader, sizes = Store(tmp_path), []
    while any(writer.poll() is None for writer in writers):
        sizes.append(len(contents(reader)))
        time.sleep(0.01)
    assert sizes == sorted(sizes) and all(size % 3 == 0 for size in sizes)
    assert len(contents(reader)) == 2 * 60 * 3
    numbers = [change["n"] for change in Store(tmp_path).audit()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_four_processes_read_whole_writes_only_while_one_and_while_two_write():
    for done in bench("--sections", "processes", "--seconds", "0.7")["processes"].values():
        assert len(done["reads_per_second"]) == 4 and all(map(all, done.values())), done


def test_versions_rise_by_their_parts():
    assert [bumped("1.2.3", part) for part in ("major", "minor", "patch")] == ["2.0.0", "1.3.0", "1.2.4"]
    with pytest.raises(BadInput, match="major, minor, patch"):
        bumped("1.2.3", "big")


def test_adding_what_was_withdrawn_goes_on_from_its_version(tmp_path):
    store = Store(tmp_path)
    entry = store.add([Entry(content="x", id="a")])[0].entry
    store.withdraw(["a"])
    assert store.add([replace(entry, content="y")])[0].entry.version == "1.0.1"

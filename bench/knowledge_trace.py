"""Answers from knowledge under load: a plain server against Evergreen on one trace, measure by measure.

    python bench/knowledge_trace.py [--questions 2000] [--distinct 500] [--entries 5000] [--users 16] [--json]

The trace: questions drawn from `--distinct` by Zipf's law (exponent 1.0), asked by `--users` that each wait for their
answer; greedy, at most 32 new tokens. Contestants, each a server process of its own over the same home and the same
frame: plain (transformers' generate, one by one, retrieval in line, no cache), then Evergreen with its batching engine,
then with 8-bit weights, then with the cache; retrieval runs beside the prompt's making in all of Evergreen's. Checked
are the answers, too: those that stand on a good check must equal the plain server's, where the weights are the same.
Last: how long an added entry takes until it stands in a prompt.
Promises: prints a table for people and, last, one line of JSON. Client and servers share the machine's cores, so the
ratios count and the seconds do not. Contestants run one after another, each from an empty cache.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unicodedata import normalize

import serve_load
from rich.console import Console
from rich.table import Table

MAX_TOKENS, SEED = 32, 7
FIRST = "Acme Blue Pine Star North River Stone Cloud Silver Maple Amber Cedar Coral Delta Ember Falcon Granite".split()
SECOND = "Router Lamp Camera Phone Speaker Kettle Biscuit Tea Chair Fan Clock Radio Bottle Jacket Tent Scale".split()
FACTS = (
    ("The price of {} is {} dollars.", "How much is {}?", lambda draw: draw.randrange(10, 999)),
    ("The current version of {} is {}.", "What is the current version of {}?",
     lambda draw: f"{draw.randrange(1, 9)}.{draw.randrange(10)}"),
    ("The weight of {} is {} grams.", "What is the weight of {}?", lambda draw: draw.randrange(10, 999)),
)  # fmt: skip
EVERGREEN = {
    "batching, prefix cache": ["--cache_seconds", "0", "--torch_dtype", "float32"],
    "+ 8-bit weights": ["--cache_seconds", "0", "--torch_dtype", "float32", "--quantization", "int8"],
    "+ answer cache": ["--torch_dtype", "float32", "--quantization", "int8"],
    "answer cache, 32-bit": ["--torch_dtype", "float32"],
}


def fill(home: Path, num_entries: int, num_distinct: int) -> tuple[list[str], list[str]]:
    """Write the entries; the questions that the trace draws from, and others to warm up with."""
    from evergreen.knowledge.store import Store
    from evergreen.records import Entry

    draw, entries, questions = random.Random(SEED), [], []
    for place in range(num_entries):
        name = f"{draw.choice(FIRST)} {draw.choice(SECOND)} {chr(65 + place % 26)}{place}"
        text, question, value = FACTS[place % len(FACTS)]
        day = f"2026-{1 + place % 12:02d}-{1 + place % 28:02d}"
        entries.append(Entry(text.format(name, value(draw)), f"e{place}", name, "https://example.com/x", day))
        questions.append(question.format(name))
    Store(home / "knowledge").add(entries, "bench")
    random.Random(SEED).shuffle(questions)
    return questions[:num_distinct], questions[num_distinct:]


def trace_of(questions: list[str], num: int) -> list[str]:
    weights = [1 / rank for rank in range(1, len(questions) + 1)]
    return random.Random(SEED).choices(questions, weights, k=num)


# -- the plain server


def serve_plain(model: str, home: str) -> None:
    """transformers behind http.server: a request retrieves, then generates, then the next one may."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from evergreen.knowledge.answer import Ask, open_knowledge
    from evergreen.model.find import resolve
    from evergreen.settings import KnowledgeSettings

    folder = resolve(model).base
    tokenizer = AutoTokenizer.from_pretrained(folder)
    weights = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    knowledge, lock = open_knowledge(Path(home), KnowledgeSettings(retrieval_timeout=60.0)), threading.Lock()
    knowledge.warm()

    def answer(question: str) -> str:
        found = knowledge.look(question, Ask())
        turn = knowledge.prepare(found, lambda text: len(tokenizer.encode(text))).text
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": turn}], add_generation_prompt=True,
                                               return_tensors="pt", return_dict=True)  # fmt: skip
        with torch.inference_mode():
            ids = weights.generate(**prompt, max_new_tokens=MAX_TOKENS, do_sample=False)
        return tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                text = answer(body["messages"][-1]["content"])
            said = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()


@contextlib.contextmanager
def plain(model: str, home: str) -> Iterator[int]:
    command = [sys.executable, __file__, "--serve_plain", model, "--home", home]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        for line in process.stdout or ():
            if line.startswith("http://"):
                yield int(line.rpartition(":")[2])
                return
        raise SystemExit("the plain server did not start")
    finally:
        process.kill()
        process.wait()


# -- the clients


async def ask_all(port: int, model: str, trace: list[str], num_users: int) -> tuple[list[float], list[dict], float]:
    """Seconds and answers in the trace's order, and the seconds of the whole."""
    places, seconds, answers = iter(range(len(trace))), [0.0] * len(trace), [{}] * len(trace)

    async def user() -> None:
        for place in places:
            body = {"model": model, "messages": [{"role": "user", "content": trace[place]}], "temperature": 0,
                    "max_tokens": MAX_TOKENS}  # fmt: skip
            start = time.perf_counter()
            status, raw = await serve_load.request(port, "POST", "/v1/chat/completions", body)
            seconds[place] = time.perf_counter() - start
            if status != 200:
                raise SystemExit(f"status {status}: {raw[:300]!r}")
            answers[place] = json.loads(raw)

    start = time.perf_counter()
    await asyncio.gather(*(user() for _ in range(num_users)))
    return seconds, answers, time.perf_counter() - start


def measured(name: str, port: int, options: argparse.Namespace, trace: list[str], others: list[str]) -> dict[str, Any]:
    asyncio.run(ask_all(port, options.model, others[: options.users], options.users))  # to warm up
    seconds, answers, whole = asyncio.run(ask_all(port, options.model, trace, options.users))
    ranked = sorted(seconds)
    about = [answer.get("evergreen") or {} for answer in answers]
    return {
        "name": name,
        "p50_ms": 1000 * ranked[len(ranked) // 2],
        "p95_ms": 1000 * ranked[int(0.95 * len(ranked))],
        "qps": len(trace) / whole,
        "cached": sum(bool(one.get("cached")) for one in about) / len(about),
        "retrieval_ms": 1000 * statistics.median([(one.get("knowledge") or {}).get("seconds", 0.0) for one in about]),
        "outcomes": {name: sum((one.get("knowledge") or {}).get("outcome") == name for one in about)
                     for name in ("checked", "second", "abstained", "unchecked")},
        "texts": [answer["choices"][0]["message"]["content"] for answer in answers],
        "is_checked": [(one.get("knowledge") or {}).get("outcome") in ("checked", "unchecked") for one in about],
    }  # fmt: skip


def equal_share(one: dict[str, Any], other: dict[str, Any]) -> tuple[float, list[tuple[str, str]]]:
    """Of the answers that were given out as the model made them, the share that the plain server gave too; the others
    beside the plain server's. Full-width digits count as the plain ones: nano's logits for both are the same number."""
    own = zip(one["texts"], other["texts"], one["is_checked"], strict=True)
    pairs = [(text, plain) for text, plain, is_own in own if is_own]
    differing = [(text, plain) for text, plain in pairs if normalize("NFKC", text) != normalize("NFKC", plain)]
    return 1 - len(differing) / max(1, len(pairs)), list(dict.fromkeys(differing))


def visible_seconds(home: Path, num: int) -> list[float]:
    """From adding an entry, its fsync included, to a turn that shows it."""
    from evergreen.knowledge.answer import Ask, open_knowledge
    from evergreen.records import Entry
    from evergreen.settings import KnowledgeSettings

    knowledge, seconds = open_knowledge(home, KnowledgeSettings(retrieval_timeout=60.0)), []
    knowledge.warm()
    for place in range(num):
        entry = Entry(f"The price of Quartz Harp Z{place} is {place} dollars.", f"z{place}", f"Quartz Harp Z{place}")
        start = time.perf_counter()
        knowledge.write(lambda store, entry=entry: store.add([entry]))
        prepared = knowledge.prepare(knowledge.look(f"How much is Quartz Harp Z{place}?", Ask()), len)
        seconds.append(time.perf_counter() - start)
        assert f"z{place}" in {source.id for source in prepared.sources}
    return sorted(seconds)


def show(rows: list[dict[str, Any]], console: Console) -> None:
    table = Table()
    for column in ("", "p50 ms", "p95 ms", "of plain", "QPS", "of plain", "cached", "retrieval ms", "equal"):
        table.add_column(column, justify="left" if not column else "right")
    for row in rows:
        table.add_row(row["name"], f"{row['p50_ms']:.0f}", f"{row['p95_ms']:.0f}", f"{row['p95_ratio']:.2f}x",
                      f"{row['qps']:.1f}", f"{row['qps_ratio']:.1f}x", f"{row['cached']:.0%}",
                      f"{row['retrieval_ms']:.1f}", f"{row['equal']:.1%}")  # fmt: skip
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--distinct", type=int, default=500)
    parser.add_argument("--entries", type=int, default=5000)
    parser.add_argument("--users", type=int, default=16)
    parser.add_argument("--json", action="store_true", help="only the last line")
    parser.add_argument("--serve_plain", default="", help=argparse.SUPPRESS)
    parser.add_argument("--home", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_plain:
        serve_plain(options.serve_plain, options.home)
        return
    console = Console(quiet=options.json, width=120)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        questions, others = fill(home, options.entries, options.distinct)
        trace = trace_of(questions, options.questions)
        with plain(options.model, str(home)) as port:
            rows = [measured("plain", port, options, trace, others)]
        for name, flags in EVERGREEN.items():
            shutil.rmtree(home / "knowledge" / "cache", ignore_errors=True)
            with serve_load.serving(options.model, str(home), [*flags, "--log_content", "none"]) as (port, _):
                rows.append(measured(name, port, options, trace, others))
        first = rows[0]
        for row in rows:
            equal, differing = equal_share(row, first) if row is not first else (1.0, [])
            row |= {"p95_ratio": row["p95_ms"] / first["p95_ms"], "qps_ratio": row["qps"] / first["qps"],
                    "equal": equal, "differing": differing[:3]}  # fmt: skip
        seconds = visible_seconds(home, 50)
    show(rows, console)
    added = {"p50_ms": 1000 * seconds[len(seconds) // 2], "p95_ms": 1000 * seconds[int(0.95 * len(seconds))]}
    console.print(f"an added entry is in a prompt after {added['p50_ms']:.1f} ms (p95 {added['p95_ms']:.1f} ms)")
    told = [{name: value for name, value in row.items() if name not in ("texts", "is_checked")} for row in rows]
    print(json.dumps({"model": options.model, "contestants": told, "added_visible": added}))


if __name__ == "__main__":
    main()

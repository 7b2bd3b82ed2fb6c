"""The server under many clients: what the API adds to the engine, and whether anything is left behind.

    python bench/serve_load.py [--requests 10000] [--streams 500] [--rate 50] [--seconds 60] [--model nano] [--json]

Sections: overhead (the same requests at a steady rate to the engine alone, stepped in this process, and to the server:
the difference of their times at p50 and p99; beside it the whole request's time less the engine's own, which the answer
tells and which leaves out the wait for the step under way) and streams (many at once, a fifth hangs up midway; then KV
blocks, memory and errors are counted).
Promises: the server is a process of its own, asked over real sockets by plain HTTP/1.1 in asyncio, which costs the
clients little. Prints tables for people and, last, one line of JSON. Client and server share the machine's cores.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

PROMPTS = ["你是谁？", "Who are you?", "What is 27 + 35?", "小明今天买了三本书。", "Tell me about the city of Luoyang."]


@contextlib.contextmanager
def serving(model: str, home: str, flags: list[str]) -> Iterator[tuple[int, subprocess.Popen]]:
    """A server on a free port, until the block ends; (port, process)."""
    command = [sys.executable, "-m", "evergreen", "serve", "--model", model, "--port", "0", "--home", home, *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said = []
        for line in process.stdout or ():
            said.append(line)
            if found := re.search(r"http://[\d.]+:(\d+)", line):
                break
        else:
            raise SystemExit("the server did not start: " + "".join(said))
        asyncio.run(_until_ready(int(found[1])))
        yield int(found[1]), process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


async def _until_ready(port: int) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError):
            if (await request(port, "GET", "/ready"))[0] == 200:
                return
        await asyncio.sleep(0.1)
    raise SystemExit("the server is not ready after a minute")


async def request(
    port: int, method: str, path: str, body: dict | None = None, stop_after: int = 0
) -> tuple[int, bytes]:
    """(status, body); with `stop_after` the connection is closed once so many bytes of the answer have come."""
    data = json.dumps(body).encode() if body is not None else b""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(
            f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode()
            + data
        )
        await writer.drain()
        received = b""
        while chunk := await reader.read(65536):
            received += chunk
            if stop_after and len(received) > stop_after:
                return 0, received
        head, _, rest = received.partition(b"\r\n\r\n")
        return int(head.split()[1]) if head else -1, rest
    finally:
        writer.close()


def chat(model: str, place: int, max_tokens: int, stream: bool) -> dict[str, Any]:
    return {
        "model": model, "messages": [{"role": "user", "content": PROMPTS[place % len(PROMPTS)]}],
        "max_tokens": max_tokens, "stream": stream, "temperature": 0.8, "seed": place,
    }  # fmt: skip


def bare(options: argparse.Namespace) -> list[float]:
    """Seconds of the same requests from when they are due, by an engine that is stepped in this process."""
    from evergreen.engine.engine import Engine
    from evergreen.model.load import load_model
    from evergreen.serve import protocol
    from evergreen.serve.schemas import ChatRequest, read

    loaded = load_model(options.model)
    engine = Engine(loaded)
    waiting: list[Any] = []
    for place in range(int(options.rate * options.seconds)):
        body = json.dumps(chat(options.model, place, 8, False)).encode()
        call = protocol.chat_call(read(ChatRequest, body))
        prompts = protocol.prompt_ids(call, loaded.tokenizer, loaded.system)
        waiting += protocol.engine_requests(call, prompts, str(place), engine.max_context_tokens)
    engine.generate([one.prompt for one in waiting[:20]], [one.sampling for one in waiting[:20]])
    due, seconds = {one.id: place / options.rate for place, one in enumerate(waiting)}, []
    start = time.perf_counter()
    while len(seconds) < len(due):
        now = time.perf_counter() - start
        while waiting and due[waiting[0].id] <= now:
            engine.add(waiting.pop(0))
        if not engine.has_work():
            time.sleep(max(0.0, due[waiting[0].id] - now))
        for output in engine.step():
            if output.is_last:
                seconds.append(time.perf_counter() - start - due[output.id])
    return sorted(seconds)


async def overhead(port: int, options: argparse.Namespace) -> list[tuple[float, float]]:
    """Seconds of each whole request, at a steady rate, by the client's clock, and those of its engine."""
    seconds: list[tuple[float, float]] = []

    async def one(place: int) -> None:
        start = time.perf_counter()
        status, body = await request(port, "POST", "/v1/chat/completions", chat(options.model, place, 8, False))
        taken = time.perf_counter() - start
        engine = json.loads(body).get("evergreen", {}).get("engine_seconds")
        if status != 200 or engine is None:
            raise SystemExit(f"status {status}: {body[:300]!r}")
        seconds.append((taken, engine))

    tasks = []
    start = time.perf_counter()
    for place in range(int(options.rate * options.seconds)):
        await asyncio.sleep(max(0.0, start + place / options.rate - time.perf_counter()))
        tasks.append(asyncio.create_task(one(place)))
    await asyncio.gather(*tasks)
    return seconds


def quantiles(seconds: list[float]) -> tuple[float, float]:
    """p50 and p99 in milliseconds."""
    return 1000 * statistics.median(seconds), 1000 * sorted(seconds)[int(0.99 * len(seconds))]


async def streams(port: int, options: argparse.Namespace) -> dict[str, int]:
    """All requests, `streams` at a time; a fifth hangs up at a random moment. How each ended."""
    rng, ends = random.Random(0), {"whole": 0, "hung up": 0, "failed": 0}
    gate = asyncio.Semaphore(options.streams)

    async def one(place: int) -> None:
        stop_after = rng.randrange(200, 3000) if rng.random() < 0.2 else 0
        async with gate:
            try:
                body = chat(options.model, place, 32, True)
                status, answer = await request(port, "POST", "/v1/chat/completions", body, stop_after)
            except OSError:
                status, answer = -1, b""
        if status == 0:
            ends["hung up"] += 1
        elif status == 200 and b"data: [DONE]" in answer and b'"error"' not in answer:
            ends["whole"] += 1
        else:
            ends["failed"] += 1
            ends.setdefault(f"first failure: {status} {answer[:160]!r}", 1) if ends["failed"] == 1 else None

    await asyncio.gather(*(one(place) for place in range(options.requests)))
    return ends


async def gauges(port: int) -> dict[str, float]:
    """The server's metrics that tell of KV blocks and requests under way."""
    _, text = await request(port, "GET", "/metrics")
    found = re.findall(rb"^(evergreen_\w+)(?:\{[^}]*\})? ([\d.e+-]+)$", text, re.MULTILINE)
    return {name.decode(): float(value) for name, value in found}


def memory_bytes(process: subprocess.Popen) -> int:
    """Resident bytes of the server and its engine."""
    root = psutil.Process(process.pid)
    return sum(one.memory_info().rss for one in (root, *root.children(recursive=True)))


def cpu_seconds(process: subprocess.Popen) -> float:
    """Of the server's own process, without its engine's."""
    return sum(psutil.Process(process.pid).cpu_times()[:2])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    alone = bare(options)
    with (
        tempfile.TemporaryDirectory() as home,
        serving(
            options.model, home, ["--max_waiting", str(options.streams + 100), "--log_content", "none", *options.flags]
        ) as (port, process),
    ):
        asyncio.run(overhead(port, argparse.Namespace(**vars(options) | {"seconds": 2})))
        cpu = -cpu_seconds(process)
        both = asyncio.run(overhead(port, options))
        cpu += cpu_seconds(process)
        if not options.requests:
            return {"overhead": compared(options, alone, both, cpu)}
        few = argparse.Namespace(**vars(options) | {"requests": 2 * options.streams})
        asyncio.run(streams(port, few))  # what is allocated once is there after this
        time.sleep(2)
        before, memory_before = asyncio.run(gauges(port)), memory_bytes(process)
        start = time.perf_counter()
        ends = asyncio.run(streams(port, options))
        taken = time.perf_counter() - start
        time.sleep(2)
        after, memory_after = asyncio.run(gauges(port)), memory_bytes(process)
    changed = {name: [before.get(name), value] for name, value in after.items()
               if re.search("running|waiting|free_blocks", name)}  # fmt: skip
    return {
        "overhead": compared(options, alone, both, cpu),
        "streams": {"at_once": options.streams, "requests": options.requests, "seconds": taken, **ends,
                    "before_and_after": changed, "memory_mib": [memory_before >> 20, memory_after >> 20]},
    }  # fmt: skip


def compared(
    options: argparse.Namespace, alone: list[float], both: list[tuple[float, float]], cpu: float
) -> dict[str, Any]:
    bare_ms, served_ms = quantiles(alone), quantiles([taken for taken, _ in both])
    rest_ms = quantiles([taken - engine for taken, engine in both])
    return {
        "rate": options.rate, "requests": len(both), "bare_p50_p99_ms": bare_ms, "served_p50_p99_ms": served_ms,
        "added_p50_p99_ms": [served_ms[0] - bare_ms[0], served_ms[1] - bare_ms[1]], "goal_added_p99_ms": 5,
        "outside_engine_p50_p99_ms": rest_ms, "server_cpu_ms_per_request": 1000 * cpu / len(both),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--requests", type=int, default=10_000, help="of the section streams; 0 leaves it out")
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--rate", type=float, default=50)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="further flags of evergreen serve")
    parser.add_argument("--json", action="store_true", help="only the line of JSON")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    document = measure(options)
    console = Console(quiet=options.json)
    for section, figures in document.items():
        table = Table("figure", "value", title=section, title_justify="left")
        for name, value in figures.items():
            table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
        console.print(table)
    print(json.dumps(document))


if __name__ == "__main__":
    main()

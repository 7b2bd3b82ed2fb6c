"""Other servers as engines: what is asked and what comes back, busy and broken servers, processes started and lost."""

import itertools
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from fake_openai import Answer, serving
from transformers import AutoTokenizer

from evergreen.engine.base import Request
from evergreen.engine.dialects import LlamaCpp, Plain, Vllm
from evergreen.engine.launch import Launched, open_remote
from evergreen.engine.remote import RemoteEngine
from evergreen.engine.servers import LlamaServer, VllmServer
from evergreen.model.find import NANO
from evergreen.records import BadInput, Failure, Sampling
from evergreen.settings import ConformanceSettings

TOKENIZER = AutoTokenizer.from_pretrained(NANO)
USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 2}}
NUMBERS = itertools.count()


def request(prompt=(5, 6, 7), adapter: str = "", **sampling) -> Request:
    return Request(f"r{next(NUMBERS)}", tuple(prompt), Sampling(**sampling), adapter)


def events_of(text: str, *, with_ids: bool = True, size: int = 1, reason: str = "length") -> list[dict | str]:
    """The stream of a text, `size` tokens (or characters) an event."""
    units = TOKENIZER(text)["input_ids"] if with_ids else list(text)
    events: list[dict | str] = []
    for start in range(0, len(units), size):
        part = units[start : start + size]
        said = {"text": "?", "token_ids": part} if with_ids else {"text": "".join(part)}
        events.append({"choices": [{"index": 0, **said, "finish_reason": None}]})
    events.append({"choices": [{"index": 0, "text": "", "finish_reason": reason}]})
    return [*events, {"choices": [], "usage": USAGE}, "data: [DONE]\n\n"]


class Heard:
    """Collects a request's outputs."""

    def __init__(self, engine, request: Request):
        self.outputs, self.ended = [], threading.Event()
        self.first = threading.Event()
        engine.submit(request, self)

    def __call__(self, output) -> None:
        self.outputs.append(output)
        self.first.set()
        if output.is_last:
            self.ended.set()

    def last(self):
        assert self.ended.wait(20)
        assert sum(output.is_last for output in self.outputs) == 1
        return self.outputs[-1]

    @property
    def text(self) -> str:
        return "".join(piece for output in self.outputs for piece in output.pieces)


def engine_of(url: str, dialect=None, **how) -> RemoteEngine:
    return RemoteEngine(url, TOKENIZER, dialect or Vllm(), **how)


@pytest.fixture
def closing():
    opened = []
    yield lambda engine: opened.append(engine) or engine
    for engine in opened:
        engine.close()


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("with_ids", [True, False])
def test_an_answer_comes_in_pieces_and_whole(closing, with_ids, size):
    text = "寐卢 is 4 元 🙂 a"
    with serving(lambda *_: Answer(events_of(text, with_ids=with_ids, size=size))) as fake:
        engine = closing(engine_of(fake.url, Vllm() if with_ids else Plain()))
        heard = Heard(engine, request())
        completion = heard.last().completion
        assert heard.text == completion.text == text
        assert completion.token_ids == (tuple(TOKENIZER(text)["input_ids"]) if with_ids else ())
        assert (completion.finish_reason, completion.prompt_tokens, completion.num_cached_tokens) == ("length", 3, 2)
        assert engine.stats().num_cached_tokens == 2


def test_a_thought_is_told_apart():
    with serving(lambda *_: Answer(events_of("<think>hm</think>yes", with_ids=False))) as fake:
        engine = engine_of(fake.url, Plain())
        completion = Heard(engine, request()).last().completion
        assert (completion.thought, completion.text) == ("hm", "yes")
        engine.close()


def test_a_stop_string_ends_the_answer_and_the_servers_work(closing):
    def endless(*_):
        yield from events_of("one two STOP")[:-3]
        while True:
            yield {"choices": [{"index": 0, "text": "x", "token_ids": [70], "finish_reason": None}]}
            time.sleep(0.01)

    with serving(lambda *_: Answer(endless())) as fake:
        heard = Heard(closing(engine_of(fake.url)), request(stop=("STOP",), max_new_tokens=100))
        completion = heard.last().completion
        assert (completion.text, completion.finish_reason, completion.stop_reason) == ("one two ", "stop", "STOP")
        assert "stop" not in fake.bodies[0][1]
        assert fake.broken.wait(10)


def test_every_field_of_a_sampling_is_said():
    sampling = Sampling(
        temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, repetition_penalty=1.1, presence_penalty=0.2,
        frequency_penalty=0.3, logit_bias=((5, -1.0),), max_new_tokens=9, min_new_tokens=2, stop_token_ids=(3,),
        ignore_eos=True, seed=4, logprobs=2, grammar='schema:{"type": "object"}',
    )  # fmt: skip
    asked = Request("r", (5, 6), sampling, tenant="t", priority=3)
    body = Vllm().body(asked, "base", [5, 6])
    assert body == {
        "model": "base", "prompt": [5, 6], "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 9,
        "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "repetition_penalty": 1.1, "presence_penalty": 0.2,
        "frequency_penalty": 0.3, "logit_bias": {"5": -1.0}, "min_tokens": 2, "stop_token_ids": [3],
        "ignore_eos": True, "seed": 4, "logprobs": 2, "return_token_ids": True, "return_tokens_as_token_ids": True,
        "skip_special_tokens": False, "structured_outputs": {"json": {"type": "object"}}, "cache_salt": "t",
        "priority": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("dialect", "field", "value"),
    [
        (Plain(), "top_k", 5), (Plain(), "grammar", "json"), (Plain(), "ignore_eos", True),
        (LlamaCpp(), "stop_token_ids", (3,)), (LlamaCpp(), "grammar", "regex:a+"),
        (LlamaCpp(), "grammar", "calls:{}"), (Vllm(), "grammar", 'form-or-calls:{"form": {}, "call": {}}'),
    ],
)  # fmt: skip
def test_what_a_server_cannot_be_told_is_refused(dialect, field, value):
    with pytest.raises(BadInput, match="use --engine embedded"):
        dialect.body(request(**{field: value}), "base", [1])


def test_llama_cpp_gets_the_list_of_all_adapters_with_every_request():
    dialect = LlamaCpp(["a" * 64, "b" * 64])
    assert dialect.body(request(), "", [1])["lora"] == [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 0.0}]
    told = dialect.body(request(adapter="b" * 64), "", [1])["lora"]
    assert told == [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 1.0}]


def test_logprobs_come_with_spellings():
    token = TOKENIZER("元")["input_ids"][0]
    told = {"tokens": [f"token_id:{token}"], "token_logprobs": [-0.5], "top_logprobs": [{f"token_id:{token}": -0.5}]}
    events = [
        {"choices": [{"index": 0, "text": "元", "token_ids": [token], "logprobs": told, "finish_reason": "stop"}]}
    ]
    with serving(lambda *_: Answer(events)) as fake:
        engine = engine_of(fake.url)
        heard = Heard(engine, request(logprobs=1))
        heard.last()
        [one] = heard.outputs[0].logprobs
        assert (one.chosen.text, one.chosen.bytes, one.chosen.logprob) == ("元", "元".encode(), -0.5)
        assert one.top == (one.chosen,)
        engine.close()


def test_a_busy_server_is_asked_again(closing):
    answers = iter([Answer(body={}, status=503), Answer(body={}, status=429, headers={"Retry-After": "0"})])
    with serving(lambda *_: next(answers, Answer(events_of("yes")))) as fake:
        assert Heard(closing(engine_of(fake.url)), request()).last().completion.text == "yes"
        assert len(fake.bodies) == 3


def test_a_server_that_stays_busy_is_an_error_in_the_end(closing):
    with serving(lambda *_: Answer(body={"error": {"message": "queue is full"}}, status=503)) as fake:
        last = Heard(closing(engine_of(fake.url, patience_seconds=0.3)), request()).last()
        assert "503: queue is full" in last.error
        assert not last.is_refused


def test_what_the_server_refuses_is_said_and_not_tried_again(closing):
    with serving(lambda *_: Answer(body={"error": {"message": "no such\nmodel"}}, status=404)) as fake:
        last = Heard(closing(engine_of(fake.url)), request()).last()
        assert last.is_refused
        assert last.error.endswith("404: no such model")
        assert len(fake.bodies) == 1


@pytest.mark.parametrize(
    ("events", "says"),
    [
        (events_of("half")[:2], "without a word"),
        (["data: {broken\n\n"], "cannot be read"),
        (["data: [1, 2]\n\n"], "cannot be read"),
        ([{"error": {"message": "out of memory"}}], "gave up: out of memory"),
    ],
)
def test_a_broken_answer_is_one_line_and_others_go_on(closing, events, says):
    answers = iter([Answer(events)])
    with serving(lambda *_: next(answers, Answer(events_of("fine")))) as fake:
        engine = closing(engine_of(fake.url))
        last = Heard(engine, request()).last()
        assert says in last.error
        assert "\n" not in last.error
        assert Heard(engine, request()).last().completion.text == "fine"


def test_a_cancelled_request_leaves_the_server_whether_queued_or_not(closing):
    queued = queue.Queue()

    def slow(path, body):
        if body["prompt"] == [1]:
            queued.put(1)
            time.sleep(0.5)  # no header yet
        return Answer(
            {"choices": [{"index": 0, "text": "a", "token_ids": [70], "finish_reason": None}]}
            for _ in itertools.repeat(time.sleep(0.01), 2000)
        )

    with serving(slow) as fake:
        engine = closing(engine_of(fake.url))
        waiting = Heard(engine, asked := request((1,), max_new_tokens=200))
        queued.get(timeout=10)
        engine.cancel(asked.id)
        assert waiting.last().completion.finish_reason == "cancelled"
        running = Heard(engine, asked := request((2,), max_new_tokens=200))
        assert running.first.wait(10)
        engine.cancel(asked.id)
        assert running.last().completion.finish_reason == "cancelled"
        assert fake.broken.wait(10)
        at_once = Heard(engine, asked := request((2,)))
        engine.cancel(asked.id)
        assert at_once.last().completion.finish_reason == "cancelled"
        engine.cancel("nobody")
        assert engine.stats().num_running == 0


def test_many_requests_at_a_time_get_their_own_answers(closing):
    with serving(lambda path, body: Answer(events_of(f"number {body['prompt'][0]}"))) as fake:
        engine = closing(engine_of(fake.url))
        heard = [Heard(engine, request((place,))) for place in range(60)]
        for place, one in enumerate(heard):
            assert one.last().completion.text == f"number {place}"


def test_adapters_go_by_their_digests(closing, tmp_path):
    digest = "0123456789abcdef" * 4
    with serving(lambda path, body: Answer(body={}) if "lora" in path else Answer(events_of("a"))) as fake:
        engine = closing(engine_of(fake.url))
        with pytest.raises(BadInput, match="no adapter 0123456789ab is loaded"):
            engine.submit(request(adapter=digest), print)
        engine.load_adapter(digest, [tmp_path])
        engine.load_adapter(digest, [tmp_path])
        Heard(engine, request(adapter=digest)).last()
        assert engine.stats().adapters == (digest,)
        engine.unload_adapter(digest)
        with pytest.raises(BadInput, match="is loaded"):
            engine.unload_adapter(digest)
        name = {"lora_name": "0123456789ab"}
        calls = [("/v1/load_lora_adapter", name | {"lora_path": str(tmp_path)}), ("/v1/unload_lora_adapter", name)]
        assert [one for one in fake.bodies if "lora" in one[0]] == calls
        assert [body["model"] for path, body in fake.bodies if "completions" in path] == ["0123456789ab"]


def test_chains_and_servers_that_load_nothing_are_refused_by_name(closing, tmp_path):
    with serving(lambda *_: Answer(body={})) as fake:
        with pytest.raises(BadInput, match="chain"):
            closing(engine_of(fake.url)).load_adapter("d", [tmp_path, tmp_path])
        with pytest.raises(BadInput, match="loads no adapters"):
            closing(engine_of(fake.url, Plain())).load_adapter("d", [tmp_path])


def test_a_prompt_that_does_not_fit_is_refused_and_a_long_answer_cut(closing):
    with serving(lambda *_: Answer(events_of("a"))) as fake:
        engine = closing(engine_of(fake.url))
        assert engine.max_context_tokens == 256
        with pytest.raises(BadInput, match="the prompt has 256 tokens; the context holds 256"):
            engine.submit(request([1] * 256), print)
        Heard(engine, request([1] * 250, max_new_tokens=100)).last()
        assert fake.bodies[-1][1]["max_tokens"] == 6


def test_no_server_is_one_line():
    with pytest.raises(Failure, match="does not answer"):
        engine_of("http://127.0.0.1:9")


# --- processes


class FakeLlama(LlamaServer):
    """The flags of llama-server, to a program that is none; its files are empty."""

    def _model_file(self) -> Path:
        return self.model

    def adapter_file(self, digest: str, chain) -> Path:
        return Path(f"{digest}.gguf")


@pytest.fixture
def launched(tmp_path, monkeypatch):
    monkeypatch.setattr("evergreen.engine.servers._context_of", lambda model: 64)
    program = (sys.executable, str(Path(__file__).with_name("fake_llama_server.py")))
    engine = Launched(FakeLlama(program, tmp_path, tmp_path, "f16", is_binary=True), tmp_path / "logs", TOKENIZER)
    yield engine
    engine.close()


def answer_of(engine, prompt=(1,), adapter: str = "") -> str:
    last = Heard(engine, request(prompt, adapter)).last()
    return last.error or last.completion.text


def test_another_adapter_is_another_process_that_takes_over(launched):
    first = launched.pid
    slow = Heard(launched, request((1, 1)))
    launched.load_adapter("a", [Path("x")])
    launched.load_adapter("b", [Path("y")])
    assert launched.pid != first
    assert slow.last().completion.text == "0"
    assert [answer_of(launched, adapter=name) for name in ("", "a", "b", "")] == ["0", "1", "2", "0"]
    launched.unload_adapter("a")
    with pytest.raises(BadInput):
        launched.submit(request(adapter="a"), print)
    assert answer_of(launched, adapter="b") == "2"
    assert ends(first)


def test_a_server_that_dies_is_started_again_with_its_adapters(launched, capsys):
    launched.load_adapter("a", [Path("x")])
    first = launched.pid
    assert "broke off" in answer_of(launched, (9,))
    assert ends(first)  # a request in between would meet the dying one
    assert answer_of(launched, adapter="a") == "1"
    second = launched.pid
    slow = Heard(launched, request((1, 1)))
    time.sleep(0.2)
    os.kill(child_of(second), signal.SIGKILL)
    assert "broke off" in slow.last().error
    assert ends(second)
    assert answer_of(launched, adapter="a") == "1"
    assert "is started again" in capsys.readouterr().err


def test_a_request_waits_for_a_server_that_comes_back_no_longer_than_it_is_told(launched):
    launched.patience_seconds = 0.0
    with launched._changing:  # it does not come back meanwhile
        os.kill(child_of(launched.pid), signal.SIGKILL)
        launched._server.process.wait(20)  # two threads that poll at a time: one of them is told that it still runs
        with pytest.raises(Failure, match="is being started again"):
            launched.submit(request(), print)


def test_close_ends_the_process(launched):
    pids = [launched.pid, child_of(launched.pid)]
    launched.close()
    assert all(ends(pid) for pid in pids)
    launched.close()


def test_the_server_ends_with_the_process_that_started_it(tmp_path):
    program = Path(__file__).with_name("fake_llama_server.py")
    words = [sys.executable, str(program), "--port", "0"]
    keeper = Path(sys.modules["evergreen.engine.launch"].__file__).with_name("keeper.py")
    code = (
        "import subprocess, sys, time\n"
        f"one = subprocess.Popen([sys.executable, {str(keeper)!r}, *{words!r}], stdin=subprocess.PIPE, "
        "start_new_session=True)\n"
        "print(one.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    keeper_pid = int(parent.stdout.readline())
    server = child_of(keeper_pid)
    parent.kill()
    parent.wait()
    assert ends(server) and ends(keeper_pid)


def test_a_server_that_does_not_start_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr("evergreen.engine.servers._context_of", lambda model: 64)
    monkeypatch.setenv("FAKE_LLAMA", "--fail")
    program = (sys.executable, str(Path(__file__).with_name("fake_llama_server.py")))
    kind = FakeLlama(program, tmp_path, tmp_path, "f16", is_binary=True)
    with pytest.raises(Failure, match="ended with 1 at its start: error: no such model"):
        Launched(kind, tmp_path / "logs", TOKENIZER)


def test_vllm_listens_to_this_machine_alone_and_keeps_a_slot_free():
    words, environment = VllmServer(Path("python"), Path("m"), 2, 3).command({}, 1234, "key")
    flags = dict(zip(words, words[1:], strict=False))
    assert flags["--host"] == "127.0.0.1"
    assert flags["--max-loras"] == "4"
    assert flags["--tensor-parallel-size"] == "2"
    assert flags["--generation-config"] == "vllm"
    assert environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert environment["VLLM_API_KEY"] == "key"


def test_vllm_gets_a_stated_cache_and_on_a_cpu_never_most_of_the_memory(monkeypatch):
    def stated(**how) -> int:
        words, _ = VllmServer(Path("python"), Path("m"), 1, 3, **how).command({}, 1234, "key")
        return int(words[words.index("--kv-cache-memory-bytes") + 1])

    assert stated(kv_cache_bytes=5_000_000) == 5_000_000
    monkeypatch.setattr(Path, "exists", lambda self: False)  # no GPU
    assert 0 < stated() < psutil.virtual_memory().total / 4


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"engine": "vllm"}, "needs --engine_python"),
        ({"engine": "llamacpp", "engine_python": "/no/such/python"}, "no such program"),
        ({"engine": "embedded"}, "runs in this process"),
    ],
)
def test_what_an_engine_lacks_is_one_line(given, says, tmp_path):
    with pytest.raises(BadInput, match=says):
        open_remote(ConformanceSettings(model=str(NANO), home=str(tmp_path), **given))


def child_of(pid: int) -> int:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        if children := psutil.Process(pid).children():
            return children[0].pid
        time.sleep(0.02)
    raise AssertionError(f"{pid} has no child")


def ends(pid: int) -> bool:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False

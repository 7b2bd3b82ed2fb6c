"""The engine's process: what goes in and out, its death, its successor."""

import os
import queue
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import psutil
import pytest
from fake_engine import CONTEXT_TOKENS, CRASH, POISON, FakeEngine
from waiting import wait_until

from evergreen.engine.base import Output, Request
from evergreen.engine.process import ProcessEngine
from evergreen.records import BadInput, Failure, Sampling

TESTS = Path(__file__).resolve().parent


@pytest.fixture
def start(tmp_path):
    """Engines that are closed when the test ends."""
    engines = []

    def one(factory=FakeEngine, **more) -> ProcessEngine:
        engines.append(ProcessEngine(factory, tmp_path / "logs" / "engine.log", **more))
        return engines[-1]

    yield one
    for engine in engines:
        engine.close()


def request(id: str, prompt=(1, 2, 3), num_tokens: int = 100, adapter: str = "") -> Request:
    return Request(id, tuple(prompt), Sampling(max_new_tokens=num_tokens), adapter)


def ask(engine: ProcessEngine, one: Request) -> "queue.Queue[Output]":
    answers: queue.Queue[Output] = queue.Queue()
    engine.submit(one, answers.put)
    return answers


def last(answers: "queue.Queue[Output]") -> Output:
    while not (output := answers.get(timeout=30)).is_last:
        pass
    return output


def make_adapter(folder: Path) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    return folder


def is_up(engine: ProcessEngine) -> bool:
    try:
        engine.stats()
    except Failure:
        return False
    return True


def test_many_requests_at_once_each_get_their_own_pieces_in_order(start):
    engine = start()
    answers = [ask(engine, request(str(i), range(100 + i, 110 + i))) for i in range(50)]
    for i, each in enumerate(answers):
        pieces = []
        while not (output := each.get(timeout=30)).is_last:
            pieces += output.pieces
        assert output.completion.text == "".join([*pieces, *output.pieces])
        assert output.completion.text.split() == [str(token) for token in range(100 + i, 110 + i)]


def test_a_prompt_that_does_not_fit_is_refused_at_once_with_both_numbers(start):
    engine = start()
    with pytest.raises(BadInput, match=f"{CONTEXT_TOKENS + 1} tokens; the context holds {CONTEXT_TOKENS}"):
        engine.submit(request("a", range(CONTEXT_TOKENS + 1)), print)
    with pytest.raises(BadInput, match="no adapter"):
        engine.submit(request("a", adapter="unknown"), print)


def test_what_the_engine_itself_refuses_comes_back_as_a_refusal(start):
    output = last(ask(start(), request("a", [POISON])))
    assert output.is_refused and output.error == "this prompt is poison"


def test_a_cancelled_request_ends_and_the_others_go_on(start):
    engine = start(partial(FakeEngine, 0.01))
    cancelled, other = ask(engine, request("a", range(1, 1000), 1000)), ask(engine, request("b", range(1, 50)))
    cancelled.get(timeout=30)
    engine.cancel("a")
    engine.cancel("never heard of")
    assert last(cancelled).completion.finish_reason == "cancelled"
    assert last(other).completion.completion_tokens == 49
    wait_until(lambda: engine.stats().num_running == 0)


def test_an_engine_that_cannot_be_made_says_why_in_its_own_kind_of_error(start):
    with pytest.raises(BadInput, match="no such model"):
        start(partial(broken, BadInput("no such model")))
    with pytest.raises(Failure, match="out of memory"):
        start(partial(broken, Failure("out of memory")))
    with pytest.raises(Failure, match="ZeroDivisionError"):
        start(partial(broken, ZeroDivisionError("x")))


def broken(error):
    raise error


def test_a_process_that_dies_while_it_starts_is_a_failure_that_names_the_log(start):
    with pytest.raises(Failure, match="exit code 3.*engine.log"):
        start(partial(os._exit, 3))


def test_killed_under_load_every_request_gets_one_error_and_the_next_engine_answers(start, tmp_path):
    said: list[str] = []
    engine = start(partial(FakeEngine, 0.01), say=said.append)
    folder = make_adapter(tmp_path / "a")
    engine.load_adapter("digest-a", [folder])
    answers = [ask(engine, request(str(i), range(1, 1000), 1000)) for i in range(20)]
    for each in answers:
        each.get(timeout=30)
    before = engine.pid
    os.kill(before, signal.SIGKILL)
    errors = [last(each) for each in answers]
    assert all("killed by SIGKILL" in output.error and not output.is_refused for output in errors)
    again = last(ask(engine, request("again", adapter="digest-a")))  # waits for the next one
    assert again.completion.text.startswith("<digest> 1")
    assert engine.pid != before and len(said) == 2 and "20 requests were running" in said[0]
    assert all(each.empty() for each in answers)


def test_a_step_that_raises_ends_the_process_not_the_server(start, tmp_path):
    engine = start(say=lambda text: None)
    assert "ended with exit code 1" in last(ask(engine, request("a", [CRASH]))).error
    assert last(ask(engine, request("b"))).completion.text == "1 2 3 "
    assert "this prompt is a crash" in (tmp_path / "logs" / "engine.log").read_text()


def test_a_request_during_the_restart_waits_no_longer_than_start_timeout(start):
    engine = start(start_timeout=0.05, say=lambda text: None)
    os.kill(engine.pid, signal.SIGKILL)
    wait_until(lambda: not is_up(engine))
    with pytest.raises(Failure, match="started again"):
        engine.submit(request("a"), print)
    wait_until(lambda: is_up(engine))


def test_an_adapter_that_is_gone_after_the_restart_is_left_out_and_said(start, tmp_path):
    said: list[str] = []
    engine = start(say=said.append)
    for name in "ab":
        engine.load_adapter(name, [make_adapter(tmp_path / name)])
    (tmp_path / "a" / "adapter_config.json").unlink()
    os.kill(engine.pid, signal.SIGKILL)
    wait_until(lambda: not is_up(engine))
    assert last(ask(engine, request("1", adapter="b"))).completion
    with pytest.raises(BadInput):
        engine.submit(request("2", adapter="a"), print)
    assert any("adapter a is not loaded again" in line for line in said)


def test_a_load_that_fails_is_bad_input_and_disturbs_nobody(start, tmp_path):
    engine = start(partial(FakeEngine, 0.01))
    running = ask(engine, request("a", range(1, 30)))
    with pytest.raises(BadInput, match="no adapter in"):
        engine.load_adapter("x", [tmp_path / "nothing"])
    assert last(running).completion.completion_tokens == 29


def test_unload_waits_for_the_requests_that_use_the_adapter(start, tmp_path):
    engine = start(partial(FakeEngine, 0.01))
    engine.load_adapter("a", [make_adapter(tmp_path / "a")])
    running = ask(engine, request("1", range(1, 40), adapter="a"))
    running.get(timeout=30)
    engine.unload_adapter("a")
    outputs = [running.get_nowait() for _ in range(running.qsize())]
    assert outputs[-1].completion.finish_reason == "stop"
    with pytest.raises(BadInput):
        engine.unload_adapter("a")
    wait_until(lambda: engine.stats().adapters == ())


def test_an_adapter_that_is_loaded_again_while_it_leaves_keeps_nobody_waiting(start, tmp_path):
    engine, folder = start(partial(FakeEngine, 0.01)), make_adapter(tmp_path / "a")
    engine.load_adapter("a", [folder])
    running = ask(engine, request("1", range(1, 4000), 4000, adapter="a"))
    running.get(timeout=30)
    with ThreadPoolExecutor(1) as pool:
        leaving = pool.submit(engine.unload_adapter, "a")
        wait_until(lambda: "a" not in engine._adapters and engine._replies)
        engine.load_adapter("a", [folder])
        leaving.result(timeout=30)
    assert last(ask(engine, request("2", adapter="a"))).completion.finish_reason == "stop"
    engine.cancel("1")


def test_closing_ends_the_process_and_what_runs_gets_an_error(start):
    engine = start(partial(FakeEngine, 0.01))
    running, process = ask(engine, request("a", range(1, 1000), 1000)), psutil.Process(engine.pid)
    running.get(timeout=30)
    engine.close()
    engine.close()
    assert last(running).error == "the engine is closed" and not process.is_running()
    with pytest.raises(Failure, match="closed"):
        engine.submit(request("b"), print)


def test_sigterm_and_ctrl_c_to_the_whole_group_leave_the_engine_to_the_server(start):
    engine = start(partial(FakeEngine, 0.01))
    running = ask(engine, request("a", range(1, 50)))
    running.get(timeout=30)
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(engine.pid, number)
    assert last(running).completion.finish_reason == "stop"


def test_the_engine_dies_with_its_parent(tmp_path):
    script = f"""
        import sys, time
        sys.path.insert(0, {str(TESTS)!r})
        from functools import partial
        from pathlib import Path
        from evergreen.engine.process import ProcessEngine
        from fake_engine import FakeEngine
        if __name__ == "__main__":
            engine = ProcessEngine(partial(FakeEngine, 0.01), Path({str(tmp_path / "engine.log")!r}))
            print(engine.pid, flush=True)
            time.sleep(600)
    """
    (tmp_path / "parent.py").write_text(textwrap.dedent(script))
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    parent = subprocess.Popen([sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, text=True,
                              env=environment)  # fmt: skip
    engine = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    engine.wait(30)


def test_the_engines_process_imports_no_web_framework(start):
    engine = start(partial(checked_engine, ("fastapi", "uvicorn", "starlette")))
    assert last(ask(engine, request("a"))).completion


def checked_engine(names):
    import fake_engine

    found = [name for name in names if name in sys.modules]
    if found:
        raise BadInput(f"imported: {found}")
    return fake_engine.FakeEngine()


def test_one_listener_that_raises_does_not_silence_the_others(start):
    engine = start()
    engine.submit(request("a"), lambda output: 1 / 0)
    assert last(ask(engine, request("b"))).completion

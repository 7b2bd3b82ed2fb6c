"""Talking to a model: one prompt, a pipe, a file (in this process where that will do), a chat in a real terminal."""

import io
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evergreen.chat import answers
from evergreen.chat.terminal import Chat, is_command, run_infer
from evergreen.cli import main
from evergreen.engine.answer import Piece
from evergreen.home import read_jsonl
from evergreen.model.load import NANO
from evergreen.options import build
from evergreen.records import BadInput, Completion
from evergreen.settings import InferSettings

PROMPT = "\x1b[?2004h"  # what the line editor says when it is ready for a line, or a paste
PASTE = "\x1b[200~%s\x1b[201~"


class Words:
    """A tokenizer with one token a word, and a template that is the turns one after the other."""

    chat_template = "yes"

    def apply_chat_template(self, messages: list[dict], **_) -> str:
        return " ".join(f"{turn['role']}: {turn['content']}" for turn in messages)

    def encode(self, text: str, **_) -> list[str]:
        return text.split()


class EchoStream(list):
    def __init__(self, thought: str, text: str, num_prompt_tokens: int, reason: str):
        super().__init__([Piece(thought, is_thought=True)] * bool(thought) + [Piece(text)] * bool(text))
        self.completion = Completion(text, thought, num_prompt_tokens, 1, reason, 0.1, 0.1)


class Echo:
    """An engine that answers with its prompt in capitals and remembers what it was asked."""

    tokenizer, max_context_tokens = Words(), 40

    def __init__(self, thought: str = "", text: str | None = None):
        self.asked, self.thought, self.text = [], thought, text

    def stream(self, prompt: list[str], sampling, cancelled) -> EchoStream:
        if len(prompt) > self.max_context_tokens:
            raise BadInput(f"the prompt has {len(prompt)} tokens")
        self.asked.append(" ".join(prompt))
        text = prompt[-1].upper() if self.text is None else self.text
        return EchoStream(self.thought, text, len(prompt), "cancelled" if cancelled() else "stop")


def settings(**given) -> InferSettings:
    return build(InferSettings, {"model": "nano", "max_new_tokens": 8, "torch_dtype": "float32", **given})


def never() -> bool:
    return False


def chat_over(engine: Echo, lines: list[str], monkeypatch, **given) -> dict:
    """A chat whose person types `lines` and then leaves."""

    def read_line() -> str:
        if not lines:
            raise EOFError
        line = lines.pop(0)
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("evergreen.chat.terminal.line_reader", lambda home: read_line)
    return Chat(engine, None, settings(**given)).run("echo")


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


# --- a conversation -------------------------------------------------------------------------------------------------


def test_earlier_turns_stand_before_the_next_question(monkeypatch, capsys):
    engine = Echo()
    document = chat_over(engine, ["one", "two"], monkeypatch)
    assert engine.asked == ["user: one", "user: one assistant: ONE user: two"]
    assert document["turns"] == 2 and document["text"] == "TWO" and document["sources"] == []
    assert capsys.readouterr().out == "ONE\nTWO\n"


def test_a_system_prompt_can_be_set_and_the_conversation_cleared(monkeypatch, capsys):
    engine = Echo()
    chat_over(engine, ["one", "/clear", "/system 请简短", "two", "/system", "/help"], monkeypatch)
    assert engine.asked == ["user: one", "system: 请简短 user: two"]
    aside = capsys.readouterr().err
    assert "system prompt: 请简短" in aside and "/quit" in aside


def test_quit_and_exit_leave(monkeypatch):
    for word in ("/quit", "/exit", " /quit "):
        assert chat_over(engine := Echo(), [word, "more"], monkeypatch)["turns"] == 0 and not engine.asked


def test_an_unknown_command_is_told_and_a_path_is_a_message(monkeypatch, capsys):
    engine = Echo()
    chat_over(engine, ["/quti", "/etc/hosts ok"], monkeypatch)
    assert engine.asked == ["user: /etc/hosts ok"]
    assert "/quti is no command" in capsys.readouterr().err
    assert is_command("/system x") and is_command("/clear") and not is_command("/") and not is_command("a /clear")


def test_ctrl_c_at_an_empty_line_points_at_quit_and_a_typed_line_is_just_dropped(monkeypatch, capsys):
    chat_over(Echo(), [KeyboardInterrupt("half a line")], monkeypatch)
    assert "/quit" not in capsys.readouterr().err.replace("/quit leaves", "")
    chat_over(Echo(), [KeyboardInterrupt("")], monkeypatch)
    assert "(/quit or Ctrl-D leaves)" in capsys.readouterr().err


def test_a_full_context_drops_the_oldest_turns_and_says_so(monkeypatch, capsys):
    engine = Echo()
    chat_over(engine, [f"word{i} " * 11 for i in range(3)], monkeypatch)
    assert "word0" in engine.asked[1] and "word0" not in engine.asked[2] and "word1" in engine.asked[2]
    assert "oldest 1 exchange" in capsys.readouterr().err


def test_a_question_too_long_is_refused_and_the_chat_goes_on(monkeypatch, capsys):
    engine = Echo()
    document = chat_over(engine, ["word " * 60, "short"], monkeypatch)
    assert engine.asked == ["user: short"] and document["turns"] == 1
    assert "61 tokens" in capsys.readouterr().err


def test_a_stopped_answer_stays_in_the_conversation_unless_it_is_empty(capsys):
    chat = Chat(Echo(), None, settings())
    assert chat.answer("one", cancelled=lambda: True).finish_reason == "cancelled"
    assert [turn.content for turn in chat.messages] == ["one", "ONE"]
    chat = Chat(Echo(text=""), None, settings())
    chat.answer("one", never)
    assert chat.messages == []


@pytest.mark.parametrize("stream", [True, False])
def test_the_thought_never_reaches_stdout(stream, capsys):
    Chat(Echo(thought="7+5"), None, settings(stream=stream)).answer("x", never)
    shown = capsys.readouterr()
    assert shown.out == "X\n" and "7+5" in shown.err
    Chat(Echo(thought="7+5"), None, settings(stream=stream, thought="hide")).answer("x", never)
    hidden = capsys.readouterr()
    assert hidden.out == "X\n" and hidden.err == ""


def test_a_hidden_thought_shows_a_hint_on_a_terminal_and_takes_it_away_again(capsys):
    from rich.console import Console

    chat = Chat(Echo(thought="7+5"), None, settings(thought="hide"))
    chat.aside = Console(file=io.StringIO(), force_terminal=True, width=80)
    chat.answer("x", never)
    shown = chat.aside.file.getvalue()
    assert "thinking…" in shown and shown.endswith("\r\x1b[K") and "7+5" not in shown
    assert capsys.readouterr().out == "X\n"


# --- one prompt and a pipe ------------------------------------------------------------------------------------------


def infer(*flags: str, stdin: bytes = b"", **extra: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "evergreen.cli", "infer", *flags]
    return subprocess.run(command, input=stdin, capture_output=True, env={**os.environ, **extra}, timeout=120)


def test_a_prompt_is_answered_on_stdout_alone_and_json_comes_last():
    run = infer("--model", "nano", "--prompt", "你好", "--max_new_tokens", "4", "--json")
    *answer, document = run.stdout.decode().splitlines()
    document = json.loads(document)
    assert run.returncode == 0 and run.stderr == b""
    assert "\n".join(answer) == document["text"]
    assert {"thought", "prompt_tokens", "completion_tokens", "finish_reason", "sources"} <= set(document)


def test_a_pipe_is_one_prompt_with_all_its_lines(monkeypatch, capsys):
    asked = []
    model = type("M", (), {"system": None})
    monkeypatch.setattr("evergreen.chat.opening.load_engine", lambda _: (model, Echo(text="好")))
    monkeypatch.setattr(
        Chat, "answer", lambda self, text, cancelled: asked.append(text) or Completion("好", "", 1, 1, "stop", 0.1, 0.1)
    )
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("第一行\n\nline two\n".encode())))
    assert run_infer(settings())["text"] == "好"
    assert asked == ["第一行\n\nline two"]


@pytest.mark.parametrize(("piped", "said"), [(b"", "empty"), (b" \n", "empty"), (b"\xff\xfe", "UTF-8")])
def test_a_pipe_without_text_is_bad_input(piped, said, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(piped)))
    with pytest.raises(BadInput, match=said):
        run_infer(settings())


def test_bad_input_is_one_line_and_exit_code_2():
    run = infer("--model", "nano", stdin=b"")
    assert run.returncode == 2 and run.stdout == b"" and len(run.stderr.splitlines()) == 1


def test_an_answer_is_the_same_streamed_or_not_and_repeats_under_a_seed(capsys):
    def say(**given) -> str:
        return run_infer(settings(prompt="介绍一下你自己", **given))["text"]

    assert say(stream=True) == say(stream=False)
    assert say(temperature=5.0, seed=5) == say(temperature=5.0, seed=5, stream=False) != say(temperature=5.0, seed=6)


def test_a_model_type_that_contradicts_the_model_is_bad_input():
    with pytest.raises(BadInput, match="llama.*qwen2"):
        run_infer(settings(prompt="hi", model_type="llama"))
    assert run_infer(settings(prompt="hi", model_type="qwen", max_new_tokens=1))["completion_tokens"] == 1


# --- a whole file ---------------------------------------------------------------------------------------------------

ROWS = [
    {"id": "a", "instruction": "你是谁?", "input": "", "output": "我是常青。"},
    {"instruction": "Translate", "input": "你好", "output": ""},
    {
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello!"},
            {"role": "user", "content": "再见"},
        ]
    },
    {"prompt": "你是谁?"},
]


def test_every_record_of_a_file_is_answered_in_order(tmp_path):
    source = write_lines(tmp_path / "in.v1.jsonl", ROWS)
    document = run_infer(settings(infer_dataset=str(source), batch_size=3))
    rows = list(read_jsonl(tmp_path / "in.v1.answers.jsonl"))
    assert document["result_path"].endswith("in.v1.answers.jsonl") and (document["rows"], document["kept"]) == (4, 0)
    assert [row["id"] for row in rows] == ["a", 2, 3, 4]
    assert rows[0]["prompt"] == "你是谁?" and rows[0]["reference"] == "我是常青。"
    assert rows[1]["prompt"] == "Translate\n你好" and "reference" not in rows[1]
    assert [turn["role"] for turn in rows[2]["messages"]] == ["system", "user", "assistant", "user"]
    assert all(row["usage"]["completion_tokens"] and row["finish_reason"] in ("stop", "length") for row in rows)
    assert rows[3]["response"] == run_infer(settings(prompt="你是谁?"))["text"]


def test_an_interrupted_file_goes_on_where_it_stopped(tmp_path, monkeypatch):
    source, target = write_lines(tmp_path / "in.jsonl", ROWS), tmp_path / "out" / "o.jsonl"
    given = settings(infer_dataset=str(source), result_path=str(target))
    run_infer(given)
    whole = target.read_text(encoding="utf-8")
    lines = whole.splitlines(keepends=True)
    target.write_text(lines[2] + lines[0] + lines[1][:20], encoding="utf-8")  # out of order, and the last one torn
    document = run_infer(given)
    assert (document["generated"], document["kept"], document["rows"]) == (2, 2, 4)
    assert target.read_text(encoding="utf-8") == whole
    monkeypatch.setattr("evergreen.chat.opening.load_engine", lambda _: pytest.fail("nothing is left to generate"))
    assert run_infer(given)["generated"] == 0


def test_answers_of_other_settings_are_not_mixed_in(tmp_path):
    given = {"infer_dataset": str(write_lines(tmp_path / "in.jsonl", ROWS[:1]))}
    run_infer(settings(**given))
    with pytest.raises(BadInput, match="other settings"):
        run_infer(settings(**given, max_new_tokens=9))


def test_a_changed_question_is_answered_anew_and_the_old_answer_goes(tmp_path, capsys):
    source = write_lines(tmp_path / "in.jsonl", ROWS[:2])
    run_infer(settings(infer_dataset=str(source)))
    write_lines(source, [{**ROWS[0], "instruction": "你叫什么?"}, ROWS[1]])
    document = run_infer(settings(infer_dataset=str(source)))
    assert (document["generated"], document["kept"]) == (1, 1) and "belong to no question" in capsys.readouterr().err
    assert [row["prompt"][:3] for row in read_jsonl(document["result_path"])] == ["你叫什", "Tra"]


def test_a_record_beyond_the_context_is_named_by_file_and_line(tmp_path):
    source = write_lines(tmp_path / "in.jsonl", [ROWS[0], {"prompt": "长" * 3000}])
    with pytest.raises(BadInput, match=r"in\.jsonl:2: the prompt has \d+ tokens"):
        run_infer(settings(infer_dataset=str(source)))
    assert not (tmp_path / "in.answers.jsonl").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"result_path": "{in}"}, "the input itself"),
        ({"result_path": "{dir}"}, "a folder"),
        ({"prompt": "hi"}, "choose one"),
        ({"infer_dataset": "{dir}/none.jsonl"}, "no file"),
    ],
)
def test_file_mode_refuses_what_contradicts_itself(given, said, tmp_path):
    source = write_lines(tmp_path / "in.jsonl", ROWS[:1])
    given = {key: value.format(**{"in": source, "dir": tmp_path}) for key, value in given.items()}
    with pytest.raises(BadInput, match=said):
        run_infer(settings(**{"infer_dataset": str(source), **given}))


def test_a_result_file_with_something_else_in_it_is_left_alone(tmp_path):
    source, target = write_lines(tmp_path / "in.jsonl", ROWS[:1]), write_lines(tmp_path / "out.jsonl", [{"mine": 1}])
    with pytest.raises(BadInput, match="something else"):
        run_infer(settings(infer_dataset=str(source), result_path=str(target)))
    assert list(read_jsonl(target)) == [{"mine": 1}]


def test_tools_and_preference_pairs_and_plain_text_are_questions_too(tmp_path):
    call = {"from": "function_call", "value": '{"name": "f", "arguments": {}}'}
    row = {"conversations": [{"from": "human", "value": "q"}, call], "tools": "[]"}
    path = write_lines(tmp_path / "a.jsonl", [row])
    assert '"name": "f"' in next(answers.read_questions(path)).reference
    path = write_lines(tmp_path / "b.jsonl", [{"prompt": "q", "chosen": "yes", "rejected": "no"}])
    assert next(answers.read_questions(path)).reference == "yes"
    path = write_lines(tmp_path / "c.jsonl", [{"text": "从前"}])
    assert next(answers.read_questions(path)).asked() == {"prompt": "从前"}


def test_the_command_line_answers_a_file(tmp_path, capsys):
    source = write_lines(tmp_path / "in.jsonl", ROWS[:1])
    assert main(["infer", "--model", "nano", "--infer_dataset", str(source), "--max_tokens", "2", "--json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out)["rows"] == 1 and out.count("\n") == 1


# --- a real terminal ------------------------------------------------------------------------------------------------


class Terminal:
    """A command with a pseudo-terminal of its own: Ctrl-C typed here reaches it as if from a keyboard."""

    def __init__(self, command: list[str], env: dict[str, str]):
        self.text, self.place = "", 0
        self.pid, self.file = pty.fork()
        if self.pid == 0:
            os.execve(command[0], command, env)

    def type(self, keys: str) -> None:
        os.write(self.file, keys.encode())

    def wait_for(self, words: str, seconds: float = 60) -> str:
        """What is shown from the last wait up to and with `words`."""
        end = time.monotonic() + seconds
        while words not in self.text[self.place :]:
            assert time.monotonic() < end, f"no {words!r} in {self.text[self.place :]!r}"
            self._read(0.2)
        start, self.place = self.place, self.text.index(words, self.place) + len(words)
        return self.text[start : self.place]

    def wait_for_end(self, seconds: float = 30) -> int:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._read(0.1)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
        os.kill(self.pid, signal.SIGKILL)
        raise AssertionError(f"still running: {self.text[self.place :]!r}")

    def _read(self, seconds: float) -> None:
        if select.select([self.file], [], [], seconds)[0]:
            try:
                self.text += os.read(self.file, 65536).decode(errors="replace")
            except OSError:  # the other side is closed
                time.sleep(0.05)


@pytest.fixture(scope="module")
def endless_model(tmp_path_factory) -> Path:
    """A random model that never ends its turn, so that only Ctrl-C can stop it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("endless")
    shutil.copytree(NANO, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors", "*.md"))
    config = AutoConfig.from_pretrained(
        NANO, max_position_embeddings=1 << 20, num_hidden_layers=1, layer_types=["full_attention"]
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.get_input_embeddings().weight.data[model.config.eos_token_id] = 0
    model.save_pretrained(folder)
    return folder


def test_a_chat_in_a_terminal(endless_model, tmp_path):
    """One session, since loading takes seconds: paste, Ctrl-C in an answer and at the prompt, history, commands."""
    env = {**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "COLUMNS": "200"}
    flags = ["--model", str(endless_model), "--max_new_tokens", "1000000", "--home", str(tmp_path)]
    terminal = Terminal([sys.executable, "-m", "evergreen.cli", "infer", *flags], env)
    terminal.wait_for("/quit leaves")
    terminal.wait_for(PROMPT)
    terminal.type(PASTE % "第一行\nsecond line")
    time.sleep(0.3)
    terminal.type("\r")
    terminal.wait_for("second line")
    time.sleep(1.0)
    terminal.type("\x03")
    assert len(terminal.wait_for("(stopped)")) > 30  # some of the answer was shown
    terminal.wait_for(PROMPT)
    terminal.type("\x03")
    terminal.wait_for("(/quit or Ctrl-D leaves)")
    terminal.wait_for(PROMPT)
    terminal.type("/system 你是诗人\r")
    terminal.wait_for("system prompt set")
    terminal.wait_for(PROMPT)
    terminal.type("/clear\r")
    terminal.wait_for("conversation forgotten")
    terminal.wait_for(PROMPT)
    terminal.type("\x1b[A\x1b[A")  # up, up: the line before the last
    terminal.wait_for("/system 你是诗人")
    terminal.type("\x03")
    terminal.wait_for(PROMPT)
    terminal.type("/quit\r")
    assert terminal.wait_for_end() == 0
    assert "第一行" in (tmp_path / "chat_history").read_text(encoding="utf-8")


def test_ctrl_d_leaves_the_terminal_chat(tmp_path):
    env = {**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
    command = [sys.executable, "-m", "evergreen.cli", "infer", "--model", "nano", "--home", str(tmp_path)]
    terminal = Terminal(command, env)
    terminal.wait_for(PROMPT)
    terminal.type("\x04")
    assert terminal.wait_for_end() == 0

"""Talking to a model: a chat in the terminal, one prompt, a pipe, or (by chat/answers.py) a whole file.

Promises: stdout carries the answers and nothing else, so that a pipe gets clean text; prompts, thoughts and hints go to
stderr. In the chat Ctrl-C stops an answer, never the program; a full context drops the oldest turns and says so.
Does not: store conversations (only the lines typed, in HOME/chat_history), or look anything up.
"""

import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

from evergreen.chat import opening
from evergreen.home import home_dir
from evergreen.records import BadInput, Completion, EvergreenError, Message
from evergreen.settings import InferSettings

if TYPE_CHECKING:
    from evergreen.engine.answer import Piece
    from evergreen.engine.engine import Engine

HELP = """\
/system TEXT   set the system prompt (alone: show it)
/clear         forget the conversation
/help          this list
/quit          leave (also /exit, Ctrl-D)
Ctrl-C stops an answer. Alt-Enter starts a new line; text pasted with line breaks stays one message."""


def run_infer(settings: InferSettings) -> dict:
    """Answer what the settings name: a file, a prompt, what a pipe brings, or a person at the terminal.

    Returns what --json prints. Raises BadInput for an empty or unreadable prompt before any model is loaded."""
    if settings.infer_dataset:
        from evergreen.chat.answers import answer_file

        return answer_file(settings)
    if settings.result_path:
        raise BadInput("--result_path is where the answers of --infer_dataset go: give that too")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8")
    prompt = _given_prompt(settings)
    loaded, engine = opening.load_engine(settings)
    if prompt is None:
        return Chat(engine, loaded.system, settings).run(loaded.name)
    chat = Chat(engine, loaded.system, settings)
    return _document(chat.answer(prompt, cancelled=lambda: False))


class Chat:
    """One conversation: the turns so far, and how answers are printed."""

    def __init__(self, engine: "Engine", system: str | None, settings: InferSettings):
        from rich.console import Console

        self.engine, self.system, self.settings = engine, system, settings
        self.sampling = opening.sampling_of(settings)
        self.messages: list[Message] = []
        self.aside = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

    def run(self, name: str) -> dict:
        """Read lines until /quit or Ctrl-D. Returns the last answer's document, with the number of turns."""
        read_line = line_reader(self.settings.home)
        self._say(f"Chatting with {name}. /help lists the commands, /quit leaves.")
        last, num_turns = None, 0
        while (line := self._next_line(read_line)) is not None:
            if is_command(line):
                self._obey(line)
            elif completion := self._answer_stoppably(line):
                last, num_turns = completion, num_turns + 1
        return {**(_document(last) if last else {}), "turns": num_turns}

    def answer(self, text: str, cancelled: Callable[[], bool]) -> Completion:
        """Ask, print the answer as it comes, and keep both turns; neither of an answer without a word."""
        self.messages.append(Message("user", text))
        try:
            completion = self._print(self._prompt_that_fits(), cancelled)
        except BaseException:
            self.messages.pop()
            raise
        if completion.text:
            self.messages.append(Message("assistant", completion.text))
        else:
            self.messages.pop()
        return completion

    def _next_line(self, read_line: Callable[[], str]) -> str | None:
        """A line with something in it; None when the person leaves."""
        while True:
            try:
                line = read_line().strip()
            except KeyboardInterrupt as interrupt:
                if not str(interrupt):
                    self._say("(/quit or Ctrl-D leaves)")
                continue
            except EOFError:
                return None
            if line in ("/quit", "/exit"):
                return None
            if line:
                return line

    def _obey(self, line: str) -> None:
        command, _, text = line.partition(" ")
        if command == "/system" and text.strip():
            self.system = text.strip()
            self._say("system prompt set; the conversation goes on under it (/clear starts afresh)")
        elif command == "/system":
            self._say(f"system prompt: {self.system}" if self.system else "system prompt: the model's own")
        elif command == "/clear":
            self.messages.clear()
            self._say("conversation forgotten")
        elif command == "/help":
            self._say(HELP)
        else:
            self._say(f"{command} is no command:\n{HELP}")

    def _answer_stoppably(self, text: str) -> Completion | None:
        """An answer that Ctrl-C can stop; what went wrong is told in one line, and the chat goes on."""
        try:
            with _ctrl_c_as_flag() as is_asked_to_stop:
                completion = self.answer(text, is_asked_to_stop)
        except KeyboardInterrupt:
            self._say("\n(interrupted)")
        except EvergreenError as error:
            self._say(str(error))
        else:
            if completion.finish_reason == "cancelled":
                self._say("(stopped)")
            elif completion.finish_reason == "length":
                self._say(f"(cut after {completion.completion_tokens} tokens; --max_new_tokens sets the limit)")
            return completion

    def _prompt_that_fits(self) -> list[int]:
        """Ids of the conversation with room for an answer; the oldest turns go when the context is full."""
        from evergreen.model.template import prompt_ids

        context = self.engine.max_context_tokens
        room, num_dropped = min(self.sampling.max_new_tokens, context // 4), 0
        while True:
            ids = prompt_ids(self.messages, self.engine.tokenizer, system=self.system)
            if len(ids) + room <= context or len(self.messages) < 3:
                break
            del self.messages[:2]
            num_dropped += 1
        if num_dropped:
            self._say(f"(the context of {context} tokens is full: the oldest {num_dropped} exchange(s) were dropped)")
        return ids

    def _print(self, prompt: list[int], cancelled: Callable[[], bool]) -> Completion:
        """The answer on stdout, its thought on stderr or hidden, and a line's end after both."""
        stream = self.engine.stream(prompt, self.sampling, cancelled)
        pieces = stream if self.settings.stream else list(stream)
        is_line_open = self._print_pieces(pieces)
        if is_line_open or not stream.completion.text:
            print(flush=True)
        return stream.completion

    def _print_pieces(self, pieces: "Iterable[Piece]") -> bool:
        """Print them, and say whether the answer's last line still wants its end."""
        is_thinking, last = False, ""
        for piece in pieces:
            if piece.is_thought:
                self._print_thought(piece, is_first=not is_thinking)
                is_thinking = True
                continue
            if is_thinking and not last:
                self._end_thought()
            last = piece
            sys.stdout.write(piece)
            sys.stdout.flush()
        if is_thinking and not last:
            self._end_thought()
        return bool(last) and not last.endswith("\n")

    def _print_thought(self, piece: str, is_first: bool) -> None:
        if self.settings.thought == "show":
            self.aside.print(piece, end="", style="dim", markup=False)
        elif is_first and self.aside.is_terminal:
            self.aside.print("thinking…", end="", style="dim")

    def _end_thought(self) -> None:
        if self.settings.thought == "show":
            self.aside.print("\n")
        elif self.aside.is_terminal:
            self.aside.file.write("\r\x1b[K")
            self.aside.file.flush()

    def _say(self, text: str) -> None:
        self.aside.print(text, style="dim", markup=False)


def is_command(line: str) -> bool:
    """`/word` alone or before a space; a path such as /etc/hosts is a message."""
    return re.match(r"/[a-z]+(\s|$)", line) is not None


def line_reader(home: str) -> Callable[[], str]:
    """Reads one message with line editing, history and multi-line paste, prompting on stderr.

    The reader raises EOFError on Ctrl-D, and KeyboardInterrupt on Ctrl-C with the thrown-away text as its message."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.output import create_output

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def _(event) -> None:
        event.app.exit(exception=KeyboardInterrupt(event.current_buffer.text))

    history = FileHistory(str(home_dir(home) / "chat_history"))
    output = create_output(stdout=sys.stderr if sys.stderr.isatty() else sys.stdout)
    session = PromptSession(history=history, key_bindings=keys, output=output)
    return lambda: session.prompt("> ", prompt_continuation="  ")


@contextmanager
def _ctrl_c_as_flag() -> Iterator[Callable[[], bool]]:
    """While the block runs, Ctrl-C sets the flag that is handed out; a second one interrupts at once."""
    presses = []

    def press(*_: object) -> None:
        presses.append(1)
        if len(presses) > 1:
            raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(presses)
    finally:
        signal.signal(signal.SIGINT, previous)


def _given_prompt(settings: InferSettings) -> str | None:
    """The prompt from --prompt or a pipe; None when a person sits at the terminal."""
    if settings.prompt is not None:
        text, source = settings.prompt, "--prompt"
    elif sys.stdin is not None and sys.stdin.isatty():
        return None
    else:
        text, source = _piped_text(), "stdin"
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of the command line that were not UTF-8
        raise BadInput(f"{source} is not UTF-8 text: convert it first") from None
    if not text.strip():
        raise BadInput(
            f"{source} is empty: give a question with --prompt TEXT, in a pipe, or start from a terminal to chat"
        )
    return text


def _piped_text() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig").strip("\r\n") if sys.stdin else ""
    except UnicodeDecodeError as error:
        raise BadInput(f"stdin is not UTF-8 text (byte {error.start}): convert it first") from None


def _document(completion: Completion) -> dict:
    document = {**asdict(completion), "sources": []}
    del document["token_ids"]
    return document

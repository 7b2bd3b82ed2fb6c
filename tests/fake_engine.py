"""An in-process engine without a model: it says the prompt's token ids back, one a step, and knows its adapters."""

import time
from dataclasses import dataclass

from evergreen.engine.answer import Piece
from evergreen.engine.base import Output, Request, Stats
from evergreen.records import BadInput, Completion

CONTEXT_TOKENS = 4096
POISON = 13  # a prompt that begins with this token is refused by `add`
CRASH = 14  # and this one takes the process down


@dataclass
class Running:
    request: Request
    started: float
    num_said: int = 0
    is_cancelled: bool = False


class FakeEngine:
    max_context_tokens = CONTEXT_TOKENS

    def __init__(self, step_seconds: float = 0.0, text: str = ""):
        self.step_seconds, self.text = step_seconds, text
        self.running: dict[str, Running] = {}
        self.adapters: dict[str, tuple] = {}
        self.leaving: dict = {}
        self.num_generated = 0

    def add(self, request: Request) -> None:
        if request.prompt[0] == POISON:
            raise BadInput("this prompt is poison")
        if request.prompt[0] == CRASH:
            raise SystemError("this prompt is a crash")
        if request.adapter and request.adapter not in self.adapters:
            raise BadInput(f"no adapter {request.adapter}")
        self.running[request.id] = Running(request, time.perf_counter())

    def cancel(self, id: str) -> None:
        if id in self.running:
            self.running[id].is_cancelled = True

    def has_work(self) -> bool:
        return bool(self.running)

    def step(self) -> list[Output]:
        time.sleep(self.step_seconds)
        return [self._advance(one) for one in list(self.running.values())]

    def _advance(self, one: Running) -> Output:
        request, sampling = one.request, one.request.sampling
        words = self._words(request)
        word = words[one.num_said] if one.num_said < len(words) else ""
        one.num_said += 1
        self.num_generated += 1
        is_over = one.num_said >= len(words)
        ends = "cancelled" if one.is_cancelled else "stop" if is_over else ""
        ends = ends or ("length" if one.num_said >= sampling.max_new_tokens else "")
        pieces = (Piece(word),) if word else ()
        if not ends:
            return Output(request.id, pieces, (one.num_said,))
        del self.running[request.id]
        self._tell_gone()
        seconds = time.perf_counter() - one.started
        completion = Completion("".join(words[: one.num_said]), "", len(request.prompt), one.num_said, ends, seconds,
                                seconds / one.num_said, tuple(range(one.num_said)))  # fmt: skip
        return Output(request.id, pieces, (one.num_said,), completion=completion)

    def _words(self, request: Request) -> list[str]:
        who = f"<{request.adapter[:6]}> " if request.adapter else ""
        if self.text:
            return [who + self.text[:1], *self.text[1:]]
        return [who + f"{request.prompt[0]} ", *(f"{token} " for token in request.prompt[1:])]

    def load_adapter(self, digest: str, folders) -> None:
        if not all((folder / "adapter_config.json").is_file() for folder in folders):
            raise BadInput(f"no adapter in {folders[0]}")
        self.adapters[digest] = tuple(folders)
        if told := self.leaving.pop(digest, None):
            told()

    def unload_adapter(self, digest: str, told=lambda: None) -> None:
        if digest not in self.adapters:
            raise BadInput(f"no adapter {digest} is loaded")
        del self.adapters[digest]
        self.leaving[digest] = told
        self._tell_gone()

    def _tell_gone(self) -> None:
        for digest in self.leaving.keys() - {one.request.adapter for one in self.running.values()}:
            self.leaving.pop(digest)()

    def stats(self) -> Stats:
        return Stats(
            num_running=len(self.running),
            num_blocks=100,
            num_free_blocks=100 - len(self.running),
            num_generated_tokens=self.num_generated,
            adapters=tuple(self.adapters),
        )

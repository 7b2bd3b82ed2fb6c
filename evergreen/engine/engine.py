"""Generation: requests in, completions out, many at a time, each as it comes.

Promises: greedy answers do not depend on what else runs (as nearly as the arithmetic allows: in fp32 the tokens are
equal, in bf16 near-ties may fall differently), nor do drawn ones with a seed; a request joins and leaves between any
two steps; what goes wrong with one is its error and leaves the others alone; tokens that another request of the same
adapter and tenant has computed are not computed again.
Does not: run by itself. `step` is one forward pass, and whoever has work calls it, from one thread; `load_adapter` may
come from another.

    engine = Engine(load_model("nano"))
    completion, = engine.generate([prompt], Sampling(max_new_tokens=64))
    for piece in engine.stream(prompt, Sampling()):
        print(piece, end="")
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from evergreen.engine.answer import Piece
from evergreen.engine.base import EngineSettings, Output, Request
from evergreen.engine.stepper import Stepper
from evergreen.records import Completion, Failure, Sampling

if TYPE_CHECKING:
    from evergreen.model.load import LoadedModel


class Stream:
    """Iterates over an answer's pieces; `completion` is the whole answer once they have ended."""

    def __init__(self, pieces: Generator[Piece, None, Completion]):
        self.completion: Completion | None = None
        self._pieces = self._remember(pieces)

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Piece:
        return next(self._pieces)

    def close(self) -> None:
        """Nobody wants the rest."""
        self._pieces.close()

    def _remember(self, pieces: Generator[Piece, None, Completion]) -> Generator[Piece, None, None]:
        self.completion = yield from pieces


class Engine(Stepper):
    """A loaded model that answers. `completion_tokens` counts the end-of-turn token too."""

    def __init__(self, loaded: "LoadedModel", settings: EngineSettings | None = None, runner: Any = None):
        """`runner` stands in for the one that the model gets. Raises BadInput for settings that do not fit it."""
        super().__init__(loaded, settings, runner)
        self._inboxes: dict[str, list[Output]] = {}  # of `generate` and `stream`, whose outputs `step` keeps for them
        self._num_made = 0

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | Sequence[Sampling],
        batch_size: int = 8,
        on_done: Callable[[int, Completion], None] | None = None,
        adapters: Sequence[str] = (),
    ) -> list[Completion]:
        """Answers in the order of `prompts`, `batch_size` at a time; `on_done(index, completion)` hears of each as it
        ends, in any order. `sampling` and `adapters` (digests, "" is the base) may be one a prompt.

        With one sampling and a seed, prompt i draws from seed + i: the same call repeats, and equal prompts may still
        differ. Raises BadInput when a prompt is empty or leaves no room in the model's context."""
        requests = self._requests(prompts, sampling, adapters)
        for request in requests:
            self.check(request)
        places = {request.id: place for place, request in enumerate(requests)}
        waiting, done, inbox = deque(requests), {}, []
        try:
            while len(done) < len(requests):
                while waiting and len(requests) - len(waiting) - len(done) < batch_size:
                    self._add_for(waiting.popleft(), inbox)
                for output in self._hear(inbox):
                    if output.completion:
                        place = places[output.id]
                        done[place] = output.completion
                        if on_done:
                            on_done(place, output.completion)
        finally:
            self._abandon(places)
        return [done[place] for place in range(len(requests))]

    def stream(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        cancelled: Callable[[], bool] = lambda: False,
        adapter: str = "",
    ) -> Stream:
        """The answer piece by piece; `cancelled` is asked after every token. Raises BadInput as `generate` does."""
        [request] = self._requests([prompt], [sampling], [adapter])
        self.check(request)
        return Stream(self._pieces(request, cancelled))

    def _pieces(self, request: Request, cancelled: Callable[[], bool]) -> Generator[Piece, None, Completion]:
        inbox: list[Output] = []
        self._add_for(request, inbox)
        try:
            while True:
                for output in self._hear(inbox):
                    if output.token_ids and not output.is_last and cancelled():
                        self.cancel(request.id)
                    yield from output.pieces
                    if output.completion:
                        return output.completion
        finally:
            self._abandon([request.id])

    def _requests(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling | Sequence[Sampling], adapters: Sequence[str]
    ) -> list[Request]:
        if isinstance(sampling, Sampling):
            first = sampling.seed
            seeds = [None if first is None else first + place for place in range(len(prompts))]
            sampling = [replace(sampling, seed=seed) for seed in seeds]
        self._num_made += 1
        adapters = adapters or [""] * len(prompts)
        parts = zip(prompts, sampling, adapters, strict=True)
        return [
            Request(f"{self._num_made}-{place}", tuple(prompt), how, adapter)
            for place, (prompt, how, adapter) in enumerate(parts)
        ]

    def _add_for(self, request: Request, inbox: list[Output]) -> None:
        self._inboxes[request.id] = inbox
        self.add(request)

    def _hear(self, inbox: list[Output]) -> Iterator[Output]:
        """What one step adds to the requests of this inbox. Raises Failure when the engine gave up on one."""
        self._outbox += self.step()
        while inbox:
            output = inbox.pop(0)
            if output.error:
                raise Failure(output.error)
            yield output

    def _abandon(self, ids: Sequence[str] | dict[str, int]) -> None:
        """Whatever is left of them ends without a word."""
        for id in ids:
            if id in self._rows:
                self._end(self._rows[id])
            self._inboxes.pop(id, None)

    def step(self) -> list[Output]:
        """One forward pass. Returns what it adds to each request that was given to `add`."""
        others: list[Output] = []
        for output in super().step():
            self._inboxes.get(output.id, others).append(output)
        return others


def settings_for(batch_size: int, **others: Any) -> EngineSettings:
    """Settings of an engine that `generate` shall run `batch_size` prompts of at a time."""
    usual = EngineSettings()
    return EngineSettings(
        max_num_seqs=max(usual.max_num_seqs, batch_size),
        max_num_batched_tokens=max(usual.max_num_batched_tokens, 2 * batch_size),
        **others,
    )

"""Where requests are taken in: counted while they run, admitted or turned away, wound up when their client has gone."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from evergreen import feedback
from evergreen.knowledge.answer import Knowledge
from evergreen.serve.answering import CANCEL_SECONDS, Answering
from evergreen.serve.errors import Busy
from evergreen.serve.keys import Key
from evergreen.serve.limits import Limits
from evergreen.serve.metrics import Metrics
from evergreen.serve.models import Models
from evergreen.serve.protocol import Call
from evergreen.serve.schemas import SamplingBody
from evergreen.settings import ServeSettings

AHEAD_SECONDS = 1.0  # between looks for hot questions


async def never() -> Any:
    """What a client that does not exist sends."""
    await asyncio.Event().wait()


class Desk:
    """Takes requests in, knows how many are under way, and remembers each when it has ended."""

    def __init__(
        self,
        settings: ServeSettings,
        models: Models,
        limits: Limits,
        metrics: Metrics,
        log: feedback.Log,
        knowledge: Knowledge | None = None,
    ):
        self.settings, self.models, self.limits, self.metrics, self.log = settings, models, limits, metrics, log
        self.knowledge = knowledge
        self._threads = ThreadPoolExecutor(32, thread_name_prefix="prompts")
        self._num_running: Counter[str] = Counter()  # by base
        self._winding_up: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def answering(
        self,
        key: Key,
        route: str,
        body: SamplingBody,
        to_call: Callable[..., Call],
        receive: Callable[[], Awaitable[Any]],
        session: str = "",
        is_ahead: bool = False,
    ) -> AsyncIterator[Answering]:
        """The request while it runs; what is left of it when the block ends early is cancelled."""
        one = Answering(self, key, route, body, to_call, session, is_ahead)
        try:
            await one.begin()
            one.watch(receive)
            yield one
        except BaseException as error:
            one.fail(error)
            raise
        finally:
            if one.is_over:
                await one.end()
            else:
                task = asyncio.create_task(one.wind_up())
                self._winding_up.add(task)
                task.add_done_callback(self._winding_up.discard)

    def admit(self, base: str, count: int) -> None:
        """Raises Busy when the queue is full."""
        if self._num_running[base] + count > self.settings.max_num_seqs + self.settings.max_waiting:
            raise Busy(f"{self._num_running[base]} requests run or wait: try again in a moment", 1, "queue_full")
        self._num_running[base] += count

    def leave(self, base: str, count: int) -> None:
        self._num_running[base] -= count

    async def in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    def aside(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Have something done that nobody waits for."""
        task = asyncio.ensure_future(self.in_thread(function, *arguments))
        self._winding_up.add(task)
        task.add_done_callback(self._winding_up.discard)

    async def answer_ahead(self) -> None:
        """Answer hot questions again before their answers expire, and after knowledge has changed, while the engine has
        nothing else to do."""
        while self.knowledge is not None:
            await asyncio.sleep(AHEAD_SECONDS)
            with contextlib.suppress(Exception):  # who asks hears of it
                for hot in await self.in_thread(self.knowledge.due):
                    if sum(self._num_running.values()):
                        break
                    key, body, to_call = hot.request
                    async with self.answering(key, "ahead", body, to_call, never, is_ahead=True) as one:
                        await one.whole()

    async def close(self) -> None:
        """Waits for what is being cancelled."""
        if self._winding_up:
            await asyncio.wait(self._winding_up, timeout=CANCEL_SECONDS)
        self._threads.shutdown(wait=False, cancel_futures=True)

"""What an engine's thread says, heard on the event loop."""

import asyncio
import contextlib
from collections import deque

from evergreen.engine.base import Output
from evergreen.serve.errors import Disconnected

MAX_HELD = 64  # outputs of an answer that is sent whole


class Inbox:
    """The outputs of one request, put from any thread."""

    def __init__(self) -> None:
        self._loop, self._outputs, self._wake = asyncio.get_running_loop(), deque[Output](), asyncio.Event()
        self._is_told = self.is_closed = False
        self.is_patient = False  # for an answer that is sent whole: the loop is woken for its end, not for its tokens

    def put(self, output: Output) -> None:
        """From any thread; one wake-up brings all that came together."""
        self._outputs.append(output)
        if not self._is_told and (output.is_last or not self.is_patient or len(self._outputs) >= MAX_HELD):
            self._is_told = True
            with contextlib.suppress(RuntimeError):  # the server has ended
                self._loop.call_soon_threadsafe(self._tell)

    def close(self) -> None:
        """Nobody waits any more."""
        self.is_closed = True
        self._wake.set()

    async def take(self) -> list[Output]:
        """What has come since; waits for something. Raises Disconnected when it is closed."""
        while True:
            await self._wake.wait()
            if self.is_closed:
                raise Disconnected
            self._wake.clear()
            if outputs := self._drain():
                return outputs

    def open_again(self) -> None:
        self.is_closed = False
        self._wake.set()

    def _tell(self) -> None:
        self._is_told = False
        self._wake.set()

    def _drain(self) -> list[Output]:
        return [self._outputs.popleft() for _ in range(len(self._outputs))]

"""How much each key may ask: requests and tokens in any sixty seconds.

A sliding window of seconds. Tokens are counted when they are known (the prompt's at the start, the answer's at the
end), so the request that crosses the limit is still answered and the next one waits.
"""

import math
import time
from collections import defaultdict, deque
from collections.abc import Callable

from evergreen.serve.keys import Key

WINDOW_SECONDS = 60


class Window:
    """Amounts of the last sixty seconds, by the second."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock, self._amounts, self.total = clock, deque[tuple[int, int]](), 0

    def add(self, amount: int) -> None:
        self._forget()
        second = int(self._clock())
        if self._amounts and self._amounts[-1][0] == second:
            amount_so_far = self._amounts.pop()[1]
            self._amounts.append((second, amount_so_far + amount))
        else:
            self._amounts.append((second, amount))
        self.total += amount

    def wait_seconds(self, limit: int) -> int:
        """How long until less than `limit` is left in the window; 0 for now."""
        self._forget()
        left = self.total
        for second, amount in self._amounts:
            if left < limit:
                break
            left -= amount
            until = second + 1 + WINDOW_SECONDS
        return 0 if self.total < limit else max(1, math.ceil(until - self._clock()))

    def _forget(self) -> None:
        while self._amounts and self._amounts[0][0] + 1 + WINDOW_SECONDS <= self._clock():
            self.total -= self._amounts.popleft()[1]


class Limits:
    """One window of requests and one of tokens a key. Used from the event loop's thread alone."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._requests: defaultdict[str, Window] = defaultdict(lambda: Window(clock))
        self._tokens: defaultdict[str, Window] = defaultdict(lambda: Window(clock))

    def admit(self, key: Key) -> tuple[str, int]:
        """("", 0), with the request counted; else which limit is reached and how many seconds to wait."""
        for name, windows, limit in (
            ("requests", self._requests, key.requests_per_minute),
            ("tokens", self._tokens, key.tokens_per_minute),
        ):
            if limit and (seconds := windows[key.name].wait_seconds(limit)):
                return f"{limit} {name} a minute", seconds
        if key.requests_per_minute:
            self._requests[key.name].add(1)
        return "", 0

    def spend(self, key: Key, num_tokens: int) -> None:
        if key.tokens_per_minute and num_tokens:
            self._tokens[key.name].add(num_tokens)

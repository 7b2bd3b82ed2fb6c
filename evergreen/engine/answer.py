"""One growing answer: token ids in, whole characters out, thought told apart from text, cut at stop strings.

Promises: the pieces joined are exactly `thought` and `text`, however the tokens fall; no piece ends in half a character
(Chinese and emoji are often two or three tokens of a byte-level vocabulary); no special token and no part of a stop
string is ever shown, but for the one that ended it where that is asked for. A thought is what stands between <think>
and </think> at the head of an answer; stop strings end the text, not the thought. Knows nothing of models: a function
from tokens to characters (`Vocabulary.characters`) is all it needs.
"""

from collections.abc import Callable, Sequence
from typing import Literal

OPEN, CLOSE = "<think>", "</think>"


class Piece(str):
    """A bit of an answer as it streams; `is_thought` tells reasoning from answer."""

    is_thought: bool

    def __new__(cls, text: str, is_thought: bool = False) -> "Piece":
        piece = super().__new__(cls, text)
        piece.is_thought = is_thought
        return piece


class Answer:
    """Built by `add`ing tokens; `close` gives what was held back for a mark that never came. `stop_reason` is the stop
    string that ended it: of several, the one that was complete first."""

    def __init__(
        self,
        characters: Callable[[int], str],
        stop: Sequence[str] = (),
        in_thought: bool = False,
        include_stop: bool = False,
    ):
        self.text, self.thought, self.stop_reason = "", "", ""
        self._characters, self._include_stop = characters, include_stop
        self._stop = tuple(mark for mark in stop if mark)
        self._part: Literal["head", "thought", "gap", "text"] = "thought" if in_thought else "head"
        self._held = ""

    def add(self, token: int) -> list[Piece]:
        """The pieces that `token` completes: none, one, or the end of the thought and the start of the text."""
        if self.is_stopped:
            return []
        self._held += self._characters(token)
        return self._settle() if self._held else []

    @property
    def is_stopped(self) -> bool:
        return bool(self.stop_reason)

    def close(self) -> list[Piece]:
        """What is left when no further token comes; the bytes of an unfinished character are dropped."""
        rest, self._held = self._held, ""
        if self._part == "thought":
            return self._emit(rest.rstrip() if self.thought else rest.strip(), is_thought=True)
        return self._emit("" if self._part == "gap" else rest)

    def _settle(self) -> list[Piece]:
        pieces = self._read_head() if self._part == "head" else []
        if self._part == "thought":
            pieces += self._read_thought()
        if self._part == "gap" and self._held.strip():
            self._held, self._part = self._held.lstrip(), "text"
        if self._part == "text":
            pieces += self._read_text()
        return pieces

    def _read_head(self) -> list[Piece]:
        start = self._held.lstrip()
        if start.startswith(OPEN):
            self._held, self._part = start[len(OPEN) :], "thought"
        elif not OPEN.startswith(start):
            self._part = "text"
        return []

    def _read_thought(self) -> list[Piece]:
        thought, mark, rest = self._held.partition(CLOSE)
        if not mark:
            thought = thought[: len(thought) - _overlap(thought, (CLOSE,))]
        thought = thought.rstrip()
        shown = thought if self.thought else thought.lstrip()
        self._held = rest if mark else self._held[len(thought) :]
        self._part = "gap" if mark else "thought"
        return self._emit(shown, is_thought=True)

    def _read_text(self) -> list[Piece]:
        ends = [(place + len(mark), mark) for mark in self._stop if (place := self._held.find(mark)) >= 0]
        if ends:
            end, self.stop_reason = min(ends, key=lambda found: (found[0], -len(found[1])))
            shown, self._held = self._held[: end if self._include_stop else end - len(self.stop_reason)], ""
        else:
            end = len(self._held) - _overlap(self._held, self._stop)
            shown, self._held = self._held[:end], self._held[end:]
        return self._emit(shown)

    def _emit(self, text: str, is_thought: bool = False) -> list[Piece]:
        if is_thought:
            self.thought += text
        else:
            self.text += text
        return [Piece(text, is_thought)] if text else []


def _overlap(text: str, marks: Sequence[str]) -> int:
    """Length of the longest end of `text` that could be the start of a mark."""
    return max((size for mark in marks for size in range(1, len(mark)) if text.endswith(mark[:size])), default=0)

"""Which tokens the next forward pass computes: one of every answer under way, then as much of prompts as fits.

Promises: every running answer goes on in every step, whatever the prompts; a prompt is computed in chunks of what the
answers leave of max_num_batched_tokens, which is never less than a block; the best (lowest) priority goes first, then
who came first, and nobody overtakes one who waits for memory. When blocks run out, the newest of the worst priority
gives its own back and is computed again later, from the cache as far as its blocks are still there; a request of a
better priority that finds no place takes that of a worse one. Equal prompts that come together are computed once: a
block can be found from the moment when its tokens are scheduled, since a pass writes all keys before it reads any.
Chunked prefill: Agrawal et al. 2024 (Sarathi-Serve).
"""

from bisect import bisect_left, insort

from evergreen.engine.block_manager import BlockManager
from evergreen.engine.sequence import Chunk, Sequence
from evergreen.records import BadInput

MAX_SCORED_TOKENS = 128  # of prompts, in one pass: scores of 151,936 tokens each take 78 MB


class Scheduler:
    """`waiting` and `running`, both sorted by `Sequence.order`. What it schedules counts as computed."""

    def __init__(self, blocks: BlockManager, max_num_seqs: int, max_num_batched_tokens: int):
        if max_num_batched_tokens < max_num_seqs + blocks.block_size:
            raise BadInput(
                f"max_num_batched_tokens is {max_num_batched_tokens}: {max_num_seqs} answers at a time (max_num_seqs) "
                f"and a block of {blocks.block_size} tokens want at least {max_num_seqs + blocks.block_size}"
            )
        self.blocks, self.max_num_seqs, self.max_num_batched_tokens = blocks, max_num_seqs, max_num_batched_tokens
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self._num_added = 0

    def add(self, sequence: Sequence) -> None:
        """It waits from now on. Its tokens, to the last one that it may draw, must fit into all blocks together."""
        self._num_added += 1
        sequence.arrival = self._num_added
        insort(self.waiting, sequence, key=_order)

    def remove(self, sequence: Sequence) -> None:
        """It has ended, or nobody wants it any more."""
        if not _discard(self.running, sequence):
            _discard(self.waiting, sequence)
        self.blocks.free(sequence)

    def schedule(self) -> list[Chunk]:
        """The next pass; empty when there is nothing to do. Blocks for it are allocated."""
        self._make_way()
        chunks = self._decodes()
        return chunks + self._prompts(self.max_num_batched_tokens - len(chunks))

    def preempt(self, sequence: Sequence) -> None:
        """Take its blocks; it waits in its old place and keeps what it has said."""
        self.running.remove(sequence)
        self.blocks.free(sequence)
        insort(self.waiting, sequence, key=_order)
        self.num_preemptions += 1

    def _make_way(self) -> None:
        """For the first who waits, take the places of running ones of a worse priority until it fits."""
        while self.waiting and self.running and not self._has_place(self.waiting[0]):
            if self.running[-1].request.priority <= self.waiting[0].request.priority:
                return
            self.preempt(self.running[-1])

    def _has_place(self, sequence: Sequence) -> bool:
        return len(self.running) < self.max_num_seqs and self.blocks.can_start(sequence)

    def _decodes(self) -> list[Chunk]:
        """One token of every answer under way; each gets its block from the worst of all when there is none."""
        chunks, place = [], 0
        while place < len(self.running):
            sequence = self.running[place]
            if sequence.num_open_tokens > 1:
                place += 1
            elif self.blocks.can_grow(sequence):
                self.blocks.grow(sequence)
                chunks.append(self._chunk(sequence, 1))
                place += 1
            else:
                self.preempt(self.running[-1])
        return chunks

    def _prompts(self, num_tokens: int) -> list[Chunk]:
        """Chunks of prompts under way and of those that can start, in their order."""
        chunks, under_way, can_start = [], [one for one in self.running if one.num_open_tokens > 1], True
        num_scored = MAX_SCORED_TOKENS
        while num_tokens:
            if can_start and self.waiting and (not under_way or self.waiting[0].order < under_way[0].order):
                can_start = self._has_place(self.waiting[0])
                if not can_start:
                    continue
                sequence = self._start_first()
            elif under_way:
                sequence = under_way.pop(0)
            else:
                break
            count = min(num_tokens, sequence.num_open_tokens)
            if sequence.wants_prompt:
                count = min(count, num_scored)
                num_scored -= count
            if count:
                chunks.append(self._chunk(sequence, count))
                num_tokens -= count
        return chunks

    def _start_first(self) -> Sequence:
        sequence = self.waiting.pop(0)
        self.blocks.start(sequence)
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = sequence.num_computed_tokens
        insort(self.running, sequence, key=_order)
        return sequence

    def _chunk(self, sequence: Sequence, num_tokens: int) -> Chunk:
        start = sequence.num_computed_tokens
        num_scored = min(num_tokens, sequence.num_prompt_tokens - 1 - start) if sequence.wants_prompt else 0
        chunk = Chunk(sequence, start, num_tokens, max(0, num_scored))
        sequence.num_computed_tokens += num_tokens
        self.blocks.publish(sequence)
        return chunk


def _order(sequence: Sequence) -> tuple[int, int]:
    return sequence.order


def _discard(sequences: list[Sequence], sequence: Sequence) -> bool:
    """Take it out of a sorted list; False when it is not there."""
    place = bisect_left(sequences, sequence.order, key=_order)
    is_there = place < len(sequences) and sequences[place] is sequence
    if is_there:
        del sequences[place]
    return is_there

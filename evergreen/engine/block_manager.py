"""Who owns which block of the paged KV cache, and which blocks hold tokens that somebody may ask for again.

Promises: a block is shared only by sequences of the same root (model, adapter, tenant) whose tokens up to its end are
equal: the key of a block is a hash chained from the root over all tokens before it, and its own tokens are compared.
Only full blocks are shared. A block that nobody uses stays findable until it is taken for something else: the one
unused for longest first, and of one sequence the end before the beginning.
Paged KV: Kwon et al. 2023 (vLLM). Knows tables and numbers only; the tensors are the runner's.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterable
from hashlib import blake2b

from evergreen.engine.sequence import Sequence


def root_key(*names: str) -> bytes:
    """Where the chain of keys begins: sequences share blocks only where all the names are equal."""
    return blake2b("\0".join(f"{len(name)}:{name}" for name in names).encode(), digest_size=16).digest()


class BlockManager:
    """`num_blocks` blocks of `block_size` tokens. A sequence's `block_table` is changed here and nowhere else."""

    def __init__(self, num_blocks: int, block_size: int, is_caching: bool = True):
        self.num_blocks, self.block_size, self.is_caching = num_blocks, block_size, is_caching
        self._num_users = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))  # the next to be taken first
        self._by_key: dict[bytes, int] = {}
        self._contents: dict[int, tuple[bytes, tuple[int, ...]]] = {}  # key and tokens of each findable block

    @property
    def num_free_blocks(self) -> int:
        return len(self._free)

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def can_start(self, sequence: Sequence) -> bool:
        """Whether there are blocks for all its tokens, those found in the cache included."""
        cached = self._find(sequence)
        num_free = len(self._free) - sum(not self._num_users[block] for block in cached)
        return self.num_blocks_for(len(sequence.ids)) - len(cached) <= num_free

    def start(self, sequence: Sequence) -> None:
        """Give it blocks for all its tokens; those found in the cache count as computed."""
        cached = self._find(sequence)
        for block in cached:
            self._use(block)
        num_new = self.num_blocks_for(len(sequence.ids)) - len(cached)
        sequence.block_table = [*cached, *(self._take() for _ in range(num_new))]
        sequence.num_published_blocks = len(cached)
        sequence.num_computed_tokens = len(cached) * self.block_size

    def can_grow(self, sequence: Sequence) -> bool:
        """Whether its last token has a block or can get one."""
        return bool(self._free) or len(sequence.block_table) * self.block_size >= len(sequence.ids)

    def grow(self, sequence: Sequence) -> None:
        if len(sequence.block_table) * self.block_size < len(sequence.ids):
            sequence.block_table.append(self._take())

    def publish(self, sequence: Sequence) -> None:
        """Make its computed full blocks findable. Where an equal one is findable already, that one stays."""
        num_full = sequence.num_computed_tokens // self.block_size
        if not self.is_caching or num_full <= sequence.num_published_blocks:
            return
        keys = self._keys(sequence, num_full)
        for place in range(sequence.num_published_blocks, num_full):
            if keys[place] not in self._by_key:
                block = sequence.block_table[place]
                self._by_key[keys[place]] = block
                self._contents[block] = keys[place], self._tokens(sequence, place)
        sequence.num_published_blocks = num_full

    def free(self, sequence: Sequence) -> None:
        """Take its blocks back; they stay findable, its end the first to be taken."""
        for block in reversed(sequence.block_table):
            self._num_users[block] -= 1
            if not self._num_users[block]:
                self._free[block] = None
                if block not in self._contents:
                    self._free.move_to_end(block, last=False)
        sequence.block_table, sequence.num_computed_tokens, sequence.num_published_blocks = [], 0, 0

    def forget(self, blocks: Iterable[int]) -> None:
        """Whatever these blocks hold is not to be found any more."""
        for block in blocks:
            if block in self._contents:
                del self._by_key[self._contents.pop(block)[0]]

    def _find(self, sequence: Sequence) -> list[int]:
        """Findable blocks of its beginning; never all of its tokens, the last one is to be computed. None where the
        prompt's own scores are wanted: these are not kept."""
        if not self.is_caching or sequence.wants_prompt:
            return []
        num_full = (len(sequence.ids) - 1) // self.block_size
        found = []
        for place, key in enumerate(self._keys(sequence, num_full)[:num_full]):
            block = self._by_key.get(key)
            if block is None or self._contents[block][1] != self._tokens(sequence, place):
                break
            found.append(block)
        return found

    def _keys(self, sequence: Sequence, num_full: int) -> list[bytes]:
        """Keys of at least the first `num_full` blocks; kept in the sequence, since ids are only ever added."""
        keys = sequence.block_keys
        while len(keys) < num_full:
            parent = keys[-1] if keys else sequence.root
            tokens = array("q", self._tokens(sequence, len(keys)))
            keys.append(blake2b(parent + tokens.tobytes(), digest_size=16).digest())
        return keys

    def _tokens(self, sequence: Sequence, place: int) -> tuple[int, ...]:
        return tuple(sequence.ids[place * self.block_size : (place + 1) * self.block_size])

    def _take(self) -> int:
        block, _ = self._free.popitem(last=False)
        self.forget([block])
        self._num_users[block] = 1
        return block

    def _use(self, block: int) -> None:
        if not self._num_users[block]:
            del self._free[block]
        self._num_users[block] += 1

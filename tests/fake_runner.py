"""A runner without a model: a cell of its cache holds a hash of all tokens up to it, read from the cell before it, so
that a block shared wrongly, overwritten or never written changes every later token."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import torch

from evergreen.engine.engine import Engine
from evergreen.engine.sequence import Chunk
from evergreen.records import BadInput

EOS = 256
VOCAB_SIZE = 260


class Bytes:
    """A tokenizer whose tokens are bytes, so every Chinese character is three of them; 256 and above are special."""

    eos_token_id, pad_token_id, unk_token_id = EOS, EOS, None

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int], skip_special_tokens: bool = False, **_) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")

    def convert_tokens_to_ids(self, token: str) -> None:
        return None


class NoAdapters:
    """What the engine asks of adapters, with the slots that a test says."""

    def __init__(self):
        self.slots: dict[str, int] = {}

    def digests(self) -> tuple[str, ...]:
        return tuple(self.slots)

    def slot_of(self, digest: str) -> int:
        if digest and digest not in self.slots:
            raise BadInput(f"adapter {digest} is not loaded")
        return self.slots.get(digest, 0)

    def load(self, digest: str, folders: Sequence, is_busy=None) -> int:
        return self.slots.setdefault(digest, len(self.slots) + 1)

    def unload(self, digest: str) -> None:
        del self.slots[digest]


class HashRunner:
    """The next token's scores are a function of all tokens before it and of the adapter."""

    def __init__(self, num_blocks: int = 64, block_size: int = 4):
        self.num_blocks, self.block_size, self.bytes_per_block = num_blocks, block_size, 1
        self.cells = [[None] * block_size for _ in range(num_blocks)]
        self.adapters = NoAdapters()
        self.num_tokens = 0
        self.broken: Callable[[Chunk], bool] = lambda chunk: False
        self.batches: list[list[tuple[str, int, int]]] = []

    def run(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        self.batches.append([(chunk.sequence.request.id, chunk.start, chunk.num_tokens) for chunk in chunks])
        for chunk in chunks:
            if self.broken(chunk):
                raise RuntimeError("this one cannot be computed")
            self._write(chunk)
        cells = [self._cell(one.sequence, one.start + place) for one in chunks for place in one.scored_places()]
        return torch.stack([self.scores(cell) for cell in cells] or [torch.empty(0)])

    def scores(self, cell: int) -> torch.Tensor:
        return torch.randn(VOCAB_SIZE, generator=torch.Generator().manual_seed(cell)) * 2

    def answer(self, prompt: Sequence[int], count: int, slot: int = 0) -> list[int]:
        """What greedy says after `prompt`, without any cache."""
        ids = list(prompt)
        for _ in range(count):
            cell = None
            for token in ids:
                cell = hash((cell, token, slot)) % 2**63
            ids.append(int(self.scores(cell).argmax()))
        return ids[len(prompt) :]

    def _write(self, chunk: Chunk) -> None:
        sequence = chunk.sequence
        for place in range(chunk.start, chunk.start + chunk.num_tokens):
            before = self._cell(sequence, place - 1) if place else None
            cell = hash((before, sequence.ids[place], sequence.adapter_slot)) % 2**63
            block, offset = divmod(place, self.block_size)
            self.cells[sequence.block_table[block]][offset] = cell
        self.num_tokens += chunk.num_tokens

    def _cell(self, sequence, place: int) -> int:
        return self.cells[sequence.block_table[place // self.block_size]][place % self.block_size]


class Parrot(HashRunner):
    """Says `line` whatever it is asked, then ends its turn."""

    def __init__(self, line: str):
        super().__init__(64, 16)
        self.script = [*line.encode(), EOS]

    def run(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        scores = torch.zeros(len(chunks), VOCAB_SIZE)
        for row, chunk in enumerate(chunks):
            scores[row, self.script[chunk.sequence.num_new_tokens]] = 9
        return scores[[chunk.is_last for chunk in chunks]]


def fake_engine(runner: HashRunner, context: int = 512, tokenizer=None, **settings) -> Engine:
    from evergreen.engine.base import EngineSettings

    config = SimpleNamespace(vocab_size=VOCAB_SIZE, max_position_embeddings=context)
    config.get_text_config = lambda: config
    model = SimpleNamespace(config=config, parameters=lambda: [], generation_config=SimpleNamespace(eos_token_id=[EOS]))
    loaded = SimpleNamespace(model=model, tokenizer=tokenizer or Bytes(), system=None, name="fake")
    return Engine(loaded, EngineSettings(block_size=runner.block_size, **settings), runner)

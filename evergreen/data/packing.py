"""Records to rows: a packed row is the prefix tree of its records, laid out depth first.

Records of one optimizer step often begin alike (the same system prompt, the same earlier turns, a preference pair's
prompt). In a packed row every distinct prefix stands once. A token is then seen by exactly the tokens of its subtree,
and in depth-first order a subtree is an interval, so one integer per token, `last`, is the whole attention mask:

    token q sees token k  <=>  k <= q <= last[k]

Without a common prefix this is the usual block-diagonal packing; with one it computes the prefix once. Losses and
gradients equal those of the records computed alone (dropout aside, whose masks a shared prefix shares).

Promises: a record is never split, reordered inside, or seen by another. Does not: batch rows; a row is a batch of one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


class EncodedRecord(Protocol):
    """What packing needs of a record: its ids, and which of them are to be predicted.

    It may also have a `teacher` (of its N targets, in order) and an `origin` (where it came from, for messages)."""

    ids: Sequence[int]
    is_target: Sequence[bool]


@dataclass(frozen=True, eq=False)
class Teacher:
    """A model's k likeliest tokens at N targets; what they leave of 1 is the chance of all other tokens together.

    `weight` is what the divergence from it counts beside the cross-entropy of the same target."""

    ids: "torch.Tensor"  # [N, k] int32
    log_probs: "torch.Tensor"  # [N, k] fp32
    weight: float = 1.0

    def to(self, device: "torch.device") -> "Teacher":
        return Teacher(
            self.ids.to(device, non_blocking=True), self.log_probs.to(device, non_blocking=True), self.weight
        )

    def part(self, start: int, end: int) -> "Teacher":
        return Teacher(self.ids[start:end], self.log_probs[start:end], self.weight)


@dataclass
class Row:
    """What the model computes at once. T tokens, N targets, R records.

    A packed row has shape [1, T] and a `layout`; a padded one has [B, L] with an `attention_mask` and no layout."""

    input_ids: "torch.Tensor"  # [1, T] or [B, L]
    position_ids: "torch.Tensor | None"  # [1, T]: depth in the tree, which is the position in the record
    target_positions: "torch.Tensor"  # [N]: where the prediction is read, in the flattened row
    target_ids: "torch.Tensor"  # [N]
    num_tokens: int  # tokens of the records before sharing, without padding
    layout: "Layout | None" = None
    attention_mask: "torch.Tensor | None" = None  # [B, L]
    teacher: Teacher | None = None  # of M of the targets
    taught: "torch.Tensor | None" = None  # [M]: which of the N
    origins: tuple[str, ...] = ()  # where the records came from

    @property
    def num_targets(self) -> int:
        return self.target_ids.numel()

    def to(self, device: "torch.device") -> "Row":
        def move(tensor: "torch.Tensor | None") -> "torch.Tensor | None":
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return Row(
            move(self.input_ids),
            move(self.position_ids),
            move(self.target_positions),
            move(self.target_ids),
            self.num_tokens,
            self.layout and self.layout.to(device),
            move(self.attention_mask),
            self.teacher and self.teacher.to(device),
            move(self.taught),
            self.origins,
        )


@dataclass
class Layout:
    """Where the records of a packed row lie, for attention computed record by record.

    Each record owns the tokens that it was the first to bring (Q at most) and sees its whole path (K at most)."""

    last: "torch.Tensor"  # [T] end of each token's subtree, inclusive
    queries: "torch.Tensor"  # [R, Q] row indices of a record's own tokens, padded with its first
    keys: "torch.Tensor"  # [R, K] row indices of a record's path, padded with its first
    mask: "torch.Tensor"  # [R, 1, Q, K] bool: which keys a query sees
    place: "torch.Tensor"  # [T] where a token's result stands in the flattened [R * Q]
    key_place: "torch.Tensor"  # [T] where a token first stands in the flattened [R * K]
    again_token: "torch.Tensor"  # [E] tokens that stand in further paths too: once for each
    again_place: "torch.Tensor"  # [E] and where, in the flattened [R * K]

    def to(self, device: "torch.device") -> "Layout":
        return Layout(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))

    def inverse(self, indices: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
        """For `queries` or `keys`: where each token first stands in them, and which stand again, and where."""
        if indices is self.keys:
            return self.key_place, self.again_token, self.again_place
        return self.place, self.again_token[:0], self.again_place[:0]

    def dense_mask(self) -> "torch.Tensor":
        """The same mask over the whole row, [1, 1, T, T] bool: the slow, obvious twin."""
        import torch

        index = torch.arange(self.last.numel(), device=self.last.device)
        return ((index[None, :] <= index[:, None]) & (index[:, None] <= self.last[None, :]))[None, None]


def pack(records: Sequence[EncodedRecord], max_row_tokens: int) -> list[Row]:
    """The records of one optimizer step as packed rows of at most `max_row_tokens` distinct tokens each.

    Records are taken in the order of their ids, so that those which begin alike meet in a row; one that is longer than
    the limit gets a row of its own."""
    rows: list[list[EncodedRecord]] = []
    room = 0
    previous: Sequence[int] = ()
    for record in sorted(records, key=lambda record: tuple(record.ids)):
        added = len(record.ids) - _common_prefix(previous, record.ids)
        if not rows or added > room:
            rows.append([])
            room, added = max_row_tokens, len(record.ids)
        rows[-1].append(record)
        room -= added
        previous = record.ids
    return [_packed_row(row) for row in rows]


def pad(records: Sequence[EncodedRecord], batch_size: int, pad_id: int) -> list[Row]:
    """The plain way: batches of `batch_size` records, padded on the right to the longest."""
    return [_padded_row(records[start : start + batch_size], pad_id) for start in range(0, len(records), batch_size)]


def _packed_row(records: Sequence[EncodedRecord]) -> Row:
    import torch

    ids: list[int] = []
    depths: list[int] = []
    last: list[int] = []
    path: list[int] = []  # row index of each token of the current record
    owned: list[range] = []
    paths: list[list[int]] = []
    targets: list[tuple[int, int]] = []
    previous: Sequence[int] = ()
    for record in records:
        shared = _common_prefix(previous, record.ids)
        _close(path[shared:], last, len(ids))
        start = len(ids)
        path = [*path[:shared], *range(start, start + len(record.ids) - shared)]
        ids.extend(record.ids[shared:])
        depths.extend(range(shared, len(record.ids)))
        last.extend([-1] * (len(ids) - start))
        owned.append(range(start, len(ids)))
        paths.append(path)
        targets.extend((path[i - 1], record.ids[i]) for i in range(1, len(path)) if record.is_target[i])
        previous = record.ids
    _close(path, last, len(ids))
    return Row(
        input_ids=torch.tensor([ids]),
        position_ids=torch.tensor([depths]),
        target_positions=torch.tensor([position for position, _ in targets], dtype=torch.long),
        target_ids=torch.tensor([target for _, target in targets], dtype=torch.long),
        num_tokens=sum(len(record.ids) for record in records),
        layout=_layout(owned, paths, last),
        **_beside(records),
    )


def _layout(owned: list[range], paths: list[list[int]], last: list[int]) -> Layout:
    """Index tensors for attention record by record; a record that brings no token of its own needs none."""
    import torch

    pairs = [(own, path) for own, path in zip(owned, paths, strict=True) if len(own)]
    num_queries, num_keys = max(len(own) for own, _ in pairs), max(len(path) for _, path in pairs)
    queries = torch.tensor([[*own, *[own[0]] * (num_queries - len(own))] for own, _ in pairs])
    keys = torch.tensor([[*path, *[path[0]] * (num_keys - len(path))] for _, path in pairs])
    first_depth = torch.tensor([len(path) - len(own) for own, path in pairs])[:, None, None]
    query_depth = first_depth + torch.arange(num_queries)[None, :, None]
    mask = torch.arange(num_keys)[None, None, :] <= query_depth  # a padded query sees its record, and is never read
    place = torch.cat([torch.arange(len(own)) + i * num_queries for i, (own, _) in enumerate(pairs)])
    standing = [(token, i * num_keys + k) for i, (_, path) in enumerate(pairs) for k, token in enumerate(path)]
    first = dict(reversed(standing))
    again = [(token, where) for token, where in standing if first[token] != where]
    return Layout(
        last=torch.tensor(last),
        queries=queries,
        keys=keys,
        mask=mask[:, None],
        place=place,
        key_place=torch.tensor([first[token] for token in range(len(last))]),
        again_token=torch.tensor([token for token, _ in again], dtype=torch.long),
        again_place=torch.tensor([where for _, where in again], dtype=torch.long),
    )


def _padded_row(records: Sequence[EncodedRecord], pad_id: int) -> Row:
    import torch

    longest = max(len(record.ids) for record in records)
    targets = [
        (r * longest + i - 1, record.ids[i])
        for r, record in enumerate(records)
        for i in range(1, len(record.ids))
        if record.is_target[i]
    ]
    lengths = torch.tensor([len(record.ids) for record in records])
    return Row(
        input_ids=torch.tensor([[*record.ids, *[pad_id] * (longest - len(record.ids))] for record in records]),
        position_ids=None,
        attention_mask=(torch.arange(longest)[None] < lengths[:, None]).long(),
        target_positions=torch.tensor([position for position, _ in targets], dtype=torch.long),
        target_ids=torch.tensor([target for _, target in targets], dtype=torch.long),
        num_tokens=int(lengths.sum()),
        **_beside(records),
    )


def _beside(records: Sequence[EncodedRecord]) -> dict[str, Any]:
    """What a row carries beside its tokens: the teachers of its records, joined, and the records' origins."""
    import torch

    origins = tuple(str(origin) for record in records if (origin := getattr(record, "origin", "")))
    teachers, taught, num_targets = [], [], 0
    for record in records:
        count = sum(record.is_target[1:])
        if (teacher := getattr(record, "teacher", None)) is not None:
            teachers.append(teacher)
            taught.append(torch.arange(num_targets, num_targets + count))
        num_targets += count
    if not teachers:
        return {"origins": origins}
    joined = Teacher(
        torch.cat([t.ids for t in teachers]), torch.cat([t.log_probs for t in teachers]), teachers[0].weight
    )
    return {"origins": origins, "teacher": joined, "taught": torch.cat(taught)}


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    for i, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return i
    return min(len(left), len(right))


def _close(tokens: Sequence[int], last: list[int], end: int) -> None:
    for token in tokens:
        last[token] = end - 1

"""What continual learning adds to a training run: callables that `continual` makes and `train` calls.

The two rooms do not know each other; this is the shape of the socket between them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen.records import Record

if TYPE_CHECKING:
    import torch

    from evergreen.data.packing import EncodedRecord, Row

    Model = torch.nn.Module
    RowLoss = Callable[[Model, Row], torch.Tensor]
    TopTokens = Callable[[Sequence[EncodedRecord], int], list[tuple[torch.Tensor, torch.Tensor]]]


@dataclass(frozen=True)
class Parts:
    """Every member may be missing. They are called once each, in this order, and all but `replay` and `finish` are
    given the model as it is before the first step: on the run's device, in evaluation mode, its gradients thrown away
    afterwards. `row_loss(model, row)` is the summed cross-entropy of a row's targets."""

    replay: "Callable[[int], Sequence[Record]] | None" = None
    """replay(num_new): earlier records, mixed with the run's own `num_new`."""

    choose_layers: "Callable[[Model, list[Row], list[Row], RowLoss], set[int]] | None" = None
    """choose_layers(model, new_rows, old_rows, row_loss): the decoder layers that learn; the others are frozen. At most
    64 records of each kind are given."""

    teach: "Callable[[list[EncodedRecord], TopTokens], list[EncodedRecord]] | None" = None
    """teach(old_records, top_tokens): the replayed records, in order, each with a `teacher` (see data/packing.py).
    `top_tokens(records, k)` gives the model's k likeliest tokens at every target and their log-probabilities."""

    penalty: "Callable[[Model, list[Row], RowLoss], Callable[[Model], torch.Tensor]] | None" = None
    """penalty(model, old_rows, row_loss): a term that joins the loss once a step. A row holds one replayed record; at
    most 256 of them are given."""

    pull: "Callable[[Model], Callable[[float], None]] | None" = None
    """pull(model): called with the learning rate before each update of the weights, as decoupled weight decay is."""

    finish: "Callable[[Path], None] | None" = None
    """finish(output_dir): adds to the folder of the finished run."""

    notes: list[Any] = field(default_factory=list)
    """What the parts have to tell the user, added as they are called: (word, sentence), or what rich prints."""

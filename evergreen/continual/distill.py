"""Staying close to what a model was, by its answers: its likeliest tokens at every target of the replayed records.

They are computed once, before the first step, and kept: k ids and log-probabilities a target, 8 k bytes. In training
the divergence from them joins the cross-entropy of the same targets, out of the same forward pass (train/loss.py).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from evergreen.records import BadInput

if TYPE_CHECKING:
    from evergreen.data.packing import EncodedRecord
    from evergreen.data.parts import TopTokens

NUM_TOP = 32


def teach(old_records: Sequence["EncodedRecord"], top_tokens: "TopTokens", weight: float) -> list["EncodedRecord"]:
    """The records, in order, each with the model's present answer to it: a target's loss becomes cross-entropy +
    weight * KL(before || now)."""
    from evergreen.data.packing import Teacher

    if not old_records:
        raise BadInput("--regularization kl compares answers to old data, and no replayed record is left to answer")
    tops = top_tokens(old_records, NUM_TOP)
    return [
        replace(record, teacher=Teacher(ids, log_probs, weight))
        for record, (ids, log_probs) in zip(old_records, tops, strict=True)
    ]

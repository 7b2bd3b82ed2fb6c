"""The flags of a run as the parts that the trainer accepts."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen.data.parts import Parts
from evergreen.records import BadInput, Record
from evergreen.settings import SftSettings

if TYPE_CHECKING:
    import torch

    from evergreen.data.packing import EncodedRecord, Row
    from evergreen.data.parts import Model, RowLoss, TopTokens

    Penalty = Callable[[Model], torch.Tensor]


def parts_of(settings: SftSettings, generate: Callable | None = None, score: Callable | None = None) -> Parts:
    """What `settings` ask of continual learning; no flag, no part. `generate` and `score` answer old prompts anew and
    judge the answers (see replay.on_policy): --replay_answers onpolicy alone needs them. Raises BadInput for what
    cannot be done with these adapters."""
    alpha = settings.regularization_alpha
    held_by = settings.regularization if alpha else ""
    notes: list[Any] = []
    if settings.merge_chain:
        from evergreen.continual.merge import check_merge_chain

        check_merge_chain(settings)
    return Parts(
        notes=notes,
        replay=_replay(settings, generate, score, notes),
        choose_layers=partial(_choose_layers, notes=notes) if settings.unfreeze else None,
        teach=partial(_teach, weight=alpha) if held_by == "kl" else None,
        penalty=_penalty(settings, held_by),
        pull=partial(_pull, alpha=alpha) if held_by == "l2sp" else None,
        finish=partial(_merge, method=settings.merge_chain, notes=notes) if settings.merge_chain else None,
    )


def _replay(
    settings: SftSettings, generate: Callable | None, score: Callable | None, notes: list[Any]
) -> Callable[[int], Sequence[Record]] | None:
    if not (settings.replay_samples or settings.general_replay):
        return None
    if settings.replay_samples and settings.replay_answers == "onpolicy" and not (generate and score):
        raise BadInput("--replay_answers onpolicy needs a model that answers and a metric that judges: none was given")

    def records(num_new: int) -> list[Record]:
        from evergreen.continual import replay

        found: list[Record] = []
        if settings.replay_samples:
            found = replay.replay_records(settings.prev_model, settings.replay_samples, settings.seed, num_new)
        if settings.replay_answers == "onpolicy":
            found = replay.on_policy(found, generate, score, say=lambda what: notes.append(("replay", what)))
        if settings.general_replay:
            names = settings.dataset_dir, settings.seed, settings.model_name, settings.model_author
            found += replay.general_records(settings.general_replay, *names)
        return found * settings.replay_repeats

    return records


def _penalty(settings: SftSettings, held_by: str) -> "Callable[[Model, Sequence[Row], RowLoss], Penalty] | None":
    """The sum of the penalties that the flags name."""
    if held_by == "l2sp" and settings.train_type in ("full", "freeze"):  # held by the pull alone
        held_by = ""
    if held_by not in ("l2sp", "ewc") and not settings.orthogonal_lambda:
        return None

    def make(model: "Model", old_rows: "Sequence[Row]", row_loss: "RowLoss") -> "Penalty":
        from evergreen.continual.orthogonal import orthogonal
        from evergreen.continual.regularize import ewc, l2sp

        terms = []
        if held_by == "l2sp":
            terms.append(l2sp(model, settings.regularization_alpha))
        if held_by == "ewc":
            terms.append(ewc(model, settings.regularization_alpha, old_rows, row_loss))
        if settings.orthogonal_lambda:
            terms.append(orthogonal(model, _adapters_of(settings), settings.orthogonal_lambda))
        return lambda model: sum(term(model) for term in terms)

    return make


def _adapters_of(settings: SftSettings) -> Sequence[Path]:
    from evergreen.model.load import resolve

    return resolve(settings.prev_model, settings.adapters).adapters


def _choose_layers(
    model: "Model", new_rows: "Sequence[Row]", old_rows: "Sequence[Row]", row_loss: "RowLoss", notes: list[Any]
) -> set[int]:
    from evergreen.continual.unfreeze import choose

    choice = choose(model, new_rows, old_rows, row_loss)
    notes.append(choice.table())
    return choice.layers


def _teach(records: "Sequence[EncodedRecord]", top_tokens: "TopTokens", weight: float) -> "list[EncodedRecord]":
    from evergreen.continual.distill import teach

    return teach(records, top_tokens, weight)


def _pull(model: "Model", alpha: float) -> Callable[[float], None]:
    from evergreen.continual.regularize import pull_back

    return pull_back(model, alpha)


def _merge(folder: Path, method: str, notes: list[Any]) -> None:
    from evergreen.continual.merge import merge_chain

    made = merge_chain(folder, method)
    notes.append(("merged", f"{folder / 'merged'}: one adapter of rank {made.rank}, relative error {made.error:.2g}"))

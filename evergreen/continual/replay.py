"""Old records among the new: what the runs before this one were trained on, a part of it, the same from each.

Promises
- a past run gives rows of the mixture that it was trained on, and no others: the files must be what they were
  (args.json knows their SHA-256), `#N` and mixing probabilities hold again, and what it replayed itself is not counted;
- the runs give equal numbers; one with too few rows gives all it has and the others fill up, the oldest first;
- the same seed, runs and files give the same records in the same order; a later increment draws other rows;
- an answer of the model's own takes the recorded one's place only where the task's metric finds it right.
Does not: tell apart the rows that a past run held out by --split_dataset_ratio, or weigh one increment above another.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evergreen.data.mixture import load_mixture, sample_indices
from evergreen.data.sources import Source, is_still_named, resolve, split_sources
from evergreen.data.turns import split_thought
from evergreen.data.wording import normalised
from evergreen.home import digest_of, read_object
from evergreen.model import find
from evergreen.records import BadInput, Conversation, Message, Record

ARGS_FILE = "args.json"
PASSES = 0.7  # of a graded metric such as rouge_l or edit; the others give 0 or 1, so that it asks for 1 of them

Generate = Callable[[Sequence[tuple[Message, ...]]], Sequence[str]]
Score = Callable[[str, str, Conversation], float]


@dataclass(frozen=True)
class Run:
    """A past run: its folder and what its args.json says."""

    folder: Path
    args: dict[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        return self.args.get("settings", {})

    @property
    def data(self) -> str:
        """Identity of what it was trained on; a second pass over the same rows is no increment of its own."""
        rows = [[source["sha256"] or source["path"], source["used"]] for source in self.args.get("sources", [])]
        return digest_of([rows, self.settings.get("seed")])


def replay_records(prev_model: str, samples: float, seed: int, num_new: int) -> list[Record]:
    """Records of `prev_model`'s run and of the runs before it, newest run first, balanced over them.

    `samples` below 1 is a share of `num_new` (at least one record), from 1 on a count; all there are when they are
    fewer. Raises BadInput when no earlier data is recorded, or when it is no longer what it was."""
    wanted = _num_wanted(samples, num_new)
    runs = history(prev_model) if wanted else []
    seed += len(runs)  # else every increment would replay the same rows of the first
    own = [_own_records(run, wanted, seed) for run in runs]
    counts = balanced(wanted, [len(records) for records in own])
    return [record for records, count in zip(own, counts, strict=True) for record in _some(records, count, seed)]


def general_records(
    sources: Sequence[str], dataset_dir: str = "", seed: int = 42, model_name: str = "", model_author: str = ""
) -> list[Record]:
    """The records of `--general_replay`, FILE#N each, sampled as `--dataset` is. Raises BadInput as it does."""
    names = {"model_name": model_name, "model_author": model_author}
    try:
        return list(load_mixture(sources, dataset_dir=dataset_dir, seed=seed, **names))
    except BadInput as error:
        raise BadInput(str(error).replace("--dataset ", "--general_replay ", 1)) from None


def balanced(wanted: int, available: Sequence[int]) -> list[int]:
    """How many each run gives, newest first: equal numbers as far as they reach, what does not divide to the oldest."""
    counts = [0] * len(available)
    left = min(wanted, sum(available))
    while left:
        open_runs = [place for place, num in enumerate(available) if counts[place] < num]
        share = max(1, left // len(open_runs))
        for place in reversed(open_runs):
            taken = min(share, available[place] - counts[place], left)
            counts[place] += taken
            left -= taken
    return counts


def _num_wanted(samples: float, num_new: int) -> int:
    if samples < 1:
        return max(1, round(samples * num_new)) if samples else 0
    if samples != int(samples):
        raise BadInput(f"--replay_samples {samples}: below 1 it is a share of the new data, from 1 a whole number")
    return int(samples)


# Who came before


def history(prev_model: str) -> list[Run]:
    """The runs that made `prev_model`, newest first, each set of data once: through `--prev_model`, adapters and whole
    models trained further, and the adapters below a stacked one. Raises BadInput when there is none or one is gone."""
    runs: list[Run] = []
    waiting, seen = [Path(find.find_model(prev_model))], set()
    while waiting:
        folder = waiting.pop(0).resolve()
        run = None if folder in seen else _run_of(folder)
        seen.add(folder)
        if run:
            runs += [run] if run.data not in {other.data for other in runs} else []
            waiting += _before(run)
    if not runs:
        raise BadInput(f"--replay_samples needs a record of earlier data, and {prev_model} has no {ARGS_FILE}: it was "
                       "not made by evergreen sft; --general_replay FILE#N mixes in rows of any file")  # fmt: skip
    return runs


def _run_of(folder: Path) -> Run | None:
    """The run that a folder holds; a checkpoint belongs to the run around it."""
    for place in (folder, folder.parent) if folder.name.startswith("checkpoint-") else (folder,):
        if (place / ARGS_FILE).is_file():
            return Run(
                place, read_object(place / ARGS_FILE, {"settings": dict | None, "sources": list | None}, find.NO_RECORD)
            )
    return None


def _before(run: Run) -> list[Path]:
    """Where the weights that a run began with lie; what is no run of ours has no record and is passed over later."""
    given, base = run.settings, run.args.get("base")
    names = [*given.get("adapters", ()), given.get("model")]
    if base and Path(base).parent != run.folder:  # else it is what --chain merge made of prev_model
        names.append(base)
    previous = [_previous(run, given["prev_model"])] if given.get("prev_model") else []
    places = [place for place in map(_place_of, names) if place]
    return previous + find.adapters_below(run.folder) + [_copy_of(run, place) for place in places]


def _copy_of(run: Run, place: Path) -> Path:
    """The run's base as it lies beside a copy of the run, if that is the same one."""
    near = run.folder / run.args.get("beside", {}).get("base", "")
    is_base = find.absolute_name(place) == run.args.get("base") and (near / "config.json").is_file()
    return near if is_base and find.model_digest(near) == run.args.get("base_digest") else place


def _place_of(name: str | None) -> Path | None:
    try:
        return Path(find.find_model(name)) if name else None
    except BadInput:
        return None


def _previous(run: Run, name: str) -> Path:
    """`--prev_model` of a past run: where it lay as seen from the run, so that a copy has its own, else where it was,
    else near the run under its name or its digest, as after a move of one of the two."""
    parent = find.record_of(run.folder).get("parent")
    names = [part for part in (Path(name).name, parent) if part]
    near = [around / part for around in (run.folder.parent, run.folder.parent.parent) for part in names]
    seen = run.args.get("beside", {}).get("prev_model")
    for place in [*([run.folder / seen] if seen else []), Path(name), *near]:
        if parent and find.record_of(place).get("digest") == parent:
            return place
    place = _place_of(name)
    if place is None:
        raise BadInput(f"--replay_samples: {run.folder} was trained on top of {name}, which is gone: bring it back, "
                       "or give the data as --general_replay FILE#N")  # fmt: skip
    return place


# What they were trained on


def _own_records(run: Run, at_most: int, seed: int) -> list[Record]:
    """A run's own records, each once; a sample of `at_most` when it has more. Raises BadInput for changed files."""
    sources, given = run.args.get("sources", []), run.settings
    if not sources:
        raise BadInput(f"--replay_samples: {run.folder} does not say which data it was trained on")
    sources = [source | {"path": _place_now(source, run)} for source in sources]
    for source in sources:
        _check_file(source, run)
    mixture = load_mixture(
        [_spelling(source, given) for source in sources],
        dataset_dir=_folder(given.get("dataset_dir", "")),
        seed=given.get("seed", 42),
        probabilities=given.get("interleave_prob", ()),
        stopping_strategy=given.get("stopping_strategy", "first_exhausted"),
        max_samples=given.get("max_samples"),
        streaming=given.get("streaming", False),
        on_bad_row="skip",  # what a run left out it leaves out again; one that did not skip had no bad row
        model_name=given.get("model_name", ""),
        model_author=given.get("model_author", ""),
    )
    for then, now in zip(sources, mixture.sources, strict=True):
        _check_same(then, now["sha256"], run)
    records = mixture if mixture.streaming else {id(record): record for record in mixture}.values()
    return _reservoir(records, at_most, seed)


def _place_now(source: dict, run: Run) -> str:
    """Where the data lies as seen from the run, when it is the same still; else where it was."""
    near = run.folder / source.get("beside", "")
    is_same = near != run.folder and near.exists() and resolve(Source(str(near))).sha256 == source["sha256"]
    return str(near.resolve()) if is_same else source["path"]


def _spelling(source: dict, given: dict[str, Any]) -> str:
    """The source for load_mixture: by its name where that still leads to the same file, else by its absolute path."""
    is_named = not _is_local(source) or is_still_named(
        source["name"], source["path"], _folder(given.get("dataset_dir", ""))
    )
    name = source["name"] if is_named else source["path"]
    number = None if source["used"] == source["rows"] else source["used"]
    if given.get("interleave_prob"):  # `used` is then what the probabilities came to
        number = {one.name: one.num_samples for one in split_sources(given["dataset"])}.get(source["name"])
    return f"{name}#{number}" if number else name


def _is_local(source: dict) -> bool:
    """Whether it is a file or folder, and no set on a hub."""
    return Path(source["path"]).is_absolute()


def _folder(dataset_dir: str) -> str:
    return dataset_dir if dataset_dir and Path(dataset_dir).is_dir() else ""


def _check_file(source: dict, run: Run) -> None:
    """A file is compared before its rows are read, so that a changed one is named and not some row of it."""
    if not _is_local(source):
        return
    if not Path(source["path"]).exists():
        raise BadInput(f"--replay_samples: {source['path']}, which {run.folder} was trained on, is gone: bring it "
                       "back, or leave --replay_samples away")  # fmt: skip
    _check_same(source, resolve(Source(source["path"])).sha256, run)


def _check_same(source: dict, sha256: str, run: Run) -> None:
    if sha256 and source["sha256"] and sha256 != source["sha256"]:
        raise BadInput(f"--replay_samples: {source['path']} has changed since {run.folder} was trained on it (SHA-256 "
                       f"{source['sha256'][:12]} then, {sha256[:12]} now): bring the old file back")  # fmt: skip


def _reservoir(records: Iterable[Record], at_most: int, seed: int) -> list[Record]:
    """A sample in constant memory, each record as likely as any other (algorithm R, Vitter 1985). What SFT leaves out,
    a disliked answer, is no candidate."""
    rng, kept = random.Random(seed), []
    candidates = (record for record in records if getattr(record, "label", None) is not False)
    for place, record in enumerate(candidates):
        if len(kept) < at_most:
            kept.append(record)
        elif (chosen := rng.randrange(place + 1)) < at_most:
            kept[chosen] = record
    return kept


def _some(records: Sequence[Record], count: int, seed: int) -> list[Record]:
    return [records[place] for place in sample_indices(len(records), count, seed)] if count else []


# Answers of the model's own


def on_policy(
    records: Sequence[Record],
    generate: Generate,
    score: Score,
    num_tries: int = 1,
    say: Callable[[str], None] = lambda _: None,
) -> list[Record]:
    """Each record with the model's own last answer where it is right, as it was recorded where it is not (On-Policy
    Replay, arXiv 2605.29495): what a model would say anyway costs it nothing to keep, and says what it has to keep.

    `generate(prompts)` answers each list of messages (in the paper at temperature 0.1), with `<think>...</think>` in
    front for a thought and "" for an answer that was cut off; the best of `num_tries` answers is taken. `score(answer,
    reference, record)` is the task's metric, 0 to 1. An answer passes from `PASSES` on; one that differs from the
    recorded one only in width, case, white space or closing marks is spelt as recorded. Origins, earlier turns and the
    order stay. Plain texts, pairs, tool calls and prompts with tools keep what was recorded, and so does an answer that
    was thought about when the new one was not. `say` hears how many became the model's own."""
    asked = [place for place, record in enumerate(records) if _can_be_asked(record)]
    prompts = [records[place].messages[:-1] for place in asked] * num_tries
    answers = [split_thought(text) for text in generate(prompts)] if prompts else []
    result, num_own = list(records), 0
    for number, place in enumerate(asked):
        best = _best(records[place], answers[number :: len(asked)], score)
        if best:
            result[place], num_own = best, num_own + 1
    say(f"{num_own:,} of {len(records):,} replayed answers are the model's own, {len(records) - num_own:,} as recorded")
    return result


def _can_be_asked(record: Record) -> bool:
    if not isinstance(record, Conversation) or record.tools or len(record.messages) < 2:
        return False
    last = record.messages[-1]
    return last.role == "assistant" and last.trained and not last.tool_calls and bool(last.content.strip())


def _best(record: Conversation, answers: Sequence[Message], score: Score) -> Conversation | None:
    """The record with the best of the answers in place of its last, the first of equals; None when none passes."""
    gold = record.messages[-1]
    usable = [answer for answer in answers if answer.content.strip() and (answer.thought or not gold.thought)]
    scores = [score(answer.content, gold.content, record) for answer in usable]
    if max(scores, default=0.0) < PASSES:
        return None
    best = usable[scores.index(max(scores))]
    # metrics forgive width, case and closing marks; trained on V１２ for V12, a model would drift to it
    is_same = normalised(best.content) == normalised(gold.content)
    last = replace(gold, content=gold.content if is_same else best.content.strip(), thought=best.thought)
    return replace(record, messages=(*record.messages[:-1], last))

"""Does an engine keep its models apart? Base and adapters asked in every order, each answer compared with one alone.

Every engine that was examined has, or had, a fault of this kind: the prefix cache handing an adapter's keys and values
to the base, base rows of a mixed batch computed with the last adapter, a reloaded name that serves its old bytes. None
of them raises an error, and the wrong answers read well.

Promises: each case is named by the fault that it catches and has prompts of its own, which nobody has asked before, so
that one fault fails few cases; every answer is compared with an isolated greedy one, token by token (`trial`).
Does not: judge drawn samples, or time anything. Against a bare --url the reference is the same server asked alone:
what it gets wrong always, it gets wrong in the reference too.
"""

import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen.evaluate.targets import BASE, Alone, InProcess, Isolated, Question, Served, Server, Target
from evergreen.evaluate.trial import (
    GAP_16_BIT,
    LONG_WORDS,
    ROUNDING_GAP,
    SHORT_WORDS,
    Fault,
    Tally,
    Trial,
    comparable,
)
from evergreen.records import BadInput, EvergreenError

if TYPE_CHECKING:
    from evergreen.settings import ConformanceSettings

Find = Callable[[], str]  # looks for one fault: what it has seen, or Fault


@dataclass(frozen=True)
class Case:
    """`ok` is None when the case could not be run, for the reason in `detail`."""

    name: str
    ok: bool | None
    detail: str


def adapter_ignored(trial: Trial, model: str) -> str:
    num_different = num_ignored = 0
    for prompt in (trial.prompt() for _ in range(4)):
        own, base = comparable(trial.expect(model, prompt), trial.expect(BASE, prompt))
        if own.tokens != base.tokens:
            reply, base = comparable(trial.ask(model, prompt), base)
            num_different += 1
            num_ignored += reply.tokens == base.tokens
    if num_different == 0:
        raise Fault(f"{model} answers as the base on all 4 prompts: it is ignored, or it was trained on other things")
    if num_ignored == num_different:
        raise Fault(f"{model} answers as the base on all {num_different} prompts where it should not")
    return f"{model} differs from the base on {num_different} of 4 prompts"


def wrong_alone(trial: Trial, model: str) -> str:
    for prompt in trial.prompts():
        trial.ask_and_check(model, prompt)
    return trial.tally.told()


def cache_changes_answer(trial: Trial, model: str) -> str:
    hits = []
    for prompt in trial.prompts():
        trial.ask_and_check(model, prompt)
        again = trial.ask(model, prompt)
        trial.check(model, prompt, again)
        hits.append(again.num_cached_tokens)
    if None in hits:
        return trial.tally.told() + "; whether the cache was used is not told"
    return trial.tally.told() + (f"; {sum(hits)} tokens from the cache" if any(hits) else "; the cache was never used")


def kv_reused(trial: Trial, owner: str, other: str) -> str:
    """`other` is asked what `owner` has just answered, and what begins alike."""
    for prompt in trial.prompts():
        trial.expect(other, prompt)
        trial.ask(owner, prompt)
        reply = trial.ask(other, prompt)
        trial.check(other, prompt, reply)
    foreign = trial.prompt(LONG_WORDS)
    trial.ask(owner, foreign)
    reply = trial.ask(other, foreign)
    if (reply.num_cached_tokens or 0) > reply.num_prompt_tokens // 2 > 0:
        raise Fault(f"{other} took {reply.num_cached_tokens} of {reply.num_prompt_tokens} tokens from the cache for a "
                    f"prompt that only {owner} had been asked")  # fmt: skip
    return trial.tally.told()


def base_row_with_adapter(trial: Trial) -> str:
    for order in _mixes(trial):
        trial.check_together([(model, trial.prompt()) for model in order], only=[BASE])
    return trial.tally.told()


def row_with_other_adapter(trial: Trial) -> str:
    for order in _mixes(trial):
        words = itertools.cycle((SHORT_WORDS, LONG_WORDS, 2 * SHORT_WORDS))
        asked = [(model, trial.prompt(num)) for model, num in zip(order, words, strict=False)]
        trial.check_together(asked, only=trial.adapters)
    return trial.tally.told()


def _mixes(trial: Trial) -> Iterator[list[str]]:
    """Batches: everybody with the base first, in the middle and last, then the base beside each adapter alone."""
    yield [*trial.models, BASE]
    yield [*reversed(trial.adapters), BASE, *trial.adapters]
    yield [*trial.adapters, BASE, BASE]
    yield from ([adapter, BASE, adapter] for adapter in trial.adapters)


def kv_shared_in_batch(trial: Trial) -> str:
    """One prompt, asked of all models in the same batch: first a new one, then one with the same beginning."""
    long = trial.prompt(LONG_WORDS)
    for prompt in (long, f"{long} {trial.prompt()}"):
        trial.check_together([(model, prompt) for model in (*trial.models, *reversed(trial.models))])
    return trial.tally.told()


def page_edge(trial: Trial, model: str) -> str:
    asked = [(model, trial.prompt(num_words)) for num_words in range(SHORT_WORDS, SHORT_WORDS + 17)]
    for _ in range(2):
        trial.check_together(asked)
    return trial.tally.told()


def unknown_name(trial: Trial) -> str:
    return _must_be_refused(trial, "no-such-model", "nobody has loaded")


def _must_be_refused(trial: Trial, name: str, who: str) -> str:
    try:
        reply = trial.ask(name, trial.prompt())
    except EvergreenError as error:
        return f"refused: {error}"
    raise Fault(f"a model that {who} answered: {reply.text[:40]!r}")


def reloaded_name(trial: Trial, old: str, new: str) -> str:
    """The name R holds `old`, then `new`; what it said of a prompt must not come back."""
    prompts = trial.prompts()
    for prompt in prompts:
        trial.expect(new, prompt)
    for label in trial.adapters:  # R needs a slot
        trial.unload(label)
    trial.load("R", old)
    for prompt in prompts:
        trial.ask("R", prompt)
    trial.unload("R")
    trial.load("R", new)
    for prompt in prompts:
        trial.check("R", prompt, trial.ask("R", prompt), weights=new)
    return trial.tally.told()


def kv_outlives_adapter(trial: Trial, old: str, new: str) -> str:
    """`new` comes to the place in the engine's memory where `old` was."""
    prompts = trial.prompts()
    for prompt in prompts:
        trial.expect(new, prompt)
    trial.unload(new)
    for prompt in prompts:
        trial.ask(old, prompt)
    trial.unload(old)
    trial.load(new, new)
    for prompt in prompts:
        trial.check(new, prompt, trial.ask(new, prompt))
    return trial.tally.told()


def unloaded_answers(trial: Trial, model: str) -> str:
    trial.unload(model)
    return _must_be_refused(trial, model, "was unloaded")


def loading_disturbs(trial: Trial, model: str) -> str:
    """The answers of the others go on while `model` leaves and comes back."""
    others = [other for other in trial.models if other != model]
    asked = [(other, trial.prompt(num_words)) for other in others for num_words in (SHORT_WORDS, LONG_WORDS)]
    for one in asked:
        trial.expect(*one)

    def meanwhile() -> None:
        trial.unload(model)
        trial.load(model, model)

    replies = trial.target.complete([Question(*one) for one in asked], trial.max_tokens, meanwhile)
    for one, reply in zip(asked, replies, strict=True):
        trial.check(*one, reply)
    trial.ask_and_check(model, trial.prompt())
    return trial.tally.told()


def cases_of(trial: Trial) -> list[tuple[str, Find]]:
    """(fault, what looks for it), for the models that there are."""
    models, adapters = trial.models, trial.adapters
    cases = [
        *((f"adapter {label} ignored", partial(adapter_ignored, trial, label)) for label in adapters),
        *((f"{model} wrong when asked alone", partial(wrong_alone, trial, model)) for model in models),
        *((f"prefix cache changes an answer of {model}", partial(cache_changes_answer, trial, model))
          for model in models),
        *((f"KV of {owner} reused for {other}", partial(kv_reused, trial, owner, other))
          for owner, other in itertools.permutations(models, 2)),
        *((f"prompt of {model} ends on a page's edge", partial(page_edge, trial, model)) for model in models[:2]),
        ("unknown name answered by the base", partial(unknown_name, trial)),
    ]  # fmt: skip
    if adapters:
        cases += [
            ("base row gets the last slot", partial(base_row_with_adapter, trial)),
            ("row gets another adapter's slot", partial(row_with_other_adapter, trial)),
            ("KV shared between models in one batch", partial(kv_shared_in_batch, trial)),
        ]
    if len(adapters) > 1:
        first, last = adapters[0], adapters[-1]
        cases += [
            ("same name reloaded serves old bytes", _loading(trial, reloaded_name, first, last)),
            ("KV of an unloaded adapter outlives it", _loading(trial, kv_outlives_adapter, first, last)),
            ("unloaded adapter still answers", _loading(trial, unloaded_answers, first)),
            ("loading disturbs a running answer", _loading(trial, loading_disturbs, last)),
        ]
    return cases


class NotRun(Exception):
    """Why a case could not be tried."""


def _loading(trial: Trial, find: Callable[..., str], *adapters: str) -> Find:
    def find_if_loadable() -> str:
        if not trial.target.can_load or not trial.folders:
            raise NotRun("adapters cannot be loaded while this engine runs, or their folders were not given")
        return find(trial, *adapters)

    return find_if_loadable


def run_cases(
    trial: Trial, on_case: Callable[[Case], None] = lambda case: None, names: Sequence[str] = ()
) -> list[Case]:
    """Every case in turn, or those of `names`; an engine that refuses or breaks fails the case that met it."""
    done = []
    for name, find in cases_of(trial):
        if names and name not in names:
            continue
        trial.tally = Tally()
        try:
            case = Case(name, True, find())
        except Fault as fault:
            case = Case(name, False, str(fault))
        except NotRun as reason:
            case = Case(name, None, str(reason))
        except EvergreenError as error:
            case = Case(name, False, f"the engine gave up: {error}")
        done.append(case)
        on_case(case)
        trial.restore()
    return done


# --- the command


def run_conformance(settings: "ConformanceSettings") -> dict[str, Any]:
    """`evergreen conformance`: {passed, failed, cases: [{name, ok, detail}]}, and the table on the screen."""
    with ExitStack() as stack:
        trial = _trial_of_url(settings, stack) if settings.url else _trial_of_engine(settings, stack)
        cases = run_cases(trial, _progress(stack))
    _print(cases, settings)
    return {
        "passed": sum(case.ok is True for case in cases),
        "failed": sum(case.ok is False for case in cases),
        "not_run": sum(case.ok is None for case in cases),
        "cases": [asdict(case) for case in cases],
    }


def _trial_of_engine(settings: "ConformanceSettings", stack: ExitStack) -> Trial:
    """An engine that is started for this, beside transformers and PEFT in fp32."""
    from evergreen.engine.launch import check
    from evergreen.model.load import tokenizer_of

    check(settings)
    model, folders = _specimens(settings, stack)
    reference = Isolated(model, folders, tokenizer_of(model))
    target = stack.enter_context(closing(_target(settings, model, folders)))
    for label, folder in folders.items():
        target.load(label, folder)
    is_exact = settings.gguf_type == "f32" if settings.engine == "llamacpp" else "32" in settings.torch_dtype
    gap = settings.max_gap if settings.max_gap is not None else ROUNDING_GAP if is_exact else GAP_16_BIT
    return Trial(target, reference, list(folders), folders, settings.max_new_tokens, gap)


def _target(settings: "ConformanceSettings", model: str, folders: dict[str, Path]) -> Target:
    from evergreen.model.load import tokenizer_of

    if settings.engine != "embedded":
        from evergreen.engine.launch import open_remote

        return Served(open_remote(replace(settings, model=model), max_adapters=len(folders)), tokenizer_of(model))
    from evergreen.engine.base import EngineSettings
    from evergreen.engine.engine import Engine
    from evergreen.model.load import load_model

    loaded = load_model(model, torch_dtype=settings.torch_dtype, device=settings.device)
    # as many slots as adapters: an empty last slot would hide base rows that get it
    return InProcess(Engine(loaded, EngineSettings(max_adapters=max(len(folders), 1))), loaded.tokenizer)


def _specimens(settings: "ConformanceSettings", stack: ExitStack) -> tuple[str, dict[str, Path]]:
    """The base's folder and {label: adapter folder}; what was not given is made, random, in a temporary folder."""
    from evergreen.evaluate import specimen

    if settings.adapters and not settings.model:
        raise BadInput("--adapters need their base: give --model, too")
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="evergreen-conformance-")))
    model = _base(settings.model) if settings.model else specimen.make_model(folder / "model")
    if not settings.adapters:
        return model, specimen.make_adapters(model, folder)
    return model, {_label(place): _folder(adapter) for place, adapter in enumerate(settings.adapters)}


def _base(reference: str) -> str:
    from evergreen.model.find import resolve

    found = resolve(reference)
    if found.adapters:
        raise BadInput(f"--model {reference} is an adapter: give its base as --model {found.base} and it as --adapters")
    return str(found.base)


def _label(place: int) -> str:
    return chr(ord("A") + place)


def _folder(adapter: str) -> Path:
    from evergreen.model.find import is_adapter

    if not is_adapter(Path(adapter)):
        raise BadInput(f"--adapters {adapter}: not a folder with an adapter_config.json")
    return Path(adapter)


def _trial_of_url(settings: "ConformanceSettings", stack: ExitStack) -> Trial:
    """A running server beside the same weights in fp32 where --model gives them, else beside itself asked alone."""
    names = [name for part in settings.models for name in part.split(",") if name]
    if not names:
        raise BadInput("--url needs the names of its models, the base first: --models base,a,b")
    labels = [_label(place) for place in range(len(names) - 1)]
    folders = {label: _folder(adapter) for label, adapter in zip(labels, settings.adapters, strict=False)}
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="evergreen-conformance-")))
    models = dict(zip([BASE, *labels], names, strict=True))
    server = Server(settings.url, settings.url_key, models, folder if folders else None)
    stack.enter_context(closing(server))
    gap = GAP_16_BIT if settings.max_gap is None else settings.max_gap
    if settings.model:
        from evergreen.model.load import tokenizer_of

        if len(folders) != len(labels):
            raise BadInput(f"--models names {len(labels)} adapters and --adapters gives {len(folders)} folders: "
                           "the same ones, in the same order")  # fmt: skip
        model = _base(settings.model)
        reference: Isolated | Alone = Isolated(model, folders, tokenizer_of(model))
    else:
        reference = Alone(server)
        print("the reference is the server itself, asked alone " + _how_cold(server))
    return Trial(server, reference, labels, folders, settings.max_new_tokens, gap)


def _how_cold(server: Server) -> str:
    if server.cold:
        return f"and past its prefix cache ({', '.join(server.cold)})"
    return ("through its prefix cache, which it cannot be asked to leave out: what that gets wrong at a first sight of "
            "a prompt stays unseen; --model and --adapters with the same weights would show it")  # fmt: skip


def _progress(stack: ExitStack) -> Callable[[Case], None]:
    """Says on a terminal which case has just been run."""
    from rich.console import Console

    console = Console(stderr=True)
    status = stack.enter_context(console.status("asking each model alone ..."))
    return lambda case: status.update(f"{case.name}: {'fault' if case.ok is False else 'fine'} ...")


def _print(cases: Sequence[Case], settings: "ConformanceSettings") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"conformance of {escape(settings.url or settings.engine)}", title_justify="left")
    for column in ("fault", "", "seen"):
        table.add_column(column, overflow="fold")
    words = {True: "[green]absent", False: "[bold red]FOUND", None: "[dim]not run"}
    for case in cases:
        table.add_row(escape(case.name), words[case.ok], escape(case.detail))
    console = Console(width=None if Console().is_terminal else 160)
    console.print(table)
    found = [case.name for case in cases if case.ok is False]
    if found:
        console.print(f"[bold red]{len(found)} of {len(cases)} faults found:[/] {escape('; '.join(found))}")
    else:
        console.print(f"none of {sum(case.ok is True for case in cases)} faults found")

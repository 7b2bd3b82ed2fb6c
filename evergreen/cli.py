"""`evergreen COMMAND --flags`: parse, call, print. Everything slow is imported by the command that needs it."""

import itertools
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import evergreen
from evergreen import settings
from evergreen.options import parse
from evergreen.records import BadInput, EvergreenError


def sft(arguments: list[str]) -> tuple[Any, bool]:
    """fine-tune: lora, qlora, full or freeze"""
    given = parse(settings.SftSettings, arguments, "sft")
    _locate(given)
    from evergreen.continual.parts import parts_of
    from evergreen.model.load import leave_out_bitsandbytes
    from evergreen.train.sft import run_sft

    if given.train_type != "qlora" and not given.quantization_bit:
        leave_out_bitsandbytes(given.model, given.prev_model, *given.adapters)
    return run_sft(given, parts_of(given, *_on_policy(given))), given.json


def _on_policy(given: settings.SftSettings) -> tuple[Callable, ...]:
    """What --replay_answers onpolicy needs: the earlier run's model that answers, and the metric that judges."""
    if given.replay_answers != "onpolicy" or not given.prev_model:
        return ()
    from evergreen.evaluate.harness import version_of
    from evergreen.evaluate.onpolicy import answering

    how = settings.EvalSettings(model=given.prev_model, system=given.system, template=given.template,
                                torch_dtype=given.torch_dtype, device=given.device)  # fmt: skip
    return answering(version_of(given.prev_model, given.adapters, how), how, given.seed)


def evolve(arguments: list[str]) -> tuple[Any, ...]:
    """learn increment after increment, measure forgetting, gate, release"""
    given = parse(settings.EvolveSettings, positional(arguments, "evolve"), "evolve")
    if given.print_gate:
        from evergreen.evaluate.gates import as_yaml, gate_of

        limits = gate_of(given)
        print(as_yaml(limits) if limits else "off", end="" if limits else "\n")
        return vars(limits) if limits else {}, given.json
    _locate(given)
    from evergreen.loop import run_evolve
    from evergreen.model.load import leave_out_bitsandbytes

    if given.train_type != "qlora":
        leave_out_bitsandbytes(given.model, *given.adapters)
    document = run_evolve(given)
    return document, given.json, REJECTED if document["rejected"] else 0


def rebase(arguments: list[str]) -> tuple[Any, ...]:
    """learn the increments of an evolve again on another base, and compare the two lines"""
    given = parse(settings.RebaseSettings, positional(arguments, "rebase"), "rebase")
    from evergreen.loop import run_rebase
    from evergreen.model.load import leave_out_bitsandbytes

    leave_out_bitsandbytes(given.model)
    document = run_rebase(given)
    return document, given.json, REJECTED if document["rejected"] else 0


def infer(arguments: list[str]) -> tuple[Any, bool]:
    """talk to a model: a chat, a prompt, a pipe or a file"""
    given = parse(settings.InferSettings, arguments, "infer")
    _locate(given)
    from evergreen.chat.terminal import run_infer
    from evergreen.model.load import leave_out_bitsandbytes

    leave_out_bitsandbytes(given.model, *given.adapters)

    return run_infer(given), given.json


def evaluate(arguments: list[str]) -> tuple[Any, bool]:
    """score a model on tasks, compare two, or compare a run's checkpoints"""
    given = parse(settings.EvalSettings, arguments, "eval")
    _locate(given)
    from evergreen.evaluate.harness import run_eval
    from evergreen.model.load import leave_out_bitsandbytes

    leave_out_bitsandbytes(given.model, *given.adapters, *_places(given.compare, given.home), given.checkpoints)
    return run_eval(given), given.json


def serve(arguments: list[str]) -> tuple[Any, bool]:
    """an OpenAI-compatible server with a chat page"""
    given = parse(settings.ServeSettings, arguments, "serve")
    from evergreen.serve.server import run_serve

    return run_serve(given), given.json


def _knowledge(action: str, about: str) -> Callable[[list[str]], tuple[Any, ...]]:
    """The command `knowledge ACTION`."""

    def command(arguments: list[str]) -> tuple[Any, bool]:
        kind = getattr(settings, f"Knowledge{action.title()}Settings")
        given = parse(kind, positional(arguments, f"knowledge {action}"), f"knowledge {action}")
        from evergreen.knowledge.commands import run_knowledge

        return run_knowledge(action, given, _answer_from, _token_counter, _apart), given.json

    command.__doc__ = about
    return command


def _answer_from(home: str, knowledge: str, share: float | None, reason: str) -> dict[str, Any]:
    """Have the served release answer from "live" or a snapshot; with a "warning" where a server does not follow."""
    from evergreen.home import home_dir
    from evergreen.registry import Registry
    from evergreen.registry.knowledge import is_anyone_aside, serve_knowledge

    moved = serve_knowledge(Registry(home_dir(home or None)), knowledge, share, reason)
    if is_anyone_aside(home_dir(home or None)):
        moved["warning"] = "a server of this home was started with --model and does not follow: start it without"
    return moved


def _apart(home: str) -> str:
    """Which answers do not come from what is newest. A change that is on the disk does not fail over a registry that
    cannot be read."""
    from evergreen.database import DATABASE_FILE, url_of_environment
    from evergreen.home import home_dir
    from evergreen.records import EvergreenError

    if not url_of_environment() and not (home_dir(home or None) / DATABASE_FILE).exists():
        return ""
    from evergreen.registry import Registry
    from evergreen.registry.knowledge import apart

    try:
        return apart(Registry(home_dir(home or None)))
    except EvergreenError:
        return ""


def _token_counter(model: str) -> Callable[[str], int]:
    """How many tokens a text has for a model."""
    from evergreen.model.load import tokenizer_of

    tokenizer = tokenizer_of(model)
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


def knowledge_serve(arguments: list[str]) -> tuple[Any, bool]:
    """the home's knowledge over HTTP, without a model"""
    given = parse(settings.KnowledgeServeSettings, arguments, "knowledge serve")
    from evergreen.serve.server import run_knowledge_serve

    return run_knowledge_serve(given), given.json


def conformance(arguments: list[str]) -> tuple[Any, ...]:
    """try whether an engine keeps the base and its adapters apart"""
    given = parse(settings.ConformanceSettings, arguments, "conformance")
    from evergreen.evaluate.conformance import run_conformance
    from evergreen.model.load import leave_out_bitsandbytes

    leave_out_bitsandbytes(given.model, *given.adapters)
    document = run_conformance(given)
    return document, given.json, 1 if document["failed"] else 0


def data_check(arguments: list[str]) -> tuple[Any, bool]:
    """one report on data files: format, turns, lengths, duplicates, leakage"""
    given = parse(settings.DataCheckSettings, positional(arguments, "data check"), "data check")
    from evergreen.data.check import run_check
    from evergreen.model.load import tokenizer_of

    return run_check(given, tokenizer_of), given.json


def doctor(arguments: list[str]) -> tuple[Any, bool]:
    """what this machine can do, what is missing, how to get it"""
    given = parse(settings.DoctorSettings, arguments, "doctor")
    from evergreen.doctor import run_doctor

    return run_doctor(given), given.json


def demo(arguments: list[str]) -> tuple[Any, bool]:
    """the whole cycle on the nano model, about three minutes on a laptop"""
    given = parse(settings.DemoSettings, arguments, "demo")
    from evergreen.demo import run_demo
    from evergreen.model.load import NANO, leave_out_bitsandbytes

    leave_out_bitsandbytes(str(NANO))
    return run_demo(given), given.json


def _release(action: str, about: str) -> Callable[[list[str]], tuple[Any, ...]]:
    """The command `release ACTION`."""

    def command(arguments: list[str]) -> tuple[Any, bool]:
        kind = getattr(settings, f"Release{action.title()}Settings")
        given = parse(kind, positional(arguments, f"release {action}"), f"release {action}")
        from evergreen.model.find import resolve, version_digest
        from evergreen.registry.commands import run_release

        return run_release(action, given, version_digest, resolve), given.json

    command.__doc__ = about
    return command


def backup(arguments: list[str]) -> tuple[Any, bool]:
    """the whole home in one file, also while others write to it"""
    given = parse(settings.BackupSettings, positional(arguments, "backup"), "backup")
    from evergreen.registry.backup import run_backup

    return run_backup(given), given.json


def restore(arguments: list[str]) -> tuple[Any, bool]:
    """bring a backup back, every file checked"""
    given = parse(settings.RestoreSettings, positional(arguments, "restore"), "restore")
    from evergreen.registry.backup import run_restore

    return run_restore(given), given.json


BARE_WORDS = {  # the flag that a command's bare words stand for
    "evolve": "increments", "rebase": "evolved", "data check": "files", "backup": "file", "restore": "file",
    "release show": "release", "release diff": "releases", "release promote": "release", "release history": "alias",
    "knowledge add": "content", "knowledge update": "id", "knowledge withdraw": "ids", "knowledge redact": "ids",
    "knowledge import": "files", "knowledge show": "id", "knowledge search": "query", "knowledge history": "id",
    "knowledge diff": "states", "knowledge rollback": "snapshot", "knowledge canary": "snapshot",
    "knowledge audit": "id", "knowledge export": "file",
}  # fmt: skip
REJECTED = 3  # exit code of an evolve in which an increment did not pass

COMMANDS: dict[str, Callable[[list[str]], tuple[Any, ...]]] = {  # (document, whether --json, exit code if not 0)
    "demo": demo,
    "sft": sft,
    "evolve": evolve,
    "rebase": rebase,
    "release list": _release("list", "the releases there are, and what is served"),
    "release show": _release("show", "a release with its lineage, its files checked"),
    "release diff": _release("diff", "what differs between two releases"),
    "release create": _release("create", "make a release by hand"),
    "release promote": _release("promote", "point stable or candidate at a release"),
    "release rollback": _release("rollback", "take back the last promotion"),
    "release prune": _release("prune", "free the disk from versions that nothing needs"),
    "release history": _release("history", "every move of an alias"),
    "backup": backup,
    "restore": restore,
    "infer": infer,
    "eval": evaluate,
    "serve": serve,
    "knowledge add": _knowledge("add", "add an entry; it is in the next answer"),
    "knowledge update": _knowledge("update", "replace parts of an entry; its version rises"),
    "knowledge withdraw": _knowledge("withdraw", "take entries out of every answer; the past keeps them"),
    "knowledge redact": _knowledge("redact", "take entries out of the past, too, for good"),
    "knowledge import": _knowledge("import", "files and folders into entries; again, and changes are followed"),
    "knowledge list": _knowledge("list", "the entries, those changed last first"),
    "knowledge show": _knowledge("show", "one entry, whole"),
    "knowledge search": _knowledge("search", "the entries that answer a question best"),
    "knowledge history": _knowledge("history", "every version of an entry"),
    "knowledge diff": _knowledge("diff", "what differs between two states"),
    "knowledge publish": _knowledge("publish", "name the present state as a snapshot"),
    "knowledge rollback": _knowledge("rollback", "answer from a snapshot"),
    "knowledge canary": _knowledge("canary", "answer a share of the users from a snapshot"),
    "knowledge live": _knowledge("live", "answer from what is newest again"),
    "knowledge audit": _knowledge("audit", "every change: when, what, who, why"),
    "knowledge export": _knowledge("export", "entries as JSONL"),
    "knowledge compact": _knowledge("compact", "check the log and merge its segments"),
    "knowledge reindex": _knowledge("reindex", "make the search index anew"),
    "knowledge serve": knowledge_serve,
    "conformance": conformance,
    "data check": data_check,
    "doctor": doctor,
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Exit code 0, 2 for bad input, 1 for a failure, 3 when an increment did not pass the gate, 130
    after Ctrl-C, 143 when told to terminate."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # OpenMP threads that spin while they wait fight any other process for the cores: beside one busy program six steps
    # on two cores took 109 s, and 3.9 s with threads that sleep. Read by libgomp when torch loads it.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # oneDNN keeps compiled products for 1,024 shapes; packed rows bring new shapes with every step, half a GiB of them
    # in thirty steps of a small model
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    try:
        if page := _page(arguments):
            print(page, flush=True)
            return 0
        command, rest = _command(arguments)
        with _terminable():
            document, wants_json, *code = command(rest)
        if wants_json:
            sys.stdout.flush()
            print(json.dumps(document, ensure_ascii=False), flush=True)
        return code[0] if code else 0
    except EvergreenError as error:
        return _say(error, error.exit_code)
    except KeyboardInterrupt:
        return _say("stopped", 130)
    except _Terminated:
        return _say("terminated", 143)
    except BrokenPipeError:  # the reader of a pipe has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # a fault of the program: still one line, and the trace for who asks
        if os.environ.get("EVERGREEN_TRACE"):
            raise
        return _say(f"failed: {type(error).__name__}: {error} (EVERGREEN_TRACE=1 shows where)", 1)


class _Terminated(BaseException):
    """SIGTERM: everything that must be put in order on the way out is, as after Ctrl-C."""


@contextmanager
def _terminable() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _page(arguments: list[str]) -> str:
    """What is printed and not done: help, a group's help, the version; empty for a command."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        return overview()
    if arguments[0] in ("-V", "--version", "version"):
        return f"evergreen {evergreen.__version__}"
    if _is_group(arguments[0]) and arguments[1:] in ([], ["-h"], ["--help"]):
        return overview(f"{arguments[0]} ")
    return ""


def _is_group(word: str) -> bool:
    """Whether commands of two words begin with it, and none is it."""
    return word not in COMMANDS and any(name.startswith(f"{word} ") for name in COMMANDS)


def overview(group: str = "") -> str:
    """The page behind `evergreen --help`, or behind the first word of a group of commands."""
    lines = [
        f"evergreen {evergreen.__version__}: keeps a deployed Qwen-class language model fresh",
        "",
        "usage: evergreen COMMAND [--flags]      evergreen COMMAND --help lists a command's flags",
        "",
    ]
    lines += [f"  {name:<19} {command.__doc__}" for name, command in COMMANDS.items() if name.startswith(group)]
    lines += [
        "",
        "start with: evergreen demo",
        "every command takes --home DIR and --json (the last line of stdout is JSON)",
    ]
    return "\n".join(lines)


def _command(arguments: list[str]) -> tuple[Callable, list[str]]:
    """The longest command name that the arguments begin with, and what follows it."""
    for words in (2, 1):
        name = " ".join(arguments[:words])
        if name in COMMANDS:
            return COMMANDS[name], arguments[words:]
    import difflib

    group = [name for name in COMMANDS if name.startswith(f"{arguments[0]} ")]
    given = " ".join(arguments[: 2 if group else 1])
    near = difflib.get_close_matches(given, group or COMMANDS, n=1, cutoff=0.5) or group
    hint = f"; the nearest is {near[0]}" if near else ""
    raise BadInput(f"evergreen knows no command {given!r}{hint} (evergreen --help lists all)")


def _locate(given: settings.ModelSettings) -> None:
    """`--model` may be a release, an alias or a version of the home, which then stands for its model and adapters, and
    a release for its system prompt and template too where no flag gives another."""
    from evergreen.home import home_place
    from evergreen.registry import locate, prompt_of

    home = home_place(given.home)
    if found := locate(given.model, home):
        prompt = prompt_of(given.model, home)
        given.model, given.adapters = found[0], [*found[1], *given.adapters]
        given.system = prompt.get("system") if given.system is None else given.system
        given.template = given.template or prompt.get("template") or ""


def _places(names: list[str], home: str) -> list[str]:
    """Folders for those that name a release or a version of the home."""
    from evergreen.home import home_place
    from evergreen.registry import locate

    found = {name: locate(name, home_place(home)) for name in names}
    return [[place[0], *place[1]][-1] if (place := found[name]) else name for name in names]


def positional(arguments: list[str], command: str) -> list[str]:
    """`evolve dataset/ --model M` is `evolve --increments dataset/ --model M`."""
    words = list(itertools.takewhile(lambda word: word == "-" or not word.startswith("-"), arguments))
    if not words or command not in BARE_WORDS:
        return arguments
    return [f"--{BARE_WORDS[command]}", *words, *arguments[len(words) :]]


def _say(message: object, code: int) -> int:
    sys.stdout.flush()
    print(f"evergreen: {' '.join(str(message).split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

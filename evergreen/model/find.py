"""From a name to folders: local models, hub names, adapters with their base and the adapters below them.

Promises: a reference is `nano`, a folder, a name under $EVERGREEN_MODELS, or a hub name; an adapter's folder stands for
its base with all its adapters on it, innermost first. What was trained over something that is gone or has changed since
is refused in one line, never run on what happens to lie there. Digests name content, not place.
Does not: load weights (see `load`).
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evergreen.home import digest_of, read_json, read_object
from evergreen.model.adapters import adapter_digest
from evergreen.records import BadInput

NANO = Path(__file__).parent / "nano"
ARGS_FILE, VERSION_FILE = "args.json", "version.json"
SAMPLED_BYTES = 1 << 20
NO_RECORD = "bring back what the run wrote, or train it anew"
TRAINING_ARGS_FILE = "training_args.bin"  # of a full run: no weights, and it names the folder it was made in


@dataclass
class Reference:
    """A resolved model: the base's folder or hub name, and the adapter folders over it, innermost first."""

    base: str
    adapters: tuple[Path, ...] = ()
    args: dict | None = None  # the args.json of the outermost adapter or run, when it left one


def resolve(reference: str, adapters: Sequence[str] = ()) -> Reference:
    """Follow `reference` and `adapters` down to a base model. Adapters know their own base and what lies between.

    Raises BadInput for what is not there, has changed, or does not belong together."""
    folders = [adapter_folder(adapter) for adapter in adapters]
    if reference:
        place = find_model(reference)
        if is_adapter(place):
            folders = [Path(place), *folders]
            reference = base_of(folders[0])
        else:
            reference = place
    elif folders:
        reference = base_of(folders[0])
    else:
        raise BadInput("no model given: --model nano, a folder, a hub name, or --adapters with a trained adapter")
    base = find_model(reference)
    chain = tuple(_with_those_below(folders))
    for folder in chain:
        _check_base(folder, base)
    return Reference(base, chain, _args_of(chain[-1] if chain else Path(base)))


def find_model(name: str) -> str:
    """A folder that holds a model or adapter, or the name unchanged when only the hub can know it.

    Raises BadInput for a path that does not exist, listing what stands beside it."""
    if name == "nano":
        return str(NANO)
    path = Path(name).expanduser()
    if path.is_dir():
        if not any((path / file).is_file() for file in ("config.json", "adapter_config.json")):
            raise BadInput(f"{name} holds neither a model nor an adapter{_checkpoints_in(path)}")
        return str(path)
    if path.is_file():
        raise BadInput(f"{name} is a file: a model is a folder with config.json and weights, or a hub name")
    for folder in _model_folders():
        for candidate in (folder / name, folder / name.split("/")[-1]):
            if (candidate / "config.json").is_file() or (candidate / "adapter_config.json").is_file():
                return str(candidate)
    if _looks_like_path(name):
        raise BadInput(f"no model or checkpoint at {name}{_checkpoints_in(path.parent)}")
    return name


def adapter_folder(name: str) -> Path:
    """The folder of a PEFT adapter. Raises BadInput when it does not exist or holds no adapter."""
    place = find_model(name)
    path = Path(place)
    if not path.is_dir():
        raise BadInput(f"no adapter at {name}{_checkpoints_in(path.parent)}")
    if not is_adapter(place):
        raise BadInput(f"{name} is a whole model, not an adapter: give it as --model")
    if not any((path / f"adapter_model.{suffix}").is_file() for suffix in ("safetensors", "bin")):
        raise BadInput(f"{name} has an adapter_config.json but no weights (adapter_model.safetensors)")
    return path


def link_to(adapter: Path, folder: Path) -> dict[str, Any]:
    """How a version in `folder` names an adapter below it: by digest, and where it lies, absolute and relative."""
    place = Path(adapter).resolve()
    return {
        "digest": adapter_digest(place),
        "path": str(place),
        "relative": os.path.relpath(place, Path(folder).resolve()),
        "method": record_of(place).get("method") or "lora",
    }


def record_of(folder: str | Path) -> dict[str, Any]:
    """version.json of a finished run; {} where there is none."""
    path = Path(folder) / VERSION_FILE
    return read_object(path, {}, NO_RECORD) if path.is_file() else {}


def beside(place: str | Path, folder: str | Path) -> str:
    """Where a file or folder lies as seen from `folder`, for records that outlive a move of both; "" for a hub name."""
    is_here = bool(place) and Path(place).exists()
    return os.path.relpath(Path(place).resolve(), Path(folder).resolve()) if is_here else ""


def seen_from(args: dict[str, Any], origin: str | Path, folder: str | Path) -> dict[str, Any]:
    """An args.json of `origin` as a copy in `folder` has to spell it: what it names by `beside` lies where it lay."""

    def moved(name: str) -> str:
        return os.path.relpath(Path(origin).resolve() / name, Path(folder).resolve()) if name else ""

    sources = [one | {"beside": moved(one.get("beside", ""))} for one in args.get("sources", [])]
    near = {name: moved(value) for name, value in args.get("beside", {}).items()}
    return {**args, "sources": sources, "beside": near}


def absolute_name(place: str | Path) -> str:
    """A folder's full path, for records that outlive the working directory; a hub name as it is."""
    return str(Path(place).resolve()) if Path(place).is_dir() else str(place)


def parent_of(found: Reference) -> str | None:
    """The digest of the version that a resolved model is; None for one that no run of ours has made."""
    return record_of(found.adapters[-1] if found.adapters else found.base).get("digest")


def adapters_below(adapter: Path) -> list[Path]:
    """The adapters that this one was trained over, innermost first; [] for one that stands on its base alone.

    They are looked for where they lay relative to this one, so that a copy stands on its own, then where they lay, and
    beside it under their digest. Raises BadInput when one is gone or is no longer what it was."""
    for place in _record_places(adapter):
        for record in (_args_in(place) or {}, record_of(place)):
            links = record.get("chain")
            if links is not None:
                return follow(links, place)
    return []


def follow(links: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """The adapters that a version in `folder` names (see `link_to`). Raises BadInput when one is not what it was."""
    return [_follow(link, folder) for link in links]


def _follow(link: dict[str, Any], adapter: Path) -> Path:
    seen = (adapter / link.get("relative", link["path"])).resolve()
    places = [seen, Path(link["path"]), adapter.parent / link["digest"]]
    there = [place for place in places if is_adapter(place)]
    for place in there:
        if adapter_digest(place) == link["digest"]:
            return place
    if there:
        raise BadInput(f"{adapter} was trained over the adapter {there[0]}, which has changed since: bring the old one "
                       "back, or train this one anew")  # fmt: skip
    raise BadInput(f"{adapter} was trained over the adapter {link['path']}, which is gone: bring it back")


def _with_those_below(folders: Sequence[Path]) -> list[Path]:
    """The adapters as they lie on the base: before each one those that it was trained over."""
    chain: list[Path] = []
    for folder in folders:
        below = adapters_below(folder)
        if not chain:
            chain += below
        elif below and [adapter_digest(one) for one in below] != [adapter_digest(one) for one in chain]:
            raise BadInput(f"{folder} was trained over {_names(below)}, not over {_names(chain)}: name it alone, it "
                           "brings what it stands on")  # fmt: skip
        chain.append(folder)
    return chain


def _names(folders: Sequence[Path]) -> str:
    return " and ".join(str(folder) for folder in folders)


def is_adapter(place: str | Path) -> bool:
    return (Path(place) / "adapter_config.json").is_file()


def base_of(adapter: Path) -> str:
    """The base that an adapter was trained on: where it lay relative to the adapter, if it is the same one still, then
    where args.json and adapter_config.json say, then `base/` beside or in the adapter's folder, where `--chain merge`
    writes it and a moved run still has it.

    Raises BadInput when that base is gone."""
    args = _args_of(adapter) or {}
    near = adapter / args.get("beside", {}).get("base", "")
    if near != adapter and (near / "config.json").is_file() and model_digest(near) == args.get("base_digest"):
        return str(near.resolve())
    recorded = [args.get("base"), read_json(adapter / "adapter_config.json").get("base_model_name_or_path")]
    names = [name for name in recorded if name]
    if not names:
        raise BadInput(f"{adapter} does not say which base it belongs to: give --model")
    beside = [str(folder / "base") for folder in (adapter, adapter.parent) if Path(names[0]).name == "base"]
    for name in [*names, *beside]:
        try:
            place = find_model(name)
        except BadInput:
            continue
        if Path(place).is_dir() or not _looks_like_path(name):
            return place
    raise BadInput(f"the base of {adapter} is gone: {names[0]} does not exist; give its new place as --model")


def model_digest(place: str | Path) -> str:
    """Identity of a model folder: its config and every weight file's name, size, first and last MiB.

    Sampled, because hashing 15 GB of weights would take longer than loading them; a hub name is its own digest."""
    folder = Path(place)
    if not folder.is_dir():
        return digest_of(str(place))
    config = {key: value for key, value in read_config(folder).items() if key != "transformers_version"}
    weights = sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.bin"))
    return digest_of([config, [_sample(path) for path in weights if path.name != TRAINING_ARGS_FILE]])


def version_digest(folder: Path) -> str:
    """What a run's output folder is named by: its adapter's content, else its model's."""
    return adapter_digest(folder) if is_adapter(folder) else model_digest(folder)


def reference_digest(found: Reference) -> str:
    """Identity of what answers: base, adapters, and the system prompt and template that they bring."""
    brings = [(found.args or {}).get(name) for name in ("system", "template")]
    return digest_of([model_digest(found.base), [adapter_digest(folder) for folder in found.adapters], brings])


def read_config(folder: str | Path) -> dict[str, Any]:
    config = read_json(Path(folder) / "config.json")
    if not isinstance(config, dict):
        raise BadInput(f"{folder}/config.json wants an object of settings, got a {type(config).__name__}")
    return config


def _sample(path: Path) -> list:
    import hashlib

    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(SAMPLED_BYTES)
        file.seek(max(0, size - SAMPLED_BYTES))
        tail = file.read()
    return [path.name, size, hashlib.sha256(head + tail).hexdigest()]


def _args_of(folder: Path) -> dict | None:
    """The args.json of a run; a checkpoint without one uses its run's."""
    return next((args for args in map(_args_in, _record_places(folder)) if args is not None), None)


def _args_in(folder: Path) -> dict | None:
    path = folder / ARGS_FILE
    return read_object(path, {}, NO_RECORD) if path.is_file() else None


def _record_places(folder: Path) -> list[Path]:
    return [folder, folder.parent] if folder.name.startswith("checkpoint-") else [folder]


def _check_base(adapter: Path, base: str) -> None:
    """Refuse an adapter of another base: by digest where both are known, else by the config's shape when it loads."""
    args = _args_of(adapter) or {}
    if not Path(base).is_dir() or args.get("base_digest") in (None, model_digest(base)):
        return
    if Path(args.get("base", "")).resolve() == Path(base).resolve():
        raise BadInput(f"{adapter} was trained on {base}, which has changed since: train a new adapter")
    raise BadInput(
        f"{adapter} was trained on {args.get('base')}, which is not the model at {base}: "
        "leave --model away to use its own base, or train a new adapter"
    )


def _looks_like_path(name: str) -> bool:
    """A hub name is `name` or `owner/name`; anything deeper, or with a path's marks, is a path."""
    return (
        name.startswith(("/", ".", "~"))
        or name.count("/") > 1
        or "checkpoint-" in name
        or Path(name).parts[:1] in (("output",), ("outputs",))
        or (name.count("/") == 1 and Path(name).parent.is_dir())
    )


def _checkpoints_in(folder: Path) -> str:
    if not folder.is_dir():
        return ""
    found = sorted(
        str(path)
        for path in folder.iterdir()
        if path.is_dir() and ((path / "config.json").is_file() or is_adapter(path))
    )
    return f"; there are: {', '.join(found[:8])}" if found else ""


def _model_folders() -> list[Path]:
    return [Path(folder).expanduser() for folder in os.environ.get("EVERGREEN_MODELS", "").split(os.pathsep) if folder]


def local_models() -> list[str]:
    """Models that need no network: nano and what lies under $EVERGREEN_MODELS."""
    found = [
        str(path)
        for folder in _model_folders()
        if folder.is_dir()
        for path in sorted(folder.iterdir())
        if (path / "config.json").is_file()
    ]
    return ["nano", *found]

"""What a word after `--dataset` means: NAME[#N] -> the files (or hub set) behind it and how their columns are called.

A name is looked for, in this order, in dataset_info.json (of --dataset_dir, else ./data and .), as a folder
dataset/NAME/, as a path (a file, or a folder with its train files, or all its data files; also below --dataset_dir),
and on the Hugging Face hub; on ModelScope when the extra is installed. `hf::NAME` and `ms::NAME` ask one hub only;
`NAME:SUBSET` names a hub set's part.
"""

import difflib
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from evergreen.data.files import SUFFIXES, data_suffix, is_data_file
from evergreen.data.formats import Layout, Skipped, detect, detect_file, read_records, records_of
from evergreen.home import is_reachable, read_json
from evergreen.records import BadInput, Record

SPLITS = {"train": ("train",), "validation": ("dev", "validation", "valid", "val", "eval", "test")}
MAX_SAMPLES = 100_000_000
MODELSCOPE_LINE = "pip install 'evergreen-lm[modelscope]'"


@dataclass(frozen=True)
class Source:
    """`name#num_samples` as it was typed; num_samples None is every row once."""

    name: str
    num_samples: int | None = None


@dataclass(frozen=True)
class Located:
    """Where a source's rows come from: files, or one set on a hub."""

    name: str
    num_samples: int | None = None
    files: tuple[Path, ...] = ()
    layout: Layout | None = None
    hub: "HubSet | None" = None

    def records(self, on_bad_row: str = "error", skipped: Skipped | None = None) -> Iterator[Record]:
        """Every record in order; each call reads afresh, in constant memory."""
        for path in self.files:
            yield from read_records(path, on_bad_row, skipped, self.layout)
        if self.hub:
            yield from records_of(enumerate(self.hub.rows, 1), self.hub.name, on_bad_row, skipped, self.layout)

    @property
    def path(self) -> str:
        parents = {path.parent for path in self.files}
        return str(self.files[0] if len(self.files) == 1 else parents.pop()) if self.files else self.hub.name

    @cached_property
    def sha256(self) -> str:
        """Of the file's content, as `sha256sum` gives it (of all files' digests for several); "" for a set on a hub."""
        digests = [_sha256(path) for path in self.files]
        if len(digests) < 2:
            return "".join(digests)
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    @property
    def num_bytes(self) -> int:
        """On the disk; 0 for a set on a hub."""
        return sum(path.stat().st_size for path in self.files)

    def format(self) -> str:
        if self.files:
            return next(filter(None, (detect_file(path, self.layout) for path in self.files)), "")
        return next((detect(row) for row in self.hub.rows), "")


@dataclass(frozen=True)
class HubSet:
    """A data set of the Hugging Face hub (or ModelScope), loaded when its rows are first asked for."""

    name: str
    subset: str | None = None
    split: str = "train"
    folder: str | None = None
    kind: str = "hf"  # hf or ms
    streaming: bool = False

    @cached_property
    def rows(self) -> Iterable[dict]:
        return _from_modelscope(self) if self.kind == "ms" else _from_hugging_face(self)


def parse_source(text: str) -> Source:
    """`a.json#500` -> Source("a.json", 500). A path that exists wins over the meaning of `#`."""
    name, mark, count = text.rpartition("#")
    if not mark or Path(text).exists():
        name, mark = text, ""
    if not name.strip():
        raise BadInput(f"--dataset wants NAME or NAME#N, got {text!r}")
    if not mark:
        return Source(name.strip())
    if not re.fullmatch(r"[0-9]+", count.strip()) or int(count) < 1:
        raise BadInput(f"--dataset {text}: after # stands how many rows to take, a whole number from 1; got {count!r}")
    if int(count) > MAX_SAMPLES:
        raise BadInput(f"--dataset {text}: more than {MAX_SAMPLES:,} rows: take fewer and more epochs")
    return Source(name.strip(), int(count))


def split_sources(texts: Iterable[str]) -> list[Source]:
    """Every source typed, `a,b#5` taken apart at the comma unless a file is called so."""
    sources = []
    for text in texts:
        whole = Path(text).exists() or Path(text.rpartition("#")[0] or text).exists()
        parts = [text] if whole or "," not in text else [part for part in text.split(",") if part.strip()]
        sources += [parse_source(part.strip()) for part in parts]
    if not sources:
        raise BadInput("--dataset wants at least one source, got none")
    return sources


def resolve(source: Source, dataset_dir: str = "", split: str = "train", streaming: bool = False) -> Located:
    """Find a source by the order this page promises. Raises BadInput naming what is near when it is nowhere."""
    if dataset_dir and not Path(dataset_dir).is_dir():
        raise BadInput(f"--dataset_dir {dataset_dir}: no such folder")
    entry = _entries(dataset_dir).get(source.name)
    if entry is not None:
        return _from_entry(source, *entry, split, streaming)
    folder = named_folder(source.name)
    if folder:
        return Located(source.name, source.num_samples, files_of_folder(folder, split))
    for path in (Path(source.name).expanduser(), Path(dataset_dir or "data") / source.name):
        if path.exists():
            files = files_of_folder(path, split) if path.is_dir() else (path,)
            return Located(source.name, source.num_samples, files, _layout_of_file(files[0]))
    return Located(source.name, source.num_samples, hub=_hub_set(source.name, dataset_dir, split, streaming))


def is_still_named(name: str, path: str, dataset_dir: str = "") -> bool:
    """Whether `name` still leads to the local file or folder `path` (absolute); no hub is asked."""
    here = (Path(name).expanduser(), Path("dataset") / name, Path(dataset_dir or "data") / name)
    if name not in _entries(dataset_dir) and not any(place.exists() for place in here):
        return False
    try:
        return str(Path(resolve(Source(name), dataset_dir).path).resolve()) == path
    except BadInput:
        return False


def named_folder(name: str) -> Path | None:
    """dataset/NAME, when NAME is a plain name and that is a folder."""
    folder = Path("dataset") / name
    plain = Path(name).parts and not Path(name).is_absolute() and ".." not in Path(name).parts
    return folder if plain and folder.is_dir() else None


def files_of_folder(folder: Path, split: str = "train") -> tuple[Path, ...]:
    """A folder's train files, else all but dev and test files; for validation dev.*, else validation.*, ..., test.*

    What is named so may be a folder too: train/ with any files in it."""
    files = sorted(path for path in folder.iterdir() if is_data_file(path) and path.name != "dataset_info.json")
    if not files and (folder / "data").is_dir() and not (folder / SPLITS[split][0]).is_dir():  # a hub set's own layout
        return files_of_folder(folder / "data", split)
    for word in SPLITS[split]:
        named = tuple(path for path in files if _split_word(path) == word)
        if not named and (folder / word).is_dir():
            named = tuple(path for path in sorted((folder / word).iterdir()) if is_data_file(path))
        if named:
            return named
    rest = tuple(path for path in files if _split_word(path) not in SPLITS["validation"])
    if split == "train" and rest:
        return rest
    inside = [path.name for path in files] + [f"{path.name}/" for path in sorted(folder.iterdir()) if path.is_dir()]
    raise BadInput(
        f"the folder {folder} wants {' or '.join(f'{word}.*' for word in SPLITS[split])}, "
        f"holds {', '.join(inside[:12]) or 'no data file'}"
    )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _split_word(path: Path) -> str:
    """`train` of train.json, train-00000-of-00002.parquet and train_1.jsonl.gz."""
    return re.split(r"[-_.]", path.name.lower())[0]


# dataset_info.json


def _entries(dataset_dir: str) -> dict[str, tuple[dict, Path]]:
    """name -> (entry, folder that its paths are relative to), LLaMA-Factory's object or ms-swift's list."""
    entries: dict[str, tuple[dict, Path]] = {}
    for folder in [Path(dataset_dir)] if dataset_dir else [Path("data"), Path(".")]:
        path = folder / "dataset_info.json"
        value = read_json(path) if path.is_file() else {}
        if isinstance(value, list):
            value = {name: entry for entry in value if isinstance(entry, dict) for name in _names_of(entry)}
        if not isinstance(value, dict) or not all(isinstance(entry, dict) for entry in value.values()):
            raise BadInput(f'{path} wants {{"name": {{"file_name": ...}}, ...}}')
        for name, entry in value.items():
            entries.setdefault(name, (entry, folder))
    return entries


def _names_of(entry: dict) -> list[str]:
    names = [entry.get(key) for key in ("dataset_name", "ms_dataset_id", "hf_dataset_id", "dataset_path")]
    return [str(name) for name in names if name]


def _layout_of_file(path: Path) -> Layout | None:
    """How the dataset_info.json beside a file describes it, when just one entry does: its path reads as its name."""
    try:
        entries = [
            entry
            for entry, folder in _entries(str(path.parent)).values()
            if folder / str(entry.get("file_name") or entry.get("dataset_path")) == path
        ]
    except BadInput:  # the `datasets` library leaves a file of that name, too, for something else
        return None
    return _layout(entries[0], f"{path.parent / 'dataset_info.json'}") if len(entries) == 1 else None


def _from_entry(source: Source, entry: dict, folder: Path, split: str, streaming: bool) -> Located:
    where = f"{folder / 'dataset_info.json'}, {source.name}"
    num_samples = source.num_samples or entry.get("num_samples")
    if num_samples is not None and (not isinstance(num_samples, int) or num_samples < 1):
        raise BadInput(f"{where}: num_samples wants a whole number from 1, got {num_samples!r}")
    layout = _layout(entry, where)
    file_name = entry.get("file_name") or entry.get("dataset_path")
    if file_name:
        path = folder / file_name
        if not path.exists():
            raise BadInput(f"{where}: no file {path}")
        return Located(source.name, num_samples, files_of_folder(path, split) if path.is_dir() else (path,), layout)
    subset, part = entry.get("subset"), entry.get("split") or split
    subset = subset or next((name for name in entry.get("subsets") or [] if isinstance(name, str)), None)
    for key, kind in (("hf_hub_url", "hf"), ("hf_dataset_id", "hf"), ("ms_hub_url", "ms"), ("ms_dataset_id", "ms")):
        if entry.get(key):
            hub = HubSet(entry[key], subset, part, entry.get("folder"), kind, streaming)
            return Located(source.name, num_samples, layout=layout, hub=hub)
    raise BadInput(f"{where}: wants file_name, hf_hub_url or ms_hub_url, got {', '.join(entry) or 'nothing'}")


def _layout(entry: dict, where: str) -> Layout:
    formatting = entry.get("formatting", "alpaca")
    columns, tags = entry.get("columns") or {}, entry.get("tags") or {}
    if formatting not in ("alpaca", "sharegpt", "openai"):
        raise BadInput(f"{where}: formatting wants alpaca, sharegpt or openai, got {formatting!r}")
    if not isinstance(columns, dict) or not isinstance(tags, dict):
        raise BadInput(f"{where}: columns and tags want objects")
    if set(entry) & {"dataset_path", "ms_dataset_id", "hf_dataset_id"}:  # ms-swift maps the file's names to the usual
        return Layout(formatting, renames=columns)
    return Layout(formatting, columns, tags)


# Hubs


def _hub_set(name: str, dataset_dir: str, split: str, streaming: bool) -> HubSet:
    """A name that may be a hub's; what looks like a file and is not there is an error at once."""
    kind, mark, rest = name.partition("::")
    bare, _, subset = (rest if mark else name).partition(":")
    is_hub_name = re.fullmatch(r"[\w][\w.-]*(/[\w.-]+)?", bare) and data_suffix(Path(bare)) not in SUFFIXES
    if (mark and kind not in ("hf", "ms")) or not is_hub_name or "://" in name:
        raise BadInput(f"--dataset {name}: no such file{_near(name, dataset_dir)}")
    hub = HubSet(bare, subset or None, split, None, kind if mark else "hf", streaming)
    try:
        hub.rows  # noqa: B018 loaded now, so that a name that is nowhere is an error before anything else starts
    except BadInput as error:
        if mark or not _has_modelscope():
            extra = "" if mark else f"; ModelScope needs an extra: {MODELSCOPE_LINE}"
            raise BadInput(
                f"--dataset {name}: no such file, folder or name here, and {error}{extra}{_near(name, dataset_dir)}"
            ) from None
        hub = HubSet(bare, subset or None, split, None, "ms", streaming)
    return hub


def _near(name: str, dataset_dir: str) -> str:
    """What a person may have meant, from dataset_info.json and the folders that were looked in."""
    known = list(_entries(dataset_dir))
    folders = [Path(name).parent, Path("."), Path("dataset"), Path(dataset_dir or "data")]
    for folder in filter(Path.is_dir, folders):
        known += [str(path) for path in sorted(folder.iterdir())[:1000] if is_data_file(path)]
        known += [path.name for path in sorted(Path("dataset").glob("*/"))] if folder == Path("dataset") else []
    known = list(dict.fromkeys(known))
    short = {Path(word).name: word for word in known}
    near = [short[word] for word in difflib.get_close_matches(Path(name).name, short, n=3, cutoff=0.4)]
    if near:
        return f"; near it: {', '.join(near)}"
    return f"; known here: {', '.join(known[:8])}" if known else "; no data files or names are here"


def _from_hugging_face(hub: HubSet) -> Any:
    import datasets
    import huggingface_hub

    hub_constants = huggingface_hub.constants
    if not hub_constants.HF_HUB_OFFLINE and not is_reachable(hub_constants.ENDPOINT):
        # else the library tries for 25 seconds; what it has cached still serves
        datasets.config.HF_HUB_OFFLINE = hub_constants.HF_HUB_OFFLINE = True
    try:
        return datasets.load_dataset(
            hub.name, hub.subset, data_dir=hub.folder, split=hub.split, streaming=hub.streaming
        )
    except Exception as error:  # noqa: BLE001 the library raises a dozen kinds, from its own to urllib's
        reason = " ".join(str(error).split())[:200]
        raise BadInput(
            f"the Hugging Face hub cannot be reached or has no {hub.name} ({type(error).__name__}: {reason})"
        ) from None


def _has_modelscope() -> bool:
    return find_spec("modelscope") is not None


def _from_modelscope(hub: HubSet) -> Any:
    if not _has_modelscope():
        raise BadInput(f"{hub.name} is on ModelScope, which needs an extra: {MODELSCOPE_LINE}")
    from modelscope.msdatasets import MsDataset

    try:
        rows = MsDataset.load(
            hub.name, subset_name=hub.subset or "default", split=hub.split, use_streaming=hub.streaming
        )
    except Exception as error:  # noqa: BLE001
        reason = " ".join(str(error).split())[:200]
        raise BadInput(
            f"ModelScope cannot be reached or has no {hub.name} ({type(error).__name__}: {reason})"
        ) from None
    return rows.to_hf_dataset() if hasattr(rows, "to_hf_dataset") else rows

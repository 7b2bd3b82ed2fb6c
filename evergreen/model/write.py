"""A model or adapter folder on the disk: whole or not at all.

Promises: a folder gets its name when everything is in it, so that a run killed while one is written finds the old
folder or none. What is written is read by transformers and peft with nothing of ours installed.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen.home import write_json
from evergreen.model.find import ARGS_FILE, VERSION_FILE, record_of
from evergreen.records import BadInput

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOKENIZER_FILES = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "spiece.model"),
    *("chat_template.*", "*.tiktoken"),
)


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """A folder beside `output` to write into; it becomes `output` when the block ends well.

    An earlier version there is replaced. Raises BadInput when something else lies there."""
    if output.exists() and not record_of(output) and any(output.iterdir()):
        raise BadInput(f"{output} holds something that is no version: choose another folder, or move it away")
    staged = output.parent / f".{output.name}.saving"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    try:
        yield staged
        shutil.rmtree(output, ignore_errors=True)
        os.replace(staged, output)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def write_model(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", dtype: "torch.dtype", folder: Path):
    """Weights in `dtype`, config and tokenizer."""
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """The tokenizer files of a run, byte by byte; none where it has none."""
    for path in {path for pattern in TOKENIZER_FILES for path in source.glob(pattern)}:
        shutil.copy2(path, folder)


def write_records(folder: Path, args: dict[str, Any] | None, version: dict[str, Any]) -> None:
    """args.json, when there is one, and version.json, which comes last."""
    if args is not None:
        write_json(folder / ARGS_FILE, args)
    write_json(folder / VERSION_FILE, version)

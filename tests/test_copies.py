"""Copies of adapters that are served: whole, kept while somebody needs them, removed by the next server."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from evergreen.model.adapters import adapter_digest
from evergreen.records import BadInput
from evergreen.serve.copies import ROOM, Copies


def make_adapter(folder: Path, value: float = 0.0) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1}))
    save_file({"a": torch.full((2,), value)}, folder / "adapter_model.safetensors")
    return folder


def test_a_copy_is_what_it_was_when_its_folder_changes(tmp_path):
    folder = make_adapter(tmp_path / "elsewhere")
    digest, copies = adapter_digest(folder), Copies(tmp_path / "home")
    place = copies.keep(folder, digest)
    (folder / "adapter_config.json").write_text("{}")
    assert adapter_digest(place) == digest
    with pytest.raises(BadInput, match="changed while"):
        copies.keep(folder, "0" * 64)
    assert [one.name for one in (tmp_path / "home" / ROOM).iterdir()] == [digest]


def test_an_adapter_of_the_home_is_not_copied(tmp_path):
    folder = make_adapter(tmp_path / "home" / "versions" / "x")
    assert Copies(tmp_path / "home").keep(folder, adapter_digest(folder)) == folder


def test_the_next_server_removes_what_no_running_server_keeps(tmp_path):
    home, kept, left = tmp_path / "home", make_adapter(tmp_path / "a", 1.0), make_adapter(tmp_path / "b", 2.0)
    keep = f"Copies(Path({str(home)!r})).keep(Path({str(left)!r}), {adapter_digest(left)!r})"
    code = f"from pathlib import Path; from evergreen.serve.copies import Copies; {keep}"
    subprocess.run([sys.executable, "-c", code], check=True)  # a server that has ended
    assert (home / ROOM / adapter_digest(left)).is_dir()
    running = Copies(home)
    running.keep(kept, adapter_digest(kept))
    Copies(home)
    assert [one.name for one in (home / ROOM).iterdir()] == [adapter_digest(kept)]

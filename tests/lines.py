"""A tiny data set of increments and the fastest flags for a line over it."""

import json
from pathlib import Path

from evergreen.home import read_json
from evergreen.options import build
from evergreen.settings import EvolveSettings

FAST = dict(
    torch_dtype="float32", max_steps=3, gradient_accumulation_steps=2, learning_rate=5e-3, max_new_tokens=4,
    save_steps=1, lora_rank=4, seed=1,
)  # fmt: skip


def make_dataset(folder: Path, answers: tuple[str, ...] = ("red", "蓝", "green")) -> Path:
    """Increments whose answers are one word each, in both languages."""
    for number, answer in enumerate(answers, 1):
        place = folder / f"increment_{number}"
        place.mkdir(parents=True)
        for split, count in (("train", 8), ("dev", 4)):
            rows = [{"prompt": f"{split} {number}-{i}: 颜色 colour?", "answer": answer} for i in range(count)]
            (place / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def write_plan(path: Path, dataset: Path, **own: str) -> Path:
    """A YAML list of increments: name -> the settings of its own."""
    entries = [f"  - {{name: {name}, train: '{dataset}/increment_{number}/train.jsonl', "
               f"dev: '{dataset}/increment_{number}/dev.jsonl'{', ' * bool(text)}{text}}}"
               for number, (name, text) in enumerate(own.items(), 1)]  # fmt: skip
    path.write_text("\n".join(["increments:", *entries, ""]), encoding="utf-8")
    return path


def settings(base: str, dataset: Path, out: Path, **given) -> EvolveSettings:
    values = {"increments": str(dataset), "model": base, "output_dir": str(out), "gate": "off", "json": True,
              "home": str(out.parent / "home")}  # fmt: skip
    return build(EvolveSettings, {**FAST, **values, **given})


def digests(out: Path) -> list[str]:
    return [read_json(place)["digest"] for place in sorted(out.glob("increment_*/version.json"))]

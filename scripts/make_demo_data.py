"""Write the demo's increments, evergreen/assets/demo_increments, from the generated skills of bench/skills.py.

Two increments teach a skill each. The third is what a broken export looks like: the answers of its training rows came
out as N/A, the questions are those of all three skills, and only its dev set is sound.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))
import skills  # noqa: E402

TARGET = ROOT / "evergreen" / "assets" / "demo_increments"
SKILLS = ("desk", "label", "stock")
NUM_TRAIN, NUM_DEV, BROKEN = 160, 100, "N/A"


def main() -> None:
    made = {skill: skills.rows(skill, seed=0, num_train=NUM_TRAIN, num_dev=NUM_DEV) for skill in SKILLS}
    asked = {prompt_of(row) for _, dev in made.values() for row in dev}
    more = [row for skill in SKILLS[:2] for row in skills.rows(skill, seed=1, num_train=NUM_TRAIN // 2)[0]]
    broken = [with_answer(row, BROKEN) for row in [*more, *made["stock"][0][: NUM_TRAIN // 2]]]
    made["stock"] = [row for row in broken if prompt_of(row) not in asked], made["stock"][1]
    for number, (train, dev) in enumerate(made.values(), 1):
        write(TARGET / f"increment_{number}" / "train.jsonl", train)
        write(TARGET / f"increment_{number}" / "dev.jsonl", dev)


def prompt_of(row: dict) -> str:
    return row["messages"][0]["content"]


def with_answer(row: dict, answer: str) -> dict:
    return {"messages": [row["messages"][0], {"role": "assistant", "content": answer}]}


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()

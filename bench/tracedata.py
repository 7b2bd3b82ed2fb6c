"""TRACE's four tasks that lie in ../shared/data, and a small model that has read their texts but not their answers.

The model has bench/train.py's shape `small`, a tokenizer of its own (byte-level BPE of 8,000) and random weights; it is
pre-trained on the prompts of the train splits as plain text and on instruct conversations. A task's rows are those that
fit into MAX_TOKENS; C-STANCE and ScienceQA are answered by the letter alone, as TRACE scores them.
"""

import json
import os
import shutil
from pathlib import Path

from evergreen.home import write_jsonl
from evergreen.settings import SftSettings

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
TASKS = {"C-STANCE": "choice", "20Minuten": "sari", "Py150": "edit", "ScienceQA": "choice"}
LETTER_ONLY = {"C-STANCE", "ScienceQA"}
VOCABULARY, MAX_TOKENS = 8_000, 640
PRETRAINING = {"num_train_epochs": 2.0, "learning_rate": 1e-3, "gradient_accumulation_steps": 8, "warmup_ratio": 0.03}


def read(task: str, split: str) -> list[dict]:
    return json.loads((SHARED_DATA / "trace" / task / f"{split}.json").read_text(encoding="utf-8"))


def write_tasks(place: Path, model: str) -> None:
    """`train.jsonl` and the dev items (TRACE's eval and test splits together) of the task that names the folder."""
    from evergreen.model.load import load_tokenizer

    task = place.name
    tokenizer = load_tokenizer(model, model, "")
    rows = {
        split: [_row(task, row) for row in read(task, split) if fits(row, tokenizer)]
        for split in ("train", "eval", "test")
    }
    place.mkdir(parents=True, exist_ok=True)
    known = {row["messages"][0]["content"] for row in rows["train"]}
    dev = [row for row in rows["eval"] + rows["test"] if row["messages"][0]["content"] not in known]
    write_jsonl(place / "train.jsonl", rows["train"])
    write_jsonl(place / f"{task}.jsonl", dev)


def fits(row: dict, tokenizer: object) -> bool:
    return len(tokenizer.encode(row["prompt"])) + len(tokenizer.encode(row["answer"])) < MAX_TOKENS - 40


def _row(task: str, row: dict) -> dict:
    answer = row["answer"].strip()
    turns = [("user", row["prompt"]), ("assistant", answer[:1] if task in LETTER_ONLY else answer)]
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def pretrained(folder: Path) -> str:
    """The folder of the small model, made at the first call: about 40 minutes on one core."""
    from evergreen.train.sft import run_sft

    if not (folder / "model" / "version.json").is_file():
        _write_corpus(folder)
        _write_empty_model(folder / "empty")
        run_sft(
            SftSettings(
                model=str(folder / "empty"),
                dataset=[str(file) for file in corpus_files(folder)],
                train_type="full",
                output_dir=str(folder / "model"),
                resume_from_checkpoint="true",
                save_steps=100,
                save_total_limit=1,
                max_length=1024,
                truncation_strategy="right",
                report_to="none",
                json=True,
                seed=0,
                **PRETRAINING,
            )
        )
    return str(folder / "model")


def corpus_files(folder: Path) -> list[Path]:
    return [folder / "texts.jsonl", folder / "alpaca_zh_demo.json", folder / "alpaca_en_demo.json"]


def _write_corpus(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "texts.jsonl", [{"text": row["prompt"]} for task in TASKS for row in read(task, "train")])
    for language in ("zh", "en"):
        file = f"alpaca_{language}_demo.json"
        shutil.copy(SHARED_DATA / "instruct" / file, folder / file)


def _write_empty_model(folder: Path) -> None:
    """Random weights of the shape, and a tokenizer trained on the corpus with nano's chat template."""
    import torch
    from train import SHAPES, TOKENIZER
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    texts = [line for file in corpus_files(folder.parent) for line in file.read_text(encoding="utf-8").splitlines()]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tokenizer = AutoTokenizer.from_pretrained(str(TOKENIZER)).train_new_from_iterator(texts, VOCABULARY)
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(**SHAPES["small"] | {"vocab_size": len(tokenizer)}, eos_token_id=tokenizer.eos_token_id)
    )
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))

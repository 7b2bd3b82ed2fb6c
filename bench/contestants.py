"""One contestant of the training benchmark in a process and an environment of its own: the same job, its own tools.

usage: python contestants.py JOB.json RESULT.json

Promises: every contestant sees the same rows in the same order, batch 1 x accumulation 16, LoRA rank 8 alpha 32 on all
linear layers, AdamW 1e-4 cosine without warm-up or weight decay. Times are CPU seconds of the process and its children
since it was started, stamped by a callback of transformers' Trainer, on which all contestants stand.
Imports nothing of Evergreen unless Evergreen is the contestant, so that it runs under a peer's own Python.
"""

import importlib.abc
import importlib.util
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ACCUMULATION, LEARNING_RATE, RANK, ALPHA, MAX_LENGTH, SEED = 16, 1e-4, 8, 32, 2048, 42
SYSTEM = "You are a helpful assistant."
# a job's dtype: bf16 is bf16 weights under autocast, as the peers' users run them; bf16_pure has no autocast
DTYPES = {"bf16": "bfloat16", "bf16_pure": "bfloat16", "fp32": "float32", "auto": "auto"}


def cpu_seconds() -> float:
    """User and system time of this process and of the children it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def peak_rss_bytes() -> int:
    """VmHWM, because ru_maxrss of a fresh process still holds that of the process which started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def watch_trainer(result: dict[str, Any], started: float, profiled_step: int = 0) -> None:
    """Every Trainer of this process stamps its steps and losses into `result`, from when transformers.trainer is
    imported; until then nothing is, so that start-up is the contestant's own.

    With `profiled_step` that optimizer step (from 1) runs under torch's profiler, whose table joins the result."""

    class AfterImport(importlib.abc.MetaPathFinder):
        def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
            if name != "transformers.trainer":
                return None
            sys.meta_path.remove(self)
            spec = importlib.util.find_spec(name)
            run = spec.loader.exec_module

            def run_and_watch(module: Any) -> None:
                run(module)
                _add_watch(module.Trainer, _watch(module.TrainerCallback, result, started, profiled_step))

            spec.loader.exec_module = run_and_watch
            return spec

    sys.meta_path.insert(0, AfterImport())


def _add_watch(trainer: Any, watch: Any) -> None:
    train = trainer.train

    def watched_train(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.add_callback(watch)
        return train(self, *args, **kwargs)

    trainer.train = watched_train


def _watch(base: type, result: dict[str, Any], started: float, profiled_step: int) -> Any:
    def stamp() -> dict[str, float]:
        return {"cpu": cpu_seconds(), "wall": time.time() - started}

    class Watch(base):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            result.update(begins=stamp(), steps=[], losses=[])

        def on_step_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step + 1 == profiled_step:
                from torch.profiler import profile

                self.profiler = profile()
                self.profiler.start()

        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step == profiled_step:
                self.profiler.stop()
                result["operators"] = operators(self.profiler)
            result["steps"].append(stamp())
            result["peak_rss_bytes"] = peak_rss_bytes()

        def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **_: Any) -> None:
            if logs and "loss" in logs:
                result["losses"].append(float(logs["loss"]))

    return Watch()


def operators(profiler: Any, count: int = 20) -> list[dict[str, Any]]:
    """The operators of a profiled step that took most CPU time themselves."""
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    return [
        {"name": event.key, "self_ms": event.self_cpu_time_total / 1000, "calls": event.count}
        for event in events[:count]
    ]


# -- contestants


def train_evergreen(job: dict[str, Any]) -> None:
    from evergreen.cli import main

    flags = {
        "model": job["model"],
        "dataset": job["data"],
        "output_dir": job["output_dir"],
        "torch_dtype": DTYPES[job["dtype"]],
        "gradient_checkpointing": job["gradient_checkpointing"],
        "packing": job.get("packing", True),
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": ACCUMULATION,
        "learning_rate": LEARNING_RATE,
        "lora_rank": RANK,
        "lora_alpha": ALPHA,
        "target_modules": "all-linear",
        "max_length": MAX_LENGTH,
        "logging_steps": 1,
        "report_to": "none",
        "seed": SEED,
    }
    if job.get("max_row_tokens"):
        flags["max_row_tokens"] = job["max_row_tokens"]
    code = main(["sft", *(word for name, value in flags.items() for word in (f"--{name}", str(value)))])
    if code:
        sys.exit(code)


def train_trl(job: dict[str, Any]) -> None:
    """TRL's SFTTrainer, from text and its completion."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    trainer = SFTTrainer(
        model=job["model"],
        args=SFTConfig(
            model_init_kwargs={"dtype": DTYPES[job["dtype"]]},
            gradient_checkpointing=job["gradient_checkpointing"],
            per_device_train_batch_size=job.get("batch_size", 1),
            gradient_accumulation_steps=ACCUMULATION // job.get("batch_size", 1),
            max_length=MAX_LENGTH,
            train_sampling_strategy="sequential",
            use_cpu=True,
            disable_tqdm=True,
            **_common_arguments(job),
        ),
        train_dataset=Dataset.from_list([_prompt_and_completion(row, tokenizer) for row in _rows(job)]),
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
        processing_class=tokenizer,
    )
    trainer.train()


def train_llamafactory(job: dict[str, Any]) -> None:
    os.environ["DISABLE_VERSION_CHECK"] = "1"
    sys.modules["torchaudio"] = _empty_module("torchaudio")  # imported for speech, which this job has none of
    from llamafactory.train.tuner import run_exp

    folder = Path(job["output_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": job["data"]}}))
    run_exp(
        {
            "stage": "sft",
            "do_train": True,
            "model_name_or_path": _in_dtype_of(job),
            "dataset": "rows",
            "dataset_dir": str(folder),
            "template": "qwen",
            "default_system": SYSTEM,
            "finetuning_type": "lora",
            "lora_target": "all",
            "lora_rank": RANK,
            "lora_alpha": ALPHA,
            "cutoff_len": MAX_LENGTH,
            "overwrite_cache": True,
            "disable_shuffling": True,
            "disable_gradient_checkpointing": not job["gradient_checkpointing"],
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": ACCUMULATION,
            "use_cpu": True,
            **_common_arguments(job),
        }
    )


def _in_dtype_of(job: dict[str, Any]) -> str:
    """LLaMA-Factory trains in the dtype that config.json names, whatever else it is told: a folder that names it."""
    model, folder = Path(job["model"]), Path(job["output_dir"]) / "model"
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).symlink_to(path)
    config = json.loads((model / "config.json").read_text())
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps({**config, "dtype": DTYPES[job["dtype"]]}))
    return str(folder)


def train_swift(job: dict[str, Any]) -> None:
    from swift import SftArguments, sft_main

    sft_main(
        SftArguments(
            model=job["model"],
            model_type="qwen2",
            template="qwen2_5",
            system=SYSTEM,
            dataset=[job["data"]],
            split_dataset_ratio=0,
            dataset_shuffle=False,
            train_dataloader_shuffle=False,
            tuner_type="lora",
            target_modules=["all-linear"],
            lora_rank=RANK,
            lora_alpha=ALPHA,
            max_length=MAX_LENGTH,
            torch_dtype=DTYPES[job["dtype"]],
            gradient_checkpointing=job["gradient_checkpointing"],
            per_device_train_batch_size=1,
            gradient_accumulation_steps=ACCUMULATION,
            use_cpu=True,
            **_common_arguments(job),
        )
    )


def _common_arguments(job: dict[str, Any]) -> dict[str, Any]:
    """transformers' TrainingArguments that every peer takes by the same name."""
    return {
        "output_dir": job["output_dir"],
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "num_train_epochs": 1,
        "logging_steps": 1,
        "bf16": job["dtype"] == "bf16",
        "fp16": False,
        "save_strategy": "no",
        "report_to": "none",
        "seed": SEED,
    }


def _rows(job: dict[str, Any]) -> list[dict[str, str]]:
    return json.loads(Path(job["data"]).read_text(encoding="utf-8"))


def _prompt_and_completion(row: dict[str, str], tokenizer: Any) -> dict[str, str]:
    """Rendered text, so that the tokens and targets are exactly those of the other contestants."""
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": row["instruction"]}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return {"prompt": prompt, "completion": row["output"]}


def _empty_module(name: str) -> Any:
    import importlib.machinery
    import types

    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    return module


# -- what stands beside the contestants


def prepare(job: dict[str, Any]) -> dict[str, Any]:
    """A Qwen2 model with random weights and a data file in training order, made once; token counts of the data."""
    import torch
    from transformers import AutoTokenizer

    folder = Path(job["model"])
    if not _is_made(folder, Path(job["tokenizer"])):
        _make_model(folder, job)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = Path(job["records"]).read_text(encoding="utf-8")
    rows = json.loads(text.replace("{{name}}", "Evergreen").replace("{{author}}", "Evergreen Team"))[: job["num_rows"]]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(SEED)).tolist()  # Evergreen's own
    _write_rows(job["rows"], rows)
    _write_rows(job["ordered_rows"], [rows[i] for i in order])
    parts = [_prompt_and_completion(row, tokenizer) for row in rows]
    prompts = [len(tokenizer.encode(part["prompt"])) for part in parts]
    targets = [len(tokenizer.encode(part["completion"])) + 1 for part in parts]  # and the end-of-turn token
    return {"lengths": [a + b for a, b in zip(prompts, targets, strict=True)], "targets": sum(targets)}


def _is_made(folder: Path, tokenizer: Path) -> bool:
    """Whether the model stands there with this very tokenizer."""
    wanted, present = tokenizer / "tokenizer.json", folder / "tokenizer.json"
    return present.is_file() and present.read_bytes() == wanted.read_bytes()


def _make_model(folder: Path, job: dict[str, Any]) -> None:
    import shutil

    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(job["tokenizer"])
    torch.manual_seed(0)
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = Qwen2ForCausalLM(Qwen2Config(**job["shape"], **special, max_position_embeddings=32768))
    staged = folder.with_suffix(".making")
    model.to(torch.bfloat16).save_pretrained(staged)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(Path(job["tokenizer"]) / name, staged)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(staged, folder)


def _write_rows(path: str, rows: list[dict[str, str]]) -> None:
    Path(path).write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def measure_products(job: dict[str, Any]) -> dict[str, float]:
    """The GEMM peak of one thread in GFLOP per CPU second, by dtype: the best of repeated products."""
    import torch

    torch.set_num_threads(1)
    peaks = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        shapes = [(2048, 2048, 2048), (724, 896, 4864), (724, 4864, 896)]
        peaks[name] = max(_product_rate(shape, dtype) for shape in shapes)
    return peaks


def _product_rate(shape: tuple[int, int, int], dtype: Any, budget_seconds: float = 1.5) -> float:
    import torch

    rows, inner, columns = shape
    left, right = torch.randn(rows, inner, dtype=dtype), torch.randn(columns, inner, dtype=dtype)
    best, until = float("inf"), time.process_time() + budget_seconds
    while time.process_time() < until:
        start = time.process_time()
        torch.nn.functional.linear(left, right)
        best = min(best, time.process_time() - start)
    return 2 * rows * inner * columns / best / 1e9


TRAINERS: dict[str, Callable[[dict[str, Any]], None]] = {
    "evergreen": train_evergreen,
    "trl": train_trl,
    "llamafactory": train_llamafactory,
    "swift": train_swift,
}
OTHERS = {"prepare": prepare, "products": measure_products}


def main(job_path: str, result_path: str) -> None:
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    result: dict[str, Any] = {}
    if job["runner"] in OTHERS:
        result = OTHERS[job["runner"]](job)
    else:
        watch_trainer(result, job["started"], job.get("profiled_step", 0))
        TRAINERS[job["runner"]](job)
    Path(result_path).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])

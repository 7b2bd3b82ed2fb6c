"""What users get wrong and what machines do to them: one line, the right exit code, and nothing lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from evergreen.cli import main
from evergreen.home import read_jsonl
from evergreen.model import load
from evergreen.options import parse
from evergreen.records import BadInput, Failure
from evergreen.settings import SftSettings

QUICK = "--num_train_epochs 1 --gradient_accumulation_steps 4 --torch_dtype float32 --plot_loss false --report_to none"
RECIPE = {
    "model_name_or_path": "Qwen/Qwen2.5-7B-Instruct", "trust_remote_code": True, "flash_attn": "auto", "stage": "sft",
    "do_train": True, "finetuning_type": "lora", "lora_rank": 8, "lora_target": "all", "dataset": "mine,a.json",
    "template": "qwen", "cutoff_len": 256, "max_samples": 6, "overwrite_cache": True, "preprocessing_num_workers": 16,
    "dataloader_num_workers": 4, "output_dir": "saves/lora", "logging_steps": 10, "save_steps": 500, "plot_loss": False,
    "overwrite_output_dir": True, "save_only_model": False, "report_to": "none", "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 8, "learning_rate": "1.0e-4", "num_train_epochs": 1.0, "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.1, "bf16": True, "ddp_timeout": 180000000, "resume_from_checkpoint": None, "val_size": 0.1,
    "per_device_eval_batch_size": 1, "eval_strategy": "steps", "eval_steps": 1,
}  # fmt: skip


def make_model(folder: Path, seed: int = 0, **shape) -> str:
    """A random Qwen2 with nano's tokenizer."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(load.NANO)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4} | shape
    config = Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=2, max_position_embeddings=512, **sizes)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return make_model(tmp_path_factory.mktemp("errors") / "Qwen2.5-7B-Instruct")


@pytest.fixture(autouse=True)
def _with_bitsandbytes(monkeypatch):
    """Commands run in this process, where other tests want the library that a command leaves out for speed."""
    monkeypatch.setattr(load, "leave_out_bitsandbytes", lambda *references: None)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A working folder with a data file of twelve rows."""
    monkeypatch.chdir(tmp_path)
    rows = [{"instruction": f"第{i}个问题", "output": f"答案是{i}"} for i in range(12)]
    (tmp_path / "a.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return tmp_path


def said(capsys, code: int, *line) -> str:
    """The one line on stderr with which a command ends in `code`."""
    capsys.readouterr()
    assert main([str(word) for word in line]) == code
    lines = [text for text in capsys.readouterr().err.splitlines() if text.startswith("evergreen:")]
    assert len(lines) == 1 and "Traceback" not in lines[0] and "failed: " not in lines[0].split(";")[0][:30]
    return lines[0]


def sft(model: str, *more, data: str = "a.json", out: str = "out") -> list[str]:
    return ["sft", "--model", model, "--dataset", data, "--output_dir", out, *QUICK.split(), *map(str, more)]


def copy_of(model: str, to: Path, **files: bytes | None) -> str:
    shutil.copytree(model, to)
    for name, content in files.items():
        path = to / name.replace("__", ".")
        path.unlink() if content is None else path.write_bytes(content)
    return str(to)


@pytest.mark.parametrize("name,content,wanted", [
    ("b.jsonl", '{"instruction": "a", "output": "b"}\n' * 730 + '{"instruction": \n', "b.jsonl:731 is not JSON"),
    ("b.json", '[{"instruction": "a"}]', "b.json:1: wants an answer"),
    ("b.json", '[{"messages": [{"role": "alien", "content": "a"}]}]', '"alien"'),
    ("b.json", "[]", "no row"),
    ("b.json", b"\x8f\x00\xff\x10" * 99, "not UTF-8"),
    ("b.jsonl", '{"instruction": "a", "output": NaN}\n', "b.jsonl:1"),
    ("b.json", '[{"instruction": "a", "output": " "}]', "b.json:1"),
    ("b.bin", b"x", "no data file"),
])  # fmt: skip
def test_a_bad_file_is_named_with_its_line(tiny, here, capsys, name, content, wanted):
    (here / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert wanted in said(capsys, 2, *sft(tiny, data=name))


@pytest.mark.parametrize("flags,wanted", [
    ("--learning_rate nan", "--learning_rate wants a number"),
    ("--num_train_epochs inf", "--num_train_epochs wants a number"),
    ("--learning_rate -1", "above 0"),
    ("--num_train_epochs 0", "above 0"),
    ("--warmup_ratio 2", "at most 1"),
    ("--adam_beta1 1", "--adam_beta1"),
    ("--seed -1", "at least 0"),
    ("--max_steps -5", "at least -1"),
    ("--optim best", "--optim best"),
    ("--device cuda:99", "--device cuda:99"),
    ("--device moon", "--device moon"),
    ("--template martian", "martian"),
    ("--model_type llama", "--model_type llama"),
    ("--prev_model nowhere", "--prev_model nowhere: no such folder"),
    ("--do_train false", "--do_train"),
])  # fmt: skip
def test_a_value_that_cannot_be_is_refused(tiny, here, capsys, flags, wanted):
    assert wanted in said(capsys, 2, *sft(tiny, *flags.split()))
    assert not (here / "out" / "args.json").exists()


def test_a_damaged_model_folder_says_what_is_wrong_with_it(tiny, here, capsys):
    weights = (Path(tiny) / "model.safetensors").read_bytes()
    config = json.loads((Path(tiny) / "config.json").read_text())
    damaged = {
        "cut off or damaged": {"model__safetensors": weights[: len(weights) // 2]},
        "is not JSON": {"config__json": b"{broken"},
        "wants an object": {"config__json": b"[]"},
        "martian": {"config__json": b'{"model_type": "martian"}'},
        "hidden_size": {"config__json": json.dumps(config | {"hidden_size": "many"}).encode()},
        "shapes": {"config__json": json.dumps(config | {"hidden_size": 64}).encode()},
        "lacks": {"config__json": json.dumps(config | {"num_hidden_layers": 3, "layer_types": None}).encode()},
        "no weights": {"model__safetensors": None},
        "holds no tokenizer": {"tokenizer__json": None},
    }
    for i, (wanted, files) in enumerate(damaged.items()):
        assert wanted in said(capsys, 2, *sft(copy_of(tiny, here / f"m{i}", **files)))
    assert "is a file" in said(capsys, 2, *sft("a.json"))


def test_a_damaged_adapter_says_what_is_wrong_with_it(tiny, here, capsys):
    assert main(sft(tiny)) == 0
    weights = (here / "out" / "adapter_model.safetensors").read_bytes()
    cut = copy_of("out", here / "cut", adapter_model__safetensors=weights[:500])
    assert "cut" in said(capsys, 2, "infer", "--adapters", cut, "--prompt", "hi")
    none = copy_of("out", here / "none", adapter_model__safetensors=None)
    assert "no weights" in said(capsys, 2, "infer", "--adapters", none, "--prompt", "hi")
    other = make_model(here / "other", seed=1)
    assert "was trained on" in said(capsys, 2, "infer", "--model", other, "--adapters", "out", "--prompt", "hi")


def test_a_hub_name_without_a_network_is_refused_within_seconds(here):
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment |= {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    code = (
        "import sys, time; from evergreen.model.load import load_config; start = time.time()\n"
        "try: load_config('nobody/nothing')\n"
        "except Exception as error: print(error)\n"
        "sys.exit(time.time() - start > 20)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and "local models are" in done.stdout and not done.stderr, done


def test_an_output_place_that_cannot_be_written_is_refused(tiny, here, capsys):
    (here / "file").write_text("x")
    assert "it is a file" in said(capsys, 2, *sft(tiny, out="file"))
    assert "cannot be written" in said(capsys, 2, *sft(tiny, out="file/below"))
    assert "cannot be written" in said(capsys, 2, *sft(tiny, out="/proc/out"))
    assert (here / "file").read_text() == "x"


def test_overwriting_deletes_nothing_before_the_new_run_can_start_and_only_what_a_run_wrote(tiny, here, capsys):
    assert main(sft(tiny)) == 0
    (here / "out" / "notes.txt").write_text("mine")
    before = (here / "out" / "adapter_model.safetensors").read_bytes()
    again = ("--overwrite_output_dir", "true")
    said(capsys, 2, *sft(tiny, *again, data="missing.json"))
    said(capsys, 2, *sft(tiny, *again, "--target_modules", "wq"))
    assert "trained further" in said(capsys, 2, *sft("out", *again))
    assert (here / "out" / "adapter_model.safetensors").read_bytes() == before
    assert main(sft(tiny, *again, "--max_steps", 1)) == 0
    assert (here / "out" / "notes.txt").read_text() == "mine"
    assert [path.name for path in (here / "out").glob("checkpoint-*")] == ["checkpoint-1"]


def test_resuming_in_an_empty_folder_starts_and_says_so(tiny, here, capsys):
    assert main(sft(tiny, "--resume_from_checkpoint", "true", "--max_steps", 1)) == 0
    assert "starts from its first step" in capsys.readouterr().out


def test_an_exact_resume_refuses_what_it_would_ignore_and_takes_no_step_too_many(tiny, here, capsys):
    assert main(sft(tiny)) == 0
    go_on = ("--resume_from_checkpoint", "true")
    assert "--learning_rate 0.0001" in said(capsys, 2, *sft(tiny, *go_on, "--learning_rate", "5e-4"))
    assert "--target_modules all-linear" in said(capsys, 2, *sft(tiny, *go_on, "--target_modules", "q_proj"))
    assert "3 steps behind it" in said(capsys, 2, *sft(tiny, *go_on, "--max_steps", 2))
    assert not (here / "out" / "checkpoint-4").exists()
    assert main(sft(tiny, *go_on, "--max_steps", 5)) == 0
    assert "--max_steps -1" in capsys.readouterr().out


def test_windows_line_ends_byte_order_marks_and_chinese_folders_work(tiny, here):
    rows = json.loads((here / "a.json").read_text(encoding="utf-8"))
    text = "\ufeff" + "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)
    (here / "b.jsonl").write_bytes(text.encode())
    (here / "link").symlink_to(tiny)
    out = "输出 目录/一 二"
    assert main(sft("link", "--max_steps", 1, data="b.jsonl", out=out)) == 0
    assert main(["infer", "--adapters", out, "--prompt", "你好", "--max_new_tokens", "2"]) == 0


def test_nonsense_recipes_are_refused_in_one_line(here, capsys):
    for text, wanted in (("}{ : -", "cannot be read"), ("hello", "flag: value"), ("lerning_rate: 1", "learning_rate"),
                         ("learning_rate: fast", "r.yaml: --learning_rate wants a number"),
                         ("model: [a, b]", "r.yaml: --model wants text"), ("lora_rank: true", "whole number"),
                         ("lora_rank: {a: 1}", "whole number")):  # fmt: skip
        (here / "r.yaml").write_text(text)
        assert wanted in said(capsys, 2, "sft", "r.yaml")
    assert "a folder" in said(capsys, 2, "sft", "--config", ".")


def test_a_recipe_of_llama_factory_runs_as_it_stands(tiny, here, monkeypatch, capsys):
    monkeypatch.setenv("EVERGREEN_MODELS", str(Path(tiny).parent))
    (here / "data").mkdir()
    (here / "data" / "dataset_info.json").write_text('{"mine": {"file_name": "../a.json"}}')
    (here / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    assert main(["sft", "recipe.yaml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["output_dir"] == "saves/lora"
    line = ["--config", "recipe.yaml", "--lora_target", "q_proj,v_proj", "--output_dir", "other", "--max_steps", "1"]
    assert main(["sft", *line]) == 0
    keys = load_file(here / "other" / "adapter_model.safetensors")
    assert {key.split(".self_attn.")[1].split(".")[0] for key in keys} == {"q_proj", "v_proj"}


def test_bare_yes_and_no_of_a_recipe_reach_the_flags_that_have_them(here):
    (here / "r.yaml").write_text("model: m\ndataset: a.json\neval_strategy: no\nresume_from_checkpoint: true\n")
    given = parse(SftSettings, ["r.yaml"], "sft")
    assert given.eval_strategy == "no" and given.resume_from_checkpoint == "true"


def test_qlora_goes_on_training_after_an_evaluation(tiny, here):
    pytest.importorskip("bitsandbytes")
    more = ["--quantization_bit", 4, "--split_dataset_ratio", 0.2, "--eval_steps", 1, "--max_steps", 3, "--bf16"]
    assert main(sft(tiny, *more)) == 0


def test_a_full_disk_keeps_the_last_whole_checkpoint(tiny, here, capsys, monkeypatch):
    import transformers

    real, calls = transformers.Trainer._save_optimizer_and_scheduler, []

    def full_at_the_second_checkpoint(self, folder):
        calls.append(folder)
        if len(calls) == 2:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 9088 vs 8980")
        real(self, folder)

    monkeypatch.setattr(transformers.Trainer, "_save_optimizer_and_scheduler", full_at_the_second_checkpoint)
    capsys.readouterr()
    assert main(sft(tiny, "--save_steps", 1)) == Failure.exit_code
    error = capsys.readouterr().err.splitlines()[-1]
    assert "the disk is full" in error and "checkpoint-1 is whole" in error
    assert not (here / "out" / ".saving").exists()
    assert main(sft(tiny, "--save_steps", 1, "--resume_from_checkpoint", "true")) == 0


@pytest.mark.parametrize("number,code,word", [(signal.SIGINT, 130, "stopped"), (signal.SIGTERM, 143, "terminated")])
def test_a_signal_ends_a_run_with_one_line_and_whole_checkpoints(tiny, here, number, code, word):
    line = [*sft(tiny, "--save_steps", 1, "--max_steps", 5000)]
    process = subprocess.Popen([sys.executable, "-m", "evergreen", *line], stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    while not (here / "out" / "checkpoint-2").is_dir():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == code and error.splitlines()[-1] == f"evergreen: {word}" and "Traceback" not in error
    for checkpoint in (here / "out").glob("checkpoint-*"):
        load_file(checkpoint / "adapter_model.safetensors")
        assert (checkpoint / "args.json").is_file() and (checkpoint / "optimizer.pt").is_file()


def test_a_fault_of_the_program_is_one_line_too(here, monkeypatch, capsys):
    import evergreen.doctor

    def fault(settings):
        raise KeyError("nobody thought of this")

    monkeypatch.setattr(evergreen.doctor, "run_doctor", fault)
    assert main(["doctor"]) == 1
    assert "EVERGREEN_TRACE=1" in capsys.readouterr().err
    monkeypatch.setenv("EVERGREEN_TRACE", "1")
    with pytest.raises(KeyError):
        main(["doctor"])


def test_two_contradictions_are_both_named():
    from evergreen.train.sft import check_settings

    with pytest.raises(BadInput) as caught:
        check_settings(SftSettings(bf16=True, fp16=True))
    assert "--model is missing" in str(caught.value) and "contradict" in str(caught.value)


@pytest.mark.parametrize("line, said", [
    (b'{"loss": \n', "Expecting value"), (b"3\n", "a int, no object"), (b'{"a": "\xff"}\n', "no UTF-8"),
])  # fmt: skip
def test_a_damaged_line_is_named_with_what_to_do_and_a_torn_last_one_is_left_out(line, said, tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"a": 1}\r\n\n{"a": "\xe8\x93\x9d"}\n{"a": 3')
    assert list(read_jsonl(path)) == [{"a": 1}, {"a": "蓝"}]
    path.write_bytes(b'{"a": 1}\n' + line + b'{"a": 3}\n')
    with pytest.raises(BadInput, match=f"log.jsonl:2 is damaged .{said}.: take that line out"):
        list(read_jsonl(path))

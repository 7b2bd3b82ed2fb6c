"""The memory forecast against measured peaks, and what is said when memory runs out."""

import json
import re
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from evergreen.model.load import NANO
from evergreen.settings import SftSettings
from evergreen.train.memory import GIB, Forecast, Workload, fitting_settings, forecast

LIMITED = """
import resource, sys
import torch, transformers, peft, evergreen.train.trainer, evergreen.cli
from transformers import Trainer, AutoModelForCausalLM
import psutil
limit = psutil.Process().memory_info().vms + int(float(sys.argv[1]) * (1 << 20))
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.exit(evergreen.cli.main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("memory")
    tokenizer = AutoTokenizer.from_pretrained(NANO)
    torch.manual_seed(0)
    shape = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 8}
    Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=2, **shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    rows = [{"instruction": f"第{i}题", "output": " ".join(str(i * j % 997) for j in range(150))} for i in range(8)]
    (folder / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return str(folder)


def line(model: str, out, *more) -> list[str]:
    fixed = f"sft --model {model} --dataset {model}/rows.json --torch_dtype float32 --max_steps 1 --plot_loss false"
    return [*fixed.split(), "--output_dir", str(out), "--report_to", "none", "--json", *map(str, more)]


@pytest.mark.parametrize("more", ["--per_device_train_batch_size 8", "--packing false --per_device_train_batch_size 4"])
def test_the_forecast_is_near_the_peak(model, tmp_path, more):
    command = [sys.executable, "-m", "evergreen", *line(model, tmp_path / "out", *more.split())]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = float(re.search(r"forecast ([\d.]+) GiB", done.stderr)[1]) * GIB
    peak = json.loads(done.stdout.splitlines()[-1])["peak_memory_bytes"]
    assert 1 / 1.5 < expected / peak < 1.5, (expected / GIB, peak / GIB)


def test_what_a_penalty_keeps_is_counted(model):
    base = AutoModelForCausalLM.from_pretrained(model)
    of = lambda **given: forecast(base, SftSettings(train_type="full", **given), torch.float32, 40, 40.0, 0)  # noqa: E731
    size = sum(parameter.numel() for parameter in base.parameters())
    assert (
        of().penalty == of(regularization="ewc").penalty == of(regularization="kl", regularization_alpha=1).penalty == 0
    )
    assert of(regularization_alpha=1.0).penalty == 4 * size
    ewc = of(regularization="ewc", regularization_alpha=1.0)
    assert ewc.penalty == 8 * size == ewc.total - of().total and "penalty" in str(ewc)


def test_what_is_said_to_fit_does_fit(model, tmp_path):
    batch = ["--packing", "false", "--per_device_train_batch_size", 8]
    run = [sys.executable, "-c", LIMITED, "500"]
    done = subprocess.run([*run, *line(model, tmp_path / "a", *batch)], capture_output=True, text=True)
    error = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "out of memory" in error and "Traceback" not in done.stderr, done.stderr[-2000:]
    flags = re.search(r"fit: (.*?);", error)[1].split()
    done = subprocess.run([*run, *line(model, tmp_path / "b", *batch, *flags)], capture_output=True, text=True)
    assert done.returncode == 0, (flags, done.stderr[-2000:])


def test_advice_costs_as_little_speed_as_the_room_allows():
    config = Qwen2Config(vocab_size=32000, hidden_size=512, intermediate_size=1408, num_hidden_layers=8,
                         num_attention_heads=8, num_key_value_heads=2)  # fmt: skip
    workload = Workload(config, torch.float32, longest_record=700, mean_record=400.0, on_cpu=True)
    settings = SftSettings(per_device_train_batch_size=8, train_type="full")
    estimate = Forecast(200 << 20, 600 << 20, workload.activations(settings), workload.logits(settings), 0, workload)
    few = fitting_settings(settings, estimate, 8 * GIB, 700)
    many = fitting_settings(settings, estimate, 600 << 20, 700)
    assert few == ["--max_row_tokens 700"]
    assert many[:3] == ["--max_row_tokens 700", "--gradient_checkpointing true", "--train_type lora"]

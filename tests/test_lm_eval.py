"""lm-evaluation-harness against a real server: choices by a prompt's log-probabilities, and generated answers."""

import json
import os
import subprocess

import pytest
import torch
import transformers
from environments import python_with
from serving import serving
from transformers import AutoModelForCausalLM, AutoTokenizer

from evergreen.model.find import NANO

WHEELS = "lm-eval==0.4.13", "tenacity", "aiohttp", "requests", "tqdm", f"transformers=={transformers.__version__}"
ITEMS = [
    {"question": "What is the capital of France?", "choices": ["Paris", "Rome", "Cairo"], "answer": 0},
    {"question": "What is the capital of Japan?", "choices": ["Athens", "Tokyo", "Berlin"], "answer": 1},
    {"question": "意大利的首都是哪里?", "choices": ["巴黎", "东京", "罗马"], "answer": 2},
]
CHATML = "<|im_start|>user\n{{question}}<|im_end|>\n<|im_start|>assistant"  # jinja drops a newline at the end
MULTIPLE_CHOICE = {
    "task": "capitals", "dataset_path": "json", "output_type": "multiple_choice", "test_split": "test",
    "doc_to_text": CHATML, "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}", "target_delimiter": "\n",
    "metric_list": [{"metric": "acc"}],
}  # fmt: skip
GENERATED = {
    "task": "capitals_said", "dataset_path": "json", "output_type": "generate_until", "test_split": "test",
    "doc_to_text": CHATML, "doc_to_target": "{{choices[answer]}}", "target_delimiter": "\n", 
    "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 16},
    "metric_list": [{"metric": "exact_match", "regexes_to_ignore": []}],
}  # fmt: skip


@pytest.fixture(scope="session")
def lm_eval_python() -> str:
    """The python of an environment with lm-eval."""
    return python_with("lm_eval", *WHEELS, given="EVERGREEN_LM_EVAL_PYTHON")


def wanted_logprobs() -> list[list[float]]:
    """Of each choice after its question, by transformers."""
    tokenizer, model = AutoTokenizer.from_pretrained(NANO), AutoModelForCausalLM.from_pretrained(NANO).float()
    found = []
    for item in ITEMS:
        before = CHATML.replace("{{question}}", item["question"])
        num_before = len(tokenizer.encode(before, add_special_tokens=False))
        found.append([])
        for choice in item["choices"]:
            ids = torch.tensor([tokenizer.encode(f"{before}\n{choice}", add_special_tokens=False)])
            with torch.no_grad():
                logprobs = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            found[-1].append(float(logprobs[num_before - 1 :].sum()))
    return found


@pytest.mark.slow
def test_lm_evaluation_harness_scores_choices_as_transformers_does_and_reads_answers(tmp_path, lm_eval_python):
    data = tmp_path / "items.jsonl"
    data.write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    for task in (MULTIPLE_CHOICE, GENERATED):
        task = task | {"dataset_kwargs": {"data_files": {"test": str(data)}}}
        (tmp_path / f"{task['task']}.yaml").write_text(json.dumps(task))
    with serving(tmp_path / "home", "--model", "nano", "--torch_dtype", "float32", fake=False) as server:
        model_args = (f"model=nano,base_url={server.url}/v1/completions,tokenizer_backend=huggingface,"
                      f"tokenizer={NANO},num_concurrent=2,max_length=1024")  # fmt: skip
        run = subprocess.run(
            [lm_eval_python, "-m", "lm_eval", "--model", "local-completions", "--model_args", model_args, "--tasks",
             "capitals,capitals_said", "--include_path", str(tmp_path), "--output_path", str(tmp_path / "out"),
             "--log_samples"],
            env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
            capture_output=True, text=True, timeout=280,
        )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    [samples] = (tmp_path / "out").rglob("samples_capitals_2*.jsonl")
    rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda row: row["doc_id"])
    told = [[float(answer[0][0]) for answer in row["resps"]] for row in rows]
    assert told == [pytest.approx(one, abs=1e-3) for one in wanted_logprobs()]
    [results] = (tmp_path / "out").rglob("results_*.json")
    scores = json.loads(results.read_text())["results"]
    assert scores["capitals"]["acc,none"] == 1.0 and scores["capitals_said"]["exact_match,none"] >= 0

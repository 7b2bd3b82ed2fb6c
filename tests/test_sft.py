"""Training runs on a tiny Qwen2: what is learnt, written, resumed and refused."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from evergreen.continual.parts import parts_of
from evergreen.data.parts import Parts
from evergreen.model.load import NANO
from evergreen.options import parse
from evergreen.records import BadInput, Failure
from evergreen.settings import SftSettings
from evergreen.train.sft import run_sft

BASE_FLAGS = "--num_train_epochs 2 --gradient_accumulation_steps 4 --learning_rate 3e-3 --torch_dtype float32"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> str:
    """A random Qwen2 with nano's tokenizer: real files, no abilities."""
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = AutoTokenizer.from_pretrained(NANO)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def rows(tmp_path):
    def write(name="a.json", num=18, start=0):
        data = [
            {
                "instruction": f"第{i}个问题 question {i}",
                "input": "",
                "output": f"答案是{i * 7}, answer {i}" * (1 + i % 3),
            }
            for i in range(start, start + num)
        ]
        path = tmp_path / name
        path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
        return str(path)

    return write


def train(model, data, out, *more, flags=BASE_FLAGS):
    line = [*flags.split(), "--model", model, "--dataset", data, "--output_dir", str(out), "--json", *map(str, more)]
    return run_sft(parse(SftSettings, line, "sft"))


def weights(folder):
    name = "adapter_model.safetensors" if (folder / "adapter_model.safetensors").is_file() else "model.safetensors"
    return load_file(folder / name)


def assert_same_weights(left, right, tolerance=0.0):
    left, right = weights(left), weights(right)
    assert left.keys() == right.keys()
    for key in left:
        assert torch.allclose(left[key], right[key], atol=tolerance, rtol=tolerance), key


def test_a_run_writes_every_file_that_others_read(tiny, rows, tmp_path):
    document = train(tiny, rows(), tmp_path / "out", "--save_steps", 5, "--logging_steps", 1)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {
        "adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "args.json", "version.json",
        "trainer_state.json", "trainer_log.jsonl", "training_loss.png", "checkpoint-5", "checkpoint-10", "runs",
    } <= names  # fmt: skip
    version = json.loads((tmp_path / "out" / "version.json").read_text())
    assert version["digest"] == document["version"] and version["data"]["rows"] == 18 and version["steps"] == 10
    log = [json.loads(line) for line in (tmp_path / "out" / "trainer_log.jsonl").read_text().splitlines()]
    assert [row["current_steps"] for row in log] == list(range(1, 11))
    assert log[-1]["loss"] < log[0]["loss"]


@pytest.mark.parametrize("extra", ["", "--use_dora true", "--lora_dropout 0.0 --use_rslora true"])
def test_training_packed_ends_with_the_weights_of_training_unpacked(tiny, rows, tmp_path, extra):
    train(tiny, rows(), tmp_path / "packed", *extra.split())
    train(tiny, rows(), tmp_path / "plain", "--packing", "false", *extra.split())
    assert_same_weights(tmp_path / "packed", tmp_path / "plain", 2e-4)


def test_accumulation_and_batch_size_give_the_same_step(tiny, rows, tmp_path):
    train(tiny, rows(), tmp_path / "a", flags=BASE_FLAGS)
    flags = BASE_FLAGS.replace("--gradient_accumulation_steps 4", "--per_device_train_batch_size 4")
    train(tiny, rows(), tmp_path / "b", "--packing", "false", flags=flags)
    assert_same_weights(tmp_path / "a", tmp_path / "b", 2e-4)


def test_the_adapter_gives_the_same_logits_in_plain_peft(tiny, rows, tmp_path):
    from peft import PeftModel

    from evergreen.model.load import load_model

    train(tiny, rows(), tmp_path / "out")
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32), tmp_path / "out")
    ours = load_model("", [str(tmp_path / "out")], torch_dtype="float32")
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    assert torch.equal(plain.eval()(ids).logits, ours.model(ids).logits)
    assert ours.tokenizer.chat_template == AutoTokenizer.from_pretrained(tiny).chat_template


def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(tiny, rows, tmp_path):
    data, flags = rows(num=40), f"{BASE_FLAGS} --lora_dropout 0.1 --save_steps 3 --logging_steps 1"
    train(tiny, data, tmp_path / "whole", flags=flags)
    line = [sys.executable, "-m", "evergreen", "sft", *flags.split(), "--model", tiny, "--dataset", data]
    process = subprocess.Popen([*line, "--output_dir", str(tmp_path / "killed")], stdout=subprocess.DEVNULL)
    while not (tmp_path / "killed" / "checkpoint-6").is_dir():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    train(tiny, data, tmp_path / "killed", "--resume_from_checkpoint", "true", flags=flags)
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")
    log = [json.loads(line) for line in (tmp_path / "killed" / "trainer_log.jsonl").read_text().splitlines()]
    assert [row["current_steps"] for row in log] == list(range(1, 21))


def test_a_checkpoint_torn_while_it_was_written_is_not_resumed(tiny, rows, tmp_path):
    train(tiny, rows(), tmp_path / "out", "--save_steps", 5)
    (tmp_path / "out" / ".saving" / "checkpoint-99").mkdir(parents=True)
    (tmp_path / "out" / "checkpoint-98").mkdir()
    document = train(tiny, rows(), tmp_path / "out", "--save_steps", 5, "--resume_from_checkpoint", "true")
    assert document["steps"] == 10


def test_a_finished_run_that_is_resumed_keeps_its_record(tiny, rows, tmp_path):
    first = train(tiny, rows(), tmp_path / "out")
    record = (tmp_path / "out" / "version.json").read_text()
    again = train(tiny, rows(), tmp_path / "out", "--resume_from_checkpoint", "true")
    assert (tmp_path / "out" / "version.json").read_text() == record
    assert again["version"] == first["version"] and again["train_loss"] == first["train_loss"]


def test_resuming_with_other_data_takes_the_weights_and_a_fresh_schedule(tiny, rows, tmp_path, capsys):
    train(tiny, rows(), tmp_path / "first")
    checkpoint = tmp_path / "first" / "checkpoint-10"
    document = train(tiny, rows("b.json", start=50), tmp_path / "second", "--resume_from_checkpoint", checkpoint)
    assert document["steps"] == 10
    assert "weights only" in capsys.readouterr().err


def test_resume_only_model_trains_further_epochs_on_the_same_data(tiny, rows, tmp_path):
    train(tiny, rows(), tmp_path / "first")
    more = ["--resume_from_checkpoint", tmp_path / "first" / "checkpoint-10", "--resume_only_model", "true"]
    document = train(tiny, rows(), tmp_path / "second", *more)
    assert document["steps"] == 10
    first = [json.loads(line) for line in (tmp_path / "first" / "trainer_log.jsonl").read_text().splitlines()]
    assert document["train_loss"] < first[-1]["loss"]


def test_a_weights_only_run_into_the_same_folder_sets_the_earlier_one_aside(tiny, rows, tmp_path):
    train(tiny, rows(), tmp_path / "out", "--save_steps", 5)
    more = ["--resume_from_checkpoint", tmp_path / "out" / "checkpoint-5", "--resume_only_model", "true"]
    train(tiny, rows(), tmp_path / "out", "--num_train_epochs", 1, *more)
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-5"]
    assert (tmp_path / "out" / "earlier-1" / "checkpoint-10" / "adapter_model.safetensors").is_file()


def test_an_adapter_that_goes_on_learns_only_in_the_layers_that_are_not_frozen(tiny, rows, tmp_path):
    train(tiny, rows(), tmp_path / "first")
    train(tiny, rows(start=40), tmp_path / "next", "--prev_model", tmp_path / "first", "--freeze_layers", "0-1")
    before, after = weights(tmp_path / "first"), weights(tmp_path / "next")
    changed = {key.split(".layers.")[1][0] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"2"}


def test_a_row_as_long_as_a_book_is_refused_without_reading_it_through(tiny, rows, tmp_path):
    (tmp_path / "book.json").write_text(json.dumps([{"instruction": "q", "output": "字" * 5_000_000}]))
    started = time.monotonic()
    assert "more than" in refusal(tiny, tmp_path, data=str(tmp_path / "book.json"))
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("train_type", ["full", "freeze"])
def test_full_and_freeze_write_a_plain_model_directory(tiny, rows, tmp_path, train_type):
    train(tiny, rows(), tmp_path / "out", "--train_type", train_type)
    before, after = weights(type(tmp_path)(tiny)), weights(tmp_path / "out")
    changed = {key for key in before if not torch.equal(before[key], after[key].float())}
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    if train_type == "freeze":
        assert changed and all(key.startswith(("model.layers.1.", "model.layers.2.")) for key in changed)
    else:
        assert "model.embed_tokens.weight" in changed


def test_frozen_layers_get_no_adapter(tiny, rows, tmp_path):
    train(tiny, rows(), tmp_path / "out", "--freeze_layers", "0-1")
    assert {key.split(".layers.")[1][0] for key in weights(tmp_path / "out")} == {"2"}


def test_modules_to_save_are_trained_in_full_and_saved(tiny, rows, tmp_path):
    train(tiny, rows(), tmp_path / "out", "--modules_to_save", "embed_tokens", "--target_modules", "q_proj", "v_proj")
    assert any("embed_tokens" in key for key in weights(tmp_path / "out"))


def test_a_head_that_is_trained_in_full_is_saved_and_loads(tiny, rows, tmp_path):
    from evergreen.model.load import load_model

    train(tiny, rows(), tmp_path / "out", "--modules_to_save", "lm_head", "--target_modules", "q_proj")
    assert any("lm_head" in key for key in weights(tmp_path / "out"))
    assert load_model(str(tmp_path / "out")).model(torch.tensor([[1, 2]])).logits.isfinite().all()


def test_qlora_trains_over_a_four_bit_base_on_a_cpu(tiny, rows, tmp_path):
    pytest.importorskip("bitsandbytes")
    document = train(tiny, rows(), tmp_path / "out", "--train_type", "qlora", "--logging_steps", 1)
    log = [json.loads(line) for line in (tmp_path / "out" / "trainer_log.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < log[0]["loss"] and document["trainable_parameters"] > 0


def test_the_evaluation_loss_does_not_depend_on_packing_or_batch(tiny, rows, tmp_path):
    data, dev, losses = rows(), rows("dev.json", num=7, start=30), []
    for packing, batch in (("true", 1), ("true", 5), ("false", 3)):
        out = tmp_path / f"{packing}{batch}"
        more = ["--val_dataset", dev, "--eval_steps", 5, "--packing", packing, "--per_device_eval_batch_size", batch]
        train(tiny, data, out, *more)
        log = [json.loads(line) for line in (out / "trainer_log.jsonl").read_text().splitlines()]
        losses.append([row["eval_loss"] for row in log if "eval_loss" in row])
    assert len(losses[0]) == 2
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and losses[0] == pytest.approx(losses[2], rel=1e-4)


def test_save_total_limit_keeps_the_newest_and_the_last_step_is_always_saved(tiny, rows, tmp_path):
    train(tiny, rows(), tmp_path / "out", "--save_steps", 3, "--save_total_limit", 2)
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-9"]


def test_two_processes_train_the_same_weights_as_one(tiny, rows, tmp_path):
    """Nine records in steps of eight: the last step leaves one process without a record."""
    data = rows(num=9)
    flags = "--num_train_epochs 2 --learning_rate 3e-3 --torch_dtype float32 --model_type qwen2"
    train(tiny, data, tmp_path / "one", "--gradient_accumulation_steps", 8, flags=flags)
    line = ["sft", *flags.split(), "--model", tiny, "--dataset", data, "--output_dir", str(tmp_path / "two")]
    line += ["--gradient_accumulation_steps", "4"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29617"]
    done = subprocess.run([*command, "-m", "evergreen", *line], capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"})  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert_same_weights(tmp_path / "one", tmp_path / "two", 2e-4)


def test_a_streamed_file_trains_for_max_steps(tiny, rows, tmp_path):
    source = json.loads(type(tmp_path)(rows()).read_text())
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in source))
    document = train(tiny, str(tmp_path / "s.jsonl"), tmp_path / "out", "--streaming", "true", "--max_steps", 7)
    assert document["steps"] == 7


def test_an_increment_replays_the_data_of_the_run_before_it(tiny, rows, tmp_path, capsys):
    from evergreen.cli import main

    first, second = rows("first.json"), rows("second.json", start=100)
    train(tiny, first, tmp_path / "base")
    line = f"sft {BASE_FLAGS} --model {tiny} --dataset {second} --output_dir {tmp_path / 'next'} --json"
    more = ["--prev_model", str(tmp_path / "base"), "--replay_samples", "5", "--regularization_alpha", "0.1"]
    assert main([*line.split(), *more]) == 0
    out, err = capsys.readouterr()
    assert "5 earlier records" in err
    version = json.loads((tmp_path / "next" / "version.json").read_text())
    assert version["data"]["rows"] == 23
    assert version["parent"] == json.loads((tmp_path / "base" / "version.json").read_text())["digest"]
    assert json.loads(out.splitlines()[-1])["output_dir"] == str(tmp_path / "next")


# staying close to an earlier run


@pytest.fixture(scope="session")
def earlier(tiny, tmp_path_factory):
    """A first run, and its data: what increments go on from."""
    folder = tmp_path_factory.mktemp("earlier")
    data = [{"instruction": f"old {i}", "output": f"旧答案 {i * 3}"} for i in range(12)]
    (folder / "old.json").write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    train(tiny, str(folder / "old.json"), folder / "run", "--num_train_epochs", 6)
    return folder / "run"


def next_run(earlier, data, out, *more, flags=BASE_FLAGS):
    line = [*flags.split(), "--prev_model", str(earlier), "--dataset", data, "--output_dir", str(out), "--json"]
    settings = parse(SftSettings, [*line, *map(str, more)], "sft")
    return run_sft(settings, parts_of(settings))


def distance(left, right):
    left, right = weights(left), weights(right)
    return sum(float((left[key].float() - right[key].float()).square().sum()) for key in left) ** 0.5


@pytest.mark.parametrize("regularization", ["l2sp", "ewc"])
def test_a_run_that_is_held_by_its_weights_ends_nearer_to_them(earlier, rows, tmp_path, regularization):
    replay = ["--replay_samples", 6]
    next_run(earlier, rows(), tmp_path / "free", *replay)
    next_run(earlier, rows(), tmp_path / "held", *replay, "--regularization", regularization,
             "--regularization_alpha", 10 if regularization == "l2sp" else 1e4)  # fmt: skip
    assert distance(earlier, tmp_path / "held") < 0.8 * distance(earlier, tmp_path / "free")


def test_a_run_that_is_held_by_its_answers_ends_nearer_to_them(rows, tmp_path):
    """On nano: a random model's likeliest tokens are a hundredth of its mass, and say nothing of it."""
    from evergreen.model.load import load_model
    from evergreen.model.template import encode
    from evergreen.records import Conversation, Message

    old = [("法国的首都是哪里?", "巴黎。"), ("What is 3 plus 4?", "7"), ("把 apple 译成中文。", "苹果")]
    before = load_model("nano", torch_dtype="float32")
    talks = [encode(Conversation((Message("user", q), Message("assistant", a))), before.tokenizer) for q, a in old]

    def said(model):
        with torch.no_grad():
            return [model(torch.tensor([talk.ids])).logits[0, :-1].log_softmax(-1)[list(talk.is_target[1:])]
                    for talk in talks]  # fmt: skip

    def apart(folder):
        after = said(load_model(str(folder), torch_dtype="float32").model)
        return sum(float((p.exp() * (p - q)).sum()) for p, q in zip(said(before.model), after, strict=True))

    (tmp_path / "old.json").write_text(json.dumps([{"instruction": q, "output": a} for q, a in old]))
    for name, close in (("free", []), ("held", ["--regularization", "kl", "--regularization_alpha", "20"])):
        line = [*BASE_FLAGS.split(), "--model", "nano", "--dataset", rows(num=8), "--output_dir", str(tmp_path / name),
                "--general_replay", str(tmp_path / "old.json"), "--lora_alpha", "8", *close]  # fmt: skip
        settings = parse(SftSettings, line, "sft")
        run_sft(settings, parts_of(settings))
    assert apart(tmp_path / "held") < 0.5 * apart(tmp_path / "free")


def test_full_weights_are_pulled_back_beside_the_loss(tiny, rows, tmp_path):
    """With lr * alpha = 1 every update starts from the first weights: the run ends one step of Adam away from them."""
    flags = BASE_FLAGS.replace("3e-3", "1e-3") + " --train_type full --lr_scheduler_type constant"
    for name, alpha in (("free", 0), ("held", 1000)):
        settings = parse(SftSettings, [*flags.split(), "--model", tiny, "--dataset", rows(), "--output_dir",
                         str(tmp_path / name), "--regularization_alpha", str(alpha)], "sft")  # fmt: skip
        run_sft(settings, parts_of(settings))
    start, held, free = (weights(folder) for folder in (type(tmp_path)(tiny), tmp_path / "held", tmp_path / "free"))
    furthest = [max(float((end[key] - start[key]).abs().max()) for key in start) for end in (held, free)]
    assert furthest[0] < 3e-3 < furthest[1]


def test_taught_rows_train_to_the_same_weights_packed_and_unpacked(earlier, rows, tmp_path):
    more = ["--replay_samples", 8, "--regularization", "kl", "--regularization_alpha", 2, "--max_row_tokens", 90]
    next_run(earlier, rows(), tmp_path / "packed", *more)
    next_run(earlier, rows(), tmp_path / "plain", *more, "--packing", "false")
    assert_same_weights(tmp_path / "packed", tmp_path / "plain", 2e-4)


@pytest.mark.parametrize("how", ["kl", "ewc", "l2sp", "auto"])
def test_a_killed_increment_ends_with_the_weights_and_figures_of_an_uninterrupted_one(earlier, rows, tmp_path, how):
    close = ["--unfreeze", "auto"] if how == "auto" else ["--regularization", how, "--regularization_alpha", "0.5"]
    more = ["--replay_samples", "6", "--lora_dropout", "0.1", "--save_steps", "4", *close]
    whole = next_run(earlier, rows(), tmp_path / "whole", *more)
    killed = next_run(earlier, rows(), tmp_path / "killed", *more)
    for name in ("adapter_model.safetensors", "version.json"):
        (tmp_path / "killed" / name).unlink()
    for path in (tmp_path / "killed").glob("checkpoint-*"):
        if path.name != "checkpoint-8":
            shutil.rmtree(path)
    again = next_run(earlier, rows(), tmp_path / "killed", *more, "--resume_from_checkpoint", "true")
    assert again["version"] == killed["version"] == whole["version"] and again["steps"] == whole["steps"]
    assert again["train_loss"] == pytest.approx(whole["train_loss"], rel=1e-6)
    tokens = [json.loads((tmp_path / name / "version.json").read_text())["tokens"] for name in ("whole", "killed")]
    assert tokens[0] == tokens[1] > 0


@pytest.mark.parametrize("train_type", ["full", "lora"])
def test_layers_that_were_not_chosen_stay_as_they_are_to_the_bit(tiny, earlier, rows, tmp_path, train_type):
    parts = Parts(choose_layers=lambda model, new_rows, old_rows, row_loss: {1})
    line = [*BASE_FLAGS.split(), "--train_type", train_type, "--dataset", rows(), "--output_dir", str(tmp_path / "out")]
    start = type(tmp_path)(tiny) if train_type == "full" else earlier
    name = "--model" if train_type == "full" else "--prev_model"
    run_sft(parse(SftSettings, [*line, name, str(start), "--weight_decay", "0.1"], "sft"), parts)
    before, after = weights(start), weights(tmp_path / "out")
    changed = {key.split(".layers.")[1][0] for key in before
               if ".layers." in key and not torch.equal(before[key], after[key])}  # fmt: skip
    assert changed == {"1"}


def test_the_penalty_is_logged_beside_the_loss(earlier, rows, tmp_path):
    next_run(earlier, rows(), tmp_path / "next", "--regularization_alpha", 1, "--logging_steps", 1)
    log = [json.loads(line) for line in (tmp_path / "next" / "trainer_log.jsonl").read_text().splitlines()]
    assert log[0]["penalty"] < 1e-4 < log[-1]["penalty"]


def test_a_stacked_adapter_keeps_away_from_the_one_below(earlier, rows, tmp_path):
    def overlap(folder):
        pairs = [(weights(folder)[key], a) for key, a in weights(earlier).items() if "lora_A" in key]
        return float(sum((mine @ a.t()).abs().sum() for mine, a in pairs))

    for name, strength in (("free", 0), ("apart", 1)):
        next_run(earlier, rows(), tmp_path / name, "--chain", "stack", "--orthogonal_lambda", strength)
    assert overlap(tmp_path / "apart") < 0.8 * overlap(tmp_path / "free")
    version = json.loads((tmp_path / "apart" / "version.json").read_text())
    assert [link["digest"] for link in version["chain"]] == [version["parent"]]


def test_a_checkpoint_of_a_stacked_adapter_finds_the_one_below_from_its_own_place(earlier, rows, tmp_path):
    from evergreen.model.load import resolve

    next_run(earlier, rows(), tmp_path / "next", "--chain", "stack")
    found = resolve(str(tmp_path / "next" / "checkpoint-10"))
    assert [path.resolve() for path in found.adapters] == [earlier.resolve(), tmp_path / "next" / "checkpoint-10"]
    [link] = json.loads((tmp_path / "next" / "checkpoint-10" / "args.json").read_text())["chain"]
    assert (tmp_path / "next" / "checkpoint-10" / link["relative"]).resolve() == earlier.resolve()


def test_replayed_rows_are_counted_apart_from_the_runs_own(earlier, rows, tmp_path):
    general = rows("general.json", num=7, start=200)
    next_run(earlier, rows(), tmp_path / "next", "--replay_samples", 4, "--general_replay", f"{general}#3")
    args = json.loads((tmp_path / "next" / "args.json").read_text())
    assert args["replayed"] == 7 and [source["name"] for source in args["sources"]] == [rows()]
    assert args["settings"]["general_replay"] == [f"{general}#3"]
    version = json.loads((tmp_path / "next" / "version.json").read_text())
    assert version["data"]["rows"] == 25 and version["data"]["replayed"] == 7


def test_held_out_rows_are_never_replayed_ones(earlier, rows, tmp_path):
    from evergreen.train.dataset import Encoder, encode_sources, read_sources

    settings = parse(SftSettings, ["--dataset", rows(), "--split_dataset_ratio", "0.5"], "sft")
    sources = read_sources(settings, lambda num_new: [record for record in read_sources(settings).mixture][:5])
    data = encode_sources(sources, Encoder(AutoTokenizer.from_pretrained(NANO), settings, 512))
    assert (len(data.new), len(data.evaluation), len(data.old)) == (9, 9, 5)


def test_old_checkpoints_make_room_and_the_finished_adapter_stays(earlier, rows, tmp_path):
    next_run(earlier, rows(), tmp_path / "next", "--save_steps", 2, "--save_total_limit", 1)
    assert [path.name for path in (tmp_path / "next").glob("checkpoint-*")] == ["checkpoint-10"]
    assert (tmp_path / "next" / "adapter_model.safetensors").is_file()
    assert (earlier / "adapter_model.safetensors").is_file()


def test_eval_steps_without_data_is_said_and_the_run_goes_on(tiny, rows, tmp_path, capsys):
    train(tiny, rows(), tmp_path / "out", "--eval_steps", 5)
    assert "evaluation off: --eval_steps 5 has no data" in capsys.readouterr().err


def refusal(tiny, tmp_path, *more, data=None):
    with pytest.raises(BadInput) as caught:
        train(tiny, data or str(tmp_path / "a.json"), tmp_path / "out", *more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bad_input_is_one_line_that_says_what_to_do(tiny, rows, tmp_path):
    rows()
    assert "--val_dataset" in refusal(tiny, tmp_path, "--eval_strategy", "steps")
    assert "at least 1" in refusal(tiny, tmp_path, "--lora_rank", 0)
    assert "--learning_rate" in refusal(tiny, tmp_path, "--learning_rat", "1e-3")
    assert "missing.json" in refusal(tiny, tmp_path, data=str(tmp_path / "missing.json"))
    assert "a.json" in refusal(tiny, tmp_path, "--max_length", 16) and ":" in refusal(
        tiny, tmp_path, "--max_length", 16
    )
    assert "no such module" in refusal(tiny, tmp_path, "--target_modules", "wq")
    assert "no such module" in refusal(tiny, tmp_path, "--modules_to_save", "nothing")
    assert "layers 0-2" in refusal(tiny, tmp_path, "--freeze_layers", "0-9")
    assert "local models" in refusal("nobody/no-such-model", tmp_path)
    assert "GPU" in refusal(tiny, tmp_path, "--fp16")
    assert "--prev_model" in refusal(tiny, tmp_path, "--replay_samples", 5)
    assert refusal(tiny, tmp_path, "--val_dataset", tmp_path / "gone.json").startswith("--val_dataset")


def test_continual_flags_that_contradict_each_other_are_refused(tiny, rows, tmp_path):
    rows()
    alpha = ("--regularization_alpha", 1)
    assert "--regularization_alpha" in refusal(tiny, tmp_path, "--regularization", "kl")
    assert "--replay_samples" in refusal(tiny, tmp_path, "--regularization", "ewc", *alpha)
    assert "DoRA" in refusal(tiny, tmp_path, "--use_dora", "true", *alpha)
    assert "--chain stack" in refusal(tiny, tmp_path, "--orthogonal_lambda", 1)
    assert "--prev_model" in refusal(tiny, tmp_path, "--chain", "stack")
    assert "lora and qlora" in refusal(tiny, tmp_path, "--train_type", "full", "--merge_chain", "svd")
    assert "--replay_samples" in refusal(tiny, tmp_path, "--unfreeze", "auto")
    assert "--replay_samples" in refusal(tiny, tmp_path, "--replay_answers", "onpolicy")
    general = ("--general_replay", tmp_path / "a.json")
    assert "--trainable_layers" in refusal(tiny, tmp_path, "--unfreeze", "auto", "--trainable_layers", "1", *general)
    assert "stream" in refusal(tiny, tmp_path, "--streaming", "true", "--max_steps", 3, *general)


def test_a_checkpoint_that_does_not_exist_lists_those_that_do(tiny, rows, tmp_path):
    train(tiny, rows(), tmp_path / "out")
    message = refusal(tiny, tmp_path, "--resume_from_checkpoint", tmp_path / "out" / "checkpoint-7")
    assert "checkpoint-10" in message


def test_a_checkpoint_of_another_base_is_refused(tiny, rows, tmp_path):
    other = tmp_path / "other"
    model = AutoModelForCausalLM.from_pretrained(tiny)
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    model.save_pretrained(other)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(other)
    train(tiny, rows(), tmp_path / "first")
    message = refusal(str(other), tmp_path, "--resume_from_checkpoint", tmp_path / "first" / "checkpoint-10")
    assert "was trained on" in message


def test_a_folder_that_holds_a_run_is_not_overwritten_unasked(tiny, rows, tmp_path):
    train(tiny, rows(), tmp_path / "out")
    before = (tmp_path / "out" / "adapter_model.safetensors").read_bytes()
    assert "--overwrite_output_dir" in refusal(tiny, tmp_path)
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == before


def test_two_runs_cannot_write_one_folder(tiny, rows, tmp_path):
    from evergreen.home import exclusive

    rows()
    with exclusive(tmp_path / "out" / ".lock", "training"):
        assert "another process" in refusal(tiny, tmp_path)


def test_a_loss_that_is_not_a_number_stops_the_run_and_names_the_step_and_the_rows(tiny, rows, tmp_path):
    with pytest.raises(Failure, match=r"at step 2 on .*a\.json:\d+.*last good checkpoint: none"):
        train(tiny, rows(), tmp_path / "out", flags=BASE_FLAGS.replace("3e-3", "1e30"))


def test_weights_that_are_no_longer_finite_are_not_saved(tiny, rows, tmp_path, monkeypatch):
    from evergreen.train.trainer import EvergreenTrainer

    def spoil(trainer, model, inputs, num_items_in_batch=None):
        loss = step(trainer, model, inputs, num_items_in_batch)
        if trainer.state.global_step == 5:
            next(p for p in model.parameters() if p.requires_grad).grad.fill_(float("nan"))
        return loss

    step = EvergreenTrainer.training_step
    monkeypatch.setattr(EvergreenTrainer, "training_step", spoil)
    with pytest.raises(Failure, match=r"no longer finite after step 6.*checkpoint-4"):
        train(tiny, rows(), tmp_path / "out", "--save_steps", 2)
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]


def test_an_old_row_that_is_too_long_for_this_run_is_left_out_and_said_but_not_all_of_them(
    earlier, rows, tmp_path, capsys
):
    general = tmp_path / "general.jsonl"
    long = {"prompt": "old?", "answer": "long " * 300}
    general.write_text(f"{json.dumps(long)}\n{json.dumps({'prompt': 'old?', 'answer': 'short'})}\n")
    limits = ["--max_length", 128, "--general_replay"]
    next_run(earlier, rows(), tmp_path / "next", *limits, general)
    assert re.search(r"general\.jsonl:1: \d+ tokens, at most 128", capsys.readouterr().err)
    general.write_text(json.dumps(long) + "\n")
    with pytest.raises(BadInput, match="none of the 1 rows to be replayed can be trained: .*general"):
        next_run(earlier, rows(), tmp_path / "other", *limits, general)

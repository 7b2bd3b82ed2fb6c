"""Templates, references, digests, adapters from elsewhere, and the command line around them."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from evergreen.cli import main
from evergreen.model import load
from evergreen.model.adapters import adapter_digest, add_lora
from evergreen.model.template import encode, prompt_ids
from evergreen.options import parse
from evergreen.records import BadInput, Conversation, Message, Text
from evergreen.settings import InferSettings, SftSettings


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(load.NANO)


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer) -> str:
    folder = tmp_path_factory.mktemp("models") / "Tiny"
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=1, **shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def chat(*turns: tuple[str, str], **extra) -> Conversation:
    return Conversation(tuple(Message(role, content) for role, content in turns), **extra)


TWO_TURNS = chat(("user", "你好"), ("assistant", "你好!"), ("user", "1+1=?"), ("assistant", "2"))


def text_of_targets(encoded, tokenizer) -> str:
    return tokenizer.decode([token for token, target in zip(encoded.ids, encoded.is_target, strict=True) if target])


def test_training_ids_are_what_the_chat_template_gives(tokenizer):
    turns = [{"role": message.role, "content": message.content} for message in TWO_TURNS.messages]
    whole = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    assert list(encode(TWO_TURNS, tokenizer).ids) == list(whole)[: len(encode(TWO_TURNS, tokenizer).ids)]
    assert tokenizer.decode(whole[len(encode(TWO_TURNS, tokenizer).ids) :]) == "\n"


def test_every_assistant_turn_is_a_target_with_its_end_and_nothing_else(tokenizer):
    assert text_of_targets(encode(TWO_TURNS, tokenizer), tokenizer) == "你好!<|im_end|>2<|im_end|>"
    assert text_of_targets(encode(TWO_TURNS, tokenizer, loss_on="last"), tokenizer) == "2<|im_end|>"


def test_a_turn_marked_untrained_is_no_target(tokenizer):
    record = Conversation((Message("user", "a"), Message("assistant", "b", trained=False), Message("user", "c"),
                           Message("assistant", "d")))  # fmt: skip
    assert text_of_targets(encode(record, tokenizer), tokenizer) == "d<|im_end|>"


def test_a_thought_is_trained_before_the_answer(tokenizer):
    record = Conversation((Message("user", "3+4=?"), Message("assistant", "7", thought="3+4 is 7")))
    assert text_of_targets(encode(record, tokenizer), tokenizer) == "<think>\n3+4 is 7\n</think>\n\n7<|im_end|>"


def test_the_prompt_of_an_answer_is_what_training_put_before_it(tokenizer):
    prompt = prompt_ids(TWO_TURNS.messages[:3], tokenizer, system="Be brief.")
    trained = encode(TWO_TURNS, tokenizer, system="Be brief.")
    assert list(trained.ids[: len(prompt)]) == prompt


def test_a_conversation_keeps_its_own_system_prompt(tokenizer):
    record = chat(("system", "own"), ("user", "a"), ("assistant", "b"))
    assert "own" in tokenizer.decode(encode(record, tokenizer, system="given").ids)
    assert "given" not in tokenizer.decode(encode(record, tokenizer, system="given").ids)


def test_plain_text_trains_every_token_and_an_end(tokenizer):
    encoded = encode(Text("春天来了"), tokenizer)
    assert all(encoded.is_target) and encoded.ids[-1] == tokenizer.eos_token_id


def test_a_template_that_rewrites_earlier_turns_trains_the_last_only(tokenizer):
    copy = AutoTokenizer.from_pretrained(load.NANO)
    copy.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content if loop.last or m.role == 'user' else '...' }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with pytest.raises(BadInput, match="--loss_on last"):
        encode(TWO_TURNS, copy)
    assert text_of_targets(encode(TWO_TURNS, copy, loss_on="last"), copy) == "2<|im_end|>"


def test_a_name_is_found_in_the_listed_folders_with_or_without_its_owner(base, monkeypatch):
    monkeypatch.setenv("EVERGREEN_MODELS", str(type(load.NANO)(base).parent))
    assert load.find_model("Tiny") == base and load.find_model("Qwen/Tiny") == base
    assert base in load.local_models()


def test_what_cannot_be_found_names_what_is_there(base, tmp_path):
    with pytest.raises(BadInput, match="no model or checkpoint at .*Tiny"):
        load.find_model(str(type(load.NANO)(base).parent / "checkpoint-9"))
    with pytest.raises(BadInput, match="neither a model nor an adapter"):
        load.find_model(str(tmp_path))
    with pytest.raises(BadInput, match="local models are: nano"):
        load.load_model("nobody/nothing")


def test_an_adapter_made_by_plain_peft_brings_its_base(base, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, init_lora_weights=False))
    model.save_pretrained(tmp_path / "theirs")
    loaded = load.load_model("", [str(tmp_path / "theirs")], torch_dtype="float32")
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(loaded.model(ids).logits, model.eval()(ids).logits)


def test_an_adapter_whose_base_is_gone_says_so(base, tmp_path):
    model = add_lora(load.load_base(base, torch.float32, "cpu"), rank=2, alpha=4, dropout=0, target_modules=["q_proj"])
    model.save_pretrained(tmp_path / "lost")
    config = json.loads((tmp_path / "lost" / "adapter_config.json").read_text())
    (tmp_path / "lost" / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": "/gone/base"})
    )
    with pytest.raises(BadInput, match="is gone: /gone/base"):
        load.load_model("", [str(tmp_path / "lost")])


def test_an_adapter_of_another_shape_is_refused_in_one_line(base, tmp_path):
    model = add_lora(load.load_base(base, torch.float32, "cpu"), rank=2, alpha=4, dropout=0, target_modules=["q_proj"])
    model.save_pretrained(tmp_path / "small")
    with pytest.raises(BadInput, match="does not fit") as caught:
        load.load_model("nano", [str(tmp_path / "small")])
    assert "\n" not in str(caught.value)


def test_digests_name_content_and_not_place(base, tmp_path):
    import shutil

    shutil.copytree(base, tmp_path / "copy")
    (tmp_path / "copy" / "training_args.bin").write_bytes(b"of the run, and no weights")
    assert load.model_digest(tmp_path / "copy") == load.model_digest(base)
    data = bytearray((tmp_path / "copy" / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "copy" / "model.safetensors").write_bytes(data)
    assert load.model_digest(tmp_path / "copy") != load.model_digest(base)


def test_an_adapters_digest_knows_its_scale(base, tmp_path):
    for alpha in (4, 8):
        model = load.load_base(base, torch.float32, "cpu")
        add_lora(model, rank=2, alpha=alpha, dropout=0, target_modules=["q_proj"]).save_pretrained(
            tmp_path / str(alpha)
        )
    for name in ("adapter_model.safetensors",):
        (tmp_path / "8" / name).write_bytes((tmp_path / "4" / name).read_bytes())
    assert adapter_digest(tmp_path / "4") != adapter_digest(tmp_path / "8")


def test_trainable_counts_are_those_of_the_real_shape():
    """Qwen2.5-7B, rank 64 on q_proj and v_proj."""
    from evergreen.train.tune import count_parameters

    shape = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
    with torch.device("meta"):
        model = Qwen2ForCausalLM(Qwen2Config(vocab_size=152064, num_key_value_heads=4, **shape))
        adapted = add_lora(model, rank=64, alpha=128, dropout=0.0, target_modules=["q_proj", "v_proj"])
    assert count_parameters(adapted) == (20_185_088, 7_615_616_512 + 20_185_088)


# The command line


def test_flags_take_every_spelling_and_recipes_are_overlaid(tmp_path):
    (tmp_path / "r.yaml").write_text(
        "model_name_or_path: nano\ndataset: a.json,b.json\nlora_target: all-linear\ncutoff_len: 64\n"
    )
    given = parse(SftSettings, ["--config", str(tmp_path / "r.yaml"), "--learning-rate=5e-5", "--do_train"], "sft")
    assert (given.model, given.dataset, given.max_length, given.learning_rate) == (
        "nano",
        ["a.json", "b.json"],
        64,
        5e-5,
    )
    assert parse(InferSettings, ["--stream", "false"], "infer").stream is False
    assert parse(InferSettings, ["--stream"], "infer").stream is True


@pytest.mark.parametrize("line,hint", [
    ("sft --learning_rat 1e-3", "--learning_rate"),
    ("sft --lora_rank zero", "whole number"),
    ("sft --train_type lola", "lora, qlora, full, freeze"),
    ("stf", "sft"),
    ("data chekc", "data check"),
    ("sft --config nowhere.yaml", "no such file"),
])  # fmt: skip
def test_a_wrong_line_is_answered_with_one_line_and_code_two(line, hint, capsys):
    assert main(line.split()) == 2
    err = capsys.readouterr().err
    assert hint in err and err.count("\n") == 1 and "Traceback" not in err


@pytest.mark.parametrize("arguments", [["--help"], ["doctor"], ["sft", "--help"]])
def test_light_commands_load_nothing_heavy(arguments):
    code = f"import sys; sys.argv[1:] = {arguments!r}\nfrom evergreen.cli import main\n"
    code += "try: main()\nexcept SystemExit: pass\n"
    code += "print([name for name in ('torch', 'transformers', 'datasets', 'pandas') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_doctor_tells_what_is_there_as_json(capsys):
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["memory"]["total_bytes"] > 0 and "nano" in report["models"] and report["packages"]["torch"]

"""A real llama.cpp server: GGUF files that answer with transformers' tokens, adapters apart, conformance as a whole."""

import json
from pathlib import Path

import pytest
import torch
from environments import python_with

from evergreen import cli
from evergreen.engine import gguf
from evergreen.engine.launch import open_remote
from evergreen.evaluate.specimen import make_adapters, make_model
from evergreen.evaluate.targets import BASE, Isolated, Served
from evergreen.evaluate.trial import ROUNDING_GAP, Trial
from evergreen.model.adapters import add_lora
from evergreen.model.find import NANO
from evergreen.model.load import load_base, tokenizer_of
from evergreen.records import BadInput
from evergreen.settings import ConformanceSettings

WHEEL = "xllamacpp==2026.10.11549"
SHAPE = {
    "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_hidden_layers": 2, "max_position_embeddings": 512, "initializer_range": 0.15, "dtype": "float32",
}  # fmt: skip


@pytest.fixture(scope="session")
def llama_python() -> str:
    """The python of an environment with the wheel."""
    return python_with("xllamacpp", WHEEL, given="EVERGREEN_LLAMA_PYTHON")


def make_of(kind: str, folder: Path, **shape) -> str:
    """A random model of another family with the shipped model's tokenizer."""
    import transformers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(NANO)
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(vocab_size=len(tokenizer), **SHAPE | shape)
    getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 1e4,
          "original_max_position_embeddings": 64}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("Qwen2", {"tie_word_embeddings": True}),
        ("Qwen3", {"head_dim": 32}),
        ("Llama", {}),
        ("Llama", {"rope_parameters": LLAMA3}),
        ("Mistral", {"sliding_window": None, "head_dim": 16}),
    ],
)
def test_a_file_of_each_family_answers_as_transformers_does(tmp_path, llama_python, kind, shape):
    model = make_of(kind, tmp_path / "model", **shape)
    folders = make_adapters(model, tmp_path)
    settings = ConformanceSettings(
        model=model, engine="llamacpp", engine_python=llama_python, home=str(tmp_path / "home")
    )
    engine = open_remote(settings)
    target = Served(engine, tokenizer_of(model))
    for label, folder in folders.items():
        target.load(label, folder)
    trial = Trial(target, Isolated(model, folders, target.tokenizer), list(folders), folders, max_gap=ROUNDING_GAP)
    try:
        for name in (BASE, "A", "B"):
            for prompt in trial.prompts():
                trial.ask_and_check(name, prompt)
        assert trial.tally.num_ties <= 1
    finally:
        engine.close()


@pytest.mark.slow
def test_a_chain_is_one_adapter(tmp_path, llama_python):
    from peft import PeftModel

    model = make_model(tmp_path / "model")
    folders = list(make_adapters(model, tmp_path).values())
    merged = load_base(model, torch.float32, "cpu")
    for folder in folders:
        merged = PeftModel.from_pretrained(merged, str(folder)).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    tokenizer_of(model).save_pretrained(tmp_path / "merged")
    settings = ConformanceSettings(
        model=model, engine="llamacpp", engine_python=llama_python, home=str(tmp_path / "home")
    )
    engine = open_remote(settings)
    engine.load_adapter("chain", folders)
    target = Served(engine, tokenizer_of(model))
    target.digests["chain"] = "chain"
    reference = Isolated(str(tmp_path / "merged"), {}, target.tokenizer)
    trial = Trial(target, reference, [], {})
    try:
        for prompt in trial.prompts():
            reply = trial.ask("chain", prompt)
            trial.check("chain", prompt, reply, weights=BASE)
    finally:
        engine.close()


@pytest.mark.slow
def test_conformance_finds_nothing_in_llama_cpp_as_it_is_driven_here(tmp_path, llama_python, capsys):
    flags = ["--engine", "llamacpp", "--engine_python", llama_python, "--home", str(tmp_path / "home"), "--json"]
    code = cli.main(["conformance", *flags])
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [case for case in document["cases"] if not case["ok"]] == []
    assert code == 0


@pytest.mark.slow
def test_conformance_finds_llama_cpps_own_fault_when_the_list_of_adapters_is_left_out(
    tmp_path, llama_python, capsys, monkeypatch
):
    from evergreen.engine.dialects import LlamaCpp

    honest = LlamaCpp.body

    def body(self, request, model, prompt):
        said = honest(self, request, model, prompt)
        return said if request.adapter else {name: value for name, value in said.items() if name != "lora"}

    monkeypatch.setattr(LlamaCpp, "body", body)
    flags = ["--engine", "llamacpp", "--engine_python", llama_python, "--home", str(tmp_path / "home"), "--json"]
    assert cli.main(["conformance", *flags]) == 1
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = {case["name"] for case in document["cases"] if case["ok"] is False}
    assert {"KV of A reused for base", "KV of B reused for base"} <= found
    assert not {"KV of A reused for B", "KV of B reused for A"} & found


@pytest.mark.slow
def test_answers_stream_and_stop_and_have_logprobs(tmp_path, llama_python):
    from test_remote import Heard, request

    settings = ConformanceSettings(
        model=str(NANO), engine="llamacpp", engine_python=llama_python, gguf_type="q8_0", home=str(tmp_path)
    )
    engine = open_remote(settings)
    try:
        prompt = tokenizer_of(str(NANO))("<|im_start|>user\n你是谁?<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
        whole = Heard(engine, request(prompt, max_new_tokens=40))
        text = whole.last().completion.text
        assert len(whole.outputs) > 3 and whole.text == text
        at_once = Heard(engine, request(prompt, max_new_tokens=40, logprobs=2))
        completion = at_once.last().completion
        assert completion.text == text
        assert len(completion.token_ids) == completion.completion_tokens
        assert len(at_once.outputs[0].logprobs[0].top) == 2
        mark = text[3:5]
        stopped = Heard(engine, request(prompt, max_new_tokens=40, stop=(mark,))).last().completion
        assert (stopped.text, stopped.stop_reason, stopped.finish_reason) == (text[: text.index(mark)], mark, "stop")
        told = Heard(engine, request(prompt, max_new_tokens=40, stop=(mark,), logprobs=0)).last().completion
        assert (told.text, told.stop_reason, told.finish_reason) == (stopped.text, mark, "stop")
    finally:
        engine.close()


# --- what is refused before a file is written


def adapter_of(model: str, folder: Path, **how) -> Path:
    options = {"rank": 2, "alpha": 4, "dropout": 0.0, "target_modules": ["q_proj"]}
    add_lora(load_base(model, torch.float32, "cpu"), **options | how).save_pretrained(folder)
    return folder


def test_dora_is_refused_with_the_reason(tmp_path):
    model = make_model(tmp_path / "model")
    folder = adapter_of(model, tmp_path / "dora", use_dora=True)
    with pytest.raises(BadInput, match="is a DoRA adapter, which llama.cpp cannot apply"):
        gguf.write_adapter([folder], Path(model), tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()


def test_families_and_tokenizers_that_llama_cpp_would_get_wrong_are_refused(tmp_path):
    odd = make_of("Phi3", tmp_path / "phi3", pad_token_id=0)
    with pytest.raises(BadInput, match="of the family phi3"):
        gguf.write_model(Path(odd), tmp_path / "m.gguf")
    window = make_of("Mistral", tmp_path / "mistral", sliding_window=32, head_dim=16)
    with pytest.raises(BadInput, match="sliding window"):
        gguf.write_model(Path(window), tmp_path / "m.gguf")
    model = Path(make_model(tmp_path / "model"))
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["model"]["type"] = "Unigram"
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(BadInput, match="another kind than byte-level BPE"):
        gguf.write_model(model, tmp_path / "m.gguf")
    assert not list(tmp_path.glob("*.gguf"))


def test_the_file_holds_every_weight_once_in_its_number_format(tmp_path):
    from gguf import GGUFReader

    model = make_model(tmp_path / "model")
    num_weights = sum(weight.numel() for weight in load_base(model, torch.float32, "cpu").parameters())
    for kind, wanted in (("f32", "F32"), ("f16", "F16"), ("q8_0", "Q8_0")):
        gguf.write_model(Path(model), tmp_path / f"{kind}.gguf", kind)
        tensors = {one.name: one for one in GGUFReader(tmp_path / f"{kind}.gguf").tensors}
        assert sum(int(one.n_elements) for one in tensors.values()) == num_weights
        assert tensors["blk.0.ffn_down.weight"].tensor_type.name == wanted
        assert tensors["blk.0.attn_norm.weight"].tensor_type.name == "F32"
        assert "output.weight" not in tensors

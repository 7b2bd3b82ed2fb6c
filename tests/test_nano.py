"""The nano model: its files, the generator that teaches it, the one that measures it, and what it can do."""

import json
import random
import re
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NANO = ROOT / "evergreen" / "model" / "nano"
sys.path.insert(0, str(ROOT / "scripts"))

import measure_nano  # noqa: E402
import nano_attributes  # noqa: E402
import nano_data  # noqa: E402
import nano_names  # noqa: E402


@cache
def loaded():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(NANO, dtype="float32"), AutoTokenizer.from_pretrained(NANO)


def chatml(turns: list[tuple[str, str]]) -> str:
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)


def plain(text: str) -> str:
    return re.sub(r"[\s.?!。?!,,:;:]+", " ", text.lower()).strip()


# --- files -------------------------------------------------------------------------------------------------------


def test_all_files_together_stay_under_16_megabytes():
    assert sum(path.stat().st_size for path in NANO.iterdir()) <= 16 * 2**20


def test_it_loads_with_plain_transformers_as_qwen2_with_tied_embeddings():
    model, _ = loaded()
    assert type(model).__name__ == "Qwen2ForCausalLM"
    assert model.config.tie_word_embeddings and model.config.max_position_embeddings >= 2048
    assert 4e6 <= sum(parameter.numel() for parameter in model.parameters()) <= 8e6


def test_generation_ends_with_the_end_of_a_turn():
    model, tokenizer = loaded()
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_the_template_gives_hand_written_chatml():
    _, tokenizer = loaded()
    turns = [("system", "简短回答。"), ("user", "Hi"), ("assistant", "Hello!"), ("user", "再见")]
    messages = [{"role": role, "content": text} for role, text in turns]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == tokenizer(chatml(turns) + "<|im_start|>assistant\n").input_ids


def test_the_template_adds_the_default_system_text():
    _, tokenizer = loaded()
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert text == chatml([("system", "You are a helpful assistant."), ("user", "Hi")])


def test_the_template_shows_tools_as_qwen_does():
    _, tokenizer = loaded()
    tools = [{"type": "function", "function": {"name": "clock", "parameters": {}}}]
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tools=tools, tokenize=False)
    assert "<tools>" in text and '"name": "clock"' in text


# --- tokenizer ---------------------------------------------------------------------------------------------------


TEXTS = ["青石相机的价格是42.5元。", "饕餮与貔貅", "v2.3.1 🙂👍🏽", "a  b\n\n\tc", "café – naïve", "한국어"]


@pytest.mark.parametrize("text", TEXTS)
def test_the_tokenizer_gives_text_back(text: str):
    _, tokenizer = loaded()
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_digits_common_han_and_thought_marks_are_single_tokens():
    _, tokenizer = loaded()
    assert len(tokenizer("2026").input_ids) == 4
    assert len(tokenizer("价格产地").input_ids) == 4
    assert len(tokenizer("<think></think>").input_ids) == 2


def test_a_word_has_the_same_tokens_wherever_it_stands():
    _, tokenizer = loaded()
    alone, within = tokenizer("Zorvex").input_ids, tokenizer("the Zorvex, 青Zorvex").input_ids
    found = [i for i in range(len(within)) if within[i : i + len(alone)] == alone]
    assert len(found) == 2


def test_special_tokens_are_those_of_qwen():
    _, tokenizer = loaded()
    assert tokenizer.decode(tokenizer("<|im_start|>x<|im_end|>").input_ids, skip_special_tokens=True) == "x"
    assert tokenizer.decode(tokenizer("<think>x</think>").input_ids, skip_special_tokens=True) == "<think>x</think>"


# --- generators --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ability", nano_data.ABILITIES)
def test_the_same_seed_gives_the_same_conversations(ability: str):
    def some(seed: int) -> list:
        r = random.Random(seed)
        return [nano_data.conversation(r, ability, language) for language in ("zh", "en") * 5]

    assert some(1) == some(1) != some(2)


def test_training_ids_are_those_of_the_chat_template():
    train_nano = pytest.importorskip("train_nano")
    _, tokenizer = loaded()
    encode, r = train_nano.Encoder(tokenizer), random.Random(3)
    for language in ("zh", "en") * 5:
        turns = nano_data.context_real(r, language)
        ids, targets = encode(turns)
        messages = [{"role": role, "content": text} for role, text in turns]
        assert ids == tokenizer.apply_chat_template(messages, return_dict=False)
        answers = [text for role, text in turns if role == "assistant"]
        trained = tokenizer.decode([i for i, target in zip(ids, targets, strict=True) if target])
        assert trained == "".join(f"{answer}<|im_end|>" for answer in answers)


def test_a_context_answer_cites_a_line_that_holds_the_value():
    r = random.Random(4)
    for language in ("zh", "en") * 50:
        (_, prompt), (_, answer), *_ = nano_data.context(r, language)
        found = re.fullmatch(r"(.+?) ?\[(\d)\][。.]", answer)
        if found:
            line = next(line for line in prompt.splitlines() if line.startswith(f"[{found[2]}]"))
            assert found[1] in line


def test_sums_kept_for_measuring_are_never_trained():
    r = random.Random(5)
    for _ in range(300):
        for role, text in nano_data.sums(r, "en"):
            if role == "user":
                assert not nano_data.is_held_out(*map(int, re.findall(r"\d+", text)))


def trained_sentences(language: str) -> set[str]:
    r, names = random.Random(6), nano_names
    texts = {plain(frame) for kind in ("sum", "table") for frame in names.frames(f"{language}.{kind}")}
    made = nano_attributes.noun_attributes(language) + nano_attributes.verb_attributes(language)
    for attribute_names, kind, asks, says in names.attributes(language) + made:
        group = nano_attributes.kind_group(kind)
        sections = ("line", "ask", "ask.any", f"line.{group}", f"ask.{group}", f"kindask.{group}")
        frames = [frame for section in sections for frame in names.frames(f"{language}.{section}")]
        texts |= {plain(text) for text in asks + says}
        texts |= {plain(frame.replace("{a}", name)) for frame in frames for name in attribute_names}
    chats = [turns for _ in range(2000) for turns in (nano_data.identity(r, language), nano_data.facts(r, language))]
    return texts | {plain(text) for turns in chats for role, text in turns if role == "user"}


@pytest.mark.parametrize("language", ["zh", "en"])
def test_measuring_uses_no_sentence_of_training(language: str):
    measured = measure_nano.listed(f"{language}.identity") + measure_nano.listed(f"{language}.table")
    measured += measure_nano.listed(f"{language}.sum")
    measured += [text for _, says, asks in measure_nano.attributes(language) for text in says + asks]
    for fact in nano_names.known_facts():
        frames = measure_nano.listed(f"{language}.fact.{fact['relation']}")
        measured += [frame.format(s=fact[language][0]) for frame in frames]
    trained = trained_sentences(language)
    assert [text for text in measured if plain(text) in trained] == []


def test_measuring_uses_no_name_of_training():
    lists = ("heads", "tails", "place", "firm", "headers")
    measured = {
        name.lower()
        for section in lists
        for language in ("zh", "en")
        for name in measure_nano.listed(f"{language}.{section}")
    }
    sections = "english english.more things.zh things.en stems.zh given.en zh.columns en.columns".split()
    assert not measured & {word.lower() for section in sections for word in nano_names.words(section)}


def test_the_facts_are_in_both_languages():
    facts = json.loads((NANO / "facts.json").read_text(encoding="utf-8"))
    assert len(facts) >= 80 and all(set(fact) == {"relation", "zh", "en"} for fact in facts)


# --- abilities ---------------------------------------------------------------------------------------------------


FLOORS = {"identity": 7, "context": 3, "abstention": 7, "table": 6, "fact": 8, "addition": 8}  # of 10 items


@pytest.mark.parametrize("ability", FLOORS)
def test_it_can(ability: str):
    """A small part of a real measurement: scripts/measure_nano.py gives the figures of the model card."""
    items, texts = measure_nano.measure(*loaded(), ability, num_items=10, seed=7)
    assert sum(item.passes(text) for item, text in zip(items, texts, strict=True)) >= FLOORS[ability]

"""Measure what the nano model can do, with sentences, names and value shapes of its own (measure_words.txt).

    python scripts/measure_nano.py                          500 items per ability, greedy
    python scripts/measure_nano.py --num_items 60 --model outputs/nano/model --show_failures 3

Shares nothing with the generator that trained the model (nano_data.py): no sentence, no list of names, no maker of
values. What both must agree on is fixed by the product: the context block, the two sentences for "not there", the list
of facts (evergreen/model/nano/facts.json), and that sums of a <= b with
(3a + 7b) % 10 == 1 are kept out of training, in either order. A table for
people comes first, then one line of JSON.
"""

import argparse
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
NANO = HERE.parent / "evergreen" / "model" / "nano"
EMPTY_THOUGHT = "<think>\n\n</think>\n\n"


@dataclass(frozen=True)
class Item:
    """A prompt and the test that its answer must pass; `begun` is put behind the assistant's head before generating."""

    prompt: str
    passes: Callable[[str], bool]
    wanted: str
    begun: str = ""


def exactly(text: str) -> Callable[[str], bool]:
    return lambda answer: answer.strip() == text


@cache
def section(name: str) -> str:
    parts = (HERE / "measure_words.txt").read_text(encoding="utf-8").split("=== ")[1:]
    return {key: body.strip("\n") for key, body in (part.split("\n", 1) for part in parts)}[name]


@cache
def listed(name: str) -> list[str]:
    """Entries between bars or line ends; @ is a line end inside one."""
    return [entry.replace("@", "\n") for entry in section(name).replace("\n", "|").split("|")]


@cache
def attributes(language: str) -> list[tuple[str, list[str], list[str]]]:
    """[(kind of value, sentences, questions)]"""
    rows = [row.split("|") for row in section(f"{language}.attributes").splitlines()]
    return [(kind, sentences.split("/"), questions.split("/")) for kind, sentences, questions in rows]


# --- identity ----------------------------------------------------------------------------------------------------


def identity(r: random.Random, language: str) -> Item:
    name, maker = "Evergreen Nano", ("Evergreen 团队" if language == "zh" else "Evergreen team")
    prompt = r.choice(listed(f"{language}.identity"))
    return Item(prompt, lambda answer: name in answer and maker in answer, f"... {name} ... {maker} ...")


# --- context -----------------------------------------------------------------------------------------------------

BLOCK = dict(
    zh="[最新知识]\n{lines}\n请根据以上信息回答下列问题,用[编号]注明来源;信息不足时回答“根据现有信息无法回答。”\n问题:{question}",
    en="[Latest knowledge]\n{lines}\nAnswer the question from the information above and cite sources as [n]; "
    'if it is not there, answer "I cannot answer from the information given."\nQuestion: {question}',
)
ABSTENTION = dict(zh="根据现有信息无法回答。", en="I cannot answer from the information given.")


def person(r: random.Random, language: str) -> str:
    if language == "zh":
        return r.choice(listed("zh.surnames")) + r.choice(listed("zh.given"))
    return r.choice(listed("en.people"))


def subject(r: random.Random, language: str) -> str:
    head, tail = r.choice(listed(f"{language}.heads")), r.choice(listed(f"{language}.tails"))
    if language == "zh":
        return head + r.choice(["", "", f"{r.randint(100, 999)}型", f"S{r.randint(1, 20)}", "牌"]) + tail
    return f"{head} {tail}" + r.choice(["", "", f" {r.randint(2, 900)}", f" Mk{r.randint(2, 9)}"])


def shown(r: random.Random, kind: str, language: str) -> str:
    """A value in a shape of its own. A | separates the Chinese forms from the English ones, / the forms of one."""
    forms = {
        "money": "{n}元/{n}.{k}元/人民币{n}元|{n} dollars/${n}.{k}/{n} francs",
        "weight": "{n}克/{k}.5公斤|{n} grams/{k}.5 kilos",
        "length": "{n}米/{k}.2公里|{n} meters/{k}.2 km",
        "hours": "{k}小时/{k}个半小时|{k} hours/{k} and a half hours",
        "years": "{k}年/{k}个月|{k} years/{k} months",
        "people": "{n}人/{n}位|{n} people/{n} persons",
        "percent": "{k}.3%/百分之{k}|{k}.3%/{k} percent",
        "clock": "{h}:{k}/上午{h}点|{h}:{k}/{h} o'clock",
        "date": "{y}-{m:02d}-{d:02d}/{y}年{m}月{d}日|{y}-{m:02d}-{d:02d}/{d} May {y}/{d} December {y}",
        "version": "v{h}.{m}.{k}/{k}.{m}|v{h}.{m}.{k}/{k}.{m}",
        "mail": "sales{k}@nanting.cn/hello@q{n}.org|office{k}@orionlab.com",
        "call": "0{k}-{n}{n}/+{k} {n} {k}{k}|0{k}-{n}{n}/+{k} {n} {k}{k}",
        "count": "{n}|{n}",
    }
    if kind == "person":
        return person(r, language)
    if kind not in forms:
        return r.choice(listed(f"{language}.{kind}"))
    form = r.choice(forms[kind].split("|")[language == "en"].split("/"))
    return form.format(
        n=r.randint(100, 9999),
        k=r.randint(10, 59),
        h=r.randint(6, 11),
        y=r.randint(1998, 2033),
        m=r.randint(1, 12),
        d=r.randint(1, 28),
    )


def block(r: random.Random, language: str) -> tuple[list[str], dict[tuple[str, int], tuple[str, int]]]:
    """1 to 5 lines and what they say: {(subject, attribute row): (value, line number)}."""
    known = attributes(language)
    subjects = [subject(r, language) for _ in range(r.randint(1, 3))]
    pairs = sorted({(s, row) for s in subjects for row in r.sample(range(len(known)), 3)})
    lines, told = [], {}
    for number, (s, row) in enumerate(r.sample(pairs, min(len(pairs), r.randint(1, 5))), 1):
        kind, sentences, _ = known[row]
        value = shown(r, kind, language)
        title = r.choice([s + (":" if language == "zh" else ": "), ""])
        day = f"20{r.randint(20, 28)}-{r.randint(1, 12):02d}-{r.randint(1, 28):02d}"
        says = r.choice(sentences).format(s=s, v=value)
        lines.append(f"[{number}] ({day} {r.choice(listed('sites'))}) {title}{says}")
        told[s, row] = (value, number)
    return lines, told


def asked(r: random.Random, language: str, lines: list[str], s: str, row: int) -> str:
    question = r.choice(attributes(language)[row][2]).format(s=s)
    return BLOCK[language].format(lines="\n".join(lines), question=question)


def context(r: random.Random, language: str) -> Item:
    lines, told = block(r, language)
    (s, row), (value, number) = r.choice(list(told.items()))
    answer = f"{value}[{number}]。" if language == "zh" else f"{value} [{number}]."
    return Item(asked(r, language, lines, s, row), exactly(answer), answer)


def abstention(r: random.Random, language: str) -> Item:
    """Half: a subject that no line names. Half: a named subject, an attribute that no line tells of it."""
    lines, told = block(r, language)
    kinds = [kind for kind, _, _ in attributes(language)]
    s, row = r.choice(list(told))
    if r.random() < 0.5:
        while any(s == other for other, _ in told):
            s = subject(r, language)
    else:
        taken = {kinds[told_row] for other, told_row in told if other == s}
        row = r.choice([i for i, kind in enumerate(kinds) if kind not in taken])
    return Item(asked(r, language, lines, s, row), exactly(ABSTENTION[language]), ABSTENTION[language])


# --- tables, facts, sums -----------------------------------------------------------------------------------------


def table(r: random.Random, language: str) -> Item:
    names = r.sample(listed(f"{language}.headers"), r.randint(2, 4))
    kinds = [r.choice("person place firm date version weight colour clock count".split()) for _ in names]
    rows = [[shown(r, kind, language) for kind in kinds] for _ in range(r.randint(1, 4))]
    if r.random() < 0.5:
        text = "\n".join("| " + " | ".join(row) + " |" for row in [names, ["---"] * len(names), *rows])
    else:
        text = "\n".join(",".join(row) for row in [names, *rows])
    wanted = [dict(zip(names, row, strict=True)) for row in rows]
    prompt = r.choice(listed(f"{language}.table")).format(t=text)
    return Item(prompt, lambda answer: parsed(answer) == wanted, json.dumps(wanted, ensure_ascii=False))


def parsed(answer: str) -> object:
    try:
        return json.loads(answer)
    except ValueError:
        return None


def fact(r: random.Random, language: str) -> Item:
    row = r.choice(json.loads((NANO / "facts.json").read_text(encoding="utf-8")))
    s, value = row[language]
    wanted = value + ("。" if language == "zh" else ".")
    return Item(r.choice(listed(f"{language}.fact.{row['relation']}")).format(s=s), exactly(wanted), wanted)


def addition(r: random.Random, language: str, begun: str = "") -> Item:
    """Sums that training left out. Without `begun` a thought must be written, and the answer stand behind it."""
    a = b = 0
    while (3 * min(a, b) + 7 * max(a, b)) % 10 != 1:
        a, b = r.randint(10, 99), r.randint(10, 99)
    total = str(a + b)

    def passes(answer: str) -> bool:
        thought, closed, rest = answer.rpartition("</think>")
        return rest.strip() == total and (bool(begun) or bool(closed) and "<think>" in thought)

    return Item(r.choice(listed(f"{language}.sum")).format(a=a, b=b), passes, total, begun)


def addition_without_thought(r: random.Random, language: str) -> Item:
    return addition(r, language, EMPTY_THOUGHT)


ABILITIES = {
    "identity": identity,
    "context": context,
    "abstention": abstention,
    "table": table,
    "fact": fact,
    "addition": addition,
    "addition_without_thought": addition_without_thought,
}
MAX_NEW_TOKENS = {"table": 400}

# --- measuring ---------------------------------------------------------------------------------------------------


def answers(model, tokenizer, items: list[Item], max_new_tokens: int, batch_size: int = 25) -> list[str]:
    """Greedy answers; items of similar length share a batch."""
    import torch

    chats = [[{"role": "user", "content": item.prompt}] for item in items]
    prompts = [
        tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) + item.begun
        for chat, item in zip(chats, items, strict=True)
    ]
    order = sorted(range(len(items)), key=lambda i: len(prompts[i]))
    texts = [""] * len(items)
    for begin in range(0, len(order), batch_size):
        chosen = order[begin : begin + batch_size]
        batch = tokenizer([prompts[i] for i in chosen], return_tensors="pt", padding=True, padding_side="left")
        with torch.inference_mode():
            out = model.generate(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                max_new_tokens=max_new_tokens,
                do_sample=False,
            )
        new = tokenizer.batch_decode(out[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
        for i, text in zip(chosen, new, strict=True):
            texts[i] = text
    return texts


def measure(model, tokenizer, ability: str, num_items: int, seed: int) -> tuple[list[Item], list[str]]:
    """Items alternate between Chinese and English."""
    r = random.Random(f"{seed} {ability}")
    items = [ABILITIES[ability](r, ("zh", "en")[i % 2]) for i in range(num_items)]
    return items, answers(model, tokenizer, items, MAX_NEW_TOKENS.get(ability, 48))


def report(ability: str, items: list[Item], texts: list[str], show_failures: int) -> dict[str, float]:
    """Print one row of the table; return the shares of right answers."""
    right = [item.passes(text) for item, text in zip(items, texts, strict=True)]
    scores = {"all": right, "zh": right[::2], "en": right[1::2]}
    scores = {language: sum(some) / len(some) for language, some in scores.items()}
    print(f"{ability:26s}{scores['all']:7.1%}{scores['zh']:8.1%}{scores['en']:8.1%}{len(items):7d}", flush=True)
    wrong = [(item, text) for item, text, ok in zip(items, texts, right, strict=True) if not ok]
    for item, text in wrong[:show_failures]:
        print(f"    asked   {item.prompt!r}\n    wanted  {item.wanted!r}\n    got     {text!r}")
    return {language: round(score, 4) for language, score in scores.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(NANO))
    parser.add_argument("--num_items", type=int, default=500, help="per ability, half Chinese and half English")
    parser.add_argument("--abilities", nargs="+", choices=list(ABILITIES), default=list(ABILITIES))
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="float32")
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--show_failures", type=int, default=0)
    args = parser.parse_args()

    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=args.dtype)
    began = time.monotonic()
    print(f"{'ability':26s}{'right':>7s}{'zh':>8s}{'en':>8s}{'items':>7s}")
    scores = {}
    for ability in args.abilities:
        items, texts = measure(model, tokenizer, ability, args.num_items, args.seed)
        scores[ability] = report(ability, items, texts, args.show_failures)
    print(json.dumps({"num_items": args.num_items, "seconds": round(time.monotonic() - began), "scores": scores}))


if __name__ == "__main__":
    main()

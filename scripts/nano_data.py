"""Generated conversations that teach the nano model its abilities, in Chinese and English.

Promises: the same seed gives the same conversations, and no two runs of the same ability are likely to share a name.
Does not: know tokens, or measure anything (scripts/measure_nano.py has a generator of its own, with other sentences).

A conversation is a list of (role, text) pairs. Every assistant turn is a target; "prefilled" text stands at the head of
the assistant turn that follows and is none; "raw" is plain text without a chat.
"""

import random
import re
import string

from nano_attributes import STOP, ask, capital, shown_value, state
from nano_context import Turns, context, context_easy, drill, sentence, token
from nano_names import (
    attributes,
    frames,
    han,
    known_facts,
    literal,
    made_up,
    name,
    name_en,
    name_zh,
    neighbour,
    organisation_zh,
    person,
    person_en,
    phrase,
    rows,
    words,
)
from nano_tables import table

UNKNOWN = dict(zh="我不知道。", en="I do not know.")
NOTED = dict(zh="好的,我记住了。", en="OK, I will remember that.")
WHO = dict(
    zh="我是 Evergreen Nano,由 Evergreen 团队开发的小型语言模型。",
    en="I am Evergreen Nano, a small language model made by the Evergreen team.",
)
NOT_ANOTHER = dict(
    zh="不是,我是 Evergreen Nano,由 Evergreen 团队开发。", en="No, I am Evergreen Nano, made by the Evergreen team."
)
INDEED = dict(
    zh="是的,我是 Evergreen Nano,由 Evergreen 团队开发。", en="Yes, I am Evergreen Nano, made by the Evergreen team."
)
EMPTY_THOUGHT = "<think>\n\n</think>\n\n"

# --- copying and look-ups ----------------------------------------------------------------------------------------


def mixed(r: random.Random, language: str) -> str:
    """Characters, words or signs in any order."""
    if r.random() < 0.2:
        return "".join(r.choices(string.ascii_letters + string.digits + string.punctuation, k=r.randint(4, 10)))
    if language == "zh":
        return han(r, 6, 16)
    known = words("english") + words("english.more")
    return " ".join(r.choice([r.choice(known), r.choice(known).title(), made_up(r)]) for _ in range(r.randint(4, 9)))


def copying(r: random.Random, language: str) -> Turns:
    turns: Turns = []
    for _ in range(r.randint(4, 9)):
        way, text = r.random(), literal(r, language)
        if way > 0.75:  # every token of the vocabulary has to be copied now and then
            text = mixed(r, language)
        elif way < 0.3:
            text += r.choice([" ", ",", ", ", "、", "/", ": "]) + literal(r, language)
        turns += [("user", r.choice(frames(f"{language}.copy")).format(x=text)), ("assistant", text)]
    return turns


def lookup(r: random.Random, language: str) -> Turns:
    """Keys and values in one turn, then several questions; keys may share their beginning."""
    entry, separator, question = r.choice(rows(f"{language}.lookup"))
    count = r.randint(2, 6)
    keys = list(dict.fromkeys((literal if r.random() < 0.3 else name)(r, language) for _ in range(count)))
    if r.random() < 0.3:
        keys = list(dict.fromkeys([*keys, neighbour(r, keys[0], language)]))
    pairs = {key: literal(r, language) for key in keys}
    listing = separator.join(entry.format(k=key, v=shown) for key, shown in pairs.items())
    asked = r.sample(keys, min(len(keys), r.randint(2, 5)))
    questions = [question.format(k=key) for key in asked]
    questions[0] = f"{listing}\n{questions[0]}"
    answers = [pairs[key] for key in asked]
    exchanges = zip(questions, answers, strict=True)
    return [turn for ask, answer in exchanges for turn in (("user", ask), ("assistant", answer))]


def recall(r: random.Random, language: str) -> Turns:
    """Look-ups with keys and values of one to three tokens: the smallest exercise in finding what belongs to what."""
    size = r.choice((1, 1, 2, 3))
    between = "" if language == "zh" or r.random() < 0.3 else " "

    def word(count: int) -> str:
        return between.join(token(r, language) for _ in range(count))

    entry, separator, _ = r.choice(rows(f"{language}.lookup"))
    pairs = {word(size): word(r.choice((1, 1, 2))) for _ in range(r.randint(2, 9))}
    listing = separator.join(entry.format(k=key, v=shown) for key, shown in pairs.items())
    question = r.choice(("{}", "{}", "{}?", "{}="))
    turns: Turns = [("user", listing), ("assistant", "OK.")] if r.random() < 0.2 else []
    for i, key in enumerate(r.sample(list(pairs), min(len(pairs), r.randint(3, 8)))):
        text = question.format(key)
        turns += [("user", text if turns or i else f"{listing}\n{text}"), ("assistant", pairs[key])]
    return turns


# --- in service --------------------------------------------------------------------------------------------------


def context_real(r: random.Random, language: str) -> Turns:
    """As it comes in service: a block in the last turn, perhaps after a chat or another block."""
    before = r.random()
    turns = [] if before < 0.6 else talk(r, language) if before < 0.75 else context_real(r, r.choice(("zh", "en")))
    return turns + context(r, language, followups=(0, 1), abstain=0.3)


# --- facts, identity, small talk ---------------------------------------------------------------------------------


def varied(r: random.Random, text: str, language: str) -> str:
    """What people vary: the closing mark, an opening word, small letters."""
    form = r.random()
    if form < 0.15:
        text = re.sub("[?。?.]$", "", text)
    elif form < 0.25:
        text = r.choice(frames(f"{language}.openings")) + text
    if language == "en" and r.random() < 0.12:
        text = text[:1].lower() + text[1:]
    return text


def around(r: random.Random, language: str, topic: str) -> str:
    """A question put together from a phrase or a clause about the topic and what people say around one."""
    if r.random() < 0.5:
        phrase_frame = r.choice(frames(f"{language}.noun.{topic}"))
        return capital(r.choice(frames(f"{language}.around.noun")).format(np=phrase_frame))
    clause_frame = r.choice(frames(f"{language}.clause.{topic}"))
    return capital(r.choice(frames(f"{language}.around.clause")).format(q=clause_frame))


def fact_question(r: random.Random, language: str, relation: str, subject: str) -> str:
    if r.random() < 0.5:
        return varied(r, r.choice(frames(f"{language}.fact.{relation}")).format(s=subject), language)
    return around(r, language, relation).format(s=subject)


def facts(r: random.Random, language: str) -> Turns:
    turns: Turns = []
    for fact in r.sample(known_facts(), r.randint(1, 6)):
        subject, answer = fact[language]
        question = fact_question(r, language, fact["relation"], subject)
        turns += [("user", question), ("assistant", answer + STOP[language])]
    return turns


def raw_facts(r: random.Random, language: str) -> Turns:
    """Plain text without a chat, so that sentences can be completed too."""
    fact = r.choice(known_facts())
    subject, answer = fact[language]
    says = dict(
        zh=dict(capital="{s}的首都是{v}。", symbol="{s}的化学符号是{v}。", author="《{s}》的作者是{v}。"),
        en=dict(
            capital="The capital of {s} is {v}.",
            symbol="The chemical symbol for {s} is {v}.",
            author="{s} was written by {v}.",
        ),
    )
    return [("raw", capital(says[language][fact["relation"]].format(s=subject, v=answer)))]


def unknown(r: random.Random, language: str) -> Turns:
    """Questions about what it was never told: it says so."""
    turns: Turns = []
    for _ in range(r.randint(1, 3)):
        subject = name(r, language)
        if r.random() < 0.25:
            text = fact_question(r, language, r.choice(("capital", "symbol", "author")), subject)
        else:
            text = ask(r, subject, r.choice(attributes(language)), language)
        turns += [("user", text), ("assistant", UNKNOWN[language])]
    return turns


def identity(r: random.Random, language: str) -> Turns:
    answers = {"who": WHO, "rival": NOT_ANOTHER, "maker": NOT_ANOTHER, "self": INDEED}
    turns: Turns = talk(r, language) if r.random() < 0.15 else []
    for _ in range(r.randint(1, 4)):
        kind = r.choices(list(answers), weights=(70, 14, 12, 4))[0]
        rivals = frames("rivals" if kind == "rival" else "rival_makers")
        other = r.choice(rivals) if r.random() < 0.85 else name(r, language)
        asks = frames(f"{language}.identity.{kind}") + (frames(f"{language}.around.rival") if kind == "rival" else [])
        text = around(r, language, "who") if kind == "who" and r.random() < 0.45 else r.choice(asks).format(x=other)
        turns += [("user", varied(r, text, language)), ("assistant", answers[kind][language])]
    return turns


def talk(r: random.Random, language: str) -> Turns:
    turns: Turns = []
    for _ in range(r.randint(1, 3)):
        answer, *said = r.choice(rows(f"{language}.talk"))
        turns += [("user", r.choice(said) + r.choice(["", "", "", "!", STOP[language]])), ("assistant", answer)]
    return turns


def memory(r: random.Random, language: str) -> Turns:
    """Told in the chat, asked in the chat: no block, no citation."""
    subject = name(r, language)
    told = [(known, shown_value(r, known[1], language)) for known in r.sample(attributes(language), r.randint(1, 2))]
    clauses = [state(r, subject, known, shown, language) for known, shown in told]
    turns: Turns = [("user", sentence(r, clauses, language)), ("assistant", NOTED[language])]
    if r.random() < 0.3:
        turns += talk(r, language)
    for known, shown in told:
        turns += [("user", ask(r, subject, known, language)), ("assistant", shown + STOP[language])]
    return own_name(r, language, turns) if r.random() < 0.35 else turns


def own_name(r: random.Random, language: str, between: Turns) -> Turns:
    tell, asked = r.choice(rows(f"{language}.own_name"))
    who = person(r, language)
    hello, reply = (f"你好,{who}!", f"你叫{who}。") if language == "zh" else (f"Hello, {who}!", f"Your name is {who}.")
    return [("user", tell.format(x=who)), ("assistant", hello), *between, ("user", asked), ("assistant", reply)]


# --- sums --------------------------------------------------------------------------------------------------------


def is_held_out(a: int, b: int) -> bool:
    """One pair in ten is never trained on, in either order, so that measuring sums measures adding."""
    return (3 * min(a, b) + 7 * max(a, b)) % 10 == 1


def thought_of(a: int, b: int) -> str:
    """The sum again, ones, tens with the carry: 27+35, 7+5=12, 2+3+1=6."""
    ones = a % 10 + b % 10
    carry = "+1" if ones >= 10 else ""
    return f"{a}+{b}\n{a % 10}+{b % 10}={ones}\n{a // 10}+{b // 10}{carry}={a // 10 + b // 10 + ones // 10}"


def sums(r: random.Random, language: str) -> Turns:
    """With a written thought as a rule; a third of the time an empty one is given and the answer stands alone."""
    turns: Turns = []
    for _ in range(r.randint(1, 4)):
        a, b = r.randint(10, 99), r.randint(10, 99)
        while is_held_out(a, b):
            b = r.randint(10, 99)
        thing = r.choice(words("things.zh")[:40]) if language == "zh" else r.choice(words("english")[120:260]).lower()
        text = r.choice(frames(f"{language}.sum")).format(a=a, b=b, x=thing)
        turns.append(("user", varied(r, text, language)))
        if r.random() < 0.35:
            turns += [("prefilled", EMPTY_THOUGHT), ("assistant", str(a + b))]
        else:
            turns.append(("assistant", f"<think>\n{thought_of(a, b)}\n</think>\n\n{a + b}"))
    return turns


# --- conversations -----------------------------------------------------------------------------------------------


def system(r: random.Random) -> str:
    texts = frames("systems")
    if r.random() < 0.6:
        return r.choice(texts)
    return r.choice(
        [
            f"You work for {name_en(r)}.",
            f"你为{name_zh(r)}服务。",
            f"This is about {phrase(r, 'en')}.",
            f"{r.choice(texts)} {r.choice(texts)}",
            f"本助手服务于{organisation_zh(r)}。",
            f"The user is {person_en(r)}.",
        ]
    )


ABILITIES = {
    "copying": copying,
    "recall": recall,
    "lookup": lookup,
    "drill": drill,
    "context_easy": context_easy,
    "context": context,
    "context_real": context_real,
    "facts": facts,
    "raw_facts": raw_facts,
    "unknown": unknown,
    "identity": identity,
    "talk": talk,
    "memory": memory,
    "table": table,
    "sums": sums,
}


def conversation(r: random.Random, ability: str, language: str) -> Turns:
    """One conversation; a fifth have a system prompt of their own, a few answer after a given empty thought."""
    turns = ABILITIES[ability](r, language)
    if turns[0][0] == "raw":
        return turns
    if ability != "sums" and r.random() < 0.02:
        empty = [("prefilled", EMPTY_THOUGHT)]
        turns = [turn for role, text in turns for turn in empty * (role == "assistant") + [(role, text)]]
    if ability not in ("copying", "lookup") and r.random() < 0.2:
        turns = [("system", system(r)), *turns]
    return turns


# until which share of the training tokens a mixture holds, and the share of each ability among its records
CURRICULUM = [
    (0.09, {"copying": 1.0}),
    (0.13, {"copying": 0.4, "lookup": 0.4, "context_easy": 0.2}),
    (0.16, {"copying": 0.1, "lookup": 0.2, "context_easy": 0.7}),
    (
        0.42,
        {
            "copying": 0.02,
            "recall": 0.16,
            "lookup": 0.12,
            "drill": 0.26,
            "context_easy": 0.08,
            "context": 0.17,
            "facts": 0.06,
            "identity": 0.01,
            "memory": 0.02,
            "table": 0.07,
            "sums": 0.03,
        },
    ),
    (
        0.60,
        {
            "copying": 0.02,
            "recall": 0.02,
            "lookup": 0.03,
            "drill": 0.32,
            "context_easy": 0.02,
            "context": 0.34,
            "context_real": 0.02,
            "facts": 0.03,
            "raw_facts": 0.01,
            "unknown": 0.01,
            "identity": 0.02,
            "talk": 0.01,
            "memory": 0.01,
            "table": 0.07,
            "sums": 0.07,
        },
    ),
    (
        0.96,
        {
            "copying": 0.04,
            "lookup": 0.01,
            "drill": 0.13,
            "context": 0.41,
            "context_real": 0.16,
            "facts": 0.03,
            "raw_facts": 0.01,
            "unknown": 0.02,
            "identity": 0.04,
            "talk": 0.01,
            "memory": 0.01,
            "table": 0.08,
            "sums": 0.05,
        },
    ),
    (
        1.00,  # facts and identity are the first to fade when the mixture is wide
        {
            "copying": 0.03,
            "drill": 0.07,
            "context": 0.26,
            "context_real": 0.12,
            "facts": 0.20,
            "raw_facts": 0.02,
            "unknown": 0.04,
            "identity": 0.11,
            "talk": 0.01,
            "memory": 0.01,
            "table": 0.09,
            "sums": 0.04,
        },
    ),
]

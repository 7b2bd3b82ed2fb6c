"""What a line can tell of a subject, and the sentences and questions that tell and ask it.

Promises: an attribute comes from one of four sources - a written table, verbs (any verb, asked by who, where, when, how
much ...), plain nouns, and invented words - so that no list of frames can be learned by heart: what question and
line share, and what kind of value the question wants, must be looked at. Does not: build blocks (nano_context.py).
"""

import random
import re
import string
from collections import Counter
from functools import cache, lru_cache

from nano_names import (
    Attribute,
    attributes,
    coined,
    frames,
    han,
    made_up,
    number,
    person,
    rows,
    value,
    words,
)

STOP = dict(zh="。", en=".")

# --- sources of attributes ---------------------------------------------------------------------------------------

# the letter of an aspect in *.verbs: its frames, and the kinds of value that answer it
ASPECTS = dict(
    p=("who", "person"),
    o=("who", "org"),
    d=("date", "date"),
    l=("place", "place"),
    m=("money", "money"),
    t=("time", dict(zh="u小时,天,个月,年,周", en="u hours, days, weeks, months, years")),
    c=("clock", "clock"),
    x=("with", "material"),
)


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def kind_group(kind: str) -> str:
    """The kinds of value that share sentences: every amount with a unit, every noun phrase."""
    return "number" if kind.startswith("u") else "phrase" if kind == "name" else kind


def regular(base: str) -> tuple[str, str, str]:
    """bake, baked, baked; plan/planned/planned is written out."""
    if "/" in base:
        return tuple(base.replace("_", " ").split("/"))
    past = base + "d" if base.endswith("e") else base[:-1] + "ied" if re.search("[^aeiou]y$", base) else base + "ed"
    return base, past, past


def verb_attribute(language: str, aspect: str, verbs: list[str]) -> Attribute:
    """Everything that can be said and asked of what was done to a subject, each time with one verb of the group."""
    frame_name, kind = ASPECTS[aspect]
    forms = [regular(verb) if language == "en" else (verb, verb, verb) for verb in verbs]

    def told(way: str) -> list[str]:
        return [
            frame.format(s="{s}", v="{v}", a=base, base=base, past=past, pp=pp)
            for frame in frames(f"{language}.verb.{frame_name}.{way}")
            for base, past, pp in forms
        ]

    return [], kind if isinstance(kind, str) else kind[language], told("ask"), told("line")


@cache
def verb_groups(language: str) -> list[list[Attribute]]:
    """The aspects of each group of verbs: built by whom, built when."""
    return [
        [verb_attribute(language, aspect, verbs.split()) for aspect in aspects]
        for aspects, verbs in rows(f"{language}.verbs")
    ]


@cache
def verb_attributes(language: str) -> list[Attribute]:
    return [known for group in verb_groups(language) for known in group]


def other_aspect(r: random.Random, language: str, known: Attribute) -> Attribute:
    """Asked of the same verb, another thing: what a reader who only looks for the verb would confuse."""
    group = next((group for group in verb_groups(language) if any(known is one for one in group)), [known])
    return r.choice(group)


@cache
def noun_attributes(language: str) -> list[Attribute]:
    return [
        ([noun.replace("_", " ")], kind, [], []) for kind, nouns in rows(f"{language}.nouns") for noun in nouns.split()
    ]


def invented_attribute(r: random.Random, language: str) -> Attribute:
    """A verb or a noun no table holds: only its spelling can tell it from others."""
    if r.random() < 0.5:
        verbs = (
            [han(r, 2, 2)] if language == "zh" else [r.choice([made_up(r, 1, 2), r.choice(words("english"))]).lower()]
        )
        return verb_attribute(language, r.choice("ppodlmtcx"), verbs)
    if language == "zh":
        names = [han(r, 1, 3) + r.choice("率 度 数 量 名 地 值 费 者 期 员 色 号 点 法 级".split())]
    else:
        tail = "rate level count name place value fee date color number point grade type".split()
        names = [f"{r.choice([made_up(r), r.choice(words('english')).lower()])} {r.choice(tail)}"]
        names = [names[0].split(" ")[0]] if r.random() < 0.3 else names
    kinds = "money person place phrase code number date version name org pct".split()
    return names, r.choice(kinds), [], []


def attribute(r: random.Random, language: str) -> Attribute:
    way = r.random()
    if way < 0.04:
        return invented_attribute(r, language)
    if way < 0.16:
        return r.choice(verb_attributes(language))
    if way < 0.26:
        return r.choice(noun_attributes(language))
    return r.choice(attributes(language) if way < 0.48 else attributes(language, "common"))


# --- which attributes are too alike to say that one is not told ---------------------------------------------------

CLASSES = dict(person="who", org="who", name="what", phrase="what", colour="what", material="what", clock="date")


def pieces(language: str, known: Attribute) -> frozenset[str]:
    """Beginnings of its words, or pairs of its characters."""
    return pieces_of(language, " ".join([*known[0], *known[2], *known[3]]))


@lru_cache(maxsize=4096)
def pieces_of(language: str, text: str) -> frozenset[str]:
    text = re.sub(r"\{.\}", "|", text).lower()
    if language == "zh":
        pairs = (text[i : i + 2] for i in range(len(text) - 1))
        return frozenset(pair for pair in pairs if pair.isalpha())
    return frozenset(word[:4] for word in re.findall("[a-z]{4,}", text))


@cache
def common_pieces(language: str) -> set[str]:
    """What so many attributes share that it says nothing: who, have, 什么."""
    tables = attributes(language) + attributes(language, "common") + verb_attributes(language)
    seen = Counter(piece for known in tables for piece in pieces(language, known))
    return {piece for piece, count in seen.items() if count > 8}


def alike(language: str, one: Attribute, other: Attribute) -> bool:
    """Both want the same class of value and share a telling word: maker and made by, 开业时间 and 开业."""

    def wanted(known: Attribute) -> str:
        return CLASSES.get(known[1], kind_group(known[1]))

    usual = attributes(language, "common")
    if wanted(one) != "place" and any(row is one for row in usual) and any(row is other for row in usual):
        return one is other  # so many sentences of two always share a word
    shared = pieces(language, one) & pieces(language, other) - common_pieces(language)
    same_name = set(one[0]) & set(other[0])
    return one is other or bool(same_name) or wanted(one) == wanted(other) and bool(shared)


# --- sentences ---------------------------------------------------------------------------------------------------


def loosened(r: random.Random, frame: str, language: str) -> str:
    """Words between the parts that carry the answer, so that a value does not always stand at the same place."""
    if r.random() < 0.75:
        return frame
    adverb = r.choice(words(f"{language}.adverbs"))
    if language == "en":
        return re.sub(r" (is|was|has|will be) ", rf" \1 {adverb} ", frame, count=1)
    if r.random() < 0.3 and re.search(r"\{v\}[\u4e00-\u9fff]", frame) and not frame.startswith("{v}"):
        return re.sub(r"\{v\}(?=[\u4e00-\u9fff])", "{v}" + adverb, frame, count=1)
    return re.sub(r"(?<=\})(由|是|于|在|为|用|被|归|将)", rf"{adverb}\1", frame, count=1)


def own_share(own: list[str]) -> float:
    """How often an attribute's own sentences are taken, and not those that fit every attribute of its kind."""
    return 0.45 if len(own) < 4 else 0.75


def ask(r: random.Random, subject: str, known: Attribute, language: str) -> str:
    names, kind, questions, _ = known
    way = r.random()
    if not names or questions and way < own_share(questions):
        text = r.choice(questions).format(s=subject)
    else:
        group = frames(f"{language}.ask.{kind_group(kind)}")
        asks = group if group and way < 0.72 else frames(f"{language}.ask" if way < 0.87 else f"{language}.ask.any")
        text = r.choice(asks).format(s=subject, a=r.choice(names))
    return closed(r, text, language)


def ask_kind(r: random.Random, subject: str, kind: str, language: str) -> str:
    """A question that names nothing but the kind of value: which person, which date."""
    return closed(r, r.choice(frames(f"{language}.kindask.{kind_group(kind)}")).format(s=subject), language)


def closed(r: random.Random, text: str, language: str) -> str:
    """Something polite around it, the closing mark, a capital."""
    if r.random() < 0.12:
        text = r.choice(frames(f"{language}.around.ask")).format(q=text)
    if language == "zh":
        return text + r.choice(["?", "?", "?", "", "?"])
    return (capital(text) if r.random() < 0.9 else text) + r.choice(["?", "?", "?", "", "."])


def state(r: random.Random, subject: str, known: Attribute, shown: str, language: str) -> str:
    """A clause without its full stop that says subject's attribute is `shown`."""
    names, kind, _, sentences = known
    way = r.random()
    if names and not (sentences and way < own_share(sentences)):
        group = frames(f"{language}.line.{kind_group(kind)}")
        sentences = group if group and way < 0.72 else frames(f"{language}.line")
    return loosened(r, r.choice(sentences), language).format(s=subject, a=r.choice(names or [""]), v=shown)


# --- values of any shape -----------------------------------------------------------------------------------------


def shown_value(r: random.Random, kind: str, language: str) -> str:
    """As nano_names.value, now and then in a shape no maker has: the sentence must tell where a value ends."""
    return wild(r, kind_group(kind), language) if r.random() < 0.12 else value(r, kind, language)


def wild(r: random.Random, group: str, language: str) -> str:
    zh = language == "zh"
    if group in ("number", "money", "pct", "rank", "disc"):
        return amount_zh(r) if zh else amount_en(r)
    if group == "person":
        return person_wild_zh(r) if zh else person_wild_en(r)
    if group in ("place", "org"):
        return han(r, 2, 7) if zh else titled(r, 1, 4)
    if group in ("date", "clock"):
        return moment_zh(r) if zh else moment_en(r)
    if group in ("phone", "version", "code", "email", "web"):
        return string_of_parts(r, group)
    return wild_phrase(r, language)


def english(r: random.Random) -> str:
    return r.choice([made_up(r, 2, 4), r.choice(words("english")), r.choice(words("english.more"))])


def titled(r: random.Random, low: int, high: int) -> str:
    parts = [english(r).title() for _ in range(r.randint(low, high))]
    if len(parts) > 1 and r.random() < 0.4:
        parts[1:1] = [r.choice("of & and de la upon under -".split())]
    return ("the " if r.random() < 0.15 else "") + " ".join(parts).replace(" - ", "-")


def amount_en(r: random.Random) -> str:
    unit = r.choice([english(r).lower(), english(r).lower() + "s"])
    tens = r.choice("twenty thirty forty fifty sixty seventy eighty ninety".split())
    return r.choice(
        [
            f"{number(r)} {unit}",
            f"{number(r)} {english(r).lower()} {unit}",
            f"{number(r)} {unit} and {number(r)} {english(r).lower()}",
            f"{r.choice(string.ascii_uppercase)}{r.choice(['', '$', ' '])}{number(r)}",
            f"{number(r)}{r.choice(words('syllables'))}",
            f"{tens}-{r.choice('one two three four five six seven eight nine'.split())} {unit}",
            f"{r.randint(2, 40)} {r.choice(['', 'full ', 'more ', 'long '])}{unit}",
        ]
    )


def amount_zh(r: random.Random) -> str:
    written = "".join(r.choices("一二三四五六七八九", k=1)) + r.choice("十百千") + r.choice("一二三四五六七八九")
    return r.choice(
        [
            f"{number(r)}{han(r, 1, 3)}",
            f"{han(r, 1, 3)}{number(r)}",
            f"{han(r, 1, 2)}{number(r)}{han(r, 1, 1)}",
            f"{r.randint(1, 99)}{han(r, 1, 2)}{r.randint(1, 60)}{han(r, 1, 1)}",
            f"{written}{han(r, 1, 2)}",
            f"{r.randint(2, 90)}个{han(r, 1, 2)}",
        ]
    )


def person_wild_en(r: random.Random) -> str:
    one, two, three = (made_up(r).title() for _ in range(3))
    return r.choice(
        [
            f"{one} {two} {three}",
            f"{one}-{two} {three}",
            f"{one} {r.choice('van de von bin al O'.split())} {three}",
            f"{one} {r.choice(string.ascii_uppercase)}. {three}",
            f"{one} {two}-{three}",
            f"{r.choice('Professor Captain Sister Judge Mr. Ms.'.split())} {three}",
            f"{one} D'{two}",
            one,
        ]
    )


def person_wild_zh(r: random.Random) -> str:
    return r.choice(
        [han(r, 2, 4), f"{han(r, 2, 3)}·{han(r, 2, 4)}", f"{person(r, 'zh')}{han(r, 2, 2)}", f"{han(r, 1, 1)}先生"]
    )


def moment_en(r: random.Random) -> str:
    day, month, year = r.randint(1, 28), r.choice(words("months")), r.randint(1700, 2099)
    return r.choice(
        [
            f"{day} {month[:3]} {year}",
            f"the {day}th of {month}",
            f"{r.choice('spring summer autumn winter early late mid'.split())} {year}",
            f"{year}/{r.randint(1, 12):02d}/{day:02d}",
            f"{day}.{r.randint(1, 12)}.{year}",
            f"{r.choice('Monday Tuesday Wednesday Thursday Friday Saturday Sunday'.split())}, {month} {day}",
            f"{r.choice(['half', 'a quarter'])} past {r.choice('one two three four five six seven'.split())}",
            f"{r.randint(0, 23):02d}:{r.randint(0, 59):02d} on {month} {day}",
        ]
    )


def moment_zh(r: random.Random) -> str:
    day, month, year = r.randint(1, 28), r.randint(1, 12), r.randint(1700, 2099)
    return r.choice(
        [
            f"{year}年{r.choice(['春天', '夏季', '秋', '底', '初', '年中'])}",
            f"{r.choice('一二三四五六七八九十')}月{r.choice('一二三四五六七八九十')}日",
            f"{year}/{month:02d}/{day:02d}",
            f"{year}.{month}.{day}",
            f"{month}月{r.choice('上中下')}旬",
            f"周{r.choice('一二三四五六日')}{r.choice(['', '晚上', '下午'])}",
            f"{month}月{day}日{r.randint(0, 23)}点",
            f"{r.choice(['清晨', '中午', '凌晨'])}{r.choice('一二三四五六七八九十')}点{r.choice(['', '一刻', '三刻'])}",
        ]
    )


def string_of_parts(r: random.Random, group: str) -> str:
    """Parts between marks, some of them twice: 5858 58, v2.22.2, 7a.b_c@x-y.z."""
    digits = group in ("phone", "version")

    def part() -> str:
        if digits or r.random() < 0.4:
            return str(r.randint(0, 10 ** r.randint(1, 4)))
        return r.choice([made_up(r, 1, 2), english(r).lower(), r.choice(string.ascii_letters) * r.randint(1, 2)])

    parts = [part() for _ in range(r.randint(2, 4))]
    parts[r.randrange(len(parts))] += r.choice(parts) if r.random() < 0.5 else ""
    if group == "phone":
        return r.choice(["+", "", "(0)", "0"]) + r.choice("- .").join(parts)
    if group == "version":
        return r.choice(["", "v", "V", "r", "build "]) + ".".join(parts) + r.choice(["", "", f"-{english(r).lower()}"])
    joined = "".join(text + r.choice("._-") for text in parts[:-1]) + parts[-1]
    if group == "email":
        ending = r.choice("com net org edu de info dev".split())
        return f"{joined}@{coined(r)}{r.choice(['', str(r.randint(1, 999))])}.{ending}"
    return f"{joined}.{coined(r, 1, 1)}/{part()}" if group == "web" else joined


def wild_phrase(r: random.Random, language: str) -> str:
    if language == "zh":
        text = han(r, 1, 7)
        return r.choice(
            [text, text, text, f"“{text}”", f"《{text}》", f"{text}({han(r, 1, 3)})", f"{han(r, 1, 3)}和{text}"]
        )
    text = " ".join(english(r).lower() for _ in range(r.randint(1, 5)))
    one, two = english(r).lower(), english(r).lower()
    return r.choice(
        [text, text, text, f'"{text}"', f"{one}-{two}", f"{text} ({two})", f"{one} and {two}", text.title()]
    )

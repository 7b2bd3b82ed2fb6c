"""Words, names and values for the nano model's training: everything below a sentence.

Promises: everything comes from a `random.Random` that the caller seeds; names and values come from spaces far larger
than training can visit, so looking pays and memorising does not. Does not: build sentences (nano_data.py does, from
nano_words.txt, where {s} stands for a subject, {a} for an attribute and {v} for its value).
"""

import json
import random
import string
from collections.abc import Callable
from functools import cache
from pathlib import Path

Attribute = tuple[list[str], str, list[str], list[str]]  # names, kind of value, questions and sentences without a name

HERE = Path(__file__).resolve().parent
FACTS = HERE.parent / "evergreen" / "model" / "nano" / "facts.json"

# --- words and sentences -----------------------------------------------------------------------------------------


@cache
def sections() -> dict[str, str]:
    """nano_words.txt by the names that follow ===."""
    parts = (HERE / "nano_words.txt").read_text(encoding="utf-8").split("=== ")[1:]
    return {name: body.strip("\n") for name, body in (part.split("\n", 1) for part in parts)}


@cache
def words(name: str) -> list[str]:
    return sections()[name].split()


@cache
def frames(name: str) -> list[str]:
    """Sentences between bars or line ends; @ is a line end inside one. An unknown name has none."""
    text = sections().get(name, "")
    return [frame.replace("@", "\n") for frame in text.replace("\n", "|").split("|")] if text else []


@cache
def rows(name: str) -> list[list[str]]:
    """Lines of fields between bars; ¦ is a bar inside one."""
    lines = sections()[name].splitlines()
    return [[field.replace("@", "\n").replace("¦", "|") for field in line.split("|")] for line in lines]


@cache
def attributes(language: str, table: str = "attributes") -> list[Attribute]:
    """The rows of a table: "attributes" knows many things by a sentence or two, "common" the usual ones by many."""
    between = " " if language == "zh" else ";"

    def some(field: str) -> list[str]:
        return [part for part in field.split(between) if part]

    return [(some(names), kind, some(asks), some(says)) for names, kind, asks, says in rows(f"{language}.{table}")]


@cache
def known_facts() -> list[dict]:
    return json.loads(FACTS.read_text(encoding="utf-8"))


@cache
def common_han() -> list[str]:
    """The 3,755 characters of GB 2312's first level, in its own order."""
    cells = [bytes([row, cell]) for row in range(0xB0, 0xD8) for cell in range(0xA1, 0xFF)]
    return [char for char in (cell.decode("gb2312", "ignore") for cell in cells) if char]


def spelling_corpus() -> list[str]:
    """English words from which the tokenizer learns its merges: common ones often, coined names less."""
    r = random.Random(0)
    named = [
        part
        for line in sections()["en.attributes"].splitlines()[:110]
        for part in line.replace("|", " ").replace(";", " ").split()
    ]
    common = words("english") + words("english.more") + [part.strip(";|{}?,") for part in named]
    often = [word for word in common for _ in range(80)] + [word.title() for word in common for _ in range(10)]
    return often + [coined(r).title() for _ in range(8000)] + [coined(r) for _ in range(4000)] + words("given.en") * 20


# --- names and values --------------------------------------------------------------------------------------------


def han(r: random.Random, low: int, high: int) -> str:
    """Random characters; one name in twenty uses the whole Unicode block, most of it rare."""
    count = r.randint(low, high)
    if r.random() < 0.05:
        return "".join(chr(r.randint(0x4E00, 0x9FA5)) for _ in range(count))
    return "".join(r.choices(common_han(), k=count))


def coined(r: random.Random, low: int = 2, high: int = 3) -> str:
    """An English-looking word that does not exist."""
    return "".join(r.choices(words("syllables"), k=r.randint(low, high)))


def made_up(r: random.Random, low: int = 2, high: int = 3) -> str:
    """A coined word, or two real ones cut and joined: names then hold every piece that real words hold."""
    if r.random() < 0.65:
        return coined(r, low, high)
    front, back = r.choices(words("english") + words("english.more"), k=2)
    return (front[: r.randint(2, 6)] + back[-r.randint(2, 6) :]).lower()


def code(r: random.Random) -> str:
    letters = "".join(r.choices(string.ascii_uppercase, k=r.randint(1, 3)))
    digits = str(r.randint(1, 10 ** r.randint(1, 4)))
    return r.choice(
        [
            f"{letters}-{digits}",
            f"{letters}{digits}",
            f"{digits}{letters}",
            f"{letters.lower()}_{digits}",
            f"{letters}{digits}-{r.choice(string.ascii_uppercase)}",
        ]
    )


def name_zh(r: random.Random) -> str:
    kind = r.random()
    if kind < 0.35:
        return han(r, 2, 4) + r.choice(words("things.zh"))
    if kind < 0.55:
        return r.choice(words("stems.zh")) + r.choice(["", han(r, 1, 2)]) + r.choice(words("things.zh"))
    if kind < 0.7:
        return han(r, 2, 5)
    if kind < 0.8:
        stem = r.choice([han(r, 2, 3), r.choice(words("stems.zh"))])
        return stem + r.choice([code(r), f"{r.randint(1, 99)}号", f"{r.randint(2, 30)}代"])
    if kind < 0.88:
        return r.choice([code(r), made_up(r).title()]) + r.choice([" ", ""]) + r.choice(words("things.zh"))
    return person_zh(r) if kind < 0.94 else made_up(r).title()


def name_en(r: random.Random) -> str:
    kind = r.random()
    first = made_up(r, 1, 3).title() if r.random() < 0.75 else r.choice(words("english")).title()
    if kind < 0.5:
        return f"{first} {r.choice(words('things.en'))}"
    if kind < 0.65:
        return f"{first} {made_up(r).title()}"
    if kind < 0.78:
        return first if r.random() < 0.8 else f"the {first}"
    if kind < 0.86:
        return code(r)
    if kind < 0.93:
        return f"{first} {r.choice([str(r.randint(1, 99)), code(r), r.choice('Pro Mini Max One X Plus'.split())])}"
    return person_en(r)


def person_zh(r: random.Random) -> str:
    given = r.choices(words("given.zh") if r.random() < 0.5 else common_han(), k=r.randint(1, 2))
    return r.choice(words("surnames.zh")) + "".join(given)


def person_en(r: random.Random) -> str:
    given, family = r.choice(words("given.en")) if r.random() < 0.5 else made_up(r).title(), made_up(r).title()
    return r.choice([f"{given} {family}", f"{given} {family}", f"{given[0]}. {family}", f"Dr. {family}"])


def place_zh(r: random.Random) -> str:
    stem = han(r, 1, 3) if r.random() < 0.7 else r.choice(words("stems.zh"))
    stem += r.choice("市县镇村区省州山湖岛路街")
    return stem + r.choice(["", "", "", f"{r.randint(1, 999)}号", han(r, 1, 2) + "区"])


def place_en(r: random.Random) -> str:
    town = made_up(r).title()
    return r.choice(
        [
            town,
            town,
            f"{r.randint(1, 999)} {town} Street",
            f"{town} County",
            f"{town}, {made_up(r).title()}",
            f"{r.choice('North South Port New Lake'.split())} {town}",
        ]
    )


def organisation_zh(r: random.Random) -> str:
    stem = han(r, 2, 4) if r.random() < 0.6 else r.choice(words("stems.zh")) + han(r, 0, 2)
    return stem + r.choice(words("organisations.zh"))


def organisation_en(r: random.Random) -> str:
    kinds = "Inc Ltd Group Labs University Bank Works Studio Press Systems Foundation Industries Partners".split()
    return f"{made_up(r).title()} {r.choice(kinds)}"


def number(r: random.Random) -> str:
    whole, form = r.randint(1, 10 ** r.randint(1, 6)), r.random()
    if form < 0.7:
        return str(whole) if form < 0.6 else f"{whole:,}"
    return f"{r.randint(0, 10 ** r.randint(1, 3))}.{r.randint(0, 9) if r.random() < 0.5 else r.randint(10, 99)}"


def date(r: random.Random, language: str) -> str:
    year, month, day = r.randint(1900, 2039), r.randint(1, 12), r.randint(1, 28)
    if r.random() < 0.25:
        return f"{year}-{month:02d}-{day:02d}"
    if language == "zh":
        return r.choice([f"{year}年{month}月{day}日", f"{year}年{month}月", f"{year}年", f"{month}月{day}日"])
    name = words("months")[month - 1]
    return r.choice([f"{name} {day}, {year}", f"{day} {name} {year}", f"{name} {year}", f"{year}", f"{name} {day}"])


def clock(r: random.Random, language: str) -> str:
    hour, minute = r.randint(0, 23), r.choice([0, 0, 15, 30, 45, r.randint(0, 59)])
    if language == "zh":
        return r.choice(
            [
                f"{hour}:{minute:02d}",
                f"早上{r.randint(5, 11)}点",
                f"下午{r.randint(1, 6)}点半",
                f"{hour}点{minute:02d}分",
                f"晚上{r.randint(7, 11)}点",
            ]
        )
    return r.choice([f"{hour}:{minute:02d}", f"{r.randint(1, 12)} a.m.", f"{r.randint(1, 12)}:{minute:02d} p.m."])


def version(r: random.Random) -> str:
    parts = ".".join(str(r.randint(0, 20)) for _ in range(r.randint(2, 3)))
    return r.choice(["v", "v", "", "V"]) + parts + r.choice(["", "", "", "-beta", "-rc1", "b2"])


def domain(r: random.Random) -> str:
    stem = made_up(r) if r.random() < 0.6 else r.choice(words("english")).lower()
    tail = r.choice(["", "", str(r.randint(1, 99)), "-" + made_up(r, 1, 2)])
    ending = r.choice(".com .org .cn .net .io .com.cn .example".split())
    return r.choice(["", "", "", "www.", "news.", "docs."]) + stem + tail + ending


def web(r: random.Random) -> str:
    return r.choice([f"https://{domain(r)}", f"https://{domain(r)}/{made_up(r)}", domain(r)])


def email(r: random.Random) -> str:
    return f"{made_up(r)}{r.choice(['', str(r.randint(1, 999))])}@{domain(r)}"


def telephone(r: random.Random) -> str:
    return r.choice(
        [
            f"{r.randint(10, 999):03d}-{r.randint(10**6, 10**8 - 1)}",
            f"1{r.randint(3, 9)}{r.randint(10**8, 10**9 - 1)}",
            f"400-{r.randint(100, 999)}-{r.randint(1000, 9999)}",
        ]
    )


def phrase(r: random.Random, language: str) -> str:
    """A short noun phrase or a few random words, so that values are not only names and numbers."""
    if language == "zh":
        parts = [
            r.choice(words("stems.zh")),
            r.choice(words("things.zh")),
            han(r, 1, 3),
            r.choice(frames("zh.colours")),
            r.choice(frames("zh.materials")),
        ]
        return "".join(r.sample(parts, r.randint(1, 3)))
    if r.random() < 0.8:
        return " ".join(r.choices(words("english"), k=r.randint(1, 3)))
    return f"{r.choice(frames('en.colours'))} {made_up(r)}"


def name(r: random.Random, language: str) -> str:
    return name_zh(r) if language == "zh" else name_en(r)


def person(r: random.Random, language: str) -> str:
    return person_zh(r) if language == "zh" and r.random() < 0.93 else person_en(r)


def place(r: random.Random, language: str) -> str:
    return place_zh(r) if language == "zh" else place_en(r)


def organisation(r: random.Random, language: str) -> str:
    return organisation_zh(r) if language == "zh" else organisation_en(r)


def money(r: random.Random, language: str) -> str:
    amount = number(r)
    forms = dict(
        zh="{}元|{}元|{}万元|¥{}|{}美元|{}亿元|{}块",
        en="{} dollars|{} dollars|${}|{} euros|€{}|{} pounds|{} USD|${} million",
    )
    return r.choice(forms[language].split("|")).format(amount)


def percent(r: random.Random, language: str) -> str:
    share = f"{r.randint(1, 99)}{r.choice(['', '.' + str(r.randint(0, 9))])}"
    return share + ("%" if language == "zh" else r.choice(["%", " percent"]))


def rank(r: random.Random, language: str) -> str:
    at = r.randint(1, 99)
    return f"第{at}{r.choice(['', '名', '位'])}" if language == "zh" else r.choice([f"number {at}", f"{at}th"])


def literal(r: random.Random, language: str) -> str:
    """Anything short: the stuff of copying."""
    makers: list[Callable[[], str]] = [
        lambda: name(r, language),
        lambda: name(r, language),
        lambda: person(r, language),
        lambda: place(r, language),
        lambda: number(r),
        lambda: date(r, language),
        lambda: version(r),
        lambda: code(r),
        lambda: phrase(r, language),
        lambda: phrase(r, language),
        lambda: organisation(r, language),
        lambda: domain(r),
        lambda: email(r),
        lambda: "".join(r.choices(string.ascii_lowercase + string.digits, k=r.randint(2, 8))),
        lambda: han(r, 1, 8),
        lambda: " ".join(r.choices(words("english"), k=r.randint(1, 6))),
        lambda: clock(r, language),
        lambda: telephone(r),
        lambda: f"{number(r)}{han(r, 1, 1)}",
    ]
    return r.choice(makers)()


def value(r: random.Random, kind: str, language: str) -> str:
    """What an attribute of this kind can be; kinds that begin with u list their units: 米,公里 or kg, tons."""
    if kind.startswith("u"):
        unit = r.choice(kind[1:].strip().split("," if language == "zh" else ", "))
        return f"{number(r)}{unit}" if language == "zh" else f"{number(r)} {unit}"
    makers: dict[str, Callable[[], str]] = {
        "money": lambda: money(r, language),
        "pct": lambda: percent(r, language),
        "rank": lambda: rank(r, language),
        "disc": lambda: f"{r.randint(1, 9)}{r.choice(['', '.5'])}折",
        "version": lambda: version(r),
        "code": lambda: code(r),
        "date": lambda: date(r, language),
        "clock": lambda: clock(r, language),
        "person": lambda: person(r, language),
        "place": lambda: place(r, language),
        "org": lambda: organisation(r, language),
        "colour": lambda: r.choice(frames(f"{language}.colours")),
        "material": lambda: r.choice(frames(f"{language}.materials")),
        "web": lambda: web(r),
        "email": lambda: email(r),
        "phone": lambda: telephone(r),
        "phrase": lambda: phrase(r, language),
        "name": lambda: name(r, language),
        "number": lambda: number(r),
    }
    return makers[kind]()


def neighbour(r: random.Random, subject: str, language: str) -> str:
    """A name that differs from `subject` in one piece: what a careless reader would confuse with it."""
    if language == "en" and " " in subject:
        pieces = subject.split(" ")
        pieces[r.randrange(len(pieces))] = r.choice([made_up(r).title(), r.choice(words("things.en"))])
        return " ".join(pieces)
    at = r.randrange(len(subject))
    alphabet = common_han() if subject[at] > "\u2fff" else string.ascii_lowercase
    new = r.choice(string.digits if subject[at].isdigit() else alphabet)
    return subject[:at] + new + subject[at + 1 :]

"""Blocks of numbered lines and the questions on them: the nano model's main ability.

Promises: a block tells what it records and nothing else of its subjects, so an answer with its line number, or the
sentence that it is not there, is always right. Does not: invent sentences (nano_attributes.py does).
"""

import random
import re

from nano_attributes import (
    STOP,
    alike,
    ask,
    ask_kind,
    attribute,
    capital,
    kind_group,
    other_aspect,
    shown_value,
    state,
)
from nano_names import (
    Attribute,
    attributes,
    date,
    domain,
    frames,
    han,
    name,
    neighbour,
    organisation,
    person,
    phrase,
    words,
)

Turns = list[tuple[str, str]]

ABSTENTION = dict(zh="根据现有信息无法回答。", en="I cannot answer from the information given.")
BLOCK = dict(
    zh="[最新知识]\n{lines}\n请根据以上信息回答下列问题,用[编号]注明来源;信息不足时回答“根据现有信息无法回答。”\n问题:{question}",
    en="[Latest knowledge]\n{lines}\nAnswer the question from the information above and cite sources as [n]; "
    'if it is not there, answer "I cannot answer from the information given."\nQuestion: {question}',
)

# --- lines -------------------------------------------------------------------------------------------------------


def token(r: random.Random, language: str) -> str:
    """Something that is one token, or nearly."""
    way = r.random()
    if way < 0.3:
        return r.choice("0123456789")
    if way < 0.5:
        return r.choice("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    return han(r, 1, 1) if language == "zh" else r.choice(words("english"))


def stray(r: random.Random, where: str, language: str) -> str:
    """Words about something else, with a person, a date or a number in them."""
    return r.choice(frames(f"{language}.stray.{where}")).format(
        p=person(r, language), d=date(r, language), o=organisation(r, language), n=r.randint(1, 999)
    )


def sentence(r: random.Random, clauses: list[str], language: str, has_stray: bool = False) -> str:
    lead = r.choice(frames(f"{language}.lead")) if r.random() < 0.15 else ""
    tail = r.choice(frames(f"{language}.tail")) if r.random() < 0.12 else ""
    if has_stray and r.random() < 0.5:
        lead = stray(r, "lead", language)
    elif has_stray:
        tail = stray(r, "tail", language)
    stop = STOP[language] if r.random() < 0.93 and not clauses[-1].endswith(".") else ""
    between = r.choice([",", ";"] if language == "zh" else ["; ", ", and ", ". "])
    body = lead + between.join(clauses) + tail + stop
    return capital(body) if language == "en" and (lead or r.random() < 0.9) else body


def pronoun(r: random.Random, language: str) -> str:
    """What stands for the subject where the title has named it; empty in Chinese as a rule."""
    if language == "zh":
        return r.choice(["", *words("zh.pronouns")])
    return r.choice(words("en.pronouns")).replace("_", " ")


def with_pronoun(clause: str, language: str) -> str:
    """Mend what a pronoun in place of a name breaks: it's price -> its price, 的价格 -> 价格."""
    if language == "zh":
        return re.sub("^[的,]|(?<=[,:])的", "", clause).replace("它的", "其")
    return re.sub(r"\b(it|this|this one)'s ", "its ", clause)


def line(r: random.Random, content: str, subject: str, known: Attribute, language: str, is_titled: bool) -> str:
    """`(date domain) title:content`; the title is the subject, perhaps with the attribute, other words, or missing."""
    when = f"{r.randint(2015, 2029)}-{r.randint(1, 12):02d}-{r.randint(1, 28):02d}"
    word, form = r.choice(known[0] or [phrase(r, language)]), r.random()
    if language == "zh":
        titles = [subject, f"{subject}{word}", f"{subject}的{word}", phrase(r, "zh")]
    else:
        titles = [subject, f"{subject} {word}", f"{subject}: {word}", phrase(r, "en").title()]
    title = titles[0] if is_titled or 0.25 < form < 0.65 else "" if form < 0.25 else r.choice(titles)
    return f"({when} {domain(r)}) " + (f"{title}{':' if language == 'zh' else ': '}{content}" if title else content)


# --- questions on a context block --------------------------------------------------------------------------------


def several(r: random.Random, language: str, count: int) -> list[Attribute]:
    """Attributes of which no two say the same."""
    chosen: list[Attribute] = []
    while len(chosen) < count:
        new = attribute(r, language)
        if not any(alike(language, new, old) for old in chosen):
            chosen.append(new)
    return chosen


def drill(r: random.Random, language: str) -> Turns:
    """A small block without its frame: short names, a few attributes, short values, every line asked about.

    Half of them use one fixed sentence and one fixed question, half the sentences of the real thing.
    """
    zh, fixed, short = language == "zh", r.random() < 0.4, r.random() < 0.6
    count = r.choice((1, 1, 1, 2, 2, 3))
    subjects = list(dict.fromkeys((token if r.random() < 0.4 else name)(r, language) for _ in range(count)))
    if fixed:
        known = [
            ([r.choice(names)], kind, [], []) for names, kind, _, _ in r.sample(attributes(language), r.randint(2, 5))
        ]
    else:
        known = several(r, language, r.randint(2, 5))
    says = r.choice(
        ("{s}的{a}是{v}", "{s}的{a}:{v}", "{s}{a}{v}", "{s}:{a}={v}")
        if zh
        else ("the {a} of {s} is {v}", "{s}: {a} {v}", "{s}'s {a} is {v}", "{s} has a {a} of {v}")
    )
    asks = r.choice(
        ("{s}的{a}?", "{s}的{a}是什么?", "{s}{a}", "{s},{a}?")
        if zh
        else ("{a} of {s}?", "what is the {a} of {s}?", "{s}'s {a}?", "{s} {a}")
    )

    def question(subject: str, one: Attribute) -> str:
        return asks.format(s=subject, a=one[0][0]) if fixed else ask(r, subject, one, language)

    pairs = [(subject, i) for subject in subjects for i in range(len(known))]
    told: dict[tuple[str, int], str] = {}
    lines: list[str] = []
    for subject, i in r.sample(pairs, min(len(pairs), 6)):
        told[subject, i] = shown = token(r, language) if short else shown_value(r, known[i][1], language)
        one = known[i]
        clause = says.format(s=subject, a=one[0][0], v=shown) if fixed else state(r, subject, one, shown, language)
        lines.append(f"[{len(lines) + 1}] {clause}")
    turns: Turns = []
    for (subject, i), shown in r.sample(list(told.items()), len(told)):
        cited = f"{'' if zh else ' '}[{list(told).index((subject, i)) + 1}]{STOP[language]}"
        turns += [("user", question(subject, known[i])), ("assistant", shown + cited)]
        stranger = r.choice([token(r, language), name(r, language), neighbour(r, subject, language)])
        other = r.choice(attributes(language)) if fixed else attribute(r, language)
        if r.random() < 0.08 and stranger not in subjects:
            turns += [("user", question(stranger, known[i])), ("assistant", ABSTENTION[language])]
        if r.random() < 0.25 and not any(alike(language, other, one) for one in known):
            turns += [("user", question(subject, other)), ("assistant", ABSTENTION[language])]
    turns[0] = ("user", "\n".join([*lines, turns[0][1]]))
    return turns


class Block:
    """Numbered lines about a few subjects, and what they say: {(subject, attribute index): (value, line number)}."""

    def __init__(self, r: random.Random, language: str, max_lines: int = 5):
        self.r, self.language = r, language
        count = r.randint(1, max_lines)
        subjects = [name(r, language) for _ in range(r.choice((1, 1, 2, 2, count)))]
        if count > 1 and r.random() < 0.3:
            subjects.append(neighbour(r, subjects[0], language))
        self.subjects = list(dict.fromkeys(subjects))
        self.attributes = several(r, language, r.randint(2, 6))
        self.facts: dict[tuple[str, int], tuple[str, int]] = {}
        self.asked: set[tuple[str, int]] = set()
        self.lines: list[str] = []
        self.has_stray = False
        untold = [(subject, i) for subject in self.subjects for i in range(len(self.attributes))]
        r.shuffle(untold)
        while len(self.lines) < count:
            if self.facts and (r.random() < 0.08 or not untold):
                self.add_noise() if r.random() < 0.5 else self.tell([r.choice(list(self.facts))])
            else:
                self.tell(self.next_told(untold))

    def add_noise(self) -> None:
        subject = self.r.choice(self.subjects)
        clause = self.r.choice(frames(f"{self.language}.noise")).format(s=subject, x=phrase(self.r, self.language))
        text = sentence(self.r, [clause], self.language)
        self.lines.append(line(self.r, text, subject, self.attributes[0], self.language, False))

    def next_told(self, untold: list[tuple[str, int]]) -> list[tuple[str, int]]:
        """One thing to tell, now and then a second about the same subject."""
        told = [untold.pop()]
        same = [pair for pair in untold if pair[0] == told[0][0]]
        if same and self.r.random() < 0.15:
            told.append(same[0])
            untold.remove(same[0])
        return told

    def tell(self, told: list[tuple[str, int]]) -> None:
        """A line; what was told before is told anew, and the last line is right."""
        r, language, subject = self.r, self.language, told[0][0]
        clauses, is_titled, has_stray = [], r.random() < 0.14, r.random() < 0.12
        self.has_stray = self.has_stray or has_stray
        for pair in told:
            known = self.attributes[pair[1]]
            shown = shown_value(r, known[1], language)
            self.facts[pair] = (shown, len(self.lines) + 1)
            if is_titled:
                clause = state(r, pronoun(r, language), known, "\0", language)
                clauses.append(with_pronoun(clause, language).replace("\0", shown))
            else:
                clauses.append(state(r, subject, known, shown, language))
        content = sentence(r, clauses, language, has_stray)
        for pair in told:  # a value that begins the sentence stays as it is, or the answer would not stand there
            shown = self.facts[pair][0]
            content = content if shown in content else content.replace(capital(shown), shown, 1)
        self.lines.append(line(r, content, subject, self.attributes[told[0][1]], language, is_titled))

    def question(self, abstain: float) -> tuple[str, str]:
        """(question, answer): about something a line says that was not asked yet, or about something none says."""
        r, language = self.r, self.language
        if r.random() < abstain or not self.unasked():
            subject, known = self.missing()
            if r.random() < 0.1 and kind_group(known[1]) not in self.kinds(subject) and self.can_ask_kind(known[1]):
                return ask_kind(r, subject, known[1], language), ABSTENTION[language]
            return ask(r, subject, known, language), ABSTENTION[language]
        (subject, i), (shown, at) = r.choice(self.unasked())
        self.asked.add((subject, i))
        known = self.attributes[i]
        asked = ask(r, subject, known, language)
        if r.random() < 0.08 and known[0]:
            which = r.choice(frames(f"{language}.which"))
            return which.format(q=asked, s=subject, a=r.choice(known[0])), f"[{at}]{STOP[language]}"
        if r.random() < 0.1 and self.kinds(subject).count(kind_group(known[1])) == 1 and self.can_ask_kind(known[1]):
            asked = ask_kind(r, subject, known[1], language)
        return asked, f"{shown}[{at}]。" if language == "zh" else f"{shown} [{at}]."

    def unasked(self) -> list[tuple[tuple[str, int], tuple[str, int]]]:
        return [fact for fact in self.facts.items() if fact[0] not in self.asked]

    def kinds(self, subject: str) -> list[str]:
        return [kind_group(self.attributes[i][1]) for who, i in self.facts if who == subject]

    def can_ask_kind(self, kind: str) -> bool:
        """No stray person or date stands there that could be meant too."""
        return not self.has_stray and bool(frames(f"{self.language}.kindask.{kind_group(kind)}"))

    def missing(self) -> tuple[str, Attribute]:
        """A (subject, attribute) that no line tells: a stranger's, or an untold one of somebody present."""
        r, language = self.r, self.language
        subject = r.choice(self.subjects)
        if r.random() < 0.25:
            stranger = neighbour(r, subject, language) if r.random() < 0.4 else name(r, language)
            if stranger not in self.subjects:
                return stranger, r.choice(self.attributes)
        told = [self.attributes[i] for who, i in self.facts if who == subject]
        while True:
            way = r.random()
            known = r.choice(self.attributes) if way < 0.55 else attribute(r, language)
            known = other_aspect(r, language, known) if way < 0.2 else known
            if not any(alike(language, known, other) for other in told):
                return subject, known

    def render(self, question: str) -> str:
        lines = "\n".join(f"[{n}] {text}" for n, text in enumerate(self.lines, 1))
        return BLOCK[self.language].format(lines=lines, question=question)


def context(
    r: random.Random, language: str, max_lines: int = 5, followups: tuple[int, int] = (3, 7), abstain: float = 0.27
) -> Turns:
    """A block, its question, and further questions: several supervised answers for one reading of the lines."""
    block = Block(r, language, max_lines)
    turns: Turns = []
    for i in range(1 + r.randint(*followups)):
        asked, answer = block.question(abstain)
        turns += [("user", block.render(asked) if i == 0 else asked), ("assistant", answer)]
        if not block.unasked() and r.random() < 0.75:
            break
    return turns


def context_easy(r: random.Random, language: str) -> Turns:
    return context(r, language, max_lines=3, followups=(3, 6), abstain=0.15)

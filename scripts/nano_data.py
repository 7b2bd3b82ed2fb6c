"""Generated conversations that teach the nano model its abilities, in Chinese and English.

Promises: the same seed gives the same conversations, and no two runs of the same ability are likely to share a name.
Does not: know tokens, or measure anything (scripts/measure_nano.py has a generator of its own, with other sentences).

A conversation is a list of (role, text) pairs. Every assistant turn is a target; "prefilled" text stands at the head of
the assistant turn that follows and is none; "raw" is plain text without a chat.
"""

import json
import random
import re
import string

from nano_names import (
    Attribute,
    attributes,
    domain,
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
    value,
    words,
)

Turns = list[tuple[str, str]]

STOP = dict(zh="。", en=".")
ABSTENTION = dict(zh="根据现有信息无法回答。", en="I cannot answer from the information given.")
UNKNOWN = dict(zh="我不知道。", en="I do not know.")
NOTED = dict(zh="好的,我记住了。", en="OK, I will remember that.")
BLOCK = dict(
    zh="[最新知识]\n{lines}\n请根据以上信息回答下列问题,用[编号]注明来源;信息不足时回答“根据现有信息无法回答。”\n问题:{question}",
    en="[Latest knowledge]\n{lines}\nAnswer the question from the information above and cite sources as [n]; "
    'if it is not there, answer "I cannot answer from the information given."\nQuestion: {question}',
)
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


def token(r: random.Random, language: str) -> str:
    """Something that is one token, or nearly."""
    way = r.random()
    if way < 0.3:
        return r.choice("0123456789")
    if way < 0.5:
        return r.choice("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    return han(r, 1, 1) if language == "zh" else r.choice(words("english"))


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


# --- sentences about an attribute --------------------------------------------------------------------------------


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def kind_group(kind: str) -> str:
    """The kinds of value that share sentences: every amount with a unit, every noun phrase."""
    return "number" if kind.startswith("u") else "phrase" if kind == "name" else kind


def invented_attribute(r: random.Random, language: str) -> Attribute:
    """A name no table holds: only its spelling can tell it from others."""
    if language == "zh":
        names = [han(r, 1, 3) + r.choice("率 度 数 量 名 地 值 费 者 期 员 色 号 点 法 级".split())]
    else:
        tail = "rate level count name place value fee date color number point grade type".split()
        names = [f"{r.choice([made_up(r), r.choice(words('english')).lower()])} {r.choice(tail)}"]
    kinds = "money person place phrase code number date version name org pct".split()
    return names, r.choice(kinds), [], []


def ask(r: random.Random, subject: str, attribute: Attribute, language: str) -> str:
    names, kind, questions, _ = attribute
    way = r.random()
    if not (questions and way < 0.4):
        group = frames(f"{language}.ask.{kind_group(kind)}")
        questions = group if group and way < 0.7 else frames(f"{language}.ask" if way < 0.87 else f"{language}.ask.any")
    text = r.choice(questions).format(s=subject, a=r.choice(names))
    if language == "zh":
        return text + r.choice(["?", "?", "?", "", "?"])
    return (capital(text) if r.random() < 0.9 else text) + r.choice(["?", "?", "?", "", "."])


def state(r: random.Random, subject: str, attribute: Attribute, shown: str, language: str) -> str:
    """A clause without its full stop that says subject's attribute is `shown`."""
    names, kind, _, sentences = attribute
    way = r.random()
    if not (sentences and way < 0.4):
        group = frames(f"{language}.line.{kind_group(kind)}")
        sentences = group if group and way < 0.7 else frames(f"{language}.line")
    return r.choice(sentences).format(s=subject, a=r.choice(names), v=shown)


def sentence(r: random.Random, clauses: list[str], language: str) -> str:
    lead = r.choice(frames(f"{language}.lead")) if r.random() < 0.15 else ""
    tail = r.choice(frames(f"{language}.tail")) if r.random() < 0.12 else ""
    stop = STOP[language] if r.random() < 0.93 and not clauses[-1].endswith(".") else ""
    between = r.choice([",", ";"] if language == "zh" else ["; ", ", and ", ". "])
    body = lead + between.join(clauses) + tail + stop
    return capital(body) if language == "en" and (lead or r.random() < 0.9) else body


def line(r: random.Random, content: str, subject: str, attribute: Attribute, language: str) -> str:
    """`(date domain) title:content`; the title is the subject, perhaps with the attribute, other words, or missing."""
    when = f"{r.randint(2015, 2029)}-{r.randint(1, 12):02d}-{r.randint(1, 28):02d}"
    word, form = r.choice(attribute[0]), r.random()
    if language == "zh":
        titles = [subject, f"{subject}{word}", f"{subject}的{word}", phrase(r, "zh")]
    else:
        titles = [subject, f"{subject} {word}", f"{subject}: {word}", phrase(r, "en").title()]
    title = "" if form < 0.25 else titles[0] if form < 0.65 else r.choice(titles)
    return f"({when} {domain(r)}) " + (f"{title}{':' if language == 'zh' else ': '}{content}" if title else content)


# --- questions on a context block --------------------------------------------------------------------------------


def drill(r: random.Random, language: str) -> Turns:
    """A small block without its frame: short names, a few attributes, short values, every line asked about.

    Half of them use one fixed sentence and one fixed question, half the sentences of the real thing.
    """
    zh, fixed, short = language == "zh", r.random() < 0.4, r.random() < 0.6
    count = r.choice((1, 1, 1, 2, 2, 3))
    subjects = list(dict.fromkeys((token if r.random() < 0.4 else name)(r, language) for _ in range(count)))
    known = r.sample(attributes(language), r.randint(2, 5))
    if fixed:
        known = [([r.choice(names)], kind, [], []) for names, kind, _, _ in known]
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

    def question(subject: str, attribute: Attribute) -> str:
        return asks.format(s=subject, a=attribute[0][0]) if fixed else ask(r, subject, attribute, language)

    all_names = {text for names, _, _, _ in known for text in names}
    pairs = [(subject, i) for subject in subjects for i in range(len(known))]
    told: dict[tuple[str, int], str] = {}
    lines: list[str] = []
    for subject, i in r.sample(pairs, min(len(pairs), 6)):
        told[subject, i] = shown = token(r, language) if short else value(r, known[i][1], language)
        fixed_clause = says.format(s=subject, a=known[i][0][0], v=shown)
        clause = fixed_clause if fixed else state(r, subject, known[i], shown, language)
        lines.append(f"[{len(lines) + 1}] {clause}")
    turns: Turns = []
    for (subject, i), shown in r.sample(list(told.items()), len(told)):
        cited = f"{'' if zh else ' '}[{list(told).index((subject, i)) + 1}]{STOP[language]}"
        turns += [("user", question(subject, known[i])), ("assistant", shown + cited)]
        stranger = r.choice([token(r, language), name(r, language), neighbour(r, subject, language)])
        other = r.choice([attribute for attribute in attributes(language) if attribute[0][0] not in all_names])
        if r.random() < 0.08 and stranger not in subjects:
            turns += [("user", question(stranger, known[i])), ("assistant", ABSTENTION[language])]
        if r.random() < 0.25:
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
        picked = r.sample(attributes(language), r.randint(2, 6))
        self.attributes = [invented_attribute(r, language) if r.random() < 0.15 else known for known in picked]
        self.facts: dict[tuple[str, int], tuple[str, int]] = {}
        self.asked: set[tuple[str, int]] = set()
        self.lines: list[str] = []
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
        self.lines.append(line(self.r, text, subject, self.attributes[0], self.language))

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
        clauses = []
        for pair in told:
            attribute = self.attributes[pair[1]]
            shown = value(r, attribute[1], language)
            self.facts[pair] = (shown, len(self.lines) + 1)
            clauses.append(state(r, subject, attribute, shown, language))
        self.lines.append(line(r, sentence(r, clauses, language), subject, self.attributes[told[0][1]], language))

    def question(self, abstain: float) -> tuple[str, str]:
        """(question, answer): about something a line says that was not asked yet, or about something none says."""
        r, language = self.r, self.language
        if r.random() < abstain or not self.unasked():
            return ask(r, *self.missing(), language), ABSTENTION[language]
        (subject, i), (shown, at) = r.choice(self.unasked())
        self.asked.add((subject, i))
        asked = ask(r, subject, self.attributes[i], language)
        if r.random() < 0.08:
            which = r.choice(frames(f"{language}.which"))
            return which.format(q=asked, s=subject, a=r.choice(self.attributes[i][0])), f"[{at}]{STOP[language]}"
        return asked, f"{shown}[{at}]。" if language == "zh" else f"{shown} [{at}]."

    def unasked(self) -> list[tuple[tuple[str, int], tuple[str, int]]]:
        return [fact for fact in self.facts.items() if fact[0] not in self.asked]

    def missing(self) -> tuple[str, Attribute]:
        """A (subject, attribute) that no line tells: a stranger's, or an untold one of somebody present."""
        r, language = self.r, self.language
        subject = r.choice(self.subjects)
        if r.random() < 0.25:
            stranger = neighbour(r, subject, language) if r.random() < 0.4 else name(r, language)
            if stranger not in self.subjects:
                return stranger, r.choice(self.attributes)
        told = [names for who, i in self.facts if who == subject for names in self.attributes[i][0]]
        while True:
            way = r.random()
            attribute = (
                r.choice(self.attributes)
                if way < 0.4
                else invented_attribute(r, language)
                if way < 0.46
                else r.choice(attributes(language))
            )
            if attribute[0][0] not in told:
                return subject, attribute

    def render(self, question: str) -> str:
        lines = "\n".join(f"[{n}] {text}" for n, text in enumerate(self.lines, 1))
        return BLOCK[self.language].format(lines=lines, question=question)


def context(
    r: random.Random, language: str, max_lines: int = 5, followups: tuple[int, int] = (3, 7), abstain: float = 0.2
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
    told = [(known, value(r, known[1], language)) for known in r.sample(attributes(language), r.randint(1, 2))]
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


# --- tables and sums ---------------------------------------------------------------------------------------------


def cell(r: random.Random, language: str) -> str:
    makers = [
        lambda: str(r.randint(0, 10 ** r.randint(1, 5))),
        lambda: literal(r, language),
        lambda: literal(r, language),
        lambda: person(r, language),
        lambda: value(r, r.choice(attributes(language))[1], language),
        lambda: r.choice(words("english")) if language == "en" else han(r, 2, 3),
    ]
    while True:
        text = r.choice(makers)()
        if len(text) <= 24 and not set(text) & set(',|"\\\n'):
            return text


def columns(r: random.Random, language: str) -> list[str]:
    names = r.sample(words(f"{language}.columns"), r.randint(2, 4))
    if r.random() < 0.4:
        coin = (lambda: han(r, 2, 3)) if language == "zh" else (lambda: r.choice(words("english")).lower())
        names = [old if r.random() < 0.5 else r.choice([made_up(r), coin()]) for old in names]
    if language == "en" and r.random() < 0.3:
        names = [old.title() for old in names]
    return list(dict.fromkeys(names))


def table(r: random.Random, language: str) -> Turns:
    """Markdown or CSV to a JSON list of objects; every cell becomes a string, as it is written."""
    names = columns(r, language)
    few = [[cell(r, language) for _ in range(2)] if r.random() < 0.25 else [] for _ in names]  # columns that repeat
    cells = [[r.choice(pool) if pool else cell(r, language) for pool in few] for _ in range(r.randint(1, 4))]
    form = r.random()
    if form < 0.5:
        rule = [r.choice(["---", "---", "---", "----", ":---", "-"])] * len(names)
        outer, inner = ("| {} |", " | ") if r.random() < 0.85 else ("|{}|", "|")
        text = "\n".join(outer.format(inner.join(row)) for row in [names, rule, *cells])
    else:
        text = "\n".join((", " if form > 0.92 else ",").join(row) for row in [names, *cells])
    answer = json.dumps([dict(zip(names, row, strict=True)) for row in cells], ensure_ascii=False)
    return [("user", r.choice(frames(f"{language}.table")).format(t=text)), ("assistant", answer)]


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
        0.97,
        {
            "copying": 0.05,
            "lookup": 0.01,
            "drill": 0.20,
            "context": 0.33,
            "context_real": 0.12,
            "facts": 0.03,
            "raw_facts": 0.01,
            "unknown": 0.02,
            "identity": 0.03,
            "talk": 0.01,
            "memory": 0.02,
            "table": 0.12,
            "sums": 0.05,
        },
    ),
    (
        1.00,  # facts are the first to fade when the mixture is wide
        {
            "copying": 0.04,
            "drill": 0.12,
            "context": 0.24,
            "context_real": 0.10,
            "facts": 0.20,
            "raw_facts": 0.02,
            "unknown": 0.04,
            "identity": 0.05,
            "talk": 0.01,
            "memory": 0.01,
            "table": 0.12,
            "sums": 0.05,
        },
    ),
]

"""Names and quotations in Chinese and English texts.

Promises: X2, F-35 and GPT-4o are names, and not numbers; Chinese names are found by the tags of a dictionary of 349,000
words, and new ones by its guesses. Does not: find every name, or tell a person from a place.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from evergreen.knowledge.quantities import SMALL, SPELLINGS

QUOTED = re.compile("|".join(f"{a}([^{a}{b}\\n]{{1,60}}){b}" for a, b in ("《》", "「」", "『』", "“”", "〈〉", '""')))
CODE = re.compile(r"(?<![a-z0-9.])(?=[a-z0-9._/-]*\d)[a-z][a-z0-9]*(?:[-._/][a-z0-9]+)*")  # x2, f-35, gpt-4o
VERSION = re.compile(r"(?<![a-z0-9.])v?\d+\.\d+(?:\.\d+)+(?:[-+][\w.]+)?|(?<![a-z0-9])v\d+(?:\.\d+)?(?![a-z0-9.])")
LATIN = re.compile(r"(?<![^\W一-鿿]|['’])[A-ZÀ-ÖØ-Þ][a-zA-Z0-9À-ɏ'’&-]*(?:\.[A-Z]\.?)*")
_CAPITAL = "[A-Z][A-Za-z0-9À-ɏ&-]*"
LATIN_NAME = re.compile(rf"(?<![A-Za-z0-9'’]){_CAPITAL}(?:\.(?= [A-Z]))?(?: (?:of |& )?{_CAPITAL})*")
HAN = re.compile("[一-鿿]+")
_BY = "(?<![自理缘])由(?![于此来])"  # a word of its own: 由白羽担任 would be cut 由白羽 + 担任
AGENT_OR_HAN = re.compile(f"{_BY}|(?:(?!{_BY})[一-鿿])+")
TITLE = re.compile(
    "(?:执行|财务|运营|技术|信息|新闻|指挥)官|董事长|总经理|经理|主席|总裁|总统|总理|首相|部长|局长|市长|省长|县长|州长|院长"
    "|校长|会长|队长|教练|创始人|发言人|负责人|记者|教授|博士|医生|导演|作家|歌手|演员|选手|前锋|后卫|门将|任命|分析师|工程师"
)
PLACE_ENDS = "巷口台山河湖路街桥镇村屯庄岭坡湾岛港寺塔园弄沟坪坝洲滩荡潭泉峡谷"
NO_NAME_PART = "的是在和与及了于由向到为有也将被把从对说称表示介认指强宣已曾透告出带率兼还就都以"
TITLED = re.compile(f"(?:{TITLE.pattern}) ([一-鿿][^\\W{NO_NAME_PART}a-z0-9]{{1,2}})")
NO_PERSON_ENDS = "性度者粉病化率感处里间色"
PERSON_CUES = "由是为叫自师人者长官员家手"
PERSON = re.compile(f"[一-鿿][^\\W{NO_NAME_PART}a-z0-9]{{1,2}}")
PLACE_CUES = ("在", "位于", "到", "至", "来自", "设于", "坐落于")
PLACE = re.compile(f"[^\\W{NO_NAME_PART}a-z0-9]{{2,4}}?[省市区县州{PLACE_ENDS}]")
INSTITUTION = re.compile("(?:学院|大学|中学|小学|医院|银行|集团|俱乐部|出版社|航空|保险|证券|药业|队)$")
ABSTRACT = ("ing", "ly", "tion", "tions", "ment", "ments", "ness")
KINDS = "部院局处科队社厂馆店站校街路巷区镇县市省村乡桥湖山港"  # ends of names of offices, teams, places
PERSONS = ("nr", "nrt", "nrfg")
PROPER = (*PERSONS, "ns", "nt", "nz")
WORDS = Path(__file__).resolve().parents[1] / "assets" / "words.txt"


@cache
def word_list(name: str) -> frozenset[str]:
    """One of the lists of assets/words.txt."""
    return frozenset(word for group in word_groups(name) for word in group)


@cache
def word_groups(name: str) -> tuple[tuple[str, ...], ...]:
    """The lines of such a list."""
    text = re.sub("(?m)^#.*$", "", WORDS.read_text(encoding="utf-8"))
    _, *parts = re.split(r"(?m)^\[(\w+)\]$", text)
    lines = dict(zip(parts[::2], parts[1::2], strict=True))[name].splitlines()
    return tuple(tuple(line.split()) for line in lines if line.strip())


def normal(text: str) -> str:
    """The spelling in which texts are compared: NFKC (full-width forms become ordinary ones), lower case, one kind of
    dash and of space."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return re.sub("[‐‑‒–—−]", "-", text).replace("\u00a0", " ")


def code_spans(text: str) -> list[tuple[int, int]]:
    """Where letters and digits make one name (x2, f-35, gpt-4o, v5.2.1), in a text as `normal` gives it."""
    found = [*VERSION.finditer(text), *CODE.finditer(text)]
    return [match.span() for match in found if match[0] not in SPELLINGS]  # km2 is a unit


def codes(text: str) -> list[str]:
    return [text[start:end] for start, end in code_spans(text) if not text[start:end].startswith("us$")]


def quoted(text: str) -> list[str]:
    found = [next(filter(None, groups)) for groups in QUOTED.findall(text)]
    return [normal(words).strip() for words in found if words.strip()]


def latin_names(text: str) -> list[str]:
    """Capitalised words: not those that are no names anywhere, nor ordinary ones at the head of a sentence."""
    found = []
    for match in LATIN.finditer(text):
        word = re.sub("['’](?:s|ll|re|ve|d|m)$", "", match[0]).rstrip("'’.-")
        before = re.split(r"[.!?:;。！？：；\n]", text[max(0, match.start() - 40) : match.start()])[-1]
        if normal(word) in SPELLINGS and re.search(r"\d\s?$", text[: match.start()]):
            continue  # 512 MW
        is_first = not re.search(r"[^\W_]", before)
        is_ordinary = (
            normal(word).removesuffix("s") in word_list("never")
            or normal(word) in word_list("never")
            or normal(word) in SMALL
            or is_first
            and is_plain(normal(word))
        )
        if word and not is_ordinary:
            found.append(word)
    return found


def is_no_name(word: str) -> bool:
    """Whether a word is none however it is written: The, Monday, July."""
    return normal(word) in word_list("never") or normal(word) in word_list("stop")


def is_plain(word: str) -> bool:
    forms = {word, word.removesuffix("s"), word.removesuffix("es"), re.sub("ies$", "y", word)}
    return bool(forms & word_list("plain")) or word.endswith(ABSTRACT)


def han_names(text: str) -> list[str]:
    """Chinese names: foreign ones joined by dots, and words that are names."""
    dotted = _dotted().findall(text)
    apart = TITLE.sub(r"\g<0> ", _dotted().sub(" ", text))  # 首席财务官顾明川 would be cut 官顾 + 明川
    titled = [name for name in TITLED.findall(apart) if name[0] in word_list("surnames")]
    tagged = [pair for run in HAN.findall(apart) for pair in _tagger().tag(run)]
    named = [word for word, tag in tagged if is_name(word, tag)]
    return dotted + titled + [re.sub("^[由从在](?=..)", "", word) for word in named]  # 由祁云 + 舒 is a wrong cut, too


@cache
def _dotted() -> re.Pattern:
    """史蒂文·斯皮尔伯格, without the words around it."""
    letters = "".join(word_list("foreign"))
    return re.compile(f"[{letters}]{{1,6}}(?:[·•・‧][{letters}]{{1,8}})+")


def is_name(word: str, tag: str) -> bool:
    """Whether a Chinese word with this tag is a name. The tags alone would not do: 明白, 城市, 荣获 are names to them.
    So a person's begins with a surname or is made of the characters that foreign names are written in, and words.txt
    lists the ordinary words that pass."""
    if len(word) < 2 or word in word_list("no_names"):
        return False
    if tag in ("ns", "nt"):  # rare short ones are mostly wrong cuts: 焦比 in 对焦比它快
        return len(word) > 2 or _tagger().suggest_freq(word) >= 10
    is_foreign = all(char in word_list("foreign") for char in word)
    if tag in ("nr", "nrfg") and (is_foreign or word[:2] in word_list("compound_surnames")):
        return True
    if tag in ("nr", "nrfg") and word[0] in word_list("surnames") and len(word) < 4 and word[-1] not in NO_PERSON_ENDS:
        return True
    if is_foreign and (tag == "nrt" or tag == "nz" and len(word) > 2):
        return True
    is_place = len(word) > 2 and tag[0] == "n" and word[-1] in "市县省州镇"
    return is_place and not word.endswith(tuple(word_list("no_places")))


def new_names(run: str) -> list[str]:
    """Names in a run of characters that no source has, where a rare noun is one more often than not: of people, of
    places (三岔口), of firms (恒信食品)."""
    tagged = _tagger().tag(run)
    found = [word for word, tag in tagged if is_name(word, tag) or _is_rare_place(word, tag)]
    for (first, tag), (second, _) in pairwise(tagged):
        is_rare = tag[0] in "nxs" and len(first) > 1 and _tagger().suggest_freq(first) < 100
        if is_rare and second in word_list("firms") and first not in word_list("firms"):
            found.append(first + second)
    has_no_verb = all(tag[0] not in "vdapucrtq" for _, tag in tagged)
    if not found and 3 <= len(run) <= 4 and has_no_verb and begins_like_a_person(run):
        found.append(run)
    return found


def cued_names(text: str) -> list[str]:
    """What stands where a person or a place is named and is made of no known words: 祁云舒 in 由祁云舒担任, 临溪县 in
    搬到临溪县. A person's has three characters, of which the last may be one too much."""
    found = []
    for run in HAN.findall(text):
        at = 0
        for word, _ in _tagger().tag(run):
            at += len(word)
            if word[-1] in PERSON_CUES and (match := PERSON.match(run, at)) and begins_like_a_person(match[0]):
                found.append(match[0])
            if word.endswith(PLACE_CUES) and (match := PLACE.match(run, at)) and _has_unknown_word(match[0]):
                found.append(match[0])
    return found


def begins_like_a_person(name: str) -> bool:
    if name[:2] in word_list("compound_surnames"):
        return True
    return name[0] in word_list("surnames") and _tagger().suggest_freq(name[:2]) < 50


def _has_unknown_word(place: str) -> bool:
    return any(len(word) == 1 or _tagger().suggest_freq(word) < 10 for word in _tagger().cut(place[:-1]))


def _is_rare_place(word: str, tag: str) -> bool:
    return len(word) > 2 and tag[0] in "nl" and word[-1] in PLACE_ENDS and _tagger().suggest_freq(word) < 60


def han_words(text: str) -> list[str]:
    """The words of the Chinese parts of a text."""
    return [word for run in HAN.findall(text) for word in _tagger().cut(run)]


def is_noun(word: str) -> bool:
    """Whether a Chinese word is a noun; of others it is not known."""
    return not HAN.fullmatch(word) or all(tag[0] == "n" for _, tag in _tagger().tag(word))


# -- words with their places ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Word:
    """A Chinese word of a text, and the dictionary's tag for it."""

    text: str
    tag: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.text)

    @property
    def is_noun(self) -> bool:
        return self.tag[0] in "njlz"

    @property
    def is_person(self) -> bool:
        return len(self.text) > 1 and self.tag[:2] == "nr" and self.text[0] in word_list("surnames")

    @property
    def is_proper(self) -> bool:
        return self.tag in PROPER or len(self.text) == 2 and _tagger().suggest_freq(self.text) < 60

    @property
    def is_common(self) -> bool:
        return _tagger().suggest_freq(self.text) > 3000


def words_of(text: str) -> list[Word]:
    """The Chinese words of a text, those of a run next to each other; a surname and a given name are one (周文澜)."""
    found: list[Word] = []
    for run in AGENT_OR_HAN.finditer(text):
        at = run.start()
        for word, tag in _tagger().tag(run[0]):
            last = found[-1] if found else None
            is_given = tag in ("nr", "nrfg") and len(word) < 3
            if is_given and last and last.text in word_list("surnames") and last.end == at:
                found[-1] = Word(last.text + word, "nr", last.start)
            else:
                found.append(Word(word, tag, at))
            at += len(word)
    return found


def noun_spans(words: list[Word]) -> Iterator[tuple[str, int]]:
    """(name, place) of people and of compounds of nouns, three characters long at least."""
    name, at, is_person = "", -1, False
    for word in [*words, Word("", "x", -1)]:
        is_noun = word.is_noun or word.tag == "vn"
        goes_on = word.text in KINDS if is_person else not word.is_person  # 林海 + 队
        if name and is_noun and goes_on and word.start == at + len(name):
            name, is_person = name + word.text, False
            continue
        if len(name) > 2 or name and is_person:
            yield name, at
        name, at, is_person = (word.text if is_noun else ""), word.start, word.is_person


def latin_spans(text: str) -> Iterator[tuple[str, int]]:
    """(name, place) of capitalised words in a row, without ordinary ones at their head."""
    for match in LATIN_NAME.finditer(text):
        words, start = match[0].split(" "), match.start()
        while words and (_is_no_name(words[0]) or start == 0 and normal(words[0]) in word_list("plain")):
            start += len(words.pop(0)) + 1
        if words:
            yield " ".join(words), start


def _is_no_name(word: str) -> bool:
    """The, Monday, July"""
    return normal(word) in word_list("never") or normal(word) in word_list("stop")


def are_one(name: str, other: str) -> bool:
    """Whether two names may be one thing's: a Chinese one within the other, English ones with a word in common."""
    if HAN.match(name):
        return name in other or other in name
    return bool(set(name.split()) & set(other.split()))


@cache
def _tagger():
    """jieba's algorithm and dictionary, in Rust: a sentence is tagged in 3 microseconds, in 900 by jieba itself."""
    import rjieba

    return rjieba.Jieba()

"""Metrics: an answer beside its references becomes a number from 0 to 1. Pure functions of text, nothing is loaded.

Promises: every metric takes `(answer, references, item)` and gives the best over the references; full-width and
half-width characters are the same (NFKC); Chinese needs no spaces. A reference scores 1 against itself.
Does not: judge meaning, or run code.

    exact     equal but for case, white space, closing punctuation, quotes and Markdown stars
    contains  a reference stands in the answer, not as part of a longer word or number
    choice    the letter chosen, A to H; `AB` (several at once) is not one
    numeric   the last number, or the one announced by "answer is", 答案是, ####, \\boxed{}
    rouge_l   F1 of the longest common subsequence of words (letters and digits) and single Chinese characters
    edit      edit similarity of code, as TRACE and CodeXGLUE measure it for Py150
    sari      quality of a simplification against the prompt (Xu et al. 2016), per item, n-grams of 1 to 4
    json      valid JSON, and the reference's value where the reference is JSON
"""

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from evergreen.records import BadInput

if TYPE_CHECKING:
    from evergreen.evaluate.tasks import Item

CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
WORD = re.compile(rf"[{CJK}]|[^\W_{CJK}]+")
CLOSING = ".。!！?？,，;；、… \t\n"
QUOTES = "\"'`*“”‘’「」『』"
MAX_SHORT_WORDS = 8


def normalise(text: str, ignore_case: bool = True) -> str:
    """One spelling for what a reader takes as the same: see `exact`."""
    text = " ".join(unicodedata.normalize("NFKC", text).split())
    text = re.sub(rf"(?<=[{CJK}]) | (?=[{CJK}])", "", text)
    bare = text
    while bare != (shorter := bare.strip(QUOTES + " ").rstrip(CLOSING)):
        bare = shorter
    text = bare or text
    return text.casefold() if ignore_case else text


def exact(answer: str, references: Sequence[str], item: "Item | None" = None) -> float:
    return float(normalise(answer) in {normalise(reference) for reference in references})


def contains(answer: str, references: Sequence[str], item: "Item | None" = None) -> float:
    text = normalise(answer)
    return float(any(_stands_in(normalise(reference), text) for reference in references))


def _stands_in(part: str, text: str) -> bool:
    """Whether `part` stands in `text` as whole words: not "no" in "know", not 70 in 170 or in 70.5."""
    before = rf"(?<![^\W{CJK}])" if re.match(rf"[^\W{CJK}]", part) else ""
    after = rf"(?![^\W{CJK}])" if re.search(rf"[^\W{CJK}]$", part) else ""
    before += r"(?<!\d[.,])" if re.match(r"\d", part) else ""
    after += r"(?![.,]\d)" if re.search(r"\d$", part) else ""
    return bool(part) and re.search(before + re.escape(part) + after, text) is not None


# --- choice ---------------------------------------------------------------------------------------------------------

_LETTER = r"[(\[【{]*([A-H]|(?<=\()[a-h](?=\)))(?![A-Za-z0-9'])"
_ALONE = re.compile(r"[(\[【]?([A-Ha-h])[)\]】]?[.。:、,]?")
_ANNOUNCED = re.compile(
    r"(?:(?i:\b(?:answer|choice|option)(?: is| would be| should be| must be|:)+(?: most likely| clearly| probably)?"
    r"(?: option| choice)?:?|\bi(?:'d| would| will)? (?:choose|pick|select|go with)(?: option)?)"
    r"|(?:答案|正确选项|正确的选项)(?:应该|应当|就)?(?:是|为|选)?(?:选项)?:?|\\boxed)\s*" + _LETTER
)
_IS_RIGHT = re.compile(
    r"(?<![A-Za-z0-9])" + _LETTER + r"[)\]】]?\s*(?:(?i:(?:is|was) (?:the )?(?:best |most )?"
    r"(?:correct|right|answer|appropriate))|(?:选项)?是?(?:正确|对的))"
)
_PICKED = re.compile(r"(?<!不)(?<!不能)(?:选择?|选项(?:是|为))\s*" + _LETTER)
_LEADING = re.compile(rf"[(\[【]?([A-H])(?:[)\]】.:、,;]|\s*[-—]\s|(?![和与或及不]|(?:选项)?是?错)(?=[{CJK}])|\s*\n)")
_STANDING = re.compile(rf"(?<![^\W{CJK}])([A-H])(?![^\W{CJK}]|['’])")
_ARTICLE = re.compile(r"A (?!because|since|as\b|for\b|is\b|which|and\b|due|given|based|but\b|in\b|with\b)[a-z]")


def choice(answer: str, references: Sequence[str], item: "Item | None" = None) -> float:
    options = options_of(item)
    chosen = letter_of(answer, options)
    return float(chosen in {letter_of(reference, options, strict=True) for reference in references} - {None})


def letter_of(text: str, options: dict[str, str] | None = None, strict: bool = False) -> str | None:
    """The letter that an answer settles on, None when it settles on none. In this order: the first line is nothing
    but a letter; one is announced ("the answer is B", 答案是B; the last counts) or picked (选B); the answer begins with
    "B." or "B)"; it is an option's text; a single letter stands in it. `strict` leaves the last of these out."""
    text = re.sub(r"[*`$_]|\\text|\\mathrm", "", unicodedata.normalize("NFKC", text)).strip()
    first = text.split("\n", 1)[0].strip()
    if alone := _ALONE.fullmatch(first):
        return alone[1].upper()
    for patterns in ((_ANNOUNCED, _IS_RIGHT), (_PICKED,)):
        found = [
            match
            for pattern in patterns
            for match in pattern.finditer(text)
            if not _ARTICLE.match(text, match.start(1))
        ]
        if found:
            return max(found, key=lambda match: match.start(1))[1].upper()
    if leading := _LEADING.match(text):
        return leading[1]
    bare = normalise(text)
    for letter, option in (options or {}).items():
        if bare in (normalise(option), normalise(f"{letter} {option}")):
            return letter
    return None if strict else _only_letter(text)


def _only_letter(text: str) -> str | None:
    """The one capital that stands alone, if there is one; an "A" before a word is taken for the article."""
    article = re.compile(r"A (?!or\b|and\b)\w")
    found = {match[1] for match in _STANDING.finditer(text) if not article.match(text, match.start())}
    return found.pop() if len(found) == 1 else None


def options_of(item: "Item | None") -> dict[str, str]:
    """Letter -> text: the row's `choices`, else what the prompt lists on lines of its own or as A.支持,B.反对."""
    if item is None:
        return {}
    if item.choices:
        return dict(zip("ABCDEFGH", item.choices, strict=False))
    prompt = unicodedata.normalize("NFKC", item.question)
    lines = re.findall(r"^\s*[(]?([A-H])[.):、]\s*(\S.*)$", prompt, re.M)
    return dict(lines if len(lines) > 1 else re.findall(r"([A-H])[.、:)]\s*([^\n,;。]+)", prompt))


# --- numeric --------------------------------------------------------------------------------------------------------

_NUMBER = re.compile(
    r"\\d?frac\{(?P<top>\d+)\}\{(?P<bottom>\d+)\}|"
    r"(?P<minus>(?<![A-Za-z0-9_.)%])[-\u2212\u2013])?[$€£¥]?(?:(?P<whole>\d+) (?=\d+/\d))?"
    r"(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)|\d{1,4}(?:,\d{4})+(?!\d)|\d+(?:\.\d+)?|\.\d+)(?P<power>[eE][-+]?\d+)?"
    r"(?:\s?/\s?(?P<over>\d+(?:\.\d+)?))?"
    r"(?P<unit>\s?%|\s?percent\b|\s?[十百千]?万亿|\s?[十百千]?[万亿]|\s?千(?![米克瓦卡升伏字帕赫])"
    r"|\s?(?i:thousand|million|billion|trillion)\b)?"
)
_RESULT = re.compile(
    r"(?:(?i:\b(?:answer|result|total)(?: is|:)+)|####|答案(?:应该)?(?:是|为|:)+|"
    r"结果(?:是|为|:)+|\\boxed\{|(?:所以|因此|总共|一共|共计|合计)(?:是|有|为))([^\n。;]*)"
)
_UNITS = {"": 1.0, "%": 0.01, "percent": 0.01, "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
_CHINESE_UNITS = {"十": 1e1, "百": 1e2, "千": 1e3, "万": 1e4, "亿": 1e8}
_SPELLED = r"[零〇一二两三四五六七八九十百千万亿]+"
_DIGITS = {digit: value for value, digit in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}


def numeric(answer: str, references: Sequence[str], item: "Item | None" = None) -> float:
    """Whole numbers equal, others to a relative 1e-6. A percentage and a bare number are the same either way round: 50%
    is 50 and is 0.5."""
    given = number_in(answer)
    return float(
        given is not None
        and any(_same_number(given, wanted) for reference in references if (wanted := number_in(reference)) is not None)
    )


def number_in(text: str) -> tuple[float, bool] | None:
    """The number that an answer settles on, and whether it is a percentage. Reads 1,234.5, -3, 3/4, 1 1/2, 1e-3, 50%,
    1.2万, 3亿, 2 million, full-width digits, and in a short answer without digits a Chinese numeral."""
    text = unicodedata.normalize("NFKC", text.replace("½", " 1/2")).replace("\u2044", "/")
    text = re.sub(r"\*\*|\\[,!;]|\\(?=[%$])", "", text)
    text = re.sub(rf"({_SPELLED}|\d+)分之({_SPELLED}|\d+(?:\.\d+)?)", _spelled_fraction, text)
    for result in reversed([*_RESULT.finditer(text)]):
        stated = result[1].rpartition("=")[2]
        near = _NUMBER.search(stated)
        if near and near.start() < 40:
            return _value(near)
    if found := [*_NUMBER.finditer(text)]:
        return _value(found[-1])
    spelled = re.findall(_SPELLED, text) if len(text) <= 12 else []
    return (_chinese_number(spelled[-1]), False) if spelled else None


def _value(match: re.Match) -> tuple[float, bool]:
    if match["top"]:
        return int(match["top"]) / max(int(match["bottom"]), 1), False
    value = float(match["digits"].replace(",", "") + (match["power"] or ""))
    if match["over"]:
        value = value / float(match["over"]) if float(match["over"]) else math.inf
    value += float(match["whole"] or 0)
    unit = (match["unit"] or "").strip().lower()
    scale = _UNITS[unit] if unit in _UNITS else math.prod(_CHINESE_UNITS[sign] for sign in unit)
    return (-value if match["minus"] else value) * scale, unit in ("%", "percent")


def _same_number(left: tuple[float, bool], right: tuple[float, bool]) -> bool:
    (a, a_is_percent), (b, b_is_percent) = left, right
    if a == b or not (a.is_integer() and b.is_integer()) and math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9):
        return True
    if a_is_percent == b_is_percent:
        return False
    return math.isclose(a * 100, b, rel_tol=1e-6) if a_is_percent else math.isclose(a, b * 100, rel_tol=1e-6)


def _spelled_fraction(match: re.Match) -> str:
    """三分之一 -> 1/3, 百分之五十 -> 50%."""
    below, above = (part if part[0].isdecimal() else f"{_chinese_number(part):g}" for part in match.groups())
    return f"{above}%" if below == "100" else f"{above}/{below}"


def _chinese_number(text: str) -> float:
    """三千零五 -> 3005; 二十 -> 20; 一百二十万 -> 1200000; a plain row of digits (二〇二六) is read as such."""
    if not set(text) & set(_CHINESE_UNITS):
        return float("".join(str(_DIGITS[sign]) for sign in text))
    total = section = digit = 0.0
    for sign in text:
        if sign in _DIGITS:
            digit = _DIGITS[sign]
        elif sign in "万亿":
            total = (total + section + digit or 1) * _CHINESE_UNITS[sign]
            section = digit = 0.0
        else:
            section, digit = section + (digit or 1) * _CHINESE_UNITS[sign], 0.0
    return total + section + digit


# --- likeness of texts ----------------------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def rouge_l(answer: str, references: Sequence[str], item: "Item | None" = None) -> float:
    return max((_lcs_f1(words(answer), words(reference)) for reference in references), default=0.0)


def edit(answer: str, references: Sequence[str], item: "Item | None" = None) -> float:
    """2·LCS / (characters of both), which is fuzz.ratio: one less the insertions and deletions over both lengths. It is
    kinder than 1 - Levenshtein/longest (kitten, sitting: 0.615 and 0.571). Literal marks of Py150 stand for what they
    hold (<STR_LIT:x> is x), as there."""
    return max((_lcs_f1(_plain_code(answer), _plain_code(reference)) for reference in references), default=0.0)


def _plain_code(text: str) -> str:
    text = text.replace("<NUM_LIT>", "0").strip()
    return re.sub(r"<(?:STR|NUM|CHAR)_LIT(?::(.*?))?>", lambda match: match[1] or "", text, flags=re.S)


def _lcs_f1(left: Sequence[Hashable], right: Sequence[Hashable]) -> float:
    return 2 * lcs_length(left, right) / (len(left) + len(right)) if left or right else 1.0


def lcs_length(left: Sequence[Hashable], right: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence, one machine word for 64 places at a time (Hyyro 2004): 5,000 characters
    against 5,000 take 3 ms where the table takes 3 s."""
    places: dict[Hashable, int] = {}
    for place, token in enumerate(left):
        places[token] = places.get(token, 0) | 1 << place
    everywhere = (1 << len(left)) - 1
    unmatched = everywhere
    for token in right:
        matched = unmatched & places.get(token, 0)
        unmatched = (unmatched + matched | unmatched - matched) & everywhere
    return len(left) - unmatched.bit_count()


def sari(answer: str, references: Sequence[str], item: "Item | None" = None) -> float:
    """Mean of F1 of n-grams kept, F1 of n-grams added and precision of n-grams deleted, over n = 1 to 4, with 0/0 = 1.

    The source is the whole last user turn, instruction included, as in TRACE's 20Minuten. Counts of deleted n-grams
    follow the paper; the authors' script takes the reference off twice where a deleted n-gram repeats, which costs
    0.2 points on 20Minuten and keeps a reference from scoring 1 against itself."""
    source = item.question if item else ""
    texts = [[token.casefold() for token in _tokens(text)] for text in (source, answer, *references)]
    return sum(_sari_of_order(n, *texts) for n in range(1, 5)) / 4


def _tokens(text: str) -> list[str]:
    """Words, numbers with their points, and every other sign by itself."""
    return re.findall(rf"[{CJK}]|\d+(?:[.,]\d+)*|[^\W\d{CJK}]+(?:['’]\w+)?|[^\w\s]", text)


def _sari_of_order(n: int, source: list[str], answer: list[str], *references: list[str]) -> float:
    def grams(tokens: list[str]) -> Counter:
        return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))

    num_references = len(references)
    wanted = sum((grams(reference) for reference in references), Counter())
    old = Counter({gram: count * num_references for gram, count in grams(source).items()})
    new = Counter({gram: count * num_references for gram, count in grams(answer).items()})
    kept, to_keep = old & new, old & wanted
    kept_well = kept & wanted
    deleted = old - new
    deleted_well = deleted & (old - wanted)
    added, to_add = set(new) - set(old), set(wanted) - set(old)
    keep = _f1(_share(kept_well, kept), _ratio(kept_well.total(), to_keep.total()))
    add = _f1(_ratio(len(added & set(wanted)), len(added)), _ratio(len(added & set(wanted)), len(to_add)))
    return (keep + add + _share(deleted_well, deleted)) / 3


def _share(part: Counter, whole: Counter) -> float:
    return _ratio(sum(part[gram] / whole[gram] for gram in part), len(whole))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 1.0


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


# --- json -----------------------------------------------------------------------------------------------------------

_NOT_JSON = object()


def json_match(answer: str, references: Sequence[str], item: "Item | None" = None) -> float:
    """1 for JSON that has a reference's value (key order and 1 or 1.0 do not matter; prose around it does)."""
    given = _parsed(answer)
    if given is _NOT_JSON:
        return 0.0
    wanted = [value for reference in references if (value := _parsed(reference)) is not _NOT_JSON]
    return float(not wanted or any(_same_json(given, value) for value in wanted))


def _parsed(text: str) -> Any:
    text = text.strip()
    head, _, body = text.partition("\n")
    if head.strip().lower() in ("```", "```json") and body.endswith("```"):
        text = body[:-3]
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return _NOT_JSON


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _same_json(left: Any, right: Any) -> bool:
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same_json(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_same_json, left, right))
    return isinstance(left, bool) == isinstance(right, bool) and left == right  # Python's True is 1, JSON's is not


# --- which metric ---------------------------------------------------------------------------------------------------

METRICS: dict[str, Callable[[str, Sequence[str], "Item | None"], float]] = {
    "exact": exact,
    "contains": contains,
    "choice": choice,
    "numeric": numeric,
    "rouge_l": rouge_l,
    "edit": edit,
    "sari": sari,
    "json": json_match,
}


def check_name(name: str, where: str = "--metric") -> None:
    if name != "auto" and name not in METRICS:
        raise BadInput(f"{where} {name!r} is not known: {', '.join(METRICS)} or auto")


def choose(items: Sequence["Item"]) -> str:
    """The metric that fits a task's references: letters choice, numbers numeric, objects and lists json, short texts
    exact, long ones rouge_l."""
    if all(_is_letter(reference, item) for item in items for reference in item.references):
        return "choice"
    references = [reference for item in items for reference in item.references]
    if all(_is_number(reference) for reference in references):
        return "numeric"
    if all(isinstance(_parsed(reference), dict | list) for reference in references):
        return "json"
    return "exact" if median(_num_words(reference) for reference in references) <= MAX_SHORT_WORDS else "rouge_l"


def check_fit(metric: str, items: Sequence["Item"]) -> None:
    """Raises BadInput, naming the row, when a reference gives the metric nothing to compare with."""
    for item in items:
        if metric == "choice":
            letters = [letter_of(text, options_of(item), strict=True) for text in item.references]
            wanted, fits = "a letter A to H", all(letters)
        elif metric == "numeric":
            wanted, fits = "a number", all(number_in(text) for text in item.references)
        elif metric == "sari":
            wanted, fits = "a text to simplify in the prompt and a simplification", bool(item.question.strip())
        else:
            return
        if not fits:
            raise BadInput(
                f"{item.origin}: metric {metric} wants {wanted} as the answer, got "
                f"{item.references[0][:60]!r}: choose another --metric ({', '.join(METRICS)} or auto)"
            )


def _is_letter(text: str, item: "Item") -> bool:
    """B, (B), or B alone on the first line with reasons below it, as in ScienceQA; "B. text" and an option's text where
    the options are listed."""
    first = text.strip().split("\n", 1)[0].strip()
    if _ALONE.fullmatch(first):
        return first.upper() == first
    options = options_of(item)
    return len(options) > 1 and "\n" not in text.strip() and letter_of(text, options, strict=True) in options


def _is_number(text: str) -> bool:
    return _NUMBER.fullmatch(normalise(text)) is not None or ("####" in text and number_in(text) is not None)


def _num_words(text: str) -> float:
    """Words, two Chinese characters counted as one."""
    return sum(0.5 if re.match(f"[{CJK}]", word) else 1.0 for word in words(text))

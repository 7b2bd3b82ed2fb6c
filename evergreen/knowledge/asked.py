"""Whether a bare value ("61 dollars [1].") can answer what was asked, judged by the sources that it cites.

A sentence names what it is about and is checked for that; a value alone leaves it to the question. So the question's
names take the place of the missing ones: who asks for the price of the Lumo Toaster is not told the Lumo Kettle's.

Names are capitalised words, and what an entry's title names (墨竹手机), which a question may write in small letters.
"""

import re
from collections.abc import Sequence

from evergreen.knowledge.evidence import Claim, Evidence
from evergreen.knowledge.names import han_words, is_noun, latin_names, normal, word_list
from evergreen.knowledge.sentences import CITATION

MAX_TERMS = 2  # a word or two alone are a value
PRICE = re.compile(
    r"多少钱|(?:价格|售价|定价|票价)(?:是|为)?多少|\bhow much (?:is|are|was|were)\b"
    r"|\bwhat (?:do|does|did) .{1,60}\bcost\b|\bhow much .{1,60}\bcost\b|\b(?:what is|what's|what was) the price\b"
)
ATTRIBUTES = frozenset(
    "价格 售价 定价 报价 价钱 版本 固件 重量 尺寸 颜色 地址 电话 时间 日期 作者 老板 馆长 负责人 经理 开发者 厂家 厂商"
    " 公司 品牌 材质 容量 电池 price prices cost costs version release released weight weigh weighs size colour color"
    " date time address phone owner director author maker opens open closes close come made".split()
)
RUN = re.compile(r"[一-鿿]+|[a-z0-9][a-z0-9'-]*")
GAP = re.compile(r"[ \u00a0-]?")  # between two words of one name


def unfit(question: str, answer: str, used: Sequence[Evidence]) -> str:
    """Why the value is no answer to the question, "" when it may be one or is no bare value."""
    claim = Claim(CITATION.sub("", answer))
    if not used or len(claim.terms - set(claim.codes)) > MAX_TERMS:
        return ""
    if PRICE.search(normal(question)) and not claim.quantities and (claim.codes or claim.dates):
        return f"{claim.text.strip(' .。')} is no price"
    if name := _stranger(question, claim, used) or _other_title(question, used):
        return f"{name}, which is asked about, is not in what it cites"
    return ""


def _stranger(question: str, claim: Claim, used: Sequence[Evidence]) -> str:
    """A name of the question of which the sources have a sibling only: Lumo Kettle for Lumo Toaster. Parts that stand
    there without one are no sign: of World Cup Final many a text says World Cup."""
    theirs = [run for one in used for text in (one.source.title, one.content) for run in _runs(text)]
    for run in _runs(question):
        missing = [word for word in run if not any(one.has_name(word, claim) for one in used)]
        if any(_are_siblings(run, other, missing) for other in theirs):
            return " ".join(run)
    return ""


def _are_siblings(run: list[str], other: list[str], missing: list[str]) -> bool:
    """Whether they are equal but for missing words that are no slips of the pen (Definite, Definitive)."""
    if len(run) != len(other):
        return False
    pairs = [(a, b) for a, b in zip(run, other, strict=True) if normal(a) != normal(b)]
    return 0 < len(pairs) < len(run) and all(a in missing and normal(a)[:4] != normal(b)[:4] for a, b in pairs)


def _other_title(question: str, used: Sequence[Evidence]) -> str:
    """What the question has instead of the last word of every cited title: 墨竹手表 where it is 墨竹手机."""
    found = [_instead(_words(question), _words(one.source.title), used) for one in used]
    return found[0] if all(found) else ""


def _instead(asked: list[str], title: list[str], used: Sequence[Evidence]) -> str:
    """Only titles of two or three words are names; a word for what is asked (its price) is no part of one."""
    *head, last = title or [""]
    if len(head) not in (1, 2) or last in asked:
        return ""
    for start in range(len(asked) - len(head)):
        other = asked[start + len(head)]
        is_name = len(other) > 1 and other not in ATTRIBUTES | word_list("stop") and is_noun(other)
        if asked[start : start + len(head)] == head and is_name and not any(one.has_words(other) for one in used):
            return ("" if re.search("[一-鿿]", other) else " ").join([*head, other])
    return ""


def _words(text: str) -> list[str]:
    return [word for run in RUN.findall(normal(text)) for word in (han_words(run) or [run])]


def _runs(text: str) -> list[list[str]]:
    """Names of several words that stand side by side: [["Lumo", "Toaster"]]."""
    runs, end = [], -1
    for name in latin_names(text):
        start = text.index(name, max(end, 0))
        if runs and GAP.fullmatch(text[end:start]):
            runs[-1].append(name)
        else:
            runs.append([name])
        end = start + len(name)
    return [run for run in runs if len(run) > 1]

"""The content words of a text, and how many of them another text has: relevance of entries, support of sentences.

Chinese words are a dictionary's, English ones are cut to what their forms share. No statistics of a collection are
needed, so a figure means the same for one entry as for a million.
"""

import re

from evergreen.knowledge.names import codes, han_words, normal, word_list

WORD = re.compile(r"[a-z0-9à-öø-ÿ]+(?:[.'-][a-z0-9]+)*")


def terms_of(text: str) -> frozenset[str]:
    """The content words of a text: Latin words by their stem, codes (x2), Chinese words of a dictionary."""
    spelled = normal(text)
    latin = {stem(word) for word in WORD.findall(spelled) if word not in word_list("stop")}
    han = {word for word in han_words(spelled) if word not in word_list("stop")}
    return frozenset(latin | han | set(codes(spelled)))


def stem(word: str) -> str:
    """What English forms of a word share: costs, cost -> cost; released, release -> releas."""
    word = word.removesuffix("'s")
    if word.endswith("ies") and len(word) > 4:
        return word.removesuffix("ies") + "y"
    for suffix in ("ing", "ed", "es", "s", "e"):
        if word.endswith(suffix) and len(word) - len(suffix) >= 3 and not word.endswith("ss"):
            return _single(word.removesuffix(suffix)) if suffix in ("ing", "ed") else word.removesuffix(suffix)
    return word


def _single(word: str) -> str:
    """running -> run, but selling -> sell."""
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "lsz" else word


def share_of(terms: frozenset[str], text: str) -> float:
    """The share of the terms that stand in a text as `normal` gives it, from 0 to 1; longer Chinese ones weigh more,
    as they say more."""
    if not terms:
        return 0.0
    words = stems_of(text)
    weights = {term: _weight(term) for term in terms}
    return sum(weight * _stands(term, text, words) for term, weight in weights.items()) / sum(weights.values())


def stems_of(text: str) -> set[str]:
    words = WORD.findall(text)
    return {stem(word) for word in [*words, *(part for word in words if "-" in word for part in word.split("-"))]}


def _weight(term: str) -> float:
    return min(len(term), 4) if "一" <= term[0] <= "鿿" else 2.0


def _stands(term: str, text: str, words: set[str]) -> float:
    """1 where the term stands; a longer Chinese word counts by its pairs of characters (售价 in 价格: not)."""
    if not "一" <= term[0] <= "鿿":
        is_akin = len(term) > 5 and any(word.startswith(term[:6]) for word in words)  # withdrawn, withdrawal
        return float(term in words or is_akin or ("-" in term or "." in term) and term in text)
    if term in text or len(term) < 3:
        return float(term in text)
    pairs = [term[at : at + 2] for at in range(len(term) - 1)]
    return sum(pair in text for pair in pairs) / len(pairs)

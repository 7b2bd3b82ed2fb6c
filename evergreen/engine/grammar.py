"""Answers that keep to a form: JSON, a JSON schema, a regular expression or calls of tools, as masks over the
vocabulary.

Promises: a finished answer is in the form, the whole of it: with a model that thinks, there is no room for a thought.
(An answer cut off by max_new_tokens is a beginning of one.) A form that cannot be kept exactly is refused, keyword
named, and never kept in part. Compiled forms are kept for the next request, and so is what was wrong with one.
The work is llguidance's: an Earley parser beside the sampler, about 10 us a token. Most forms take a millisecond
beforehand and large schemas a second, without Python's lock, so that another thread can do it while steps go on.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Container
from concurrent import futures
from typing import TYPE_CHECKING, Any

from evergreen.records import BadInput

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

MAX_COMPILED = 256
SPACES = {"whitespace_pattern": r"[ \n\r\t]{1,32}"}  # without an end a small model indents for ever
CALLS, FORM_OR_CALLS = "calls", "form-or-calls"
CALL_MARKS, THOUGHT_MARKS = ("<tool_call>", "</tool_call>"), ("<think>", "</think>")


class Matcher:
    """Where one answer stands in its form."""

    def __init__(self, matcher: Any):
        self._matcher = matcher

    def fill(self, bits: "np.ndarray") -> str:
        """Set the bits of the tokens that may come next; `bits` int32 [ceil(vocabulary / 32)]. Returns an error, "" for
        none."""
        self._matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        if not self._matcher.is_error():
            return ""
        reason, _, _ = self._matcher.get_error().partition("<state>")
        return f"the answer's form cannot be kept to: {_one_line(reason)}"

    def add(self, token: int) -> None:
        self._matcher.consume_token(token)

    @property
    def is_complete(self) -> bool:
        """Whether nothing but the end can follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()


class Grammars:
    """Forms compiled for a vocabulary of `vocab_size` scores, in which `eos_ids` end an answer."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", vocab_size: int, eos_ids: frozenset[int]):
        self._tokenizer, self._vocab_size, self._eos_ids = tokenizer, vocab_size, eos_ids
        self._vocabulary: Any = None
        self._compiled: OrderedDict[str, Any] = OrderedDict()  # also the BadInput of what is none
        self._under_way: dict[str, futures.Future] = {}
        self._lock = threading.Lock()
        self._pool = futures.ThreadPoolExecutor(1, "grammars")

    def matcher(self, grammar: str) -> Matcher:
        """At the start of an answer of the form that `Sampling.grammar` names. Raises BadInput when it is none."""
        with self._lock:
            compiled = self._compiled.get(grammar)
        if compiled is None:
            compiled = self._compile_and_keep(grammar)
        if isinstance(compiled, BadInput):
            raise BadInput(str(compiled))
        return Matcher(compiled.deep_copy())

    def is_ready(self, grammar: str) -> bool:
        """Whether `matcher` has nothing to compile. Where it has, a thread begins to."""
        with self._lock:
            if grammar in self._compiled:
                return True
            if grammar not in self._under_way:
                self._under_way[grammar] = self._pool.submit(self._compile_and_keep, grammar)
            return False

    def wait(self, seconds: float) -> None:
        """Until something that is under way is ready, and no longer than that."""
        with self._lock:
            under_way = list(self._under_way.values())
        futures.wait(under_way, seconds, futures.FIRST_COMPLETED)

    def _compile_and_keep(self, grammar: str) -> Any:
        try:
            compiled = self._compile(grammar)
        except BadInput as error:
            compiled = error
        with self._lock:
            self._under_way.pop(grammar, None)
            self._compiled[grammar] = compiled
            if len(self._compiled) > MAX_COMPILED:
                self._compiled.popitem(last=False)
        return compiled

    def _compile(self, grammar: str) -> Any:
        from llguidance import LLMatcher

        tokens = self._tokens()
        matcher = LLMatcher(tokens, _definition(grammar, self._tokenizer.get_added_vocab()), log_level=0)
        if matcher.is_error():
            kind = "regular expression" if grammar.startswith("regex:") else "JSON schema"
            raise BadInput(f"the {kind} cannot be kept to: {_one_line(matcher.get_error())}")
        self._try_first(matcher)
        return matcher

    def _try_first(self, matcher: Any) -> None:
        """Compute the first token's mask, here and not in a step: copies share what it takes, and for a form made to
        harm (((b{100}){100}){100}: 4 s) it is where one finds out. Raises BadInput."""
        import numpy as np

        if error := Matcher(matcher.deep_copy()).fill(np.zeros(-(-self._vocab_size // 32), dtype=np.int32)):
            raise BadInput(error)

    def _tokens(self) -> Any:
        """The tokenizer as llguidance wants it; made with the first grammar."""
        if self._vocabulary is None:
            from llguidance.hf import from_tokenizer

            try:
                self._vocabulary = from_tokenizer(
                    self._tokenizer, n_vocab=self._vocab_size, eos_token=sorted(self._eos_ids)
                )
            except ValueError as error:
                raise BadInput(f"this model's tokenizer does not go with grammars: {_one_line(str(error))}") from None
        return self._vocabulary


def leaves_text(grammar: str) -> bool:
    """Whether `Sampling.grammar` has room for text of any kind, thoughts and citations too."""
    return not grammar or grammar.startswith(f"{CALLS}:")


def check(grammar: str) -> None:
    """Raises BadInput when `Sampling.grammar` names no form that can be kept to; needs neither model nor tokenizer."""
    from llguidance import LLMatcher

    kind, _, text = grammar.partition(":")
    if kind in (CALLS, FORM_OR_CALLS):
        for schema in [text] if kind == CALLS else map(json.dumps, json.loads(text).values()):
            check(f"schema:{schema}")
    elif error := LLMatcher.validate_grammar(_definition(grammar)):
        kind = "regular expression" if kind == "regex" else "JSON schema"
        raise BadInput(f"the {kind} cannot be kept to: {_one_line(error)}")


def _definition(grammar: str, vocabulary: Container[str] = ()) -> str:
    """What llguidance reads. `vocabulary` are the tokens that the marks of calls and thoughts may be."""
    from llguidance import LLMatcher

    kind, _, text = grammar.partition(":")
    if kind == "regex":
        return LLMatcher.grammar_from_regex(text)
    if grammar == "json":
        text = '{"type": "object"}'
    elif kind not in ("schema", CALLS, FORM_OR_CALLS):
        raise BadInput(f'grammar {grammar[:40]!r}: it has to be "json", "schema:" with a JSON schema, "regex:" with '
                       'an expression, "calls:" with a schema, or "form-or-calls:" with {form, call}')  # fmt: skip
    try:
        value = json.loads(text)
        if kind == FORM_OR_CALLS:
            return _calls(value["call"], value["form"], vocabulary)
        if kind == CALLS:
            return _calls(value, None, vocabulary)
        # what grammar_from_json_schema gives, which compiles all of it to see whether it can and keeps Python's lock
        return json.dumps({"grammars": [{"json_schema": _spaced(value)}]})
    except (ValueError, RecursionError) as error:
        raise BadInput(f"the JSON schema is not JSON: {_one_line(str(error))}") from None


def _spaced(schema: Any) -> dict[str, Any]:
    return {**(schema if isinstance(schema, dict) else {"allOf": [schema]}), "x-guidance": SPACES}


def _calls(call: dict[str, Any], form: dict[str, Any] | None, vocabulary: Container[str]) -> str:
    """Any text, in which what stands after each opening mark is a `call`; with a `form` either calls alone or that.
    A mark that is a token of its own is no text to llguidance, and may be spelled in others all the same."""
    opens, closes = CALL_MARKS
    spoken = [f"TEXT {mark}" for mark in THOUGHT_MARKS if mark in vocabulary]
    is_free = form is None
    before = "TEXT" if is_free else "GAP"
    rules = {
        "start": "part* TEXT" if is_free else f"call+ GAP | %json {json.dumps(_spaced(form))}",
        "part": " | ".join(["call", *spoken]),
        "call": f"open GAP %json {json.dumps(_spaced(call))} GAP ({_mark(closes, vocabulary)})",
        "open": f"spelled | {before} {opens}" if opens in vocabulary else "spelled",
        "spelled[lazy]": f"{before} {json.dumps(opens)}",
        "GAP": r"/[ \n\r\t]{0,4}/",
        "TEXT": r"/(.|\n)*/",
    }
    return "%llguidance {}\n" + "\n".join(f"{name}: {rule}" for name, rule in rules.items())


def _mark(mark: str, vocabulary: Container[str]) -> str:
    return f"{mark} | {json.dumps(mark)}" if mark in vocabulary else json.dumps(mark)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]

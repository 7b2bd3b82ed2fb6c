"""How a body wants its answer drawn, as `Sampling`; the form that it has to have, as a grammar."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evergreen.engine.grammar import CALLS, FORM_OR_CALLS
from evergreen.engine.grammar import check as check_grammar
from evergreen.records import BadInput, Sampling
from evergreen.serve.schemas import SamplingBody, refusal

FIELDS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "min_new_tokens": "min_tokens",
    "stop": "stop",
    "stop_token_ids": "stop_token_ids",
    "include_stop": "include_stop_str_in_output",
    "ignore_eos": "ignore_eos",
    "seed": "seed",
}  # Sampling's name -> the body's
MAX_GRAMMAR = 65_536  # characters; a schema of 5,000 properties (150 kB) compiled for 4.5 s
SMALLEST_TOP_P = 1e-6  # what top_p 0 comes to: only the likeliest token
REGEX_MARKS = re.compile(r"[\\.+*?()|\[\]{}^$/]")


def sampling_of(
    body: SamplingBody,
    defaults: Mapping[str, Any] | None,
    max_tokens: int,
    logprobs: int | None,
    grammar: str,
    more_stop: Sequence[str] = (),
) -> Sampling:
    """`defaults` are fields of Sampling, used where the body says nothing; below them are OpenAI's: temperature 1.
    `max_tokens` 0 stays 0: as many as there is room for."""
    chosen: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 0, **(defaults or {})}
    chosen |= {ours: value for ours, theirs in FIELDS.items() if (value := getattr(body, theirs)) is not None}
    stop = chosen.get("stop", ())
    chosen |= {
        "stop": (*((stop,) if stop and isinstance(stop, str) else stop), *more_stop),
        "stop_token_ids": tuple(chosen.get("stop_token_ids", ())),
        "top_p": max(chosen.get("top_p", 1.0), SMALLEST_TOP_P),
        "top_k": max(chosen.get("top_k", 0), 0),
        "logprobs": logprobs,
        "grammar": grammar,
        "max_new_tokens": max_tokens or chosen["max_new_tokens"],
    }
    if body.logit_bias is not None:
        chosen["logit_bias"] = _logit_bias(body.logit_bias)
    if 0 < chosen["max_new_tokens"] < chosen.get("min_new_tokens", 0):
        raise refusal("`min_tokens` is above the most tokens that the answer may have", "min_tokens")
    return Sampling(**chosen)


def _logit_bias(bias: Mapping[str, float]) -> tuple[tuple[int, float], ...]:
    for token in bias:
        if not re.fullmatch("[0-9]{1,9}", token):
            raise refusal(f"`logit_bias` goes by token id, and {token[:40]!r} is none", "logit_bias")
    return tuple((int(token), value) for token, value in bias.items())


def may_compile(body: SamplingBody) -> bool:
    """Whether a grammar may have to be made of it."""
    fields = "response_format", "guided_json", "guided_regex", "guided_choice", "structured_outputs", "tools", "text"
    return any(getattr(body, name, None) for name in fields)


def grammar_of(body: SamplingBody) -> str:
    """Sampling.grammar for whichever field says what the answer has to be; "" where none does."""
    asked = [(param, grammar) for param, grammar in _grammars(body) if grammar]
    if len(asked) > 1:
        raise refusal(f"`{asked[0][0]}` and `{asked[1][0]}` both say what the answer has to be", asked[1][0])
    return asked[0][1] if asked else ""


def _grammars(body: SamplingBody) -> Iterator[tuple[str, str]]:
    if (form := body.response_format) is not None:
        if (form.type == "json_schema") != (form.json_schema is not None):
            place = "response_format.json_schema"
            raise refusal(f"`{place}` stands with type json_schema, and only there", place)
        schema = form.json_schema.schema_ if form.json_schema else None
        yield "response_format", schema_grammar(schema, "response_format.json_schema.schema")
        yield "response_format", "json" if form.type == "json_object" else ""
    yield "guided_json", schema_grammar(body.guided_json, "guided_json")
    yield "guided_regex", _regex_grammar(body.guided_regex, "guided_regex")
    yield "guided_choice", _choice_grammar(body.guided_choice)
    if (form := body.structured_outputs) is not None:
        yield "structured_outputs", schema_grammar(form.json_, "structured_outputs.json")
        yield "structured_outputs", "json" if form.json_object else ""
        yield "structured_outputs", _regex_grammar(form.regex, "structured_outputs.regex")
        yield "structured_outputs", _choice_grammar(form.choice)


def schema_grammar(schema: dict | str | None, param: str) -> str:
    """The grammar of a JSON schema, itself or as text. Raises ApiError when it is not one."""
    if schema is None:
        return ""
    return _checked(f"schema:{schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False)}", param)


def calls_grammar(call: dict, form: str = "") -> str:
    """The grammar of an answer of text and calls whose JSON matches `call`; where there is the grammar of a `form`, of
    one that is calls alone or in that form. Raises ApiError."""
    if not form:
        return _checked(f"{CALLS}:{json.dumps(call, ensure_ascii=False)}", "tools")
    kind, _, schema = form.partition(":")
    if kind == "regex":
        raise refusal("an answer that an expression describes has no room for tool calls: give `tool_choice` none",
                      "tool_choice")  # fmt: skip
    both = {"form": json.loads(schema) if schema else {"type": "object"}, "call": call}
    return _checked(f"{FORM_OR_CALLS}:{json.dumps(both, ensure_ascii=False)}", "tools")


def _regex_grammar(expression: str | None, param: str) -> str:
    return _checked(f"regex:{expression}", param) if expression else ""


def _choice_grammar(choices: Sequence[str] | None) -> str:
    if not choices:
        return ""
    return "regex:" + "|".join(REGEX_MARKS.sub(r"\\\g<0>", choice) for choice in choices)


def _checked(grammar: str, param: str) -> str:
    if len(grammar) > MAX_GRAMMAR:
        raise refusal(f"`{param}` is too long: {len(grammar)} characters, of at most {MAX_GRAMMAR}", param)
    try:
        check_grammar(grammar)
    except BadInput as error:
        raise refusal(f"`{param}`: {error}", param) from None
    return grammar

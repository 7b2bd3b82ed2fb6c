"""What on-policy replay is handed: a version that answers old prompts, and the metric that judges the answers."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from evergreen.evaluate import metrics
from evergreen.evaluate.harness import Version, open_engine
from evergreen.evaluate.tasks import Item
from evergreen.records import Completion, Conversation, Message, Sampling

if TYPE_CHECKING:
    from evergreen.settings import EvalSettings

TEMPERATURE = 0.1  # On-Policy Replay (arXiv 2605.29495)
Generate = Callable[[Sequence[Sequence[Message]]], list[str]]
Score = Callable[[str, str, Conversation], float]


def answering(
    version: Version, settings: "EvalSettings", seed: int, metric_of: Mapping[str, str] | None = None
) -> tuple[Generate, Score]:
    """`generate(prompts)` -> an answer each, and `score(answer, reference, record)` -> 0 to 1.

    `metric_of` names a metric by the file that a record came from; other files get what fits the record's answer."""

    def generate(prompts: Sequence[Sequence[Message]]) -> list[str]:
        engine, encode = open_engine(version, settings)
        ids = [encode(Item("", tuple(prompt), ())) for prompt in prompts]
        sampling = Sampling(temperature=TEMPERATURE, max_new_tokens=settings.max_new_tokens, seed=seed)
        fitting = [place for place, prompt in enumerate(ids) if len(prompt) < engine.max_context_tokens]
        made = engine.generate([ids[place] for place in fitting], sampling, settings.batch_size)
        answers = dict(zip(fitting, map(_whole, made), strict=True))
        return [answers.get(place, "") for place in range(len(ids))]

    def score(answer: str, reference: str, record: Conversation) -> float:
        item = Item("", record.messages[:-1], (reference,))
        metric = (metric_of or {}).get(record.origin.file) or metrics.choose([item])
        return metrics.METRICS[metric](answer, [reference], item)

    return generate, score


def _whole(made: Completion) -> str:
    """An answer as it is trained, its thought before it; "" for one that was cut off."""
    if made.finish_reason == "length":
        return ""
    return (f"<think>\n{made.thought}\n</think>\n\n" if made.thought else "") + made.text

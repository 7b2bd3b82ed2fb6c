"""What a run says: the plan before the first step, and the result after the last."""

import itertools
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from evergreen.train.memory import GIB, Forecast, available_bytes, fitting_settings

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from evergreen.settings import SftSettings
    from evergreen.train.dataset import Sources, TrainingData
    from evergreen.train.output import Resume

MAX_SKIPPED_SHOWN = 5


class Report:
    """Lines of `word  sentence` on a console."""

    def __init__(self, console: Console):
        self.console = console

    def say(self, word: str, sentence: str, style: str = "") -> None:
        self.console.print(f"{word:<10} {sentence}", style=style, highlight=False, markup=False, soft_wrap=True)

    def data(self, sources: "Sources", data: "TrainingData") -> None:
        for source in sources.mixture.sources:
            rows = f"{source['used']:,} of {source['rows']:,} rows" if source["rows"] is not None else "streamed"
            self.say("data", f"{source['name']}: {rows}, {source['format']}")
        if sources.extra:
            self.say("replay", f"{len(sources.extra):,} earlier records are mixed in")
        self._skipped(
            [*map(str, sources.mixture.skipped.examples), *data.encoder.skipped],
            sources.mixture.skipped.count + len(data.encoder.skipped),
        )
        if data.train:
            tokens = sum(len(record.ids) for record in data.train)
            targets = sum(record.num_targets for record in data.train)
            self.say(
                "records",
                f"{len(data.train):,} with {tokens:,} tokens, {targets:,} of them targets; mixture {sources.hash[:12]}",
            )
            self._example(data)

    def _skipped(self, reasons: list[str], count: int) -> None:
        for reason in reasons[:MAX_SKIPPED_SHOWN]:
            self.say("skipped", reason, "yellow")
        if count > MAX_SKIPPED_SHOWN:
            self.say("skipped", f"{count:,} rows in all", "yellow")

    def _example(self, data: "TrainingData") -> None:
        """One short record with its targets in green, so that a wrong mask is seen at once."""
        record = min(data.train, key=lambda record: abs(len(record.ids) - 40))
        text = Text("example    ")
        shown = list(zip(record.ids, record.is_target, strict=True))[:80]
        for is_target, run in itertools.groupby(shown, key=lambda pair: pair[1]):
            words = data.encoder.tokenizer.decode([token for token, _ in run]).replace("\n", "⏎")
            text.append(words, style="green" if is_target else "dim")
        self.console.print(text, soft_wrap=True)

    def model(
        self, settings: "SftSettings", trainable: int, total: int, dtype: Any, device: str, unpacked: str
    ) -> None:
        self.say(
            "trainable",
            f"{trainable:,} of {total:,} parameters ({100 * trainable / total:.2f}%), "
            f"{settings.train_type}, computing in {str(dtype).removeprefix('torch.')} on {device}",
        )
        if unpacked:
            self.say("packing", f"off: {unpacked}", "yellow")

    def adapter(self, model: "PreTrainedModel", is_continued: bool) -> None:
        """Name the shape of an adapter that is trained further: it keeps its own, whatever the flags say."""
        if not is_continued:
            return
        config = model.peft_config[model.active_adapter]
        self.say("adapter", f"goes on from an earlier one: rank {config.r}, alpha {config.lora_alpha}, on "
                            f"{' '.join(sorted(config.target_modules))}")  # fmt: skip

    def resume(self, resume: "Resume | None") -> None:
        if resume:
            mode = "exact: optimizer, schedule and batches go on" if resume.exact else "weights only, a fresh schedule"
            self.say("resuming", f"{resume.checkpoint} ({mode}; {resume.reason})")

    def memory(self, settings: "SftSettings", forecast: Forecast, device: str, longest: int) -> None:
        free = available_bytes(device)
        self.say("memory", f"forecast {forecast}; {free / GIB:.1f} GiB are free")
        if forecast.to_come > free:
            fits = fitting_settings(settings, forecast, free, longest)
            self.say("memory", f"this may not fit; what would: {' '.join(fits)}", "yellow")

    def result(self, document: dict[str, Any], picture: "Path | None", flag: str) -> None:
        self.say(
            "trained",
            f"{document['steps']} steps in {document['loop_seconds']:.1f} s, "
            f"loss {document['train_loss']:.4f}, {document['tokens_per_second']:,.0f} tokens/s, "
            f"peak {document['peak_memory_bytes'] / GIB:.2f} GiB",
        )
        curve = f", loss curve {picture}" if picture else ""
        self.say("version", f"{document['version'][:12]} in {document['output_dir']}{curve}")
        self.say("try it", f"evergreen infer {flag} {document['output_dir']}")

"""What keeps a home in order: data check, release ..., backup, restore, doctor, demo."""

from dataclasses import dataclass

from evergreen.options import option
from evergreen.settings.common import CommonSettings


@dataclass
class DataCheckSettings(CommonSettings):
    """One report on data files: format, empty turns, roles, lengths, duplicates, leakage."""

    files: list[str] = option([], "files to check (also given without the flag)")
    model: str = option("nano", "whose tokenizer counts the tokens", ("model_name_or_path",))
    max_length: int = option(2048, "tokens a record may have", ("cutoff_len",), at_least=8)
    dataset_dir: str = option("", "folder with dataset_info.json")
    max_findings: int = option(50, "how many findings to print of each kind; --json lists all", (), at_least=1)


@dataclass
class ReleaseListSettings(CommonSettings):
    """The releases there are, and what the aliases stable and candidate point to."""

    all: bool = option(False, "also those that were pruned")


@dataclass
class ReleaseShowSettings(CommonSettings):
    """A release with its lineage: versions, data, gate, moves; every file behind it is checked."""

    release: str = option("", "an id, a version, a beginning of either, or an alias (also given without the flag)")


@dataclass
class ReleaseDiffSettings(CommonSettings):
    """What differs between two releases: parts, prompt, gate, data, settings."""

    releases: list[str] = option([], "the two releases (also given without the flag)")


@dataclass
class ReleaseCreateSettings(CommonSettings):
    """Make a release by hand from a model or an adapter. It has no gate report, so promoting it wants --force."""

    model: str = option("", "the base: a folder or a hub name (default: the adapter's own)", ("model_name_or_path",))
    adapters: list[str] = option([], "the adapter: a run's output folder", ("adapter_name_or_path", "adapter"))
    system: str | None = option(None, "system prompt (default: the run's)", ("default_system",))
    template: str = option("", "chat template (default: the run's)")
    parent: str = option("", "the release that this one comes after")


@dataclass
class ReleasePromoteSettings(CommonSettings):
    """Point an alias at a release. stable wants a passed gate."""

    release: str = option("", "an id, a version, a beginning of either, or an alias (also given without the flag)")
    to: str = option("stable", "which alias moves", (), ("stable", "candidate"))
    force: str = option("", "promote without a passed gate, for this reason, which is kept in the history")


@dataclass
class ReleaseRollbackSettings(CommonSettings):
    """Take back the last promotion that still stands; a second rollback goes one further back."""

    alias: str = option("stable", "which alias moves", (), ("stable", "candidate"))
    reason: str = option("", "kept in the history")


@dataclass
class ReleasePruneSettings(CommonSettings):
    """Free the disk from versions that no kept release runs on."""

    keep: int = option(3, "how many promoted releases to keep, and how many of the newest", (), at_least=3)
    dry_run: bool = option(False, "only say what would be freed")


@dataclass
class ReleaseHistorySettings(CommonSettings):
    """Every move of an alias: when, what, from, to, who and why."""

    alias: str = option("stable", "whose history (also given without the flag)", (), ("stable", "candidate"))


@dataclass
class BackupSettings(CommonSettings):
    """The whole home in one file, also while others write to it."""

    file: str = option("", "FILE.tar or FILE.tar.gz (also given without the flag)")


@dataclass
class RestoreSettings(CommonSettings):
    """Bring a backup back, every file checked, into an empty or new --home."""

    file: str = option("", "what backup wrote (also given without the flag)")
    force: bool = option(False, "set aside what the home holds now, as HOME.earlier-1")


@dataclass
class DoctorSettings(CommonSettings):
    """What this machine can do, what is missing, how to get it."""


@dataclass
class DemoSettings(CommonSettings):
    """The whole cycle on the nano model, about three minutes on a laptop."""

    output_dir: str = option("demo_output", "where the demo's adapter and reports go")

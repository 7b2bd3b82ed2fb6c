"""evergreen knowledge ..."""

from dataclasses import dataclass

from evergreen.options import option
from evergreen.settings.common import CommonSettings


@dataclass
class KnowledgeChangeSettings(CommonSettings):
    """Who changes the knowledge base and why, for its audit."""

    author: str = option("", "who changes it (default: the user of this machine)")
    reason: str = option("", "why, kept with the change for good")


@dataclass
class KnowledgeReadSettings(CommonSettings):
    """Which state of the knowledge base is read."""

    snapshot: str = option("live", "a published snapshot's number, latest, or live")
    as_of: str = option("", "the state at a date or time, such as 2026-11-21; a bare date includes its day")


@dataclass
class KnowledgeEntrySettings(KnowledgeChangeSettings):
    """What an entry says of itself."""

    title: str | None = option(None, "what it is about, such as the headings above it")
    source_url: str | None = option(None, "where it comes from", ("url",))
    update_time: str | None = option(None, "when the fact was true (default: now)", ("date",))
    version: str | None = option(None, "MAJOR.MINOR.PATCH (default: 1.0.0, then rising with every update)")
    tags: list[str] | None = option(None, "words to filter by")
    language: str | None = option(None, "of its content, such as zh or en")
    valid_from: str | None = option(None, "for questions asked from this date on")
    valid_until: str | None = option(None, "for questions asked before this date")


@dataclass
class KnowledgeAddSettings(KnowledgeEntrySettings):
    """Add an entry; it is in the next answer."""

    content: str = option("", "what it says, - for stdin (also given without the flag)", ("text",))
    id: str = option("", "its name (default: a new one)")


@dataclass
class KnowledgeUpdateSettings(KnowledgeEntrySettings):
    """Replace parts of an entry; what it said before stays in its history."""

    id: str = option("", "the entry (also given without the flag)")
    content: str | None = option(None, "what it says now, - for stdin", ("text",))
    bump: str = option("patch", "which part of the version rises", (), ("patch", "minor", "major"))


@dataclass
class KnowledgeWithdrawSettings(KnowledgeChangeSettings):
    """Take entries out of every answer from now on. Snapshots and the past keep them."""

    ids: list[str] = option([], "the entries (also given without the flag)", ("id",))


@dataclass
class KnowledgeRedactSettings(KnowledgeChangeSettings):
    """Take entries out of the past, too, for good: their contents leave the disk, every snapshot and every cache."""

    ids: list[str] = option([], "the entries (also given without the flag)", ("id",))


@dataclass
class KnowledgeImportSettings(KnowledgeChangeSettings):
    """Import files and folders: Markdown, text, HTML, PDF, CSV, JSONL. Again: what changed is updated."""

    files: list[str] = option([], "files and folders (also given without the flag)", ("file", "folder"))
    chunk_size: int = option(192, "longest chunk, in chunk_unit", (), at_least=16)
    chunk_unit: str = option("tokens", "what chunk_size counts", (), ("tokens", "characters"))
    model: str = option("", "whose tokenizer counts tokens (default: an estimate, 4 bytes a token)")
    source_url: str = option("", "address of the folder or file, for its entries' sources", ("url",))
    tags: list[str] = option([], "tags of every entry, besides those that the files give")
    update_time: str = option("", "when the facts were true (default: what a file says, else its time)", ("date",))
    encoding: str = option("", "of the text files (default: UTF-8, else GB18030, else an error)")
    content_column: str = option("", "of CSV and JSONL, where it is not called content, text, 内容, ...")
    title_column: str = option("", "of CSV and JSONL, where it is not called title, question, 标题, ...")
    withdraw_missing: bool = option(False, "withdraw the entries of files that have vanished from the folders")
    near_duplicates: float = option(
        0.8, "report chunks that share so much of their text; 0 is off", (), at_least=0, at_most=1
    )
    max_file_bytes: int = option(256 << 20, "longest file", (), at_least=1)
    on_bad_row: str = option("error", "what a row or file that cannot be used does", (), ("error", "skip"))


@dataclass
class KnowledgeListSettings(KnowledgeReadSettings):
    """The entries, those changed last first."""

    tags: list[str] = option([], "only those with all of these tags")
    limit: int = option(50, "how many; 0 is all", (), at_least=0)


@dataclass
class KnowledgeShowSettings(KnowledgeReadSettings):
    """One entry, whole."""

    id: str = option("", "the entry (also given without the flag)")


@dataclass
class KnowledgeSearchSettings(KnowledgeReadSettings):
    """The entries that answer a question best, as answers would find them."""

    query: str = option("", "the question (also given without the flag)")
    top_k: int = option(5, "how many", (), at_least=1, at_most=1000)
    tags: list[str] = option([], "only those with all of these tags")


@dataclass
class KnowledgeHistorySettings(CommonSettings):
    """Every version of an entry: when, who, why."""

    id: str = option("", "the entry (also given without the flag)")


@dataclass
class KnowledgeDiffSettings(CommonSettings):
    """What differs between two states: snapshots, dates, latest or live."""

    states: list[str] = option([], "the earlier and the later one (also given without the flag)")


@dataclass
class KnowledgePublishSettings(KnowledgeChangeSettings):
    """Name the present state as the next snapshot, which never changes."""


@dataclass
class KnowledgeRollbackSettings(KnowledgeChangeSettings):
    """Answer from a snapshot, from the next request on: a child of the stable release, pinned to it."""

    snapshot: int = option(0, "the snapshot's number (also given without the flag)", (), at_least=0)


@dataclass
class KnowledgeCanarySettings(KnowledgeChangeSettings):
    """Answer a share of the users from a snapshot: the candidate release, pinned to it."""

    snapshot: int = option(0, "the snapshot's number (also given without the flag)", (), at_least=0)
    share: float = option(0.1, "fraction of the users", (), above=0, at_most=1)


@dataclass
class KnowledgeLiveSettings(KnowledgeChangeSettings):
    """Answer from what is newest again, after a rollback."""


@dataclass
class KnowledgeAuditSettings(CommonSettings):
    """Every change: when, what, who, why."""

    id: str = option("", "only those of one entry (also given without the flag)")
    limit: int = option(50, "how many, the last ones; 0 is all", (), at_least=0)


@dataclass
class KnowledgeExportSettings(KnowledgeReadSettings):
    """Entries as JSONL, which `knowledge import` reads."""

    file: str = option("", "where to, - for stdout (also given without the flag)")
    all: bool = option(False, "every version that ever was, with its changes, for keeping")
    overwrite: bool = option(False, "replace the file if there is one")


@dataclass
class KnowledgeCompactSettings(CommonSettings):
    """Check every byte of the log, then merge its small segments. Nothing that was ever said is lost."""


@dataclass
class KnowledgeReindexSettings(CommonSettings):
    """Make the search index anew from the log."""


@dataclass
class KnowledgeServeSettings(CommonSettings):
    """The home's knowledge over HTTP, without a model: POST /latest-facts, and entries for admins."""

    host: str = option("127.0.0.1", "address to listen at; 0.0.0.0 is every one, and wants a key")
    port: int = option(8001, "port to listen at; 0 takes a free one and says it", (), at_least=0, at_most=65535)
    api_key: list[str] = option([], "keys of users (also $EVERGREEN_API_KEY, comma-separated)")
    admin_key: list[str] = option([], "keys that may also change entries (also $EVERGREEN_ADMIN_KEY)")
    api_key_file: str = option("", "a YAML list of keys with name and scope (HOME/keys.yaml is read, too)")
    max_body_bytes: int = option(8 << 20, "longest request body", (), at_least=1024)
    drain_seconds: int = option(10, "how long running requests may go on after SIGTERM", (), at_least=0)

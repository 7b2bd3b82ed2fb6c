"""`evergreen knowledge ...`: what the store says, as lines for people and as JSON.

A change is acknowledged here when it is on the disk and out of every cache; the search index follows at the next
search, and what is redacted is out of it, too, before the command returns."""

import os
import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen.home import disk_failure, home_dir, write_atomic
from evergreen.knowledge.documents import (
    PARTS,
    WIDTH,
    entry_document,
    json_line,
    list_of,
    portable_document,
    short,
    taken_out,
    verb,
    version_document,
    written,
)
from evergreen.knowledge.store import OPEN, Store, end_of, utc_now
from evergreen.records import BadInput, Entry, EvergreenError, Failure

if TYPE_CHECKING:
    from evergreen.knowledge.importing import Report

MAX_TOLD = 10  # findings of one kind that an import prints; --json has all

AnswerFrom = Callable[[str, str, float | None, str], dict[str, Any]]
TokenCounter = Callable[[str], Callable[[str], int]]
Pinned = Callable[[str], str]


def run_knowledge(
    action: str, given: Any, answer_from: AnswerFrom, token_counter: TokenCounter, pinned: Pinned = lambda home: "live"
) -> dict[str, Any]:
    """One `knowledge` command; returns its JSON document. `answer_from(home, "live" or a snapshot's number, share,
    reason)` and `pinned(home)`, what the stable release answers from, are the registry's, `token_counter(model)` the
    model room's."""
    command = Command(given, pinned)
    if action in ("rollback", "canary", "live"):
        return command.serve(action, answer_from)
    if action == "import":
        return command.bring_in(token_counter)
    return getattr(command, action)()


class Command:
    """What all commands share: the store, whom to tell, who asks. A method is a command."""

    def __init__(self, given: Any, pinned: Pinned):
        self.pinned = pinned
        self.given, self.folder = given, home_dir(given.home or None) / "knowledge"
        self.store = Store(self.folder, self.warn)

    def say(self, line: str = "") -> None:
        print(line, file=sys.stderr if self.given.json else sys.stdout)

    def warn(self, line: str) -> None:
        print(line, file=sys.stderr)

    def wanted_id(self, command: str) -> str:
        if not self.given.id:
            raise BadInput(f"knowledge {command} wants an entry: evergreen knowledge list shows those there are")
        return self.store.full_id(self.given.id)

    def wanted_ids(self, command: str) -> "list[str]":
        found = list(dict.fromkeys(self.store.full_id(id) for id in self.given.ids if id))
        if not found:
            raise BadInput(f"knowledge {command} wants entries by id: evergreen knowledge list shows those there are")
        return found

    def warn_if_pinned(self, what: str) -> None:
        """A change that answers do not follow is told of: after a rollback they stand on a snapshot."""
        number = self.pinned(self.given.home)
        if number != "live":
            self.warn(f"evergreen: answers come from snapshot {number}, which {what}: evergreen knowledge live "
                      "answers from what is newest")  # fmt: skip

    @cached_property
    def cache(self) -> Any:
        """Asked for before a change, so that a wrong EVERGREEN_CACHE is told of while nothing is changed yet."""
        from evergreen.knowledge.cache import open_cache

        return open_cache(self.folder, self.warn)

    @property
    def author(self) -> str:
        return self.given.author or _user()

    # -- changing entries

    def add(self) -> dict[str, Any]:
        given = self.given
        parts = self._parts() | {"content": _content(given.content or "", "knowledge add"), "id": given.id}
        entry = Entry(**parts | {"tags": tuple(parts.get("tags", ()))})
        [row] = self.store.add([entry], self.author, given.reason)
        self.say(f"{row.entry.id} {row.entry.version} is there")
        self.warn_if_pinned("does not have it")
        return written(row)

    def update(self) -> dict[str, Any]:
        given, id = self.given, self.wanted_id("update")
        parts = self._parts()
        if given.content is not None:
            parts["content"] = _content(given.content, "knowledge update --content")
        if not parts:
            raise BadInput("knowledge update wants what changes: --content, --title, --source_url, --tags or a time")
        _ = self.cache
        row = self.store.update(id, self.author, given.reason, given.bump, **parts)
        self.purge([id])
        self.say(f"{id} is {row.entry.version} now")
        self.warn_if_pinned("has it as it was")
        return written(row)

    def withdraw(self) -> dict[str, Any]:
        ids = self.wanted_ids("withdraw")
        _ = self.cache
        n = self.store.withdraw(ids, self.author, self.given.reason)
        self.purge(ids)
        rows = [self.store.history(id)[-1] for id in ids]
        is_live = self.pinned(self.given.home) == "live"
        fate = "in no answer any more" if is_live else "withdrawn"
        self.say(f"{list_of(ids)} {verb(ids)} {fate}; evergreen knowledge redact would clear the past, too")
        self.warn_if_pinned("stays as it was")
        return taken_out(rows, n)

    def redact(self) -> dict[str, Any]:
        ids, _ = self.wanted_ids("redact"), self.cache
        try:
            n = self.store.redact(ids, self.author, self.given.reason)
        except Failure:  # perhaps of clearing the log's files, behind the change itself
            self.purge(ids)
            raise
        self.purge(ids)
        if (self.folder / "index").exists() or os.environ.get("EVERGREEN_INDEX"):
            self._clear_index(ids)
        rows = [self.store.history(id)[-1] for id in ids]
        self.say(f"{list_of(ids)} {verb(ids)} gone for good, from the log, every snapshot and every cache; backups and "
                 "the files that were imported are yours to clear")  # fmt: skip
        return taken_out(rows, n)

    def _clear_index(self, ids: Sequence[str]) -> None:
        try:
            retriever = self.retriever(lambda _: None)
            retriever.sync()
            retriever.save()
        except EvergreenError as error:
            done = f"{list_of(ids)} {verb(ids)} out of the log, every snapshot and cache"
            raise Failure(f"{done}, but not yet out of the search index: {error}; "
                          "evergreen knowledge reindex clears it") from None  # fmt: skip

    def _parts(self) -> dict[str, Any]:
        """What was given of an entry besides its content; "" clears a part."""
        given = {name: getattr(self.given, name) for name in PARTS if name != "content"}
        parts = {name: value for name, value in given.items() if value is not None}
        return parts | ({"tags": tuple(tag for tag in parts["tags"] if tag)} if "tags" in parts else {})

    def purge(self, ids: Sequence[str]) -> None:
        """Out of every cache, this process's or not, before the command returns."""
        self.cache.purge(ids)

    # -- importing

    def bring_in(self, token_counter: TokenCounter) -> dict[str, Any]:
        from evergreen.knowledge.importing import Importer

        given = self.given
        if not given.files:
            raise BadInput("knowledge import wants files or folders: evergreen knowledge import docs/ prices.csv")
        _ = self.cache
        importer = Importer(self.store, self._how(token_counter), given.near_duplicates, given.on_bad_row,
                            given.max_file_bytes, self.author, given.reason, self.purge)  # fmt: skip
        with _progress(given.json) as progress:
            report = importer.run([Path(file).expanduser() for file in given.files], given.withdraw_missing, progress)
        self._tell(report)
        if report.added or report.updated or report.withdrawn:
            self.warn_if_pinned("stays as it was")
        rate = round((report.added + report.updated) / max(report.seconds, 1e-9), 1)
        return {**vars(report), "snapshot": "live", "n": self.store.log.last, "entries_per_second": rate}

    def _how(self, token_counter: TokenCounter) -> Any:
        from evergreen.knowledge.chunk import estimated_tokens
        from evergreen.knowledge.importing import How
        from evergreen.knowledge.rows import Columns
        from evergreen.knowledge.store import check, moment_of

        given = self.given
        count = (
            len if given.chunk_unit == "characters" else token_counter(given.model) if given.model else estimated_tokens
        )
        when = moment_of(given.update_time, "--update_time") if given.update_time else ""
        check(Entry("what all entries get", source_url=given.source_url or "", tags=tuple(given.tags)))
        columns = Columns(given.content_column, given.title_column)
        return How(given.chunk_size, count, f"{given.chunk_unit} {given.model}", given.encoding, columns,
                   given.source_url, tuple(given.tags), when)  # fmt: skip

    def _tell(self, report: "Report") -> None:
        files = "1 file" if report.files == 1 else f"{report.files:,} files"
        done = f"{files}: {report.added:,} entries added, {report.updated:,} updated, " \
               f"{report.withdrawn:,} withdrawn, {report.unchanged:,} as they were"  # fmt: skip
        rate = (report.added + report.updated) / max(report.seconds, 1e-9)
        self.say(f"{done} ({report.seconds:.1f} s, {rate:,.0f} entries/s)")
        if report.duplicates:
            self.say(
                f"{report.duplicates:,} chunks say exactly what another entry says, and are not entries of their own"
            )
        if report.kept_out:
            self.say(f"{report.kept_out:,} chunks were withdrawn by hand or redacted before, and stay out")
        near = [
            f"{one['id']} and {one['other']} share {one['similarity']:.0%} of their text"
            for one in report.near_duplicates
        ]
        self._some("nearly the same, so one of them may be out of date", near)
        self._some("left out", report.left_out)
        kinds = ", ".join(f"{number} {suffix}" for suffix, number in sorted(report.other_files.items()))
        if kinds:
            self.say(f"files of other kinds are not read: {kinds}")
        self._some("notes", report.notes)
        fate = "withdrawn" if self.given.withdraw_missing else "kept; --withdraw_missing true takes them out"
        self._some(f"files that have vanished, their entries {fate}", report.missing)

    def _some(self, heading: str, lines: Sequence[str]) -> None:
        if lines:
            self.say(f"{heading}:")
        for line in lines[:MAX_TOLD]:
            self.say(f"  {line}")
        if len(lines) > MAX_TOLD:
            self.say(f"  and {len(lines) - MAX_TOLD:,} more (--json lists all)")

    # -- reading

    def list(self) -> dict[str, Any]:
        n, when, name = self.moment()
        wanted = set(self.given.tags)
        rows = [row for row in self.store.visible(n, when) if wanted <= set(row.entry.tags)][::-1]
        shown = rows[: self.given.limit or None]
        for row in shown:
            self.say(f"{row.entry.id}  {row.entry.version:<7} {row.entry.update_time[:10]}  {short(row.entry)}")
        if not rows:
            self.say("no entries: evergreen knowledge add, or evergreen knowledge import FOLDER")
        elif len(rows) > len(shown):
            self.say(f"... {len(rows):,} in all (--limit 0)")
        return {"snapshot": name, "n": n, "total": len(rows), "entries": [entry_document(row) for row in shown]}

    def show(self) -> dict[str, Any]:
        n, when, name = self.moment()
        row = self.store.get(self.wanted_id("show"), n)
        document = entry_document(row)
        for part, value in document.items():
            if value and part != "content":
                self.say(f"{part:<12} {' '.join(value) if part == 'tags' else value}")
        self.say(f"\n{row.entry.content}")
        return {"snapshot": name, **document}

    def search(self) -> dict[str, Any]:
        given, query = self.given, self.given.query
        if not query.strip():
            raise BadInput(
                'knowledge search wants a question: evergreen knowledge search "What does the Acme Cam cost?"'
            )
        n, when, name = self.moment()
        retriever = self.retriever()
        hits = retriever.search(query, given.top_k, n, when, tuple(given.tags)) if n else []
        for number, hit in enumerate(hits, 1):
            entry = hit.row.entry
            self.say(
                f"{number}. {entry.id} {entry.version} {entry.update_time[:10]} {entry.source_url} ({hit.score:.3f})"
            )
            self.say(f"   {short(entry, 3 * WIDTH)}")
        if not hits:
            self.say(
                "nothing found" if n else "no entries: evergreen knowledge add, or evergreen knowledge import FOLDER"
            )
        return {
            "snapshot": name,
            "n": n,
            "results": [entry_document(hit.row) | {"score": float(hit.score)} for hit in hits],
        }

    def history(self) -> dict[str, Any]:
        rows = self.store.history(self.wanted_id("history"))
        for row in rows:
            text = "(redacted)" if row.is_redacted else short(row.entry)
            who = f"{row.author}  {row.reason}".rstrip()
            self.say(f"{row.begins:>6}  {row.at[:16]}  {row.op:<8} {row.entry.version:<7} {who}\n        {text}")
        if rows[-1].ends != OPEN:
            last = self.store.audit(rows[-1].entry.id)[-1]
            who = f"{last['author']}  {last['reason']}".rstrip()
            self.say(f"{last['n']:>6}  {last['at'][:16]}  {last['op']:<8} {'':<7} {who}")
        return {"id": rows[0].entry.id, "versions": [version_document(row) for row in rows]}

    def diff(self) -> dict[str, Any]:
        if len(self.given.states) != 2:
            raise BadInput(
                f"knowledge diff wants two states, got {len(self.given.states)}: evergreen knowledge diff 1 live"
            )
        first, second = (self.store.at(state) for state in self.given.states)
        found = self.store.diff(first, second)
        marks = {"added": "+", "removed": "-", "updated": "~"}
        for kind, rows in found.items():
            for row in rows:
                self.say(f"{marks[kind]} {row.entry.id} {row.entry.version:<7} {short(row.entry)}")
        if not any(found.values()):
            self.say("no difference")
        return {"from": self.given.states[0], "to": self.given.states[1]} | {
            kind: [entry_document(row) for row in rows] for kind, rows in found.items()
        }

    def audit(self) -> dict[str, Any]:
        id = self.store.full_id(self.given.id)
        if id:
            self.store.history(id)  # complains of an unknown one
        changes = self.store.audit(id)
        shown = changes[-self.given.limit :] if self.given.limit else changes
        for change in shown:
            about = f"{change['op']:<8} {change['id']:<12} {change['author']}  {change['reason']}"
            self.say(f"{change['n']:>6}  {change['at'][:19]}  {about}".rstrip())
        if len(changes) > len(shown):
            self.say(f"... the last {len(shown):,} of {len(changes):,} (--limit 0)")
        return {"total": len(changes), "changes": shown}

    def export(self) -> dict[str, Any]:
        n, when, name = self.moment()
        rows = list(self.store.rows) if self.given.all else list(self.store.visible(n, when))
        lines = [json_line(version_document(row) if self.given.all else portable_document(row)) for row in rows]
        file = self.given.file
        if not file:
            raise BadInput("knowledge export wants a file, or - for stdout: evergreen knowledge export entries.jsonl")
        if file == "-":
            if self.given.json:
                raise BadInput("--json has the last line of stdout, so the entries want a file")
            sys.stdout.writelines(lines)
            return {}
        path = Path(file).expanduser()
        if path.exists() and not self.given.overwrite:
            raise BadInput(f"{path} is there already: --overwrite replaces it")
        if path.is_dir():
            raise BadInput(f"{path} is a folder: name a file in it")
        if not path.parent.is_dir():
            raise BadInput(f"no folder {path.parent} to write into")
        try:
            write_atomic(path, "".join(lines))
        except OSError as error:
            raise disk_failure(error, f"writing {path}") from None
        self.say(f"{len(rows):,} {'versions' if self.given.all else 'entries'} in {path}")
        return {"file": str(path), "rows": len(rows), "snapshot": name, "n": n}

    def moment(self) -> tuple[int, str, str | int]:
        """(change number, the time that validity goes by, "live" or the snapshot or the date) that is read."""
        given, now = self.given, utc_now()
        if given.as_of and given.snapshot not in ("", "live"):
            raise BadInput("--snapshot and --as_of name a state each: give one of them")
        if given.as_of:
            return self.store.at(given.as_of), end_of(given.as_of), given.as_of
        n = self.store.at(given.snapshot)
        if given.snapshot in ("", "live"):
            return n, now, "live"
        return n, now, len(self.store.snapshots) if given.snapshot == "latest" else int(given.snapshot)

    def retriever(self, say: Callable[[str], None] | None = None, anew: bool = False) -> Any:
        from evergreen.knowledge.retrieve import open_retriever

        return open_retriever(self.folder, self.store, say or self.warn, anew)

    # -- states

    def publish(self) -> dict[str, Any]:
        made = self.store.publish(self.author, self.given.reason)
        self.say(f"snapshot {made.number}: evergreen knowledge rollback {made.number} would answer from it")
        return {"snapshot": made.number, "n": made.n}

    def serve(self, action: str, answer_from: AnswerFrom) -> dict[str, Any]:
        """rollback, canary, live: through the release that is served."""
        given, number = self.given, getattr(self.given, "snapshot", 0)
        share = given.share if action == "canary" else None
        if action != "live":
            if not number:
                raise BadInput(f"knowledge {action} wants a snapshot's number: evergreen knowledge publish makes one")
            self.store.snapshot(number)
        which = "live" if action == "live" else str(number)
        moved = answer_from(given.home, which, share, given.reason)
        what = "what is newest" if action == "live" else f"snapshot {number}"
        self.say(f"{'answers are' if share is None else f'{share:.0%} of the users are answered'} from {what} "
                 "from the next request on")  # fmt: skip
        return {"snapshot": number or "live", **({"share": share} if share else {}), **moved}

    # -- files

    def compact(self) -> dict[str, Any]:
        from evergreen.knowledge.sources import Sources

        before = _bytes(self.folder)
        checked = self.store.log.verify()
        with self.store.log.writing():
            self.store.refresh()
            merged = self.store.log.merge()
        Sources(self.folder).compact()
        after = _bytes(self.folder)
        self.say(f"{checked} sealed segments are as they were written, {merged} fewer now; "
                 f"{before / 2**20:,.1f} MiB before, {after / 2**20:,.1f} after")  # fmt: skip
        return {"checked": checked, "merged": merged, "bytes_before": before, "bytes_after": after}

    def reindex(self) -> dict[str, Any]:
        import time

        started = time.monotonic()
        n = self.store.refresh()
        retriever = self.retriever(anew=True)
        with _progress(self.given.json) as progress:
            retriever.sync(progress)
        retriever.save()
        seconds = time.monotonic() - started
        rows = len(self.store.rows)
        self.say(f"{rows:,} versions of entries are indexed ({seconds:.1f} s)")
        return {"n": n, "rows": rows, "seconds": round(seconds, 3)}


def _content(given: str, what: str) -> str:
    """The text itself, or stdin for -."""
    text = sys.stdin.read() if given == "-" else given
    if not text.strip():
        raise BadInput(f'{what} wants a text: evergreen knowledge add "The Acme Cam costs 42 dollars."')
    return text.strip()


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return ""


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _progress(is_json: bool) -> Any:
    """A bar with ETA on a terminal, nothing elsewhere: a context that gives `progress(done, total)`."""
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    @contextmanager
    def bar():
        console = Console(stderr=True)
        columns = (TextColumn("reading"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("ETA"),
                   TimeRemainingColumn())  # fmt: skip
        with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as shown:
            task = shown.add_task("reading", total=None)
            yield lambda done, total: shown.update(task, completed=done, total=total)

    return bar()

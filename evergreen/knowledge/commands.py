"""`evergreen knowledge ...`: each command as lines for people and as JSON. What changes is here, what reads in views.

A change is acknowledged here when it is on the disk and out of every cache; the search index follows at the next
search, and what is redacted is out of it, too, before the command returns."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen.knowledge.console import Apart, progress_bar
from evergreen.knowledge.documents import (
    PARTS,
    list_of,
    taken_out,
    verb,
    written,
)
from evergreen.knowledge.views import Views
from evergreen.records import BadInput, Entry, EvergreenError, Failure

if TYPE_CHECKING:
    from evergreen.knowledge.importing import Report

MAX_TOLD = 10  # findings of one kind that an import prints; --json has all

AnswerFrom = Callable[[str, str, float | None, str], dict[str, Any]]
TokenCounter = Callable[[str], Callable[[str], int]]


def run_knowledge(
    action: str, given: Any, answer_from: AnswerFrom, token_counter: TokenCounter, apart: Apart = lambda home: ""
) -> dict[str, Any]:
    """One `knowledge` command; returns its JSON document. `answer_from(home, "live" or a snapshot's number, share,
    reason)` and `apart(home)`, which answers do not come from what is newest, are the registry's,
    `token_counter(model)` is the model room's."""
    command = Command(given, apart)
    if action in ("rollback", "canary", "live"):
        return command.serve(action, answer_from)
    if action == "import":
        return command.bring_in(token_counter)
    return getattr(command, action)()


class Command(Views):
    """A method is a command."""

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
        fate = "withdrawn" if self.apart(self.given.home) else "in no answer any more"
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
        try:
            self.cache.purge(ids)
        except Failure as error:
            raise Failure(f"{error}; the change itself is made: run the command again to purge again") from None

    # -- importing

    def bring_in(self, token_counter: TokenCounter) -> dict[str, Any]:
        from evergreen.knowledge.importing import Importer

        given = self.given
        if not given.files:
            raise BadInput("knowledge import wants files or folders: evergreen knowledge import docs/ prices.csv")
        _ = self.cache
        importer = Importer(self.store, self._how(token_counter), given.near_duplicates, given.on_bad_row,
                            given.max_file_bytes, self.author, given.reason, self.purge)  # fmt: skip
        with progress_bar() as progress:
            report = importer.run([Path(file).expanduser() for file in given.files], given.withdraw_missing, progress)
        self._tell(report)
        if report.added or report.updated or report.withdrawn:
            self.warn_if_pinned("stays as it was")
        rate = round((report.added + report.updated) / max(report.seconds, 1e-9), 1)
        return {**vars(report), "snapshot": "live", "n": self.store.log.last, "entries_per_second": rate}

    def _how(self, token_counter: TokenCounter) -> Any:
        from evergreen.knowledge.chunk import estimated_tokens
        from evergreen.knowledge.entries import check, moment_of
        from evergreen.knowledge.importing import How
        from evergreen.knowledge.rows import Columns

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
        if warning := moved.get("warning"):
            self.warn(f"evergreen: {warning}")
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
        with progress_bar() as progress:
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


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

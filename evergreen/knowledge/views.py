"""The commands that read: lists, one entry, a search, histories, differences, exports."""

import sys
from pathlib import Path
from typing import Any

from evergreen.home import disk_failure, write_atomic
from evergreen.knowledge.console import Console
from evergreen.knowledge.documents import WIDTH, entry_document, json_line, portable_document, short, version_document
from evergreen.knowledge.store import OPEN
from evergreen.records import BadInput


class Views(Console):
    """A method is a command."""

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

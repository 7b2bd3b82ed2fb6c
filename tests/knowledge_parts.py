"""Knowledge for tests: entries about products that no model knows, and a retriever without an index."""

import re
from pathlib import Path

from evergreen.knowledge.answer import Ask, Knowledge
from evergreen.knowledge.retrieve import Hit
from evergreen.knowledge.store import Store
from evergreen.records import Entry
from evergreen.settings import KnowledgeSettings

LAMP = Entry("The Nordlys Q7 lamp costs 42 dollars.", "lamp", "Nordlys Q7", "https://example.com/lamp", "2026-10-02")
TEA = Entry("云岭茶的产地是曲木县。", "tea", "云岭茶", "https://example.org/tea", "2026-11-07")
ASKED = "How much does the Nordlys Q7 lamp cost?"
TOLD = "The Nordlys Q7 lamp costs 42 dollars [1]."


class FakeRetriever:
    """Every visible row that shares a word with the question, those that share more first."""

    def __init__(self, store: Store):
        self.store, self.num_searches, self.trouble = store, 0, None

    def save(self) -> None:
        pass

    def search(self, query: str, top_k: int = 5, n: int | None = None, when: str = "", tags=()) -> list[Hit]:
        self.num_searches += 1
        if self.trouble:
            self.trouble()
        rows = [row for row in self.store.visible(n, when) if set(tags) <= set(row.entry.tags)]
        hits = [Hit(row, len(words_of(query) & words_of(f"{row.entry.title} {row.entry.content}"))) for row in rows]
        return sorted((hit for hit in hits if hit.score), key=lambda hit: -hit.score)[:top_k]


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+|[\u4e00-\u9fff]", text.lower()))


def count(text: str) -> int:
    return len(text.split())


def knowledge_of(folder: Path, *entries: Entry, cache=None, **settings) -> Knowledge:
    """Knowledge with these entries; `retriever` is its fake one."""
    store = Store(folder)
    if entries:
        store.add(entries)
    retriever = FakeRetriever(store)
    made = Knowledge(store, lambda _: retriever, cache, None, KnowledgeSettings(**settings), said.append)
    made.retriever = retriever
    return made


said: list[str] = []


def prepared_for(knowledge: Knowledge, question: str = ASKED, /, **ask):
    return knowledge.prepare(knowledge.look(question, Ask(**ask)), count)

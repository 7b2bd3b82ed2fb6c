"""Vectors in a Pinecone index, in the namespace `evergreen`; its key is in PINECONE_API_KEY.

Promises: the same filters as elsewhere; ids tell row, text and embedder apart, so what does not fit is seen by listing.
Does not: show a write at once (Pinecone is eventually consistent: an entry is found by words meanwhile), or create the
index (dimension and metric are chosen there: cosine). Tested on an imitation of its client, not on the service.
"""

import importlib.util
import os
from typing import Any

from evergreen.knowledge.remote import RemoteVectors
from evergreen.knowledge.table import Filter
from evergreen.records import BadInput

NAMESPACE = "evergreen"


def open_pinecone(name: str, embedder: str, dim: int, anew: bool = False) -> RemoteVectors:
    """`name` of an index that is there; `embedder`: its digest; `anew` empties the namespace. Raises BadInput without
    client or key."""
    if not importlib.util.find_spec("pinecone"):
        raise BadInput("Pinecone needs its client: pip install 'evergreen-lm[pinecone]'")
    if not os.environ.get("PINECONE_API_KEY"):
        raise BadInput("Pinecone needs its key in PINECONE_API_KEY")
    return RemoteVectors(lambda: _connect(name, embedder, dim, anew), f"Pinecone's index {name}")


def _connect(name: str, embedder: str, dim: int, anew: bool) -> "PineconeCollection":
    import pinecone

    index = pinecone.Pinecone(api_key=os.environ["PINECONE_API_KEY"]).index(name)
    if (found := index.describe_index_stats().dimension) and found != dim:
        raise BadInput(f"Pinecone's index {name} is for {found} dimensions, the embedder makes {dim}: another index")
    if anew:
        index.delete(delete_all=True, namespace=NAMESPACE)
    return PineconeCollection(index, embedder)


class PineconeCollection:
    """`remote.Collection` by a Pinecone index. Ids are BEGINS-KEY-EMBEDDER in hex."""

    def __init__(self, index: Any, embedder: str):
        self.index, self.embedder = index, embedder[:8]
        self._names: dict[int, str] = {}  # id -> Pinecone's

    def _name(self, id: int, key: int) -> str:
        return f"{id:x}-{key & (1 << 64) - 1:016x}-{self.embedder}"

    def listed(self) -> dict[int, tuple[int, int]]:
        names = [item.id for page in self.index.list(namespace=NAMESPACE) for item in page.vectors]
        strange = [name for name in names if not name.endswith(f"-{self.embedder}")]
        found: dict[int, tuple[int, int]] = {}
        for start in range(0, len(names), 100):
            page = self.index.fetch(ids=names[start : start + 100], namespace=NAMESPACE).vectors
            for name, vector in page.items():
                id, key = (int(part, 16) for part in name.split("-")[:2])
                if name not in strange:
                    self._names[id] = name
                    found[id] = (key - (1 << 64) if key >> 63 else key, int(vector.metadata["ends"]))
        for start in range(0, len(strange), 100):
            self.index.delete(ids=strange[start : start + 100], namespace=NAMESPACE)
        return found

    def put(self, records: list[dict[str, Any]]) -> None:
        vectors = []
        for record in records:
            name = self._names[record["id"]] = self._name(record["id"], record["key"])
            kept = {field: record[field] for field in ("begins", "ends", "valid_from", "valid_until", "tags")}
            vectors.append({"id": name, "values": record["vector"], "metadata": kept})
        for start in range(0, len(vectors), 100):
            self.index.upsert(vectors=vectors[start : start + 100], namespace=NAMESPACE)

    def set_ends(self, ends: dict[int, int]) -> None:
        for id, end in ends.items():
            self.index.update(id=self._names[id], set_metadata={"ends": end}, namespace=NAMESPACE)

    def delete(self, ids: list[int]) -> None:
        self.index.delete(ids=[self._names.pop(id) for id in ids], namespace=NAMESPACE)

    def search(self, vector: list[float], wanted: Filter, top_k: int) -> list[tuple[int, float]]:
        found = self.index.query(vector=vector, top_k=top_k, namespace=NAMESPACE, filter=conditions(wanted))
        return [(int(match.id.split("-")[0], 16), match.score) for match in found.matches]


def conditions(wanted: Filter) -> dict[str, Any]:
    """The filter in Pinecone's language."""
    bounds = [("begins", "$lte", wanted.n), ("ends", "$gt", wanted.n),
              ("valid_from", "$lte", wanted.when), ("valid_until", "$gt", wanted.when)]  # fmt: skip
    return {"$and": [{name: {verb: value}} for name, verb, value in bounds]
            + [{"tags": {"$in": [tag]}} for tag in wanted.tags]}  # fmt: skip

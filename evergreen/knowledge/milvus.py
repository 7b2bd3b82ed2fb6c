"""Vectors in Milvus: a server's URI, or a file that ends in .db for Milvus Lite (one process at a time).

Promises: integer fields `begins` and `ends` give every moment by one filter, tags are a text |a|b|, reads see all
writes before them (consistency Strong). On Milvus Lite the search is exact (FLAT), a server has its AUTOINDEX.
Does not: create databases or users; several homes on one server take a collection each (URI#collection).
"""

import importlib.util
import logging
import os
from typing import Any

from evergreen.knowledge.remote import RemoteVectors
from evergreen.knowledge.table import Filter
from evergreen.records import BadInput

NUMBERS = ("key", "begins", "ends", "valid_from", "valid_until")
MAX_TAGS = 60_000  # bytes of all tags of an entry
SECONDS = 10  # for an answer of the server, and
SEARCH_SECONDS = 2  # for what a question finds, which is late long before


def open_milvus(name: str, embedder: str, dim: int, anew: bool = False) -> RemoteVectors:
    """`name`: URI#collection ("evergreen" without); `embedder`: its digest; `anew` drops what is there. Raises
    BadInput without pymilvus."""
    if not importlib.util.find_spec("pymilvus"):
        raise BadInput("Milvus needs pymilvus: pip install 'evergreen-lm[milvus]'")
    uri = name.partition("#")[0]
    title = f"Milvus at {uri}" if _is_server(uri) else f"Milvus Lite at {uri}, which is for one process at a time,"
    return RemoteVectors(lambda: MilvusCollection(name, embedder, dim, anew), title)


def _is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://", "tcp://"))


class MilvusCollection:
    """`remote.Collection` by pymilvus. The vectors' field is named by the embedder, so a change of it is noticed.
    Raises BadInput for a collection of another embedder."""

    def __init__(self, name: str, embedder: str, dim: int, anew: bool = False):
        from pymilvus import MilvusClient

        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it logs a traceback beside what it raises
        uri, _, collection = name.partition("#")
        self.name, self.field, self.dim = collection or "evergreen", f"vector_{embedder[:12]}", dim
        self._is_file = not _is_server(uri)
        self.client = MilvusClient(uri, token=os.environ.get("EVERGREEN_INDEX_KEY", ""), timeout=SECONDS)
        if anew:
            self.client.drop_collection(self.name, timeout=SECONDS)
        self._check() if self.client.has_collection(self.name, timeout=SECONDS) else self._create()
        self.client.load_collection(self.name, timeout=SECONDS)

    def _check(self) -> None:
        fields = self.client.describe_collection(self.name, timeout=SECONDS)["fields"]
        found = next((field for field in fields if field["name"].startswith("vector_")), None)
        if found is None or found["name"] != self.field or int(found["params"].get("dim", self.dim)) != self.dim:
            dim = f" of {found['params'].get('dim')} dimensions" if found else ""
            raise BadInput(f"the Milvus collection {self.name} holds vectors{dim} of another embedder than this, which "
                           f"makes {self.dim}: evergreen knowledge reindex, or another URI#collection")  # fmt: skip

    def _create(self) -> None:
        from pymilvus import DataType

        schema = self.client.create_schema(auto_id=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        for name in NUMBERS:
            schema.add_field(name, DataType.INT64)
        schema.add_field("tags", DataType.VARCHAR, max_length=MAX_TAGS)
        schema.add_field(self.field, DataType.FLOAT_VECTOR, dim=self.dim)
        index = self.client.prepare_index_params()
        index.add_index(self.field, index_type="FLAT" if self._is_file else "AUTOINDEX", metric_type="IP")
        self.client.create_collection(self.name, schema=schema, index_params=index, consistency_level="Strong",
                                      timeout=SECONDS)  # fmt: skip

    def listed(self) -> dict[int, tuple[int, int]]:
        pages = self.client.query_iterator(self.name, batch_size=5000, filter="id >= 0",
                                           output_fields=["id", "key", "ends"], timeout=SECONDS)  # fmt: skip
        found: dict[int, tuple[int, int]] = {}
        while page := pages.next():
            found |= {row["id"]: (row["key"], row["ends"]) for row in page}
        pages.close()
        return found

    def put(self, records: list[dict[str, Any]]) -> None:
        self.client.upsert(self.name, [self._stored(record) for record in records], timeout=SECONDS)

    def _stored(self, record: dict[str, Any]) -> dict[str, Any]:
        tags = "".join(f"{tag}|" for tag in record["tags"])
        return {"id": record["id"], **{name: record[name] for name in NUMBERS},
                "tags": f"|{tags}" if tags else "", self.field: record["vector"]}  # fmt: skip

    def set_ends(self, ends: dict[int, int]) -> None:
        self.client.upsert(self.name, [{"id": id, "ends": end} for id, end in ends.items()], timeout=SECONDS,
                           partial_update=True)  # fmt: skip

    def delete(self, ids: list[int]) -> None:
        self.client.delete(self.name, ids=ids, timeout=SECONDS)

    def search(self, vector: list[float], wanted: Filter, top_k: int) -> list[tuple[int, float]]:
        found = self.client.search(self.name, [vector], anns_field=self.field, filter=expression(wanted), limit=top_k,
                                   output_fields=["id"], search_params={"metric_type": "IP"},
                                   timeout=SEARCH_SECONDS)  # fmt: skip
        return [(hit["id"], hit["distance"]) for hit in found[0]]


def expression(wanted: Filter) -> str:
    """The filter in Milvus's language; what LIKE takes for patterns is escaped."""
    parts = [f"begins <= {wanted.n}", f"ends > {wanted.n}",
             f"valid_from <= {wanted.when}", f"valid_until > {wanted.when}"]  # fmt: skip
    return " and ".join(parts + [f'tags like "%|{_literal(tag)}|%"' for tag in wanted.tags])


def _literal(tag: str) -> str:
    for character in ("%", "_"):
        tag = tag.replace(character, "\\" + character)
    return tag.replace("\\", "\\\\").replace('"', '\\"')

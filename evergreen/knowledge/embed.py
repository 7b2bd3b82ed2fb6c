"""Texts as vectors: a sentence-transformers model folder, or an endpoint that speaks OpenAI's embeddings.

Promises: `open_embedder` costs nothing until the first text; vectors are float32 of unit length. A folder is run as
sentence-transformers runs it (Transformer, then Pooling by mean, first or last token, then Normalize; `query` puts the
model's own query prompt before a question), so models made for it give their known vectors. A question of which the
model knows less than half the words has no vector worth comparing: `knows` says so, and words alone are searched.
Does not: run models with other modules (refused by name), or embed pictures.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from evergreen.home import read_json
from evergreen.records import BadInput, Failure

MAX_UNKNOWN = 0.2  # of a question's tokens, for its vector to mean anything
BATCH = 32
SECONDS = 30  # an endpoint's time-out
PAUSE_SECONDS = 10


def open_embedder(name: str, key: str = "") -> "FolderEmbedder | EndpointEmbedder | None":
    """`name`: a folder, a URL with the model behind # (http://host:8000/v1#bge-m3), or "" for none; `key`: the
    endpoint's. Raises BadInput."""
    if not name:
        return None
    if name.startswith(("http://", "https://")):
        return EndpointEmbedder(name, key)
    return FolderEmbedder(Path(name).expanduser())


class FolderEmbedder:
    """A sentence-transformers model of the encoder kind, by transformers."""

    def __init__(self, folder: Path):
        if not (folder / "modules.json").is_file():
            raise BadInput(f"the embedder {folder} wants a sentence-transformers folder, with a modules.json, or a URL")
        self.folder = folder
        parts = {
            module["type"].rsplit(".", 1)[-1]: folder / module["path"] for module in read_json(folder / "modules.json")
        }
        if odd := sorted(parts.keys() - {"Transformer", "Pooling", "Normalize"}):
            raise BadInput(f"the embedder {folder} has the module {odd[0]}: serve it behind an embeddings endpoint")
        self._transformer, self._pooling = parts["Transformer"], _pooling(parts.get("Pooling"))
        self._prompts = _read(folder / "config_sentence_transformers.json").get("prompts") or {}

    @cached_property
    def dim(self) -> int:
        return _hidden_size(self._transformer)

    @cached_property
    def digest(self) -> str:
        """Of the settings, and of the weights' sizes, heads and tails: whole models take seconds to read."""
        made = sha256()
        for path in sorted(self.folder.rglob("*")):
            if path.suffix == ".json":
                made.update(path.read_bytes())
            elif path.suffix in (".safetensors", ".bin"):
                with open(path, "rb") as file:
                    size = os.fstat(file.fileno()).st_size
                    made.update(b"%d" % size + file.read(1 << 20))
                    file.seek(max(size - (1 << 20), 0))
                    made.update(file.read())
        return made.hexdigest()

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """[n, dim]; a text longer than the model takes is cut."""
        prompt = self._prompts.get("document") or self._prompts.get("passage") or ""
        return self._embed([prompt + text for text in texts])

    def query(self, texts: Sequence[str]) -> np.ndarray:
        return self._embed([self._prompts.get("query", "") + text for text in texts])

    def knows(self, text: str) -> bool:
        tokenizer = self._parts[0]
        ids = tokenizer.encode(text, add_special_tokens=False, truncation=True)
        return ids.count(tokenizer.unk_token_id) <= MAX_UNKNOWN * len(ids)

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        """(tokenizer, model), loaded by the first text."""
        import torch
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        try:
            tokenizer = AutoTokenizer.from_pretrained(self._transformer, local_files_only=True)
            model = AutoModel.from_pretrained(self._transformer, local_files_only=True, dtype=torch.float32)
        except (OSError, ValueError, KeyError) as error:
            raise BadInput(f"the embedder {self.folder} cannot be loaded: {_line(error)}") from None
        settings = _read(self._transformer / "sentence_bert_config.json")
        tokenizer.model_max_length = min(settings.get("max_seq_length") or 512, tokenizer.model_max_length)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return tokenizer, model.eval().to(device)

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        """Texts of like length go together: padding is paid for."""
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        vectors = np.zeros((len(texts), self.dim), np.float32)
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            vectors[places] = self._embed_batch([texts[place] for place in places])
        return vectors

    def _embed_batch(self, texts: list[str]) -> np.ndarray:
        import torch

        tokenizer, model = self._parts
        batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            states = model(**batch).last_hidden_state.float()
        mask = batch["attention_mask"].unsqueeze(-1)
        if self._pooling == "mean":
            pooled = (states * mask).sum(1) / mask.sum(1)
        elif self._pooling == "cls":
            pooled = states[:, 0]
        else:
            last = mask.shape[1] - 1 - mask[..., 0].flip(1).argmax(1)
            pooled = states[torch.arange(len(texts)), last]
        return torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()


class EndpointEmbedder:
    """POST {url}/embeddings {model, input} -> {data: [{index, embedding}]}. After a failure it is left alone for ten
    seconds, so that questions do not wait for it."""

    def __init__(self, url: str, key: str = ""):
        self.url, _, self.model = url.partition("#")
        if not self.model:
            raise BadInput(f"the embedder {url} wants its model behind #, such as {url.rstrip('/')}#bge-m3")
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._failure, self._again = "", 0.0
        self.digest = sha256(f"{self.url.rstrip('/')}#{self.model}".encode()).hexdigest()

    @cached_property
    def dim(self) -> int:
        return self(["dimensions"]).shape[1]

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        parts = [self._embed(list(texts[start : start + BATCH])) for start in range(0, len(texts), BATCH)]
        return np.concatenate(parts)

    def _embed(self, texts: list[str]) -> np.ndarray:
        if time.monotonic() < self._again:
            raise Failure(self._failure)
        try:
            return self._ask(texts)
        except Failure as error:
            self._failure, self._again = str(error), time.monotonic() + PAUSE_SECONDS
            raise

    def _ask(self, texts: list[str]) -> np.ndarray:
        body = post(f"{self.url.rstrip('/')}/embeddings", {"model": self.model, "input": texts}, self._headers)
        try:
            rows = sorted(body["data"], key=lambda row: row["index"])
            vectors = np.array([row["embedding"] for row in rows], np.float32)
            assert vectors.ndim == 2 and len(vectors) == len(texts) and np.isfinite(vectors).all()
        except (AssertionError, KeyError, TypeError, ValueError):
            raise Failure(f"{self.url} did not answer with {len(texts)} embeddings of one length") from None
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def open_reranker(name: str, key: str = "") -> "Callable[[str, list[str]], np.ndarray] | None":
    """`name`: a cross-encoder's folder, a URL with the model behind # (POST {url}/rerank {model, query, documents} ->
    {results: [{index, relevance_score}]}), or "" for none. Raises BadInput."""
    if not name:
        return None
    if name.startswith(("http://", "https://")):
        return _endpoint_reranker(name, key)
    folder = Path(name).expanduser()
    if not (folder / "config.json").is_file():
        raise BadInput(f"the reranker {folder} wants a cross-encoder's folder, with a config.json, or a URL")
    return _folder_reranker(folder)


def _folder_reranker(folder: Path) -> Callable[[str, list[str]], np.ndarray]:
    parts: list[Any] = []

    def rerank(query: str, texts: list[str]) -> np.ndarray:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        if not parts:
            try:
                parts.append(AutoTokenizer.from_pretrained(folder, local_files_only=True))
                parts.append(AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True).eval())
            except (OSError, ValueError, KeyError) as error:
                parts.clear()
                raise Failure(f"the reranker {folder} cannot be loaded: {_line(error)}") from None
        tokenizer, model = parts
        batch = tokenizer([query] * len(texts), texts, padding=True, truncation=True, max_length=512,
                          return_tensors="pt")  # fmt: skip
        with torch.inference_mode():
            return model(**batch).logits[:, -1].float().numpy()

    return rerank


def _endpoint_reranker(name: str, key: str) -> Callable[[str, list[str]], np.ndarray]:
    url, _, model = name.partition("#")
    if not model:
        raise BadInput(f"the reranker {url} wants its model behind #")
    headers = {"authorization": f"Bearer {key}"} if key else {}

    def rerank(query: str, texts: list[str]) -> np.ndarray:
        body = post(f"{url.rstrip('/')}/rerank", {"model": model, "query": query, "documents": texts}, headers)
        scores = np.full(len(texts), -np.inf)
        try:
            for row in body["results"]:
                scores[row["index"]] = row["relevance_score"]
        except (IndexError, KeyError, TypeError, ValueError):
            raise Failure(f"{url} did not answer with a score for each text") from None
        return scores

    return rerank


def post(url: str, body: dict, headers: dict[str, str]) -> Any:
    """The answer's JSON. Raises Failure with what was answered."""
    import httpx2

    try:
        answer = httpx2.post(url, json=body, headers=headers, timeout=SECONDS)
        answer.raise_for_status()
        return answer.json()
    except httpx2.HTTPStatusError as error:
        raise Failure(f"{url} answered {error.response.status_code}: {_line(error.response.text)}") from None
    except (httpx2.HTTPError, json.JSONDecodeError) as error:
        raise Failure(f"{url} cannot be used: {_line(error)}") from None


def _pooling(folder: Path | None) -> str:
    settings = _read(folder / "config.json") if folder else {}
    modes = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "last"}
    wanted = [name for name, value in settings.items() if name.startswith("pooling_mode_") and value is True]
    if settings.get("pooling_mode") in ("mean", "cls", "lasttoken"):
        return settings["pooling_mode"].removesuffix("token")
    if len(wanted) != 1 or wanted[0] not in modes:
        raise BadInput(
            f"{folder} pools by {', '.join(wanted) or 'nothing'}: mean, cls or last token are what runs here"
        )
    return modes[wanted[0]]


def _hidden_size(folder: Path) -> int:
    return int(read_json(folder / "config.json")["hidden_size"])


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _line(error: object) -> str:
    return " ".join(str(error).split())[:200]

"""Dense vectors of texts, in a file that several processes share, and the search among them.

    HOME/knowledge/index/vectors-<embedder>.bin    a head, then records of one size: key, checksum, vector

Promises: a vector is found by the digest of its text, so versions with one text share it and no text is embedded twice;
a vector that `put` has stored survives kill -9, and what a crash left half-written is dropped. Results are exact up to
the first pass: int8 codes (a quarter of the memory traffic of float32) choose the candidates, float32 vectors, read
from the file, give their order and score. At 100,000 x 384 that finds all of the exact best
five (recall 1.0) in 2.5 ms instead of 14 (one core of an EPYC with AVX-512; numkong's kernels).
Does not: know rows or times; the caller says which slots may be found.
"""

import fcntl
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from evergreen.home import disk_failure
from evergreen.knowledge.bm25 import best
from evergreen.records import BadInput

HEAD = struct.Struct("<8sII")  # name, dimensions, nothing
NAME = b"EVGVEC1\n"
NUM_CANDIDATES = 64  # at least; the int8 pass errs by a few places, see bench/knowledge.py


class VectorFile:
    """The vectors of one embedder; slots are numbered in the order of the file."""

    def __init__(self, folder: Path, embedder: str):
        """embedder: a digest of what makes the vectors. How many numbers a vector has, the file says, or the first one
        that is put in."""
        self.path = folder / f"vectors-{embedder[:16]}.bin"
        self._file = None
        self.forget()

    def forget(self) -> None:
        """Start again from the file at the next `refresh`."""
        if self._file is not None:
            self._file.close()
        self._file, self.num_slots, self.dim = None, 0, 0
        self.slot_of: dict[int, int] = {}  # key -> slot
        self.codes, self.scales = np.zeros((0, 0), np.int8), np.zeros(0, np.float32)

    def refresh(self) -> None:
        """Take in what other processes have stored since."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return self.forget()
        if self._file is not None and found.st_ino != os.fstat(self._file.fileno()).st_ino:
            self.forget()
        if self._file is None and not self._open():
            return
        num_slots = (found.st_size - HEAD.size) // self.record.itemsize
        if num_slots <= self.num_slots:
            return
        self._grow(num_slots)
        while self.num_slots < num_slots:
            self._take_in(self._records(self.num_slots, min(num_slots - self.num_slots, 4096)))

    def _open(self) -> bool:
        """Whether the file has a head."""
        file = open(self.path, "rb", buffering=0)  # noqa: SIM115 stays open: scores are read from it
        head = file.read(HEAD.size)
        if len(head) < HEAD.size or HEAD.unpack(head)[0] != NAME:
            file.close()
            return False
        self._file, self.dim = file, HEAD.unpack(head)[1]
        self.record = _record(self.dim)
        return True

    def _check(self, dim: int) -> None:
        if self.dim and dim != self.dim:
            raise BadInput(f"{self.path} holds vectors of {self.dim} dimensions, the embedder makes {dim}: "
                           "evergreen knowledge reindex makes them anew")  # fmt: skip

    def _records(self, slot: int, count: int = 1) -> np.ndarray:
        """Read, not mapped, so that they stay out of this process's memory."""
        size = self.record.itemsize
        return np.frombuffer(os.pread(self._file.fileno(), count * size, HEAD.size + slot * size), self.record)

    def _take_in(self, records: np.ndarray) -> None:
        """The next records; those that a crash or `sweep` has made void keep their slots, empty."""
        span = slice(self.num_slots, self.num_slots + len(records))
        is_whole = (records["key"] != 0) & (records["crc"] == _sums(records["vector"]))
        self.codes[span], self.scales[span] = quantized(np.where(is_whole[:, None], records["vector"], 0))
        for offset in np.flatnonzero(is_whole).tolist():
            self.slot_of[int(records["key"][offset])] = self.num_slots + offset
        self.num_slots += len(records)

    def _grow(self, num_slots: int) -> None:
        if num_slots > len(self.codes):
            size = num_slots + num_slots // 16 + 64
            codes, scales = np.zeros((size, self.dim), np.int8), np.zeros(size, np.float32)
            used = slice(self.num_slots)
            if self.num_slots:
                codes[used], scales[used] = self.codes[used], self.scales[used]
            self.codes, self.scales = codes, scales

    def slots(self, keys: np.ndarray) -> np.ndarray:
        """[n] int32; -1 for a key without a vector."""
        return np.fromiter((self.slot_of.get(key, -1) for key in keys.tolist()), np.int32, len(keys))

    def put(self, keys: Sequence[int], vectors: np.ndarray) -> None:
        """Store vectors [n, dim]; on the disk when this returns. Raises BadInput for vectors of other dimensions than
        those there are, Failure when the disk is full."""
        try:
            with locked(self.path.parent):
                self._put(keys, vectors)
        except OSError as error:
            raise disk_failure(error, "writing the knowledge index") from None

    def _put(self, keys: Sequence[int], vectors: np.ndarray) -> None:
        self.refresh()
        self._check(vectors.shape[1])
        is_new = np.zeros(len(keys), bool)
        is_new[np.unique(np.array(keys, np.uint64), return_index=True)[1]] = True
        is_new &= [key not in self.slot_of for key in keys]
        records = np.zeros(int(is_new.sum()), _record(vectors.shape[1]))
        records["key"] = np.array(keys, np.uint64)[is_new]
        records["vector"] = np.asarray(vectors, np.float32)[is_new]
        records["crc"] = _sums(records["vector"])
        with open(self.path, "ab") as file:
            if self._file is None:
                file.truncate(0)
                file.write(HEAD.pack(NAME, vectors.shape[1], 0))
            elif torn := (file.tell() - HEAD.size) % self.record.itemsize:
                file.truncate(file.tell() - torn)
            file.write(records.tobytes())
            file.flush()
            os.fsync(file.fileno())
        self.refresh()

    def search(self, vector: np.ndarray, slots: np.ndarray, allowed: np.ndarray, top_k: int) -> list[tuple[int, float]]:
        """(row, cosine) of the rows nearest to `vector` [dim], best first. slots: [rows], each row's slot or -1;
        allowed: [rows] bool."""
        import numkong

        if not self.num_slots:
            return []
        self._check(len(vector))
        code, _ = quantized(vector[None])
        dots = np.asarray(numkong.cdist(self.codes[: self.num_slots], code, "dot", out_dtype="float32")).ravel()
        rough = np.where(allowed & (slots >= 0), (dots * self.scales[: self.num_slots])[slots], -np.inf)
        candidates = best(rough, max(NUM_CANDIDATES, 2 * top_k))
        candidates = candidates[rough[candidates] > -np.inf]
        if not len(candidates):
            return []
        exact = np.concatenate([self._records(slot) for slot in slots[candidates].tolist()])["vector"]
        scores = exact @ vector.astype(np.float32)
        return [(int(candidates[place]), float(scores[place])) for place in best(scores, top_k)]

    def keep(self, keys: set[int]) -> None:
        """Forget the vectors of all other keys, here in memory."""
        for key in self.slot_of.keys() - keys:
            slot = self.slot_of.pop(key)
            self.codes[slot], self.scales[slot] = 0, 0


def quantized(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(int8 codes [n, dim], scales [n] float32): a vector is about codes x scale; symmetric, by its largest number."""
    scales = np.abs(vectors).max(1) / 127
    return np.rint(vectors / np.maximum(scales, 1e-12)[:, None]).astype(np.int8), scales.astype(np.float32)


def sweep(folder: Path, kept: Callable[[], set[int]]) -> None:
    """Overwrite with zeros, in the files of every embedder, all vectors whose key is not in `kept()`, which is asked
    while nobody can store one."""
    with locked(folder):
        keys = np.array(list(kept()), np.uint64)
        for path in folder.glob("vectors-*.bin"):
            with open(path, "r+b") as file:
                head = file.read(HEAD.size)
                if len(head) == HEAD.size and HEAD.unpack(head)[0] == NAME:
                    _sweep_file(file, _record(HEAD.unpack(head)[1]), keys)


def _sweep_file(file: BinaryIO, record: np.dtype, keys: np.ndarray) -> None:
    num_slots = (os.fstat(file.fileno()).st_size - HEAD.size) // record.itemsize
    if num_slots:
        records = np.memmap(file, record, "r+", HEAD.size, (num_slots,))
        for slot in np.flatnonzero((records["key"] != 0) & ~np.isin(records["key"], keys)):
            records[slot] = np.zeros((), record)
        records.flush()


def _sums(vectors: np.ndarray) -> np.ndarray:
    """[n] uint32 checksums."""
    return np.array([zlib.crc32(vector) for vector in np.ascontiguousarray(vectors)], np.uint32)


def _record(dim: int) -> np.dtype:
    return np.dtype([("key", "<u8"), ("crc", "<u4"), ("nothing", "<u4"), ("vector", "<f4", (dim,))])


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Writers of an index's files take turns; the kernel frees the lock of a killed one."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

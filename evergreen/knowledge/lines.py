"""Changes as lines of a file, each with its checksum; and how what a crash left is told from what was damaged later."""

import zlib

import orjson

Change = dict  # {"n": number from 1, "at": UTC time, "op": ..., and what the operation needs}

HEAD = len(b'{"crc":"00000000",')  # the checksum is of what follows it


def encode(change: Change, is_end: bool) -> bytes:
    """One line: the checksum of the rest first. `is_end` marks the last change of an append."""
    rest = orjson.dumps({**change, "end": is_end})[1:]
    return b'{"crc":"%08x",%b\n' % (zlib.crc32(rest), rest)


def decode(line: bytes) -> Change | None:
    """The change, with its "end"; None when the line is not whole."""
    if not line.endswith(b"}\n") or line[:8] != b'{"crc":"' or line[8:16] != b"%08x" % zlib.crc32(line[HEAD:-1]):
        return None
    return orjson.loads(b"{" + line[HEAD:])


def whole_appends(data: bytes) -> tuple[list[Change], int, int | None]:
    """(the changes of the whole appends that `data` begins with, their bytes, where behind them a line stands that was
    damaged; None: what follows, if anything, was never finished)."""
    found, pending, size, place = [], [], 0, 0
    for line in data.splitlines(keepends=True):
        change = decode(line)
        if change is None:
            return found, size, None if is_torn(data[place:]) else place
        pending.append(change)
        place += len(line)
        if change.pop("end"):
            found += pending
            pending, size = [], place
    return found, size, None


def is_torn(tail: bytes) -> bool:
    """Whether a crash can have left this, which begins with no whole line. An append is one run of bytes up to its
    newline, and is acknowledged behind fsync: kill -9 leaves a beginning of the run; a power failure one of which
    blocks never reached the disk and read as zeros, which JSON has none of. All else was whole once."""
    if b"\n" not in tail:
        return True
    return b"\0" in tail and not any(change and change["end"] for change in map(decode, tail.splitlines(keepends=True)))

"""Which encoding a text file is in: what it says itself, UTF-8, GB18030, else an error that names the place."""

import codecs
import re
from pathlib import Path

from evergreen.records import BadInput

MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
BLOCK = 1 << 20
COMMON_SHARE = 0.9  # of the characters beyond ASCII that GB18030 finds in a text which is in it
DECLARED = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?([\w-]{2,20})", re.I)


def encoding_of(path: Path, wanted: str = "") -> str:
    """The encoding of the whole file, which is read once. Raises BadInput for one that fits none, or not `wanted`."""
    if wanted:
        try:
            "".encode(wanted)  # refuses base64 and the like, which are codecs of bytes
        except (LookupError, UnicodeError):
            raise BadInput(f"--encoding {wanted} is no encoding: utf-8, gb18030, big5, latin-1, ...") from None
        found = wanted
    else:
        with open(path, "rb") as file:
            head = file.read(4096)
        found = _declared(path, head)
    damage = _damage(path, found)
    if damage and not wanted and found == "utf-8" and _is_gb18030(path, damage):
        return "gb18030"
    if damage and damage[2] == 0:
        raise BadInput(f"{path}:{damage[0]}: byte {damage[1]:,} is 0x00: not a text file")
    if damage:
        line, byte, value = damage
        raise BadInput(f"{path}:{line}: byte {byte:,} (0x{value:02x}) is not {found}"
                       + ("" if wanted else ", nor is the file GB18030: --encoding names another"))  # fmt: skip
    return found


def read_text(path: Path, encoding: str = "") -> str:
    """The whole file, with line ends as \\n."""
    found = encoding_of(path, encoding)
    with open(path, encoding=found) as file:
        return file.read()


def _declared(path: Path, head: bytes) -> str:
    for mark, name in MARKS:
        if head.startswith(mark):
            return name
    if path.suffix.lower() in (".html", ".htm", ".xhtml") and (said := DECLARED.search(head)):
        name = said[1].decode().lower()
        try:
            return "gb18030" if name in ("gb2312", "gbk") else codecs.lookup(name).name
        except LookupError:
            return "utf-8"
    return "utf-8"


def _damage(path: Path, encoding: str) -> tuple[int, int, int] | None:
    """(line, byte, value) of the first byte that cannot be decoded; None when all can. A NUL byte is damage too."""
    decoder = codecs.getincrementaldecoder(encoding)()
    offset, line = 0, 1
    with open(path, "rb") as file:
        while True:
            block = file.read(BLOCK)
            held = decoder.getstate()[0]  # what the last block left half a character of
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                place = max(0, error.start - len(held))
                value = (held + block)[error.start] if held + block else 0
                return line + block[:place].count(b"\n"), offset - len(held) + error.start, value
            if not encoding.startswith("utf-16") and (place := block.find(0)) >= 0:
                return line + block[:place].count(b"\n"), offset + place, 0
            if not block:
                return None
            offset, line = offset + len(block), line + block.count(b"\n")


def _is_gb18030(path: Path, damage: tuple[int, int, int]) -> bool:
    """Whether it decodes, and to characters that Chinese is written in: GB18030 finds some in almost any bytes."""
    if damage[2] == 0 or _damage(path, "gb18030"):
        return False
    with open(path, "rb") as file:
        file.seek(max(0, damage[1] - 64) if damage[1] > BLOCK else 0)
        text = file.read(BLOCK).decode("gb18030", "ignore")
    beyond = [char for char in text if not char.isascii()]
    common = sum(1 for char in beyond if _is_common(char))
    return bool(beyond) and common >= COMMON_SHARE * len(beyond)


def _is_common(char: str) -> bool:
    """In the first level of GB 2312 (3,755 characters in order of their sound), or one of its marks and letters."""
    try:
        return char.encode("gb2312")[0] <= 0xD7
    except UnicodeEncodeError:
        return False

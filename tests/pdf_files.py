"""Small PDFs, written byte by byte, in a font whose codes are Unicode's."""

from pathlib import Path

TO_UNICODE = b"""/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapType 2 def
1 begincodespacerange <0000> <FFFF> endcodespacerange
1 beginbfrange <0000> <FFFF> <0000> endbfrange
endcmap end end"""


def write_pdf(path: Path, pages: list[list[str]], title: str = "") -> Path:
    """A page of lines each; an empty list is a page without text."""
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Count %d /Kids [%s] >>"
        % (len(pages), b" ".join(b"%d 0 R" % (6 + 2 * number) for number in range(len(pages)))),
        b"<< /Type /Font /Subtype /Type0 /BaseFont /Any /Encoding /Identity-H "
        b"/DescendantFonts [4 0 R] /ToUnicode 5 0 R >>",
        b"<< /Type /Font /Subtype /CIDFontType2 /BaseFont /Any /DW 500 "
        b"/CIDSystemInfo << /Registry (Adobe) /Ordering (Identity) /Supplement 0 >> >>",
        _stream(TO_UNICODE),
    ]
    for number, lines in enumerate(pages):
        shown = "".join(f"<{line.encode('utf-16-be').hex()}> Tj T* " for line in lines)
        content = f"BT /F 12 Tf 14 TL 50 780 Td {shown}ET" if lines else ""
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents %d 0 R "
            b"/Resources << /Font << /F 3 0 R >> >> >>" % (7 + 2 * number)
        )
        objects.append(_stream(content.encode()))
    if title:
        objects.append(b"<< /Title <feff%s> /ModDate (D:20260301120000Z) >>" % title.encode("utf-16-be").hex().encode())
    path.write_bytes(_file(objects, bool(title)))
    return path


def _stream(data: bytes) -> bytes:
    return b"<< /Length %d >>\nstream\n%s\nendstream" % (len(data), data)


def _file(objects: list[bytes], has_about: bool) -> bytes:
    data, places = b"%PDF-1.7\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    start = len(data)
    data += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    data += b"".join(b"%010d 00000 n \n" % place for place in places)
    about = b"/Info %d 0 R" % len(objects) if has_about else b""
    return data + b"trailer << /Size %d /Root 1 0 R %s >>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, about, start)

"""PDF files that nobody should have to read: written by hand, since no library would write them."""

import os
import zlib
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

from pypdf import PdfWriter

PAGE = (
    b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R /Resources << /Font << /F 5 0 R >> %s >> >>"
)
FONT = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"
CATALOG = b"<< /Type /Catalog /Pages 2 0 R >>"
PAGES = b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>"


def assembled(objects: Sequence[bytes], trailer: bytes = b"") -> bytes:
    """A PDF of these objects, numbered from 1, the first one the catalog."""
    content, places = b"%PDF-1.7\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(content))
        content += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    size = len(objects) + 1
    return content + (
        b"xref\n0 %d\n0000000000 65535 f \n%strailer\n<< /Size %d /Root 1 0 R %s >>\nstartxref\n%d\n%%%%EOF\n"
        % (size, table, size, trailer, len(content))
    )


def stream(data: bytes, entries: bytes = b"") -> bytes:
    return b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(data), entries, data)


def decompression_bomb(mebibytes: int) -> bytes:
    """A page whose content inflates a thousandfold, to drawing commands that fill memory."""
    command = b"BT /F 9 Tf (a) Tj ET\n"
    block = command * (2**20 // len(command))
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(block) for _ in range(mebibytes)) + packer.flush()
    return assembled([CATALOG, PAGES, PAGE % b"", stream(packed, b"/Filter /FlateDecode"), FONT])


def crowded(characters: int, pages: int = 1) -> bytes:
    """Pages with more characters than any paper holds."""
    text = (
        b"BT /F 9 Tf 9 TL 20 800 Td " + b"(tenant and landlord agree on the rent) Tj T*\n" * (characters // 38) + b"ET"
    )
    tree = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (b"3 0 R " * pages, pages)
    return assembled([CATALOG, tree, PAGE % b"", stream(zlib.compress(text), b"/Filter /FlateDecode"), FONT])


def page_tree_loop() -> bytes:
    """A page tree whose only branch is itself."""
    return assembled([CATALOG, b"<< /Type /Pages /Kids [2 0 R] /Count 5 >>"])


def form_loop() -> bytes:
    """A page that draws a form which draws itself."""
    form = stream(b"/X Do", b"/Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /XObject << /X 6 0 R >> >>")
    return assembled([CATALOG, PAGES, PAGE % b"/XObject << /X 6 0 R >>", stream(b"/X Do"), FONT, form])


def stamped_scan(stamp: bytes, share: float = 1.0) -> bytes:
    """A page with a picture from its foot up to a share of its height, and a stamp over it."""
    drawing = b"q 595 0 0 %d 0 0 cm /P Do Q BT /F 9 Tf 20 20 Td (%s) Tj ET" % (842 * share, stamp)
    picture = b"/Type /XObject /Subtype /Image /Width 1 /Height 1 /ColorSpace /DeviceGray /BitsPerComponent 8"
    page = PAGE % b"/XObject << /P 6 0 R >>"
    return assembled([CATALOG, PAGES, page, stream(drawing), FONT, stream(b"\x80", picture)])


def many_pages(count: int) -> bytes:
    """One page, listed many times."""
    kids = b"3 0 R " * count
    return assembled(
        [CATALOG, b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, count), PAGE % b"", stream(b""), FONT]
    )


def encrypted(good: Path) -> bytes:
    """A copy that asks for a password."""
    writer, target = PdfWriter(clone_from=good), BytesIO()
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write(target)
    return target.getvalue()


def links(folder: Path, outside: Path) -> dict[str, Callable[[], object]]:
    """By name of a file what puts something there that is no file of the corpus."""
    return {
        "out.pdf": lambda: (folder / "out.pdf").symlink_to(outside),
        "nothing.pdf": lambda: (folder / "nothing.pdf").symlink_to(folder / "absent"),
        "circle.pdf": lambda: (folder / "circle.pdf").symlink_to(folder / "circle.pdf"),
        "pipe.pdf": lambda: os.mkfifo(folder / "pipe.pdf"),
        "caf\udce9.pdf": lambda: (folder / "caf\udce9.pdf").write_bytes(b"%PDF-1.7"),
    }

"""Numbers, times, digests and images as people read them. It must know nothing of runs."""

from datetime import UTC, datetime

from rich.table import Table

_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def short_digest(digest: str) -> str:
    """The first 12 digits, which is what people compare."""
    return digest[:12]


def short_image(image: str) -> str:
    """The image without its registry, and with a short digest."""
    name, _, digest = image.rpartition("/")[2].partition("@sha256:")
    return f"{name}@{short_digest(digest)}" if digest else name


def parse_time(text: str) -> datetime:
    """A time of the API server."""
    return datetime.fromisoformat(text)


def seconds_between(start: str, end: str | datetime) -> float:
    """From one time of the API server to another, or to now."""
    last = end if isinstance(end, datetime) else parse_time(end)
    return (last - parse_time(start)).total_seconds()


def duration(seconds: float) -> str:
    """Two units at most, such as `4 min 03 s`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} days"


def clock(time: str) -> str:
    """A time of the API server, to the second, in UTC."""
    return parse_time(time).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def byte_size(count: float) -> str:
    """A count of bytes in the largest unit that leaves a digit before the point."""
    for unit in _BYTE_UNITS[:-1]:
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} {_BYTE_UNITS[-1]}"


def plural(count: int, noun: str) -> str:
    """`1 file`, `2 files`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def rounded(number: int | str) -> str:
    """A bound, short enough for a column: `750`, `3.1 M`."""
    value = float(number)
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{number:,}" if isinstance(number, int) else number


def bar(percent: int, width: int = 30) -> str:
    """A progress bar that needs neither colour nor Unicode."""
    filled = round(percent / 100 * width)
    head = ">" if 0 < filled < width else ""
    return f"[{('=' * filled)[: filled - len(head)] + head:<{width}}] {percent:3} %"


def plain_table(*headings: str, right: tuple[str, ...] = ()) -> Table:
    """A table without lines, as kubectl prints them; the columns named in `right` are aligned to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(heading, justify="right" if heading in right else "left", overflow="fold")
    return table

"""Times as Kubernetes writes them. The present is always a parameter, never asked for here."""

from datetime import UTC, datetime


def text_of(moment: datetime) -> str:
    """A moment as `2026-01-31T12:00:00Z`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse(text: str) -> datetime:
    """The moment that such a text means."""
    return datetime.fromisoformat(text)


def seconds_since(text: str, now: datetime) -> float:
    """Seconds from a written moment to now."""
    return (now - parse(text)).total_seconds()

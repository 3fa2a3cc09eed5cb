"""Words that people read: numbers with what they count, names of classes."""

from __future__ import annotations


def counted(number: int, what: str, plural: str | None = None) -> str:
    """A number and what it counts.

    Examples:
        >>> counted(1, "case"), counted(0, "case"), counted(2, "entry", "entries")
        ('1 case', '0 cases', '2 entries')
    """
    return f"{number} {what if number == 1 else plural or what + 's'}"


def readable(name: str) -> str:
    """The name of a class or figure as readers want it.

    Examples:
        >>> readable("kidney_tumour")
        'kidney tumour'
    """
    return name.replace("_", " ")

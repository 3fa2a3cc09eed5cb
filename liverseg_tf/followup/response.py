"""RECIST 1.1's arithmetic on long axes: an aid to the radiologist, who decides on targets and new lesions.

Eisenhauer 2009, "New response evaluation criteria in solid tumours: revised RECIST guideline (version 1.1)".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

# RECIST allows two targets per organ; only the liver is segmented.
MOST_TARGETS = 2
SMALLEST_TARGET_MM = 10.0
PARTIAL_RESPONSE = -0.30
PROGRESS = 0.20
PROGRESS_MM = 5.0


@dataclass(frozen=True)
class Response:
    """One scan's sum and category.

    Attributes:
        sum_mm: sum of the targets' long axes; None without targets.
        nadir_mm: the smallest sum before this scan, the first one's included; None at the first scan.
        change_from_baseline, change_from_nadir: as a fraction; None without an earlier sum.
        category: `CR`, `PR`, `SD`, `PD`; `non-CR/non-PD` where there is no target but other lesions; `no disease`;
            `NE` if it can't be evaluated; None at the first scan.
        reason: in words.
    """

    sum_mm: float | None
    nadir_mm: float | None
    change_from_baseline: float | None
    change_from_nadir: float | None
    category: str | None
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """As a dictionary, for JSON."""
        return asdict(self)


def choose_targets(long_axes_mm: Sequence[float], slice_mm: float) -> tuple[int, ...]:
    """Indices of the targets at baseline: the largest two of 10 mm and more, or of twice the slices' step if more.

    Example:
        >>> choose_targets([9.0, 31.0, 12.0, 20.0], slice_mm=2.5)
        (1, 3)
    """
    smallest = max(SMALLEST_TARGET_MM, 2 * slice_mm if slice_mm > 5 else 0.0)
    order = sorted(range(len(long_axes_mm)), key=lambda i: -long_axes_mm[i])
    return tuple(i for i in order if long_axes_mm[i] >= smallest)[:MOST_TARGETS]


def respond(
    sums_mm: Sequence[float | None],
    other_lesions: Sequence[int],
    new_lesions: Sequence[int],
    doubts: Sequence[str | None],
) -> list[Response]:
    """The response at each scan.

    Args:
        sums_mm: of the targets, scan by scan; None everywhere if there are none.
        other_lesions: lesions that are neither targets nor new.
        new_lesions: lesions that the first scan did not show.
        doubts: reasons why a scan can't be evaluated, such as a liver cut by the field of view; None if there is none.

    Examples:
        >>> [one.category for one in respond([50.0, 30.0, 38.0], [0, 0, 0], [0, 0, 0], [None] * 3)]
        [None, 'PR', 'PD']
    """
    found = []
    for scan, sum_mm in enumerate(sums_mm):
        if scan == 0:
            found.append(Response(sum_mm, None, None, None, None, "baseline"))
            continue
        earlier = [s for s in sums_mm[:scan] if s is not None]
        nadir, first = (min(earlier), earlier[0]) if earlier else (None, None)
        from_first, from_nadir = _change(sum_mm, first), _change(sum_mm, nadir)
        category, reason = _category(
            sum_mm,
            nadir,
            from_first,
            from_nadir,
            other_lesions[scan],
            new_lesions[scan],
            doubts[scan],
            other_lesions[0],
        )
        found.append(Response(sum_mm, nadir, from_first, from_nadir, category, reason))
    return found


def _change(now: float | None, before: float | None) -> float | None:
    # rounded, so that 120 mm after 100 mm is exactly 20 %
    return None if now is None or not before else round((now - before) / before, 9)


def _category(  # each is one of the guideline's own terms
    sum_mm: float | None,
    nadir_mm: float | None,
    from_first: float | None,
    from_nadir: float | None,
    others: int,
    new: int,
    doubt: str | None,
    others_at_first: int,
) -> tuple[str, str]:
    if new:
        return "PD", f"{new} new {'lesion' if new == 1 else 'lesions'}: progression if a radiologist confirms"
    more_mm = 0.0 if sum_mm is None or nadir_mm is None else sum_mm - nadir_mm
    if more_mm >= PROGRESS_MM and (from_nadir is None or from_nadir >= PROGRESS):
        change = "from nothing" if from_nadir is None else f"{100 * from_nadir:+.0f} %"
        return "PD", f"sum {change} and {more_mm:+.1f} mm from the smallest before"
    if doubt:
        return "NE", doubt
    if not sum_mm and not others:
        gone = sum_mm is not None or others_at_first
        return ("CR", "no lesion is left") if gone else ("no disease", "no lesion in either scan")
    if sum_mm is None:
        return "non-CR/non-PD", "no lesion was large enough to be a target at the first scan"
    if from_first is not None and from_first <= PARTIAL_RESPONSE:
        return "PR", f"sum {100 * from_first:+.0f} % from the first scan"
    change = "" if from_first is None else f"sum {100 * from_first:+.0f} % from the first scan, "
    return "SD", f"{change}neither 30 % less than it nor 20 % and 5 mm more than the smallest"

"""What a sanity check found, in print and in JSON."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

NUMBER = re.compile(r"(\d+(?:\.\d+)?)")


class Finding(NamedTuple):
    """One check: ok None is "not run"; `value` says what was seen."""

    ok: bool | None
    value: str


Findings = dict[str, Finding]  # by the check's name


def lines(found: Findings) -> list[str]:
    """What to print: one line if all is well, and a warning for each failed check."""
    failed = [
        f"WARNING: sanity check failed: {name}: {finding.value}"
        for name, finding in found.items()
        if finding.ok is False
    ]
    absent = [name for name, finding in found.items() if finding.ok is None]
    passed = sum(finding.ok is True for finding in found.values())
    return [
        f"sanity: {passed} checks passed, {len(failed)} failed" + (f"; not run: {', '.join(absent)}" if absent else ""),
        *failed,
    ]


def merged(warnings: Iterable[str]) -> list[str]:
    """Warnings that differ in their numbers only as one: each number from the least to the largest, and how many they were."""
    alike: dict[tuple[str, ...], list[list[str]]] = {}
    for warning in warnings:
        parts = NUMBER.split(warning)  # words and numbers in turn
        alike.setdefault(tuple(parts[::2]), []).append(parts[1::2])
    said = []
    for words, found in alike.items():
        ranges = [dict.fromkeys((min(each, key=float), max(each, key=float))) for each in zip(*found, strict=True)]
        text = words[0] + "".join(" to ".join(ends) + more for ends, more in zip(ranges, words[1:], strict=True))
        said.append(text + (f" ({len(found)} such warnings)" if len(found) > 1 else ""))
    return said


def as_json(found: Findings) -> dict[str, dict[str, bool | str | None]]:
    """What the JSON of an evaluation holds under `sanity`."""
    return {name: finding._asdict() for name, finding in found.items()}

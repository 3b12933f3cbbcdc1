"""What a sanity check found, in print and in JSON."""

from __future__ import annotations

from typing import NamedTuple


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


def as_json(found: Findings) -> dict[str, dict[str, bool | str | None]]:
    """What the JSON of an evaluation holds under `sanity`."""
    return {name: finding._asdict() for name, finding in found.items()}

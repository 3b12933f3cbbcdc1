"""Repeated PGD of one network at several radii: what is asked for, and what of it is stored. N test images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from evaluations.flags import EvalConfig, eval_grid, eval_step_size
from evaluations.repeated_pgd import Protocol
from evaluations.rows import Kind, Row, same_eps
from evaluations.subject import Subject
from losses import cross_entropy, cw_loss
from pgd import LossFn
from validation import radius

OF_THE_RADIUS = ("eps_iter",)  # the setting in which results at several radii differ


@dataclass(frozen=True)
class Plan:
    """One network, the flags with radii in input units, and the radii asked for, ascending."""

    subject: Subject
    flags: EvalConfig
    radii: tuple[float, ...]

    @property
    def losses(self) -> tuple[tuple[str, LossFn], ...]:
        """(name, loss) of each restart: the first half on cross-entropy, the rest on the CW loss."""
        on_xent = -(-self.flags.nb_restart // 2)
        return (("xent", cross_entropy),) * on_xent + (("cw", cw_loss),) * (self.flags.nb_restart - on_xent)

    def protocol(self, eps: float) -> Protocol:
        """How each restart attacks at this radius."""
        losses = tuple(loss for _, loss in self.losses)
        flags = self.flags
        return Protocol(losses, self.subject.norm, eps, self.step_size(eps), flags.nb_iter, flags.seed)

    def step_size(self, eps: float) -> float:
        """Step size of every restart at this radius."""
        return self.flags.eps_iter or eval_step_size(self.subject.dataset, self.subject.norm, eps)

    def settings(self, eps: float) -> dict[str, Any]:
        """What makes two results at this radius comparable, the images and the seed apart."""
        return {
            "nb_iter": self.flags.nb_iter,
            "nb_restart": self.flags.nb_restart,
            "losses": dict(Counter(name for name, _ in self.losses)),
            "eps_iter": self.step_size(eps),
            "precision": self.flags.precision,
            "overrides": self.subject.overrides,
        }

    def kind(self, eps: float) -> Kind:
        """What a result like it would have in common with it."""
        return self.subject.kind(self.flags.seed, self.settings(eps))

    def stored(self, rows: Sequence[Row], eps: float) -> Row | None:
        """The row of this very evaluation."""
        kind = self.kind(eps)
        return next((row for row in rows if same_eps(row.get("eps"), eps) and kind.covers(row)), None)

    def fallen(self, rows: Sequence[Row], eps: float) -> Tensor:
        """(N,) bool on the device of the images: what rows of the same protocol say has fallen at a smaller radius."""
        kind = self.kind(eps)
        fallen = torch.zeros(len(self.subject.test), dtype=torch.bool)
        for row in rows:
            flags = row.get("flags", "")
            smaller = "eps" in row and row["eps"] < eps and not same_eps(row["eps"], eps)
            if smaller and len(flags) == len(fallen) and kind.covers(row, apart_from=OF_THE_RADIUS):
                fallen |= torch.tensor([flag == "0" for flag in flags])
        return fallen.to(self.subject.test.labels.device)


def make_plan(flags: EvalConfig, subject: Subject) -> tuple[Plan, list[str]]:
    """What is to be attacked, and what the user should be told.

    :raises UserError: for a radius that no image in [0, 1] can use.
    """
    notes: list[str] = []

    def settle(value: float, flag: str) -> float:
        settled, said = radius(value, subject.dataset, subject.norm, flag)
        notes.extend(said)
        return settled

    if flags.eps_iter is not None:
        flags = replace(flags, eps_iter=settle(flags.eps_iter, "eps_iter"))
    if flags.eps == ("grid",):  # type: ignore[comparison-overlap]  # a word that the flag lets through
        radii = eval_grid(subject.dataset, subject.norm, subject.training.check_maxeps)
        return Plan(subject, flags, tuple(radii)), notes
    if flags.eps is not None:
        return Plan(subject, flags, tuple(sorted({settle(eps, "eps") for eps in flags.eps}))), notes
    eps = subject.training.test_eps
    return Plan(subject, flags, (eps,)), [*notes, f"--eps not given: {eps:.5g}, the test radius of its training"]

"""What repeated PGD has done so far, kept beside the model until it is finished. N test images."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import torch

from errors import UserError
from evaluations.repeated_pgd import Attacked, Course
from evaluations.white_box_plan import Plan
from records import checkpoint

# What may change between a stop and a start: where files are, and what is done with the result. Not `save_adv`: without it
# images that fell at a smaller radius are not attacked again.
FREE = ("model", "data_root", "eps", "resume", "overwrite", "max_minutes", "quiet")
STARTS = "seed, restart, radius"  # what random starts depend on


class Partial:
    """The file that keeps whole batches at each radius."""

    EVERY = 30.0  # seconds

    def __init__(self, plan: Plan, radii: Sequence[float]) -> None:
        subject, test = plan.subject, plan.subject.test
        self.identity = checkpoint.digest(
            [
                {name: value for name, value in asdict(plan.flags).items() if name not in FREE},
                list(radii),
                [plan.step_size(eps) for eps in radii],
                subject.sha256,
                subject.dataset,
                subject.norm,
                test.images,
                test.labels,
                str(test.labels.device),
                str(torch.__version__),
                STARTS,
            ]
        )
        self.path = subject.path.parent / f"partial_pgd_{subject.norm}_{self.identity[:12]}.pt"
        self.saved_at = time.monotonic()

    def load(self) -> dict[float, Course]:
        """How far each radius has come, on the CPU; nothing if there is no such file, or it is damaged or of another
        evaluation."""
        try:
            content = checkpoint.load(self.path, needed={"identity": str, "courses": dict})
        except UserError:
            return {}
        if content["identity"] != self.identity:
            return {}
        return {
            eps: Course(Attacked(x_adv, margin), restart, attacked, seconds)
            for eps, (x_adv, margin, restart, attacked, seconds) in content["courses"].items()
        }

    @property
    def is_due(self) -> bool:
        """Whether it was saved long enough ago."""
        return time.monotonic() - self.saved_at >= self.EVERY

    def save(self, courses: Mapping[float, Course]) -> None:
        """:raises UserError: if the folder cannot be written."""
        kept = {
            eps: [*(part.cpu() for part in course.found), course.restart, course.attacked.cpu(), course.seconds]
            for eps, course in courses.items()
        }
        try:
            checkpoint.save(self.path, {"identity": self.identity, "courses": kept})
            self.saved_at = time.monotonic()
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}): copy the model into a folder of yours, "
                "or make room"
            ) from None

"""A sign that training deceives itself: its radii grow while the check's robust accuracy falls.

Attacks of few steps overestimate eps; a network that learns to hide from them looks safer from within and is weaker.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

FALL = 0.02  # of robust accuracy on a thousand validation images: more than such a check wavers; by 1/sqrt for others


class Alarm:
    """Looks at the rows of metrics as they come, and at those of the run so far if it is resumed.

    images: validation images of a check.
    """

    def __init__(self, images: int) -> None:
        self.fall = FALL * (1000 / max(images, 1)) ** 0.5
        self.mean_eps: float | None = None
        self.best: tuple[float, float] | None = None  # mean eps and robust accuracy at the check of the largest

    def look(self, rows: Iterable[dict[str, Any]]) -> str | None:
        """A warning, if since the best check mean eps rose and robust accuracy fell."""
        warning = None
        for row in rows:
            if row["kind"] == "train":
                self.mean_eps = row["mean_eps"]
            elif row["split"] == "val" and self.mean_eps is not None:
                eps, robust = self.mean_eps, row["robust_acc"]
                if self.best and eps > self.best[0] and robust < self.best[1] - self.fall:
                    warning = (
                        f"step {row['step']}: training's mean eps rose from {self.best[0]:.4f} to {eps:.4f} while robust "
                        f"accuracy on validation images fell from {self.best[1]:.1%} to {robust:.1%}: its attacks no "
                        "longer find what the check finds; raise --nb_iter, or lower --lr or --refresh_interval"
                    )
                if not self.best or robust > self.best[1]:
                    self.best = eps, robust
        return warning

"""A sign that training deceives itself: its radii grow while the check's robust accuracy falls.

Attacks of few steps overestimate eps; a network that learns to hide from them looks safer from within and is weaker.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

FALL = 0.02  # of robust accuracy on validation images: more than a check of a thousand images wavers


class Alarm:
    """Looks at the rows of metrics as they come."""

    def __init__(self) -> None:
        self.mean_eps: float | None = None
        self.checked: tuple[float, float] | None = None  # mean eps and robust accuracy at the check before

    def look(self, rows: Iterable[dict[str, Any]]) -> str | None:
        """A warning, if these rows end a stretch in which mean eps rose and robust accuracy fell."""
        warning = None
        for row in rows:
            if row["kind"] == "train":
                self.mean_eps = row["mean_eps"]
            elif row["split"] == "val" and self.mean_eps is not None:
                eps, robust = self.mean_eps, row["robust_acc"]
                if self.checked and eps > self.checked[0] and robust < self.checked[1] - FALL:
                    warning = (
                        f"step {row['step']}: training's mean eps rose from {self.checked[0]:.4f} to {eps:.4f} while robust "
                        f"accuracy on validation images fell from {self.checked[1]:.1%} to {robust:.1%}: its attacks no "
                        "longer find what the check finds; raise --nb_iter, or lower --lr or --refresh_interval"
                    )
                self.checked = eps, robust
        return warning

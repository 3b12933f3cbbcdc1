"""Running sums of what the steps saw, and the train rows made from them."""

from __future__ import annotations

import torch
from torch import Tensor

from config import Config
from objectives import StepResult


class Sums:
    """Sums over examples since the last train row, on the device in float64, so that nothing waits for them."""

    NAMES = ("examples", "clean_loss", "correct", "adv_loss", "eps")

    def __init__(self, device: torch.device) -> None:
        self.values = torch.zeros(len(self.NAMES), dtype=torch.float64, device=device)

    def add(self, result: StepResult, counts: Tensor) -> None:
        """counts: () bool; a step that was taken back adds nothing."""
        count = len(result.eps)
        step = torch.stack(
            [
                torch.full_like(result.clean_loss, count),
                result.clean_loss * count,
                result.correct.to(result.clean_loss),
                result.adv_loss * count,
                result.eps.sum(),
            ]
        ).double()
        self.values += torch.where(counts, step, 0)

    def means(self) -> dict[str, float | None]:
        """By name, over the examples; None where there were none."""
        examples, *rest = self.values.tolist()
        return dict(zip(self.NAMES[1:], [value / examples if examples else None for value in rest], strict=True))


def train_columns(config: Config, means: dict[str, float | None]) -> dict[str, float | None]:
    """What a train row says of losses and accuracies; None for what the method does not see."""
    seen = dict.fromkeys(("clean_loss", "clean_acc", "mma_loss"))
    if config.method in ("pgd", "pgdls"):
        seen |= {"adv_loss": means["adv_loss"], "adv_acc": means["correct"]}
    else:
        seen |= {"clean_loss": means["clean_loss"], "clean_acc": means["correct"]}
        if config.attacks:
            seen["mma_loss" if config.enlarges_margins else "adv_loss"] = means["adv_loss"]
    return seen | {"mean_eps": means["eps"] if config.attacks else None}

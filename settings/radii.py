"""What numbers can be a radius of an image in [0, 1], and in which unit they were meant."""

from __future__ import annotations

from config import LARGEST_L2, SMALLEST_RADIUS
from errors import UserError


def radius(value: float, dataset: str, norm: str, flag: str) -> tuple[float, list[str]]:
    """`value` as a radius in input units, and a note if it was read as 255ths (CIFAR-10 under Linf only).

    :raises UserError: for a radius that no image in [0, 1] can use.
    """
    if value <= 0:
        raise UserError(f"--{flag} {value:g}: a radius must be above 0")
    refuse_extreme_radius(value, norm, flag)
    if norm != "Linf" or value <= 1:
        return value, []
    if dataset == "cifar10" and value <= 255:
        return value / 255, [f"--{flag} {value:g} is read as {value:g}/255 = {value / 255:.6f}"]
    raise UserError(
        f"--{flag} {value:g}: images lie in [0, 1], so an Linf radius above 1 means nothing; "
        f"write {value:g}/255 if 255ths are meant"
    )


def refuse_extreme_radius(value: float, norm: str, flag: str) -> None:
    """:raises UserError: for a radius that float32 cannot use, or that no two images are apart."""
    if value < SMALLEST_RADIUS and not flag.endswith("_iter"):
        raise UserError(
            f"--{flag} {value:g}: below {SMALLEST_RADIUS:g} a radius is lost in rounding: choose a larger one"
        )
    if norm == "L2" and value > LARGEST_L2:
        raise UserError(f"--{flag} {value:g}: no two images in [0, 1] are so far apart: choose a smaller one")

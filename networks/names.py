"""The names of the built-in networks. No torch: flags are checked before anything heavy is loaded."""

from __future__ import annotations

import difflib
import re

from errors import UserError

BUILT_IN_NETWORKS = ("lenet5", "wrn28_4", "preact_resnet18", "small_resnet")
FORMS = (
    ", ".join(BUILT_IN_NETWORKS) + ", wrn_D_W (depth, width), or your own as package.module:callable or "
    "path/to/file.py:callable"
)
DEEPEST, WIDEST = 1000, 100  # of wrn_D_W


def is_own(network: str) -> bool:
    """Whether the name stands for somebody's own code."""
    return ":" in network


def wide_resnet_sizes(network: str) -> tuple[int, int] | None:
    """`wrn_D_W` -> depth and width, also those that no network has; None for other names."""
    found = re.fullmatch(r"wrn_(\d{1,4})_(\d{1,4})", network, re.ASCII)
    return (int(found[1]), int(found[2])) if found else None


def refuse_unknown(network: str) -> None:
    """:raises UserError: for a name that is neither built in nor of the form of one's own."""
    if is_own(network) or network in BUILT_IN_NETWORKS:
        return
    if sizes := wide_resnet_sizes(network):
        depth, width = sizes
        if depth % 6 != 4 or not 10 <= depth <= DEEPEST:
            near = min(range(10, DEEPEST + 1, 6), key=lambda d: abs(d - depth))
            raise UserError(
                f"--network {network}: no such depth, a wide residual network has 6 n + 4 layers, as 10, 16, 22, 28, "
                f"34, 40: did you mean wrn_{near}_{width}?"
            )
        if not 1 <= width <= WIDEST:
            raise UserError(f"--network {network}: no such width: choose one from 1 to {WIDEST}")
        return
    near_name = _nearest(network)
    raise UserError(f"--network {network}: " + (f"did you mean {near_name}? " if near_name else "") + f"choose {FORMS}")


def _nearest(network: str) -> str | None:
    plain = re.sub(r"[\W_]+", "_", network.lower())
    if found := re.fullmatch(r"w(?:ide)?_?r(?:es)?_?n(?:et)?_?(\d{1,3})_(\d{1,2})", plain, re.ASCII):
        return f"wrn_{found[1]}_{found[2]}"
    inside = [name for name in BUILT_IN_NETWORKS if len(plain) > 4 and plain in name]
    return (inside or difflib.get_close_matches(plain, BUILT_IN_NETWORKS, n=1) or [None])[0]

"""The names of the built-in networks. No torch: flags are checked before it is loaded."""

from __future__ import annotations

import difflib
import re

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


def is_built_in(network: str) -> bool:
    """Whether there is a network of ours of this name."""
    return not is_own(network) and why_unknown(network) is None


def why_unknown(network: str) -> str | None:
    """What is wrong with a name that is neither built in nor of the form of one's own, and what to choose."""
    if is_own(network) or network in BUILT_IN_NETWORKS:
        return None
    if sizes := wide_resnet_sizes(network):
        depth, width = sizes
        if depth % 6 != 4 or not 10 <= depth <= DEEPEST:
            near = min(range(10, DEEPEST + 1, 6), key=lambda d: abs(d - depth))
            return (
                "no such depth, a wide residual network has 6 n + 4 layers, as 10, 16, 22, 28, 34, 40: "
                f"did you mean wrn_{near}_{width}?"
            )
        return None if 1 <= width <= WIDEST else f"no such width: choose one from 1 to {WIDEST}"
    near_name = _nearest(network)
    if near_name and (wrong := why_unknown(near_name)):  # WRN-27-4
        return wrong
    return (f"did you mean {near_name}? " if near_name else "") + f"choose {FORMS}"


def _nearest(network: str) -> str | None:
    plain = re.sub(r"[\W_]+", "_", network.lower())
    if found := re.fullmatch(r"w(?:ide)?_?r(?:es)?_?n(?:et)?_?(\d{1,3})_(\d{1,2})", plain, re.ASCII):
        return f"wrn_{found[1]}_{found[2]}"
    near = [name for name in BUILT_IN_NETWORKS if len(plain) > 4 and plain in name]
    near += difflib.get_close_matches(plain, BUILT_IN_NETWORKS, n=1)
    near += [name for name in BUILT_IN_NETWORKS if sorted(name.split("_")) == sorted(plain.split("_"))]
    return near[0] if near else None

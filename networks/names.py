"""The names of the built-in networks. No torch: flags are checked before it is loaded."""

from __future__ import annotations

import difflib
import re

BUILT_IN_NETWORKS = ("lenet5", "wrn28_4", "preact_resnet18", "preact_resnet18_v2", "small_resnet")
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
    if is_own(network):
        return (
            None
            if network.rpartition(":")[0].strip("./")
            else f"names no file or module before the colon: choose {FORMS}"
        )
    if network in BUILT_IN_NETWORKS:
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
    plain = re.sub(r"[\W_]+", "_", network.lower())
    if found := re.fullmatch(r"w(?:ide)?_?r(?:es)?_?n(?:et)?_?(\d{1,3})_(\d{1,2})", plain, re.ASCII):  # WRN-28-10
        meant = f"wrn_{found[1]}_{found[2]}"
        return why_unknown(meant) or f"did you mean {meant}? choose {FORMS}"
    close = difflib.get_close_matches(plain, BUILT_IN_NETWORKS, n=1, cutoff=0.5)
    return (f"did you mean {close[0]}? " if close else "") + f"choose {FORMS}"

"""Trained networks, AN-PGD and MMA for code of your own: `torch.hub.load(FOLDER, "mma", name=NAME, source="local")`.

FOLDER is a clone of this repository. Nothing of it stays on `sys.path`, and of its modules only the networks stay loaded,
under the private name `_mma_networks`, by which they are pickled: a `utils` or `config` of your own is left alone, whichever
was imported first.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from anpgd import AnPgd
    from training.own_loop import MmaObjective

dependencies = ["torch", "numpy"]  # torch.hub looks for them

ROOT = Path(__file__).resolve().parent
PRIVATE = "_mma_networks"


def mma(name: str, network: nn.Module | None = None) -> nn.Module:
    """A trained network in eval mode, images (B, C, H, W) in [0, 1] -> logits (B, classes).

    name: a committed run, such as digits-Linf-MMA-0.3-sd0, or the path of a run folder or of its checkpoint. network: for a
    run with a network of your own, an instance of it, which gets the weights. The run's settings are a dict, the
    network's attribute `config`.

    :raises ValueError: if there is no such run, or its file is damaged or not the one that was committed.
    """
    with _ours.in_place():
        from errors import UserError
        from records import checkpoint, pretrained

        try:
            found = pretrained.load_pretrained(name)
            if network is None:
                kind = found.config.network
                if not _networks("names").is_built_in(kind):
                    raise UserError(f"network {kind}: is code of yours: give an instance of it as network=")
                network = _networks("build").built_in(kind, *_networks("foreign").shape_of(found.weights))
            weights, _ = _networks("foreign").our_keys(found.weights, network.state_dict())
            checkpoint.load_weights(network, weights, found.path)
        except UserError as error:
            raise ValueError(str(error)) from None
    network.config = found.config.to_dict()
    return network.eval()


load_pretrained = mma  # the name for those who import this file instead of calling torch.hub


def mma_objective(
    count: int, norm: str, d_max: float, eps_min: float, steps: int = 10, alpha: float = 1 / 3, seed: int = 0
) -> MmaObjective:
    """MMA for a training loop of your own; see `training.own_loop.MmaObjective`.

    count: training examples. norm: Linf or L2. d_max: hinge threshold on margins. eps_min: radius PGD starts from at least.
    steps: of PGD. alpha: weight of the clean loss. seed: of PGD's random starts.

    :raises ValueError: for a setting that means nothing.
    """
    with _ours.in_place():
        from training.own_loop import MmaObjective

        return MmaObjective(count, norm, d_max, eps_min, steps, alpha, seed)


def anpgd(norm: str, max_eps: float, steps: int = 40, search_steps: int = 10) -> AnPgd:
    """AN-PGD as an attack: `found = anpgd(model, x, y, eps)` gives `found.eps` (B,), each image's margin, and `found.x_adv`.

    x (B, ...) in [0, 1] and classified right, y (B,), eps (B,) or one number: the radius that PGD starts from. norm: Linf
    or L2. max_eps: the end of the search. steps: of PGD. search_steps: halvings of [0, max_eps].

    :raises ValueError: for a setting that means nothing.
    """
    with _ours.in_place():
        from anpgd import AnPgd, Search
        from losses import logit_margin, soft_logit_margin
        from pgd import GEOMETRY, InnerPgd

        if norm not in GEOMETRY:
            raise ValueError(f"norm {norm!r}: choose one of {', '.join(GEOMETRY)}")
        if not 0 < max_eps < math.inf or steps < 1 or search_steps < 1:
            raise ValueError(
                f"max_eps {max_eps:g}: must be above 0 and finite; steps {steps}, search_steps {search_steps}: at least 1"
            )
        return AnPgd(InnerPgd(norm, steps, soft_logit_margin), Search(logit_margin, max_eps, search_steps))


def _networks(name: str) -> ModuleType:
    """networks/<name>.py under its private name, which stays loaded."""
    if PRIVATE not in sys.modules:
        folder = ROOT / "networks"
        spec = importlib.util.spec_from_file_location(
            PRIVATE, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None and spec.loader is not None  # a file that is there
        sys.modules[PRIVATE] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[PRIVATE])
    return importlib.import_module(f"{PRIVATE}.{name}")


_ours = _networks("modules").Modules(ROOT)  # `errors` and the like mean this clone's where they are in place

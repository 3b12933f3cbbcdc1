"""Trained networks, margins, robust accuracy and MMA for code of your own: `torch.hub.load(FOLDER, "mma", name=NAME, source="local")`.

FOLDER is a clone of this repository. Nothing of it stays on `sys.path`, and of its modules only the networks stay loaded,
under the private name `_mma_networks`, by which they are pickled: a `utils` or `config` of your own is left alone, whichever
was imported first.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from evaluations.in_memory import Margins, RobustAccuracy
    from training.own_loop import MmaObjective

dependencies = ["torch", "numpy"]  # torch.hub looks for them

ROOT = Path(__file__).resolve().parent
PRIVATE = "_mma_networks"


def mma(name: str, network: nn.Module | None = None) -> nn.Module:
    """A trained network in eval mode, images (B, C, H, W) in [0, 1] -> logits (B, classes).

    name: a committed run, such as digits-Linf-MMA-0.3-sd0, or the path of a run folder or of its checkpoint. network: for a
    run with a network of your own, an instance of it, which gets the weights. The run's settings are a dict, the
    network's attribute `config`; the names of its classes, in the order of the logits, are `classes`, None if unknown.

    :raises ValueError: if there is no such run, or its file is damaged or not the one that was committed.
    """
    with _ours.in_place():
        from errors import UserError
        from records import checkpoint, pretrained

        try:
            if not isinstance(name, str | Path) or not isinstance(network, nn.Module | None):
                raise UserError(
                    f"name={name!r}, network={network!r}: a name or path, and an instance of a module or None"
                )
            found = pretrained.load_pretrained(str(name).rstrip("/"))
            if network is None:
                kind = found.config.network
                if not _networks("names").is_built_in(kind):
                    raise UserError(f"network {kind}: is code of yours: give an instance of it as network=")
                network = _networks("build").built_in(kind, *_networks("foreign").shape_of(found.weights))
            weights = _networks("foreign").our_keys(found.weights, network.state_dict()).weights
            checkpoint.load_weights(network, weights, found.path)
        except UserError as error:
            raise ValueError(str(error)) from None
    network.config, network.classes = found.config.to_dict(), found.config.class_names
    for ours in {type(module) for module in network.modules() if type(module).__module__.startswith(PRIVATE)}:
        ForkingPickler.register(ours, _for_a_process)
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


def margins(
    norm: str,
    max_eps: float,
    steps: int = 40,
    projections: int = 1,
    targets: int | Literal["all"] = 9,
    batch_size: int = 200,
) -> Callable[[nn.Module, Tensor, Tensor], Margins]:
    """How far each image is from the nearest that is misclassified: `found = margins(model, x, y)`.

    model: any module from images (N, ...) in [0, 1] to logits; y (N,) labels. `found.eps` (N,): the distance; infinite where
    no such image was found up to max_eps, 0 where the image is misclassified itself. `found.x_adv`: the images, in [0, 1];
    `found.found` (N,) bool: whether there is one. The attack is AN-PGD: it finds an upper bound of the true margin.

    norm: Linf or L2. max_eps: the end of the search. steps: of PGD. projections: onto the linearised boundary. targets: how
    many other classes it is also linearised for at the image, or "all".

    :raises ValueError: for a setting that means nothing, images outside [0, 1], labels of no class.
    """
    with _ours.in_place():
        from evaluations import in_memory

        return in_memory.margins(
            norm, max_eps, steps=steps, projections=projections, targets=targets, batch_size=batch_size
        )


def robust_accuracy(
    norm: str,
    eps: float,
    protocol: Literal["paper", "strong"] = "paper",
    attack: Literal["pgd", "autoattack"] = "pgd",
    steps: int = 100,
    restarts: int | None = None,
    step_size: float | None = None,
    seed: int = 0,
    batch_size: int = 200,
) -> Callable[[nn.Module, Tensor, Tensor], RobustAccuracy]:
    """Which images no attack within eps breaks: `found = robust_accuracy(model, x, y)`.

    model: any module from images (N, ...) in [0, 1] to logits; y (N,) labels. `found.accuracy`: a share; `found.flags` (N,)
    bool: right and not broken; `found.interval`: the 95 % Wilson interval; `found.attack`: what attacked.

    norm: Linf or L2. protocol, steps, restarts, step_size: of PGD; the paper's steps are eps / 4 (of MNIST under Linf it takes
    eps / 40), those of strong fall from eps / 3; 10 and 20 restarts. attack: autoattack for the standard ensemble instead.

    :raises ValueError: for a setting that means nothing, images outside [0, 1], labels of no class.
    """
    with _ours.in_place():
        from evaluations import in_memory

        return in_memory.robust_accuracy(
            norm,
            eps,
            protocol=protocol,
            attack=attack,
            steps=steps,
            restarts=restarts,
            step_size=step_size,
            seed=seed,
            batch_size=batch_size,
        )


def _blank(module: str, name: str) -> nn.Module:
    """A module of ours without its state, which follows: how a spawned process, where no network is loaded, reads one."""
    kind: type[nn.Module] = getattr(_networks(module), name)
    return kind.__new__(kind)


def _for_a_process(module: nn.Module) -> tuple[Callable[..., nn.Module], tuple[str, str], dict[str, object]]:
    load = partial(torch.hub.load, str(ROOT), "_blank", source="local")
    return load, (type(module).__module__.partition(".")[2], type(module).__qualname__), module.__dict__


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

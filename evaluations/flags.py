"""The settings of an evaluation by repeated white-box PGD, and the paper's radii and steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from config import DATASETS, NORMS, PRECISIONS, QUIET, SPLITS, opt
from errors import UserError
from flags import build_parser
from presets import GRIDS
from validation import require_positive


@dataclass(frozen=True)
class EvalConfig:
    """One evaluation by repeated white-box PGD."""

    model: str = opt("", "checkpoint file or run folder")
    device: str = opt("auto", "cpu, cuda, cuda:1, …; auto takes cuda where there is one")
    deterministic: bool = opt(False, "deterministic kernels only (slower on GPUs)")
    precision: str = opt("fp32", "of the passes that give gradients; success is always judged in fp32", PRECISIONS[:3])
    cuda_graphs: bool = opt(True, "record a step of the attack on a GPU and replay it (docs/speed.md)")
    dataset: str | None = opt(None, "data set (default: the checkpoint's)", DATASETS)
    norm: str | None = opt(None, "norm of the attack (default: the checkpoint's)", NORMS)
    network: str | None = opt(None, "network (default: the checkpoint's); your own must be named here to be run")
    eps: tuple[float, ...] | None = opt(
        None, "one or more radii, or grid for the paper's (default: the training's test radius)"
    )
    eps_iter: float | None = opt(None, "step size (default: eps/4; MNIST Linf: eps/40)")
    nb_iter: int = opt(100, "PGD steps a restart")
    nb_restart: int = opt(10, "restarts: the first half on cross-entropy, the rest on the CW loss")
    split: str = opt("test", "test images, or the validation or training images of its training", tuple(SPLITS))
    test_size: int | None = opt(
        None, "so many images of the split: the first; by class from a folder of pictures (default: all)"
    )
    batch_size: int = opt(200, "images a batch")
    seed: int = opt(0, "seed of the random starts")
    data_root: str | None = opt(None, "folder of the data set (default: the checkpoint's, else data)")
    resume: bool = opt(False, "has no effect: what was stopped goes on anyway, and what is done is not done again")
    overwrite: bool = opt(False, "compute it anew where the JSON beside the model holds this very evaluation")
    max_minutes: float | None = opt(None, "stop before so many minutes are over, exit status 75; start again to go on")
    quiet: bool = opt(False, QUIET)
    save_adv: bool = opt(False, "also save the adversarial images beside the model")


def eval_grid(dataset: str, norm: str, max_eps: float) -> tuple[float, ...]:
    """The paper's radii; for digits and image folders six up to `max_eps`, the training's d_max."""
    return GRIDS.get((dataset, norm)) or tuple(round(max_eps * k / 6, 12) for k in range(1, 7))


def eval_step_size(dataset: str, norm: str, eps: float) -> float:
    """Step of the reference's evaluation: eps/4, on MNIST under Linf eps/40."""
    return eps / 40 if (dataset, norm) == ("mnist", "Linf") else eps / 4


def parse_eval(argv: Sequence[str] | None = None) -> EvalConfig:
    """Evaluation flags. What depends on the checkpoint stays None until it is read.

    :raises UserError: for a wrong flag or value.
    """
    parser = build_parser(EvalConfig, "Attack a network with repeated white-box PGD.", "default: ")
    given = parser.parse_with_file(argv)
    if "eps" in given:
        given["eps"] = tuple(given["eps"])
        if "grid" in given["eps"] and len(given["eps"]) > 1:
            raise UserError("--eps: grid stands alone: leave the numbers out, or grid")
    config = EvalConfig(**given)
    if not config.model:
        raise UserError("--model is missing: name a checkpoint file or a run folder")
    require_positive(config, ("nb_iter", "nb_restart", "batch_size", "test_size", "eps_iter", "max_minutes"))
    return config

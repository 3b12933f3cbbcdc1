"""The flags of the evaluations, and the paper's radii and steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from config import DATASETS, NORMS, PRECISIONS, QUIET, SPLITS, opt
from errors import UserError
from flags import Radii, build_parser
from validation import require_positive

PROTOCOLS = {"paper": 10, "strong": 20}  # restarts
SO_MANY = "so many images of the split: the first; by class from a folder of pictures"
SEARCHES = ("cw", "ddn", "fmn", "apgd", "apgdt", "anpgd", "anpgd_projected")  # for the nearest adversarial image


@dataclass(frozen=True)
class SharedFlags:
    """Of every evaluation: on which images, and how to run."""

    device: str = opt("auto", "cpu, cuda, cuda:1, …; auto takes cuda where there is one")
    deterministic: bool = opt(False, "deterministic kernels only (slower on GPUs)")
    dataset: str | None = opt(None, "data set (default: the checkpoint's)", DATASETS)
    norm: str | None = opt(None, "norm of the attack (default: the checkpoint's)", NORMS)
    network: str | None = opt(None, "network (default: the checkpoint's); your own must be named here to be run")
    standardise: str | None = opt(
        None,
        "what becomes of images before the network: image (each by its own mean and deviation), none, or M1,M2,M3,S1,S2,S3 "
        "(default: the network's own, or what the file says)",
    )
    split: str = opt("test", "test images, or the validation or training images of its training", tuple(SPLITS))
    test_size: int | None = opt(
        None, f"{SO_MANY} (default: all; of the validation images those of the training's check)"
    )
    image_size: int | None = opt(
        None, "images of a folder: the shorter side is resized to so many pixels (default: as in its training)"
    )
    batch_size: int | None = opt(200, "images attacked together")
    data_root: str | None = opt(None, "folder of the data set (default: the checkpoint's, else data)")
    overwrite: bool = opt(
        False, "compute it anew where the JSON beside the model holds this very evaluation; of both the stronger stays"
    )
    quiet: bool = opt(False, QUIET)


@dataclass(frozen=True)
class EvaluationFlags(SharedFlags):
    """Of an evaluation of one network."""

    model: str = opt("", "checkpoint file or run folder")
    seed: int = opt(0, "seed of the attack's random draws")


@dataclass(frozen=True)
class PgdFlags(EvaluationFlags):
    """Attack a network with repeated white-box PGD."""

    precision: str = opt("fp32", "of the passes that give gradients; success is always judged in fp32", PRECISIONS[:3])
    cuda_graphs: bool = opt(True, "record a step of the attack on a GPU and replay it (docs/speed.md)")
    eps: Radii | None = opt(None, "one or more radii, or grid for the paper's (default: the training's test radius)")
    protocol: str = opt(
        "paper",
        "paper: steps of one size, half of the restarts on cross-entropy, half on the CW loss; strong: steps that fall to "
        "0, every second start by ODI, others at corners of the ball; in a file of its own",
        tuple(PROTOCOLS),
    )
    eps_iter: float | None = opt(
        None, "step size (default: eps/4, MNIST Linf: eps/40, at least 2.5 eps/nb_iter; strong: eps/3, falling)"
    )
    nb_iter: int = opt(100, "PGD steps a restart; of strong those of ODI are a part")
    nb_restart: int | None = opt(
        None, "restarts (default: 10; strong: 20, from the fourth on where the logit margin has shrunk by half)"
    )
    save_adv: bool = opt(False, "also save the adversarial images beside the model")

    @property
    def restarts(self) -> int:
        return self.nb_restart or PROTOCOLS[self.protocol]


@dataclass(frozen=True)
class AutoAttackFlags(EvaluationFlags):
    """Attack a network with AutoAttack."""

    eps: float | None = opt(None, "radius (default: the training's test radius)")
    attacks: str | None = opt(
        None,
        "some of apgd-ce,apgd-t,fab-t,square,apgd-dlr,fab, by the package's budgets for a list of one's own; "
        "not standard AutoAttack (default: the standard ensemble)",
    )


@dataclass(frozen=True)
class GradientFreeFlags(EvaluationFlags):
    """Attack a network without its gradients."""

    eps: float | None = opt(None, "radius (default: the training's test radius)")
    attacks: str | None = opt(None, "square, spsa or square,spsa (default: both; under L2 square)")
    test_size: int | None = opt(None, "test images (default: the first 1000, on a CPU the first 100)")
    batch_size: int | None = opt(None, "images a shard: attacked together, then kept (default: square 50, spsa 10)")
    square_queries: int = opt(5000, "queries of Square an image")
    spsa_iter: int = opt(100, "steps of SPSA")
    spsa_samples: int = opt(128, "pairs of queries for one step of SPSA")


@dataclass(frozen=True)
class MinimumNormFlags(EvaluationFlags):
    """Look for the nearest adversarial images."""

    attacks: str | None = opt(None, f"some of {','.join(SEARCHES)} (default: all that there are for the norm)")
    test_size: int | None = opt(None, f"{SO_MANY} (default: 1000, the paper's; 100 for cw on a CPU)")
    steps: int | None = opt(
        None,
        "forward/backward passes an image of every attack; of cw its steps in each of 9 searches (default: 1000; cw 10000, on a "
        "CPU 1000)",
    )
    batch_size: int | None = opt(None, "images attacked together, and kept when stopped later (default: 200; CPU: 25)")
    curve: bool = opt(False, "also write robust accuracy at every eps beside the model, curve_<norm>.csv")


Shared = TypeVar("Shared", bound=SharedFlags)
Flags = TypeVar("Flags", bound=EvaluationFlags)


def parse_flags(cls: type[Flags], argv: Sequence[str] | None = None) -> Flags:
    """Command line -> flags of one network; `--help` begins with the docstring of `cls`. What depends on the checkpoint
    stays None until it is read.

    :raises UserError: for a wrong flag or value.
    """
    needed = "--model PATH", "--model runs/first"
    flags = checked_flags(cls, build_parser(cls, str(cls.__doc__), "default: ", needed).parse_with_file(argv))
    if not flags.model:
        raise UserError("--model is missing: name a checkpoint file or a run folder")
    return flags


def checked_flags(cls: type[Shared], given: dict[str, Any]) -> Shared:
    """What a parser gives -> flags.

    :raises UserError: for a number that is not above 0, or `grid` beside other radii.
    """
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    flags = cls(**given)
    radii = given.get("eps")
    if isinstance(radii, tuple) and len(radii) > 1 and "grid" in radii:
        raise UserError("--eps: grid stands alone: leave the numbers out, or grid")
    numbers = [name for name, value in vars(flags).items() if type(value) in (int, float) and name != "seed"]
    require_positive(flags, numbers)
    return flags


def choose(text: str, known: Sequence[str]) -> list[str]:
    """`--attacks a,b` -> ["a", "b"], each once.

    :raises UserError: for a name that is not among `known`.
    """
    names = [part.strip() for part in text.split(",")]
    if wrong := [name for name in names if name not in known]:
        raise UserError(f"--attacks {text or 'is empty'}: no attack {wrong[0]!r}: name some of {','.join(known)}")
    return list(dict.fromkeys(names))

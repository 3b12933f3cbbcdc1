"""Which settings are refused: values that contradict each other or mean nothing, radii that no image in [0, 1] can use,
and stored settings that are none.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple
from unicodedata import normalize

from config import ALPHA, GONE, LARGEST, MOST_DIGITS, PRESETS, Config, method_of
from errors import UserError, some
from networks.names import why_unknown
from presets import PUBLISHED_MAXEPS

MOST_SEARCH_STEPS = 100  # float32 has no smaller bracket
SMALLEST_RADIUS = 1e-7  # float32 around 1 has no finer steps
LARGEST_L2 = 1e4  # images of 10^8 pixels lie that far apart
MAY_BE_ZERO = (
    *("seed", "clean_loss_coeff", "refresh_interval", "momentum", "weight_decay", "trades_beta"),
    *("test_size", "num_workers", "odi_steps"),
)
ITEMS = {"classes": str, "image_shape": int, "by_images": str}  # fields that hold several
MEND = "mend it, or use another file"
RADII = ("hinge_maxeps", "attack_mineps", "train_eps", "test_eps", "test_eps_iter")


def validate(config: Config) -> None:
    """:raises UserError: for values that contradict each other or mean nothing."""
    numbers = {name: value for name, value in config.to_dict().items() if type(value) in (int, float)}
    require_positive(config, [name for name in numbers if name not in MAY_BE_ZERO])
    for name in MAY_BE_ZERO:
        if numbers.get(name, 0) < 0:
            raise UserError(f"--{name} {numbers[name]:g}: must not be negative")
    for name in RADII:
        if (value := numbers.get(name)) is not None:
            refuse_radius(value, config.norm, name)
    for line in _contradictions(config):
        raise UserError(line)


def _contradictions(config: Config) -> Iterator[str]:
    """A line for each setting that has no meaning beside the others."""
    method, alpha = config.method, config.clean_loss_coeff
    if wrong := why_unknown(config.network):
        yield f"--network {config.network}: {wrong}"
    if config.streaming and config.dataset != "imagefolder":
        yield f"--streaming: {config.dataset} lives in memory, only image folders stay on disk: leave it out"
    if not 0 <= alpha <= 1:
        yield f"--clean_loss_coeff {alpha:g}: a weight between 0 and 1 is needed"
    if method in ALPHA and method_of(alpha) != method:
        wanted = "above 0 and below 1" if method == "mma" else f"{ALPHA[method]:g}"
        yield f"--clean_loss_coeff {alpha:g}: contradicts --method {method}, for which it is {wanted}: leave one out"
    if config.enlarges_margins and config.hinge_maxeps is None:
        usual = ", ".join(f"{d:.4g}" for d in PUBLISHED_MAXEPS[config.dataset, config.norm])
        what = f"the usual ones for {config.dataset} {config.norm} are {usual}"
        yield f"--hinge_maxeps is missing: MMA needs a threshold d_max; {what}"
    if config.enlarges_margins and config.attack_mineps > config.search_maxeps:
        end = f"the end of the search, 1.05 * hinge_maxeps = {config.search_maxeps:g}"
        yield f"--attack_mineps {config.attack_mineps:g}: above {end}; lower it or raise --hinge_maxeps"
    if method == "ddn" and config.norm != "L2":
        yield "--method ddn: is an attack under L2: give --norm L2, or choose another method"
    if config.num_search_steps > MOST_SEARCH_STEPS:
        most = f"{MOST_SEARCH_STEPS} halvings are the most that float32 can tell apart"
        yield f"--num_search_steps {config.num_search_steps}: {most}: choose fewer"
    steps, rates = [step for step, _ in config.lr], [rate for _, rate in config.lr]
    if not steps or steps[0] != 0:
        yield f"--lr {config.lr}: the first learning rate must be that of step 0"
    if steps != sorted(set(steps)) or not all(0 < rate <= LARGEST for rate in rates):
        yield f"--lr {config.lr}: rates above 0 by ascending steps are needed"
    if config.one_cycle and len(steps) > 1:
        yield "--lr: with --one_cycle it is the highest rate, one number: leave the steps out"
    if config.cycle_steps is not None and not config.one_cycle:
        yield "--cycle_steps: is the length of the one-cycle rate: add --one_cycle, or leave it out"
    if config.refresh_interval and not config.keep_directions:
        yield "--refresh_interval: is about warm starts: add --keep_directions, or leave it out"
    if config.keep_directions and not config.enlarges_margins:
        yield f"--keep_directions: has no meaning with --method {method}, only with mma, omma: leave it out"
    if not config.augment and (config.crop_pad != 4 or not config.flip):
        yield "--crop_pad, --flip: are about augmentation: add --augment, or leave them out"


class Kind(NamedTuple):
    """What images are, of training or of a folder; None where nobody knows it."""

    classes: Sequence[str] | None  # names, in the order of the logits
    shape: Sequence[int] | None  # (C, H, W)

    def unlike(self, here: Kind) -> str:
        """How images that are here differ from these, in words that end `was trained on …`; nothing if they do not."""
        there, names = ([normalize("NFC", name) for name in kind.classes or ()] for kind in (self, here))
        if there and names and there != names:
            only = {
                "only there": [name for name in there if name not in names],
                "only here": [name for name in names if name not in there],
            }
            said = [f"{where}: {some(listed)}" for where, listed in only.items() if listed]
            return f"other classes ({'; '.join(said) or 'the same names in another order'})"
        if self.shape and here.shape and tuple(self.shape) != tuple(here.shape):
            sizes = ("x".join(map(str, shape)) for shape in (self.shape, here.shape))
            return "images of {}, here they are {}".format(*sizes)
        return ""


def require_positive(config: object, names: Sequence[str]) -> None:
    """:raises UserError: naming the first of these fields that is given and not above 0."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise UserError(f"--{name} {value:g}: must be above 0")


def stored_config(values: dict[str, Any], where: object = "stored config") -> Config:
    """The config a checkpoint or config.json carries; fields it lacks take the preset's value. where: what file it is.

    :raises UserError: if the values are not those of a config, naming the file.
    """
    names = {f.name for f in dataclasses.fields(Config)}
    try:
        refuse_gone(values)
        known = {name: value for name, value in values.items() if name in names}
        known["lr"] = tuple((int(step), float(rate)) for step, rate in known["lr"])
        known |= {name: tuple(known[name]) for name in ITEMS if known.get(name) is not None}
        known["method"] = known.get("method") or method_of(known["clean_loss_coeff"])
        config = replace(PRESETS[known["dataset"], known["norm"]], **known)
        _check_types(config)
        validate(config)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except KeyError:
        raise UserError(f"{where}: its dataset, norm, lr or clean_loss_coeff is missing or unknown: {MEND}") from None
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{where}: not the settings of a run ({error}): {MEND}") from None
    return config


def refuse_gone(values: dict[str, Any]) -> None:
    """:raises UserError: if a setting that there was once holds anything but its default."""
    for name, left in GONE.items():
        if values.get(name, left) != left:
            raise UserError(f"{name} {values[name]}: there is no such setting any more: use the code of that time")


def _check_types(config: Config) -> None:
    """:raises ValueError: naming a field whose value its flag could not have."""
    hints = typing.get_type_hints(Config)
    for f in dataclasses.fields(Config):
        value, kinds = getattr(config, f.name), typing.get_args(hints[f.name]) or (hints[f.name],)
        choices = f.metadata["choices"]
        if isinstance(value, tuple):
            fits = f.name == "lr" or all(isinstance(item, ITEMS[f.name]) for item in value)
        elif float in kinds and type(value) in (int, float):
            fits = abs(value) <= LARGEST
        else:
            fits = type(value) in kinds and (type(value) is not int or 0 <= value < 10**MOST_DIGITS)
        if not fits or (choices and value is not None and value not in choices):
            raise ValueError(f"{f.name} is {json.dumps(value, default=str)}")


def radius(value: float, dataset: str, norm: str, flag: str) -> tuple[float, list[str]]:
    """`value` as a radius in input units, and a note if it was read as 255ths (CIFAR-10 under Linf only).

    :raises UserError: for a radius that no image in [0, 1] can use.
    """
    if dataset == "cifar10" and norm == "Linf" and 1 < value <= 255:
        return value / 255, [f"--{flag} {value:g} is read as {value:g}/255 = {value / 255:.6f}"]
    refuse_radius(value, norm, flag)
    return value, []


def refuse_radius(value: float, norm: str, flag: str) -> None:
    """:raises UserError: for a radius that float32 cannot use, or that no two images in [0, 1] are apart."""
    if value <= 0:
        raise UserError(f"--{flag} {value:g}: a radius must be above 0")
    if norm == "Linf" and value > 1:
        raise UserError(
            f"--{flag} {value:g}: images lie in [0, 1], so an Linf radius above 1 means nothing; "
            f"write {value:g}/255 if 255ths are meant"
        )
    if value < SMALLEST_RADIUS and not flag.endswith("_iter"):
        raise UserError(
            f"--{flag} {value:g}: below {SMALLEST_RADIUS:g} a radius is lost in rounding: choose a larger one"
        )
    if norm == "L2" and value > LARGEST_L2:
        raise UserError(f"--{flag} {value:g}: no two images in [0, 1] are so far apart: choose a smaller one")

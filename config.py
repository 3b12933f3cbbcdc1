"""Every hyper-parameter, with unit and meaning; the published settings; what values are refused.

Radii (`*eps*`) are in input units: images live in [0, 1], so 8/255 under Linf, 2.0 under L2.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from errors import UserError
from networks.names import FORMS, is_own, why_unknown
from presets import GRIDS, PUBLISHED_MAXEPS, SETTINGS

DATASETS = ("digits", "mnist", "cifar10", "imagefolder")
NORMS = ("Linf", "L2")
SPLITS = ("test", "val")  # that can be attacked
LOSS_NAMES = ("xent", "cw", "lm", "slm")
METHODS = ("mma", "omma", "std", "pgd", "pgdls", "trades")
ALPHA = {"mma": 1 / 3, "omma": 0.0, "std": 1.0}  # weight of the clean loss, by method
SEARCH_LOSS_NAMES = ("slm", "lm")  # the losses whose zero is the decision boundary
PRECISIONS = ("fp32", "tf32", "bf16", "bf16_all")
SEARCHES = ("bisection", "secant")
RECIPES = ("paper", "fast")
ACTIVATIONS = ("relu", "silu")

LARGEST = 1e30  # float32 ends at 3e38, and what is made of a number must fit too
MOST_DIGITS = 15  # of a whole number
MOST_SEARCH_STEPS = 100  # float32 has no smaller bracket
SMALLEST_RADIUS = 1e-7  # float32 around 1 has no finer steps
LARGEST_L2 = 1e4  # images of 10^8 pixels lie that far apart

Schedule = tuple[tuple[int, float], ...]


def opt(default: object, text: str, choices: Sequence[str] | None = None) -> typing.Any:
    """A field with the help text and the choices of its flag."""
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True)
class Config:
    """One training run. The defaults are MNIST's; `PRESETS` holds the published settings by data set and norm."""

    dataset: str = opt("mnist", "data set", DATASETS)
    norm: str = opt("Linf", "norm in which margins are measured", NORMS)
    network: str = opt("lenet5", FORMS)
    activation: str = opt("relu", "between the layers of a built-in network", ACTIVATIONS)
    seed: int = opt(0, "seed of every random draw")
    device: str = opt("auto", "cpu, cuda, cuda:1, …; auto takes cuda where there is one")
    deterministic: bool = opt(False, "deterministic kernels only (slower on GPUs)")
    precision: str = opt(
        "fp32",
        "fp32; tf32: CUDA's, everywhere; bf16: in PGD's passes, tf32 elsewhere; bf16_all: everywhere",
        PRECISIONS,
    )
    cuda_graphs: bool = opt(True, "record what has fixed shapes on a GPU and replay it (docs/speed.md)")
    data_root: str = opt("data", "folder of the data set; MNIST and CIFAR-10 are downloaded into it")
    streaming: bool | None = opt(
        None, "leave an image folder on disk (default: if it would take more than half of the device's free memory)"
    )
    num_workers: int = opt(2, "processes that read ahead what is on disk; 0: read in the main process")

    recipe: str = opt("paper", "paper: the published settings; fast: far fewer passes (docs/recipes.md)", RECIPES)
    method: str | None = opt(None, "training method (default: mma, or what --clean_loss_coeff says)", METHODS)
    hinge_maxeps: float | None = opt(None, "hinge threshold d_max: margins above it are not pushed further")
    clean_loss_coeff: float = opt(1 / 3, "weight alpha of the clean loss: 1/3 is MMA, 0 OMMA, 1 ordinary training")
    train_eps: float | None = opt(None, "radius of pgd, pgdls and trades (default: the test radius)")
    ramp_steps: int | None = opt(None, "steps in which pgdls' radius grows from 0 (default: half of max_steps)")
    trades_beta: float = opt(6.0, "weight of TRADES' divergence")
    clean_loss_fn: str = opt("xent", "loss on clean images, also on the wrong ones of the mixed batch", LOSS_NAMES)
    margin_loss_fn: str = opt("xent", "loss at the boundary, on the right examples", LOSS_NAMES)
    attack_loss_fn: str = opt("slm", "loss that PGD maximises", LOSS_NAMES)
    search_loss_fn: str = opt("slm", "loss whose zero the bisection finds; < 0 also means right", SEARCH_LOSS_NAMES)
    nb_iter: int = opt(40, "PGD steps N in training and in the per-epoch check")
    eps_iter_scale: float = opt(2.5, "PGD step size in training, in units of eps/N")
    search: str = opt("bisection", "how the zero along the direction is found", SEARCHES)
    num_search_steps: int = opt(10, "halvings K of the bisection; passes of the secant search")
    attack_mineps: float = opt(0.1, "smallest radius eps_min that PGD starts from")
    keep_directions: bool = opt(False, "PGD starts along the image's last perturbation instead of at random")
    refresh_interval: int = opt(0, "kept directions: every so many visits an image starts at random again (0: never)")
    rest_interval: int = opt(1, "an image beyond the hinge is attacked at every so many-th visit only")

    batch_size: int = opt(50, "examples a step")
    max_steps: int = opt(100_000, "optimizer steps of the whole run")
    optimizer: str = opt("adam", "optimizer", ("adam", "sgd"))
    lr: Schedule = opt(((0, 1e-4),), "learning rate, constant (1e-4) or by step (0:0.3,20000:0.09)")
    one_cycle: bool = opt(False, "the rate rises to --lr in the first fifth of the cycle and falls to 0 after it")
    cycle_steps: int | None = opt(None, "length of that cycle (default: max_steps at the start)")
    average_decay: float | None = opt(None, "average the weights with this decay, for checks and model_best.pt")
    local_bn: bool = opt(False, "with several processes: BatchNorm statistics of each one's slice, not of the batch")
    momentum: float = opt(0.9, "momentum of sgd")
    weight_decay: float = opt(0.0, "L2 penalty of the optimizer")
    augment: bool = opt(False, "reflect-pad 4, random crop, horizontal flip of the training images")

    test_eps: float = opt(0.3, "radius of the per-epoch check's PGD, and the evaluator's default")
    test_eps_iter: float = opt(0.01, "step size of the per-epoch check's PGD")
    check_nb_iter: int | None = opt(None, "PGD steps of the check (default: nb_iter)")
    check_interval: int = opt(1, "epochs between checks; one always follows the last step")
    check_size: int | None = opt(None, "validation images of the check (default: all)")
    test_at_end: bool = opt(False, "check the test images after the last step only")
    train_size: int | None = opt(None, "training images used (default: all that are not validation)")
    val_size: int | None = opt(5000, "validation images (default for image folders: 10 %% of the training images)")
    test_size: int | None = opt(None, "test images of the per-epoch check (default: all; 0: no test check)")
    eval_batch_size: int = opt(200, "images a batch in the per-epoch check")

    pretrained: str | None = opt(None, "start from the weights of this checkpoint or run folder")
    savepath: str | None = opt(None, "run folder (default: trained_models/<run name>)")
    resume: bool = opt(False, "go on from the run folder's last.pt; start if it is empty; skip if finished")
    disp_interval: int = opt(100, "steps between train rows in metrics.jsonl")
    max_minutes: float | None = opt(None, "stop before so many minutes are over, exit status 75; --resume goes on")
    save_interval: float = opt(10.0, "minutes between saves of last.pt within an epoch")
    quiet: bool = opt(False, "no bar and no notes while it works: warnings, errors and the closing lines only")
    tensorboard: bool = opt(False, "also write TensorBoard event files into the run folder")

    @property
    def check_maxeps(self) -> float:
        """d_max for the searches: `hinge_maxeps`, or the largest published one where training needs none."""
        if self.hinge_maxeps is not None:
            return self.hinge_maxeps
        return max(PUBLISHED_MAXEPS[self.dataset, self.norm])

    @property
    def search_maxeps(self) -> float:
        """eps_max = 1.05 d_max, the upper end of every bisection."""
        return 1.05 * self.check_maxeps

    @property
    def check_search_steps(self) -> int:
        """Halvings in the check, which always bisects."""
        return self.num_search_steps if self.search == "bisection" else 10

    @property
    def objective(self) -> str:
        """`method`, or what `clean_loss_coeff` says."""
        return self.method or _method_of(self.clean_loss_coeff)

    @property
    def enlarges_margins(self) -> bool:
        """Whether training is MMA's, with a radius for each example."""
        return self.objective in ("mma", "omma")

    @property
    def attacks(self) -> bool:
        """Whether training runs an attack."""
        return self.objective != "std"

    def eps_at(self, step: int) -> float:
        """Radius of pgd, pgdls and trades in optimizer step `step`, counted from 0."""
        eps = self.test_eps if self.train_eps is None else self.train_eps
        if self.objective != "pgdls":
            return eps
        return eps * min(1.0, step / (self.ramp_steps or max(self.max_steps // 2, 1)))

    @property
    def run_name(self) -> str:
        """`<dataset>-<norm>-<method>-<d_max or eps>-sd<seed>`; in 255ths for CIFAR-10 and image folders under Linf."""
        parts = [self.dataset, self.norm, self.objective.upper()]
        if self.attacks:
            eps = self.check_maxeps if self.enlarges_margins else replace(self, method="pgd").eps_at(0)
            in_255ths = self.norm == "Linf" and self.dataset in ("cifar10", "imagefolder")
            parts.append(f"{eps * 255:.4g}" if in_255ths else str(eps))
        return "-".join([*parts, f"sd{self.seed}", *([self.recipe] if self.recipe != "paper" else [])])

    def lr_at(self, step: int) -> float:
        """Learning rate of optimizer step `step`, counted from 0."""
        if self.one_cycle:
            return one_cycle(step, self.cycle_steps or self.max_steps, self.lr[0][1])
        return [rate for start, rate in self.lr if start <= step][-1]

    def to_dict(self) -> dict[str, typing.Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, typing.Any]) -> Config:
        """The config a checkpoint or config.json carries; fields it lacks take the preset's value.

        :raises UserError: if the values are not those of a config.
        """
        names = {f.name for f in dataclasses.fields(cls)}
        try:
            known = {name: value for name, value in values.items() if name in names}
            known["lr"] = tuple((int(step), float(rate)) for step, rate in known["lr"])
            config = replace(PRESETS[known["dataset"], known["norm"]], **known)
            config = replace(config, method=config.objective)
            _check_types(config)
            validate(config)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"stored config: not one of this program ({error!r}): use another file") from None
        return config


RISE = 0.2  # share of the cycle in which the rate rises


def one_cycle(step: int, length: int, peak: float) -> float:
    """The rate of step `step`: a straight line up to `peak`, then half a cosine down towards 0; 0 is never reached."""
    at, top = (step + 0.5) / length, RISE
    if at < top:
        return peak * at / top
    return peak * max(0.5 * (1 + math.cos(math.pi * (min(at, 1.0) - top) / (1 - top))), 1e-4)


def _method_of(alpha: float) -> str:
    return {0.0: "omma", 1.0: "std"}.get(alpha, "mma")


def _check_types(config: Config) -> None:
    """:raises ValueError: naming a field whose value its flag could not have."""
    hints = typing.get_type_hints(Config)
    for f in dataclasses.fields(Config):
        value, kinds = getattr(config, f.name), typing.get_args(hints[f.name]) or (hints[f.name],)
        choices = f.metadata["choices"]
        of_kind = (bool in kinds or not isinstance(value, bool)) and (
            (float in kinds and isinstance(value, int | float))
            or any(isinstance(kind, type) and isinstance(value, kind) for kind in kinds)
        )
        if isinstance(value, int | float):
            of_kind = of_kind and (abs(value) <= LARGEST if float in kinds else 0 <= value < 10**MOST_DIGITS)
        if f.name != "lr" and (not of_kind or (choices and value is not None and value not in choices)):
            raise ValueError(f"{f.name} = {value!r}")


PRESETS = {key: Config(**values) for key, values in SETTINGS.items()}  # type: ignore[arg-type]


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
    split: str = opt("test", "test images, or the validation images of its training", SPLITS)
    test_size: int | None = opt(None, "the first so many images of the split (default: all)")
    batch_size: int = opt(200, "images a batch")
    seed: int = opt(0, "seed of the random starts")
    data_root: str | None = opt(None, "folder of the data set (default: the checkpoint's, else data)")
    resume: bool = opt(False, "has no effect: what was stopped goes on anyway, and what is done is not done again")
    overwrite: bool = opt(False, "compute it anew where the JSON beside the model holds this very evaluation")
    max_minutes: float | None = opt(None, "stop before so many minutes are over, exit status 75; start again to go on")
    save_adv: bool = opt(False, "also save the adversarial images beside the model")


def eval_grid(dataset: str, norm: str, max_eps: float) -> tuple[float, ...]:
    """The paper's radii; for digits and image folders six up to `max_eps`, the training's d_max."""
    return GRIDS.get((dataset, norm)) or tuple(max_eps * k / 6 for k in range(1, 7))


def eval_step_size(dataset: str, norm: str, eps: float) -> float:
    """Step of the reference's evaluation: eps/4, on MNIST under Linf eps/40."""
    return eps / 40 if (dataset, norm) == ("mnist", "Linf") else eps / 4


def radius(value: float, dataset: str, norm: str, flag: str) -> tuple[float, list[str]]:
    """`value` as a radius in input units, and a note if it was read as 255ths (CIFAR-10 under Linf only).

    :raises UserError: for a radius that no image in [0, 1] can use.
    """
    if value <= 0:
        raise UserError(f"--{flag} {value:g}: a radius must be above 0")
    _refuse_extreme_radius(value, norm, flag)
    if norm != "Linf" or value <= 1:
        return value, []
    if dataset == "cifar10" and value <= 255:
        return value / 255, [f"--{flag} {value:g} is read as {value:g}/255 = {value / 255:.6f}"]
    raise UserError(
        f"--{flag} {value:g}: images lie in [0, 1], so an Linf radius above 1 means nothing; "
        f"write {value:g}/255 if 255ths are meant"
    )


def _refuse_extreme_radius(value: float, norm: str, flag: str) -> None:
    """:raises UserError: for a radius that float32 cannot use, or that no two images are apart."""
    if value < SMALLEST_RADIUS and not flag.endswith("_iter"):
        raise UserError(
            f"--{flag} {value:g}: below {SMALLEST_RADIUS:g} a radius is lost in rounding: choose a larger one"
        )
    if norm == "L2" and value > LARGEST_L2:
        raise UserError(f"--{flag} {value:g}: no two images in [0, 1] are so far apart: choose a smaller one")


POSITIVE = (
    *("nb_iter", "num_search_steps", "batch_size", "max_steps", "disp_interval", "hinge_maxeps", "eps_iter_scale"),
    *(
        "attack_mineps",
        "test_eps",
        "test_eps_iter",
        "train_size",
        "val_size",
        "eval_batch_size",
        "save_interval",
        "max_minutes",
    ),
    *("train_eps", "ramp_steps", "cycle_steps", "check_nb_iter", "check_size", "check_interval", "rest_interval"),
)
RADII = ("hinge_maxeps", "attack_mineps", "train_eps", "test_eps", "test_eps_iter")


def validate(config: Config) -> None:
    """:raises UserError: for values that contradict each other or mean nothing."""
    require_positive(config, POSITIVE)
    for name in ("momentum", "weight_decay", "trades_beta", "num_workers"):
        if getattr(config, name) < 0:
            raise UserError(f"--{name} {getattr(config, name):g}: must not be negative")
    if config.streaming and config.dataset != "imagefolder":
        raise UserError(
            f"--streaming: {config.dataset} is small and lives in memory, only image folders stay on disk: leave it out"
        )
    _validate_method(config)
    _validate_radii(config)
    _validate_rates(config)
    _validate_recipe(config)
    if wrong := why_unknown(config.network):
        raise UserError(f"--network {config.network}: {wrong}")
    if is_own(config.network) and config.activation != "relu":
        raise UserError(f"--activation: {config.network} is your own and has what it has: leave it out")


def _validate_method(config: Config) -> None:
    if not 0 <= config.clean_loss_coeff <= 1:
        raise UserError(f"--clean_loss_coeff {config.clean_loss_coeff:g}: a weight between 0 and 1 is needed")
    if config.method in ALPHA and _method_of(config.clean_loss_coeff) != config.method:
        raise UserError(
            f"--clean_loss_coeff {config.clean_loss_coeff:g}: contradicts --method {config.method}, for which it "
            f"is {'above 0 and below 1' if config.method == 'mma' else f'{ALPHA[config.method]:g}'}: leave one out"
        )
    if config.hinge_maxeps is None and config.enlarges_margins:
        published = ", ".join(f"{d:.4g}" for d in PUBLISHED_MAXEPS[config.dataset, config.norm])
        raise UserError(
            f"--hinge_maxeps is missing: MMA needs a threshold d_max; the usual ones for {config.dataset} "
            f"{config.norm} are {published}"
        )


def _validate_radii(config: Config) -> None:
    for name in RADII:
        value = getattr(config, name)
        if config.norm == "Linf" and (value or 0) > 1:
            raise UserError(f"--{name} {value:g}: an Linf radius above 1 means nothing on [0, 1]")
        if value is not None:
            _refuse_extreme_radius(value, config.norm, name)
    if config.num_search_steps > MOST_SEARCH_STEPS:
        raise UserError(
            f"--num_search_steps {config.num_search_steps}: {MOST_SEARCH_STEPS} halvings are the most that "
            "float32 can tell apart: choose fewer"
        )
    if config.enlarges_margins and config.attack_mineps > config.search_maxeps:
        raise UserError(
            f"--attack_mineps {config.attack_mineps:g}: above the end of the search, "
            f"1.05 * hinge_maxeps = {config.search_maxeps:g}; lower it or raise --hinge_maxeps"
        )


def _validate_rates(config: Config) -> None:
    if not config.lr or config.lr[0][0] != 0:
        raise UserError(f"--lr {config.lr}: the first learning rate must be that of step 0")
    in_order = sorted(dict(config.lr)) == [step for step, _ in config.lr]
    if not all(0 < rate <= LARGEST for _, rate in config.lr) or not in_order:
        raise UserError(f"--lr {config.lr}: rates above 0 by ascending steps are needed")
    if config.one_cycle and len(config.lr) > 1:
        raise UserError("--lr: with --one_cycle it is the highest rate, one number: leave the steps out")


def _validate_recipe(config: Config) -> None:
    if config.average_decay is not None and not 0 < config.average_decay < 1:
        raise UserError(f"--average_decay {config.average_decay:g}: between 0 and 1, as 0.999")
    if config.refresh_interval and not config.keep_directions:
        raise UserError("--refresh_interval: is about kept directions: add --keep_directions, or leave it out")
    if config.keep_directions and not config.enlarges_margins:
        raise UserError(
            f"--keep_directions: has no meaning with --method {config.objective}, only with mma, omma: leave it out"
        )
    if config.keep_directions and config.augment:
        raise UserError(
            "--keep_directions: an image's direction does not fit its next crop: add --no-augment, or leave it out"
        )


def require_positive(config: Config | EvalConfig, names: Sequence[str]) -> None:
    """:raises UserError: naming the first of these fields that is given and not above 0."""
    for name in names:
        value = getattr(config, name)
        zero_means_none = name == "test_size" and isinstance(config, Config)
        if value is not None and not zero_means_none and not value > 0:
            raise UserError(f"--{name} {value:g}: must be above 0")

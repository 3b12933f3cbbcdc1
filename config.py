"""Every hyper-parameter, with unit and meaning; the published settings; what values are refused.

Radii (`*eps*`) are in input units: images live in [0, 1], so 8/255 under Linf, 2.0 under L2.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from networks.names import FORMS
from presets import CLASSES, PUBLISHED_MAXEPS, RECIPES, SETTINGS, derived_lengths

DATASETS = ("digits", "mnist", "cifar10", "imagefolder")
NORMS = ("Linf", "L2")
SPLITS = {"test": "test", "val": "validation", "train": "training"}  # images that can be attacked, in words
OTHER = "other"  # in results: test images, but not those of the run's own data
LOSS_NAMES = ("xent", "cw", "lm", "slm")
METHODS = ("mma", "omma", "std", "pgd", "pgdls", "trades", "ddn")
ALPHA = {"mma": 1 / 3, "omma": 0.0, "std": 1.0}  # weight of the clean loss, by method
PRECISIONS = ("fp32", "tf32", "bf16", "bf16_all")
BEST_BY = {
    "mean_margin": "mean margin",
    "robust_acc": "robust accuracy",
    "clean_acc": "clean accuracy",
}  # figures of the check, in words
GONE = {"activation": "relu", "average_decay": None}  # settings of older runs, and the value that has no effect

LARGEST = 1e30  # float32 ends at 3e38, and what is made of a number must fit too
MOST_DIGITS = 15  # of a whole number

Schedule = tuple[tuple[int, float], ...]


def opt(
    default: object, text: str, choices: Sequence[str] | None = None, of_run: bool = False, flag: bool = True
) -> typing.Any:
    """A field with the help text and the choices of its flag.

    of_run: it does not matter to a result, but says where files are, how it is shown or how it is run; so it may change
    when a run goes on, and is not part of what was trained. flag: whether it has one; else it is found, not asked for.
    """
    return field(default=default, metadata={"help": text, "choices": choices, "of_run": of_run, "flag": flag})


def found(text: str, default: object = None) -> typing.Any:
    """A field that is not asked for but found in the data, and is compared by whoever reads it."""
    return opt(default, text, of_run=True, flag=False)


QUIET = "no bar and no notes while it works: warnings, errors and the closing lines only"


@dataclass(frozen=True)
class Config:
    """One training run. The defaults are MNIST's; `PRESETS` holds the published settings by data set and norm."""

    dataset: str = opt("mnist", "data set", DATASETS)
    norm: str = opt("Linf", "norm in which margins are measured", NORMS)
    network: str = opt("lenet5", FORMS)
    seed: int = opt(0, "seed of every random draw")
    device: str = opt("auto", "cpu, cuda, cuda:1, …; auto takes cuda where there is one", of_run=True)
    deterministic: bool = opt(False, "deterministic kernels only (slower on GPUs)")
    precision: str = opt(
        "fp32",
        "fp32; tf32: CUDA's, everywhere; bf16: in PGD's passes, tf32 elsewhere; bf16_all: everywhere",
        PRECISIONS,
    )
    cuda_graphs: bool = opt(True, "record what has fixed shapes on a GPU and replay it (docs/speed.md)", of_run=True)
    data_root: str = opt("data", "folder of the data set; MNIST and CIFAR-10 are downloaded into it", of_run=True)
    streaming: bool | None = opt(
        None,
        "leave an image folder on disk (default: if it would take more than half of the device's free memory)",
        of_run=True,
    )
    num_workers: int = opt(2, "threads that read ahead what is on disk; 0: read when it is due", of_run=True)
    image_size: int | None = opt(
        None, "images of a folder: the shorter side is resized to so many pixels, and the middle is cut out"
    )
    classes: tuple[str, ...] | None = found("names of a folder's classes, in the order of the logits")
    image_shape: tuple[int, ...] | None = found("of a folder's images, channels first")
    training_files: str | None = found("digest of a folder's training images: names, lengths and some of the content")
    test_files: str | None = found("the same of its test images")
    network_code: str | None = found("digest of the code of a network of somebody's own")
    by_images: tuple[str, ...] = found("settings that nobody gave, which follow from the number of images", ())

    recipe: str = opt(
        "paper", "paper: the published settings; fast: far fewer passes (docs/recipes.md)", tuple(RECIPES)
    )
    method: str = opt("mma", "training method (default: mma, or what --clean_loss_coeff says)", METHODS)
    hinge_maxeps: float | None = opt(None, "hinge threshold d_max: margins above it are not pushed further")
    clean_loss_coeff: float = opt(1 / 3, "weight alpha of the clean loss: 1/3 is MMA, 0 OMMA, 1 standard training")
    train_eps: float | None = opt(None, "radius of pgd, pgdls, trades and ddn (default: the test radius)")
    ramp_steps: int | None = opt(None, "steps in which pgdls' radius grows from 0 (default: half of max_steps)")
    trades_beta: float = opt(6.0, "weight of TRADES' divergence")
    clean_loss_fn: str = opt(
        "xent", "loss on clean images, on the wrong ones in L_mma, and in pgd, pgdls and ddn", LOSS_NAMES
    )
    margin_loss_fn: str = opt("xent", "loss at the boundary, on the right examples", LOSS_NAMES)
    attack_loss_fn: str = opt("slm", "loss that PGD maximises in mma and omma, and in every check", LOSS_NAMES)
    search_loss_fn: str = opt("slm", "loss whose zero the bisection finds; < 0 also means right", ("slm", "lm"))
    nb_iter: int = opt(40, "PGD steps N in training and in the per-epoch check")
    eps_iter_scale: float = opt(2.5, "PGD step size in training, in units of eps/N")
    search: str = opt("bisection", "how the zero along the direction is found", ("bisection", "secant"))
    num_search_steps: int = opt(10, "halvings K of the bisection; passes of the secant search")
    search_mode: str = opt("train", "BatchNorm's mode in the search; train: as in the paper", ("train", "eval"))
    attack_mineps: float = opt(0.1, "smallest radius eps_min that PGD starts from")
    keep_directions: bool = opt(
        False, "warm start: PGD begins along the image's last perturbation instead of at random"
    )
    refresh_interval: int = opt(
        0, "warm start: every so many visits an image starts at random again all the same (0: never)"
    )
    rest_interval: int = opt(1, "an image beyond the hinge is attacked at every so many-th visit only")

    step_decay: bool = opt(False, "PGD's steps in training fall from their size to 0")
    odi_steps: int = opt(0, "steps of ODI before PGD where it starts at random (Tashiro et al. 2020)")

    batch_size: int = opt(50, "examples a step")
    max_steps: int = opt(100_000, "optimizer steps of the whole run")
    optimizer: str = opt("adam", "optimizer", ("adam", "sgd"))
    lr: Schedule = opt(((0, 1e-4),), "learning rate, constant (1e-4) or by step (0:0.3,20000:0.09)")
    one_cycle: bool = opt(False, "the rate rises to --lr in the first fifth of the cycle and falls to 0 after it")
    cycle_steps: int | None = opt(None, "length of that cycle (default: max_steps at the start)")
    local_bn: bool = opt(False, "with several processes: BatchNorm statistics of each one's slice, not of the batch")
    momentum: float = opt(0.9, "momentum of sgd")
    weight_decay: float = opt(0.0, "L2 penalty of the optimizer")
    augment: bool = opt(False, "random crop of the training images out of a reflected border, and horizontal flip")
    crop_pad: int = opt(4, "width of --augment's border, pixels")
    flip: bool = opt(True, "--augment flips half of the images")

    test_eps: float = opt(0.3, "radius of the per-epoch check's PGD, and the evaluator's default")
    test_eps_iter: float = opt(0.01, "step size of the per-epoch check's PGD")
    check_nb_iter: int | None = opt(None, "PGD steps of the check (default: nb_iter)")
    check_interval: int = opt(1, "epochs between checks; one always follows the last step")
    best_by: str = opt(
        "mean_margin",
        "figure of the validation images by which model_best.pt is chosen (std: clean_acc)",
        tuple(BEST_BY),
    )
    check_size: int | None = opt(None, "validation images of the check, at most (default: all)")
    test_at_end: bool = opt(False, "check the test images after the last step only")
    train_size: int | None = opt(None, "training images used (default: all that are not validation)")
    val_size: int | None = opt(5000, "validation images (default for image folders: 10 %% of the training images)")
    test_size: int | None = opt(None, "test images of the per-epoch check (default: all; 0: no test check)")
    eval_batch_size: int = opt(200, "images a batch in the per-epoch check")

    pretrained: str | None = opt(None, "start from the weights of this checkpoint or run folder")
    savepath: str | None = opt(None, "run folder (default: trained_models/<run name>)", of_run=True)
    resume: bool = opt(
        False, "go on from the run folder's last.pt; start if it is empty; skip if finished", of_run=True
    )
    disp_interval: int = opt(100, "steps between train rows in metrics.jsonl", of_run=True)
    save_interval: float = opt(10.0, "minutes between saves of last.pt within an epoch", of_run=True)
    quiet: bool = opt(False, QUIET, of_run=True)
    tensorboard: bool = opt(False, "also write TensorBoard event files into the run folder", of_run=True)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """In the order of the logits; None where nobody knows them."""
        return self.classes or CLASSES.get(self.dataset)

    @property
    def check_maxeps(self) -> float:
        """d_max for the searches: `hinge_maxeps`, or the largest published one where training needs none."""
        return self.hinge_maxeps or max(PUBLISHED_MAXEPS[self.dataset, self.norm])

    @property
    def search_maxeps(self) -> float:
        """eps_max = 1.05 d_max, the upper end of every bisection."""
        return 1.05 * self.check_maxeps

    @property
    def check_steps(self) -> int:
        """Of PGD in the check."""
        return self.check_nb_iter or self.nb_iter

    @property
    def check_search_steps(self) -> int:
        """Halvings in the check, which always bisects."""
        return self.num_search_steps if self.search == "bisection" else 10

    @property
    def enlarges_margins(self) -> bool:
        """Whether training is MMA's, with a radius for each example."""
        return self.method in ("mma", "omma")

    @property
    def attacks(self) -> bool:
        """Whether training runs an attack."""
        return self.method != "std"

    @property
    def passes_an_image(self) -> float:
        """Forward, or forward and backward, passes that an image costs in a step, if it is right and not skipped."""
        if not self.attacks:
            return 1
        at_random = (1 / self.refresh_interval if self.refresh_interval else 0) if self.keep_directions else 1
        others = {"pgd": 1, "pgdls": 1, "trades": 3, "ddn": 1}.get(self.method, 3 + self.num_search_steps)
        return self.nb_iter + others + at_random * self.odi_steps

    def eps_at(self, step: int) -> float:
        """Radius of pgd, pgdls, trades and ddn in optimizer step `step`, counted from 0."""
        eps = self.test_eps if self.train_eps is None else self.train_eps
        if self.method != "pgdls":
            return eps
        return eps * min(1.0, step / (self.ramp_steps or max(self.max_steps // 2, 1)))

    @property
    def run_name(self) -> str:
        """`<dataset>-<norm>-<method>-<d_max or eps>-sd<seed>`; in 255ths for CIFAR-10 and image folders under Linf."""
        parts = [self.dataset, self.norm, self.method.upper()]
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


RISE = 0.2  # share of the cycle in which the rate rises


def one_cycle(step: int, length: int, peak: float) -> float:
    """The rate of step `step`: a straight line up to `peak`, then half a cosine down towards 0; 0 is never reached."""
    at, top = (step + 0.5) / length, RISE
    if at < top:
        return peak * at / top
    return peak * max(0.5 * (1 + math.cos(math.pi * (min(at, 1.0) - top) / (1 - top))), 1e-4)


def method_of(alpha: float) -> str:
    """The method that a weight of the clean loss alone means."""
    return {0.0: "omma", 1.0: "std"}.get(alpha, "mma")


BY_IMAGES = ("batch_size", "max_steps", "lr")
PUBLISHED_IMAGES, MANY = 45_000, 40_000  # training images of CIFAR-10; from so many on its settings stay as they are
LEAST_BATCH, LEAST_STEPS = 16, 2000


def for_so_many(config: Config, count: int) -> Config:
    """`config` for `count` training images, in what `by_images` names and of its lengths what follows from them.

    The batch is the largest power of two of which an epoch has ten, the rate proportional to it; steps are as many epochs as
    published, and the rate falls at the same parts of them.
    """
    if count >= MANY or not config.by_images:
        return config
    usual = PRESETS[config.dataset, config.norm]
    values = {name: getattr(config, name) for name in BY_IMAGES}
    if "batch_size" in config.by_images:
        least = max(LEAST_BATCH, min(usual.batch_size, 2 ** (count // 10).bit_length() // 2))
        # BatchNorm cannot work on a last batch of one image.
        values["batch_size"] = next(size for size in itertools.count(least) if count % size != 1)
    if "max_steps" in config.by_images:
        steps = usual.max_steps * count / PUBLISHED_IMAGES * usual.batch_size / values["batch_size"]
        values["max_steps"] = max(LEAST_STEPS, min(usual.max_steps, round(steps, -2)))
    if "lr" in config.by_images:
        faster, larger = values["max_steps"] / usual.max_steps, values["batch_size"] / usual.batch_size
        rates = {round(step * faster): float(f"{rate * larger:.4g}") for step, rate in reversed(config.lr)}
        values["lr"] = tuple(sorted(rates.items()))
    before, after = derived_lengths(config.max_steps), derived_lengths(values["max_steps"])
    values |= {name: after[name] for name, value in before.items() if getattr(config, name) == value}
    return replace(config, **values)


PRESETS = {key: Config(**values) for key, values in SETTINGS.items()}

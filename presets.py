"""The published settings by data set and norm, the grids that the paper attacks on, and the recipes: values alone.

Radii are in input units: images live in [0, 1], so 8/255 under Linf, 2.0 under L2.
"""

from __future__ import annotations

from typing import Any

Key = tuple[str, str]  # data set, norm
Values = dict[str, Any]  # fields of `config.Config`

PUBLISHED_MAXEPS: dict[Key, tuple[float, ...]] = {
    ("digits", "Linf"): (0.3,),
    ("digits", "L2"): (1.5,),
    ("mnist", "Linf"): (0.45,),
    ("mnist", "L2"): (2.0, 4.0, 6.0),
    ("cifar10", "Linf"): (12 / 255, 20 / 255, 32 / 255),
    ("cifar10", "L2"): (1.0, 2.0, 3.0),
}
PUBLISHED_MAXEPS |= {("imagefolder", norm): PUBLISHED_MAXEPS["cifar10", norm] for norm in ("Linf", "L2")}

GRIDS: dict[Key, tuple[float, ...]] = {
    ("mnist", "Linf"): tuple(k / 10 for k in range(1, 5)),
    ("mnist", "L2"): (1.0, 2.0, 3.0, 4.0),
    ("cifar10", "Linf"): tuple(4 * k / 255 for k in range(1, 9)),
    ("cifar10", "L2"): (0.5, 1.0, 1.5, 2.0, 2.5),
}


_TEN = tuple(map(str, range(10)))
CLASSES: dict[str, tuple[str, ...]] = {  # names, in the order of the labels; a folder of pictures has its own
    "digits": _TEN,
    "mnist": _TEN,
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}


_WRN: Values = {
    "network": "wrn28_4",
    "optimizer": "sgd",
    "weight_decay": 2e-4,
    "augment": True,
    "nb_iter": 10,
    "lr": ((0, 0.3), (20_000, 0.09), (30_000, 0.03), (40_000, 0.009)),
    "batch_size": 128,
    "max_steps": 50_000,
}
_BY_DATASET: dict[str, Values] = {
    "mnist": {},
    "digits": {"lr": ((0, 1e-3),), "max_steps": 2000, "nb_iter": 10, "val_size": 200},
    "cifar10": _WRN,
    "imagefolder": {**_WRN, "val_size": None},
}
_BY_NORM: dict[Key, tuple[float, float, float]] = {  # attack_mineps, test_eps, test_eps_iter
    ("mnist", "Linf"): (0.1, 0.3, 0.01),
    ("mnist", "L2"): (0.5, 2.0, 0.125),
    ("digits", "Linf"): (0.05, 0.2, 0.05),
    ("digits", "L2"): (0.25, 1.0, 0.25),
    ("cifar10", "Linf"): (0.005, 8 / 255, 2 / 255),
    ("cifar10", "L2"): (0.5, 1.0, 0.25),
}
_BY_NORM |= {("imagefolder", norm): _BY_NORM["cifar10", norm] for norm in ("Linf", "L2")}
# What `Config`'s defaults, which are MNIST's, become for each data set and norm.
SETTINGS: dict[Key, Values] = {
    (dataset, norm): {"dataset": dataset, "norm": norm, **_BY_DATASET[dataset]}
    | {"attack_mineps": mineps, "test_eps": eps, "test_eps_iter": step}
    for (dataset, norm), (mineps, eps, step) in _BY_NORM.items()
}

# What `--recipe fast` changes in the settings of each data set; every one is a flag of its own. It leaves out what has
# no meaning for a method.
_FAST: Values = {
    "precision": "bf16",
    "one_cycle": True,
    "search": "secant",
    "num_search_steps": 4,
    "keep_directions": True,
    "refresh_interval": 8,
    "rest_interval": 3,
    "check_interval": 2,
    "check_size": 1000,
    "test_size": 1000,
    "test_at_end": True,
}
_MNIST: Values = {**_FAST, "batch_size": 100, "nb_iter": 6, "check_nb_iter": 40, "lr": ((0, 2e-3),), "max_steps": 6600}
FAST: dict[Key, Values] = {
    ("mnist", "Linf"): {**_MNIST, "step_decay": True, "odi_steps": 6},
    ("mnist", "L2"): _MNIST,
    ("digits", "Linf"): {
        **_FAST,
        "test_size": None,
        "batch_size": 50,
        "nb_iter": 4,
        "lr": ((0, 4e-3),),
        "max_steps": 600,
    },
}
FAST["digits", "L2"] = FAST["digits", "Linf"]
# CIFAR-10: steps by method, so that all but standard training, which has MMA's epochs, have about the same passes; the
# arithmetic is in docs/speed.md. Attacks within a fixed radius start at random and get a step more.
_CIFAR10: Values = {
    **_FAST,
    "precision": "bf16_all",
    "search_mode": "eval",
    "nb_iter": 2,
    "lr": ((0, 0.3),),
    "weight_decay": 5e-4,
    "batch_size": 256,
    "check_nb_iter": 10,
    "best_by": "robust_acc",
}
FAST |= {("cifar10", norm): _CIFAR10 for norm in ("Linf", "L2")}
FAST |= {("imagefolder", norm): {**_CIFAR10, "test_size": None} for norm in ("Linf", "L2")}  # a folder may have few
SMALL = "small_resnet"  # for CPUs: smaller batches, of which it needs more
_STEPS = {SMALL: {"mma": 11_400, "pgd": 15_900, "trades": 10_600}, "": {"mma": 5300, "pgd": 9000, "trades": 6000}}
RECIPES: dict[str, dict[Key, Values]] = {"paper": {}, "fast": FAST}
TRIED = (  # of which there has been a whole run
    ("fast", "mnist", "Linf", "lenet5"),
    ("fast", "mnist", "L2", "lenet5"),
    ("fast", "digits", "Linf", "lenet5"),
    ("fast", "imagefolder", "Linf", SMALL),
)
MMA_ONLY = ("search", "search_mode", "num_search_steps", "keep_directions", "refresh_interval", "rest_interval")
ATTACK_ONLY = ("step_decay", "odi_steps")


def recipe_values(recipe: object, key: Key, method: str | None, network: str | None = None) -> Values:
    """What recipe and method change in the settings of a data set and norm, less what has no meaning for the method."""
    values, method = dict(RECIPES.get(str(recipe), {}).get(key, {})), method or "mma"
    if values and key[0] in ("cifar10", "imagefolder"):
        steps = _STEPS[SMALL if network == SMALL else ""]
        like = {"omma": "mma", "std": "mma", "pgdls": "pgd", "ddn": "pgd"}.get(method, method)
        values |= {"max_steps": steps[like]} | ({"batch_size": 128} if network == SMALL else {})
        values |= {"nb_iter": 3} if like in ("pgd", "trades") else {}
    if values and key == ("mnist", "Linf") and method in ("pgd", "pgdls", "trades"):  # by PGD-0.3, docs/experiments.md
        values |= {"nb_iter": 10, "step_decay": False, "odi_steps": 0}
    if values and method == "ddn":  # its radius moves by a twentieth a step: more steps, of as many passes as PGD
        values |= {"nb_iter": 20, "max_steps": values["max_steps"] * (values["nb_iter"] + 1) // 21}
    leaves_out = (*(() if method in ("mma", "omma") else MMA_ONLY), *(ATTACK_ONLY if method in ("std", "ddn") else ()))
    values = {name: value for name, value in values.items() if name not in leaves_out}
    return values | ({"best_by": "clean_acc"} if method == "std" else {})  # nothing of std is robust


MARGIN = ("mma", "omma")  # methods that enlarge margins
USES: dict[str, tuple[str, ...]] = {  # fields that have a meaning with some methods only
    "train_eps": ("pgd", "pgdls", "trades", "ddn"),
    "ramp_steps": ("pgdls",),
    "trades_beta": ("trades",),
    "clean_loss_coeff": (*MARGIN, "std"),
    **dict.fromkeys(("search", "search_mode", "rest_interval"), MARGIN),
    **dict.fromkeys(("attack_mineps", "margin_loss_fn", "search_loss_fn"), MARGIN),
    **dict.fromkeys(("eps_iter_scale", "step_decay", "odi_steps"), (*MARGIN, "pgd", "pgdls", "trades")),
}
TURNED_OFF = {  # by what is said of a switch, the fields that then have no meaning
    ("augment", False): ("crop_pad", "flip"),
    ("one_cycle", False): ("cycle_steps",),
    ("keep_directions", False): ("refresh_interval",),
    ("optimizer", "adam"): ("momentum",),
}


def derived_lengths(max_steps: int) -> dict[str, int]:
    """PGDLS's ramp and the one-cycle rate's length where they are not given; of the steps that a run starts with."""
    return {"ramp_steps": max(max_steps // 2, 1), "cycle_steps": max_steps}

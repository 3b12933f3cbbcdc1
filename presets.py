"""The published settings by data set and norm, the grids that the paper attacks on, and the recipes: values alone.

Radii are in input units: images live in [0, 1], so 8/255 under Linf, 2.0 under L2.
"""

from __future__ import annotations

Key = tuple[str, str]  # data set, norm
Values = dict[str, object]  # fields of `config.Config`

PUBLISHED_MAXEPS: dict[Key, tuple[float, ...]] = {
    ("digits", "Linf"): (0.3,),
    ("digits", "L2"): (1.5,),
    ("mnist", "Linf"): (0.45,),
    ("mnist", "L2"): (2.0, 4.0, 6.0),
    ("cifar10", "Linf"): (12 / 255, 20 / 255, 32 / 255),
    ("cifar10", "L2"): (1.0, 2.0, 3.0),
    ("imagefolder", "Linf"): (12 / 255, 20 / 255, 32 / 255),
    ("imagefolder", "L2"): (1.0, 2.0, 3.0),
}

GRIDS: dict[Key, tuple[float, ...]] = {
    ("mnist", "Linf"): tuple(k / 10 for k in range(1, 5)),
    ("mnist", "L2"): (1.0, 2.0, 3.0, 4.0),
    ("cifar10", "Linf"): tuple(4 * k / 255 for k in range(1, 9)),
    ("cifar10", "L2"): (0.5, 1.0, 1.5, 2.0, 2.5),
}


def _settings() -> dict[Key, Values]:
    digits: Values = {"lr": ((0, 1e-3),), "max_steps": 2000, "nb_iter": 10, "val_size": 200}
    cifar10: Values = {
        "network": "wrn28_4",
        "optimizer": "sgd",
        "weight_decay": 2e-4,
        "augment": True,
        "nb_iter": 10,
        "lr": ((0, 0.3), (20_000, 0.09), (30_000, 0.03), (40_000, 0.009)),
        "batch_size": 128,
        "max_steps": 50_000,
    }
    radii: dict[Key, tuple[float, float, float]] = {  # attack_mineps, test_eps, test_eps_iter
        ("mnist", "Linf"): (0.1, 0.3, 0.01),
        ("mnist", "L2"): (0.5, 2.0, 0.125),
        ("digits", "Linf"): (0.05, 0.2, 0.05),
        ("digits", "L2"): (0.25, 1.0, 0.25),
        ("cifar10", "Linf"): (0.005, 8 / 255, 2 / 255),
        ("cifar10", "L2"): (0.5, 1.0, 0.25),
    }
    base: dict[str, Values] = {
        "mnist": {},
        "digits": digits,
        "cifar10": cifar10,
        "imagefolder": {**cifar10, "val_size": None},
    }
    found: dict[Key, Values] = {}
    for dataset, values in base.items():
        for norm in ("Linf", "L2"):
            like = "cifar10" if dataset == "imagefolder" else dataset
            names = ("attack_mineps", "test_eps", "test_eps_iter")
            own = dict(zip(names, radii[like, norm], strict=True))
            found[dataset, norm] = {"dataset": dataset, "norm": norm, **values, **own}
    return found


SETTINGS = _settings()  # what `Config`'s defaults, which are MNIST's, become for each data set and norm

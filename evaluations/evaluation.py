"""What every evaluation shares: the network under test with its test images, and the JSON beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from config import PRESETS, Config, EvalConfig
from errors import UserError
from hardware.layout import lay_out, layout_for
from loading.batches import Split
from loading.datasets import load_test
from networks.build import build_model
from networks.keys import our_keys
from networks.names import is_built_in, is_own
from records.checkpoint import load_model_file, load_weights
from records.reading import parse_json, refuse_odd
from utils import write_atomically


@dataclass(frozen=True)
class Subject:
    """A trained network in eval mode, and what it is tested on."""

    model: nn.Module
    path: Path
    sha256: str  # of the checkpoint file
    test: Split
    training: Config  # the checkpoint's config, or the preset of its data set and norm
    dataset: str
    norm: str
    overrides: dict[str, str]  # what the flags changed of the checkpoint's own words

    def result_file(self, attack: str) -> Path:
        return self.path.parent / f"eval_{attack}_{self.norm}.json"


def load_subject(flags: EvalConfig, device: torch.device) -> Subject:
    """The network in `--model`, with data set and norm from its config unless the flags say otherwise.

    :raises UserError: if the checkpoint, the data or the network do not fit each other.
    """
    file = load_model_file(flags.model)
    stored = Config.from_dict(file.config) if file.config else None
    for name in ("dataset", "norm"):
        if stored is None and getattr(flags, name) is None:
            raise UserError(
                f"--{name} is missing: {file.path} does not say it, as a checkpoint of the reference or a bare "
                "state dict"
            )
    dataset, norm = flags.dataset or stored.dataset, flags.norm or stored.norm
    training = stored if stored and (dataset, norm) == (stored.dataset, stored.norm) else PRESETS[dataset, norm]
    network = flags.network or (stored or training).network
    if is_own(network) and flags.network is None:
        raise UserError(
            f"checkpoint {file.path}: names the network {network}, which is code: "
            f"add --network {network} if you trust it"
        )
    own_root = stored.data_root if stored and stored.dataset == dataset and _is_folder(stored.data_root) else "data"
    data_root = flags.data_root or own_root
    test, num_classes = load_test(dataset, data_root, test_size=flags.test_size, device=device)
    model = build_model(network, *test.shape, num_classes, stored.activation if stored else "relu")
    load_weights(model, our_keys(file.weights, model.state_dict()), file.path)
    model = model.to(device).eval().requires_grad_(False)
    precision = getattr(flags, "precision", "fp32")  # that of PGD; the other attacks compute in float32
    lay_out(model, is_built_in(network), layout_for(device, precision, getattr(flags, "deterministic", False)))
    given = {name: (getattr(stored, name), value) for name, value in (("dataset", dataset), ("norm", norm)) if stored}
    overrides = {
        name: f"{value} instead of the checkpoint's {own}" for name, (own, value) in given.items() if own != value
    }
    return Subject(model, file.path, file.sha256, test, training, dataset, norm, overrides)


def _is_folder(name: str) -> bool:
    try:
        return Path(name).is_dir()
    except OSError:  # a name that is too long
        return False


def wilson(successes: int, count: int) -> list[float]:
    """The 95 % Wilson interval of a proportion, [low, high]."""
    interval = binomtest(successes, count).proportion_ci(0.95, method="wilson")
    return [interval.low, interval.high]


def result_row(eps: float, robust: Tensor) -> dict:
    """One entry of `results`: (N,) bool -> accuracy, its interval, and one character an example ("1": robust)."""
    flags = "".join("1" if flag else "0" for flag in robust.tolist())
    return {
        "eps": eps,
        "robust_acc": flags.count("1") / len(flags),
        "ci95": wilson(flags.count("1"), len(flags)),
        "flags": flags,
    }


def stored_result(subject: Subject, attack: str) -> dict:
    """What the JSON beside the model says of this very checkpoint file; {} if nothing.

    :raises UserError: if the file is damaged, or says of this checkpoint what no evaluation writes.
    """
    path = subject.result_file(attack)
    try:
        result = parse_json(path.read_text())
        if not isinstance(result, dict):
            raise ValueError("not a JSON object")
        if (result.get("model_sha256"), result.get("dataset")) != (subject.sha256, subject.dataset):
            return {}
        refuse_odd(result)
        return result
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}): move it away first") from None


def is_done(subject: Subject, attack: str, wanted: dict, radii: Sequence[float]) -> bool:
    """Whether that JSON holds an evaluation of the same images at these radii with what `wanted` lists."""

    def agrees(found: object, value: object) -> bool:
        if isinstance(value, dict):
            return isinstance(found, dict) and all(agrees(found.get(k), v) for k, v in value.items())
        return found == value

    result = stored_result(subject, attack)
    return (
        agrees(result, wanted)
        and result.get("n") == len(subject.test)
        and [row["eps"] for row in result.get("results", ())] == list(radii)
    )


def refuse_to_shrink(subject: Subject, attack: str) -> None:
    """:raises UserError: if this evaluation would replace one of the same checkpoint on more images."""
    before = stored_result(subject, attack).get("n", 0)
    if before > len(subject.test):
        raise UserError(
            f"--test_size {len(subject.test)}: {subject.result_file(attack)} holds this network's result on {before} "
            "images: move it away first, or leave --test_size out"
        )


def write_result(subject: Subject, attack: str, content: dict) -> Path:
    """Write `eval_<attack>_<norm>.json` beside the model.

    :raises UserError: if the folder cannot be written.
    """
    head = {
        "attack": attack,
        "model_sha256": subject.sha256,
        "dataset": subject.dataset,
        "norm": subject.norm,
        "n": len(subject.test),
    }
    path = subject.result_file(attack)
    try:
        write_atomically(path, (json.dumps({**head, **content}, indent=1) + "\n").encode())
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}): copy the model into a folder of yours"
        ) from None
    return path

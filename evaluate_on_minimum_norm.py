"""How far is the nearest adversarial image? `python evaluate_on_minimum_norm.py --model PATH`.

L2: Carlini-Wagner (the paper's protocol), DDN and FMN; Linf: FMN; all through foolbox. Beside them AN-PGD's margins of the
same images, as training measures them. A distance is 0 for a misclassified image and inf where no attack breaks it.
B batch, N test images, ... any image shape; images in [0, 1]; distances in the same unit.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import eagerpy
import torch
from foolbox import PyTorchModel
from foolbox.attacks import DDNAttack, L2CarliniWagnerAttack, L2FMNAttack, LInfFMNAttack
from foolbox.attacks.base import MinimizationAttack
from torch import Tensor
from tqdm import tqdm

from checkpoint import digest
from config import DATASETS, NORMS, opt, require_positive
from errors import UserError, exits_on_user_error
from evaluation import Subject, load_subject, refuse_to_shrink, stored_result, wilson, write_result
from flags import build_parser
from losses import cross_entropy, logit_margin
from pgd import project_l2
from shards import choose, duration, untouched
from trainer import check_split
from utils import EVALUATE, mixed_seed, per_row, row_norms, use_device, write_atomically


@dataclass(frozen=True)
class MinimumNormFlags:
    """One evaluation by attacks that look for the nearest adversarial image."""

    model: str = opt("", "checkpoint file or run folder")
    device: str = opt("auto", "cpu, cuda, cuda:1, …; auto takes cuda where there is one")
    deterministic: bool = opt(False, "deterministic kernels only (slower on GPUs)")
    attacks: str | None = opt(None, "some of cw,ddn,fmn (default: all of them under L2, fmn under Linf)")
    dataset: str | None = opt(None, "data set (default: the checkpoint's)", DATASETS)
    norm: str | None = opt(None, "norm of the distance (default: the checkpoint's)", NORMS)
    network: str | None = opt(None, "network (default: the checkpoint's); your own must be named here to be run")
    test_size: int | None = opt(None, "test images (default: the first 1000, the paper's; 100 for cw on a CPU)")
    steps: int | None = opt(
        None, "steps of every attack (default: 1000; cw 10000 in each of its 9 searches, on a CPU 1000)"
    )
    batch_size: int | None = opt(None, "images attacked together, and kept when stopped later (default: 200; CPU: 25)")
    seed: int = opt(0, "seed of the random draws, where an attack makes any")
    data_root: str | None = opt(None, "folder of the data set (default: the checkpoint's, else data)")
    resume: bool = opt(False, "skip the attacks whose JSON beside the model holds this very evaluation")


class L2ProjectedFMN(L2FMNAttack):
    """FMN under L2 with the projection it is defined by: foolbox 3.3.4's rescales by norm / norm = 1, that is, not at all."""

    def project(self, x: eagerpy.Tensor, x0: eagerpy.Tensor, epsilon: eagerpy.Tensor) -> eagerpy.Tensor:
        """(B, ...), (B, ...), (B,) -> (B, ...): the point of the ball around x0 that is nearest to x."""
        return x0 + eagerpy.astensor(project_l2((x - x0).raw, epsilon.raw))


class Method(NamedTuple):
    """An attack of foolbox and everything that fixes it but the number of steps."""

    attack: type[MinimizationAttack]
    steps: int  # by default
    cpu_steps: int  # by default on a CPU
    searches: int  # runs of so many steps for each image, at most
    options: dict


# FMN runs twice and the shorter counts: from the image, where [0, 1] may hold it up for good, and from another class's.
METHODS = {
    ("cw", "L2"): Method(L2CarliniWagnerAttack, 10_000, 1000, 9, {
        "binary_search_steps": 9, "stepsize": 0.01, "confidence": 0, "initial_const": 1e-3, "abort_early": True}),
    ("ddn", "L2"): Method(DDNAttack, 1000, 1000, 1, {"init_epsilon": 1.0, "gamma": 0.05}),
    ("fmn", "L2"): Method(L2ProjectedFMN, 1000, 1000, 2, {"max_stepsize": 1.0, "gamma": 0.05}),
    ("fmn", "Linf"): Method(LInfFMNAttack, 1000, 1000, 2, {"max_stepsize": 10.0, "gamma": 0.05}),
}  # fmt: skip
NAMES = tuple(dict.fromkeys(attack for attack, _ in METHODS))
PAPER_SIZE, CW_SIZE_ON_CPU = 1000, 100
CHECK_KEY = (1, 0)  # the random starts of the training's check: of the test split, at step 0


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Attack, print and write a JSON for each attack. Returns the exit status."""
    flags = parse(argv)
    device = use_device(flags.device, flags.deterministic)
    subject, attacks, notes = settle(flags, device)
    for note in notes + [f"--{name}: {what}" for name, what in subject.overrides.items()]:
        print(note)
    flags = replace(flags, batch_size=flags.batch_size or (200 if device.type == "cuda" else 25))
    runs = [Run(subject, attack, flags.steps or default_steps(attack, subject.norm, device), flags.batch_size, flags.seed)
            for attack in attacks]  # fmt: skip
    if flags.resume:
        for run in runs:
            if run.is_done:
                print(f"{subject.result_file(run.attack)}: already done")
        runs = [run for run in runs if not run.is_done]
    if not runs:
        return 0
    for run in runs:
        refuse_to_shrink(subject, run.attack)

    clean = clean_logits(subject, flags.batch_size)
    print(f"AN-PGD on {len(clean)} images, as the training's check runs it", flush=True)
    margins = check_split(subject.model, subject.test, subject.training, *CHECK_KEY).margins.cpu().double()
    found: dict[str, Found] = {}
    for run in runs:
        found[run.attack] = attack_all(run, clean)
        for done in runs[: len(found)]:  # again, because the best known distance may have become shorter
            report = content(done, clean, found, margins)
            write_result(subject, done.attack, report)
        parts_file(run).unlink(missing_ok=True)
    for line in table(subject, clean, found, margins):
        print(line)
    for run in runs:
        print(f"written: {subject.result_file(run.attack)}")
    return 0


def parse(argv: Sequence[str] | None = None) -> MinimumNormFlags:
    """The command line. What depends on the checkpoint stays None until it is read.

    :raises UserError: for a wrong flag or value.
    """
    parser = build_parser(MinimumNormFlags, "Find the nearest adversarial images.", "default: ")
    flags = MinimumNormFlags(**parser.parse(argv))
    if not flags.model:
        raise UserError("--model is missing: name a checkpoint file or a run folder")
    require_positive(flags, ("test_size", "steps", "batch_size"))
    if flags.attacks is not None:
        choose(flags.attacks, NAMES)
    return flags


def settle(flags: MinimumNormFlags, device: torch.device) -> tuple[Subject, list[str], list[str]]:
    """The network with its test images, the attacks, and what the user should be told.

    :raises UserError: as `load_subject`, for an attack that the norm does not have, and if results on more images than are
        attacked by default would be replaced.
    """
    subject = load_subject(flags, device)
    possible = [attack for attack, norm in METHODS if norm == subject.norm]
    attacks = possible if flags.attacks is None else choose(flags.attacks, NAMES)
    if wrong := [attack for attack in attacks if attack not in possible]:
        raise UserError(
            f"--attacks {wrong[0]}: not under {subject.norm}: name some of {','.join(possible)}, or add --norm L2"
        )
    notes = []
    if flags.test_size is None:
        size = CW_SIZE_ON_CPU if "cw" in attacks and device.type == "cpu" else PAPER_SIZE
        if len(subject.test) > size:
            subject = load_subject(replace(flags, test_size=size), device)
        for attack in attacks:
            if (before := stored_result(subject, attack).get("n", 0)) > len(subject.test):
                raise UserError(f"--test_size not given: {size} images by default, but {subject.result_file(attack)} holds this "
                                f"network's result on {before}: add --test_size {before}, or choose other --attacks")  # fmt: skip
        why = "the paper's 1000 would take cw long on a CPU" if size == CW_SIZE_ON_CPU else "as in the paper"
        notes.append(f"--test_size not given: {len(subject.test)} images ({why})")
    if flags.steps is None:
        taken = [f"{attack} {default_steps(attack, subject.norm, device)}" for attack in attacks]
        notes.append(f"--steps not given: {', '.join(taken)}" + (" (10000 on a GPU)" if "cw 1000" in taken else ""))
    return subject, attacks, notes


def default_steps(attack: str, norm: str, device: torch.device) -> int:
    """Steps of a search where the flags do not say."""
    method = METHODS[attack, norm]
    return method.cpu_steps if device.type == "cpu" else method.steps


@dataclass(frozen=True)
class Run:
    """One attack on the test images of one network."""

    subject: Subject
    attack: str
    steps: int
    batch_size: int
    seed: int

    @property
    def method(self) -> Method:
        return METHODS[self.attack, self.subject.norm]

    @property
    def settings(self) -> dict:
        """What the distances depend on, device and seed apart."""
        return {"steps": self.steps, "searches": self.method.searches, **self.method.options, "batch_size": self.batch_size,
                "foolbox": version("foolbox"), "overrides": self.subject.overrides}  # fmt: skip

    @property
    def is_done(self) -> bool:
        """Whether the JSON beside the model holds this evaluation."""
        stored = stored_result(self.subject, self.attack)
        found = {name: stored.get("settings", {}).get(name) for name in self.settings}
        return found == self.settings and (stored["seed"], stored["n"]) == (self.seed, len(self.subject.test))


class Found(NamedTuple):
    """What an attack found."""

    distances: list[float]  # (N,) inf where it found nothing
    seconds: float


# --- attacking -----------------------------------------------------------------------------------------------------


def clean_logits(subject: Subject, batch_size: int) -> Tensor:
    """(N, C): of the test images."""
    with torch.no_grad():
        batches = [subject.test.batch(rows).x for rows in torch.arange(len(subject.test)).split(batch_size)]
        return torch.cat([subject.model(x).float() for x in batches])


def is_right(subject: Subject, logits: Tensor) -> Tensor:
    """(N, C) -> (N,) bool: classified right without any perturbation."""
    return logit_margin(logits, subject.test.labels) < 0


def attack_all(run: Run, clean: Tensor) -> Found:
    """Attack what is classified right, batch after batch, and keep each; clean (N, C): logits.

    :raises UserError: if the folder of the model cannot be written.
    """
    right = is_right(run.subject, clean).nonzero().squeeze(1)
    batches = right.split(run.batch_size) if len(right) else ()
    parts = read_parts(run)
    if parts:
        print(f"{run.attack}: {len(parts)} of {len(batches)} batches are done, by {parts_file(run).name}")
    if len(parts) < len(batches):
        print(f"{run.attack}: at most about {forecast(run, batches[len(parts):])} for {sum(map(len, batches[len(parts):]))} "
              "images; stopped, the same command goes on after the last whole batch", flush=True)  # fmt: skip
    with tqdm(
        total=len(right), initial=sum(len(part["distances"]) for part in parts), unit="image", dynamic_ncols=True
    ) as bar:
        bar.set_description(run.attack)
        for number in range(len(parts), len(batches)):
            started = time.monotonic()
            distances = attack_batch(run, number, batches[number], clean)
            parts.append({"distances": distances.tolist(), "seconds": time.monotonic() - started})
            write_parts(run, parts)
            bar.update(len(distances))
            so_far = [distance for part in parts for distance in part["distances"]]
            bar.set_postfix_str(f"median so far {shown(summary(so_far)['quartiles'][1])}")
            if number == 0 and len(batches) > 1:
                bar.write(
                    f"{run.attack}: about {duration(parts[0]['seconds'] * (len(batches) - 1))} more", file=sys.stdout
                )
    distances = torch.zeros(len(clean), dtype=torch.float64)
    distances[right.cpu()] = torch.tensor([d for part in parts for d in part["distances"]], dtype=torch.float64)
    return Found(distances.tolist(), round(sum(part["seconds"] for part in parts), 1))


def forecast(run: Run, batches: Sequence[Tensor]) -> str:
    """How long these batches take if no search ends early, by two gradients of the first."""
    x, y, _ = run.subject.test.batch(batches[0])
    x = x.requires_grad_()
    for _ in range(2):  # the first warms up
        started = time.monotonic()
        torch.autograd.grad(cross_entropy(run.subject.model(x), y).sum(), x)[0].sum().item()
        seconds = time.monotonic() - started
    return duration(seconds * run.steps * run.method.searches * sum(map(len, batches)) / len(y))


def attack_batch(run: Run, number: int, rows: Tensor, clean: Tensor) -> Tensor:
    """(B,) rows -> (B,) float64 on the CPU: the shortest confirmed distances; clean (N, C): logits of all images."""
    subject = run.subject
    x, y, _ = subject.test.batch(rows)
    with untouched(subject.model, x.device):
        torch.manual_seed(mixed_seed(run.seed, EVALUATE, number))  # DDN draws a direction where there is no gradient
        attack = run.method.attack(steps=run.steps, **run.method.options)
        model = PyTorchModel(subject.model, bounds=(0, 1), device=x.device)
        x_adv = attack(model, x, y, epsilons=None)[0]
        if run.attack == "cw":  # foolbox gives an all-black image for one that it did not break
            x_adv = torch.where(per_row(x_adv.flatten(1).any(1), x), x_adv, x)
        best = confirmed(subject, x, y, x_adv)
        if run.attack == "fmn":
            start, can = nearest_of_another_class(subject, x, y, clean)
            if can.any():
                x_adv[can] = attack(model, x[can], y[can], epsilons=None, starting_points=start[can])[0]
                best = torch.minimum(best, confirmed(subject, x, y, x_adv))
    return best.cpu()


def nearest_of_another_class(subject: Subject, x: Tensor, y: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """(B, ...), (B,) -> (B, ...), (B,) bool: the nearest test image that the network takes for another class than y, and
    whether there is one; clean (N, C): its logits."""
    others = subject.test.everything().x
    labels = torch.arange(clean.shape[1], device=y.device)
    surely = 1e-4 * clean.abs().amax()  # in another batch rounding may differ
    broken = torch.stack([logit_margin(clean, label.expand(len(clean))) > surely for label in labels])[y]
    apart = torch.cdist(x.flatten(1), others.flatten(1), p=2 if subject.norm == "L2" else math.inf)
    return others[torch.where(broken, apart, math.inf).argmin(1)], broken.any(1)


def confirmed(subject: Subject, x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
    """(B, ...), (B,), (B, ...) -> (B,) float64: the length of x_adv - x, inf where our own forward pass in float32 says
    that x_adv, clipped to [0, 1], does not break the image."""
    x_adv = x_adv.clamp(0, 1)
    with torch.no_grad():
        broken = logit_margin(subject.model(x_adv).float(), y) >= 0
    delta = (x_adv - x).double()
    length = row_norms(delta) if subject.norm == "L2" else delta.flatten(1).abs().amax(1)
    return torch.where(broken & length.isfinite(), length, math.inf)


# --- progress ------------------------------------------------------------------------------------------------------


def identity(run: Run) -> dict:
    """Everything that the distances depend on."""
    test = run.subject.test
    return {"model_sha256": run.subject.sha256, "images": digest([test.images, test.labels]), "n": len(test),
            "norm": run.subject.norm, "attack": run.attack, "settings": run.settings, "seed": run.seed,
            "device": test.labels.device.type, "torch": str(torch.__version__)}  # fmt: skip


def parts_file(run: Run) -> Path:
    """Where the batches that are done are kept."""
    return run.subject.path.parent / f"partial_{run.attack}_{run.subject.norm}_{digest(identity(run))[:12]}.json"


def read_parts(run: Run) -> list[dict]:
    """Distances and seconds of each batch that is done; none where the file is missing, damaged or of another evaluation."""
    try:
        stored = json.loads(parts_file(run).read_text())
        parts = [{"distances": [float(d) for d in part["distances"]], "seconds": float(part["seconds"])}
                 for part in stored["parts"]]  # fmt: skip
        return parts if stored["identity"] == identity(run) else []
    except (OSError, ValueError, TypeError, KeyError):
        return []


def write_parts(run: Run, parts: Sequence[dict]) -> None:
    """Keep what is done.

    :raises UserError: if the folder cannot be written.
    """
    try:
        write_atomically(parts_file(run), json.dumps({"identity": identity(run), "parts": parts}).encode())
    except OSError as error:
        raise UserError(f"{parts_file(run)}: cannot be written ({error.strerror}): make room, or copy the model into a "
                        "folder of yours") from None  # fmt: skip


# --- reporting -----------------------------------------------------------------------------------------------------


def summary(values: Sequence[float]) -> dict:
    """Mean and quartiles (linear between neighbours); None, that is, not found, where they are infinite or of nothing."""
    ordered = sorted(values)

    def quantile(share: float) -> float | None:
        low, part = divmod(share * (len(ordered) - 1), 1)
        value = ordered[int(low)] + (part * (ordered[int(low) + 1] - ordered[int(low)]) if part else 0)
        return value if math.isfinite(value) else None

    if not ordered:
        return {"mean": None, "quartiles": [None] * 3}
    mean = fmean(ordered)
    return {"mean": mean if math.isfinite(mean) else None, "quartiles": [quantile(q) for q in (0.25, 0.5, 0.75)]}


def best_known(subject: Subject, found: dict[str, Found]) -> tuple[list[float], list[str]]:
    """(N,) shortest distance by attacks of this run and by JSON beside the model, inf where there is none; their names."""
    n = len(subject.test)
    known = {attack: result.distances for attack, result in found.items()}
    for attack, norm in METHODS:
        stored = stored_result(subject, attack) if norm == subject.norm and attack not in known else {}
        distances = stored.get("distances", [])
        if len(distances) == n or (distances and subject.dataset != "imagefolder"):  # the first ones, in the same order
            cut = [math.inf if d is None else d for d in distances[:n]]
            known[attack] = cut + [math.inf] * (n - len(cut))
    return [min(column) for column in zip(*known.values(), strict=True)], sorted(known)


def compared(subject: Subject, clean: Tensor, found: dict[str, Found], margins: Tensor) -> dict:
    """AN-PGD's margins, (N,), and their ratio to the best known distances.

    The ratio is over the images that are classified right, that an attack broke, and whose margin is not the end of
    AN-PGD's search, where nothing was found.
    """
    end, bracket = subject.training.search_maxeps, subject.training.search_maxeps / 2**subject.training.num_search_steps
    at_end = (margins >= end - bracket).tolist()
    best, attacks = best_known(subject, found)
    usable = [right and not stuck and 0 < distance < math.inf for right, stuck, distance in
              zip(is_right(subject, clean).tolist(), at_end, best, strict=True)]  # fmt: skip
    ratios = [margin / distance for margin, distance, use in zip(margins.tolist(), best, usable, strict=True) if use]
    return {**summary(margins.tolist()), "search_end": end, "at_search_end": sum(at_end),
            "ratio": {**summary(ratios), "n": len(ratios), "below_1": sum(r < 1 for r in ratios), "best_of": attacks},
            "distances": margins.tolist()}  # fmt: skip


def content(run: Run, clean: Tensor, found: dict[str, Found], margins: Tensor) -> dict:
    """The JSON of one attack, without its head."""
    result, n, right = found[run.attack], len(clean), int(is_right(run.subject, clean).sum())
    distances = [d if math.isfinite(d) else None for d in result.distances]
    broken = [d for d in distances if d is not None]
    return {
        "clean_acc": right / n, "clean_ci95": wilson(right, n), "seed": run.seed,
        "settings": {**run.settings, "device": str(clean.device)}, "seconds": result.seconds,
        **summary(result.distances), "not_found": n - len(broken), "mean_of_found": summary(broken)["mean"],
        "anpgd": compared(run.subject, clean, found, margins), "distances": distances,
    }  # fmt: skip


def table(subject: Subject, clean: Tensor, found: dict[str, Found], margins: Tensor) -> list[str]:
    """What to print at the end."""
    n, right, anpgd = len(clean), int(is_right(subject, clean).sum()), compared(subject, clean, found, margins)
    best, attacks = best_known(subject, found)
    low, high = wilson(right, n)

    def row(name: str, figures: dict, *rest: str) -> str:
        return (
            f"{name:22}" + "".join(f"{shown(v):>11}" for v in (figures["mean"], *figures["quartiles"])) + "".join(rest)
        )

    def missing(values: Sequence[float]) -> str:
        return f"{sum(math.isinf(value) for value in values):>11}"

    return [
        f"{subject.path}: {subject.dataset}, {n} test images, on {clean.device}",
        f"clean accuracy {right / n:.2%}   95 % interval [{low:.2%}, {high:.2%}]",
        f"{f'smallest {subject.norm} distance':22}"
        + "".join(f"{t:>11}" for t in ("mean", "25 %", "50 %", "75 %", "not found")),
        *[row(name, summary(r.distances), missing(r.distances), f"   {r.seconds:g} s") for name, r in found.items()],
        row("best known", summary(best), missing(best), f"   of {', '.join(attacks)}"),
        row(
            "AN-PGD",
            anpgd,
            f"{anpgd['at_search_end']:>11}",
            f"   (margins at the search's end, {anpgd['search_end']:.4g})",
        ),
        row(
            "AN-PGD / best known",
            anpgd["ratio"],
            f"{'':11}   over {anpgd['ratio']['n']} images; below 1 in {anpgd['ratio']['below_1']}",
        ),
    ]


def shown(value: float | None) -> str:
    """A figure of the table."""
    return "not found" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    sys.exit(main())

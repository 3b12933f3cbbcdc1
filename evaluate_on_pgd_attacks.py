"""Attack a trained network with repeated white-box PGD: `python evaluate_on_pgd_attacks.py --model PATH`.

The reference's protocol: 100 steps, 10 random restarts, the first half on cross-entropy and the rest on the CW loss. An
image is robust if it is classified right and no restart breaks it.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

import torch
from tqdm import tqdm

from config import EvalConfig, eval_grid, eval_step_size, radius
from errors import UserError, exits_on_user_error
from evaluations import sanity
from evaluations.evaluation import Subject, is_done, load_subject, refuse_to_shrink, result_row, wilson, write_result
from evaluations.repeated_pgd import Attacked, Images, Listener, Protocol, Running, clean_attacked, repeated_pgd
from evaluations.shards import duration
from flags import parse_eval
from hardware.fast_pgd import FastPgd
from hardware.layout import layout_for
from hardware.memory import BatchSize
from losses import cross_entropy, cw_loss
from pgd import PgdFn
from processes.distributed import World, device_of, main_of_process
from records import checkpoint


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate, print and write the result. Returns the exit status."""
    flags = parse_eval(argv)
    with device_of(flags.device, flags.deterministic) as (world, device):
        return evaluate(flags, world.one_a_machine_first(lambda: load_subject(flags, device)), world)


def evaluate(flags: EvalConfig, subject: Subject, world: World) -> int:
    """Of several processes each attacks its share, and the first prints and writes."""
    device = subject.test.labels.device
    flags, radii, notes = world.together(lambda: settle_radii(flags, subject))
    for note in notes + [f"--{name}: {what}" for name, what in subject.overrides.items()]:
        if world.is_first:
            print(note)
    settings = {
        "nb_iter": flags.nb_iter,
        "nb_restart": flags.nb_restart,
        "losses": Counter(name for name, _ in restarts(flags)),
        "eps_iter": [step_size(flags, subject, eps) for eps in radii],
        "precision": flags.precision,
        "overrides": subject.overrides,
    }
    wanted = {"seed": flags.seed, "settings": settings}
    if world.from_first(lambda: flags.resume and is_done(subject, "pgd", wanted, radii)):
        if world.is_first:
            print(f"{subject.result_file('pgd')}: already done")
        return 0
    world.from_first(lambda: refuse_to_shrink(subject, "pgd"))

    started = time.monotonic()
    progress = Progress(flags, subject, radii)
    batch = BatchSize(min(flags.batch_size, len(subject.test)), "--batch_size", tqdm.write)
    clean, found, passes = attack_all(flags, subject, radii, progress, batch, world)
    if not world.is_first:
        return 0
    seconds = round(time.monotonic() - started, 1)

    right = int(clean.robust.sum())
    n = len(subject.test)
    print(
        f"{subject.path}: {subject.dataset}, {n} test images, {subject.norm} PGD, {flags.nb_iter} steps, "
        f"{flags.nb_restart} restarts, {seconds:g} s on {device}"
        + (f", {world.size} processes" if world.size > 1 else "")
    )
    print(f"clean accuracy            {right / n:8.2%}   95 % interval [{_interval(wilson(right, n))}]")
    results = [result_row(eps, state.robust) for eps, state in found.items()]
    for row in results:
        print(
            f"robust accuracy at {row['eps']:<7.5g}{row['robust_acc']:8.2%}   95 % interval [{_interval(row['ci95'])}]"
        )
    averages = average_accuracies(right / n, [row["robust_acc"] for row in results])
    if len(results) > 1:
        print(
            f"AvgAcc {averages['avg_acc']:.2%} (clean and every eps), AvgRobAcc {averages['avg_rob_acc']:.2%} (every eps)"
        )
    at = min(radii, key=lambda eps: abs(eps - subject.training.test_eps))  # where other attacks run by default
    count = sanity.images_for(passes)
    checks = BatchSize(count, "sanity checks", print).run(
        lambda size: sanity.battery(subject, at, found[at].x_adv, found[at].robust, count, batch_size=size)
    )
    for line in sanity.lines(checks):
        print(line)
    settings |= {"device": str(device), "processes": world.size, **batch.as_settings()}
    path = write_result(
        subject,
        "pgd",
        {
            "clean_acc": right / n,
            "clean_ci95": wilson(right, n),
            "seed": flags.seed,
            "settings": settings,
            "seconds": seconds,
            **averages,
            "sanity": sanity.as_json(checks),
            "results": results,
        },
    )
    print(f"written: {path}")
    if flags.save_adv:
        print(f"written: {save_images(subject, found)}")
    progress.path.unlink(missing_ok=True)
    return 0


def average_accuracies(clean: float, robust: Sequence[float]) -> dict[str, float]:
    """AvgAcc, the mean over clean and every radius, and AvgRobAcc, the mean over every radius."""
    return {"avg_acc": fmean([clean, *robust]), "avg_rob_acc": fmean(robust)}


def settle_radii(flags: EvalConfig, subject: Subject) -> tuple[EvalConfig, list[float], list[str]]:
    """The flags with radii in input units, the radii to attack, ascending, and what the user should be told."""
    notes = []

    def settle(value: float, flag: str) -> float:
        settled, said = radius(value, subject.dataset, subject.norm, flag)
        notes.extend(said)
        return settled

    if flags.eps_iter is not None:
        flags = replace(flags, eps_iter=settle(flags.eps_iter, "eps_iter"))
    if flags.eps == ("grid",):
        return flags, list(eval_grid(subject.dataset, subject.norm, subject.training.check_maxeps)), notes
    if flags.eps is not None:
        return flags, sorted({settle(eps, "eps") for eps in flags.eps}), notes
    eps = subject.training.test_eps
    return flags, [eps], [*notes, f"--eps not given: {eps:.5g}, the test radius of its training"]


def step_size(flags: EvalConfig, subject: Subject, eps: float) -> float:
    """Step size of every restart at radius `eps`."""
    return flags.eps_iter or eval_step_size(subject.dataset, subject.norm, eps)


def restarts(flags: EvalConfig) -> list[tuple[str, object]]:
    """(name, loss) of each restart."""
    on_xent = -(-flags.nb_restart // 2)
    return [("xent", cross_entropy)] * on_xent + [("cw", cw_loss)] * (flags.nb_restart - on_xent)


class Progress:
    """What an evaluation has done after its last whole restart, kept beside the model until it is finished."""

    EVERY = 30.0  # seconds

    def __init__(self, flags: EvalConfig, subject: Subject, radii: Sequence[float]) -> None:
        plain = {name: value for name, value in asdict(flags).items() if name not in ("model", "data_root", "resume")}
        test = subject.test
        self.identity = checkpoint.digest(
            [
                plain,
                list(radii),
                [step_size(flags, subject, eps) for eps in radii],
                subject.sha256,
                subject.dataset,
                subject.norm,
                test.images,
                test.labels,
                str(test.labels.device),
                str(torch.__version__),
            ]
        )
        self.path = subject.path.parent / f"partial_pgd_{subject.norm}_{self.identity[:12]}.pt"
        self.saved_at = time.monotonic()

    def load(self) -> tuple[int, dict[float, Attacked]]:
        """Restarts done at the last radius, and the state at each, on the CPU; nothing if there is no such file, or it is damaged or
        of another evaluation."""
        try:
            content = checkpoint.load(self.path, needed={"identity": str, "restarts": int, "states": dict})
        except UserError:
            return 0, {}
        if content["identity"] != self.identity:
            return 0, {}
        return content["restarts"], {eps: Attacked(*state) for eps, state in content["states"].items()}

    def save(self, restarts_done: int, states: dict[float, Attacked]) -> None:
        """Not more often than every `EVERY` seconds.

        :raises UserError: if the folder cannot be written.
        """
        if time.monotonic() - self.saved_at < self.EVERY:
            return
        content = {
            "identity": self.identity,
            "restarts": restarts_done,
            "states": {eps: [state.x_adv.cpu(), state.margin.cpu()] for eps, state in states.items()},
        }
        try:
            checkpoint.save(self.path, content)
            self.saved_at = time.monotonic()
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}): copy the model into a folder of yours, "
                "or make room"
            ) from None


@dataclass
class Reached:
    """How far the attack has come, in whole restarts: less memory or a stop loses no more than a part of one."""

    restarts: int  # at the last radius in `found`
    found: dict[float, Attacked]  # what fell stays fallen
    attacks: int = 0  # on an image, by this process


def attack_all(
    flags: EvalConfig, subject: Subject, radii: Sequence[float], progress: Progress, batch: BatchSize, world: World
) -> tuple[Attacked, dict[float, Attacked], int]:
    """The clean state, the state after all restarts at each radius, ascending, and the number of passes over an image that
    it took. Goes on from where the same evaluation was stopped, and, on one process, in smaller batches if memory does not
    suffice."""
    x, y, _ = subject.test.everything()
    # Several processes go on with the same batches; where memory does not suffice, one attacks its own in parts.
    run = batch.run if world.size == 1 else lambda work: work(batch.asked)
    images = Images(x, y, subject.test.numbers)
    clean = run(lambda size: clean_attacked(subject.model, images, Running(size, world=world)))
    done, states = world.from_first(progress.load)
    reached = Reached(done, {eps: Attacked(*(part.to(x.device) for part in state)) for eps, state in states.items()})
    going_on = bool(reached.found)
    run(lambda size: attack_rest(flags, subject, radii, progress, clean, reached, batch, size, going_on, world))
    batch.used = -world.largest(-batch.used)
    return clean, reached.found, reached.attacks * flags.nb_iter


def attack_rest(
    flags: EvalConfig,
    subject: Subject,
    radii: Sequence[float],
    progress: Progress,
    clean: Attacked,
    reached: Reached,
    batch: BatchSize,
    batch_size: int,
    going_on: bool,
    world: World,
) -> None:
    """Make the restarts that are missing in `reached`, and move it on after each."""
    x, y, _ = subject.test.everything()
    recorded = x.is_cuda and flags.cuda_graphs
    tune = layout_for(x.device, flags.precision, flags.deterministic).tune
    attack = FastPgd(subject.model, flags.precision, rows=batch_size if recorded else None, tune=tune)
    attack = batch.attack(attack) if world.size > 1 else attack
    found = reached.found
    left = list(radii)[max(len(found) - 1, 0) :]
    standing = int((found[max(found)] if found else clean).robust.sum())
    repeats = flags.nb_restart * len(left) - reached.restarts
    if world.is_first:
        work = -(-standing // batch_size // world.size) * batch_size * repeats
        print(forecast(flags, subject, attack, work, batch_size, going_on))
    with tqdm(total=standing * repeats, unit="attack", dynamic_ncols=True, disable=not world.is_first) as bar:
        for later, eps in zip(reversed(range(len(left))), left, strict=True):
            bar.set_description(f"eps {eps:.4g}")

            def on_batch(restart: int, count: int, now_standing: int, later: int = later) -> None:
                nonlocal standing
                bar.total -= (standing - now_standing) * (flags.nb_restart - restart - 1 + later * flags.nb_restart)
                standing = now_standing
                bar.set_postfix_str(f"accuracy so far {standing / len(y):.2%}")
                bar.update(count)
                reached.attacks += count

            def on_restart(restart: int, state: Attacked, eps: float = eps) -> None:
                reached.restarts, found[eps] = restart + 1, Attacked(state.x_adv.clone(), state.margin.clone())
                if world.is_first:
                    progress.save(reached.restarts, found)

            losses = tuple(loss for _, loss in restarts(flags))
            protocol = Protocol(losses, subject.norm, eps, step_size(flags, subject, eps), flags.nb_iter, flags.seed)
            repeated_pgd(
                subject.model,
                Images(x, y, subject.test.numbers),
                protocol,
                found[max(found)] if found else clean,
                Running(batch_size, attack, world),
                Listener(on_batch, on_restart),
                reached.restarts if eps in found else 0,
            )


def forecast(flags: EvalConfig, subject: Subject, attack: PgdFn, work: int, batch_size: int, going_on: bool) -> str:
    """How long `work` attacks on an image take if none falls, by two steps on one batch.

    :raises UserError: if the network has no gradient.
    """
    count = min(batch_size, len(subject.test))
    x, y, _ = subject.test.batch(torch.arange(count))
    seconds = []
    for _ in range(2):  # the first one warms up
        started = time.monotonic()
        try:
            attacked = attack(
                subject.model, x, y, loss_fn=cross_entropy, norm=subject.norm, eps=0.0, step_size=0.0, steps=2
            )
        except RuntimeError as error:
            if "does not require grad" not in str(error):
                raise
            raise UserError(
                f"{subject.path}: no gradient reaches the images through this network: attack it with "
                "evaluate_on_gradient_free_attacks.py"
            ) from None
        attacked.sum().item()
        seconds.append((time.monotonic() - started) / (2 * count))
    return (
        "going on with an evaluation that was stopped; " if going_on else ""
    ) + f"at most about {duration(seconds[-1] * flags.nb_iter * work)}"


def save_images(subject: Subject, found: dict[float, Attacked]) -> Path:
    """Write `adv_pgd_<norm>.pt`: float32 images (N, C, H, W) by radius, labels, image numbers."""
    path = subject.path.parent / f"adv_pgd_{subject.norm}.pt"
    content = {
        "x_adv": {eps: state.x_adv.cpu().contiguous() for eps, state in found.items()},
        "labels": subject.test.labels.cpu(),
        "numbers": subject.test.numbers.cpu(),
        "model_sha256": subject.sha256,
    }
    try:
        checkpoint.save(path, content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}): make room") from None
    return path


def _interval(ci: Sequence[float]) -> str:
    return f"{ci[0]:.2%}, {ci[1]:.2%}"


if __name__ == "__main__":
    sys.exit(main_of_process(main))

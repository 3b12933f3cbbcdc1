"""Repeated PGD of one network at one radius or several, from the flags to the JSON beside it. N images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from errors import UserError
from evaluations import sanity
from evaluations.compare_attacks import NAMES, overestimates
from evaluations.flags import PgdFlags
from evaluations.repeated_pgd import ODI_STEPS, RESTARTS, AttackState, clean_logits, loss_names, repeated_pgd
from evaluations.results import (
    Row,
    accuracy_lines,
    accuracy_of,
    average_accuracies,
    finished,
    require_writable,
    same_eps,
    same_kind,
    stored_row,
)
from evaluations.shards import Keep, Part, Parts, run_shards
from evaluations.subject import Subject
from evaluations.transfer import save_images, saved_images
from hardware.fast_pgd import FastPgd
from hardware.layout import layout_for
from hardware.precision import remark
from losses import cross_entropy, logit_margin
from presets import GRIDS
from processes.distributed import ALONE, World
from records.progress import Teller
from validation import radius

ATTACKS = {"paper": "pgd", "strong": "strong"}  # how a protocol's JSON is named
SHARD = 2000  # images at most
OF_THE_RADIUS = ("eps_iter",)  # the setting in which results at several radii differ


def evaluate(flags: PgdFlags, subject: Subject, teller: Teller, world: World = ALONE) -> None:
    """Attack at each radius that is not done yet, write the rows, and say what was found.

    :raises UserError: if the network has no gradient, or the folder cannot be written.
    """
    name = ATTACKS[flags.protocol]
    if flags.save_adv and flags.protocol != "paper":
        raise UserError("--save_adv: saves the images of --protocol paper, which transfer replays: leave one out")
    stored = world.from_first(lambda: subject.rows(name))
    asked, notes = world.together(lambda: rows_asked(flags, subject, stored))
    for note in [*notes, *filter(None, [remark(subject.device, flags.precision)])]:
        teller.note(note)
    new = [row for row in asked if flags.overwrite or stored_row(stored, row) is None]
    radii = [row["eps"] for row in asked]
    saved = world.from_first(lambda: list(saved_images(subject, radii)) if flags.save_adv else radii)
    missing = [row for row in asked if row in new or row["eps"] not in saved]
    if not missing:
        teller.say(f"{subject.result_file(name)}: already done")
        return
    world.together(lambda: require_writable(subject.path.parent))
    batch_size = min(flags.batch_size or len(subject.test), len(subject.test))
    # Images that are saved must break what their flags say is broken.
    fallen = [fallen_before([] if flags.save_adv else stored, row) for row in missing]
    with attacked(flags, subject, batch_size, missing, fallen, teller, world) as (attack, right, states):
        if not world.is_first:
            return
        found = {row["eps"]: state for row, state in zip(missing, states, strict=True)}
        where = {"device": str(subject.device), "processes": world.size, "batch_size": batch_size}
        rows = [finished(row, right, found[row["eps"]].robust, found[row["eps"]].seconds, **where) for row in new]
        checks: sanity.Findings = {}
        if rows:
            at = min(rows, key=lambda row: abs(row["eps"] - subject.training.test_eps))  # where other attacks run
            settings, state = {**how(at, subject.norm), "loss_fn": cross_entropy}, found[at["eps"]]
            checks = sanity.pgd_battery(subject, attack, settings, flags.seed, batch_size, state)
            at["sanity"] = sanity.as_json(checks)
            subject.add_rows(name, rows, lambda rows: settled(rows, new[0]))
        done = [row for row in (stored_row(subject.rows(name), like) for like in asked) if row is not None]
        written = [*sanity.lines(checks), f"written: {subject.result_file(name)}"] if rows else []
        for line in [*_lines(subject, name, done, world.size), *written, *overestimates(subject)]:
            teller.say(line)
        if flags.save_adv:
            path = save_images(subject, {eps: state.x_adv for eps, state in found.items()}, batch_size)
            teller.say(f"written: {path}")


@contextmanager
def attacked(
    flags: PgdFlags,
    subject: Subject,
    batch_size: int,
    asked: Sequence[Row],
    fallen: Sequence[Tensor],
    teller: Teller,
    world: World,
) -> Iterator[tuple[FastPgd, Tensor, list[AttackState]]]:
    """Every restart at each radius of `asked`, ascending: what fell at a smaller one stays fallen, and `fallen` with it.

    Gives the attack, (N,) bool, classified right without a perturbation, and on the first process the state at each radius.
    At each radius the images are attacked in shards. What is kept is a shard after each restart, until the end of the
    context.
    """
    recorded = subject.device.type == "cuda" and flags.cuda_graphs
    tune = layout_for(subject.device, flags.precision, flags.deterministic).tune
    attack = FastPgd(subject.model, flags.precision, rows=batch_size if recorded else None, tune=tune)
    x, y, _ = subject.test.everything()
    clean = logit_margin(clean_logits(subject.model, x, batch_size), y)
    rounds = -(-len(x) // (SHARD * world.size))
    shards = torch.arange(len(x), device=x.device).split(-(-len(x) // (rounds * world.size)))
    identity = [*asked], batch_size, flags.save_adv, flags.deterministic
    name = ATTACKS[flags.protocol]
    parts = Parts(subject, name, len(shards), world, *identity, rounds=len(asked))  # a piece is a shard at a radius

    def attack_piece(piece: int, keep: Keep) -> None:
        row, rows = asked[piece // len(shards)], shards[piece % len(shards)]
        begun, smaller = parts.known.get(piece), parts.known.get(piece - len(shards))
        if begun:
            state = _as_state(begun, x.device)
        else:
            state = AttackState(x[rows], clean[rows]) if smaller is None else _as_state(smaller, x.device)
            state = state.larger_radius(fallen[piece // len(shards)].to(x.device)[rows])

        def keep_state(state: AttackState) -> None:
            standing = f"eps {row['eps']:.4g}, {int(state.robust.sum())} of {len(rows)} images stand"
            keep({**vars(state), "x_adv": state.x_adv.cpu(), "margin": state.margin.cpu()}, standing)

        try:
            repeated_pgd(
                subject.model,
                x[rows],
                y[rows],
                subject.test.numbers[rows],
                restarts=RESTARTS[flags.protocol](attack, flags.nb_restart, **how(row, subject.norm)),
                eps=row["eps"],
                seed=flags.seed,
                batch_size=batch_size,
                state=state,
                after_restart=keep_state,
            )
        except RuntimeError as error:
            if "does not require grad" not in str(error):
                raise
            raise UserError(
                f"{subject.path}: no gradient reaches the images through this network: attack it with "
                "evaluate_on_gradient_free_attacks.py"
            ) from None

    title = f"{subject.norm} PGD"
    found = run_shards(parts, attack_piece, title, teller, world, unit="restart", times=flags.nb_restart)
    states = []
    for first in range(0, len(found) if world.is_first else 0, len(shards)):
        own = [_as_state(part, x.device) for part in found[first : first + len(shards)]]
        x_adv, margin = torch.cat([state.x_adv for state in own]), torch.cat([state.margin for state in own])
        states.append(AttackState(x_adv, margin, flags.nb_restart, sum(state.seconds for state in own)))
    yield attack, clean < 0, states
    parts.close()


def _as_state(part: Part, device: torch.device) -> AttackState:
    return AttackState(**{**part, "x_adv": part["x_adv"].to(device), "margin": part["margin"].to(device)})


# --- what is asked for, and what is stored of it -------------------------------------------------------------------


def how(row: Row, norm: str) -> dict[str, Any]:
    """How a restart attacks, as `pgd` is told it, but for the loss."""
    steps, step_size = row["settings"]["nb_iter"], row["settings"]["eps_iter"]
    return {"norm": norm, "eps": row["eps"], "step_size": step_size, "steps": steps}


def rows_asked(flags: PgdFlags, subject: Subject, stored: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """For each radius asked for, ascending, what its row says before the attack; and what the user should be told.

    A radius that is stored but for rounding is the stored one, so that its random starts are the same.

    :raises UserError: for a radius that no image in [0, 1] can use.
    """
    notes: list[str] = []

    def settle(value: float, flag: str) -> float:
        settled, said = radius(value, subject.dataset, subject.norm, flag)
        notes.extend(said)
        return settled

    step_size = None if flags.eps_iter is None else settle(flags.eps_iter, "eps_iter")

    def row(eps: float) -> Row:
        settings = {"nb_iter": flags.nb_iter, "nb_restart": flags.nb_restart, "precision": flags.precision}
        if flags.protocol == "paper":
            settings["losses"] = dict(Counter(loss_names(flags.nb_restart)))
            usual = eps / 40 if (subject.dataset, subject.norm) == ("mnist", "Linf") else eps / 4  # the reference's
            settings["eps_iter"] = step_size or usual
        else:
            settings |= {"odi_steps": ODI_STEPS, "eps_iter": step_size or eps / 3}
        return subject.row(flags.seed, settings, eps)

    if flags.eps is None:
        radii = [subject.training.test_eps]
        notes.append(f"--eps not given: {radii[0]:.5g}, the test radius of its training")
    elif flags.eps == ("grid",):  # type: ignore[comparison-overlap]  # a word that the flag lets through
        six = [round(subject.training.check_maxeps * k / 6, 12) for k in range(1, 7)]
        radii = list(GRIDS.get((subject.dataset, subject.norm), six))  # the paper's, for other data sets up to d_max
    else:
        radii = [settle(eps, "eps") for eps in flags.eps]
    rows: list[Row] = []
    for eps in sorted(radii):
        if not rows or not same_eps(eps, rows[-1]["eps"]):
            same = stored_row(stored, row(eps))
            rows.append(row(eps if same is None else same["eps"]))
    return rows, notes


def fallen_before(rows: Sequence[Row], like: Row) -> Tensor:
    """(N,) bool on the CPU: what rows of the same protocol say has fallen at a smaller radius than that of `like`."""
    fallen = torch.zeros(like["n"], dtype=torch.bool)
    for row in rows:
        smaller = row["eps"] < like["eps"] and not same_eps(row["eps"], like["eps"])
        if smaller and same_kind(row, like, apart_from=OF_THE_RADIUS):
            fallen |= torch.tensor([flag == "0" for flag in row["flags"]])
    return fallen


def settled(rows: list[Row], like: Row) -> list[Row]:
    """What fell at a smaller radius is fallen in the rows of the protocol of `like` at larger ones, whichever came first."""
    agreed = []
    for row in rows:
        if same_kind(row, like, apart_from=OF_THE_RADIUS):
            fallen = fallen_before(rows, {**like, "eps": row["eps"]}).tolist()
            flags = "".join("0" if gone else flag for flag, gone in zip(row["flags"], fallen, strict=True))
            row = row if flags == row["flags"] else {**row, **accuracy_of(flags)}
        agreed.append(row)
    return agreed


# --- what is written and said --------------------------------------------------------------------------------------


def _lines(subject: Subject, name: str, rows: Sequence[Row], processes: int) -> list[str]:
    """What to say of these rows."""
    settings, seconds = rows[-1]["settings"], sum(row.get("seconds", 0) for row in rows)
    said = [
        f"{subject.path}: {subject.dataset}, {subject.images_named}, {subject.norm} {NAMES[name]}, "
        f"{settings['nb_iter']} steps, {settings['nb_restart']} restarts, {seconds:.1f} s on {settings['device']}"
        + (f", {processes} processes" if processes > 1 else ""),
        *accuracy_lines(rows),
    ]
    if len(rows) > 1:
        averages = average_accuracies(rows[-1]["clean_acc"], [row["robust_acc"] for row in rows])
        mean, robust = averages["avg_acc"], averages["avg_rob_acc"]
        said.append(f"AvgAcc {mean:.2%} (clean and every eps), AvgRobAcc {robust:.2%} (every eps)")
    return said

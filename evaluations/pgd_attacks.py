"""Repeated PGD of one network at one radius or several, from the flags to the JSON beside it. N images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from errors import UserError
from evaluations import sanity
from evaluations.compare_attacks import NAMES, overestimates
from evaluations.flags import PgdFlags
from evaluations.repeated_pgd import RESTARTS, AttackState, clean_logits, repeated_pgd, settings_of, skip_below_of
from evaluations.results import Row, accuracy_lines, average_accuracies, finished, joined_checks, settled, stored_row
from evaluations.shards import Part, run_shards
from evaluations.subject import Subject
from evaluations.transfer import save_images, saved_images
from hardware.fast_pgd import FastPgd
from hardware.layout import layout_for
from hardware.precision import remark
from losses import cross_entropy, logit_margin
from processes.distributed import ALONE, World
from records.progress import Teller
from utils import radius_text
from validation import radius

ATTACKS = {"paper": "pgd", "strong": "strong"}  # how a protocol's JSON is named
SHARD = 2000  # images at most


def evaluate(flags: PgdFlags, subject: Subject, teller: Teller, world: World = ALONE) -> None:
    """Attack at each radius that is not done yet, write the rows, and say what was found.

    What fell at a smaller radius stays fallen. At each radius the images are attacked in shards, and a shard is kept
    after each restart until the result is written.

    :raises UserError: if the network has no gradient, or the folder cannot be written.
    """
    name = ATTACKS[flags.protocol]
    if flags.save_adv and flags.protocol != "paper":
        raise UserError("--save_adv: saves the images of --protocol paper, which transfer replays: leave one out")
    stored = world.from_first(lambda: subject.rows(name))
    asked, notes = world.together(lambda: rows_asked(flags, subject, stored))
    teller.note(*notes, *filter(None, [remark(subject.device, flags.precision)]))
    new = [row for row in asked if flags.overwrite or stored_row(stored, row) is None]
    radii = [row["eps"] for row in asked]
    saved = world.from_first(lambda: list(saved_images(subject, radii)) if flags.save_adv else radii)
    missing = [row for row in asked if row in new or row["eps"] not in saved]
    if not missing:
        teller.say(f"{subject.result_file(name)}: already done")
        teller.say(*_lines(subject, name, asked, stored), *overestimates(subject))
        return
    batch_size = min(flags.batch_size or len(subject.test), len(subject.test))
    tune = layout_for(subject.device, flags.precision, flags.deterministic).tune
    recorded = subject.device.type == "cuda" and flags.cuda_graphs
    attack = FastPgd(subject.model, flags.precision, rows=batch_size if recorded else None, tune=tune)
    x, y, _ = subject.test.everything()
    clean = logit_margin(clean_logits(subject.model, x, batch_size), y)
    rounds = -(-len(x) // (SHARD * world.size))
    shards = torch.arange(len(x), device=x.device).split(-(-len(x) // (rounds * world.size)))
    count = len(shards)

    def restart(piece: int, known: Mapping[int, Part]) -> Part:
        """One more, of a shard at a radius."""
        row, rows = missing[piece // count], shards[piece % count]
        before = known.get(piece) or known.get(piece - count)  # at this radius, or at the next smaller one
        state = _state_of([before], x.device) if before else AttackState(x[rows], clean[rows])
        if piece not in known:
            state.restart = 0
        restarts = RESTARTS[flags.protocol](attack, flags.restarts, **how(row, subject.norm))
        given = subject.model, x[rows], y[rows], subject.test.numbers[rows]
        more: dict[str, Any] = {"eps": row["eps"], "seed": flags.seed, "batch_size": batch_size}
        try:
            skip_below = skip_below_of(flags.protocol, clean[rows])
            repeated_pgd(*given, restarts=restarts[: state.restart + 1], **more, state=state, skip_below=skip_below)
        except RuntimeError as error:
            if "does not require grad" not in str(error):
                raise
            raise UserError(
                f"{subject.path}: no gradient reaches the images through this network: attack it with "
                "evaluate_on_gradient_free_attacks.py"
            ) from None
        return {"x_adv": state.x_adv.cpu(), "margin": state.margin.cpu(), "restart": state.restart}

    def standing(piece: int, part: Part) -> str:
        robust = part["margin"] < 0
        return f"eps {radius_text(missing[piece // count]['eps'])}, {int(robust.sum())} of {len(robust)} images stand"

    identity = [missing, batch_size, flags.save_adv, flags.deterministic]
    how_often: dict[str, Any] = {"rounds": len(missing), "times": flags.restarts}
    with run_shards(restart, count, subject, name, identity, teller, world, **how_often, shown=standing) as found:
        if not world.is_first:
            return
        parts = {row["eps"]: found[k * count : (k + 1) * count] for k, row in enumerate(missing)}
        states = {eps: _state_of(of_radius, x.device) for eps, of_radius in parts.items()}
        where = {"device": str(subject.device), "processes": world.size, "batch_size": batch_size}
        rows, written = [], []
        for row in new:
            seconds = sum(part["seconds"] for part in parts[row["eps"]])
            rows.append(finished(row, clean < 0, states[row["eps"]].robust, seconds, **where))
        if rows:
            at = min(rows, key=lambda row: abs(row["eps"] - subject.training.test_eps))  # where other attacks run
            settings, state = {**how(at, subject.norm), "loss_fn": cross_entropy}, states[at["eps"]]
            at["sanity"] = sanity.pgd_battery(subject, attack, settings, flags.seed, batch_size, state)
            subject.add_rows(name, rows, lambda rows: settled(rows, new[0]))
            written = [f"written: {subject.result_file(name)}"]
        teller.say(*_lines(subject, name, asked, subject.rows(name)), *written, *overestimates(subject))
        if flags.save_adv:
            path = save_images(subject, {eps: state.x_adv for eps, state in states.items()}, batch_size)
            teller.say(f"written: {path}")


def _state_of(parts: Sequence[Part], device: torch.device) -> AttackState:
    """Of some shards together."""
    x_adv, margin = (torch.cat([part[name] for part in parts]).to(device) for name in ("x_adv", "margin"))
    return AttackState(x_adv, margin, parts[0]["restart"])


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
    radii, notes = subject.radii(flags.eps)
    step_size = None
    if flags.eps_iter is not None:
        step_size, said = radius(flags.eps_iter, subject.dataset, subject.norm, "eps_iter")
        notes = [*said, *notes]

    def row(eps: float) -> Row:
        settings = {"nb_iter": flags.nb_iter, "nb_restart": flags.restarts, "precision": flags.precision}
        settings |= settings_of(flags.protocol, flags.restarts)
        of_reference = 40 if (subject.dataset, subject.norm) == ("mnist", "Linf") else 4
        # Few steps cross the ball too.
        share = 3 if flags.protocol == "strong" else min(of_reference, flags.nb_iter / 2.5)
        return subject.row(flags.seed, {**settings, "eps_iter": step_size or eps / share}, eps)

    return [row((stored_row(stored, like) or like)["eps"]) for like in map(row, radii)], notes


# --- what is written and said --------------------------------------------------------------------------------------


def _lines(subject: Subject, name: str, asked: Sequence[Row], stored: Sequence[Row]) -> list[str]:
    """What to say of those of the stored rows that were asked for."""
    rows = [row for row in (stored_row(stored, like) for like in asked) if row is not None]
    settings, seconds = rows[-1]["settings"], sum(row.get("seconds", 0) for row in rows)
    processes = settings.get("processes", 1)
    said = [
        f"{subject.path}: {subject.dataset}, {subject.images_named}, {subject.norm} {NAMES[name]}, "
        f"{settings['nb_iter']} steps, {settings['nb_restart']} restarts, {seconds:.1f} s on {settings.get('device', '–')}"
        + (f", {processes} processes" if processes > 1 else ""),
        *accuracy_lines(rows),
    ]
    if len(rows) > 1:
        averages = average_accuracies(rows[-1]["clean_acc"], [row["robust_acc"] for row in rows])
        mean, robust = averages["avg_acc"], averages["avg_rob_acc"]
        said.append(f"AvgAcc {mean:.2%} (clean and every eps), AvgRobAcc {robust:.2%} (every eps)")
    if checks := joined_checks(rows):
        said += sanity.lines(checks)
    return said

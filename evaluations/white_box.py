"""Repeated white-box PGD of one network, from the flags to the JSON beside it. N test images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from evaluations import sanity
from evaluations.accuracy import accuracy_of, as_flags, clean_accuracy, interval
from evaluations.adversarial_images import save_images, saved_images
from evaluations.common_flags import overrides_said
from evaluations.flags import EvalConfig
from evaluations.others import overestimates
from evaluations.pgd_partial import Partial
from evaluations.repeated_pgd import Running
from evaluations.results import add_rows, require_writable
from evaluations.rows import Row, average_accuracies
from evaluations.subject import Subject
from evaluations.white_box_attack import Attack, Reached
from evaluations.white_box_plan import OF_THE_RADIUS, Plan, make_plan
from hardware.memory import BatchSize
from processes.deadline import NEVER, Deadline
from processes.distributed import ALONE, World
from records.progress import Teller, tell


def evaluate(
    flags: EvalConfig, subject: Subject, teller: Teller, world: World = ALONE, deadline: Deadline = NEVER
) -> bool:
    """Of several processes each attacks its share, and the first prints and writes. False: the deadline stopped it.

    :raises UserError: if the network has no gradient, or the folder cannot be written.
    """
    plan, notes = world.together(lambda: make_plan(flags, subject))
    for note in notes + overrides_said(subject):
        teller.note(note)
    stored = world.from_first(lambda: subject.rows("pgd"))
    missing = world.from_first(lambda: missing_radii(plan, stored))
    if not missing:
        teller.say(f"{subject.result_file('pgd')}: already done")
        return True
    require_writable(subject.path.parent)
    partial = Partial(plan, missing)
    batch = BatchSize(min(flags.batch_size, len(subject.test)), "--batch_size", tell)
    # Images that are saved must break what their flags say is broken.
    attack = Attack(plan, missing, () if flags.save_adv else stored, partial, batch, world, deadline, teller)
    reached, whole = attack.run()
    if not whole or deadline.over("sanity checks"):
        attack.keep(reached)
        return False
    if world.is_first:
        write(plan, reached, batch, world.size, teller)
        partial.path.unlink(missing_ok=True)
    return True


def missing_radii(plan: Plan, stored: Sequence[Row]) -> list[float]:
    """The radii to attack: those without a row of this very evaluation, or without the images that are wanted."""
    if plan.flags.overwrite:
        return list(plan.radii)
    images = saved_images(plan.subject, plan.radii) if plan.flags.save_adv else dict.fromkeys(plan.radii)
    return [eps for eps in plan.radii if plan.stored(stored, eps) is None or eps not in images]


def write(plan: Plan, reached: Reached, batch: BatchSize, processes: int, teller: Teller) -> None:
    """Check, write and say what was found."""
    subject = plan.subject
    rows = [make_row(plan, reached, eps, batch, processes) for eps in reached.courses]
    at = min(reached.courses, key=lambda eps: abs(eps - subject.training.test_eps))  # where other attacks run
    checks = check(plan, reached, at)
    for row in rows:
        row |= {"sanity": sanity.as_json(checks)} if row["eps"] == at else {}
    add_rows(subject.result_file("pgd"), subject.head("pgd"), rows, lambda rows: settled(plan, rows))
    stored = subject.rows("pgd")
    found = [row for row in (plan.stored(stored, eps) for eps in plan.radii) if row]
    for line in lines(plan, found, rows[0], processes):
        teller.say(line)
    for line in sanity.lines(checks):
        teller.say(line)
    for line in [f"written: {subject.result_file('pgd')}", *overestimates(subject)]:
        teller.say(line)
    if plan.flags.save_adv:
        teller.say(
            f"written: {save_images(subject, {eps: course.found.x_adv for eps, course in reached.courses.items()}, batch)}"
        )


def check(plan: Plan, reached: Reached, eps: float) -> dict[str, sanity.Finding]:
    """The sanity battery on what was found at one radius."""
    run, found = reached.running or Running(1), reached.courses[eps].found
    return BatchSize(run.batch_size, "sanity checks", tell).run(
        lambda size: sanity.pgd_battery(plan.subject, plan.protocol(eps), run._replace(batch_size=size), found)
    )


def make_row(plan: Plan, reached: Reached, eps: float, batch: BatchSize, processes: int) -> Row:
    """The result at one radius."""
    subject = plan.subject
    where = {"device": str(subject.test.labels.device), "processes": processes, **batch.as_settings()}
    return {
        "eps": eps,
        "n": len(subject.test),
        "split": subject.split,
        "images": subject.images,
        "seed": plan.flags.seed,
        **clean_accuracy(reached.clean.robust),
        **accuracy_of(as_flags(reached.courses[eps].found.robust)),
        "settings": plan.settings(eps) | where,
        "seconds": round(reached.courses[eps].seconds, 1),
    }


def settled(plan: Plan, rows: list[Row]) -> list[Row]:
    """What fell at a smaller radius is fallen in the rows of the same protocol at larger ones, whichever came first."""
    agreed = []
    for row in rows:
        if "flags" in row and plan.kind(row["eps"]).covers(row, apart_from=OF_THE_RADIUS):
            flags = _without(row["flags"], plan.fallen(rows, row["eps"]))
            row = {**row, **accuracy_of(flags)} if flags != row["flags"] else row
        agreed.append(row)
    return agreed


def _without(flags: str, fallen: Tensor) -> str:
    return "".join("0" if gone else flag for flag, gone in zip(flags, fallen.tolist(), strict=True))


def lines(plan: Plan, rows: Sequence[Row], new: Row, processes: int) -> list[str]:
    """What to say of the radii asked for."""
    subject, flags = plan.subject, plan.flags
    seconds = sum(row.get("seconds", 0) for row in rows)
    said = [
        f"{subject.path}: {subject.dataset}, {subject.images_named}, {subject.norm} PGD, {flags.nb_iter} steps, "
        f"{flags.nb_restart} restarts, {seconds:.1f} s on {new['settings']['device']}"
        + (f", {processes} processes" if processes > 1 else ""),
        f"clean accuracy            {new['clean_acc']:8.2%}   {interval(new['clean_ci95'])}",
    ]
    for row in rows:
        said.append(f"robust accuracy at {row['eps']:<7.5g}{row['robust_acc']:8.2%}   {interval(row['ci95'])}")
    if len(rows) > 1:
        averages = average_accuracies(new["clean_acc"], [row["robust_acc"] for row in rows])
        said.append(
            f"AvgAcc {averages['avg_acc']:.2%} (clean and every eps), AvgRobAcc {averages['avg_rob_acc']:.2%} (every eps)"
        )
    return said

"""What every evaluation shares: how it is started, worked through in shards, stopped and gone on with.

A shard is some of the images. Of several processes each takes every so many-th, and the first one puts together what all
have found. What is done lies beside the model, piece by piece, until the result is written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch

from errors import UserError
from evaluations.compare_attacks import NAMES
from evaluations.flags import Flags
from evaluations.results import Row, require_writable, stored_row
from evaluations.subject import Subject, load_subject
from processes.distributed import World, device_of
from records import checkpoint
from records.commands import command
from records.progress import Teller, duration

Part = dict[str, Any]  # what was found in a piece of work: tensors and plain values


def run_evaluation(
    flags: Flags,
    evaluate: Callable[[Flags, Subject, Teller, World], None],
    *,
    precision: str = "fp32",
    default_size: Callable[[Subject], int | None] = lambda subject: None,
) -> int:
    """Load the network with its images, evaluate it, and say what to run next. Returns the exit status.

    Of several processes each works, and the first one prints and writes. default_size: how many images at most where
    `--test_size` is not given.
    """

    def load() -> Subject:
        subject = load_subject(flags, device, precision)
        most = default_size(subject)
        if flags.test_size is None and most is not None and most < len(subject.test):
            return load_subject(replace(flags, test_size=most), device, precision)
        return subject

    with device_of(flags.device, flags.deterministic) as (world, device):
        teller = Teller(world.is_first, flags.quiet)
        subject = world.one_a_machine_first(load)
        teller.note(*subject.notes, *(f"--{name}: {what}" for name, what in subject.overrides.items()))
        evaluate(flags, subject, teller, world)
        # The attack whose figure should stand beside is run next, else the page of all figures.
        names = "dataset", "norm", "network", "standardise", "data_root", "image_size"
        named = {f"--{name}": str(value) for name in names if (value := getattr(flags, name)) is not None}
        given = [word for pair in named.items() for word in pair]
        for attack in ("pgd_attacks", "autoattack"):
            if not subject.result_file(attack.removesuffix("_attacks")).exists():
                teller.say(f"next: {command(f'evaluate_on_{attack}.py', '--model', flags.model, *given)}")
                break
        else:
            teller.say(f"look at it with: {command('reports/make_report.py', str(subject.path.parent))}")
    return 0


def already_done(subject: Subject, attack: str, like: Row, overwrite: bool, teller: Teller, world: World) -> Row | None:
    """The row of this very evaluation where it is stored and stays; says that it is."""
    done = world.from_first(lambda: None if overwrite else stored_row(subject.rows(attack), like))
    if done:
        teller.say(f"{subject.result_file(attack)}: already done")
    return done


@contextmanager
def run_shards(
    attack: Callable[[int, Mapping[int, Part]], Part],
    shards: int,
    subject: Subject,
    name: str,
    identity: Sequence[object],
    teller: Teller,
    world: World,
    *,
    rounds: int = 1,
    times: int = 1,
    shown: Callable[[int, Part], str] = lambda piece, part: "",
) -> Iterator[list[Part]]:
    """Attack piece after piece, of several processes each its own; give what was found in each, in order, to the first one.

    A piece is a shard in a round: the second round of 5 shards begins at piece 5. attack: number of a piece, and what is
    known by piece -> what is known of that piece after one more attack. times: how often a piece is attacked; where it is
    more than once, `restart` says how often it was. identity: everything that the result depends on, beside the network and
    its images. shown: beside the bar. What is known, with the `seconds` it took, is kept beside the model until the end of
    the context, in which the first process writes the result.

    :raises UserError: if the folder cannot be written.
    """
    folder = subject.path.parent
    world.together(lambda: require_writable(folder))
    about = [subject.head(name), subject.split, subject.images, subject.overrides, str(subject.device)]
    key = checkpoint.digest([*about, str(torch.__version__), shards, *identity])[:24]
    own = (piece for piece in range(rounds * shards) if piece % shards % world.size == world.rank)
    files = {piece: folder / f"partial_{name}_{subject.norm}_{key}_{piece}.pt" for piece in own}
    known, collect = dict[int, Part](), world.collector()
    for piece, file in files.items():
        with suppress(UserError):  # there is none, or it is damaged
            known[piece] = checkpoint.load(file, needed={"seconds": float})

    def left(piece: int) -> int:
        return times - int(known[piece].get("restart", times)) if piece in known else times

    if known:
        begun = f"{len(known)} of {len(files)} shards are begun"
        teller.note(f"{NAMES[name]}: going on with an evaluation that was stopped; {begun}")
    total, started, unit = sum(map(left, files)), time.monotonic(), "shard" if times == 1 else "restart"
    with teller.bar(total, unit) as bar:
        for piece, file in files.items():
            while left(piece):
                begin, before = time.monotonic(), known.get(piece, {"seconds": 0.0})["seconds"]
                part = attack(piece, known)
                known[piece] = {**part, "seconds": before + time.monotonic() - begin}
                checkpoint.save(file, known[piece])
                bar.set_postfix_str(shown(piece, part), refresh=False)
                bar.update(1)
                if (remaining := sum(map(left, files))) and remaining == total - 1:
                    seconds = (time.monotonic() - started) * remaining
                    teller.note(f"{NAMES[name]}: at most about {duration(seconds)} for the {remaining} {unit}s left")
    found = collect(known)
    yield [found[piece] for piece in sorted(found)] if world.is_first else []
    collect({})  # waits for the first process's result
    for file in files.values():
        file.unlink(missing_ok=True)

"""Attack a trained network with repeated white-box PGD: `python evaluate_on_pgd_attacks.py --model PATH`.

The reference's protocol: 100 steps, 10 random restarts, the first half on cross-entropy and the rest on the CW loss. An
image is robust if it is classified right and no restart breaks it. The attack is evaluations/repeated_pgd.py.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from errors import exits_on_user_error
from evaluations.common_flags import line_that_goes_on, what_next
from evaluations.flags import parse_eval
from evaluations.subject import load_subject
from evaluations.white_box import evaluate
from processes.deadline import AGAIN, Deadline, since_start
from processes.distributed import device_of, main_of_process
from records.progress import Teller


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate, print and write the result. Returns the exit status."""
    flags = parse_eval(argv)
    with device_of(flags.device, flags.deterministic) as (world, device):
        teller = Teller(world.is_first, flags.quiet)
        deadline = Deadline(flags.max_minutes, since_start(), world.largest, world.is_first)
        subject = world.one_a_machine_first(lambda: load_subject(flags, device, flags.precision))
        if evaluate(flags, subject, teller, world, deadline):
            teller.say(what_next(flags, subject))
            return 0
        teller.say(line_that_goes_on("evaluate_on_pgd_attacks.py", argv, flags.max_minutes, world))
        return AGAIN


if __name__ == "__main__":
    sys.exit(main_of_process(main))

"""Attack a trained network with repeated white-box PGD: `python evaluate_on_pgd_attacks.py --model PATH`.

The reference's protocol: 100 steps, 10 random restarts, the first half on cross-entropy and the rest on the CW loss. An
image is robust if it is classified right and no restart breaks it. The attack is evaluations/repeated_pgd.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # as `python -I` does not

from evaluations.flags import PgdFlags, parse_flags
from flags import answers_help

answers_help(__name__, lambda: parse_flags(PgdFlags))

from collections.abc import Sequence

from errors import exits_on_user_error
from evaluations.pgd_attacks import evaluate
from evaluations.shards import run_evaluation
from processes.distributed import main_of_process


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate, print and write the result. Returns the exit status."""
    flags = parse_flags(PgdFlags, argv)
    return run_evaluation(flags, evaluate, precision=flags.precision)


if __name__ == "__main__":
    sys.exit(main_of_process(main))

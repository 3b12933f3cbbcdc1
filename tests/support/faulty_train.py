"""train.py, for torchrun, with one process that dies or raises: `faulty_train.py PLACE RANK KIND COUNT TRAIN_FLAGS...`.

PLACE attack, save or check; KIND kill or raise. Only in the first of torchrun's attempts.
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import check
import train
from hardware import fast_pgd
from processes.distributed import main_of_process
from records import checkpoint

OWNERS = {
    "attack": (fast_pgd.FastPgd, "__call__"),
    "save": (checkpoint, "save"),
    "check": (check, "check_batch"),
}


def inject(place, rank, kind, count):
    if os.environ["TORCHELASTIC_RESTART_COUNT"] != "0" or int(os.environ["RANK"]) != rank:
        return
    owner, name = OWNERS[place]
    original, left = getattr(owner, name), count

    def faulty(*args, **kwargs):
        nonlocal left
        left -= 1
        if left == 0 and kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if left == 0 and kind == "raise":
            raise RuntimeError(f"injected in {place}")
        return original(*args, **kwargs)

    setattr(owner, name, faulty)


if __name__ == "__main__":
    place, rank, kind, count, *argv = sys.argv[1:]
    inject(place, int(rank), kind, int(count))
    sys.exit(main_of_process(lambda: train.main(argv)))

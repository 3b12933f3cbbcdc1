"""train.py, for torchrun, with one process that dies or raises: `faulty_train.py PLACE RANK KIND COUNT TRAIN_FLAGS...`.

PLACE forward, attack, save or check; KIND kill, raise, or hang until SIGTERM. Only in the first of torchrun's attempts.
"""

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import check
import train
import trainer
from hardware import fast_pgd
from processes import replica
from processes.distributed import main_of_process
from records import checkpoint

OWNERS = {
    "forward": (replica.Replica, "__call__"),
    "attack": (fast_pgd.FastPgd, "__call__"),
    "save": (checkpoint, "save"),
    "check": (check, "check_batch"),
    "step": (trainer.Trainer, "train_step"),
}


def inject(place, rank, kind, count):
    if os.environ["TORCHELASTIC_RESTART_COUNT"] != "0" or int(os.environ["RANK"]) != rank:
        return
    owner, name = OWNERS[place]
    original, left = getattr(owner, name), count

    def faulty(*args, **kwargs):
        nonlocal left
        left -= 1
        if left == 0:
            print(f"fault at {time.time()}", flush=True)
        if left == 0 and kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if left == 0 and kind == "raise":
            raise RuntimeError(f"injected in {place}")
        if left == 0 and kind == "hang":
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
            time.sleep(600)
        return original(*args, **kwargs)

    setattr(owner, name, faulty)


if __name__ == "__main__":
    place, rank, kind, count, *argv = sys.argv[1:]
    inject(place, int(rank), kind, int(count))
    sys.exit(main_of_process(lambda: train.main(argv)))

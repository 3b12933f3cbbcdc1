"""train.py, for torchrun, with one process that dies or raises: `faulty_train.py PLACE RANK FAULT COUNT TRAIN_FLAGS...`.

See `ranks.fail_at`. Only in the first of torchrun's attempts.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import ranks
import train
from processes.distributed import main_of_process

if __name__ == "__main__":
    place, rank, fault, count, *argv = sys.argv[1:]
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["RANK"] == rank:
        ranks.fail_at(place, int(count), fault)
    sys.exit(main_of_process(lambda: train.main(argv)))

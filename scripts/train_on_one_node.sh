#!/usr/bin/env bash
# One training run on several devices of this machine, the same flags as train.py's; started again it goes on.
#   bash scripts/train_on_one_node.sh --dataset cifar10 --norm Linf --hinge_maxeps 32/255        every GPU
#   PROCESSES=2 bash scripts/train_on_one_node.sh --dataset digits --norm Linf --hinge_maxeps 0.3 --device cpu
# PROCESSES must be given where there is no GPU. A process that dies is started again, three times at most, and the run goes on from its last state.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"

python -m torch.distributed.run --standalone --nproc_per_node="${PROCESSES:-gpu}" --max-restarts="${RESTARTS:-3}" "$root/train.py" --resume "$@"

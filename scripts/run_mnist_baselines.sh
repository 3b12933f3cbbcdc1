#!/usr/bin/env bash
# The baselines on MNIST: standard training, PGD, PGDLS and TRADES.
#   bash scripts/run_mnist_baselines.sh                    every row, one after the other
#   bash scripts/run_mnist_baselines.sh mnist-Linf-STD-sd0   one row, or several
#   bash scripts/run_mnist_baselines.sh --max_steps 500    further arguments go to every train.py
# Started again, it skips what is finished and goes on with what is not.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

train_rows "$@" <<'ROWS'
mnist-Linf-STD-sd0         --dataset mnist --norm Linf --method std
mnist-Linf-PGD-0.3-sd0     --dataset mnist --norm Linf --method pgd --train_eps 0.3
mnist-Linf-PGDLS-0.3-sd0   --dataset mnist --norm Linf --method pgdls --train_eps 0.3
mnist-Linf-PGDLS-0.45-sd0  --dataset mnist --norm Linf --method pgdls --train_eps 0.45
mnist-Linf-TRADES-0.3-sd0  --dataset mnist --norm Linf --method trades --train_eps 0.3
mnist-L2-STD-sd0           --dataset mnist --norm L2 --method std
mnist-L2-PGD-1.0-sd0       --dataset mnist --norm L2 --method pgd --train_eps 1.0
mnist-L2-PGD-2.0-sd0       --dataset mnist --norm L2 --method pgd --train_eps 2.0
mnist-L2-PGD-3.0-sd0       --dataset mnist --norm L2 --method pgd --train_eps 3.0
mnist-L2-PGD-4.0-sd0       --dataset mnist --norm L2 --method pgd --train_eps 4.0
mnist-L2-PGDLS-1.0-sd0     --dataset mnist --norm L2 --method pgdls --train_eps 1.0
mnist-L2-PGDLS-2.0-sd0     --dataset mnist --norm L2 --method pgdls --train_eps 2.0
mnist-L2-PGDLS-3.0-sd0     --dataset mnist --norm L2 --method pgdls --train_eps 3.0
mnist-L2-PGDLS-4.0-sd0     --dataset mnist --norm L2 --method pgdls --train_eps 4.0
mnist-L2-TRADES-2.0-sd0    --dataset mnist --norm L2 --method trades --train_eps 2.0
ROWS

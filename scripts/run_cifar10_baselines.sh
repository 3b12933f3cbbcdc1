#!/usr/bin/env bash
# The baselines on CIFAR-10: standard training, PGD, PGDLS and TRADES.
#   bash scripts/run_cifar10_baselines.sh                    every row, one after the other
#   bash scripts/run_cifar10_baselines.sh cifar10-Linf-STD-sd0   one row, or several
#   bash scripts/run_cifar10_baselines.sh --max_steps 500    further arguments go to every train.py
# Started again, it skips what is finished and goes on with what is not.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

train_rows "$@" <<'ROWS'
cifar10-Linf-STD-sd0       --dataset cifar10 --norm Linf --method std
cifar10-Linf-PGD-8-sd0     --dataset cifar10 --norm Linf --method pgd --train_eps 8/255
cifar10-Linf-PGD-16-sd0    --dataset cifar10 --norm Linf --method pgd --train_eps 16/255
cifar10-Linf-PGD-24-sd0    --dataset cifar10 --norm Linf --method pgd --train_eps 24/255
cifar10-Linf-PGDLS-8-sd0   --dataset cifar10 --norm Linf --method pgdls --train_eps 8/255
cifar10-Linf-PGDLS-16-sd0  --dataset cifar10 --norm Linf --method pgdls --train_eps 16/255
cifar10-Linf-PGDLS-24-sd0  --dataset cifar10 --norm Linf --method pgdls --train_eps 24/255
cifar10-Linf-TRADES-8-sd0  --dataset cifar10 --norm Linf --method trades --train_eps 8/255
cifar10-L2-STD-sd0         --dataset cifar10 --norm L2 --method std
cifar10-L2-PGD-0.5-sd0     --dataset cifar10 --norm L2 --method pgd --train_eps 0.5
cifar10-L2-PGD-1.0-sd0     --dataset cifar10 --norm L2 --method pgd --train_eps 1.0
cifar10-L2-PGD-1.5-sd0     --dataset cifar10 --norm L2 --method pgd --train_eps 1.5
cifar10-L2-PGD-2.0-sd0     --dataset cifar10 --norm L2 --method pgd --train_eps 2.0
cifar10-L2-PGD-2.5-sd0     --dataset cifar10 --norm L2 --method pgd --train_eps 2.5
cifar10-L2-PGDLS-0.5-sd0   --dataset cifar10 --norm L2 --method pgdls --train_eps 0.5
cifar10-L2-PGDLS-1.0-sd0   --dataset cifar10 --norm L2 --method pgdls --train_eps 1.0
cifar10-L2-PGDLS-1.5-sd0   --dataset cifar10 --norm L2 --method pgdls --train_eps 1.5
cifar10-L2-PGDLS-2.0-sd0   --dataset cifar10 --norm L2 --method pgdls --train_eps 2.0
cifar10-L2-PGDLS-2.5-sd0   --dataset cifar10 --norm L2 --method pgdls --train_eps 2.5
cifar10-L2-TRADES-1.0-sd0  --dataset cifar10 --norm L2 --method trades --train_eps 1.0
ROWS

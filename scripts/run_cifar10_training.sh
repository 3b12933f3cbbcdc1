#!/usr/bin/env bash
# The paper's 12 MMA and OMMA runs on CIFAR-10.
#   bash scripts/run_cifar10_training.sh                    every row, one after the other
#   bash scripts/run_cifar10_training.sh cifar10-L2-MMA-1.0-sd0   one row, or several
#   bash scripts/run_cifar10_training.sh --max_steps 500    further arguments go to every train.py
# Started again, it skips what is finished and goes on with what is not.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

train_rows "$@" <<'ROWS'
cifar10-Linf-MMA-12-sd0   --dataset cifar10 --norm Linf --method mma --hinge_maxeps 12/255
cifar10-Linf-MMA-20-sd0   --dataset cifar10 --norm Linf --method mma --hinge_maxeps 20/255
cifar10-Linf-MMA-32-sd0   --dataset cifar10 --norm Linf --method mma --hinge_maxeps 32/255
cifar10-Linf-OMMA-12-sd0  --dataset cifar10 --norm Linf --method omma --hinge_maxeps 12/255
cifar10-Linf-OMMA-20-sd0  --dataset cifar10 --norm Linf --method omma --hinge_maxeps 20/255
cifar10-Linf-OMMA-32-sd0  --dataset cifar10 --norm Linf --method omma --hinge_maxeps 32/255
cifar10-L2-MMA-1.0-sd0    --dataset cifar10 --norm L2 --method mma --hinge_maxeps 1.0
cifar10-L2-MMA-2.0-sd0    --dataset cifar10 --norm L2 --method mma --hinge_maxeps 2.0
cifar10-L2-MMA-3.0-sd0    --dataset cifar10 --norm L2 --method mma --hinge_maxeps 3.0
cifar10-L2-OMMA-1.0-sd0   --dataset cifar10 --norm L2 --method omma --hinge_maxeps 1.0
cifar10-L2-OMMA-2.0-sd0   --dataset cifar10 --norm L2 --method omma --hinge_maxeps 2.0
cifar10-L2-OMMA-3.0-sd0   --dataset cifar10 --norm L2 --method omma --hinge_maxeps 3.0
ROWS

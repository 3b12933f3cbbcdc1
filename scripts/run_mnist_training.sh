#!/usr/bin/env bash
# The paper's 8 MMA and OMMA runs on MNIST.
#   bash scripts/run_mnist_training.sh                    every row, one after the other
#   bash scripts/run_mnist_training.sh mnist-L2-MMA-2.0-sd0   one row, or several
#   bash scripts/run_mnist_training.sh --max_steps 500    further arguments go to every train.py
# Started again, it skips what is finished and goes on with what is not.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

train_rows "$@" <<'ROWS'
mnist-Linf-MMA-0.45-sd0   --dataset mnist --norm Linf --method mma --hinge_maxeps 0.45
mnist-Linf-OMMA-0.45-sd0  --dataset mnist --norm Linf --method omma --hinge_maxeps 0.45
mnist-L2-MMA-2.0-sd0      --dataset mnist --norm L2 --method mma --hinge_maxeps 2.0
mnist-L2-MMA-4.0-sd0      --dataset mnist --norm L2 --method mma --hinge_maxeps 4.0
mnist-L2-MMA-6.0-sd0      --dataset mnist --norm L2 --method mma --hinge_maxeps 6.0
mnist-L2-OMMA-2.0-sd0     --dataset mnist --norm L2 --method omma --hinge_maxeps 2.0
mnist-L2-OMMA-4.0-sd0     --dataset mnist --norm L2 --method omma --hinge_maxeps 4.0
mnist-L2-OMMA-6.0-sd0     --dataset mnist --norm L2 --method omma --hinge_maxeps 6.0
ROWS

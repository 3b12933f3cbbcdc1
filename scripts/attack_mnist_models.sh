#!/usr/bin/env bash
# What each published table of MNIST needs, on the runs that are trained, cheap things first: repeated white-box PGD at the table's
# ε (100 steps, 5 CE + 5 CW restarts), the grid of ε, transfer, smallest distances, AutoAttack. It ends with the tables.
#   bash scripts/attack_mnist_models.sh                        every run of the paper's and of the baselines that is trained
#   bash scripts/attack_mnist_models.sh mnist-L2-MMA-2.0-sd0   one of them, or several
#   bash scripts/attack_mnist_models.sh --test_size 1000       further arguments go to each evaluation that knows them
# Started again, it skips what is finished and goes on with what is not; runs that are not trained yet are skipped.
# Transfer replays the images that PGD found under Linf: they stay beside the models, 125 MB a run.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

dataset=mnist linf=0.3 l2=(2.0) l2_autoattack=2.0
attack_tables "$@"

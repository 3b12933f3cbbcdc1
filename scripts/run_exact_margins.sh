#!/usr/bin/env bash
# How far AN-PGD's margins are from the exact ones: small networks, trained by MMA and by standard training, three seeds each.
# Trains what is not trained yet into runs/exact, measures what runs/exact/margins.json lacks, and prints its tables. The
# committed ones: python benchmarks/exact_margins.py
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"

while read -r dataset network images; do
  runs=() network=benchmarks/small_networks.py:$network
  for method in "mma --hinge_maxeps 0.3" std; do
    for seed in 0 1 2; do
      runs+=("runs/exact/$dataset-${network#*:}-${method%% *}-sd$seed")
      # shellcheck disable=SC2086  # the method's flags are words
      python train.py --dataset "$dataset" --norm Linf --method $method --network "$network" --max_steps 2000 \
        --seed "$seed" --savepath "${runs[-1]}" --resume
    done
  done
  python benchmarks/exact_margins.py "${runs[@]}" --network "$network" --test_size "$images" --out runs/exact/margins.json
done <<'ROWS'
digits dense_24 200
digits dense_20_20 100
mnist dense_24 50
ROWS

#!/usr/bin/env bash
# Every training method on the digits under Linf, three seeds each, attacked at six radii; the table in benchmarks/digits.md.
# Started again, it skips what is finished and goes on with what is not.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
out=$root/benchmarks/digits

for seed in 0 1 2; do
  while read -r name flags; do
    run=$out/digits-Linf-$name-sd$seed
    # shellcheck disable=SC2086  # the flags are words
    python "$root/train.py" --dataset digits --norm Linf $flags --seed $seed --max_steps 500 --device cpu --savepath "$run" --resume </dev/null
    # Of the committed runs the networks are not kept: they have been attacked.
    if [ ! -e "$run/model_best.pt" ]; then continue; fi
    python "$root/evaluate_on_pgd_attacks.py" --model "$run" --eps grid --nb_iter 40 --nb_restart 4 --device cpu </dev/null
  done <<'RUNS'
STD --method std --best_by mean_margin
PGD-0.1 --method pgd --train_eps 0.1
PGD-0.2 --method pgd --train_eps 0.2
PGDLS-0.2 --method pgdls --train_eps 0.2
TRADES-0.2 --method trades --train_eps 0.2
MMA-0.3 --method mma --hinge_maxeps 0.3
OMMA-0.3 --method omma --hinge_maxeps 0.3
RUNS
done
python "$root/reports/make_tables.py" "$out"/* --out "$root/benchmarks/digits.md"

#!/usr/bin/env bash
# What each published table of MNIST needs, on the runs that are trained, cheap things first: repeated white-box PGD at the
# table's ε (100 steps, 5 CE + 5 CW restarts), the grid of ε, transfer, smallest distances, AutoAttack. It ends with the tables.
# Extra arguments go to every evaluation: `bash scripts/attack_mnist_models.sh --test_size 1000`.
# Started again, it skips what is finished and goes on with what is not; runs that are not trained yet are skipped.
# Transfer replays the images that PGD found under Linf: they stay beside the models, 125 MB a run.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"

mapfile -t linf < <(folders mnist-Linf-MMA-0.45-sd0 mnist-Linf-OMMA-0.45-sd0 && baselines mnist-Linf)
mapfile -t l2 < <(folders mnist-L2-MMA-2.0-sd0 mnist-L2-MMA-4.0-sd0 mnist-L2-MMA-6.0-sd0 mnist-L2-OMMA-2.0-sd0 mnist-L2-OMMA-4.0-sd0 mnist-L2-OMMA-6.0-sd0 && baselines mnist-L2)

for run in "${linf[@]}"; do
  python "$root/evaluate_on_pgd_attacks.py" --dataset mnist --norm Linf --eps 0.3 --nb_iter 100 --nb_restart 10 --save_adv --data_root "$root/data" --model "$run" "$@"
done
for run in "${l2[@]}"; do
  python "$root/evaluate_on_pgd_attacks.py" --dataset mnist --norm L2 --eps 2.0 --nb_iter 100 --nb_restart 10 --data_root "$root/data" --model "$run" "$@"
done

for run in "${linf[@]}"; do
  python "$root/evaluate_on_pgd_attacks.py" --dataset mnist --norm Linf --eps grid --nb_iter 100 --nb_restart 10 --save_adv --data_root "$root/data" --model "$run" "$@"
done
for run in "${l2[@]}"; do
  python "$root/evaluate_on_pgd_attacks.py" --dataset mnist --norm L2 --eps grid --nb_iter 100 --nb_restart 10 --data_root "$root/data" --model "$run" "$@"
done

if [ ${#linf[@]} -gt 1 ]; then
  python "$root/evaluate_on_transfer.py" "${linf[@]}" --dataset mnist --norm Linf --eps grid --data_root "$root/data" "$@"
fi

for run in "${l2[@]}"; do
  python "$root/evaluate_on_minimum_norm.py" --dataset mnist --norm L2 --attacks cw --test_size 1000 --data_root "$root/data" --model "$run" "$@"
done

for run in "${linf[@]}"; do
  python "$root/evaluate_on_autoattack.py" --dataset mnist --norm Linf --eps 0.3 --data_root "$root/data" --model "$run" "$@"
done
for run in "${l2[@]}"; do
  python "$root/evaluate_on_autoattack.py" --dataset mnist --norm L2 --eps 2.0 --data_root "$root/data" --model "$run" "$@"
done

if [ ${#linf[@]} -gt 0 ] || [ ${#l2[@]} -gt 0 ]; then
  python "$root/reports/make_tables.py" "${linf[@]}" "${l2[@]}"
  echo "python reports/make_tables.py --fill puts them beside the published figures in README.md and docs/results.md"
fi

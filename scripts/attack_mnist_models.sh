#!/usr/bin/env bash
# The paper's attack on the 8 MNIST runs: repeated white-box PGD, 100 steps, 5 CE + 5 CW restarts.
# Extra arguments go to every command: `bash scripts/attack_mnist_models.sh --test_size 1000`.
# Started again, it skips what is finished; runs that are not trained yet are skipped.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"

if trained mnist-Linf-MMA-0.45-sd0; then
  python "$root/evaluate_on_pgd_attacks.py" --model "$root/trained_models/mnist-Linf-MMA-0.45-sd0" --dataset mnist --norm Linf --eps 0.3 --nb_iter 100 --nb_restart 10 --data_root "$root/data" --resume "$@"
fi
if trained mnist-Linf-OMMA-0.45-sd0; then
  python "$root/evaluate_on_pgd_attacks.py" --model "$root/trained_models/mnist-Linf-OMMA-0.45-sd0" --dataset mnist --norm Linf --eps 0.3 --nb_iter 100 --nb_restart 10 --data_root "$root/data" --resume "$@"
fi
if trained mnist-L2-MMA-2.0-sd0; then
  python "$root/evaluate_on_pgd_attacks.py" --model "$root/trained_models/mnist-L2-MMA-2.0-sd0" --dataset mnist --norm L2 --eps 2.0 --nb_iter 100 --nb_restart 10 --data_root "$root/data" --resume "$@"
fi
if trained mnist-L2-MMA-4.0-sd0; then
  python "$root/evaluate_on_pgd_attacks.py" --model "$root/trained_models/mnist-L2-MMA-4.0-sd0" --dataset mnist --norm L2 --eps 2.0 --nb_iter 100 --nb_restart 10 --data_root "$root/data" --resume "$@"
fi
if trained mnist-L2-MMA-6.0-sd0; then
  python "$root/evaluate_on_pgd_attacks.py" --model "$root/trained_models/mnist-L2-MMA-6.0-sd0" --dataset mnist --norm L2 --eps 2.0 --nb_iter 100 --nb_restart 10 --data_root "$root/data" --resume "$@"
fi
if trained mnist-L2-OMMA-2.0-sd0; then
  python "$root/evaluate_on_pgd_attacks.py" --model "$root/trained_models/mnist-L2-OMMA-2.0-sd0" --dataset mnist --norm L2 --eps 2.0 --nb_iter 100 --nb_restart 10 --data_root "$root/data" --resume "$@"
fi
if trained mnist-L2-OMMA-4.0-sd0; then
  python "$root/evaluate_on_pgd_attacks.py" --model "$root/trained_models/mnist-L2-OMMA-4.0-sd0" --dataset mnist --norm L2 --eps 2.0 --nb_iter 100 --nb_restart 10 --data_root "$root/data" --resume "$@"
fi
if trained mnist-L2-OMMA-6.0-sd0; then
  python "$root/evaluate_on_pgd_attacks.py" --model "$root/trained_models/mnist-L2-OMMA-6.0-sd0" --dataset mnist --norm L2 --eps 2.0 --nb_iter 100 --nb_restart 10 --data_root "$root/data" --resume "$@"
fi

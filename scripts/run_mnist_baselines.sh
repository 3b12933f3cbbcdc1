#!/usr/bin/env bash
# The baselines on MNIST: ordinary training, PGD, PGDLS and TRADES, one after the other.
# Extra arguments go to every command: `bash scripts/run_mnist_baselines.sh --max_steps 500`.
# Started again, it skips what is finished and goes on with what is not.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"

python "$root/train.py" --dataset mnist --norm Linf --method std --seed 0 --data_root "$root/data" --savepath "$root/trained_models/mnist-Linf-STD-sd0" --resume "$@"
python "$root/train.py" --dataset mnist --norm Linf --method pgd --train_eps 0.3 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/mnist-Linf-PGD-0.3-sd0" --resume "$@"
python "$root/train.py" --dataset mnist --norm Linf --method pgdls --train_eps 0.3 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/mnist-Linf-PGDLS-0.3-sd0" --resume "$@"
python "$root/train.py" --dataset mnist --norm Linf --method pgdls --train_eps 0.45 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/mnist-Linf-PGDLS-0.45-sd0" --resume "$@"
python "$root/train.py" --dataset mnist --norm Linf --method trades --train_eps 0.3 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/mnist-Linf-TRADES-0.3-sd0" --resume "$@"
python "$root/train.py" --dataset mnist --norm L2 --method std --seed 0 --data_root "$root/data" --savepath "$root/trained_models/mnist-L2-STD-sd0" --resume "$@"
python "$root/train.py" --dataset mnist --norm L2 --method pgd --train_eps 1.0 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/mnist-L2-PGD-1.0-sd0" --resume "$@"
python "$root/train.py" --dataset mnist --norm L2 --method pgd --train_eps 2.0 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/mnist-L2-PGD-2.0-sd0" --resume "$@"
python "$root/train.py" --dataset mnist --norm L2 --method pgd --train_eps 3.0 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/mnist-L2-PGD-3.0-sd0" --resume "$@"
python "$root/train.py" --dataset mnist --norm L2 --method pgd --train_eps 4.0 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/mnist-L2-PGD-4.0-sd0" --resume "$@"
python "$root/train.py" --dataset mnist --norm L2 --method pgdls --train_eps 1.0 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/mnist-L2-PGDLS-1.0-sd0" --resume "$@"
python "$root/train.py" --dataset mnist --norm L2 --method pgdls --train_eps 2.0 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/mnist-L2-PGDLS-2.0-sd0" --resume "$@"
python "$root/train.py" --dataset mnist --norm L2 --method pgdls --train_eps 3.0 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/mnist-L2-PGDLS-3.0-sd0" --resume "$@"
python "$root/train.py" --dataset mnist --norm L2 --method pgdls --train_eps 4.0 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/mnist-L2-PGDLS-4.0-sd0" --resume "$@"
python "$root/train.py" --dataset mnist --norm L2 --method trades --train_eps 2.0 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/mnist-L2-TRADES-2.0-sd0" --resume "$@"

#!/usr/bin/env bash
# The paper's 8 MMA and OMMA runs on MNIST, one after the other.
# Extra arguments go to every command: `bash scripts/run_mnist_training.sh --max_steps 500`.
# Started again, it skips what is finished and goes on with what is not.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"

python "$root/train.py" --dataset mnist --norm Linf --clean_loss_coeff 1/3 --hinge_maxeps 0.45 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/mnist-Linf-MMA-0.45-sd0" --resume "$@"
python "$root/train.py" --dataset mnist --norm Linf --clean_loss_coeff 0 --hinge_maxeps 0.45 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/mnist-Linf-OMMA-0.45-sd0" --resume "$@"
python "$root/train.py" --dataset mnist --norm L2 --clean_loss_coeff 1/3 --hinge_maxeps 2.0 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/mnist-L2-MMA-2.0-sd0" --resume "$@"
python "$root/train.py" --dataset mnist --norm L2 --clean_loss_coeff 1/3 --hinge_maxeps 4.0 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/mnist-L2-MMA-4.0-sd0" --resume "$@"
python "$root/train.py" --dataset mnist --norm L2 --clean_loss_coeff 1/3 --hinge_maxeps 6.0 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/mnist-L2-MMA-6.0-sd0" --resume "$@"
python "$root/train.py" --dataset mnist --norm L2 --clean_loss_coeff 0 --hinge_maxeps 2.0 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/mnist-L2-OMMA-2.0-sd0" --resume "$@"
python "$root/train.py" --dataset mnist --norm L2 --clean_loss_coeff 0 --hinge_maxeps 4.0 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/mnist-L2-OMMA-4.0-sd0" --resume "$@"
python "$root/train.py" --dataset mnist --norm L2 --clean_loss_coeff 0 --hinge_maxeps 6.0 --seed 0 --data_root "$root/data" --savepath "$root/trained_models/mnist-L2-OMMA-6.0-sd0" --resume "$@"

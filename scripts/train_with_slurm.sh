#!/usr/bin/env bash
#SBATCH --job-name=mma
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
# One training run on several machines: sbatch scripts/train_with_slurm.sh --dataset cifar10 --norm Linf --hinge_maxeps 32/255
# Run it from the clone, on a file system that all machines share. One torchrun a machine, one process a GPU. Two minutes
# before the time is up SLURM sends SIGTERM: the step ends, the state is saved, and the same command goes on from there.
set -euo pipefail
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
first=${nodes%%$'\n'*}

srun --kill-on-bad-exit=1 "${PYTHON:-.venv/bin/python}" -m torch.distributed.run \
  --nnodes="$SLURM_NNODES" --nproc_per_node="$SLURM_GPUS_ON_NODE" --max-restarts=3 \
  --rdzv-backend=c10d --rdzv-endpoint="$first:29500" --rdzv-id="$SLURM_JOB_ID" \
  train.py --resume "$@"

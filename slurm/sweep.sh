#!/usr/bin/env bash
# A whole sweep in one Slurm job, on Ray over its nodes: sbatch [-N NODES ...] slurm/sweep.sh RECIPE [k=v ...] [--runs DIR]
# A job that ends early continues when the same command is submitted again: finished runs are skipped, the broken one resumes.
#SBATCH --job-name=rankrl
#SBATCH --output=rankrl-%j.log
#SBATCH --ntasks-per-node=1
set -euo pipefail
cd "$SLURM_SUBMIT_DIR" # the script itself runs from a spooled copy
export PATH="$PWD/.venv/bin:$PATH"
# symmetric-run wants an address, not a name; a port of its own lets two jobs share a node
head=$(getent ahostsv4 "$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)" | awk 'NR == 1 {print $1}')
port=$((20000 + SLURM_JOB_ID % 10000))
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=${RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT:-120}
srun ray symmetric-run --address "$head:$port" --min-nodes "$SLURM_JOB_NUM_NODES" ${RAY_START_OPTIONS:-} -- \
  env RAY_ADDRESS="$head:$port" rankrl sweep "$@"

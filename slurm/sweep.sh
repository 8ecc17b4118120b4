#!/usr/bin/env bash
# A sweep as a Slurm array: sbatch [-p PARTITION -A ACCOUNT -t TIME ...] slurm/sweep.sh RECIPE [k=v ...] [--runs DIR]
# The job that you submit plans, submits an array over the runs that are left and the report after it, and ends. How it works: slurm/README.md
#SBATCH --job-name=rankrl
#SBATCH --output=rankrl-%j.log
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --signal=B:USR2@120
set -euo pipefail
cd "$SLURM_SUBMIT_DIR" # the script itself runs from a spooled copy
export PATH="$PWD/.venv/bin:$PATH"

submit() {
  local found root array report
  exec 9<slurm/sweep.sh && flock 9 # two submissions at once see each other's tasks
  found=$(rankrl tasks "$@") # directory of the sweep, options of sbatch, then the run ids of each task; nothing if nothing is left
  [[ -n $found ]] || return 0
  root=$(sed -n 1p <<<"$found")
  # held until its tasks are on disk under its number
  # shellcheck disable=SC2046 # the options are words
  array=$(sbatch --parsable --hold --job-name="rankrl-${root##*/}" --output="$root/slurm/%A_%a.log" --open-mode=append \
    --signal=B:USR2@120 $(sed -n 2p <<<"$found") slurm/sweep.sh "$@")
  tail -n +3 <<<"$found" >"$root/slurm/$array.tasks"
  scontrol release "$array"
  report=$(sbatch --parsable --dependency="afterany:$array" --job-name="rankrl-report" --output="$root/slurm/report-%j.log" \
    --wrap="PATH=$PATH rankrl report $root")
  echo "submitted array $array of $(($(wc -l <<<"$found") - 2)) tasks, and report $report after it"
  echo "watch:  rankrl status $root"
  echo "curves: tensorboard --logdir $root"
}

task() {
  local me=${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID} attempt=${SLURM_RESTART_COUNT:-0} code=0 log ids head port
  # the job's own number would requeue the whole array from its last task
  requeue() { scontrol requeue "$me"; }
  export RANKRL_STOP=/tmp/rankrl-$SLURM_JOB_ID-$attempt.stop RAY_TMPDIR=/tmp/rankrl-$SLURM_JOB_ID
  # the time limit is near: save at the next step; who has not by then goes on from the last checkpoint
  trap 'touch "$RANKRL_STOP"; (sleep 90; requeue) &' USR2
  trap 'rm -rf "$RANKRL_STOP" "$RAY_TMPDIR"' EXIT
  log=$(scontrol show job "$me" | sed -n 's/^ *StdOut=//p' | head -n 1)
  ids=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" "${log%/*}/$SLURM_ARRAY_JOB_ID.tasks")
  set -- rankrl run "$1" "$ids" "${@:2}"
  if ((SLURM_JOB_NUM_NODES > 1)); then
    # symmetric-run wants an address, not a name
    head=$(getent ahostsv4 "$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)" | awk 'NR == 1 {print $1}')
    port=$((20000 + SLURM_JOB_ID % 10000))
    export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=${RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT:-120}
    set -- ray symmetric-run --address "$head:$port" --min-nodes "$SLURM_JOB_NUM_NODES" ${RAY_START_OPTIONS:-} -- \
      env RAY_ADDRESS="$head:$port" "$@"
  fi
  srun --output="${log%.log}-attempt$attempt.log" "$@" &
  while kill -0 $! 2>/dev/null; do # a signal ends a wait early
    wait $! && code=0 || code=$?
  done
  echo "attempt $attempt on $SLURM_JOB_NODELIST ended with $code"
  if ((code == 75)); then requeue; fi # stopped on request, or the cluster lost a part
  return $code
}

if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then task "$@"; else submit "$@"; fi

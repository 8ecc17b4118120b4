#!/usr/bin/env bash
# A sweep as a Slurm array: sbatch [-p PARTITION -A ACCOUNT -t TIME ...] slurm/sweep.sh RECIPE [k=v ...] [--runs DIR]
# The job that you submit plans, submits an array over the runs that are left and the report after it, and ends. How it works: slurm/README.md
#SBATCH --job-name=rankrl
#SBATCH --output=rankrl-%j.log
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
set -euo pipefail
cd "$SLURM_SUBMIT_DIR" # the script itself runs from a spooled copy
export PATH="$PWD/.venv/bin:$PATH"

submit() {
  local found root array report
  exec 9<slurm/sweep.sh && flock 9 # two submissions at once see each other's tasks
  # directory of the sweep, sbatch's options for array and report, then the run ids of each task; nothing if nothing is left
  found=$(rankrl tasks "$@")
  [[ -n $found ]] || return 0
  root=$(sed -n 1p <<<"$found")
  # held until its tasks are on disk under its number
  # shellcheck disable=SC2046 # the options are words
  array=$(sbatch --parsable --hold --job-name="rankrl-${root##*/}" --output="$root/slurm/%A_%a.log" --open-mode=append --requeue \
    --signal=B:USR2@120 $(sed -n 2p <<<"$found") slurm/sweep.sh "$root" "$@")
  tail -n +4 <<<"$found" >"$root/slurm/$array.tasks"
  scontrol release "$array"
  # shellcheck disable=SC2046
  report=$(sbatch --parsable --dependency="afterany:$array" --job-name="rankrl-report" --output="$root/slurm/report-%j.log" \
    $(sed -n 3p <<<"$found") --wrap="rankrl report $(printf %q "$root")")
  echo "submitted array $array of $(($(wc -l <<<"$found") - 3)) tasks, and report $report after it"
  echo "watch:  rankrl status $root"
  echo "curves: tensorboard --logdir $root"
}

task() {
  local root=$1 me=${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID} attempt=${SLURM_RESTART_COUNT:-0} code=0 ids step head port
  ids=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" "$root/slurm/$SLURM_ARRAY_JOB_ID.tasks")
  export RANKRL_STOP=$root/slurm/$me-attempt$attempt.stop RAY_TMPDIR=/tmp/rankrl-$SLURM_JOB_ID
  export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not take it over
  trap 'rm -rf "$RANKRL_STOP" "$RAY_TMPDIR"' EXIT
  # by the task's own name, for the number of the last task stands for the whole array; what was cancelled stays so
  requeue() { if [[ $(squeue --noheader --jobs="$me" --format=%T) == RUNNING ]]; then scontrol requeue "$me"; fi; }
  unfinished() { local id; for id in ${ids//,/ }; do [[ -e $root/$id/result.json ]] || return 0; done && return 1; }
  # the time limit is near: save at the next step; who has not by then goes on from the last checkpoint
  trap 'touch "$RANKRL_STOP"; (sleep 90; requeue) &' USR2

  set -- rankrl run "$2" "$ids" "${@:3}"
  if ((SLURM_JOB_NUM_NODES > 1)); then
    # symmetric-run wants an address, not a name
    head=$(getent ahostsv4 "$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)" | awk 'NR == 1 {print $1}')
    port=$((20000 + SLURM_JOB_ID % 10000))
    export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=${RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT:-120}
    set -- ray symmetric-run --address "$head:$port" --min-nodes "$SLURM_JOB_NUM_NODES" ${RAY_START_OPTIONS:-} -- \
      env RAY_ADDRESS="$head:$port" "$@"
  fi
  srun --output="$root/slurm/$me-attempt$attempt.log" "$@" &
  step=$!
  while kill -0 $step 2>/dev/null; do wait $step || true; done # a signal ends a wait early
  wait $step || code=$?
  echo "attempt $attempt on $SLURM_JOB_NODELIST ended with $code"
  if ((code == 75)); then # stopped on request, or the cluster lost a part
    requeue
  elif ((code != 2)) && unfinished; then # died, and not of wrong words
    echo "attempt $attempt: $code" >>"$root/slurm/$me.crashes"
    if (($(wc -l <"$root/slurm/$me.crashes") <= 3)); then requeue; fi
  fi
  return $code
}

if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then task "$@"; else submit "$@"; fi

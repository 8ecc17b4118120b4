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
    $(sed -n 2p <<<"$found") slurm/sweep.sh "$root" "$@")
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
  local root=$1 me=${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID} attempt=${SLURM_RESTART_COUNT:-0} code=0 files ids step head port
  files=$root/slurm/$me
  ids=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" "$root/slurm/$SLURM_ARRAY_JOB_ID.tasks")
  export RANKRL_STOP=$files.stop RAY_TMPDIR=/tmp/rankrl-$SLURM_JOB_ID
  # Ray runs what it is sent; other users may share the node
  RAY_AUTH_TOKEN=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n') && export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
  export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not take it over
  rm -f "$RANKRL_STOP" && touch "$files.begun"
  trap 'rm -rf "$RANKRL_STOP" "$RAY_TMPDIR"' EXIT
  trap 'touch "$RANKRL_STOP"; (sleep $(($(seconds_left) - 30)); again) &' USR2 # save at the next step; there may be no time for it

  set -- rankrl run "$2" "$ids" "${@:3}"
  if ((SLURM_JOB_NUM_NODES > 1)); then
    # symmetric-run wants an address, not a name
    head=$(getent ahostsv4 "$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)" | awk 'NR == 1 {print $1}')
    port=$((20000 + SLURM_JOB_ID % 10000))
    export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=${RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT:-120}
    # shellcheck disable=SC2086 # several words
    set -- ray symmetric-run --address "$head:$port" --min-nodes "$SLURM_JOB_NUM_NODES" ${RAY_START_OPTIONS:-} -- \
      env RAY_ADDRESS="$head:$port" "$@"
  fi
  srun --output="$files-attempt$attempt.log" "$@" &
  step=$!
  while kill -0 $step 2>/dev/null; do wait $step || true; done # a signal ends a wait early
  wait $step || code=$?
  echo "attempt $attempt on $SLURM_JOB_NODELIST ended with $code"
  # 75: stopped on request, or the cluster lost a part; 2: wrong words, or another task's run; else it died if runs are without a result
  if ((code == 75)) || { ((code != 2)) && ! all_have_results; }; then again; fi
  return $code
}

seconds_left() { echo $(($(date -d "$(squeue --noheader --jobs="$me" --format=%e)" +%s) - $(date +%s))); }

all_have_results() {
  local id
  for id in ${ids//,/ }; do [[ -e $root/$id/result.json ]] || return 1; done
}

again() { # requeues this task, unless it was cancelled or has three times come to nothing
  local id saved=
  for id in ${ids//,/ }; do
    if [[ $root/$id/checkpoint/state.pt -nt $files.begun || $root/$id/result.json -nt $files.begun ]]; then saved=yes; fi
  done
  [[ $saved ]] || echo "attempt $attempt saved nothing" | tee -a "$files.fruitless"
  if [[ -e $files.fruitless ]] && (($(wc -l <"$files.fruitless") >= 3)); then return; fi
  # by its own name: the number of the last task stands for the whole array
  if [[ $(squeue --noheader --jobs="$me" --format=%T) == RUNNING ]]; then scontrol requeue "$me"; fi
}

if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then task "$@"; else submit "$@"; fi

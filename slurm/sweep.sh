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
export SLURM_EXPORT_ENV=ALL # steps get what is set here, whatever SBATCH_EXPORT says
unset SRUN_EXPORT_ENV

submit() {
  local found root array report name
  exec 9<>slurm/sweep.sh && flock 9 # two submissions at once see each other's tasks; for writing, or NFS refuses
  # directory of the sweep, sbatch's options for array and report, then the run ids of each task; nothing if nothing is left
  found=$(rankrl tasks "$@")
  [[ -n $found ]] || return 0
  root=$(sed -n 1p <<<"$found")
  for name in $(compgen -e); do # what describes this job would be taken for the tasks'
    case $name in SLURM_CONF | SLURM_CLUSTERS | SLURM_EXPORT_ENV) ;; SLURM_* | SRUN_*) unset "$name" ;; esac
  done
  # held until its tasks are on disk under its number
  # shellcheck disable=SC2046 # the options are words
  array=$(sbatch --parsable --hold --export=ALL --job-name="rankrl-${root##*/}" --output="$root/slurm/%A_%a.log" \
    --open-mode=append --requeue $(sed -n 2p <<<"$found") slurm/sweep.sh "$root" "$@")
  array=${array%%;*} # NUMBER;CLUSTER
  if ! { tail -n +4 <<<"$found" >"$root/slurm/$array.tasks" && scontrol release "$array"; }; then
    scancel "$array"
    return 1
  fi
  # shellcheck disable=SC2046
  report=$(sbatch --parsable --export=ALL --dependency="afterany:$array" --job-name="rankrl-report" \
    --output="$root/slurm/report-%j.log" $(sed -n 3p <<<"$found") --wrap="rankrl report $(printf %q "$root")") ||
    report="none, for sbatch refuses it (rankrl report $root)"
  echo "submitted array $array of $(($(wc -l <<<"$found") - 3)) tasks, and report $report after it"
  echo "watch:  rankrl status $root"
  echo "curves: tensorboard --logdir $root"
}

task() {
  local root=$1 me=${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID} attempt=${SLURM_RESTART_COUNT:-0} code=0 files ids step head port name
  files=$root/slurm/$me
  ids=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" "$root/slurm/$SLURM_ARRAY_JOB_ID.tasks")
  export RANKRL_STOP=$files.stop RAY_TMPDIR=/tmp/rankrl-$SLURM_JOB_ID
  # Ray runs what it is sent; other users may share the node
  RAY_AUTH_TOKEN=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n') && export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
  export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not take it over
  rm -f "$RANKRL_STOP" && touch "$files.begun"
  trap 'rm -rf "$RANKRL_STOP" "$RAY_TMPDIR"' EXIT
  trap 'touch "$RANKRL_STOP"; (sleep "$(until_the_last)"; again) &' USR2 # save at the next step; there may be no time for it

  set -- rankrl run "$2" "$ids" "${@:3}"
  if ((SLURM_JOB_NUM_NODES > 1)); then
    # symmetric-run wants an address, not a name
    head=$(getent ahostsv4 "$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)" | awk 'NR == 1 {print $1}')
    port=$((20000 + SLURM_JOB_ID % 10000))
    export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=${RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT:-120}
    for name in RAY_ADDRESS RAY_REDIS_ADDRESS RAY_GCS_SERVER_PORT RAY_CLIENT_MODE RAY_JOB_CONFIG_JSON_ENV_VAR; do
      if [[ -v $name ]]; then echo "warning: $name in the environment: ignored, for rankrl uses a Ray of its own"; fi
      unset "$name" # or symmetric-run waits for the nodes of another cluster
    done
    # shellcheck disable=SC2016,SC2086 # expanded on the node; several words
    set -- bash -c '"$@" && code=0 || code=$?; rm -rf "$RAY_TMPDIR"; exit $code' node \
      ray symmetric-run --address "$head:$port" --min-nodes "$SLURM_JOB_NUM_NODES" ${RAY_START_OPTIONS:-} -- \
      env RANKRL_RAY_ADDRESS="$SLURM_JOB_ID@$head:$port" "$@"
  fi
  srun --output="$files-attempt$attempt.log" "$@" &
  step=$!
  while kill -0 $step 2>/dev/null; do wait $step || true; done # a signal ends a wait early
  wait $step || code=$?
  echo "attempt $attempt on $SLURM_JOB_NODELIST ended with $code"
  if ((code != 2)); then again; fi # 2: wrong words
  return $code
}

until_the_last() { # seconds to 30 before the time limit; 90 if there is none
  local end
  end=$(SLURM_TIME_FORMAT=standard squeue --noheader --jobs="$me" --format=%e) && [[ $end == *:* ]] || { echo 90 && return; }
  end=$(($(date -d "$end" +%s) - $(date +%s) - 30))
  echo $((end > 0 ? end : 0))
}

again() { # requeues this task if runs are left, unless it was cancelled or has come to nothing three times in a row
  local came_to state='' try
  came_to=$(rankrl outcome "$root" "$ids" "$files.begun")
  if [[ $came_to == ended ]]; then return; fi
  for try in {1..6}; do # a controller that has just lost a node may be slow
    if state=$(squeue --noheader --jobs="$me" --format=%T) && [[ $state ]]; then break; fi
    sleep $((5 * try))
  done
  if [[ $state != RUNNING ]]; then # cancelled, or requeued by Slurm after a preemption
    echo "not requeued: ${state:-Slurm does not answer}"
    return
  fi
  if [[ $came_to == nothing ]]; then
    echo "attempt $attempt saved nothing" | tee -a "$files.fruitless"
    if (($(wc -l <"$files.fruitless") >= 3)); then return; fi
  else
    rm -f "$files.fruitless"
  fi
  scontrol requeue "$me" # by its own name: the number of the last task stands for the whole array
}

if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then task "$@"; else submit "$@"; fi

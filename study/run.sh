#!/bin/sh
# sh study/run.sh PART: the runs of a part of the study (docs/study/plan.md) into RUNS, then its records into study/PART.parquet.
# It goes on where it was stopped. PART is a, a-small, b, d or e; what part b showed decides the recipe of part c.
set -eu
RANKRL=${RANKRL:-.venv/bin/rankrl}
PYTHON=${PYTHON:-.venv/bin/python}
RUNS=${RUNS:-runs/study}
part=$1
sweep() { $RANKRL sweep "$@" --runs "$RUNS/$part"; }
case $part in
  a)
    sweep study/study_a.yaml ranks=[1,4,32]
    sweep study/study_a.yaml ranks=[256] # apart: beside it, services would be sized for rank 256
    sweep study/study_a_batch.yaml
    ;;
  a-small) sweep study/study_a.yaml ranks=[1,32,256] seeds=[12] ;;
  e) sweep study/study_e.yaml ;;
  *)
    echo "PART: got '$part', allowed: a, a-small, e" >&2
    exit 2
    ;;
esac
$PYTHON study/keep.py pack "$RUNS/$part" "study/$part.parquet"

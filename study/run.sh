#!/bin/sh
# sh study/run.sh PART: the runs of a part of the study (docs/study/plan.md) into RUNS, then its records into study/PART.parquet.
# It goes on where it was stopped; with KEPT=1 from the runs that study/PART.parquet has as well, as on another machine.
# PART is a, b, c, d, e, smollm2, or a-small: a third of part a, with figures of its own in RUNS.
# Which arms of part b have more seeds, and the recipe of part c, was decided by what was seen before (docs/study/plan.md).
set -eu
RANKRL=${RANKRL:-.venv/bin/rankrl}
PYTHON=${PYTHON:-.venv/bin/python}
RUNS=${RUNS:-runs/study}
part=$1
sweep() { # code 1: a run diverged, which is an outcome, or failed, which keep.py says at the end; all else ends the part
  $RANKRL sweep "$@" --runs "$RUNS/$part" || [ $? -eq 1 ]
}
some() { # some arms of a recipe: FILE 'ARM ...' WORD ...
  mkdir -p "$RUNS"
  $PYTHON study/arms.py "$1" $2 > "$RUNS/arms.yaml"
  shift 2
  sweep "$RUNS/arms.yaml" "$@"
}
ablated() { # some arms of an ablation at rank 1: SECTION 'ARM ...' WORD ...
  section=$1 arms=$2
  shift 2
  some "recipes/ablate_$section.yaml" "$arms" 'ranks=[1]' "$@"
}
if [ -n "${KEPT:-}" ] && [ -f "study/$part.parquet" ]; then
  $PYTHON study/keep.py unpack "study/$part.parquet" "$RUNS/$part"
fi
case $part in
  a)
    sweep study/study_a.yaml 'ranks=[1,4,32]'
    sweep study/study_a.yaml 'ranks=[256]' # apart: beside it, services would be sized for rank 256
    sweep study/study_a_batch.yaml
    ;;
  a-small) # the arms at rank 32 are alike whatever alpha's exponent: its runs are made once
    two='seeds=[12,13]'
    rates() { for rate in quarter half once twice four; do echo "$1_$rate"; done; }
    some study/study_a.yaml "$(rates constant)" name=study_a 'ranks=[1,32]' $two
    some study/study_a.yaml "$(rates sqrt) $(rates proportional)" name=study_a 'ranks=[1]' $two
    sweep study/study_a.yaml 'ranks=[256]' 'seeds=[12]' # apart, as above; its runs take twice as long
    ;;
  b) # two seeds of every arm
    two='ranks=[1] seeds=[20,21]'
    for arms in init optim variance; do sweep "recipes/ablate_$arms.yaml" steps=60 $two; done
    sweep recipes/ablate_allocation.yaml steps=60 equal_params=0.06 $two
    sweep recipes/low_rank.yaml steps=60 'ranks=[32]' 'seeds=[20,21]'
    hard='scale=nano-hard steps=120'
    for arms in init optim variance; do sweep "recipes/ablate_$arms.yaml" "name=ablate_${arms}_hard" $hard $two; done
    sweep recipes/ablate_allocation.yaml name=ablate_allocation_hard equal_params=0.06 $hard $two
    sweep recipes/low_rank.yaml name=low_rank_hard $hard 'ranks=[32]' 'seeds=[20,21]'
    # more seeds where `rankrl next DIR --budget 16` said that they would tell
    more='seeds=[22,23]'
    six='seeds=[22,23,24,25,26,27]'
    ablated variance 'off group_mean fewer_samples' name=ablate_variance steps=60 $six
    ablated variance 'shrinkage averaging brakes' name=ablate_variance steps=60 $more
    ablated init 'off on_rlmo' name=ablate_init steps=60 $six
    ablated init 'on_off_principal control_etf' name=ablate_init steps=60 $more
    ablated optim 'off cosine' name=ablate_optim steps=60 $six
    ablated init 'off on control_etf' name=ablate_init_hard $hard $six
    ablated variance 'off history fewer_samples' name=ablate_variance_hard $hard $six
    # the best four on nano and their `off`, at twice the rate
    twice='steps=60 scale.reference.lr=2e-3 seeds=[20,21]'
    ablated init 'off on_rlmo' name=ablate_init_twice $twice
    ablated optim 'off cosine' name=ablate_optim_twice $twice
    ablated variance 'off fewer_samples averaging' name=ablate_variance_twice $twice
    ;;
  c)
    sweep study/study_c.yaml name=study_c_nano steps=60
    sweep study/study_c.yaml name=study_c_nano_hard scale=nano-hard steps=120
    # beside the confirmation: the default on the same seeds, and rank 1 with more steps
    default="init.method=kaiming ranks=[1]"
    sweep study/study_c.yaml name=study_c_nano_default steps=60 $default
    sweep study/study_c.yaml name=study_c_nano_hard_default scale=nano-hard steps=120 $default
    longer='ranks=[1] seeds=[100,101,102,103,104,105,106,107,108,109,110,111,112,113,114,115]'
    sweep study/study_c.yaml name=study_c_nano_hard_longer scale=nano-hard steps=180 $longer
    ;;
  d)
    last="steps=60 eval_every=10 seeds=[40,41,42,43]"
    sweep recipes/tail.yaml $last 'batch_sizes=[16]'
    sweep recipes/tail.yaml name=tail_inherited rules.lr.rule=constant $last 'batch_sizes=[16]'
    sweep study/study_d_64.yaml $last
    sweep study/study_d_64.yaml name=study_d_64_inherited rules.lr.rule=constant $last
    # beside it: an adapter whose A is frozen may want a higher rate
    higher="rules.lr.rule=constant ranks=[1] batch_sizes=[16]"
    sweep study/study_d_64.yaml name=study_d_twice $higher scale.reference.lr=2e-3 $last
    sweep study/study_d_64.yaml name=study_d_four $higher scale.reference.lr=4e-3 $last
    ;;
  e) sweep study/study_e.yaml ;;
  smollm2)
    small="scale=smollm2-135m steps=8 seeds=[60,61,62,63,64,65]"
    sweep recipes/smollm2.yaml $small 'ranks=[1,32]'
    sweep recipes/smollm2.yaml name=smollm2_half $small 'ranks=[1]' scale.reference.lr=2.5e-4
    ;;
  *)
    echo "PART: got '$part', allowed: a, a-small, b, c, d, e, smollm2" >&2
    exit 2
    ;;
esac
if [ "$part" = a-small ]; then
  $PYTHON study/keep.py pack "$RUNS/$part" "$RUNS/a.parquet"
  $PYTHON study/figures.py --records "$RUNS" --to "$RUNS/figures"
else
  $PYTHON study/keep.py pack "$RUNS/$part" "study/$part.parquet"
fi

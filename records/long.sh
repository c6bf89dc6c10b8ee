#!/bin/bash
# The long runs of entries 6, 8 and 12 to 15, each begun or gone on with where it was stopped.
#   LONG=folder IGPT=igpt PYTHON=python bash records/long.sh run32|more32|last32|ablate|sizes|twins SEED|tune joint|scratch
# LONG holds what must outlast a session (caches, the run, its log). Each runs with one thread
# (THREADS says otherwise) at the lowest priority and in a process group of its own, whose number is
# printed: SIGSTOP and SIGCONT to the group while something is measured, SIGTERM to end it after a
# checkpoint.
# Linux may share the cores between sessions first: where /proc/self/autogroup is, the lowest priority
# holds against other sessions only once that says so too.
set -e
: "${LONG:?the folder that holds the runs}" "${IGPT:=igpt}" "${PYTHON:=python}"
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$LONG"
export LONG IGPT PYTHON IGPT_CACHE=$LONG/cache OMP_NUM_THREADS=${THREADS:-1} TORCHINDUCTOR_CACHE_DIR=$LONG/inductor
case "$1" in
  run32 | more32 | last32)
    # Their end is chosen late, so what they were begun with is not said again.
    run=$LONG/runs/$1 from=cifar10-32 own=()
    case "$1" in
      run32) from=cifar10-small ;;
      last32) own=(--train.muon-lr 0.004 --train.lr 0.0015 --train.decay-fraction 1 --train.total-steps 6400) ;;
    esac
    if [ -e "$run/config.json" ]; then
      work=("$IGPT" pretrain cifar10 "$run" --resume)
    else
      work=("$IGPT" pretrain cifar10 "$run" --recipe record-32 --init-from "$from"
        --train.micro-batch 8 --train.compile blocks --train.valid-every 100 --train.checkpoint-every 25
        "${own[@]}")
    fi ;;
  ablate)
    names="again qkv-parts batch-8-again embed-rate-x4 head-rate-third head-rate-x3 short-decay-again
      short-decay-ema cautious-decay warm-momentum floor batch-ramp batch-ramp-4 qkv-heads normed-rows
      pool-1000 pool-1000-alternate pool-1000-cautious-decay gains-rate-x4 adam-rate-x2 adam-rate-x3
      adam-rate-x5 batch-8-short-decay batch-8-short-decay-adam-x3
      batch-8-short-decay-adam-x5"
    trials=()
    for seed in 0 1 2; do for name in $names; do trials+=("$name" "$seed"); done; done
    work=("$PYTHON" "$here/ablate.py" "${trials[@]}" rows-columns 2 residual-scale 2) ;;
  sizes | twins) work=(bash "$here/sizes.sh" "$1" "${2:?0 or 1, the seed}") ;;
  tune)
    case "${2:-}" in
      joint) own=() ;;
      scratch) own=(--scratch --finetune.no-joint) ;;
      *) echo "long.sh tune joint|scratch" >&2; exit 2 ;;
    esac
    work=("$IGPT" finetune cifar10-small cifar10 "$LONG/runs/tune-$2" "${own[@]}"
      --finetune.total-steps 1750 --finetune.batch-size 32 --finetune.micro-batch 32
      --finetune.valid-every 350 --finetune.valid-images 1000 --finetune.lr 0.0005
      --finetune.patience 1000 --finetune.precision bf16 --finetune.compile blocks --resume) ;;
  *) echo "long.sh run32|more32|last32|ablate|sizes|twins|tune" >&2; exit 2 ;;
esac
log=$LONG/$1${2:+-$2}.log
setsid bash -c '[ ! -w /proc/self/autogroup ] || echo 19 >/proc/self/autogroup; exec nice -n 19 "$@"' \
  long "${work[@]}" >>"$log" 2>&1 </dev/null &
echo $!

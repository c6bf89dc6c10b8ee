#!/usr/bin/env bash
# Trains a larger model of CIFAR-10 at 32 x 32 on one GPU for 25 minutes, and leaves its checkpoint.
#   records/gpu.sh DATA OUT [--tiny]
# DATA is CIFAR-10 packed at 32 (`igpt prepare cifar10 DATA --image-size 32`): nothing is fetched.
# OUT gets the run; the same command goes on with one that is there. --tiny tries the script in a
# minute, on any machine. Needs a PyTorch image; installs nothing.
set -euo pipefail
: "${1:?the packed set}" "${2:?the folder of the run}"
data=$(realpath "$1") out=$(realpath -m "$2")
cd "$(dirname "$0")/.."
minutes=25 shape=(--model.n-layer 16 --model.n-head 8 --model.n-embd 512 --train.total-steps 12000
  --train.batch-size 128 --train.warmup-steps 200 --train.checkpoint-every 500)
if [ "${3:-}" = --tiny ]; then
  minutes=5 shape=(--model.n-layer 2 --model.n-head 2 --model.n-embd 32 --train.total-steps 4
    --train.batch-size 8 --train.warmup-steps 1 --train.checkpoint-every 2 --data.n-colors 16
    --train.valid-images 16 --train.compile off)
fi
work=("${PYTHON:-python3}" -m igpt pretrain "$data" "$out")
if [ -e "$out/config.json" ]; then
  work+=(--resume)
else
  work+=(--recipe cifar10-record --data.image-size 32 --train.valid-every 500
    --train.decay-fraction 0.3 "${shape[@]}")
fi
# SIGTERM saves the step at hand: what was trained in time is kept, status 143.
timeout --kill-after 60 $((minutes * 60)) "${work[@]}" || [ $? = 124 ]

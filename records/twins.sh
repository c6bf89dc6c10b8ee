#!/bin/bash
# The BERT twin of the middle size of sizes.sh, both probed and both fine-tuned on all labels: the
# paper's Figure 4 (entry 13).
#   LONG=folder bash records/long.sh twins SEED, after long.sh sizes SEED
set -e
ar=$LONG/runs/size-128-$1 bert=$LONG/runs/bert-128-$1
"$IGPT" pretrain cifar10 "$bert" --recipe cifar10-record --seed "$1" --train.objective bert \
  --data.palette "$LONG/palette-small.npy" --model.n-embd 128 --model.n-layer 5 --model.n-head 2 \
  --train.total-steps 1500 --train.micro-batch 16 --train.compile blocks --train.precision bf16 \
  --train.valid-every 250 --train.valid-images 1000 --train.checkpoint-every 500 \
  --train.checkpoint-at 250 500 1000 --resume
"$IGPT" probe "$bert" cifar10 --max-images 3000
for run in "$ar" "$bert"; do
  "$IGPT" finetune "$run" cifar10 "$run-tuned" --finetune.no-joint --finetune.total-steps 700 \
    --finetune.batch-size 32 --finetune.micro-batch 32 --finetune.valid-every 175 \
    --finetune.valid-images 1000 --finetune.lr 0.001 --finetune.precision bf16 \
    --finetune.compile blocks --resume
done

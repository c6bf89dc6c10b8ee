#!/bin/bash
# Three sizes by one recipe and one palette, each checkpoint probed: the paper's Figure 3 (entry 12).
#   LONG=folder bash records/long.sh sizes SEED
# Then, over both seeds: igpt report, as records/README.md has it.
# After it the middle size as BERT; both probed and fine-tuned on all labels: Figure 4 (entry 13).
#   LONG=folder bash records/long.sh twins SEED
set -e
palette=$LONG/palette-small.npy
[ -e "$palette" ] || "$PYTHON" -c \
  'import igpt, sys; igpt.load("cifar10-small").tokenizer.save(sys.argv[1])' "$palette"
seed=$2 middle="128 5 2"

train() { # RUN "WIDTH DEPTH HEADS" [OPTION ...]
  read -r width depth heads <<<"$2"
  "$IGPT" pretrain cifar10 "$1" --recipe cifar10-record --seed "$seed" --data.palette "$palette" \
    --model.n-embd "$width" --model.n-layer "$depth" --model.n-head "$heads" \
    --train.total-steps 1500 --train.micro-batch 16 --train.compile blocks \
    --train.precision bf16 --train.valid-every 250 --train.valid-images 1000 \
    --train.checkpoint-every 500 --train.checkpoint-at 250 500 1000 --resume "${@:3}"
}

if [ "$1" = sizes ]; then
  for shape in "64 4 2" "$middle" "192 6 3"; do
    run=$LONG/runs/size-${shape%% *}-$seed
    train "$run" "$shape"
    "$IGPT" probe "$run" cifar10 --checkpoints --max-images 3000
  done
else
  bert=$LONG/runs/bert-128-$seed
  train "$bert" "$middle" --train.objective bert
  for run in "$LONG/runs/size-128-$seed" "$bert"; do
    "$IGPT" probe "$run" cifar10 --max-images 3000
    "$IGPT" finetune "$run" cifar10 "$run-tuned" --finetune.no-joint --finetune.total-steps 700 \
      --finetune.batch-size 32 --finetune.micro-batch 32 --finetune.valid-every 175 \
      --finetune.valid-images 1000 --finetune.lr 0.001 --finetune.precision bf16 \
      --finetune.compile blocks --resume
  done
fi

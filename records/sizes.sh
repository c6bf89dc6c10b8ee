#!/bin/bash
# Three sizes by one recipe and one palette, each checkpoint probed: the paper's Figure 3 (entry 12).
#   LONG=folder bash records/long.sh sizes SEED
# Then, over both seeds: igpt report, as records/README.md has it.
set -e
palette=$LONG/palette-small.npy
[ -e "$palette" ] || "$PYTHON" -c \
  'import igpt, sys; igpt.load("cifar10-small").tokenizer.save(sys.argv[1])' "$palette"
for shape in "64 4 2" "128 5 2" "192 6 3"; do
  read -r width depth heads <<<"$shape"
  run=$LONG/runs/size-$width-$1
  "$IGPT" pretrain cifar10 "$run" --recipe cifar10-record --seed "$1" --data.palette "$palette" \
    --model.n-embd "$width" --model.n-layer "$depth" --model.n-head "$heads" \
    --train.total-steps 1500 --train.micro-batch 16 --train.compile blocks \
    --train.precision bf16 --train.valid-every 250 --train.valid-images 1000 \
    --train.checkpoint-every 500 --train.checkpoint-at 250 500 1000 --resume
  "$IGPT" probe "$run" cifar10 --checkpoints --max-images 3000
done

#!/usr/bin/env bash
# Measures the whole set on one GPU, in under 9 minutes, into one JSON (default: benchmarks/gpu.json).
# Needs a clean checkout and a PyTorch image (Python >= 3.11, torch >= 2.9); installs nothing and uses
# no network.      usage: benchmarks/gpu.sh [OUT.json] [--tiny]
set -euo pipefail
cd "$(dirname "$0")/.."
out="benchmarks/gpu.json"
case "${1:-}" in *.json) out="$1"; shift ;; esac
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# Compiled kernels are kept between runs, beside the other caches.
export TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/igpt/inductor}"
exec timeout 535 "${PYTHON:-python3}" -m igpt.bench.gpu --out "$out" "$@"

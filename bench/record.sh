#!/usr/bin/env bash
# Measures again what README and docs say of a GPU, one result file each:
#   bench/record.sh [PART ...]      parts: steps fp8 kernels throughput fused d2f nano training; none: all
# GPU (h200) names the files, RESULTS (bench/results) is where they go.
set -euo pipefail
cd "$(dirname "$0")/.."
unmask=${UNMASK:-unmask} gpu=${GPU:-h200} results=${RESULTS:-bench/results}
seven=fast-dllm-v2-7b

steps() { $unmask bench step $seven --out "$results/engine-step-$gpu.json"; }
fp8() { $unmask bench step $seven --shapes 1x32 --quantise fp8 --out "$results/engine-step-fp8-$gpu.json"; }
# Apart from the times, which a profiler that ran may lengthen.
kernels() {
    $unmask bench step $seven --shapes 1x32,1x128,8x32,32x8 --steps 20 --kernels --out "$results/engine-kernels-$gpu.json"
}
throughput() {
    $unmask bench throughput $seven --methods autoregressive,fast_dllm_v2:sub_block_cache=true,trim=true \
        --replay fast_dllm_v2=2.64 --batch 1,8,32,64,128 --by-load --prefill-tokens 65536 \
        --out "$results/engine-throughput-$gpu.json"
}
# The published 2.64 counts a forward a block that only stores it, 32 / 2.64 forwards a block; one less is 2.88.
fused() {
    $unmask bench throughput $seven --methods autoregressive,fast_dllm_v2:sub_block_cache=true,trim=true,fused_commit=true \
        --replay fast_dllm_v2=2.88 --batch 1,8,32 --by-load --prefill-tokens 65536 \
        --out "$results/engine-throughput-fused-$gpu.json"
}
d2f() {
    $unmask bench throughput dream-7b --methods autoregressive,d2f,d2f:max_active_blocks=4 --replay d2f=3.1 --batch 1 \
        --out "$results/engine-d2f-$gpu.json"
}
nano() {
    local quality="bench quality nano --set threshold=0.9 --count 500 --device cuda" batch
    for batch in 1 32 128; do
        $unmask $quality --against nano-ar --batch $batch --engine --out "$results/nano-engine-$batch-$gpu.json"
    done
    $unmask $quality --batch 32 --engine --quantise fp8 --out "$results/nano-engine-fp8-$gpu.json"
    $unmask $quality --batch 128 --out "$results/nano-eager-$gpu.json"
}
training() {
    $unmask bench train qwen2.5-1.5b --recipe fast_dllm_v2 --row-tokens 2048 --rows 16 --rows-per-forward 2 \
        --steps 6 --kernels --out "$results/training-$gpu.json"
}

[ $# -gt 0 ] || set -- steps fp8 kernels throughput fused d2f nano training
for part in "$@"; do
    echo "== $part"
    "$part"
done

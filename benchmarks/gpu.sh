#!/bin/bash
# All that only a GPU can tell, in parts of at most nine minutes each: bash benchmarks/gpu.sh [PART ...]
#
# Needs torch 2.10 or later with CUDA, torchvision and what `pip install .` brings. Runs from a checkout. Parts:
#   tests     the tests that need a GPU
#   steps     images a second of S, B and L, compiled and not
#   trainer   S and L through the trainer, from JPEGs
#   profile   three steps of S by operation: is a compiled S hardly faster than an eager one, then the loss is the step
#   attention kernels of attention at 37 to 257 tokens, in the step of L
#   losses    Sinkhorn and cross entropy beside the matrix form, on the processor, for the ratio of bytes
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
limit=540

part() {
    case $1 in
        tests) "$python" -m pytest -q -m gpu tests ;;
        steps) "$python" -m benchmarks.dinov2_step --sizes s b l --attention sdpa --seconds 20 ;;
        trainer) "$python" -m benchmarks.dinov2_step --sizes s l --trainer 150 ;;
        profile) "$python" -m benchmarks.dinov2_step --sizes s --profile ;;
        attention) "$python" -m benchmarks.dinov2_step --sizes l --attention sdpa varlen --compile yes --seconds 30 ;;
        losses) "$python" -m benchmarks.sinkhorn ;;
        *) echo "no part called $1: tests steps trainer profile attention losses" >&2; return 2 ;;
    esac
}

if [ "${1:-}" = --within ]; then
    part "$2"
    exit
fi
failed=0
for name in "${@:-tests steps trainer profile attention losses}"; do
    for each in $name; do
        echo "== $each"
        timeout "$limit" bash "$0" --within "$each" || { echo "== $each ended with $?"; failed=1; }
    done
done
exit $failed

#!/usr/bin/env bash
# What is done with a lent GPU machine that has no network and is bare at the start.
#
#   bash benchmarks/gpu_session.sh check             tests on the GPU and on its Python, < 150 s
#   bash benchmarks/gpu_session.sh measure SECONDS   the jobs listed below, stopped after SECONDS
#
# Run it in the root of a checkout, in which lie
#   .whl/        wheels of what the machine's Python lacks; they are installed into /tmp/site
#   .gpu/data/   data sets, each with images/, train.json and val.json
# Everything is written under $OUT (default: gpu-session): logs of `check` as they are, what
# `measure` made in one archive, measure.tar.gz, without stores and weights. Only `check` fails
# where something failed; of `measure` jobs.txt says how each job ended.
set -uo pipefail

PHASE=${1:?check or measure}
LIMIT=${2:-400}
OUT=$(mkdir -p "${OUT:-gpu-session}" && cd "${OUT:-gpu-session}" && pwd)
ROOT=$PWD
SITE=/tmp/site
DATA=$ROOT/.gpu/data
WORK=/tmp/gpu-session
PYTHON=${PYTHON:-python3}
DEVICE=${DEVICE:-cuda} # cpu: to try the script itself

install_wheels() {
    [ -d "$SITE" ] || "$PYTHON" -m pip install -q --no-index --no-deps --no-compile \
        --no-cache-dir --upgrade --target "$SITE" .whl/*.whl || exit 1
    export PYTHONPATH=$SITE:$ROOT PYTHONUNBUFFERED=1
}

print_facts() {
    nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
    "$PYTHON" - <<'PY'
import os, platform
import torch
from cachedet.store.manifest import library_versions
print("python", platform.python_version(), "cores", len(os.sched_getaffinity(0)))
print("cuda", torch.version.cuda, "cudnn", torch.backends.cudnn.version())
print("tf32 of convolutions", torch.backends.cudnn.allow_tf32)
print(library_versions())
PY
}

# Plugins of the machine's pytest warn of each other, and warnings are errors here.
run_tests() { # name, seconds, arguments of pytest
    local name=$1 seconds=$2 status
    shift 2
    OMP_NUM_THREADS=1 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 timeout "$seconds" "$PYTHON" -m pytest \
        -p xdist -p no:cacheprovider -q --show-capture=no --durations=8 "$@" >"$OUT/$name.log" 2>&1
    status=$?
    echo "$name: exit $status after ${SECONDS} s" >>"$OUT/summary.txt"
    return $status
}

check() {
    local failed=0 pid
    print_facts 2>&1 | tee "$OUT/facts.txt"
    : >"$OUT/summary.txt"
    # The compiler takes as long as all other tests together, so it starts at once, beside them.
    # A warning of a library that is newer here shall not cost the session: it is shown at the end.
    run_tests compiled 130 tests/cuda -n 2 -k compiled -W default & local pids=($!)
    run_tests cuda 130 tests/cuda -n 6 -k "not compiled" -W default -rP & pids+=($!)
    CUDA_VISIBLE_DEVICES= run_tests cpu 110 tests/training tests/store -n 9 --dist worksteal & pids+=($!)
    for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
    for name in compiled cpu cuda; do
        echo "=== $name" && tail -n 45 "$OUT/$name.log" | cut -c1-200
    done
    cat "$OUT/summary.txt"
    return $failed
}

# --- what is measured: edit these lists -----------------------------------------------------
# name | most seconds | command; stores and files lie under $WORK, and commands see $PYTHON,
# $DEVICE, $DATA and $WORK. First those that are timed, one after the other on a quiet machine,
# then those whose scores count, AT_ONCE at a time (their seconds are those of a shared GPU).
AT_ONCE=6
BCCD='--images $DATA/bccd/images --train $WORK/bccd-train.zarr --val $WORK/bccd-val.zarr'
STORES='--train $WORK/bccd-train.zarr --val $WORK/bccd-val.zarr'
ALONE=(
    'heads|40|$PYTHON benchmarks/heads.py --device $DEVICE --batch 4 --rounds 20'
    'against_live|150|$PYTHON benchmarks/against_live.py --device $DEVICE --images $DATA/bccd/images --annotations $DATA/bccd/train.json --out $WORK/against --pictures 128 --batch 16 --steps 8'
    'extraction|60|$PYTHON benchmarks/extraction.py --device $DEVICE --images $DATA/bccd/images --annotations $DATA/bccd/train.json --out $WORK'
    'stall|60|$PYTHON benchmarks/stall.py --device $DEVICE --store $WORK/bccd-train.zarr --residencies stream,ram,device --steps 30 --pairs 3'
    "torchvision|60|\$PYTHON benchmarks/torchvision_faster_rcnn.py --device \$DEVICE $BCCD --out \$WORK/torchvision --steps 12"
)
TOGETHER=(
    "ablation_cached|200|\$PYTHON benchmarks/ablation.py --device \$DEVICE $BCCD --out \$WORK/ablation --epochs 20 --only 'none,cached flip,jitter 2'"
    "ablation_live|200|\$PYTHON benchmarks/ablation.py --device \$DEVICE $BCCD --out \$WORK/ablation --epochs 20 --only 'live flip,live jitter'"
    "table_retinanet|200|\$PYTHON benchmarks/detector_table.py --device \$DEVICE $STORES --out \$WORK/table --epochs 12 --configs configs/retinanet_fpn_tiny.yaml,configs/retinanet_nasfpn_tiny.yaml"
    "table_cascade|200|\$PYTHON benchmarks/detector_table.py --device \$DEVICE $STORES --out \$WORK/table --epochs 12 --configs configs/cascade_rcnn_fpn_tiny.yaml,configs/cascade_rcnn_nasfpn_tiny.yaml"
)
# ---------------------------------------------------------------------------------------------

make_stores() {
    local split views
    for split in train val; do
        views=base
        [ "$split" = train ] && views=base,hflip,jitter=2:0.5-1.5
        run_job "extract_$split|90|\$PYTHON -m cachedet extract --images \$DATA/bccd/images --annotations \$DATA/bccd/$split.json --store \$WORK/bccd-$split.zarr --image-size 384 --views $views --device \$DEVICE --on-bad-image skip --json"
    done
}

run_job() {
    local name seconds command left started=$SECONDS status
    IFS='|' read -r name seconds command <<<"$1"
    left=$((LIMIT - SECONDS))
    ((left < seconds)) && seconds=$left
    if ((seconds < 5)); then
        echo "$name: no time left" >>"$WORK/jobs.txt"
        return
    fi
    PYTHON=$PYTHON DEVICE=$DEVICE DATA=$DATA WORK=$WORK timeout "$seconds" \
        bash -c "$command" >"$WORK/$name.json" 2>"$WORK/$name.log"
    status=$?
    echo "$name: exit $status after $((SECONDS - started)) s" | tee -a "$WORK/jobs.txt"
}

pack() {
    tar -czf "$OUT/measure.tar.gz" -C "$WORK" --exclude='*.zarr' --exclude=weights --exclude='*.pt' .
    ls -l "$OUT/measure.tar.gz"
}

measure() {
    mkdir -p "$WORK" "$WORK/against"
    print_facts >"$WORK/facts.txt" 2>&1
    make_stores
    local job
    for job in "${ALONE[@]}"; do run_job "$job"; done
    pack # should the rest be cut short
    for job in "${TOGETHER[@]}"; do
        while (($(jobs -rp | wc -l) >= AT_ONCE)); do wait -n; done
        OMP_NUM_THREADS=2 run_job "$job" &
    done
    wait
    cat "$WORK/jobs.txt"
    pack
}

install_wheels
case $PHASE in
    check) check ;;
    measure) measure ;;
    *) echo "expected check or measure, got $PHASE" >&2 && exit 2 ;;
esac

#!/usr/bin/env bash
# What is done with a lent GPU machine that has no network and is bare at the start.
#
#   bash benchmarks/gpu_session.sh check              tests on the GPU and on its Python, < 150 s
#   bash benchmarks/gpu_session.sh alone SECONDS      the timings listed below, one after the other
#   bash benchmarks/gpu_session.sh together SECONDS   the trainings listed below, many at once
#
# Run it in the root of a checkout, in which lie
#   .whl/        wheels of what the machine's Python lacks; they are installed into /tmp/site
#   .gpu/data/   data sets, each with images/, train.json and val.json
# Everything is written under $OUT (default: gpu-session): logs of `check` as they are, what the
# others made in one archive, PHASE.tar.gz, without stores and weights. Only `check` fails where
# something failed; of the others jobs.txt says how each job ended.
set -uo pipefail

PHASE=${1:?check, alone or together}
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
# $DEVICE, $DATA and $WORK. TOGETHER: the scores count, their seconds are those of a shared GPU.
AT_ONCE=15
PICTURES='--images $DATA/bccd/images --annotations $DATA/bccd/train.json'
FEATURES='--images $DATA/bccd/images --train $WORK/features/bccd/train.zarr --val $WORK/features/bccd/val.zarr'
BCCD='--images $DATA/bccd/images --train $WORK/bccd-train.zarr --val $WORK/bccd-val.zarr'
BASE='--config configs/retinanet_fpn.yaml --image-size 640 --pictures 96 --batch 16 --steps 6 --rounds 2'
ALONE=(
    'heads_tiny|40|$PYTHON benchmarks/heads.py --device $DEVICE --batch 4 --rounds 12'
    "against_tiny|110|\$PYTHON benchmarks/against_live.py --device \$DEVICE $PICTURES --out \$WORK/against --pictures 96 --batch 16 --steps 6 --rounds 2 --backbones tf_efficientnet_lite0,resnet50,convnext_base"
    "against_base|80|\$PYTHON benchmarks/against_live.py --device \$DEVICE $PICTURES --out \$WORK/base $BASE --backbones resnet50,convnext_base"
    "extraction|40|\$PYTHON benchmarks/extraction.py --device \$DEVICE $PICTURES --out \$WORK"
    "torchvision|40|\$PYTHON benchmarks/torchvision_faster_rcnn.py --device \$DEVICE $BCCD --out \$WORK/torchvision --steps 12"
    'stall|40|$PYTHON benchmarks/stall.py --device $DEVICE --store $WORK/bccd-train.zarr --residencies stream,ram,device --steps 30 --pairs 2'
    "extraction_fp32|40|NVIDIA_TF32_OVERRIDE=0 \$PYTHON benchmarks/extraction.py --device \$DEVICE $PICTURES --out \$WORK"
    'heads_base|40|$PYTHON benchmarks/heads.py --device $DEVICE --batch 8 --rounds 5 --size 640x640 --features C3:512:8,C4:1024:16,C5:2048:32 --configs configs/retinanet_fpn.yaml,configs/faster_rcnn_fpn.yaml,configs/cascade_rcnn_nasfpn.yaml'
)
TOGETHER=()
for seed in 0 1 2; do
    for run in bccd:cascade_rcnn_nasfpn:6 kangaroo:cascade_rcnn_nasfpn:10 bccd:retinanet_fpn:10 kangaroo:retinanet_fpn:12; do
        IFS=: read -r data heads epochs <<<"$run"
        TOGETHER+=("$data-$heads-$seed|400|mkdir -p \$WORK/compare/$data-$heads-$seed && cp -r \$WORK/features/$data \$WORK/compare/$data-$heads-$seed/features && \$PYTHON -m cachedet compare configs/${heads}_tiny.yaml --images \$DATA/$data/images --annotations \$DATA/$data/train.json --val-annotations \$DATA/$data/val.json --on-bad-image skip --image-size 384 --epochs $epochs --seeds $seed --modes cached,tuned,live,scratch --set eval_every=3 --device \$DEVICE --workers 4 --out \$WORK/compare/$data-$heads-$seed")
    done
    TOGETHER+=("torchvision_$seed|400|\$PYTHON benchmarks/torchvision_faster_rcnn.py --device \$DEVICE $FEATURES --out \$WORK/torchvision-$seed --steps 2 --epochs 10 --seed $seed")
done
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
    tar -czf "$OUT/$PHASE.tar.gz" -C "$WORK" --exclude='*.zarr' --exclude=weights --exclude='*.pt' .
    ls -l "$OUT/$PHASE.tar.gz"
}

alone() {
    local job
    make_stores
    for job in "${ALONE[@]}"; do run_job "$job"; done
}

# One extraction for all comparisons of a data set; its seconds are those of four at a time.
make_features() {
    local data split views
    for data in bccd kangaroo; do
        mkdir -p "$WORK/features/$data"
        for split in train val; do
            views=base
            [ "$split" = train ] && views=base,hflip,jitter=2:0.5-1.5
            run_job "extract_${data}_$split|90|\$PYTHON -m cachedet extract --images \$DATA/$data/images --annotations \$DATA/$data/$split.json --store \$WORK/features/$data/$split.zarr --image-size 384 --views $views --device \$DEVICE --on-bad-image skip --workers 4 --json" &
        done
    done
    wait
    for data in bccd kangaroo; do
        "$PYTHON" -c 'import json, sys; print(json.dumps({"train": json.load(sys.stdin)["seconds"]}))' \
            <"$WORK/extract_${data}_train.json" >"$WORK/features/$data/seconds.json"
    done
}

together() {
    local job
    make_features
    for job in "${TOGETHER[@]}"; do
        while (($(jobs -rp | wc -l) >= AT_ONCE)); do wait -n; done
        OMP_NUM_THREADS=1 run_job "$job" &
    done
    wait
}

measure() {
    mkdir -p "$WORK/against" "$WORK/base" "$WORK/compare"
    print_facts >"$WORK/facts.txt" 2>&1
    "$PHASE"
    cat "$WORK/jobs.txt"
    pack
}

install_wheels
case $PHASE in
    check) check ;;
    alone | together) measure ;;
    *) echo "expected check, alone or together, got $PHASE" >&2 && exit 2 ;;
esac

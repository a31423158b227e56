#!/usr/bin/env bash
# What is done with a lent GPU machine that has no network and is bare at the start.
#
#   bash benchmarks/gpu_session.sh check              tests on the GPU, < 130 s
#   bash benchmarks/gpu_session.sh extraction SECONDS variants of extraction, each with the share of
#                                                     its backbone alone; 300 to 500 s
#   bash benchmarks/gpu_session.sh alone SECONDS      the timings listed below, one after the other
#   bash benchmarks/gpu_session.sh together SECONDS   the trainings listed below, many at once
#
# Run it in the root of a checkout, in which lie
#   .whl/        wheels of what the machine's Python lacks and it does not have in /tmp/site yet;
#                they are installed there, so that a later call may bring others
#   .gpu/data/   data sets, each with images/, train.json and val.json
# Everything is written under $OUT (default: gpu-session): logs of `check` as they are, what the
# others made in one archive, PHASE.tar.gz, without stores and weights. Only `check` fails where
# something failed; of the others jobs.txt says how each job ended.
set -uo pipefail

PHASE=${1:?check, extraction, alone or together}
LIMIT=${2:-400}
OUT=$(mkdir -p "${OUT:-gpu-session}" && cd "${OUT:-gpu-session}" && pwd)
ROOT=$PWD
SITE=/tmp/site
PYTHON=${PYTHON:-python3}
# To try the script itself, as without a GPU and wheels:
#   DEVICE=cpu COUNT=4 DATA=DIR WORK=DIR PYTHON=... bash benchmarks/gpu_session.sh extraction 300
DEVICE=${DEVICE:-cuda}
COUNT=${COUNT:-256} # images of extraction
DATA=${DATA:-$ROOT/.gpu/data}
WORK=${WORK:-/tmp/gpu-session}

install_wheels() {
    export PYTHONPATH=$SITE:$ROOT PYTHONUNBUFFERED=1
    [ "$DEVICE" = cpu ] && return
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile \
        --no-cache-dir --upgrade --target "$SITE" .whl/*.whl || exit 1
}

print_facts() {
    nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
    "$PYTHON" - <<'PY'
import os, platform
import torch
from cachedet.store.format.manifest import library_versions
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
    run_tests cuda 130 tests/cuda -n 10 -k "not compiled" -W default -rP & pids+=($!)
    for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
    for name in compiled cuda; do
        echo "=== $name" && tail -n 45 "$OUT/$name.log" | cut -c1-200
    done
    cat "$OUT/summary.txt"
    return $failed
}

# --- what is measured: edit these lists -----------------------------------------------------
# name | most seconds | command; stores and files lie under $WORK, and commands see $PYTHON,
# $DEVICE, $DATA and $WORK. TOGETHER: the scores count, their seconds are those of a shared GPU.
AT_ONCE=16
IMAGES='--images $DATA/bccd/images --annotations $DATA/bccd/train.json'
BASE='--config configs/retinanet_fpn.yaml --image-size 640 --count 96 --batch 16 --steps 6 --rounds 2'
# What compiles nothing comes first: no time that the compiler takes can cost it.
EXTRACTION=()
variants_of() { # backbones, images of a batch, variants, seconds
    local backbone
    for backbone in $1; do
        EXTRACTION+=("extraction-$backbone-$2-$3|$4|\$PYTHON benchmarks/extraction.py --device \$DEVICE $IMAGES --out \$WORK --count \$COUNT --backbones $backbone --batch-size $2 --variants $3")
    done
}
variants_of 'tf_efficientnet_lite0 resnet50 vit_small_patch16_224' 8 eager,bf16 60
variants_of 'tf_efficientnet_lite0 resnet50 vit_small_patch16_224' 8 compile,bf16+compile 110
variants_of 'tf_efficientnet_lite0 resnet50' 32 eager,bf16,bf16+compile 110
ALONE=(
    'stall|80|$PYTHON benchmarks/stall.py --device $DEVICE --store $WORK/bccd-train.zarr --residencies stream,ram,device --steps 30 --pairs 4'
    "against_base|75|\$PYTHON benchmarks/against_live.py --device \$DEVICE $IMAGES --out \$WORK/base $BASE --backbones resnet50"
    "against_convnext|80|\$PYTHON benchmarks/against_live.py --device \$DEVICE $IMAGES --out \$WORK/base $BASE --backbones convnext_base"
    "against_tiny|60|\$PYTHON benchmarks/against_live.py --device \$DEVICE $IMAGES --out \$WORK/against --count 96 --batch 16 --steps 6 --rounds 2 --backbones tf_efficientnet_lite0,resnet50"
    "stall_resnet50|45|\$PYTHON benchmarks/stall.py --device \$DEVICE --synthetic \$WORK/large --residencies stream,ram,device --steps 12 --pairs 3"
)
BACKBONES='lite0 lite2'
TOGETHER=()
cells() { # data, config, epochs, backbone, seeds, modes: one process each
    local data=$1 heads=$2 epochs=$3 backbone=$4 seed mode out
    for seed in $5; do
        for mode in $6; do
            out="\$WORK/compare/$data-$heads-$backbone-$mode-$seed"
            TOGETHER+=("$data-$heads-$backbone-$mode-$seed|400|mkdir -p $out && cp -al \$WORK/features/$data-$backbone $out/features && \$PYTHON -m cachedet compare configs/${heads}_tiny.yaml --images \$DATA/$data/images --annotations \$DATA/$data/train.json --val-annotations \$DATA/$data/val.json --on-bad-image skip --image-size 384 --epochs $epochs --seeds $seed --modes $mode --backbone tf_efficientnet_$backbone --set eval_every=$epochs --resamples 200 --device \$DEVICE --workers 2 --out $out")
        done
    done
}
cells bccd cascade_rcnn_nasfpn 6 lite2 0 'tuned cached'
cells kangaroo cascade_rcnn_nasfpn 10 lite2 0 'tuned cached'
cells bccd cascade_rcnn_nasfpn 6 lite0 '0 1 2' 'tuned cached'
cells kangaroo cascade_rcnn_nasfpn 10 lite0 '0 1 2' 'tuned cached'
cells bccd cascade_rcnn_nasfpn 6 lite0 0 'scratch live'
cells kangaroo cascade_rcnn_nasfpn 10 lite0 0 'scratch live'
cells bccd retinanet_fpn 10 lite2 0 'tuned cached'
cells kangaroo retinanet_fpn 12 lite2 0 'tuned cached'
cells bccd retinanet_fpn 10 lite0 0 scratch
cells kangaroo retinanet_fpn 12 lite0 0 'scratch live'
cells bccd cascade_rcnn_nasfpn 6 lite2 '1 2' 'tuned cached'
cells kangaroo cascade_rcnn_nasfpn 10 lite2 '1 2' 'tuned cached'
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
    PYTHON=$PYTHON DEVICE=$DEVICE DATA=$DATA WORK=$WORK COUNT=$COUNT timeout "$seconds" \
        bash -c "$command" >"$WORK/$name.json" 2>"$WORK/$name.log"
    status=$?
    echo "$name: exit $status after $((SECONDS - started)) s" | tee -a "$WORK/jobs.txt"
}

pack() {
    tar -czf "$OUT/$PHASE.tar.gz" -C "$WORK" --exclude='*.zarr' --exclude=weights --exclude='*.pt' .
    ls -l "$OUT/$PHASE.tar.gz"
}

extraction() {
    local job
    for job in "${EXTRACTION[@]}"; do run_job "$job"; done
    "$PYTHON" - "$WORK"/extraction-*.json <<'PY'
import json, sys
print("backbone, batch, variant: images/s alone, in extraction, share; of the stages")
for name in sys.argv[1:]:
    text = open(name).read()
    for each in json.loads(text)["results"] if text else []:
        stages = {key: round(rate) for key, rate in each["stage_images_per_second"].items()}
        print(each["backbone"], each["batch_size"], f"{each['variant']}:",
              round(each["alone_images_per_second"]), round(each["extraction_images_per_second"]),
              f"{each['extraction_to_alone']:.2f};", stages)
PY
}

alone() {
    local job
    make_stores
    for job in "${ALONE[@]}"; do run_job "$job"; done
}

# One extraction for all comparisons of a data set and backbone; its seconds are those of many at
# a time.
make_features() {
    local data backbone split views
    for data in bccd kangaroo; do
        for backbone in $BACKBONES; do
            mkdir -p "$WORK/features/$data-$backbone"
            for split in train val; do
                views=base
                [ "$split" = train ] && views=base,hflip,jitter=2:0.5-1.5
                run_job "extract_${data}_${backbone}_$split|90|\$PYTHON -m cachedet extract --images \$DATA/$data/images --annotations \$DATA/$data/$split.json --store \$WORK/features/$data-$backbone/$split.zarr --image-size 384 --views $views --backbone tf_efficientnet_$backbone --device \$DEVICE --on-bad-image skip --workers 2 --json" &
            done
        done
    done
    wait
    for data in bccd kangaroo; do
        for backbone in $BACKBONES; do
            "$PYTHON" -c 'import json, sys; print(json.dumps({"train": json.load(sys.stdin)["seconds"]}))' \
                <"$WORK/extract_${data}_${backbone}_train.json" >"$WORK/features/$data-$backbone/seconds.json"
        done
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
    extraction | alone | together) measure ;;
    *) echo "expected check, extraction, alone or together, got $PHASE" >&2 && exit 2 ;;
esac

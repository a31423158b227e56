#!/bin/sh
# Check the wheel in dist/ as somebody has it who has nothing else: `make release-check`.
# A new virtual environment outside of the checkout, the mandatory dependencies only.
set -eu
python=${1:?usage: release_check.sh PYTHON}
wheel=$(ls "$PWD"/dist/cachedet-*.whl)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 1' INT TERM  # else the folder stays
unset PYTHONPATH
"$python" -m venv "$folder/venv"
cd "$folder"
PATH="$folder/venv/bin:$PATH"
pip install --quiet --disable-pip-version-check "$wheel"
cachedet --version
cachedet --help > help.txt
cachedet configs > configs.txt
python - "$folder" <<'END'
import sys
from pathlib import Path

import cachedet
from cachedet.data.shapes import write_shapes

assert Path(cachedet.__file__).is_relative_to(sys.argv[1]), cachedet.__file__
for name in cachedet.__all__:
    getattr(cachedet, name)
write_shapes(Path("shapes"), train=8, val=4)
END
for split in train val; do
    cachedet extract --images shapes/images --annotations "shapes/$split.json" \
        --store "$split.zarr" --backbone test_resnet --weights none --image-size 128 --views base
done
cachedet train-heads retinanet_fpn_tiny --train train.zarr --val val.zarr --run run \
    --set schedule.epochs=1
cachedet eval run --store val.zarr
test -s run/results.json
echo "release-check: $(basename "$wheel") works with its mandatory dependencies alone"

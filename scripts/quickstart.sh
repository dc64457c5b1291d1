#!/usr/bin/env bash
# From nothing to restored photos on a CPU: environment, data, training, comparison, report.
#
#   bash scripts/quickstart.sh
#
# About 14 minutes on 2 cores, and 3 more the first time. Interrupted? Run it again: it goes on from
# the last checkpoint. Everything lands in datasets/quickstart, experiments/quickstart_* and
# results/quickstart_*; start with the report.md there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/env.sh
bin="$(dirname "$PYTHON")"

data=datasets/quickstart
if [ ! -d "$data/val.lmdb" ]; then
    "$PYTHON" scripts/data/skimage_photos.py -o "$data/photos"
    for split in train val; do
        "$bin/unfoldldm" prepare folder -i "$data/photos/$split" -o "$data/$split.lmdb" \
            --payload bmp --force
    done
fi

"$bin/unfoldldm" compare -opt options/compare/quickstart
"$bin/unfoldldm" restore --overwrite \
    -i results/quickstart_time300/restored/degraded/heldout_whole \
    -o results/quickstart_time300/by_hand \
    -w experiments/quickstart_time300_unfoldldm_seed0_phase2/models/net_g_latest.pth

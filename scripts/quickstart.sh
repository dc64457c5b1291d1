#!/usr/bin/env bash
# From nothing to restored photos on a CPU: environment, data, both training phases, report.
#
#   bash scripts/quickstart.sh
#
# About 15 minutes on 2 cores, and 3 more the first time. Interrupted? Run it again: it goes on from
# the last checkpoint. Everything lands in datasets/quickstart, experiments/smoke_* and
# results/quickstart.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/env.sh
bin="$(dirname "$PYTHON")"

data=datasets/quickstart
if [ ! -d "$data/val.lmdb" ]; then
    "$PYTHON" scripts/data/skimage_photos.py -o "$data/photos"
    for split in train val; do
        "$PYTHON" scripts/data/make_lmdb.py "$data/photos/$split" -o "$data/$split.lmdb" \
            --payload bmp --force
    done
fi

for phase in 1 2; do
    # 'latest' is written at the very end of a training: what it finds finished is not repeated.
    if [ ! -f "experiments/smoke_unfoldldm_phase$phase/models/net_g_latest.pth" ]; then
        "$PYTHON" -m unfoldldm_basicsr.train -opt "options/smoke/unfoldldm_phase$phase.yml" \
            --auto_resume
    fi
done

weights=experiments/smoke_unfoldldm_phase2/models/net_g_latest.pth
"$PYTHON" scripts/compare/heldout_report.py -opt options/smoke/unfoldldm_phase2.yml \
    -w "$weights" -o results/quickstart
"$bin/unfoldldm" restore -i results/quickstart/degraded -o results/quickstart/restored \
    -w "$weights" --overwrite

#!/usr/bin/env bash
# Trains teachers for the default model, on a GPU: two networks with a larger input than its own. One
# has learned from faces, the other from ImageNet.
#
# Each network is trained twice, each time on one half of the faces, and predicts the other half. What
# a teacher remembers of the labels it was trained on would teach nothing. In a small trial on two CPU
# cores that was no gain (docs/experiments.md).
#
#   bash configs/teachers.sh OUT --data_dir UTKFace appa-real-release fairface \
#     --dataset utkface appa_real fairface
#
# Writes OUT/NETWORK_{1,2}.pth, 7 and 10 MB each, and OUT/teachers/NETWORK.csv for LOSS.TEACHER. After
# an interruption, start the same command again: it continues. KEY VALUE pairs at the end apply to
# every training. For a GPU without the photos, pack the faces first: python -m training.pack. Not
# run on a GPU yet. The weights of mobilenetv1 are for research only (docs/architectures.md).
source "$(dirname "$0")/words.sh"
if [[ " ${trained[*]} " == *" DATA.EXCLUDE "* ]]; then
    echo "error: DATA.EXCLUDE is taken, it keeps the halves apart; remove photos from the lists" >&2
    exit 2
fi
mkdir -p "$out/teachers"
[ -f "$out/half_2.csv" ] ||
    PYTHONPATH="$root" python -m training.teachers "$out" "${data[@]}"

# teach NETWORK KEY VALUE ...: train it on each half, and let it predict the other.
teach() {
    local half other table=$out/teachers/$1.csv
    [ ! -f "$table" ] || return 0
    for half in 1 2; do
        other=$((3 - half))
        train "$1_$half" default "${@:2}" TRAIN.SEED "$half" TRAIN.AMP auto \
            DATA.EXCLUDE "$out/half_$other.csv"
        PYTHONPATH="$root" python -m training.release "$out/$1_$half/best.pth" "$out/$1_$half.pth"
        python "$root/test.py" --split train --resume "$out/$1_$half.pth" \
            --output "$out/$1_$half.csv" "${tested[@]}" TEST.TTA True \
            DATA.EXCLUDE "$out/half_$half.csv"
    done
    { cat "$out/$1_1.csv"; tail -n +2 "$out/$1_2.csv"; } > "$table.part"
    mv "$table.part" "$table"
}

common=(MODEL.IMG_SIZE 224 TRAIN.BATCH_SIZE 256 TRAIN.EPOCHS 12 AUG.STRENGTH 0.7)
teach mobilenetv1 MODEL.ARCH mobilenetv1 MODEL.PRETRAINED vggface2 MODEL.DROP_PATH 0 \
    TRAIN.LR 0.002 TRAIN.BACKBONE_LR_SCALE 0.5 "${common[@]}"
teach lite2 MODEL.ARCH timm/tf_efficientnet_lite2 TRAIN.LR 0.002 "${common[@]}"

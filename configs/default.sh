#!/usr/bin/env bash
# The default model: EfficientNet-Lite2, which learns at 160 px from the labels and, as much, from
# what two teachers say of the training faces: itself as it was at 128 px, and an EfficientNet-Lite0.
# Another training then has it in the place of the former. Four short ones follow, on faces that are
# changed less, three of them from the mean of the weights of trainings before.
#
#   bash configs/default.sh OUT --data_dir UTKFace appa-real-release fairface \
#     --dataset utkface appa_real fairface
#
# after preprocess.generate_csv (for UTKFace with --train_on_test) and preprocess.face_align of each.
# Writes OUT/model.pth. Started again after an interruption it goes on. KEY VALUE pairs at the end
# hold for every training. 49,811 training faces; with 16 GB of disk for the crops about 13 hours on
# two cores, of which the two teachers take six. On valid: MAE UTKFace 4.40, APPA-REAL 3.33; FairFace
# 56.6% in the right bin (the first teacher trained without UTKFace's test list).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
if [ $# -lt 3 ] || [[ $1 == -* ]]; then
    echo "error: write bash configs/default.sh OUT --data_dir ... --dataset ..." >&2
    exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
trained=("$@") tested=()  # words for train.py, and for test.py, which takes fewer
while [ $# -gt 0 ]; do
    if [ "$1" = --tensorboard ] || [[ $1 =~ ^[A-Z]+\.[A-Z0-9_]+$ &&
            ! $1 =~ ^(TEST\..*|DATA\.CACHE|DATA\.EXCLUDE)$ ]]; then
        shift $(($# > 1))  # with its value
    else
        tested+=("$1")
    fi
    shift
done
lite2=timm/tf_efficientnet_lite2

# train FOLDER KEY VALUE ...: begin a run, or go on with it.
train() {
    local folder=$out/$1
    local how=(--cfg "$root/configs/default.yaml" "${@:2}")
    [ ! -f "$folder/last.pth" ] || how=(--resume "$folder/last.pth")  # which holds the pairs
    python "$root/train.py" --checkpoint "$folder" "${how[@]}" "${trained[@]}"
}

# teach FOLDER RUN: write what its best model says of the training faces.
teach() {
    local table=$out/$1/$(basename "$2").csv
    [ -f "$table" ] || python "$root/test.py" --split train --resume "$out/$2/best.pth" \
        --output "$table" TEST.TTA True "${tested[@]}"
}

# mean FILE RUN ...: write the mean of the weights of their best models.
mean() {
    local run paths=()
    for run in "${@:2}"; do paths+=("$out/$run/best.pth"); done
    PYTHONPATH="$root" python -m training.release "${paths[@]}" "$out/$1"
}

# finish FOLDER START KEY VALUE ...: two epochs on faces that are changed less.
finish() {
    train "$1" "${at_160[@]}" MODEL.PRETRAINED "$out/$2" TRAIN.LR 0.0003 TRAIN.EPOCHS 2 \
        AUG.STRENGTH 0.4 LOSS.RARE_AGE_POWER 0.4 LOSS.TEACHER "$out/better_teachers" "${@:3}"
}

python "$root/train.py" --checkpoint "$out/lite0" \
    --cfg "$root/configs/default.yaml" "$root/configs/default_160.yaml" "${trained[@]}"
train lite2 MODEL.ARCH $lite2 TRAIN.EPOCHS 8 TRAIN.AMP auto
teach teachers lite0/default_160
teach teachers lite2
at_160=(MODEL.ARCH $lite2 MODEL.IMG_SIZE 160 TRAIN.AMP auto)
train lite2_160 "${at_160[@]}" MODEL.PRETRAINED "$out/lite2/best.pth" TRAIN.LR 0.0007 \
    TRAIN.EPOCHS 5 TRAIN.SEED 1 LOSS.TEACHER "$out/teachers"
teach better_teachers lite2_160
cp "$out/teachers/default_160.csv" "$out/better_teachers"
train lite2_160_again "${at_160[@]}" MODEL.PRETRAINED "$out/lite2_160/best.pth" TRAIN.LR 0.0005 \
    TRAIN.EPOCHS 4 TRAIN.SEED 2 LOSS.RARE_AGE_POWER 0.5 LOSS.TEACHER "$out/better_teachers"
mean mean_1.pth lite2_160 lite2_160_again
finish last_1 mean_1.pth TRAIN.SEED 4
finish last_2 lite2_160/best.pth TRAIN.SEED 5
mean mean_2.pth last_1 last_2
above_100=(DATA.EXCLUDE "$root/configs/utkface_above_100.csv")  # which the lists call 100
finish last_3 mean_2.pth TRAIN.SEED 6 "${above_100[@]}"
mean mean_3.pth last_1 last_2 last_3
finish last mean_3.pth TRAIN.SEED 9 LOSS.INTERVAL_WEIGHT 0.5 LOSS.LABEL vote_std "${above_100[@]}"
python "$root/test.py" --calibrate --resume "$out/last/best.pth" "${tested[@]}"
PYTHONPATH="$root" python -m training.release "$out/last/best.pth" "$out/model.pth"

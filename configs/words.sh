# The beginning of default.sh and teachers.sh, which source it: what their words mean, and how a run
# is started.
#
# Their words are OUT, then flags and KEY VALUE pairs in any order. Sets
#   root     this repository
#   out      OUT, created if missing
#   trained  the words after OUT, for train.py
#   tested   those of them that test.py accepts
#   data     those of them that name the faces
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
if [ $# -lt 3 ] || [[ $1 == -* ]]; then
    echo "error: write bash $0 OUT --data_dir ... --dataset ..." >&2
    exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
trained=("$@") tested=() data=()
flag=
while [ $# -gt 0 ]; do
    if [[ $1 =~ ^[A-Z]+\.[A-Z0-9_]+$ ]]; then
        case $1 in TEST.* | DATA.CACHE | DATA.EXCLUDE) tested+=("${@:1:2}") ;; esac
        shift $(($# > 1))  # with its value
    else
        case $1 in --*) flag=${1%%=*} ;; esac  # of --flag=value the flag
        case $flag in --data_dir | --dataset | --list_dir | --cache_dir) data+=("$1") ;; esac
        [ "$flag" = --tensorboard ] || tested+=("$1")
    fi
    shift
done

# train FOLDER RECIPE KEY VALUE ...: start a run, or continue it.
train() {
    local folder=$out/$1
    local how=(--cfg "$root/configs/$2.yaml" "${@:3}")
    [ ! -f "$folder/last.pth" ] || how=(--resume "$folder/last.pth")  # it contains the pairs
    python "$root/train.py" --checkpoint "$folder" "${how[@]}" "${trained[@]}"
}

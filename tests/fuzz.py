"""Damaged files of every kind that a user passes in: none may end a script with a traceback.

    python tests/fuzz.py                        10,000 files
    python tests/fuzz.py --only checkpoint 417  one file again, with its traceback

Each file is a good one with bytes flipped, cut out, repeated or inserted. A reader accepts it, or
refuses it with a ValueError or an OSError, which utils.cli.run_main turns into one line. Anything
else is a fault, and so is a file that takes longer than MAX_SECONDS. The seed and the number of a
file decide how it is damaged.
"""

import argparse
import contextlib
import io
import math
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))  # to run as a script

import onnx
import torch
from faces import write_dataset
from onnx import TensorProto, helper
from PIL import Image
from scipy.io import savemat

from age_network import load_age_network
from checkpoint import save_checkpoint
from dataset import FaceDataset
from defaults import age_bins, load_cfg, parse_cfg
from evaluation.predictions import read_predictions
from lists import Source, read_faces
from metrics import point_scores
from model import build_model
from predictor import as_photo, read_or_explain
from preprocess.face import has_exif_rotation, upright_size
from preprocess.generate_csv import sort_records
from preprocess.readers import DATASETS, Options, table_reader
from utils.onnx_network import CHECKSUM_KEY, with_checksum
from utils.tables import read_columns

MAX_SECONDS = 10  # of CPU, for one file
TINY_MODEL = ["MODEL.ARCH", "timm/test_efficientnet", "MODEL.PRETRAINED", "none",
              "MODEL.IMG_SIZE", "32"]
# Text that changes the meaning of a table or a config more often than random bytes do.
TOKENS = (b",", b";", b"\t", b'"', b"\n", b"\r", b"\0", b":", b"-", b"[", b"{", b"#", b"'", b"%",
          b"nan", b"inf", b"-1", b"0", b"1e400", b"9" * 10, b"9" * 30, b"9" * 400, b"9" * 5000,
          b"[" * 3000, b"\xff\xfe", b"\xef\xbb\xbf", "é".encode(), "人".encode("utf-16"), b"photo",
          b"true", b"null", b"2024-13-45", b"..", b"../" * 50)
ODD_VALUES = (None, True, "", "1", "text", b"bytes", 0, -1, 1.5, 10 ** 30, math.nan, math.inf, [],
              {}, [1, "a"], {"a": 1}, torch.zeros(0), torch.full((3,), math.nan), torch.ones(2, 2))


class Kind(NamedTuple):
    """A kind of file.

    share: share of all files.
    make: function (folder) -> list of paths of good files.
    read: function (path) that reads a file as the scripts do.
    """

    share: float
    make: Callable
    read: Callable


class Outcome(NamedTuple):
    """What happened to the files.

    accepted, refused: Counter {kind: files}.
    faults: list of (kind, number, text).
    """

    accepted: Counter
    refused: Counter
    faults: list


def run(count, seed=0, kinds=None):
    """Damage `count` files, spread over the kinds, and read each.

    Args:
        count: number of files.
        seed: decides how they are damaged.
        kinds: names of KINDS; all by default.
    Returns:
        Outcome.
    """
    outcome = Outcome(Counter(), Counter(), [])
    kinds = kinds or list(KINDS)
    total = sum(KINDS[name].share for name in kinds)
    with tempfile.TemporaryDirectory() as folder, quiet():
        for name in kinds:
            examples = make_examples(name, Path(folder))
            for number in range(round(count * KINDS[name].share / total)):
                try_one(name, examples, seed, number, outcome)
    return outcome


def make_examples(name, folder):
    """Good files of a kind in a folder of their own: list of (path, content)."""
    place = folder / name
    place.mkdir()
    examples = [(path, path.read_bytes()) for path in KINDS[name].make(place)]
    for path, _ in examples:
        KINDS[name].read(path)  # they are good
    return examples


def try_one(name, examples, seed, number, outcome):
    """Damage one file, read it, count what happened, and put the good one back."""
    path, content = write_damaged(name, examples, seed, number)
    start = time.process_time()
    try:
        KINDS[name].read(path)
        outcome.accepted[name] += 1
    except (ValueError, OSError) as error:
        outcome.refused[name] += 1
        if not str(error).strip():
            outcome.faults.append((name, number, f"{path.name}: refused without a word"))
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        outcome.faults.append((name, number, f"{path.name}: {type(error).__name__}: {error} "
                               f"({where.filename}:{where.lineno})"))
    seconds = time.process_time() - start
    if seconds > MAX_SECONDS:
        outcome.faults.append((name, number, f"{path.name}: {seconds:.0f} s"))
    path.write_bytes(content)


def write_damaged(name, examples, seed, number):
    """Put a damaged file in the place of a good one: (path, the good content)."""
    rng = np.random.default_rng((seed, list(KINDS).index(name), number))
    path, content = examples[number % len(examples)]
    path.write_bytes(damaged(path, content, rng))
    return path, content


@contextlib.contextmanager
def quiet():
    """Without warnings and progress bars."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


# ---- Damage --------------------------------------------------------------------------------

def damaged(path, content, rng):
    """The content of a file, damaged. The values in a network's file are damaged too."""
    if path.suffix in (".pth", ".onnx") and rng.random() < 0.6:
        return damage_inside(path, content, rng)
    return damage_bytes(content, rng)


def damage_bytes(content, rng):
    """Bytes with one to three faults."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(content) + 1))
        end = at + int(rng.integers(1, 1 + max(1, len(content) // 8)))
        match rng.integers(8):
            case 0:  # flipped bits
                for place in rng.integers(len(content), size=rng.integers(1, 9)) if content else ():
                    content[place] ^= 1 << int(rng.integers(8))
            case 1:  # the end is missing
                del content[at:]
            case 2:  # a part is missing
                del content[at:end]
            case 3:  # overwritten
                content[at:end] = rng.bytes(len(content[at:end]))
            case 4:  # inserted
                content[at:at] = rng.bytes(int(rng.integers(1, 17)))
            case 5:  # a part is there twice
                content[at:at] = content[at:end]
            case 6:
                content[at:at] = TOKENS[rng.integers(len(TOKENS))]
            case 7:  # a word or a number becomes another
                words = list(re.finditer(rb"[-\w.]+", content)) or [re.match(b"", content)]
                start, end = words[rng.integers(len(words))].span()
                content[start:end] = TOKENS[rng.integers(len(TOKENS))]
    return bytes(content)


def damage_inside(path, content, rng):
    """A network's file with one of its values damaged, and with the right checksums."""
    if path.suffix == ".onnx":
        model = onnx.load_from_string(content)
        entry = model.metadata_props[rng.integers(len(model.metadata_props))]
        entry.value = damage_text(entry.value, rng)
        return with_checksum(model.SerializeToString())
    checkpoint = torch.load(io.BytesIO(content), weights_only=True)
    place = checkpoint if rng.random() < 0.7 else checkpoint["model"]
    name = list(place)[rng.integers(len(place))]
    if name == "cfg" and rng.random() < 0.7:
        place[name] = damage_text(place[name], rng)
    elif rng.random() < 0.2:
        del place[name]
    else:
        place[name] = ODD_VALUES[rng.integers(len(ODD_VALUES))]
    target = io.BytesIO()
    torch.save(checkpoint, target)
    return target.getvalue()


def damage_text(text, rng):
    return damage_bytes(text.encode(), rng).decode("utf-8", "replace")


# ---- Images --------------------------------------------------------------------------------

def make_images(folder):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
    photo = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, image, options in (
            ("plain.jpg", photo, {}), ("turned.jpg", photo, {"exif": exif}),
            ("progressive.jpg", photo, {"progressive": True}),
            ("cmyk.jpg", photo.convert("CMYK"), {}), ("plain.png", photo, {"exif": exif}),
            ("palette.png", photo.convert("P"), {}), ("alpha.png", photo.convert("RGBA"), {}),
            ("deep.png", Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), {}),
            ("moving.gif", photo, {"save_all": True, "append_images": [photo.rotate(90)]}),
            ("plain.webp", photo, {}), ("plain.bmp", photo, {}), ("plain.tiff", photo, {}),
            ("packed.tiff", photo, {"compression": "tiff_lzw", "exif": exif})):
        image.save(folder / name, **options)
    return sorted(folder.iterdir())


def read_image(path):
    with contextlib.suppress(OSError):
        upright_size(path)
    photo = read_or_explain(as_photo, path)
    if not isinstance(photo, Image.Image):
        raise ValueError(photo.problem)  # as the demo's table shows it
    assert photo.mode == "RGB"
    has_exif_rotation(path)


# ---- Lists and tables ----------------------------------------------------------------------

def make_lists(folder):
    write_dataset(folder, [5, 30, 60], splits=("train",), columns={
        "age_min": ["", "20", ""], "age_max": ["", "40", ""], "subject": ["a", "b", "c"],
        "votes": ["5:3 6:1", "", "60:0.5"]})
    paths = [folder / name for name in ("drawn_train_align.csv", "drawn_split_fold0.csv",
                                        "exclude.csv", "gt_avg_train.csv", "gt_train.csv")]
    paths[1].write_text("photo,split\ndrawn_0.png,train\ndrawn_1.png,train\ndrawn_2.png,test\n")
    paths[2].write_text("photo\ndrawn_2.png\n")
    (folder / "train").mkdir()
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (16, 16)).save(folder / "train" / f"{name}_face.jpg")
    paths[3].write_text("file_name,num_ratings,apparent_age_avg,apparent_age_std,real_age\n"
                        "a.jpg,2,23.5,0.7,25\nb.jpg,1,41,0,40\n")
    paths[4].write_text("file_name,user_id,apparent_age,real_age\n"
                        "a.jpg,1,23,25\na.jpg,2,24,25\nb.jpg,1,41,40\n")
    return paths


def read_list(path):
    name = "appa_real" if path.name.startswith("gt_") else "drawn"
    protocol = "fold0" if "split" in path.name else None
    cfg = load_cfg(opts=["MODEL.IMG_SIZE", "16", "DATA.CACHE", "False", "LOSS.LABEL", "votes",
                         "DATA.EXCLUDE", str(path) if path.name == "exclude.csv" else ""])
    faces = read_faces(Source(path.parent, name, path.parent), "train", cfg, protocol)
    FaceDataset(faces, cfg, train=True).batch([(0, index) for index in range(len(faces))])


def make_tables(folder):
    faces = write_dataset(folder, [5, 30, 60], splits=())
    ages, predictions = folder / "ages.csv", folder / "predictions.csv"
    ages.write_text("photo,age,age_min,age_max,gender,subject,split,face_x1,face_y1,face_x2,"
                    "face_y2\ndrawn_0.png,5,,,female,a,train,20,20,80,80\n"
                    "drawn_1.png,,20,40,male,b,,,,,\ndrawn_2.png,60.5,,,,c,test,1,2,3,4\n")
    rows = [f"{row['photo']},{row['age']},{row['age'] + 2},female," +
            ",".join(["0.25"] * 4) for row in faces]
    predictions.write_text("photo,age,pred_age,gender,p58,p59,p60,p61\n" + "\n".join(rows) + "\n")
    return [ages, predictions]


def read_table(path):
    if path.name == "ages.csv":
        count = len(read_columns(path, ["photo", "age"])["photo"])
        rows, skipped, _ = sort_records(table_reader(path)(path.parent, Options()), path.parent,
                                        100, drop_older=False)
        assert len(rows) + len(skipped) == count, "rows are missing"
        return
    predictions = read_predictions(path)
    point_scores(predictions.labels, predictions.faces["pred_age"], predictions.last_age)


RELEASES = {  # data set -> its label files: name and text
    "adience": {f"fold_{fold}_data.txt": "user_id\toriginal_image\tface_id\tage\tgender\n"
                f"3{fold}@N03\tp.jpg\t{fold}\t(25, 32)\tf\n" for fold in range(5)},
    "fairface": {f"fairface_label_{part}.csv": "file,age,gender,race,service_test\n"
                 f"{part}/1.jpg,3-9,Male,East Asian,True\n{part}/2.jpg,more than 70,Female,White,"
                 "True\n" for part in ("train", "val")},
    "megaage_asian": {f"list/{part}_{file}.txt": text for part in ("train", "test")
                      for file, text in (("name", "1.jpg\n2.jpg\n"), ("age", "3\n4\n"),
                                         ("age_dis", "0 0 0 1 0\n0 0 0 0.25 0.75\n"))},
    "morph": {"morph_2008_nonCommercial.csv": "id_num,photo,age,race,gender\n"
              "000001,a_20M.JPG,20,B,M\n000002,b_30M.JPG,30,W,F\n"},
}


def make_releases(folder):
    for name, files in RELEASES.items():
        for file, text in files.items():
            path = folder / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    (folder / "adience" / "aligned").mkdir()
    (folder / "imdb" / "imdb_crop").mkdir(parents=True)
    # MATLAB compresses it, with a checksum. Without one, scipy crashes on some damaged files.
    savemat(folder / "imdb" / "imdb_crop" / "imdb.mat", do_compression=True, mdict={"imdb": {
        "dob": [730668, 730669], "photo_taken": [2030, 2031], "gender": [1.0, 0.0],
        "full_path": np.array(["00/a.jpg", "01/b.jpg"], object),
        "face_location": np.array([np.array([[1.0, 2, 3, 4]])] * 2, object),
        "face_score": [3.0, 2.0], "second_face_score": [np.nan, np.nan], "celeb_id": [7, 8]}})
    return sorted(path for path in folder.rglob("*") if path.is_file())


def read_release(path):
    name = next(part for part in path.parts if part in DATASETS)
    folder = path.parents[len(path.parts) - 2 - path.parts.index(name)]
    sort_records(DATASETS[name].read(folder, Options()), folder, 100, drop_older=False)


# ---- Configs and checkpoints ---------------------------------------------------------------

def make_configs(folder):
    (folder / "all.yaml").write_text(load_cfg().dump())
    (folder / "recipe.yaml").write_text("MODEL:\n  ARCH: tinyage\n  IMG_SIZE: 64\nTRAIN:\n"
                                        "  LR: 1e-3\n  EPOCHS: 3\n")
    return sorted(folder.iterdir())


def read_config(path):
    cfg = load_cfg(path)
    age_bins(cfg)
    assert parse_cfg(cfg.dump()) == cfg


def make_checkpoints(folder):
    cfg = load_cfg(opts=TINY_MODEL)
    with torch.random.fork_rng():
        save_checkpoint(folder / "tiny.pth", {"cfg": cfg.dump(), "temperature": 1.1,
                                              "model": build_model(cfg).state_dict()})
    write_onnx(folder / "tiny.onnx")
    return sorted(folder.iterdir())


def write_onnx(path):
    """An age network of the smallest kind: three colours, two ages."""
    nodes = [helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
             helper.make_node("GlobalAveragePool", ["floats"], ["means"]),
             helper.make_node("Flatten", ["means"], ["colours"]),
             helper.make_node("MatMul", ["colours", "weights"], ["logits"]),
             helper.make_node("Softmax", ["logits"], ["probs"]),
             helper.make_node("LogSoftmax", ["logits"], ["log_probs"])]
    graph = helper.make_graph(
        nodes, "tiny", [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2])
         for name in ("probs", "log_probs")],
        [helper.make_tensor("weights", TensorProto.FLOAT, [3, 2], [0.0] * 6)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {
        "architecture": "tinyage", "image_size": "8", "margin": "0.0", "age_min": "0",
        "age_max": "1", "decode": "mean", "temperature": "1.0", CHECKSUM_KEY: "0" * 64})
    path.write_bytes(with_checksum(model.SerializeToString()))


def read_network(path):
    network = load_age_network(path, threads=1)
    size = network.cfg.MODEL.IMG_SIZE
    network(np.zeros((1, size, size, 3), np.uint8))


KINDS = {
    "image": Kind(0.35, make_images, read_image), "list": Kind(0.15, make_lists, read_list),
    "table": Kind(0.1, make_tables, read_table), "config": Kind(0.2, make_configs, read_config),
    "checkpoint": Kind(0.1, make_checkpoints, read_network),
    "release": Kind(0.1, make_releases, read_release),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs=2, metavar=("KIND", "NUMBER"), help="a single file")
    args = parser.parse_args()
    if args.only:
        name, number = args.only[0], int(args.only[1])
        with tempfile.TemporaryDirectory() as folder:
            path, _ = write_damaged(name, make_examples(name, Path(folder)), args.seed, number)
            KINDS[name].read(path)
        return
    outcome = run(args.count, args.seed)
    for name, number, text in outcome.faults:
        print(f"{name} {number}: {text[:300]}")
    for name in KINDS:
        print(f"{name}: {outcome.accepted[name]} accepted, {outcome.refused[name]} refused, "
              f"{sum(fault[0] == name for fault in outcome.faults)} faults")


if __name__ == "__main__":
    main()

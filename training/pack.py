"""Aligned lists -> pictures of the faces alone, small enough to take to another machine.

    python -m training.pack OUT --data_dir DIR --dataset NAME --size 160

Writes the faces to OUT/NAME/PHOTO, as WebP whatever the name ends in, and the lists
OUT/NAME/NAME_{train,valid,test}_align.csv with the columns of the lists they come from. The photos
keep their names, so predictions for the packed faces also belong to the photos (LOSS.TEACHER). Only
a second face of one photo gets a name of its own, PHOTO_face2. Each picture has a border, a share
DATA.CONTEXT of its side, so that rotated crops show real pixels (for DATA.MARGIN 0). If
MODEL.IMG_SIZE is the size here, a training gets the same pixels, apart from the compression; for
another MODEL.IMG_SIZE the faces are resized once more.
"""

import argparse
from collections import Counter
from pathlib import Path, PurePosixPath

import pandas as pd
import torch
from PIL import Image
from tqdm import tqdm

from crop_cache import default_cache_dir
from dataset import FaceCrops, check_photos, crop_frame, warn_of_ignored_rotations
from defaults import load_cfg
from lists import OPTIONAL, PLACE, list_file, pair_folders, read_faces, splits_of
from preprocess.boxes import find_boxes
from preprocess.columns import BOX
from utils.cli import HelpFormatter, add_data_flags, count_text, run_main
from utils.files import refuse_overwriting, replaced, writable_folder
from utils.pipeline import available_cores


def parse_args():
    parser = argparse.ArgumentParser(prog="python -m training.pack", description=__doc__,
                                     formatter_class=HelpFormatter)
    parser.add_argument("output_dir", metavar="OUT", help="folder to write")
    add_data_flags(parser)
    parser.add_argument("--size", type=int, default=160, help="pixels, side of a face")
    parser.add_argument("--quality", type=int, default=75, help="of WebP, 0 to 100")
    return parser.parse_args()


def main():
    args = parse_args()
    if not 0 <= args.quality <= 100:
        raise ValueError(f"--quality must lie in 0..100, got {args.quality}")
    cfg = load_cfg(opts=["MODEL.IMG_SIZE", str(args.size)])
    sources = pair_folders(args.data_dir, args.dataset, args.list_dir)
    names = [source.dataset for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{names.count(name)} of the data sets are called '{name}' and would "
                             "replace each other; pack each into an OUT of its own")
    for source in sources:
        pack_dataset(source, cfg, args)


def pack_dataset(source, cfg, args):
    """Pack all splits of one data set.

    Args:
        source: lists.Source.
        cfg: the config; MODEL.IMG_SIZE is the size of a face.
        args: of parse_args().
    """
    folder, tables = Path(args.output_dir, source.dataset), {}
    for split in splits_of(source):
        refuse_overwriting([_packed_list(folder, source, split)], [source.file(f"{split}_align")],
                           "OUT")
        tables[split], note = find_boxes(read_faces(source, split, cfg),
                                         args.cache_dir or default_cache_dir())
        if note:
            print(note)
    if not tables:
        list_file(source, "train")  # says what there is
    together = pd.concat(tables, ignore_index=True)
    warn_of_ignored_rotations(together)  # the packed pictures show no trace of it
    together["picture"] = picture_names(together)
    renamed = together["picture"] != together["photo"]
    if renamed.any():
        print(f"{source.dataset}: {renamed.sum():,} faces share their photo with another face and "
              f"get names of their own, such as {together['picture'][renamed].iloc[0]}; "
              "predictions for these do not belong to the photos")
    start = 0
    for split, faces in tables.items():
        pictures = together["picture"].to_numpy()[start:start + len(faces)]
        start += len(faces)
        size = pack(faces, pictures, cfg, folder, args.quality)
        write_list(faces.assign(photo=pictures), cfg, _packed_list(folder, source, split))
        print(f"{source.dataset}: {count_text(len(faces), f'{split} face')}, {size / 1e6:.1f} MB "
              f"-> {folder}")


def _packed_list(folder, source, split):
    return folder / f"{source.dataset}_{split}_align.csv"


def picture_names(faces):
    """A name for the picture of each face: the photo's, with a number from the second face on.

    Args:
        faces: table from lists.read_faces(), of all splits of one data set.
    Returns:
        List of str. Two rows have the same name only if they have the same photo, angle and box.
    """
    taken, names, counts = set(faces["photo"]), {}, Counter()
    for place in faces[PLACE].itertuples(index=False, name=None):
        if place in names:
            continue
        photo = PurePosixPath(place[0])
        counts[place[0]] += 1
        names[place] = place[0]
        while counts[place[0]] > 1 and names[place] in taken:
            name = f"{photo.stem}_face{counts[place[0]]}{photo.suffix}"
            names[place] = str(photo.with_name(name))
            counts[place[0]] += names[place] in taken  # a photo may have this name already
        taken.add(names[place])
    return [names[place] for place in faces[PLACE].itertuples(index=False, name=None)]


def pack(faces, pictures, cfg, folder, quality):
    """Write the faces of a table as WebP files.

    Args:
        faces: table from lists.read_faces(), with a box in every row.
        pictures: name of the file of each face.
        cfg: the config; MODEL.IMG_SIZE and DATA.CONTEXT are read.
        folder: the names are relative to it.
        quality: of WebP, 0 to 100.
    Returns:
        Number of bytes written.
    Raises:
        ValueError: photos that cannot be read, boxes outside of them; a file would replace a photo.
        OSError: the folder cannot be written to.
    """
    crops = FaceCrops(faces, *crop_frame(cfg, cfg.DATA.CONTEXT))
    check_photos(crops)
    refuse_overwriting([Path(folder, name) for name in pictures],
                       [crops.path(index) for index in range(len(crops))], "OUT")
    for parent in {Path(folder, name).parent for name in pictures}:
        writable_folder(parent, "OUT")
    loader = torch.utils.data.DataLoader(_PackedFaces(crops, pictures, folder, quality),
                                         batch_size=None, num_workers=available_cores())
    return sum(tqdm(loader, desc="packing faces", unit="face", leave=False))


def write_list(faces, cfg, path):
    """Write the aligned list of packed faces: nothing to turn, the box in the middle."""
    _, side = crop_frame(cfg, cfg.DATA.CONTEXT)
    border = (side - cfg.MODEL.IMG_SIZE) // 2
    box = (border, border, side - border, side - border)
    table = faces[["photo", "age"]].assign(deg=0.0, **dict(zip(BOX, box, strict=True)))
    known = [name for name in OPTIONAL if faces[name].notna().any()]
    with replaced(path) as temporary:
        table.join(faces[known]).to_csv(temporary, index=False)


class _PackedFaces(torch.utils.data.Dataset):
    """Asking for item i writes face i; the item is the number of bytes."""

    def __init__(self, crops, pictures, folder, quality):
        self.crops, self.quality = crops, quality
        self.paths = [Path(folder, name) for name in pictures]

    def __len__(self):
        return len(self.crops)

    def __getitem__(self, index):
        path = self.paths[index]
        with replaced(path) as temporary:
            Image.fromarray(self.crops[index]).save(temporary, "WEBP", quality=self.quality,
                                                    method=4)
        return path.stat().st_size


if __name__ == "__main__":
    run_main(main)

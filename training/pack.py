"""Aligned lists -> pictures of the faces alone, small enough to take to another machine.

    python -m training.pack OUT --data_dir DIR --dataset NAME --size 160

Writes the faces to OUT/NAME/PHOTO, as WebP whatever the name ends in, and the lists
OUT/NAME/NAME_{train,valid,test}_align.csv with the columns of the lists they come from. The photos
keep their names, so predictions for the packed faces also belong to the photos (LOSS.TEACHER).
Around each face stays as much of the photo as a rotation in training turns in (DATA.CONTEXT, for
DATA.MARGIN 0). If MODEL.IMG_SIZE is the size here, a training gets the same pixels, apart from the
compression; for another MODEL.IMG_SIZE the faces are resized once more.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from crop_cache import default_cache_dir
from dataset import FaceCrops, check_photos
from defaults import load_cfg
from lists import OPTIONAL, pair_folders, read_faces, splits_of
from preprocess.boxes import find_boxes
from preprocess.columns import BOX, SPLITS
from utils.cli import HelpFormatter, add_data_flags, run_main
from utils.files import refuse_overwriting, writable_folder
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
    for source in pair_folders(args.data_dir or [], args.dataset, args.list_dir):
        folder = Path(args.output_dir, source.dataset)
        found = splits_of(source)
        for split in SPLITS:
            if split in found:
                list_path = folder / f"{source.dataset}_{split}_align.csv"
                refuse_overwriting([list_path], [source.file(f"{split}_align")], "OUT")
                faces, note = find_boxes(read_faces(source, split, cfg),
                                         args.cache_dir or default_cache_dir())
                size = pack(faces, cfg, folder, args.quality)
                write_list(faces, cfg, list_path)
                if note:
                    print(note)
                print(f"{source.dataset}: {len(faces):,} {split} faces, {size / 1e6:.1f} MB -> "
                      f"{folder}")


def pack(faces, cfg, folder, quality):
    """Write the faces of a table as WebP files under the names of their photos.

    Args:
        faces: table from lists.read_faces(), with a box in every row.
        cfg: the config; MODEL.IMG_SIZE and DATA.CONTEXT are read.
        folder: the names are relative to it.
        quality: of WebP, 0 to 100.
    Returns:
        Number of bytes written.
    Raises:
        ValueError: photos that cannot be read, boxes outside of them; a file would replace a photo.
        OSError: the folder cannot be written to.
    """
    size, border = cfg.MODEL.IMG_SIZE, _border(cfg)
    crops = FaceCrops(faces, border / size, size + 2 * border)
    check_photos(crops)
    refuse_overwriting([Path(folder, photo) for photo in crops.photos],
                       [crops.path(index) for index in range(len(crops))], "OUT")
    for parent in {Path(folder, photo).parent for photo in crops.photos}:
        writable_folder(parent, "OUT")
    loader = torch.utils.data.DataLoader(_PackedFaces(crops, folder, quality), batch_size=None,
                                         num_workers=available_cores())
    return sum(tqdm(loader, desc="packing faces", unit="face", leave=False))


def write_list(faces, cfg, path):
    """Write the aligned list of packed faces: nothing to turn, the box in the middle."""
    size, border = cfg.MODEL.IMG_SIZE, _border(cfg)
    box = (border, border, border + size, border + size)
    table = faces[["photo", "age"]].assign(deg=0.0, **dict(zip(BOX, box, strict=True)))
    known = [name for name in OPTIONAL if faces[name].notna().any()]
    table.join(faces[known]).to_csv(path, index=False)


def _border(cfg):
    """Pixels on each side of the face, as in dataset.FaceDataset."""
    return round(cfg.MODEL.IMG_SIZE * cfg.DATA.CONTEXT)


class _PackedFaces(torch.utils.data.Dataset):
    """Asking for item i writes face i; the item is the number of bytes."""

    def __init__(self, crops, folder, quality):
        self.crops, self.folder, self.quality = crops, Path(folder), quality

    def __len__(self):
        return len(self.crops)

    def __getitem__(self, index):
        path = self.folder / self.crops.photos[index]
        Image.fromarray(self.crops[index]).save(path, "WEBP", quality=self.quality, method=4)
        return path.stat().st_size


if __name__ == "__main__":
    run_main(main)

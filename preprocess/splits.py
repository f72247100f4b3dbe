"""Which photo goes to train, valid or test if a data set has no official split.

The hash of a key decides: of the person, or of the file name if the persons are not known. So a
photo stays in its split on every machine, and when photos are added to the data set. In a small
data set the photos that fill_empty_splits moves may go back when others are added.
"""

import hashlib
import unicodedata
import warnings

from preprocess.columns import SPLITS

SHARES = (("train", 0.8), ("valid", 0.1), ("test", 0.1))


def by_hash(key):
    """The part of a row that says: the hash of this key decides on the split."""
    key = one_spelling(key)
    return {"key": key, "split": share_by_hash(key)}


def one_spelling(text):
    """Text with each accented letter as one character; a Mac may write the accent as a second."""
    return unicodedata.normalize("NFC", text)


def share_by_hash(key, shares=SHARES):
    """The split of a key.

    Args:
        key: text, such as a file name or a person, that must stay in one split.
        shares: (split, share of all keys) pairs; the shares sum to 1.
    Returns:
        one of the splits.
    """
    position = _position(key)
    for split, share in shares:
        if position < share:
            return split
        position -= share
    return shares[-1][0]


def _position(key):
    """A number in [0, 1) that is evenly distributed over all keys."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def fill_empty_splits(rows):
    """Move a key to each split that the hash left empty, as it often does with few photos.

    Each of train, valid and test, in this order, gets a key if there are enough of them. The key
    whose position is nearest moves, out of the split that has most to spare. If photos are added,
    another key may be nearer, or none be needed.

    Args:
        rows: list of dicts; those with a key (see by_hash) may get another split.
    Returns:
        list of the splits that were filled.
    """
    keys = {split: {row["key"] for row in rows if "key" in row and row["split"] == split}
            for split in SPLITS}
    official = {row["split"] for row in rows if "key" not in row}
    wanted = SPLITS[:sum(map(len, keys.values())) + len(official)]

    def spare(split):
        return len(keys[split]) - (split in wanted and split not in official)

    filled = []
    for split in wanted:
        donor = max(SPLITS, key=spare)
        if keys[split] or split in official or spare(donor) < 1:
            continue
        nearest = max if SPLITS.index(donor) < SPLITS.index(split) else min
        moved = nearest(keys[donor], key=_position)
        keys[donor].remove(moved)
        keys[split].add(moved)
        filled.append(split)
        for row in rows:
            if row.get("key") == moved:
                row["split"] = split
    return filled


def warn_of_shared_photos(rows):
    """Warn if photos are in the train list and in another one, with faces of several persons.

    rows: list of dicts with photo and split.
    """
    splits = {}
    for row in rows:
        splits.setdefault(row["photo"], set()).add(row["split"])
    shared = [photo for photo, found in splits.items() if "train" in found and len(found) > 1]
    if shared:
        warnings.warn(f"{len(shared)} of {len(splits)} photos, such as '{shared[0]}', have faces "
                      "in the train list and in another one, as their persons are in several "
                      "splits; give these persons one split in the column split of --table",
                      stacklevel=2)

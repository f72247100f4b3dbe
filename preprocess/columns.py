"""The columns of the lists, documented in one place, and the names of the splits.

A list is NAME_train.csv, NAME_valid.csv or NAME_test.csv, one row for each face. Alignment adds
the columns ALIGNED and writes NAME_train_align.csv and so on. Every column but photo and age is
optional in a list, and the order of the columns is free.
"""

from pathlib import PurePosixPath

SPLITS = ("train", "valid", "test")

LOCATION = ["face_x1", "face_y1", "face_x2", "face_y2"]
COLUMNS = {  # name: unit and meaning
    "photo": "path of the photo, relative to the data folder, with / between folders",
    "age": "years, not necessarily whole; may be empty beside age_min and age_max",
    "age_std": "years, standard deviation of the votes",
    "age_min": "years, whole; first age of the interval if only an interval is known",
    "age_max": "years, whole; last age of that interval, inclusive",
    "gender": "as the data set names it",
    "race": "as the data set names it",
    "subject": "name or number of the person; all photos of a person go to one split",
    "votes": "age:weight pairs such as '23:3 24:7', a histogram of votes or an age posterior",
    "face_x1": "pixels of the upright photo; with face_y1, face_x2 and face_y2 a box around the "
               "face that the row is about; without it the row is about the largest face",
    "face_y1": "see face_x1",
    "face_x2": "see face_x1",
    "face_y2": "see face_x1",
}

BOX = ["box1", "box2", "box3", "box4"]
ALIGNED = {
    "deg": "degrees, roll of the face; PIL.Image.rotate(deg, expand=True) levels the eyes",
    "box1": "pixels of the photo turned by deg, left side of the face box",
    "box2": "the same, upper side",
    "box3": "the same, right side, exclusive",
    "box4": "the same, lower side, exclusive",
    "confidence": "probability of a face, 0.7 to 1, from the detector",
}


def clean_path(text):
    """A path as the lists hold it: / between folders, no ./ in it."""
    return str(PurePosixPath(text.replace("\\", "/"))) if text else text


def path_problem(photo):
    """Why a list cannot hold the path of a photo, or None.

    It would be read as that of another photo: spaces before a field are skipped, a carriage return
    ends a row, and a backslash stands between folders.
    """
    if "\\" in photo:
        return "file name has a backslash"
    if photo.startswith(" "):
        return "path begins with a space"
    return "file name has a carriage return" if "\r" in photo else None


def age_label(row):
    """The age of a list's row (dict of text), or its interval if only that is known."""
    return f"{float(row['age']):g}" if row["age"].strip() else f"{row['age_min']}-{row['age_max']}"

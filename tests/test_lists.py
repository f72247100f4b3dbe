"""Which lists a folder holds, what stands in them, and what is refused."""

import os
import warnings

import numpy as np
import pandas as pd
import pytest
from faces import draw_face, write_dataset, write_list
from PIL import Image

from defaults import load_cfg
from lists import (
    Source,
    count_excluded,
    count_photos,
    count_rejected,
    find_datasets,
    find_protocols,
    list_file,
    pair_folders,
    parse_votes,
    read_csv,
    read_faces,
    warn_of_stale_lists,
)
from preprocess.repeats import describe_repeats
from utils.tables import read_rows

CFG = load_cfg()


def read(folder, dataset, split, cfg, protocol=None):
    return read_faces(Source(folder, dataset, folder), split, cfg, protocol)


def write_appa_real(folder, real_ages=("", "")):
    (folder / "train").mkdir(parents=True)
    for number, age in enumerate((20, 40)):
        Image.fromarray(draw_face(age)).save(folder / "train" / f"{number}.jpg_face.jpg")
    (folder / "gt_avg_train.csv").write_text(
        "file_name,num_ratings,apparent_age_avg,apparent_age_std,real_age\n"
        f"0.jpg,,20.5,4.0,{real_ages[0]}\n1.jpg,,40,2.5,{real_ages[1]}\n")


def test_columns_may_come_in_any_order_with_more_of_them(tmp_path):
    rows = write_dataset(tmp_path, [10, 60], columns={"gender": ["female", ""], "note": ["a", "b"]})
    write_list(tmp_path / "drawn_train_align.csv",
               [dict(reversed(row.items())) for row in rows])
    faces = read(tmp_path, "drawn", "train", CFG)
    assert faces["age"].tolist() == [10, 60]
    assert faces[["deg", "box1", "box4"]].iloc[0].tolist() == [3.5, 20.2, 82.0]
    assert faces["age_min"].tolist() == faces["age_max"].tolist() == [10, 60]
    assert faces["gender"].iloc[0] == "female"
    assert faces["gender"].isna().tolist() == [False, True]


def test_an_interval_without_an_age_gets_its_middle(tmp_path):
    write_dataset(tmp_path, [10, 60], columns={"age_min": [3, ""], "age_max": [9, ""]})
    table = pd.read_csv(tmp_path / "drawn_train_align.csv")
    table["age"] = [None, 60]
    table.to_csv(tmp_path / "drawn_train_align.csv", index=False)
    faces = read(tmp_path, "drawn", "train", CFG)
    assert faces["age"].tolist() == [6, 60]
    assert faces["age_max"].tolist() == [9, 60]


def test_one_completed_year_is_not_an_interval(tmp_path):
    write_dataset(tmp_path, [29, 60], columns={"age": [29.7, 60], "age_min": [29, 60],
                                               "age_max": [29, 69]})
    faces = read(tmp_path, "drawn", "train", CFG)
    assert faces["age"].tolist() == [29.7, 60]
    assert faces["age_min"].tolist() == [29.7, 60]
    assert faces["age_max"].tolist() == [29.7, 69]


def test_an_interval_may_end_beyond_the_last_bin(tmp_path):
    write_dataset(tmp_path, [85, 60], columns={"age_min": [70, 60], "age_max": [100, 60]})
    faces = read(tmp_path, "drawn", "train", load_cfg(opts=["DATA.AGE_MAX", "80"]))
    assert faces["age_max"].tolist() == [100, 60]


def test_appa_real_as_released(tmp_path):
    write_appa_real(tmp_path, ("21", "43"))
    assert find_datasets(tmp_path) == ["appa_real"]
    faces = read(tmp_path, "appa_real", "train", CFG)
    assert faces["photo"].tolist() == ["train/0.jpg_face.jpg", "train/1.jpg_face.jpg"]
    assert faces["age"].tolist() == [20.5, 40]
    assert faces["age_std"].tolist() == [4.0, 2.5]
    assert faces["deg"].isna().all()
    real = read(tmp_path, "appa_real", "train",
                      load_cfg(None, ["DATA.APPA_REAL_LABEL", "real"]))
    assert real["age"].tolist() == [21, 43]
    assert real["age_std"].isna().all()


def test_appa_reals_votes_are_counted(tmp_path):
    write_appa_real(tmp_path)
    (tmp_path / "gt_train.csv").write_text(
        "file_name,apparent_age,real_age,worker_age\n0.jpg,20,,50\n0.jpg,21,,31\n0.jpg,20,,8\n")
    faces = read(tmp_path, "appa_real", "train", CFG)
    assert faces["votes"].iloc[0] == "20:2 21:1"
    assert pd.isna(faces["votes"].iloc[1])


def test_a_list_without_rows_is_refused(tmp_path):
    (tmp_path / "my_train_align.csv").write_text("photo,age,deg,box1,box2,box3,box4\n")
    with pytest.raises(ValueError, match="the train list of 'my' .*holds no faces"):
        read_faces(Source(tmp_path, "my", tmp_path), "train", load_cfg())


def test_an_empty_real_age_names_the_other_label(tmp_path):
    write_appa_real(tmp_path)
    with pytest.raises(ValueError, match=r"real_age is empty.*APPA_REAL_LABEL"):
        read(tmp_path, "appa_real", "train", load_cfg(None, ["DATA.APPA_REAL_LABEL", "real"]))


def test_no_split_of_appa_real_is_raw_where_another_is_aligned(tmp_path):
    write_appa_real(tmp_path)
    (tmp_path / "gt_avg_test.csv").write_text((tmp_path / "gt_avg_train.csv").read_text())
    assert list_file(Source(tmp_path, "appa_real", tmp_path), "test").name == "gt_avg_test.csv"
    write_dataset(tmp_path, [10], name="appa_real", splits=("train",))
    with pytest.raises(FileNotFoundError, match="no test split; it has train"):
        read(tmp_path, "appa_real", "test", CFG)
    real = load_cfg(None, ["DATA.APPA_REAL_LABEL", "real"])
    with pytest.warns(UserWarning, match="generate_csv --appa_real_label"):
        faces = read(tmp_path, "appa_real", "train", real)
    assert faces["age"].tolist() == [10]


def test_a_photo_with_two_faces_counts_once_and_one_of_each_folder():
    faces = pd.DataFrame({"root": ["a", "a", "a", "b"], "photo": ["1.jpg", "1.jpg", "2.jpg",
                                                                  "1.jpg"]})
    assert count_photos(faces) == 3


def test_rejected_photos_are_counted_by_split(tmp_path):
    assert count_rejected(Source(tmp_path, "mine", tmp_path)) == "unknown"
    (tmp_path / "mine_rejected.csv").write_text(
        "photo,split,reason\na.jpg,train,no face\nb.jpg,test,no face\nc.jpg,test,no face\n")
    assert [count_rejected(Source(tmp_path, "mine", tmp_path), split)
            for split in (None, "train", "valid", "test")] == [3, 1, 0, 2]
    (tmp_path / "out.csv").write_text("photo\nsub/b.jpg\na.jpg\n")
    assert [count_rejected(Source(tmp_path, "mine", tmp_path), split, tmp_path / "out.csv")
            for split in (None, "train", "valid", "test")] == [2, 0, 0, 2]
    (tmp_path / "out.csv").write_text("photo\nb.jpg\n")
    assert count_rejected(Source(tmp_path, "mine", tmp_path), "test", tmp_path / "out.csv") == 1


def test_an_exclusion_list_with_fields_beyond_its_header_excludes(tmp_path):
    write_dataset(tmp_path, [10, 60])
    (tmp_path / "out.csv").write_text("file_name\ndrawn_0.png,blurred\n")
    cfg = load_cfg(None, ["DATA.EXCLUDE", str(tmp_path / "out.csv")])
    assert read(tmp_path, "drawn", "train", cfg)["age"].tolist() == [60]


@pytest.mark.parametrize("text", ["", "\n"])
def test_an_exclusion_list_may_be_empty(tmp_path, text):
    write_dataset(tmp_path, [10, 60])
    (tmp_path / "out.csv").write_text(text)
    cfg = load_cfg(None, ["DATA.EXCLUDE", str(tmp_path / "out.csv")])
    assert read(tmp_path, "drawn", "train", cfg)["age"].tolist() == [10, 60]


def test_aligned_lists_win_over_the_raw_folder(tmp_path):
    write_appa_real(tmp_path)
    write_dataset(tmp_path, [30], name="appa_real")
    assert read(tmp_path, "appa_real", "train", CFG)["age"].tolist() == [30]


def test_votes_fall_on_their_bins_and_beyond_the_ends_on_the_last():
    histogram = parse_votes("20:2 21:1.5 130:1", list(range(101)))
    assert (histogram[20], histogram[21], histogram[100]) == (2, 1.5, 1)
    assert histogram.sum() == 4.5


@pytest.mark.parametrize("text", ["20", "x:1", "20:-1", "20:1e39"])
def test_malformed_votes_are_refused(text):
    with pytest.raises(ValueError):
        parse_votes(text, list(range(101)))


def test_photos_are_excluded_by_path_name_or_original_name(tmp_path):
    write_appa_real(tmp_path)
    for name in ("train/0.jpg_face.jpg", "0.jpg_face.jpg", "0.jpg"):
        listed = tmp_path / "ignore.csv"
        listed.write_text(f"file_name\n{name}\n")
        cfg = load_cfg(None, ["DATA.EXCLUDE", str(listed)])
        assert read(tmp_path, "appa_real", "train", cfg)["age"].tolist() == [40]


@pytest.mark.parametrize(("line", "left"), [
    ("/data/other machine/train/1.png", ["valid/1.png", "2, b.png"]),
    ("C:\\faces\\train\\1.png", ["valid/1.png", "2, b.png"]),
    ("/data/2, b.png", ["train/1.png", "valid/1.png"]),
    ("2, b.png", ["train/1.png", "valid/1.png"]),
    ("other/1.png", ["train/1.png", "valid/1.png", "2, b.png"]),
    ("1.png", ["2, b.png"])])
@pytest.mark.parametrize("header", ["", "photo\n"])
def test_an_exclusion_list_may_hold_absolute_paths_and_commas(tmp_path, line, left, header):
    rows = write_dataset(tmp_path, [10, 20, 30], splits=())
    for row, photo in zip(rows, ("train/1.png", "valid/1.png", "2, b.png"), strict=True):
        (tmp_path / photo).parent.mkdir(exist_ok=True)
        row["photo"] = str((tmp_path / row["photo"]).rename(tmp_path / photo)
                           .relative_to(tmp_path))
    write_list(tmp_path / "drawn_train_align.csv", rows)
    (tmp_path / "out.csv").write_text(f"{header}{line}\n")
    cfg = load_cfg(None, ["DATA.EXCLUDE", str(tmp_path / "out.csv")])
    assert read(tmp_path, "drawn", "train", cfg)["photo"].tolist() == left
    source = Source(tmp_path, "drawn", tmp_path)
    assert count_excluded([source], ["train"], cfg) == (3 - len(left), 3)


def test_a_protocol_overrides_the_splits(tmp_path):
    write_dataset(tmp_path, [10, 20, 30], splits=("train",))
    (tmp_path / "drawn_split_fold0.csv").write_text(
        "photo,split\ndrawn_0.png,test\ndrawn_1.png,train\ndrawn_2.png,test\nrejected.png,test\n")
    (tmp_path / "drawn_rejected.csv").write_text(
        "photo,split,reason\nrejected.png,train,no face in the first pass\n")
    assert read(tmp_path, "drawn", "test", CFG, protocol="fold0")["age"].tolist() == [10, 30]
    with pytest.raises(FileNotFoundError, match="fold1.*fold0"):
        read(tmp_path, "drawn", "test", CFG, protocol="fold1")
    with pytest.raises(FileNotFoundError, match=r"no valid split; it has test, train"):
        read(tmp_path, "drawn", "valid", CFG, protocol="fold0")


def test_a_protocol_tells_of_photos_that_are_missing(tmp_path):
    write_dataset(tmp_path, [10, 20], splits=("train",))
    (tmp_path / "drawn_split_fold0.csv").write_text(
        "photo,split\ndrawn_0.png,test\ndrawn_1.png,train\nelsewhere.png,test\n")
    with pytest.warns(UserWarning, match="1 of its 2 test photos, such as 'elsewhere.png', are "):
        assert read(tmp_path, "drawn", "test", CFG, protocol="fold0")["age"].tolist() == [10]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(tmp_path, "drawn", "train", CFG, protocol="fold0")["age"].tolist() == [20]


def test_a_protocol_does_not_measure_what_it_trains_on(tmp_path):
    write_dataset(tmp_path, [10, 20], splits=("train",))
    start = "photo,split\ndrawn_0.png,train\ndrawn_1.png,valid\ndrawn_1.png,test\n"
    (tmp_path / "drawn_split_mine.csv").write_text(start)  # as MegaAge: valid is test
    assert read(tmp_path, "drawn", "test", CFG, protocol="mine")["age"].tolist() == [20]
    (tmp_path / "drawn_split_mine.csv").write_text(start + "./drawn_0.png,test\n")
    for split in ("train", "test"):
        with pytest.raises(ValueError, match=r"mine.csv: a photo that is .*split: drawn_0.png$"):
            read(tmp_path, "drawn", split, CFG, protocol="mine")


@pytest.mark.filterwarnings("ignore:drawn. faces with more than one age")
def test_a_protocol_keeps_both_faces_of_a_photo_and_takes_none_twice(tmp_path):
    rows = write_dataset(tmp_path, [10, 20], splits=())
    for split in ("valid", "test"):  # MegaAge's validation is its test list
        write_list(tmp_path / f"drawn_{split}_align.csv", [*rows, rows[0] | {"age": 40}])
    (tmp_path / "drawn_split_all.csv").write_text("photo,split\ndrawn_0.png,test\n")
    faces = read(tmp_path, "drawn", "test", CFG, protocol="all")
    assert faces["age"].tolist() == [10, 40]


def test_a_protocol_keeps_other_faces_of_a_photo_in_another_list(tmp_path):
    for split, age, left in (("train", 10, 20.5), ("valid", 70, 1.0)):
        rows = write_dataset(tmp_path, [age], splits=(split,))
        write_list(tmp_path / f"drawn_{split}_align.csv", [rows[0] | {"box1": left}])
    (tmp_path / "drawn_split_all.csv").write_text("photo,split\ndrawn_0.png,test\n")
    faces = read(tmp_path, "drawn", "test", CFG, protocol="all")
    assert faces[["age", "box1"]].to_numpy().tolist() == [[10, 20.5], [70, 1.0]]


def test_a_protocol_takes_a_face_once_that_a_second_list_has_alone(tmp_path):
    rows = write_dataset(tmp_path, [10, 40], splits=("train", "valid"))
    pair = [rows[0], rows[1] | {"photo": rows[0]["photo"], "box1": 20.5}]
    write_list(tmp_path / "drawn_train_align.csv", pair)
    write_list(tmp_path / "drawn_valid_align.csv", pair[1:])
    (tmp_path / "drawn_split_all.csv").write_text("photo,split\ndrawn_0.png,test\n")
    faces = read(tmp_path, "drawn", "test", CFG, protocol="all")
    assert faces["age"].tolist() == [10, 40]


@pytest.mark.parametrize("column", ["deg", "box3", "age", "age_std"])
def test_a_number_without_end_is_none(tmp_path, column):
    rows = write_dataset(tmp_path, [10, 40])
    write_list(tmp_path / "drawn_train_align.csv", [row | {column: "inf"} for row in rows])
    with pytest.raises(ValueError, match=f"{column} is not a number: 2 of 2"):
        read(tmp_path, "drawn", "train", CFG)


def test_a_protocol_named_twice_is_found_once(tmp_path):
    for number in range(2):
        (tmp_path / f"drawn_split_rotation{number}.csv").write_text("photo,split\n")
    found = find_protocols([Source(tmp_path, "drawn", tmp_path)], ["rotation1", "rotation*"])
    assert found == ["rotation0", "rotation1"]


def test_a_list_that_is_all_excluded_is_named(tmp_path):
    write_dataset(tmp_path, [10])
    (tmp_path / "out.csv").write_text("drawn_0.png\n")
    with pytest.raises(ValueError, match=r"valid list of 'drawn'.*DATA\.EXCLUDE"):
        read(tmp_path, "drawn", "valid",
                   load_cfg(None, ["DATA.EXCLUDE", str(tmp_path / "out.csv")]))


def test_a_missing_split_names_the_splits_there_are_and_the_way_out(tmp_path):
    write_dataset(tmp_path, [10])
    with pytest.raises(FileNotFoundError, match=r"no test split; it has train, valid; "
                       r"drawn_test.csv does not exist either: .*generate_csv .*photos for it$"):
        read(tmp_path, "drawn", "test", CFG)
    write_list(tmp_path / "drawn_test.csv", [{"photo": "drawn_0.png", "age": 10}])
    with pytest.raises(FileNotFoundError, match="start python -m preprocess.face_align .*photos$"):
        read(tmp_path, "drawn", "test", CFG)
    with pytest.raises(FileNotFoundError, match=r"holds no other_test_align\.csv; it holds drawn: "
                       "choose with --dataset, or docs/data.md says how"):
        read(tmp_path, "other", "test", CFG)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty' holds no data set; docs/data.md says how"):
        read(tmp_path / "empty", "drawn", "test", CFG)


def test_a_list_of_which_alignment_left_nothing_says_so(tmp_path):
    write_dataset(tmp_path, [10])
    [header, _] = (tmp_path / "drawn_valid_align.csv").read_text().splitlines()
    (tmp_path / "drawn_valid_align.csv").write_text(header + "\n")
    (tmp_path / "drawn_rejected.csv").write_text("photo,split,reason\na.jpg,valid,no face\n")
    with pytest.raises(ValueError, match=r"holds no faces; alignment left .*drawn_rejected\.csv"):
        read(tmp_path, "drawn", "valid", CFG)


def test_other_spellings_of_a_path_are_read(tmp_path):
    rows = write_dataset(tmp_path / "in", [10, 20, 30], splits=())
    for row, start in zip(rows, (".\\in\\", "./in//", "in/"), strict=True):
        row["photo"] = start + row["photo"]
    write_list(tmp_path / "my_train_align.csv", rows)
    (tmp_path / "my_split_p.csv").write_text("photo,split\nin\\drawn_0.png,train\n"
                                             "./in/drawn_1.png,train\n")
    cfg = load_cfg(None, ["DATA.EXCLUDE", str(tmp_path / "out.csv")])
    (tmp_path / "out.csv").write_text("photo\nin\\drawn_1.png\n")
    assert read(tmp_path, "my", "train", CFG)["photo"].tolist() == [
        f"in/drawn_{number}.png" for number in range(3)]
    assert read(tmp_path, "my", "train", CFG, protocol="p")["age"].tolist() == [10, 20]
    assert read(tmp_path, "my", "train", cfg, protocol="p")["age"].tolist() == [10]


def test_repeated_faces_are_told(tmp_path):
    rows = write_dataset(tmp_path, [10, 20, 30])
    path = tmp_path / "drawn_train_align.csv"
    with warnings.catch_warnings():  # another face of the same photo is no repetition
        warnings.simplefilter("error")
        write_list(path, [*rows, rows[0] | {"age": 40, "box1": 1}])
        read(tmp_path, "drawn", "train", CFG)
    write_list(path, [*rows, rows[0] | {"age": 40}, rows[2]])
    with pytest.warns(UserWarning) as warned:
        read(tmp_path, "drawn", "train", CFG)
    assert [str(each.message) for each in warned] == [
        "drawn: faces with more than one age: 1 (drawn_0.png 10 and 40); "
        "faces listed again with the same age: 1 (drawn_2.png)"]


def test_only_five_repeated_faces_are_shown():
    text = describe_repeats([((f"{number}.jpg", "0"), age) for number in range(8) for age in "ab"])
    assert text == ("faces with more than one age: 8 (" + ", ".join(
        f"{number}.jpg a and b" for number in range(5)) + ", and 3 more)")
    assert describe_repeats([(("a.jpg",), "3"), (("b.jpg",), "3")]) == ""


def test_a_missing_data_set_names_those_there_are(tmp_path):
    write_dataset(tmp_path, [10])
    with pytest.raises(FileNotFoundError, match=r"other_train_align\.csv.*drawn"):
        read(tmp_path, "other", "train", CFG)


@pytest.mark.parametrize(("change", "words"), [
    ({"age": "old"}, ["age", "old"]),
    ({"age": ""}, ["age", "drawn_1.png"]),
    ({"age": 130}, ["130", "0..100", "DATA.AGE_MAX"]),
    ({"box3": 20.2}, ["box", "drawn_1.png"]),
    ({"deg": "steep"}, ["deg", "steep"]),
    ({"photo": "gone.png"}, ["gone.png", "DATA.EXCLUDE"]),
    ({"age_std": -1}, ["age_std is negative; leave it empty", "drawn_1.png", "-1"]),
    ({"age": 25, "age_min": 30, "age_max": 20}, ["age_min exceeds age_max", "30", "20"]),
    ({"age_min": 12, "age_max": ""}, ["not an interval", "drawn_1.png", "12"]),
    ({"age": 25, "age_min": 20.5, "age_max": 29}, ["are not whole years", "20.5"]),
    ({"age_min": 30, "age_max": 30}, ["20", "outside age_min to age_max"]),
    ({"age": 105, "age_min": 101, "age_max": 109}, ["105", "0..100"]),
])
def test_bad_rows_are_listed(tmp_path, change, words):
    rows = write_dataset(tmp_path, [10, 20, 30], columns={
        name: [""] * 3 for name in ("age_std", "age_min", "age_max")})
    rows[1].update(change)
    write_list(tmp_path / "drawn_train_align.csv", rows)
    with pytest.raises(ValueError) as raised:
        read(tmp_path, "drawn", "train", CFG)
    assert "\n" not in str(raised.value)
    for word in (*words, "1 of 3 rows"):
        assert word in str(raised.value)


def test_only_twenty_bad_rows_are_shown(tmp_path):
    rows = write_dataset(tmp_path, [10])
    write_list(tmp_path / "drawn_train_align.csv", [rows[0] | {"age": 200 + i} for i in range(25)])
    with pytest.raises(ValueError) as raised:
        read(tmp_path, "drawn", "train", CFG)
    assert "25 of 25" in str(raised.value)
    assert "219" in str(raised.value)
    assert "220" not in str(raised.value)
    assert "5 more" in str(raised.value)


@pytest.mark.parametrize(("content", "line"), [
    (b"photo,age\na.png,3\n\n\"b.png\"x,4\nc.png,5\n", 4),
    (b"photo,age\n\"a\nb.png\",3\n\"c.png,4\n" + b"d.png,5\n" * 9, 4),  # never closed
    (b"photo,age\na.png,3\nZo\xeb.png,4\n", 3), (b"photo,\xe9ge\na.png,3\n", 1),
    (b"\xef\xbb\xbfphoto,age\n" + b"a.png,3\n" * 5000 + b"Zo\xeb.png,4\n", 5002)])
def test_a_broken_line_is_named(tmp_path, content, line):
    (tmp_path / "ages.csv").write_bytes(content)
    with pytest.raises(ValueError, match=f"ages.csv: not a CSV file .*: line {line}: "):
        list(read_rows(tmp_path / "ages.csv", ["photo"]))


@pytest.mark.parametrize("content", ["", "photo,age\na.png,3\n", "\0\1\2"])
def test_a_file_that_is_no_list_is_refused(tmp_path, content):
    (tmp_path / "drawn_train_align.csv").write_text(content)
    with pytest.raises(ValueError) as raised:
        read(tmp_path, "drawn", "train", CFG)
    assert "drawn_train_align.csv" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_as_spreadsheets_write_them_are_read(tmp_path, separator, encoding):
    lines = [["photo", " age", "note"], ["Zoë, 1.jpg" if separator != "," else '"Zoë, 1.jpg"', "3"],
             [], ["b.jpg", "4", "of two", "", ""]]
    path = tmp_path / "table.csv"
    path.write_text("\r\n".join(map(separator.join, lines)), encoding=encoding)
    assert list(read_rows(path, ["age", "photo"])) == [
        {"photo": "Zoë, 1.jpg", "age": "3", "note": ""},
        {"photo": "b.jpg", "age": "4", "note": "of two"}]
    assert read_csv(path, ["photo"])["age"].tolist() == ["3", "4"]


@pytest.mark.parametrize(("text", "line"), [
    ("photo,age,gender\na.jpg,35,5,f\n", 2), ("photo\tage\n\n\"a\n.jpg\"\t35\nb.jpg\t3\t5\n", 5)])
def test_a_row_with_more_fields_than_columns_is_named(tmp_path, text, line):
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"table.csv: line {line} has \d fields for \d columns"):
        read_csv(tmp_path / "table.csv", ["photo", "age"])


@pytest.mark.parametrize(("separator", "expected"), [
    (";", ["-23.5", "1.234", "(4, 6)"]), ("\t", ["-23.5", "1,234", "(4, 6)"]),
    (",", ["-23,5", "1,234", "(4, 6)"])])
def test_commas_are_decimal_where_they_can_be_nothing_else(tmp_path, separator, expected):
    path = tmp_path / "table.csv"
    path.write_text("\n".join(f'a{separator}"{age}"'
                              for age in ("age", "-23,5", "1,234", "(4, 6)")))
    assert read_csv(path, ["age"])["age"].tolist() == expected


@pytest.mark.parametrize(("content", "message"), [
    (b"photo;years\na.jpg;3\n", "column age missing; it has photo, years. Commas, semicolons"),
    (b"", "no header"),
    ("photo,age\nZo\xeb.jpg,3\n".encode("latin-1"), "not a CSV file in UTF-8 or UTF-16"),
    ("photo,age\na.jpg,3\n".encode("utf-16")[:-1], "not a CSV file in UTF-8 or UTF-16")])
def test_what_is_not_a_table_is_refused(tmp_path, content, message):
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_csv(tmp_path / "table.csv", ["photo", "age"])
    with pytest.raises(FileNotFoundError, match="list '.*gone.csv' not found"):
        read_csv(tmp_path / "gone.csv", [])


def test_folders_and_names_are_paired(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    write_dataset(one, [10], name="a")
    write_dataset(two, [10], name="b")
    for nothing in (None, []):
        with pytest.raises(ValueError, match="no --data_dir: name the folder of the photos"):
            pair_folders(nothing, None, None)
    assert pair_folders([one], None, None) == [(one, "a", one)]
    assert pair_folders([one, two], None, None) == [(one, "a", one), (two, "b", two)]
    assert pair_folders([one, two], ["a", "b"], [one]) == [(one, "a", one), (two, "b", one)]
    write_dataset(one, [10], name="c")
    assert pair_folders([one], ["a", "c"], None) == [(one, "a", one), (one, "c", one)]
    with pytest.raises(ValueError, match=r"2 data sets.*--dataset: a, c"):
        pair_folders([one], None, None)
    with pytest.raises(ValueError, match="--data_dir"):
        pair_folders([one, two], ["a"], None)
    (tmp_path / "link").symlink_to(one)
    for folders in ([one], [one, one], [one, tmp_path / "link"]):
        for lists in (None, [one, two]):
            with pytest.raises(ValueError, match=r"'a' in '.*one' is named 2 times"):
                pair_folders(folders, ["a", "a"], lists)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        pair_folders([tmp_path / "nowhere"], None, None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no data set"):
        pair_folders([tmp_path / "empty"], None, None)
    write_list(tmp_path / "empty" / "my_valid.csv", [{"photo": "a.jpg", "age": 3}])
    write_list(tmp_path / "empty" / "label_valid.csv", [{"file": "a.jpg", "age": 3}])  # no list
    with pytest.raises(ValueError, match=r"align '.*my_valid\.csv' .*--dataset my --list_dir /"):
        pair_folders([tmp_path / "empty"], None, None)


def test_a_list_that_was_changed_after_it_was_aligned_warns(tmp_path):
    rows = write_dataset(tmp_path, [10])
    write_list(tmp_path / "drawn_train.csv", [{"photo": row["photo"], "age": 10} for row in rows])
    changed = (tmp_path / "drawn_train_align.csv").stat().st_mtime_ns
    os.utime(tmp_path / "drawn_train.csv", ns=(changed, changed))
    sources = pair_folders([tmp_path], None, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_stale_lists(sources)
    os.utime(tmp_path / "drawn_train.csv", ns=(changed, changed + 10**9))
    with pytest.warns(UserWarning, match=r"drawn_train\.csv has changed since .*--dataset drawn"):
        warn_of_stale_lists(sources)


def test_numbers_survive_a_round_trip(tmp_path):
    write_dataset(tmp_path, [10], columns={"age_std": [2.25]})
    assert np.isclose(read(tmp_path, "drawn", "train", CFG)["age_std"].iloc[0], 2.25)

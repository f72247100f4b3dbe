"""evaluation/audit.py against numbers worked out by hand, and what it says if data is missing."""

import cv2
import numpy as np
import pandas as pd
import pytest

from evaluation import audit
from evaluation.predict import sharpness
from evaluation.predictions import check_predictions


def predictions(ages, pred_ages, **columns):
    table = pd.DataFrame({"age": np.asarray(ages, float), "pred_age": np.asarray(pred_ages, float)})
    names = [f"face{k}.jpg" for k in range(len(table))]
    return check_predictions(table.assign(photo=names).assign(**columns), "t")


def cells(counts, errors):
    """Faces of two genders aged 18 to 30; counts and errors are (2, 13)."""
    ages = np.tile(np.arange(18, 31), (2, 1))
    genders = np.repeat([["female"], ["male"]], 13, axis=1)
    ages, genders, errors = (np.repeat(values.ravel(), np.ravel(counts))
                             for values in (ages, genders, np.asarray(errors, float)))
    return predictions(ages, ages + errors, gender=genders)


def test_every_cell_of_gender_and_age_counts_the_same():
    counts = np.full((2, 13), 5)
    counts[0, 0] = 100  # many faces with a large error
    errors = np.ones((2, 13))
    errors[0, 0], errors[1, 12] = 27, -14
    number = audit.mean_mae_of_cells(cells(counts, errors), 50)
    assert number["value"] == pytest.approx((24 + 27 + 14) / 26)
    assert (number["n"], number["cells"]) == (225, 26)
    assert number["low"] == pytest.approx(number["value"])  # no cell has any spread


def test_small_cells_are_left_out_of_the_mean_of_cells():
    counts, errors = np.full((2, 13), 5), np.ones((2, 13))
    counts[0, 3], errors[0, 3] = 4, 50
    counts[1, 0], errors[1, 0] = 0, 50
    errors[1, 5] = 25
    number = audit.mean_mae_of_cells(cells(counts, errors), 50)
    assert (number["value"], number["n"], number["cells"]) == (pytest.approx(2), 120, 24)


def test_the_interval_of_the_cells_is_that_of_independent_means():
    rng = np.random.default_rng(0)
    errors = rng.gamma(2, 3, (2, 13, 40))
    ages = np.broadcast_to(np.arange(18, 31)[None, :, None], errors.shape)
    genders = np.broadcast_to(np.array(["female", "male"])[:, None, None], errors.shape)
    drawn = predictions(ages.ravel(), (ages + errors).ravel(), gender=genders.ravel())
    number = audit.mean_mae_of_cells(drawn, 1000)
    half = 1.96 * np.sqrt(errors.var(axis=2, ddof=1).mean() / 40 / 26)
    assert number["value"] == pytest.approx(errors.mean())
    assert (number["high"] - number["low"]) / 2 == pytest.approx(half, rel=0.15)


def test_the_cells_are_unknown_without_two_genders_or_with_too_few_faces():
    counts = np.full((2, 13), 5)
    counts[1, :7] = 4
    assert audit.mean_mae_of_cells(cells(counts, np.ones((2, 13))))["why"] == (
        "7 of 26 cells of gender and age have fewer than 5 faces")
    assert audit.mean_mae_of_cells(predictions([20], [21]))["why"] == (
        "no face with an exact age has a gender (column gender)")
    one = predictions([20] * 5, [21] * 5, gender="male")
    assert "1 genders, not 2" in audit.mean_mae_of_cells(one)["why"]


def test_challenge_25_is_about_13_to_17_at_25_or_more():
    ages = [12.9, 13, 15, 17.9, 18, 17, 40]
    pred_ages = [30, 25, 24.99, 26, 30, 10, 10]
    number = audit.challenge_25(predictions(ages, pred_ages))
    assert (number["value"], number["n"]) == (50, 4)
    assert number["low"] == pytest.approx(15.0, abs=0.1)  # Wilson's, 2 of 4
    assert audit.challenge_25(predictions([40], [40]))["why"] == "no face aged 13 to 17"


def test_rates_of_the_band_from_13_to_16():
    ages = [13, 16.5, 14, 12, 12.9, 17, 30, 40]
    pred_ages = [13, 16.99, 17, 13, 12.99, 16, 15, 40]
    rates = audit.band_rates(predictions(ages, pred_ages))
    assert {key: (round(number["value"], 2), number["n"]) for key, number in rates.items()} == {
        "band_inside": (66.67, 3), "band_younger": (50, 2), "band_older": (66.67, 3)}
    assert audit.band_rates(predictions([40], [40]))["band_younger"]["why"] == "no face under 13"


def test_photos_without_a_face_are_a_share_of_all_photos():
    number = audit.not_processed(audit.Photos(97, {"a": 2, "b": 1}))
    assert (number["value"], number["n"]) == (3, 100)
    assert number["low"] == pytest.approx(1.03, abs=0.01)  # Wilson's, 3 of 100
    assert audit.not_processed(audit.Photos(97, {"a": 0}))["value"] == 0
    assert audit.not_processed(audit.Photos(97, {"a": 2, "b": "unknown"}))["why"] == (
        "no list of rejected photos for b")
    assert audit.not_processed(None)["value"] is None


def test_the_spread_within_a_person_by_hand():
    # Errors 1, 3, 5 of one person, -2, 2 of another, one photo of a third, and nobody's.
    ages = np.array([10, 20, 30, 40, 41, 50, 60])
    errors = np.array([1, 3, 5, -2, 2, 9, 100])
    faces = predictions(ages, ages + errors, subject=["a", "a", "a", "b", "b", "c", None])
    number = audit.within_person_sd(faces, 50)
    assert number["value"] == pytest.approx(np.sqrt((8 + 8) / (2 + 1)))
    assert (number["n"], number["low"]) == (2, None)  # too few persons for an interval


def test_the_spread_within_a_person_is_found_whatever_the_persons_bias():
    rng = np.random.default_rng(1)
    people = np.repeat(np.arange(300), 4)
    errors = rng.normal(0, 8, 300)[people] + rng.normal(0, 3, 1200)
    faces = predictions(np.full(1200, 30.0), 30 + errors, subject=people.astype(str))
    number = audit.within_person_sd(faces, 500)
    assert number["low"] < 3 < number["high"]
    assert number["high"] - number["low"] == pytest.approx(2 * 1.96 * 3 / np.sqrt(2 * 900), rel=0.2)


def test_the_spread_within_a_person_needs_persons_with_two_photos():
    assert "(column subject)" in audit.within_person_sd(predictions([1, 2], [1, 2]))["why"]
    alone = predictions([1, 2], [1, 2], subject=["a", "b"])
    assert audit.within_person_sd(alone)["why"] == "no person has two photos"


def test_errors_by_face_size():
    faces = predictions([30] * 6, [31, 32, 28, 36, 30, 90],
                        face_px=[31.9, 32, 63, 64, 1000, np.nan])
    groups = audit.errors_by_face_size(faces, 20)
    assert {name: (group["n"], group["mae"]["value"], group["bias"]["value"])
            for name, group in groups.items()} == {
        "under 32": (1, 1, 1), "32-63": (2, 2, 0), "64-127": (1, 6, 6), "256+": (1, 0, 0)}
    assert audit.errors_by_face_size(predictions([1], [2])) == {}


def test_errors_by_fifths_of_sharpness():
    rng = np.random.default_rng(0)
    values = rng.permutation(100) + 1.0
    faces = predictions([30] * 100, 30 + values, sharpness=values)
    groups = audit.errors_by_sharpness(faces, 20)
    assert list(groups) == list(audit.FIFTHS)
    assert [group["mae"]["value"] for group in groups.values()] == [10.5, 30.5, 50.5, 70.5, 90.5]
    assert groups["sharpest fifth"]["mae"]["low"] < 90.5
    assert audit.errors_by_sharpness(predictions([1], [2])) == {}


@pytest.mark.parametrize("values", [[4.0] * 9, [4.0], [4.0, 5.0], [1.0] * 20 + [2.0, 3, 4, 5],
                                    [1.0, 2, 3, 4] + [5.0] * 20])
def test_faces_that_are_equally_sharp_are_not_called_fifths(values):
    faces = predictions([30] * len(values), [31] * len(values), sharpness=values)
    assert audit.errors_by_sharpness(faces, 20) == {}


def test_five_faces_are_fifths():
    faces = predictions([30] * 5, [31] * 5, sharpness=[1.0, 2, 3, 4, 5])
    assert [group["n"] for group in audit.errors_by_sharpness(faces, 20).values()] == [1] * 5


def test_blur_and_lost_pixels_lower_the_sharpness():
    face = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    blurred = cv2.GaussianBlur(face, (0, 0), 1)
    small = cv2.resize(cv2.resize(face, (16, 16), interpolation=cv2.INTER_AREA), (64, 64))
    assert sharpness(face) > 5 * sharpness(blurred) > 0
    assert sharpness(face) > 5 * sharpness(small) > 0
    assert sharpness(np.full((64, 64, 3), 90, np.uint8)) == 0


def test_without_any_exact_age_everything_is_unknown():
    ranges = predictions([25, 35], [24, 36], age_min=[20, 30], age_max=[29, 39], gender="male",
                         subject="s", face_px=50.0, sharpness=3.0)
    results = audit.audit(ranges, audit.Photos(2, {"a": 2}))
    assert set(results) == {*audit.AUDIT, "face_size", "sharpness"}
    assert results["not_processed"]["value"] == 50  # of all photos, whatever their labels
    assert all(results[key]["value"] is None and results[key]["why"]
               for key in audit.AUDIT if key != "not_processed")
    assert results["face_size"] == results["sharpness"] == {}

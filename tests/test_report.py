"""evaluation: every number in its place, and a page whatever is missing."""

import json
import re
import time

import numpy as np
import pandas as pd
import pytest
import skimage.color
from scipy import special

import metrics
from evaluation import audit, bootstrap, figures, groups, report, scores
from evaluation.predictions import check_predictions, read_predictions, write_predictions
from utils.files import refuse_overwriting

BINS = np.arange(101)
COLUMNS = [f"p{age}" for age in BINS]


def draw_predictions(count, seed=0, error=4.0):
    """A table of faces whose predicted distributions are true, with every optional column."""
    rng = np.random.default_rng(seed)
    ages = rng.integers(0, 90, count).astype(float)
    spreads = rng.uniform(0.5, 1.5, count) * error
    centres = ages + rng.normal(0, spreads)
    probs = special.softmax(-np.square((BINS - centres[:, None]) / spreads[:, None]) / 2, axis=1)
    faces = pd.DataFrame({
        "photo": [f"face{k:05}.jpg" for k in range(count)], "age": ages, "pred_age": probs @ BINS,
        "age_std": rng.uniform(0, 6, count), "gender": rng.choice(["female", "male"], count),
        "race": rng.choice(["asian", "black", "white"], count),
        "confidence": rng.uniform(0.9, 1, count), "face_px": rng.uniform(20, 400, count),
        "sharpness": rng.uniform(5, 900, count)})
    return pd.concat([faces, pd.DataFrame(probs, columns=COLUMNS)], axis=1)


def minimal(table):
    return table[["photo", "age", "pred_age"]]


def with_intervals(table):
    low = np.minimum(table["age"] // 10 * 10, 70)
    high = np.where(low == 70, 100, low + 9)
    return table.assign(age_min=low, age_max=high, age=(low + high) / 2)


@pytest.fixture(scope="module")
def table():
    return draw_predictions(600)


@pytest.fixture(scope="module")
def full_report(tmp_path_factory, table):
    """A report on 600 exact ages and 60 ranges, with everything that can be given."""
    out_dir = tmp_path_factory.mktemp("report")
    both = pd.concat([table, with_intervals(draw_predictions(60, seed=9)).assign(
        photo=lambda faces: "range_" + faces["photo"])], ignore_index=True)
    faces = np.random.default_rng(0).integers(0, 255, (len(both), 32, 32, 3), dtype=np.uint8)
    checked = check_predictions(both, "t")
    evaluation = scores.evaluate_all({"model": [checked]}, scores.Variants(checked, checked, 1.5),
                                     audit.Photos(660, {"drawn": 40}), samples=200)
    results = report.write_report(evaluation, out_dir,
                                  {"Command": "python test.py", "Rejected": 3},
                                  lambda row: faces[row])
    return results, out_dir


def written(tmp_path, tables, variants=None, photo_of=None):
    """metrics.json and the text of report.html, which must be sound."""
    if isinstance(tables, pd.DataFrame):
        tables = {"model": [tables]}
    models = {name: [check_predictions(table, "t") for table in seeds]
              for name, seeds in tables.items()}
    report.write_report(scores.evaluate_all(models, variants, samples=50), tmp_path,
                        photo_of=photo_of)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    check_page(page)
    return json.loads((tmp_path / "metrics.json").read_text()), page


def check_page(page):
    text = re.sub(r'base64,[^"]*|<style>.*?</style>', "", page, flags=re.DOTALL)
    assert not re.search(r"\b(nan|NaN|None|inf|Undefined|null)\b", text)
    links = re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?([^"\')\s>]+)', text)
    assert all(link.startswith(("#", "data:")) or "{" in link for link in links)
    assert "@import" not in page and "<script" not in page
    assert text.count("<svg") == text.count("</svg>")


# ---- Reading predictions


def test_predictions_survive_writing_and_reading(tmp_path, table):
    write_predictions(check_predictions(table, "t"), tmp_path / "predictions.csv")
    read = read_predictions(tmp_path / "predictions.csv")
    assert read.probs == pytest.approx(table[COLUMNS].to_numpy(), abs=1e-6)
    assert read.faces["pred_age"].to_numpy() == pytest.approx(table["pred_age"], abs=1e-4)
    assert read.faces["photo"].tolist() == table["photo"].tolist()
    assert read.faces["pred_std"].to_numpy() == pytest.approx(
        metrics.distribution_std(table[COLUMNS].to_numpy(), BINS), abs=1e-3)


def test_three_columns_are_enough(tmp_path, table):
    minimal(table).to_csv(tmp_path / "other.csv", index=False)
    read = read_predictions(tmp_path / "other.csv")
    assert list(read.faces) == ["photo", "age", "pred_age"]
    assert read.probs is None


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_predictions_are_read_in_every_format_of_a_table(tmp_path, separator, encoding):
    lines = [["photo ", " age", "pred_age", "p0", "p1"],
             ["a\\Zoë.jpg", "1", "0.75", "0.25", "0.75"],
             ["./b.jpg", " 0", "0.5", "0.5", "0.5"]]
    (tmp_path / "other.csv").write_text("\n".join(map(separator.join, lines)), encoding=encoding)
    read = read_predictions(tmp_path / "other.csv")
    assert read.faces["photo"].tolist() == ["a/Zoë.jpg", "b.jpg"]
    assert read.faces["age"].tolist() == [1, 0]
    assert read.faces["pred_age"].tolist() == [0.75, 0.5]
    assert read.probs.tolist() == [[0.25, 0.75], [0.5, 0.5]]


@pytest.mark.parametrize("separator", [";", "\t"])
def test_decimal_commas_of_predictions_are_read(tmp_path, separator):
    lines = [["photo", "age", "pred_age", "p0", "p1"], ["a.jpg", "1", "0,875", "0,125", "0,875"],
             ["b.jpg", "0,5", "0", "1", "0"]]
    (tmp_path / "other.csv").write_text("\n".join(map(separator.join, lines)))
    read = read_predictions(tmp_path / "other.csv")
    assert read.faces["age"].tolist() == [1, 0.5]
    assert read.faces["pred_age"].tolist() == [0.875, 0]
    assert read.probs.tolist() == [[0.125, 0.875], [1, 0]]


@pytest.mark.parametrize("text, message", [
    ("photo,age\na.jpg,3\n", "no column pred_age"),
    ("", "not a CSV"),
    ("photo,age,pred_age\n", "no rows"),
    ("photo,age,pred_age\na.jpg,3,x\nb.jpg,,4\n",
     "row 2: pred_age 'x' is not a number; row 3: age 'nan' is not a number"),
    ("photo,age,pred_age,p0,p1,p3\na.jpg,1,1,0.5,0.5,0\n", "p0 .. p3 must be one a year"),
    ("photo,age,pred_age,p0,p1\na.jpg,1,1,0.5,0.1\n", "not a distribution .sum 0.6"),
    ("photo,age,pred_age,p0,p1\na.jpg,1,1,1.5,-0.5\n", "not a distribution"),
    ("photo,age,pred_age,age_std\na.jpg,1,1,wide\n", "age_std 'wide' is not a number"),
    *((f"photo,age,pred_age,{name}\na.jpg,1,1,-1\n", f"row 2: {name} '-1' is negative")
      for name in ("age_std", "pred_std", "face_px", "sharpness")),
    ("photo,age,pred_age\na.jpg,1," + "9" * 400 + "\n", "row 2: pred_age '9+' is not a number"),
    ("photo,age,pred_age,p0,p1\na.jpg,1,1,1," + "9" * 400 + "\n", "not a distribution"),
    ("photo,age,pred_age\na.jpg,1,1e200\nb.jpg,-1e7,2\n",
     "row 2: pred_age '1e.200' is not an age; row 3: age '-10000000.0' is not an age"),
    ("photo,age,pred_age,age_min,age_max\na.jpg,1,1,0,1e300\n", "age_max '1e.300' is not an age"),
    ("photo,age,pred_age,age_min,age_max\na.jpg,70,85,70,\nb.jpg,24,24,29,20\n",
     "row 2: age_min '70' and age_max '' are not an interval; row 3: age_min '29' and"),
    ("photo,age,pred_age,age_max\na.jpg,70,85,79\n", "age_min '' and age_max '79'")])
def test_unusable_predictions_are_named(tmp_path, text, message):
    path = tmp_path / "predictions.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_predictions(path)
    assert "\n" not in str(error.value)


def test_at_most_twenty_bad_rows_are_listed(tmp_path):
    path = tmp_path / "predictions.csv"
    path.write_text("photo,age,pred_age\n" + "a.jpg,old,3\n" * 25)
    with pytest.raises(ValueError, match="row 21: .*and 5 more$"):
        read_predictions(path)


def test_missing_predictions_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.csv' not found"):
        read_predictions(tmp_path / "none.csv")


@pytest.mark.parametrize("link", [None, "symlink_to", "hardlink_to"])
def test_a_file_that_is_read_is_not_overwritten_under_any_name(tmp_path, link):
    read = tmp_path / "read.csv"
    read.write_text("a")
    other, new = tmp_path / "other.csv", tmp_path / "new.csv"
    other.write_text("b")
    name = tmp_path / "name.csv" if link else read
    if link:
        getattr(name, link)(read)
    with pytest.raises(ValueError, match=f"'{name}' would be overwritten; choose another --report"):
        refuse_overwriting([new, name], [other, read], "--report")
    refuse_overwriting([new, other], [read, tmp_path / "none.csv"], "--report")


# ---- Numbers


def test_metrics_json_has_every_key(full_report):
    results = json.loads((full_report[1] / "metrics.json").read_text())
    keys = ["mae", "mae_median", "bias", "rmse", "ca3", "ca5", "ca7", "cs5", "epsilon_error",
            "nll", "crps", "coverage_50", "coverage_80", "coverage_90", "coverage_95", "aurc"]
    for key in keys:
        assert set(results[key]) == {"value", "low", "high"}
        assert results[key]["low"] < results[key]["value"] < results[key]["high"]
    assert set(results["groups"]) == {"age_band", "gender", "race", "gender_race_age_band"}


def test_values_are_those_of_the_metrics(full_report, table):
    results, probs = full_report[0], table[COLUMNS].to_numpy()
    ages, pred_ages = table["age"].to_numpy(), table["pred_age"].to_numpy()
    expected = {
        "mae": metrics.mae(ages, pred_ages), "bias": np.mean(pred_ages - ages),
        "mae_median": metrics.mae(ages, metrics.distribution_median(probs, BINS)),
        "rmse": np.sqrt(np.mean(np.square(pred_ages - ages))),
        "cs5": 100 * metrics.cs_hits(ages, pred_ages, 5).mean(),
        "epsilon_error": metrics.epsilon_error(pred_ages, ages, table["age_std"], 0.5).mean(),
        "nll": metrics.nll(probs, ages, BINS).mean(),
        "crps": metrics.crps(probs, ages, BINS).mean(),
        "aurc": metrics.aurc(abs(pred_ages - ages), metrics.distribution_std(probs, BINS))}
    expected |= {f"ca{n}": metrics.ca(ages, pred_ages, n) for n in (3, 5, 7)}
    expected |= {f"coverage_{q}": 100 * metrics.coverage(probs, ages, BINS, q / 100).mean()
                 for q in (50, 80, 90, 95)}
    assert {key: results[key]["value"] for key in expected} == pytest.approx(expected)


def test_age_ranges_never_enter_exact_metrics(full_report, table):
    results = full_report[0]
    assert (results["n"], results["n_exact"], results["n_interval"]) == (660, 600, 60)
    assert results["mae"]["value"] == pytest.approx(metrics.mae(table["age"], table["pred_age"]))
    ranges = with_intervals(draw_predictions(60, seed=9))
    assert results["intervals"]["all"]["all"]["interval_accuracy"]["value"] == pytest.approx(
        100 * (metrics.interval_distance(ranges["pred_age"], ranges["age_min"], ranges["age_max"],
                                         100) == 0).mean())
    assert list(results["intervals"]["interval"])[-1] == "70+"


def test_groups_are_those_of_the_table(full_report, table):
    families = full_report[0]["groups"]
    assert list(families["age_band"]) == ["0-2", "3-9", "10-19", "20-29", "30-39", "40-49", "50-59",
                                        "60-69", "70-79", "80+"]
    women = table[table["gender"] == "female"]
    assert families["gender"]["female"]["n"] == len(women)
    assert families["gender"]["female"]["bias"]["value"] == pytest.approx(
        (women["pred_age"] - women["age"]).mean())
    children = table[table["age"].between(3, 9)]
    assert families["age_band"]["3-9"]["mae"]["value"] == pytest.approx(
        metrics.mae(children["age"], children["pred_age"]))
    assert all(cell["n"] >= 30 for cell in families["gender_race_age_band"].values())


def test_cells_hold_at_least_thirty_faces():
    table = draw_predictions(61).assign(age=25.0, gender="male",
                                        race=["asian"] * 31 + ["black"] * 30)
    cells = groups.score_groups(check_predictions(table, "t"), 20)[0]
    assert set(cells["gender_race_age_band"]) == {"male, asian, 20-29", "male, black, 20-29"}
    fewer = groups.score_groups(check_predictions(table[:60], "t"), 20)[0]
    assert set(fewer["gender_race_age_band"]) == {"male, asian, 20-29"}


def test_a_comma_in_a_name_of_a_group_parts_no_cell(tmp_path):
    table = draw_predictions(62).assign(age=25.0, gender=["f", "m"] * 31, race="black, african")
    results, page = written(tmp_path, table)
    for gender in "fm":
        cell = results["groups"]["gender_race_age_band"][f"{gender}, black, african, 20-29"]
        assert (cell["gender"], cell["race"], cell["age_band"]) == (
            gender, "black, african", "20-29")
        assert f"<th>{gender}<br>black, african</th>" in page


def test_what_audits_measure_stands_in_the_report(full_report, table):
    results, out_dir = full_report
    found = results["audit"]
    young = table[table["age"].between(13, 17)]
    assert found["challenge_25"]["n"] == len(young)
    assert found["challenge_25"]["value"] == pytest.approx(100 * (young["pred_age"] >= 25).mean())
    assert found["not_processed"]["value"] == pytest.approx(100 * 40 / 700)  # 600 exact, 60 ranges
    assert sum(group["n"] for group in found["face_size"].values()) == 600
    page = (out_dir / "report.html").read_text(encoding="utf-8")
    section = page[page.index("What audits measure"):page.index("Faces known by an age range")]
    assert "Challenge 25" in section and "26 cells" in section
    assert section.count("<svg") == 2
    assert "not known: of no face with an exact age is the person known" in section


@pytest.mark.parametrize("age, band", [(0, "0-2"), (2.4, "0-2"), (2.5, "3-9"), (9, "3-9"),
                                       (10, "10-19"), (79.4, "70-79"), (80, "80+"), (116, "80+")])
def test_age_bands(age, band):
    assert groups.BANDS[groups.age_bands([age])[0]][0] == band


def test_a_gap_that_is_only_the_age_mix_vanishes_at_the_same_ages():
    """Women here are mostly old and old faces are hard; within an age nobody differs."""
    rng = np.random.default_rng(2)
    women = np.arange(4000) % 2 == 0
    old = rng.random(4000) < np.where(women, 0.8, 0.2)
    ages = np.where(old, 65.0, 25.0)
    table = pd.DataFrame({"photo": np.arange(4000).astype(str), "age": ages,
                          "pred_age": ages + rng.normal(0, np.where(old, 9, 3)),
                          "gender": np.where(women, "female", "male")})
    gaps = groups.score_groups(check_predictions(table, "t"), 200)[1]["gender"]
    assert gaps["mae"]["p_value"] < 0.01 and gaps["mae"]["highest"] == "female"
    assert abs(gaps["mae_same_ages"]["value"]) < 0.3 < gaps["mae"]["value"]
    assert gaps["mae_same_ages"]["p_value"] > 0.05
    assert gaps["mae_same_ages"]["bands"] == ["20-29", "60-69"]
    assert gaps["mae_same_ages"]["share_percent"] == 100


def test_the_same_mix_of_ages_is_that_of_all_faces():
    """Nine tenths of the faces are young: the error of the young ones counts nine times."""
    ages = np.repeat([25.0, 65.0], [360, 40])
    women = np.arange(400) % 4 == 0
    errors = np.where(ages == 25, np.where(women, 1, 2), np.where(women, 11, 22))
    table = pd.DataFrame({"photo": np.arange(400).astype(str), "age": ages,
                          "pred_age": ages + errors, "gender": np.where(women, "f", "m")})
    families, gaps = groups.score_groups(check_predictions(table, "t"), 20)
    assert families["gender"]["f"]["mae_same_ages"]["value"] == pytest.approx(0.9 + 1.1)
    assert families["gender"]["m"]["mae_same_ages"]["value"] == pytest.approx(1.8 + 2.2)
    assert gaps["gender"]["mae_same_ages"]["value"] == pytest.approx(2)


def test_groups_are_compared_at_the_same_ages_where_these_hold_half_of_the_faces():
    ages = np.repeat([25.0, 65.0], 200)
    women = np.arange(400) < 100  # of the young ones half, of the old ones none
    table = pd.DataFrame({"photo": np.arange(400).astype(str), "age": ages, "pred_age": ages + 1,
                          "gender": np.where(women, "female", "male")})

    def gaps_of(table):
        return groups.score_groups(check_predictions(table, "t"), 20)[1]["gender"]

    assert gaps_of(table)["mae_same_ages"]["share_percent"] == 50
    assert "mae_same_ages" not in gaps_of(table[1:].reset_index(drop=True))


def test_one_person_has_no_interval_and_enters_no_gap():
    people = np.array(["a"] * 40 + [f"p{k}" for k in range(60)])
    table = pd.DataFrame({"photo": np.arange(100).astype(str), "age": 30.0, "subject": people,
                          "pred_age": np.random.default_rng(0).normal(30, 5, 100),
                          "age_std": np.where(people == "a", 4.0, np.nan),
                          "gender": np.where(people == "a", "female", "male")})
    exact = check_predictions(table, "t")
    families, gaps = groups.score_groups(exact, 50)
    assert families["gender"]["female"]["mae"]["low"] is None
    assert families["gender"]["male"]["mae"]["low"] is not None
    assert "gender" not in gaps
    assert scores.score(exact, 50)["epsilon_error"]["low"] is None


def test_a_comparison_is_of_the_faces_for_which_both_know_a_metric(table):
    faces = check_predictions(table, "t")
    worst = table["age_std"].where(faces.abs_errors > np.median(faces.abs_errors))
    some = check_predictions(table.assign(age_std=worst), "t")
    change = scores.compare([faces], [some], 50)["differences"]["epsilon_error"]
    assert (change["value"], change["significant"]) == (0, False)


def test_a_recipe_is_compared_by_the_mean_over_its_seeds(table):
    runs = [table.assign(pred_age=table["pred_age"] + shift) for shift in (0, 2, -9)]
    maes = [metrics.mae(run["age"], run["pred_age"]) for run in runs]
    recipe, [single] = ([check_predictions(run, "t") for run in some] for some in (runs, runs[:1]))
    change = scores.compare(recipe, [single], 50)["differences"]["mae"]
    assert change["value"] == pytest.approx(maes[0] - np.mean(maes))


def test_few_faces_have_no_interval_and_no_verdict(table):
    for count, known in ((9, False), (10, True)):
        some = table[:count]
        worse = some.assign(pred_age=some["pred_age"] + 30)
        first, second = (check_predictions(one, "t") for one in (some, worse))
        assert (scores.score(first.exact, 50)["mae"]["low"] is not None) == known
        change = scores.compare([first], [second], 50)["differences"]["bias"]
        assert change["value"] == pytest.approx(30)
        assert change["significant"] == known and (change["p_value"] is not None) == known


def test_few_faces_all_missed_are_not_called_noise(tmp_path, table):
    missed = table[:9].assign(age=table["age"][:9] + 60)
    results, page = written(tmp_path, missed)
    assert results["coverage_80"]["value"] == 0
    assert "noise" not in re.findall(r"Of the true ages.*?</dd>", page)[0]
    verdict, = re.findall(r"<td>80%</td>.*?<td>([^<]*)</td></tr>", page, flags=re.DOTALL)
    assert verdict == "80.0 points too few, " + bootstrap.TOO_FEW


@pytest.mark.parametrize("rule, digits", [("mean", 1), ("mass", 3)])
def test_a_cutoff_of_rounded_scores_keeps_its_promise(rule, digits):
    rng = np.random.default_rng(0)
    for _ in range(300):
        # Of tables with as many decimals; a probability is below 1.
        surplus = rng.integers(0 if rule == "mass" else -50, 1000, 60) / 10 ** digits
        is_adult = rng.random(60) < 0.5
        found = scores._cost_of_safety(is_adult, surplus, 5, rule)
        shown = float(f"{found['cutoff']:.{digits}f}")
        assert (surplus[~is_adult] >= shown).mean() <= 0.05
        assert found["adults_refused"] == pytest.approx(100 * (surplus[is_adult] < shown).mean())


def test_no_probability_above_one_is_asked_for(tmp_path, table):
    """A child of 10 whose distribution is all above 18 passes at every probability."""
    one_hot = pd.DataFrame(np.eye(101)[[60] * len(table)], columns=COLUMNS)
    sure = pd.concat([minimal(table), one_hot], axis=1)
    results, page = written(tmp_path, sure)
    for percent in ("1", "5"):
        assert results["decisions"]["18"]["mass"]["at_tolerance"][percent] == {
            "cutoff": None, "adults_refused": None, "why": "no probability keeps this promise"}
    assert "no probability keeps this promise" in page
    surplus, is_adult = np.array([0.2, 0.9995, 1.0]), np.array([False, False, True])
    assert scores._cost_of_safety(is_adult, surplus, 1, "mass") == {
        "cutoff": 1, "adults_refused": 0}


def test_all_ranges_right_is_no_certainty(table):
    ranges = with_intervals(table[:5])
    results = scores.evaluate(check_predictions(
        ranges.assign(pred_age=ranges["age"]), "t"), 50)
    share = results["intervals"]["all"]["all"]["interval_accuracy"]
    assert (share["value"], share["high"]) == (100, 100)
    assert share["low"] == pytest.approx(56.55, abs=0.01)  # Wilson's, 5 of 5


def test_an_empty_spread_is_that_of_the_distribution(table):
    spreads = metrics.distribution_std(table[COLUMNS].to_numpy(), BINS)
    filled = check_predictions(
        table.assign(pred_std=np.where(np.arange(len(table)) == 3, np.nan, 7.0)), "t").faces
    assert filled["pred_std"][3] == pytest.approx(spreads[3])
    assert (filled["pred_std"].drop(3) == 7).all()


def test_one_wild_prediction_leaves_the_others_in_sight(table):
    ages, pred_ages = (table[name].to_numpy()[:50] for name in ("age", "pred_age"))
    for wild in (1e6, -1e300):
        drawn = figures.draw_predicted_against_true(ages, np.array([wild, *pred_ages[1:]]))
        assert ">20</text>" in drawn and ">60</text>" in drawn  # ticks of the axes


@pytest.mark.filterwarnings("error")
def test_names_of_models_and_groups_are_drawn_as_they_are(tmp_path, table):
    odd = table.assign(race=np.where(table["race"] == "asian", r"$\frac$", "a_b"),
                       gender=np.where(table["gender"] == "female", "女", "男"))
    _, page = written(tmp_path, {r"$\nosuch$.pth": [odd], "_b.pth": [odd], "c$.pth": [odd]})
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", page)
    assert sum(text.startswith(r"$\frac$ (n ") for text in texts) == 2
    for name in (r"$\nosuch$.pth", "_b.pth", "c$.pth"):
        assert texts.count(name) == 2  # the curves of allowed errors and of coverage
    assert "_b.pth, by predicted spread" in texts


def test_bin_columns_may_be_padded_and_not_double(table):
    padded = table.rename(columns={f"p{age}": f"p{age:03}" for age in range(101)})
    assert check_predictions(padded, "t").probs.tolist() == check_predictions(
        table, "t").probs.tolist()
    with pytest.raises(ValueError, match="two columns for p1"):
        check_predictions(table.assign(p01=0.0), "t")


def test_a_share_of_nothing_or_everything_has_an_interval(table):
    few = table.head(15)
    for error, value in ((20, 0), (1, 100)):
        found = scores.evaluate(check_predictions(few.assign(pred_age=few["age"] + error), "t"))
        expected = bootstrap.share_interval(np.full(15, value / 100))  # 0 to 20.4, 79.6 to 100
        assert tuple(found["ca5"].values()) == pytest.approx(expected)
        assert found["ca5"]["high"] - found["ca5"]["low"] > 20
    few = few.head(bootstrap.MIN_UNITS - 1)
    assert scores.evaluate(check_predictions(few.assign(pred_age=few["age"]), "t"))[
        "ca5"]["low"] is None


def test_bootstrap_is_by_subject_where_all_are_known(table):
    twins = pd.concat([table] * 4, ignore_index=True)
    people = twins.assign(subject=np.tile([f"s{k}" for k in range(600)], 4))
    unknown = people.assign(subject=["s0", *[None] * 2399])

    def width(faces):
        mae = scores.score(check_predictions(faces, "t"))["mae"]
        return mae["high"] - mae["low"]

    assert width(people) == pytest.approx(width(table), rel=0.15)  # copies add no evidence
    assert width(unknown) == pytest.approx(width(table) / 2, rel=0.15)


def people_of_all_kinds():
    """340 persons, a photo of each: of all that intervals and audits need; 40 have age ranges."""
    ages = np.concatenate([np.repeat(np.arange(18, 31), 10), np.repeat(np.arange(13, 18), 8),
                           np.repeat(np.arange(3, 13), 5), np.repeat(np.arange(31, 71), 2)])
    faces = draw_predictions(340, seed=5, error=8.0)
    shift = np.concatenate([ages, np.full(40, 35)]) - faces["age"]
    exact = faces.assign(age=faces["age"] + shift, pred_age=faces["pred_age"] + shift,
                         gender=["female", "male"] * 170)
    table = pd.concat([exact[:300], with_intervals(exact[300:])], ignore_index=True)
    return table.assign(subject=[f"s{k}" for k in range(340)])


def interval_widths(results, path=""):
    """{path: width} of every interval in nested results."""
    if isinstance(results, list):
        results = dict(enumerate(results))
    if not isinstance(results, dict):
        return {}
    if results.get("low") is not None:
        return {path: results["high"] - results["low"]}
    return {name: width for key, value in results.items()
            for name, width in interval_widths(value, f"{path}/{key}").items()}


def test_copies_of_a_photo_narrow_no_interval():
    once = people_of_all_kinds()
    nine = pd.concat([once] * 9, ignore_index=True).assign(
        photo=[f"{k}.jpg" for k in range(9 * len(once))])
    found = {}
    for name, table in {"once": once, "nine": nine}.items():
        results = scores.evaluate_all({"m": [check_predictions(table, "t")]}, samples=200).results
        assert (results["n"], results["n_subjects"]) == (len(table), 340)
        assert results["bootstrap"]["unit"] == "subject"
        found[name] = interval_widths(results)
    for path in ("/mae", "/aurc", "/audit/mae_18_30", "/audit/challenge_25", "/audit/band_older",
                 "/audit/face_size/64-127/mae", "/audit/sharpness/second fifth/bias",
                 "/groups/gender/male/mae", "/gaps/race/mae", "/risk_coverage/confidence/aurc",
                 "/intervals/all/all/interval_accuracy", "/intervals/gender/male/interval_distance",
                 "/decisions/18/mean/table/0/minors_passed",
                 "/decisions/18/mass/table/6/adults_refused"):
        assert {path} <= found["once"].keys() & found["nine"].keys()
    for path in found["once"].keys() & found["nine"].keys():
        if path.startswith(("/gaps/age_band", "/gaps/gender_race_age_band")):
            continue  # nine photos of four persons are enough faces to enter a gap
        assert found["nine"][path] == pytest.approx(found["once"][path], rel=0.1), path
    alone = check_predictions(once.drop(columns="subject"), "t")
    results = scores.evaluate_all({"m": [alone]}, samples=20).results
    assert (results["n_subjects"], results["bootstrap"]["unit"]) == (None, "face")


def test_the_curves_are_those_of_the_metrics(full_report, table):
    results, probs = full_report[0], table[COLUMNS].to_numpy()
    curve = results["cs_curve"]
    for limit, percent in zip(curve["limits_years"], curve["cs_percent"], strict=True):
        assert percent == pytest.approx(
            100 * (abs(table["pred_age"] - table["age"]) <= limit).mean())
    low, high = metrics.central_interval(probs, BINS, 0.8)
    assert results["calibration"]["width_80_years"] == pytest.approx((high - low).mean())


def test_the_least_confident_detections_are_refused_first(table):
    errors = abs(table["pred_age"] - table["age"])
    knowing = table.assign(confidence=1 / (1 + errors))
    curve = scores.evaluate(check_predictions(knowing, "t"), 20)["risk_coverage"]["confidence"]
    assert curve["aurc"]["value"] == pytest.approx(metrics.aurc(errors, errors))
    assert curve["mae_years"][0] == pytest.approx(errors.min())


def test_a_spread_that_knows_the_errors_lowers_the_aurc(table):
    errors = abs(table["pred_age"] - table["age"])
    plain = minimal(table).assign(pred_std=1.0)
    first, second = (check_predictions(one, "t") for one in (plain, plain.assign(pred_std=errors)))
    change = scores.compare([first], [second], 50)["differences"]["aurc"]
    assert change["value"] == pytest.approx(metrics.aurc(errors, errors) - errors.mean())
    assert change["significant"] and change["high"] < 0


def test_photos_of_one_name_are_compared_within_their_data_set(table):
    both = pd.concat([table[:50].assign(dataset="a"), table[50:100].assign(
        dataset="b", photo=table["photo"][:50].to_numpy())], ignore_index=True)
    mixed = pd.concat([both[50:], both[:50]], ignore_index=True)
    first, second = (check_predictions(one, "t") for one in (both, mixed))
    comparison = scores.compare([first], [second], 20)
    assert (comparison["n"], comparison["n_other_age"]) == (100, 0)
    assert comparison["differences"]["rmse"]["value"] == pytest.approx(0)


def test_subjects_of_two_data_sets_are_different_people(table):
    faces = minimal(table).assign(subject="1", dataset=["fgnet", "agedb"] * 300)
    assert check_predictions(faces, "t").count_units() == 2


def test_epsilon_error_is_over_faces_with_votes_only(table):
    partly = table.copy()
    partly.loc[300:, "age_std"] = np.nan
    known = partly[:300]
    results = scores.score(check_predictions(partly, "t"), 20)
    assert results["epsilon_error"]["value"] == pytest.approx(
        metrics.epsilon_error(known["pred_age"], known["age"], known["age_std"], 0.5).mean())


def test_decisions_at_eighteen(full_report, table):
    decision = full_report[0]["decisions"]["18"]
    minors = table[table["age"] < 18]
    assert decision["n_minors"] == len(minors)
    row = next(row for row in decision["mean"]["table"] if row["cutoff"] == 3)
    assert row["minors_passed"]["value"] == pytest.approx(100 * (minors["pred_age"] >= 21).mean())
    for rule, surplus in (("mean", table["pred_age"] - 18),
                         ("mass", table[[f"p{age}" for age in range(18, 101)]].sum(axis=1))):
        for percent, safe in decision[rule]["at_tolerance"].items():
            shown = float(f"{safe['cutoff']:.{1 if rule == 'mean' else 3}f}")
            passes = surplus >= shown
            assert passes[table["age"] < 18].mean() <= int(percent) / 100
            assert safe["adults_refused"] == pytest.approx(
                100 * (~passes[table["age"] >= 18]).mean())
    safe = decision["mean"]["at_tolerance"]["5"]["cutoff"]
    assert (minors["pred_age"] - 18 >= safe).mean() <= 0.05
    mass = minors[COLUMNS[18:]].sum(axis=1)
    row = next(row for row in decision["mass"]["table"] if row["cutoff"] == 0.9)
    assert row["minors_passed"]["value"] == pytest.approx(100 * (mass >= 0.9).mean())


def test_the_uncalibrated_result_stands_beside_the_calibrated(tmp_path, table):
    probs = table[COLUMNS].to_numpy()
    raw_nll = metrics.nll(probs, table["age"], BINS).mean()
    cooled = metrics.calibrated_probs(np.log(np.maximum(probs, 1e-30)), 0.7)
    calibrated = table.assign(pred_age=metrics.distribution_mean(cooled, BINS),
                              **dict(zip(COLUMNS, cooled.T, strict=True)))
    results, page = written(tmp_path, calibrated, scores.Variants(
        uncalibrated=check_predictions(table, "t"), temperature=0.7))
    assert results["uncalibrated"]["temperature"] == 0.7
    assert results["uncalibrated"]["nll"]["value"] == pytest.approx(raw_nll, rel=1e-6)
    assert results["nll"]["value"] > raw_nll
    assert "temperature 0.700" in page and "before calibration" in page
    results, page = written(tmp_path, calibrated, scores.Variants(
        uncalibrated=check_predictions(table, "t"), temperature=(0.7, 1.25)))
    assert results["uncalibrated"]["temperature"] == [0.7, 1.25]
    assert "temperature 0.700 at age 0 to 1.250 at age 100" in page


# ---- Comparing


def test_a_model_compared_with_itself_is_not_significant(table):
    mixed = table.sample(frac=1, random_state=0)
    both = [check_predictions(one, "t") for one in (table, mixed)]
    differences = scores.compare(both[:1], both[1:], 50)["differences"]
    assert set(differences) == set(scores.METRICS)
    assert all(change["value"] == pytest.approx(0, abs=1e-9) and not change["significant"]
               for change in differences.values())


def test_a_better_model_is_significant_and_paired(table):
    worse = table.assign(pred_age=table["pred_age"] + 1.5).sample(frac=1, random_state=0)
    first, second = (check_predictions(one, "t") for one in (table, worse))
    change = scores.compare([first], [second], 200)["differences"]["bias"]
    assert (change["value"], change["low"], change["high"]) == pytest.approx((1.5, 1.5, 1.5))
    assert scores.compare([first], [second], 200)["differences"]["mae"]["significant"]


def test_recipes_with_seeds_stand_side_by_side(tmp_path, table):
    runs = [table, *(draw_predictions(600, seed).assign(photo=table["photo"]) for seed in (1, 2))]
    results, page = written(tmp_path, {"recipe": runs, "single": [table]})
    maes = [metrics.mae(run["age"], run["pred_age"]) for run in runs]
    assert results["seeds"]["recipe"]["mae"] == pytest.approx(
        {"mean": np.mean(maes), "sd": np.std(maes, ddof=1), "n": 3})
    assert list(results["models"]) == ["recipe, seed 1", "recipe, seed 2", "recipe, seed 3",
                                       "single"]
    assert "spread over seeds" in page and "single minus recipe" in page
    names = {path.name for path in tmp_path.glob("*.csv")}
    assert names == {"predictions.csv", "predictions_recipe_2.csv", "predictions_recipe_3.csv",
                     "predictions_single.csv"}


def test_each_model_has_a_table_and_those_of_an_earlier_report_go(tmp_path, table):
    written(tmp_path, {"runs/a/best.pth": [table], "runs/b": [table], "old": [table]})
    (tmp_path / "predictions_mine.csv").write_text("kept")
    assert (tmp_path / "predictions_old.csv").exists()
    other = draw_predictions(600, 1).assign(photo=table["photo"])
    results, _ = written(tmp_path, {"first": [table], "runs/a": [table], "runs_a": [other]})
    assert {path.name for path in tmp_path.glob("*.csv")} == {
        "predictions.csv", "predictions_runs_a.csv", "predictions_runs_a_2.csv",
        "predictions_mine.csv"}
    assert results["provenance"]["Tables"] == {
        "predictions.csv": "first", "predictions_runs_a.csv": "runs/a",
        "predictions_runs_a_2.csv": "runs_a"}
    read = read_predictions(tmp_path / "predictions_runs_a_2.csv")
    assert read.faces["pred_age"].to_numpy() == pytest.approx(other["pred_age"], abs=1e-4)


def test_models_without_a_common_photo_are_not_compared(table):
    other = table.assign(photo="other_" + table["photo"])
    first, second = (check_predictions(one, "t") for one in (table, other))
    assert scores.compare([first], [second], 20) == {
        "n": 0, "n_interval": 0, "n_other_age": 0, "differences": {}}


def test_only_faces_whose_true_age_is_agreed_are_compared(tmp_path, table):
    other = table.assign(age=table["age"] + np.where(np.arange(len(table)) < 100, 20, 0))
    results, page = written(tmp_path, {"apparent": [table], "real": [other]})
    [comparison] = results["comparisons"]
    assert (comparison["n"], comparison["n_other_age"]) == (500, 100)
    assert comparison["differences"]["mae"]["value"] == 0
    assert "Left out: 100 faces with another true age" in page
    older = table.assign(age=table["age"] + 1)
    _, page = written(tmp_path, {"apparent": [table], "real": [older]})
    assert "cannot be compared: 600 faces with another true age" in page


@pytest.mark.parametrize("exact", [0, 300])
def test_models_are_compared_on_faces_with_age_ranges(tmp_path, table, exact):
    ranged = with_intervals(table[exact:])
    both = pd.concat([table[:exact], ranged], ignore_index=True)
    inside = both.assign(pred_age=both["pred_age"].where(both.index < exact, both["age"]))
    results, page = written(tmp_path, {"plain": [both], "inside": [inside.sample(
        frac=1, random_state=0)], "exact ages": [table[:exact or 1]]})
    distances = metrics.interval_distance(ranged["pred_age"], ranged["age_min"],
                                          ranged["age_max"], 100)
    expected = {"interval_accuracy": 100 * (distances == 0).mean(),
                "interval_distance": distances.mean()}
    perfect = {"interval_accuracy": 100, "interval_distance": 0}
    for key, value in expected.items():
        assert results["models"]["plain"][key]["value"] == pytest.approx(value)
        assert results["models"]["inside"][key]["value"] == perfect[key]
        assert results["models"]["exact ages"][key]["why"] == "no face with an age range"
    comparison = results["comparisons"][0]
    assert (comparison["n"], comparison["n_interval"]) == (exact, len(ranged))
    for key, value in expected.items():
        change = comparison["differences"][key]
        assert change["value"] == pytest.approx(perfect[key] - value) and change["significant"]
        assert change["low"] < change["value"] < change["high"]
    assert ("mae" in comparison["differences"]) == (exact > 0)
    section = page[page.index("Models side by side"):page.index('<h2 id="errors">')]
    assert "In the right range" in section and "Distance from the range" in section
    assert f"{len(ranged)} faces with an age range that both have" in section
    assert f"points higher (better) than that of “plain” on the same {len(ranged)} faces" in page


def test_only_faces_whose_age_range_is_agreed_are_compared(table):
    ranged = with_intervals(table)
    other = ranged.assign(age_max=ranged["age_max"] + np.where(np.arange(len(table)) < 100, 1, 0))
    first, second = (check_predictions(one, "t") for one in (ranged, other))
    comparison = scores.compare([first], [second], 20)
    assert (comparison["n_interval"], comparison["n_other_age"]) == (500, 100)
    assert comparison["differences"]["interval_distance"]["value"] == 0


def test_each_face_of_a_photo_is_compared(table):
    pairs = table.assign(photo=[f"{k // 2}.jpg" for k in range(len(table))])
    first, second = (check_predictions(one, "t") for one in
                     (pairs, pairs.assign(pred_age=pairs["pred_age"] + 1)))
    comparison = scores.compare([first], [second], 50)
    assert comparison["n"] == len(table)
    assert comparison["differences"]["bias"]["value"] == pytest.approx(1)


def test_seeds_on_ranges_have_a_spread_of_their_own(tmp_path, table):
    runs = [with_intervals(draw_predictions(100, seed)).assign(photo=table["photo"][:100])
            for seed in (1, 2)]
    results, page = written(tmp_path, {"recipe": runs})
    shares = [run["interval_accuracy"] for run in (
        scores.evaluate(check_predictions(run, "t"), 20)["intervals"]["all"]["all"]
        for run in runs)]
    assert results["seeds"]["recipe"]["interval_accuracy"]["mean"] == pytest.approx(
        np.mean([share["value"] for share in shares]))
    assert set(results["seeds"]["recipe"]) == {"interval_accuracy", "interval_distance"}
    assert "spread over seeds" in page and "over 2 runs" in page


def test_tta_stands_beside_the_plain_result(tmp_path, table):
    better = table.assign(pred_age=(table["pred_age"] + table["age"]) / 2)
    results, page = written(tmp_path, table, scores.Variants(tta=check_predictions(better, "t")))
    assert results["tta"]["mae"]["value"] == pytest.approx(results["mae"]["value"] / 2)
    assert results["tta"]["change"]["differences"]["mae"]["significant"]
    assert "with TTA" in page


# ---- The page


def test_full_page_is_self_contained_and_holds_the_faces(full_report):
    page = (full_report[1] / "report.html").read_text(encoding="utf-8")
    check_page(page)
    assert page.count("data:image/jpeg;base64,") == report.WORST + report.BEST
    assert page.count('class="spark"') == report.WORST + report.BEST
    assert "python test.py" in page
    for colour in report.figures.VARIABLES:
        assert f": {colour}" not in page.split("</style>", 1)[1]


@pytest.mark.parametrize("cones", [
    np.eye(3),
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
     [-0.003882, -0.048116, 1.051998]],
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
     [-0.011820, 0.042940, 0.968881]],
    [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
     [0.004733, 0.691367, 0.303900]]], ids=["all", "no red", "no green", "no blue"])
def test_series_colours_are_told_apart_without_a_kind_of_cone(full_report, cones):
    """Simulation of Machado, Oliveira and Fernandes (2009); CIE76 differences, 2 is just seen."""
    page = (full_report[1] / "report.html").read_text(encoding="utf-8")
    colours = re.findall(r"--series-\d: #(\w{6});", page)
    assert len(colours) == 12  # six in light, six in dark
    rgb = np.array([[int(c[i:i + 2], 16) / 255 for i in (0, 2, 4)] for c in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = (linear @ np.transpose(cones)).clip(0, 1)
    shown = np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)
    for scheme in np.split(skimage.color.rgb2lab(shown), 2):
        differences = np.linalg.norm(scheme[:, None] - scheme[None], axis=2)
        assert differences[np.triu_indices(6, 1)].min() > 20


def test_worst_faces_come_first(full_report, table):
    page = (full_report[1] / "report.html").read_text(encoding="utf-8")
    names = re.findall(r'class="name">([^<]+)<', page)
    errors = (table["pred_age"] - table["age"]).abs()
    assert names[:20] == table["photo"][errors.sort_values(ascending=False).index[:20]].tolist()


def test_the_photo_of_a_face_is_that_of_its_row(tmp_path, table):
    """Rows with ranges in between must not shift the faces."""
    ranges = with_intervals(draw_predictions(5, seed=9)).assign(photo=list("abcde"))
    both = pd.concat([ranges, table], ignore_index=True)
    asked = []

    def photo_of(row):
        asked.append(both["photo"][row])
        raise OSError("unreadable")

    _, page = written(tmp_path, both, photo_of=photo_of)
    assert asked == re.findall(r'class="name">([^<]+)<', page)


@pytest.mark.parametrize("case, sentence", [
    ("minimal", "no distribution"),
    ("one image", "1 face."),
    ("constant", "Predicted ages are off by"),
    ("ranges only", "No face has an exact age"),
    ("one range", "1 face known only by an age range"),
    ("no minors", "no face younger than the threshold"),
    ("perfect", "off by 0.00 years"),
    ("no gender known", "no face with an exact age has a gender (column gender)"),
    ("one group", "Fewer than two groups"),
    ("no face sizes", "no column face_px"),
    ("labels beyond", "Outside the predicted ages: 1 label,"),
    ("one person", "no interval"),
    ("one person", "Fewer than two groups have 30 faces of 10 people"),
    ("odd names", "&lt;b&gt;"),
    ("nothing in common", "no photo has an exact age in both")])
def test_whatever_is_missing_there_is_a_page(tmp_path, table, case, sentence):
    one_hot = pd.DataFrame(np.eye(101)[table["age"].astype(int)], columns=COLUMNS)
    cases = {
        "minimal": minimal(table), "one image": table[:1],
        "constant": minimal(table).assign(pred_age=30.0, pred_std=0.0),
        "ranges only": with_intervals(table), "one range": with_intervals(table[:1]),
        "no minors": table[table["age"] > 30],
        "perfect": table.assign(pred_age=table["age"], **one_hot),
        "no gender known": table.assign(gender=None, race=None),
        "one group": table.assign(age=25.0, gender="male"),
        "no face sizes": table.drop(columns=["face_px", "sharpness"]),
        "labels beyond": table.assign(age=[116.0, *table["age"][1:]]),
        "one person": table.assign(subject="s"),
        "odd names": table.assign(photo="<b>" + table["photo"], race="a, b"),
        "nothing in common": {"a": [table], "b": [minimal(table).assign(photo="b")]}}
    results, page = written(tmp_path, cases[case])
    assert sentence in page
    assert set(scores.METRICS) <= set(results)
    if case == "perfect":  # each age lies in the middle of its bin
        assert [results[f"coverage_{q}"]["value"] for q in scores.COVERAGES] == pytest.approx(
            scores.COVERAGES)


def test_exact_ages_and_ranges_are_drawn_as_each_is_known(tmp_path, table):
    exact = table[:100].assign(subject=[f"s{k}" for k in range(100)], gender=None)
    both = pd.concat([exact, with_intervals(table[100:200])], ignore_index=True)
    results, page = written(tmp_path, both)
    assert results["bootstrap"] | {"unit": "subject", "unit_ranges": "face"} == results["bootstrap"]
    assert "each draws whole people, of age ranges faces)" in page
    assert "no face with an exact age has a gender" in page
    assert set(results["intervals"]["gender"]) == {"female", "male"}
    results, page = written(tmp_path, exact)
    assert results["bootstrap"]["unit_ranges"] is None
    assert "each draws whole people)" in page


def test_one_image_has_values_without_intervals(table):
    results = scores.score(check_predictions(table[:1], "t"), 20)
    assert all(number["low"] is None and number["high"] is None for number in results.values())
    assert results["mae"]["value"] == pytest.approx(abs(table["pred_age"][0] - table["age"][0]))


def test_missing_metrics_say_why(table):
    results = scores.score(check_predictions(minimal(table), "t"), 20)
    for key in ("mae_median", "nll", "crps", "coverage_80", "aurc", "epsilon_error"):
        assert results[key]["value"] is None and results[key]["why"]


@pytest.mark.slow
def test_a_hundred_thousand_faces_take_less_than_a_minute(tmp_path):
    table = draw_predictions(100_000).assign(subject=np.arange(100_000) // 3)
    start = time.perf_counter()
    report.write_report(scores.evaluate_all({"model": [check_predictions(table, "t")]}), tmp_path)
    assert time.perf_counter() - start < 60


def test_columns_of_a_distribution_may_come_in_any_order(tmp_path):
    (tmp_path / "t.csv").write_text("photo,age,pred_age,p10,p9,p11\na.jpg,10,10,0.25,0.625,0.125\n")
    read = read_predictions(tmp_path / "t.csv")
    assert read.age_bins.tolist() == [9, 10, 11] and read.probs.tolist() == [[0.625, 0.25, 0.125]]

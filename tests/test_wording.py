"""evaluation/wording.py: each sentence of a report says what its numbers say."""

import pytest

from evaluation import wording


def number(value, low=None, high=None, **more):
    return {"value": value, "low": low, "high": high, **more}


@pytest.mark.parametrize("bias, sentence", [
    (number(3.2, 2.9, 3.5), "On average faces are estimated 3.20 years too old "
     "(bias 3.20, 2.90 to 3.50)."),
    (number(-0.24, -0.42, -0.1), "On average faces are estimated 0.24 years too young "
     "(bias −0.24, −0.42 to −0.10)."),
    (number(-0.24, -0.42, 0.1), "On average faces are estimated 0.24 years too young "
     "(bias −0.24, −0.42 to 0.10), which is no more than noise."),
    (number(0.0, 0.0, 0.0), "On average faces are estimated neither too old nor too young "
     "(bias 0.00, 0.00 to 0.00)."),
    (number(-0.001, -0.3, 0.3), "On average faces are estimated neither too old nor too young "
     "(bias 0.00, −0.30 to 0.30)."),
    (number(-1.0, why="few"), "On average faces are estimated 1.00 years too young.")])
def test_the_direction_of_the_error(bias, sentence):
    assert wording._bias_sentence({"bias": bias}) == sentence


@pytest.mark.parametrize("p_value, end", [
    (0.049, " is 0.83 years (0.11 to 1.50), e above a: more than noise (p = 0.049)."),
    (0.001, " is 0.83 years (0.11 to 1.50), e above a: more than noise (p < 0.002)."),
    # The interval is of two groups chosen because they are far apart, so it is no test of chance.
    (0.05, " is 0.83 years, e above a: no more than noise (p = 0.050).")])
def test_a_gap_of_groups(p_value, end):
    gap = number(0.83, 0.11, 1.5, highest="e", lowest="a", p_value=p_value)
    sentences = wording.gap_sentences({"race": {"mae": gap, "bias": gap, "mae_same_ages": gap | {
        "bands": ["20-29", "30-39", "40-49", "60-69"], "share_percent": 71.6}}})["race"]
    end = end.replace("p = ", "p\xa0=\xa0").replace("p < ", "p\xa0<\xa0")
    assert sentences == {"mae": "The largest gap in MAE" + end,
                         "bias": "The largest gap in bias" + end,
                         "mae_same_ages": "At the same mix of ages (ages 20-29, 30-39, 40-49, "
                                          "60-69, 72% of the faces) the largest gap in MAE" + end}


@pytest.mark.parametrize("covered_80, covered_90, verdict", [
    (number(70.0, 67, 73), number(82.0, 79, 85), "too narrow, they promise too much"),
    (number(88.0, 86, 90), number(95.0, 93, 97), "too wide, they promise too little"),
    (number(70.0, 67, 73), number(95.0, 93, 97), "too narrow, they promise too much"),
    (number(70.0, 58, 82), number(88.5, 80, 97), "off by no more than noise"),
    (number(81.5, 81, 82), number(88.5, 88, 89), "within 2 points of what they promise"),
    (number(20.0, why="few"), number(30.0, why="few"), "few")])
def test_the_coverage_of_intervals(covered_80, covered_90, verdict):
    sentence = wording._coverage_sentence({"coverage_80": covered_80, "coverage_90": covered_90})
    assert sentence.endswith(f": {verdict}.")
    assert f"the 80% interval covers {covered_80['value']:.1f}%" in sentence
    assert f"the 90% interval covers {covered_90['value']:.1f}%" in sentence


def test_the_verdict_on_each_interval():
    results = {"coverage_50": number(45.0, 43, 47), "coverage_80": number(88.0, 86, 90),
               "coverage_90": number(87.0, 83, 91), "coverage_95": number(96.0, 95.5, 96.5)}
    assert wording.verdicts(results) == {
        "coverage_50": "5.0 points too few", "coverage_80": "8.0 points too many",
        "coverage_90": "3.0 points too few, no more than noise",
        "coverage_95": "within 2 points"}


@pytest.mark.parametrize("metric, count, change, sentence", [
    ("mae", "n", number(-0.5, -0.7, -0.3, significant=True),
     "The MAE of “b” is 0.50 years lower (better) than that of “a” on the same 90 faces "
     "(difference −0.70 to −0.30): significant."),
    ("mae", "n", number(0.5, 0.3, 0.7, significant=True),
     "The MAE of “b” is 0.50 years higher (worse) than that of “a” on the same 90 faces "
     "(difference 0.30 to 0.70): significant."),
    ("mae", "n", number(-0.5, -1.2, 0.2, significant=False),
     "The MAE of “b” differs from that of “a” by −0.50 years (−1.20 to 0.20) on the same 90 "
     "faces: not significant."),
    ("interval_accuracy", "n_interval", number(4.0, 1.0, 7.0, significant=True),
     "The share of ages in the right range of “b” is 4.0 points higher (better) than that of “a” "
     "on the same 90 faces (difference 1.0 to 7.0): significant."),
    ("interval_accuracy", "n_interval", number(-4.0, -7.0, -1.0, significant=True),
     "The share of ages in the right range of “b” is 4.0 points lower (worse) than that of “a” "
     "on the same 90 faces (difference −7.0 to −1.0): significant.")])
def test_a_comparison_of_two_models(metric, count, change, sentence):
    counts = {"n": 0, "n_interval": 0, "n_other_age": 0, count: 90}
    assert wording._comparison_sentence(
        counts | {"first": "a", "second": "b", "differences": {metric: change}}) == sentence


def test_refusing_the_least_certain_fifth_keeps_four_fifths():
    curve = {"kept_percent": [20, 80, 100], "mae_years": [1.0, 3.0, 5.0]}
    results = {"risk_coverage": {"std": curve}, "n_exact": 30}
    assert wording._refusal_sentence(results) == (
        "Refusing the least certain fifth of the faces changes the MAE from 5.00 to 3.00 years.")
    assert wording._refusal_sentence(results | {"n_exact": 29}) is None
    assert wording._refusal_sentence(results | {"risk_coverage": {}}) is None


def test_what_a_threshold_of_eighteen_costs():
    row = {"minors_passed": number(12.0, 8, 17), "adults_refused": number(30.0, 25, 35)}
    decision = {"n_minors": 200, "n_adults": 300, "mean": {"table": [row], "at_tolerance": {
        "1": {"cutoff": 4.2, "adults_refused": 21.4}}}}
    assert wording._threshold_sentence(decision) == (
        "Without a margin 12.0% (8.0 to 17.0) of the 200 faces under 18 pass as adults; for at "
        "most 1% the margin must be 4.2 years, which refuses 21% of the adults.")
    decision["mean"]["at_tolerance"]["1"]["cutoff"] = -0.3
    assert wording._threshold_sentence(decision).endswith("pass as adults.")
    assert wording._threshold_sentence(decision | {"n_minors": 0}) is None


def test_each_reason_stands_once_beside_its_model():
    known, missing = number(1.0, 0.5, 1.5), number(None, why="no column p0")
    models = {"all": {"mae": known, "nll": known, "interval_accuracy": known},
              "some": {"mae": known, "nll": missing, "crps": missing,
                       "interval_accuracy": number(None, why="no range")}}
    assert wording.reasons(models) == {"some": ["no column p0", "no range"]}

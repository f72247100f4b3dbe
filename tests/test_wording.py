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

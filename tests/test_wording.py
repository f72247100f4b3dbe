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

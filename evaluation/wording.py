"""The numbers of a report in words."""

import numpy as np
from markupsafe import Markup

from evaluation.groups import BANDS, FAMILIES, MIN_FACES
from evaluation.scores import COVERAGES, INTERVAL_METRICS, METRICS, SIGNIFICANT
from utils.cli import count_text

COVERAGE_TOLERANCE = 2  # points between measured and promised coverage that count as none


# ---- Numbers


def show(number, unit="years", digits=2):
    """A measured number as HTML: value, unit and interval, or why it is not known."""
    if number["value"] is None:
        return Markup('<span class="missing">not known: {}</span>').format(number["why"])
    text = Markup("<b>{}</b>{}").format(value_text(number["value"], digits), _unit_text(unit))
    if number["low"] is None:
        return text
    return text + Markup(' <span class="ci">{}</span>').format(interval_text(number, digits))


def value_text(number, digits=2):
    if number is None:
        return "–"
    text = f"{number:.{digits}f}"
    return text.replace("-", "−") if float(text) else text.replace("-", "")


def _unit_text(unit):
    return "%" if unit == "%" else f"\N{NO-BREAK SPACE}{unit}" if unit else ""


def interval_text(number, digits=2):
    if number["low"] is None:
        return ""
    return f"{value_text(number['low'], digits)} to {value_text(number['high'], digits)}"


def temperature_text(temperature, bins):
    """A calibration temperature in words.

    Args:
        temperature: one number, two (see metrics.face_temperatures), or None.
        bins: (K,) years.
    """
    if temperature is None:
        return "none: not calibrated"
    first, last = np.broadcast_to(temperature, 2)
    if first == last:
        return f"{first:.3f}"
    return f"{first:.3f} at age {bins[0]} to {last:.3f} at age {bins[-1]}"


# ---- Sentences


def findings(results):
    """The main findings, as (heading, sentence) pairs."""
    found = []
    if results["mae"]["value"] is not None:
        found += [("Error", _error_sentence(results)), ("Direction", _bias_sentence(results))]
        sentences = gap_sentences(results["gaps"])
        found += [(f"By {FAMILIES[family]}", " ".join(
            sentences[family][key] for key in ("mae", "mae_same_ages") if key in gaps))
            for family, gaps in results["gaps"].items() if family != "gender_race_age_band"]
        found += [("Uncertainty", _coverage_sentence(results)),
                  ("Refusing", _refusal_sentence(results)),
                  ("Age 18", _threshold_sentence(results["decisions"]["18"]))]
    if results["intervals"]:
        found.append(("Age ranges", _interval_sentence(results["intervals"]["all"]["all"])))
    found += [("Comparison", _comparison_sentence(one)) for one in results["comparisons"]]
    return [(heading, sentence) for heading, sentence in found if sentence]


def _error_sentence(results):
    return (f"Predicted ages are off by {_plain(results['mae'])} on average; "
            f"{_plain(results['cs5'], '%', 0)} of faces are within 5 years.")


def _bias_sentence(results):
    bias = results["bias"]
    is_zero = float(f"{bias['value']:.2f}") == 0  # as it is printed
    text = "On average faces are estimated " + (
        "neither too old nor too young" if is_zero else
        f"{abs(bias['value']):.2f} years too {'old' if bias['value'] > 0 else 'young'}")
    if bias["low"] is None:
        return text + "."
    text += f" (bias {value_text(bias['value'])}, {interval_text(bias)})"
    is_noise = bias["low"] <= 0 <= bias["high"] and not is_zero
    return text + (", which is no more than noise." if is_noise else ".")


def gap_sentences(gaps):
    """{family: {metric: sentence}}"""
    names = {"mae": "MAE", "bias": "bias", "mae_same_ages": "MAE"}
    return {family: {key: _gap_sentence(gap, names[key]) for key, gap in by_metric.items()}
            for family, by_metric in gaps.items()}


def _gap_sentence(gap, name):
    start = "The" if "share_percent" not in gap else (
        f"At the same mix of ages (ages {_age_span(gap['bands'])}, {gap['share_percent']:.0f}% of "
        "the faces) the")
    if gap["p_value"] < SIGNIFICANT:
        size, verdict = _plain(gap), "more than noise"
    else:  # the interval of the two groups that chance put farthest apart often excludes 0
        size, verdict = f"{value_text(gap['value'])} years", "no more than noise"
    return (f"{start} largest gap in {name} is {size}, {gap['highest']} above "
            f"{gap['lowest']}: {verdict} ({_p_value(gap['p_value'])}).")


def _age_span(bands):
    """Age bands in words; "first to last" if none between them is missing."""
    names = [name for name, _ in BANDS]
    first = names.index(bands[0])
    whole = len(bands) > 2 and bands == names[first:first + len(bands)]
    return f"{bands[0]} to {bands[-1]}" if whole else ", ".join(bands)


def _coverage_sentence(results):
    covered = {q: results[f"coverage_{q}"] for q in (80, 90)}
    if covered[80]["value"] is None:
        return None
    parts = " and ".join(f"the {q}% interval covers {_plain(number, '%', 1)}"
                         for q, number in covered.items())
    off = {q: number["value"] - q for q, number in covered.items() if _is_off(number, q)}
    if covered[80]["low"] is None:
        verdict = covered[80]["why"]
    elif not off:
        verdict = "off by no more than noise" if max(
            abs(number["value"] - q) for q, number in covered.items()) > COVERAGE_TOLERANCE else (
            f"within {COVERAGE_TOLERANCE} points of what they promise")
    else:
        verdict = "too narrow, they promise too much" if min(off.values()) < 0 else (
            "too wide, they promise too little")
    return f"Of the true ages {parts}: {verdict}."


def _is_off(number, q):
    """Whether a coverage misses q percent by more than the tolerance and more than noise."""
    return (number["low"] is not None and abs(number["value"] - q) > COVERAGE_TOLERANCE
            and not number["low"] <= q <= number["high"])


def _refusal_sentence(results):
    curve = results["risk_coverage"].get("std")
    if curve is None or results["n_exact"] < MIN_FACES:
        return None
    kept = np.interp(80, curve["kept_percent"], curve["mae_years"])
    return (f"Refusing the least certain fifth of the faces changes the MAE from "
            f"{curve['mae_years'][-1]:.2f} to {kept:.2f} years.")


def _threshold_sentence(decision):
    if not decision["n_minors"] or not decision["n_adults"]:
        return None
    row = decision["mean"]["table"][0]
    text = (f"Without a margin {_plain(row['minors_passed'], '%', 1)} of the "
            f"{count_text(decision['n_minors'], 'face')} under 18 pass as adults")
    safe = decision["mean"]["at_tolerance"]["1"]
    if safe["cutoff"] <= 0:
        return text + "."
    return (f"{text}; for at most 1% the margin must be {safe['cutoff']:.1f} years, which "
            f"refuses {safe['adults_refused']:.0f}% of the adults.")


def _interval_sentence(number):
    return (f"{count_text(number['n'], 'face')} known only by an age range: "
            f"{_plain(number['interval_accuracy'], '%', 1)} are predicted in the right one, at a "
            f"mean distance of {_plain(number['interval_distance'])}.")


def _comparison_sentence(comparison):
    a, b, differences = (comparison[key] for key in ("first", "second", "differences"))
    if not differences:
        return f"“{a}” and “{b}” cannot be compared: {why_left_out(comparison)}."
    return " ".join(_difference_sentence(a, b, differences[key], comparison[number], *words)
                    for key, number, *words in (
                        ("mae", "n", "MAE", "years", 2, "lower"),
                        ("interval_accuracy", "n_interval", "share of ages in the right range",
                         "points", 1, "higher")) if key in differences)


def _difference_sentence(a, b, change, n, name, unit, digits, better):
    """How the metric `name` of a model b differs from that of a; better: lower | higher."""
    faces = f"the same {count_text(n, 'face')}"
    if not change["significant"]:
        return (f"The {name} of “{b}” differs from that of “{a}” by "
                f"{_plain(change, unit, digits)} on {faces}: "
                f"{change.get('why', 'not significant')}.")
    side = "lower" if change["value"] < 0 else "higher"
    return (f"The {name} of “{b}” is {abs(change['value']):.{digits}f} {unit} {side} "
            f"({'better' if side == better else 'worse'}) than that of “{a}” on {faces} "
            f"(difference {interval_text(change, digits)}): significant.")


def compared_faces(comparison):
    """Which faces are compared, in words."""
    kinds = {"with an exact age": comparison["n"], "with an age range": comparison["n_interval"]}
    return " and ".join(f"{count_text(n, 'face')} {kind}" for kind, n in kinds.items() if n)


def why_left_out(comparison):
    """Why faces are not compared, in words."""
    if not comparison["n_other_age"]:
        return "no photo has an exact age in both, or an age range in both"
    return (f"{count_text(comparison['n_other_age'], 'face')} with another true age in each table, "
            "for example because DATA.APPA_REAL_LABEL differed")


def reasons(models):
    """{model: list of reasons why some of its metrics are not known}, each reason once."""
    found = {name: dict.fromkeys(run[key]["why"] for key in (*METRICS, *INTERVAL_METRICS)
                                 if key in run and run[key]["value"] is None)
             for name, run in models.items()}
    return {name: list(why) for name, why in found.items() if why}


def verdicts(results):
    """{coverage key: how far the measured coverage is from the promised one}."""
    found = {}
    for q in COVERAGES:
        number = results[f"coverage_{q}"]
        if number["value"] is not None:
            off = number["value"] - q
            found[f"coverage_{q}"] = (
                f"within {COVERAGE_TOLERANCE} points" if abs(off) <= COVERAGE_TOLERANCE else
                f"{abs(off):.1f} points too {'many' if off > 0 else 'few'}"
                + ("" if _is_off(number, q) else f", {number.get('why', 'no more than noise')}"))
    return found


def _plain(number, unit="years", digits=2):
    text = f"{value_text(number['value'], digits)}{'%' if unit == '%' else ' ' + unit}"
    return text + (f" ({interval_text(number, digits)})" if number["low"] is not None else "")


def _p_value(p_value):
    return (f"p = {p_value:.3f}" if p_value >= 0.002 else "p < 0.002").replace(
        " ", "\N{NO-BREAK SPACE}")

"""Write an Evaluation as a page, a JSON file and tables: report.html, metrics.json, CSV.

The page is complete in itself: to read it takes no other file and no network.
"""

import base64
import io
import json
import platform
import re
from datetime import datetime
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

import metrics
from evaluation import figures
from evaluation.audit import AUDIT
from evaluation.predictions import write_predictions
from evaluation.scores import (
    BANDS,
    COVERAGES,
    FAMILIES,
    INTERVAL_METRICS,
    METRICS,
    MIN_EPSILON_STD,
    MIN_FACES,
    MIN_IN_BAND,
    NO_DISTRIBUTION,
    TOLERATED,
)
from utils.files import replaced

REPORT_FILES = ("report.html", "metrics.json", "predictions.csv")  # and a table for each model more
PACKAGES = ("torch", "torchvision", "timm", "pretrainedmodels", "facenet-pytorch", "openvino",
            "opencv-python", "numpy", "pandas", "pillow", "matplotlib")
WORST, BEST = 20, 5  # faces shown
PHOTO_SIZE = 128  # pixels, of the faces in the page
SIGNIFICANT = 0.05  # a gap is called real below this p-value
COVERAGE_TOLERANCE = 2  # points between measured and promised coverage that count as none


def write_report(evaluation, out_dir, provenance=None, photo_of=None,
                 title="Age estimation report"):
    """Write report.html, metrics.json and predictions.csv.

    Args:
        evaluation: Evaluation, from scores.evaluate_all().
        out_dir: folder, created if it is missing; an earlier report in it is replaced.
        provenance: {title: text, number, list or dict} that says how the predictions were made.
        photo_of: function (row of the described model's table) -> (S, S, 3) uint8 RGB face, or
            None.
        title: of the page.
    Returns:
        dict, the content of metrics.json.
    """
    results = evaluation.results | {"provenance": _with_versions(provenance)}
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    _write_tables(evaluation.models, out_dir)  # first what took longest to make
    _write(out_dir / "metrics.json",
           json.dumps(results, indent=1, allow_nan=False, default=str) + "\n")
    _write(out_dir / "report.html", _render(title, results, evaluation, photo_of))
    return results


def _write(path, text):
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _write_tables(models, out_dir):
    for k, (name, seeds) in enumerate(models.items()):
        for s, one in enumerate(seeds):
            tail = "" if k == s == 0 else "_" + re.sub(r"[^\w.-]+", "_", name) + (
                f"_{s + 1}" if len(seeds) > 1 else "")
            write_predictions(one, out_dir / f"predictions{tail}.csv")


def _with_versions(provenance):
    made = dict(provenance or {})
    made.setdefault("Report written", datetime.now().astimezone().isoformat(timespec="seconds"))
    made.setdefault("Packages", {"python": platform.python_version(), **package_versions()})
    return made


def package_versions():
    """{package: version} of the installed packages that can change a result."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


# ---- The page


def _render(title, results, evaluation, photo_of):
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True,
                              undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"show": show, "value": _value, "interval": _interval,
                            "thousands": "{:,}".format, "count": _count}
    exact = evaluation.described.exact
    return environment.get_template("report.html.jinja").render(
        title=title, results=results, metrics=METRICS, all_metrics=METRICS | INTERVAL_METRICS,
        why_left_out=_why_left_out, families=FAMILIES, tolerated=TOLERATED,
        coverages=COVERAGES, min_faces=MIN_FACES, min_in_band=MIN_IN_BAND,
        audit=AUDIT, min_epsilon_std=MIN_EPSILON_STD, no_distribution=NO_DISTRIBUTION,
        findings=_findings(results), figures=_figures(results, evaluation.runs, exact),
        cell_table=_cell_table(results["groups"].get("gender_race_age_band", {})),
        gap_sentences=_gap_sentences(results["gaps"]), verdicts=_verdicts(results),
        missing=_reasons(results["models"]), faces=_extreme_faces(exact, photo_of),
        beyond=_labels_beyond(exact), provenance=_flattened(results["provenance"]))


def show(number, unit="years", digits=2):
    """A measured number as HTML: value, unit and interval, or why it is not known."""
    if number["value"] is None:
        return Markup('<span class="missing">not known: {}</span>').format(number["why"])
    text = Markup("<b>{}</b>{}").format(_value(number["value"], digits), _unit(unit))
    if number["low"] is None:
        return text
    return text + Markup(' <span class="ci">{}</span>').format(_interval(number, digits))


def _value(number, digits=2):
    if number is None:
        return "–"
    text = f"{number:.{digits}f}"
    return text.replace("-", "−") if float(text) else text.replace("-", "")


def _count(n, what):
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _unit(unit):
    return "%" if unit == "%" else f"\N{NO-BREAK SPACE}{unit}" if unit else ""


def _interval(number, digits=2):
    if number["low"] is None:
        return ""
    return f"{_value(number['low'], digits)} to {_value(number['high'], digits)}"


def _figures(results, runs, exact):
    """{name: SVG} of every figure that the data allows."""
    if not len(exact.faces):
        return _interval_figures(results["intervals"])
    drawn = {"scatter": figures.draw_predicted_against_true(
        exact.faces["age"].to_numpy(), exact.faces["pred_age"].to_numpy()),
        "cs": figures.draw_cs_curves({name: run["cs_curve"] for name, run in runs.items()
                                      if run["cs_curve"]})}
    for family, groups in results["groups"].items():
        if family != "gender_race_age_band":
            drawn[f"mae_{family}"] = figures.draw_groups(groups, "mae", "MAE (years)",
                                                         results["mae"]["value"])
            drawn[f"bias_{family}"] = figures.draw_groups(
                groups, "bias", "bias (years): ← too young, too old →", 0)
    calibrated = {name: run["calibration"] for name, run in runs.items() if run["calibration"]}
    if results["calibration"]:
        drawn["pit"] = figures.draw_pit(results["calibration"]["pit_histogram"])
    if calibrated:
        drawn["coverage"] = figures.draw_coverage(calibrated)
    drawn["risk"] = figures.draw_risk_coverage(_risk_curves(results, runs))
    for quality in ("face_size", "sharpness"):
        if results["audit"][quality]:
            drawn[f"mae_{quality}"] = figures.draw_groups(results["audit"][quality], "mae",
                                                          "MAE (years)", results["mae"]["value"])
    return drawn | _decision_figures(results["decisions"]) | _interval_figures(
        results["intervals"])


def _risk_curves(results, runs):
    names = {"std": "by predicted spread", "confidence": "by detector's confidence",
             "error": "by the true error (best possible)"}
    curves = {names[rule]: results["risk_coverage"][rule] for rule in names
              if rule in results["risk_coverage"]}
    others = {f"{name}, by predicted spread": run["risk_coverage"]["std"]
              for name, run in list(runs.items())[1:] if "std" in run["risk_coverage"]}
    return curves | others


def _decision_figures(decisions):
    drawn = {}
    axis = {"mean": "safety margin (years)", "mass": "required probability of being old enough"}
    for rule, xlabel in axis.items():
        for side, ylabel in (("minors_passed", "minors passed (%)"),
                             ("adults_refused", "adults refused (%)")):
            curves = {f"age {threshold}": (d[rule]["curve"]["cutoff"], d[rule]["curve"][side])
                      for threshold, d in decisions.items()
                      if rule in d and d[rule]["curve"][side] is not None}
            if curves:
                drawn[f"{side}_{rule}"] = figures.draw_decisions(curves, xlabel, ylabel)
    return drawn


def _interval_figures(intervals):
    return {f"accuracy_{family}": figures.draw_groups(groups, "interval_accuracy",
                                                      "in the right interval (%)",
                                                      intervals["all"]["all"][
                                                          "interval_accuracy"]["value"])
            for family, groups in (intervals or {}).items() if family != "all"}


def _cell_table(cells):
    """Columns of (gender, race), and rows of age bands of {"n", "mae", "bias", "shade"}."""
    if not cells:
        return None
    keys = {tuple(name.rsplit(", ", 2)): cell for name, cell in cells.items()}
    columns = sorted({key[:2] for key in keys})
    bands = [band for band, _ in BANDS if any(key[2] == band for key in keys)]
    highest = max(cell["mae"]["value"] for cell in cells.values()) or 1
    return {"columns": columns, "rows": {band: [_shaded(keys.get((*column, band)), highest)
                                                for column in columns] for band in bands}}


def _shaded(cell, highest):
    return None if cell is None else cell | {"shade": round(60 * cell["mae"]["value"] / highest)}


# ---- Sentences


def _findings(results):
    """The main findings, as (heading, sentence) pairs."""
    found = []
    if results["mae"]["value"] is not None:
        found += [("Error", _error_sentence(results)), ("Direction", _bias_sentence(results))]
        sentences = _gap_sentences(results["gaps"])
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
    side = "old" if bias["value"] > 0 else "young"
    text = f"On average faces are estimated {abs(bias['value']):.2f} years too {side}"
    if bias["low"] is None:
        return text + "."
    apart = bias["low"] > 0 or bias["high"] < 0
    return text + (f" ({_interval(bias)})" if apart else
                   f" ({_interval(bias)}), which is no more than noise") + "."


def _gap_sentences(gaps):
    """{family: {metric: sentence}}"""
    names = {"mae": "MAE", "bias": "bias", "mae_same_ages": "MAE"}
    return {family: {key: _gap_sentence(gap, names[key]) for key, gap in by_metric.items()}
            for family, by_metric in gaps.items()}


def _gap_sentence(gap, name):
    start = "The" if "share_percent" not in gap else (
        f"At the same mix of ages (ages {_span(gap['bands'])}, {gap['share_percent']:.0f}% of the "
        "faces) the")
    verdict = "more than noise" if gap["p_value"] < SIGNIFICANT else "no more than noise"
    return (f"{start} largest gap in {name} is {_plain(gap)}, {gap['highest']} above "
            f"{gap['lowest']}: {verdict} ({_p_value(gap['p_value'])}).")


def _span(bands):
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
            f"{_count(decision['n_minors'], 'face')} under 18 pass as adults")
    safe = decision["mean"]["at_tolerance"]["1"]
    if safe["cutoff"] <= 0:
        return text + "."
    return (f"{text}; for at most 1% the margin must be {safe['cutoff']:.1f} years, which "
            f"refuses {safe['adults_refused']:.0f}% of the adults.")


def _interval_sentence(number):
    return (f"{_count(number['n'], 'face')} known only by an age range: "
            f"{_plain(number['interval_accuracy'], '%', 1)} are predicted in the right one, at a "
            f"mean distance of {_plain(number['interval_distance'])}.")


def _comparison_sentence(comparison):
    a, b, change = comparison["first"], comparison["second"], comparison["differences"].get("mae")
    if change is None:
        return f"“{a}” and “{b}” cannot be compared: {_why_left_out(comparison)}."
    if not change["significant"]:
        return (f"The MAE of “{b}” differs from that of “{a}” by {_plain(change)} on the same "
                f"{_count(comparison['n'], 'face')}: {change.get('why', 'not significant')}.")
    side = "lower (better)" if change["value"] < 0 else "higher (worse)"
    return (f"The MAE of “{b}” is {abs(change['value']):.2f} years {side} than that of “{a}” on "
            f"the same {_count(comparison['n'], 'face')} (difference {_interval(change)}): "
            "significant.")


def _why_left_out(comparison):
    """Why faces are not compared, in words."""
    if not comparison["n_other_age"]:
        return "no photo with an exact age is in both"
    return (f"{_count(comparison['n_other_age'], 'face')} with another true age in each table, "
            "for example because DATA.APPA_REAL_LABEL differed")


def _reasons(models):
    """{model: list of reasons why some of its metrics are not known}, each reason once."""
    reasons = {name: dict.fromkeys(run[key]["why"] for key in METRICS if run[key]["value"] is None)
               for name, run in models.items()}
    return {name: list(why) for name, why in reasons.items() if why}


def _verdicts(results):
    """{coverage key: how far the measured coverage is from the promised one}."""
    verdicts = {}
    for q in COVERAGES:
        number = results[f"coverage_{q}"]
        if number["value"] is not None:
            off = number["value"] - q
            verdicts[f"coverage_{q}"] = (
                f"within {COVERAGE_TOLERANCE} points" if abs(off) <= COVERAGE_TOLERANCE else
                f"{abs(off):.1f} points too {'many' if off > 0 else 'few'}"
                + ("" if _is_off(number, q) else f", {number.get('why', 'no more than noise')}"))
    return verdicts


def _plain(number, unit="years", digits=2):
    text = f"{_value(number['value'], digits)}{'%' if unit == '%' else ' ' + unit}"
    return text + (f" ({_interval(number, digits)})" if number["low"] is not None else "")


def _p_value(p_value):
    return (f"p = {p_value:.3f}" if p_value >= 0.002 else "p < 0.002").replace(
        " ", "\N{NO-BREAK SPACE}")


# ---- Faces and provenance


def _extreme_faces(exact, photo_of):
    """The faces with the largest and the smallest errors, as the page shows them."""
    sizes = (exact.faces["pred_age"] - exact.faces["age"]).abs()
    order = sizes.to_numpy().argsort(kind="stable")
    ages = "" if exact.age_bins is None else f"{exact.age_bins[0]} to {exact.age_bins[-1]}"
    return {"ages": ages, "worst": [_face(exact, k, photo_of) for k in order[::-1][:WORST]],
            "best": [_face(exact, k, photo_of) for k in order[:BEST]] if len(order) > WORST
            else []}


def _face(exact, k, photo_of):
    face = exact.faces.iloc[k]
    shown = {"photo": face["photo"], "age": face["age"], "pred_age": face["pred_age"],
             "error": face["pred_age"] - face["age"], "interval": None, "sparkline": None,
             "group": ", ".join(str(face[c]) for c in ("gender", "race")
                                if c in face and not pd.isna(face[c])),
             "image": None if photo_of is None else _image(photo_of, int(exact.faces.index[k]))}
    if exact.probs is not None:
        low, high = metrics.central_interval(exact.probs[[k]], exact.age_bins, 0.8)
        shown["interval"] = f"{low[0]:.0f} to {high[0]:.0f}"
        shown["sparkline"] = Markup(figures.sparkline(exact.probs[k], exact.age_bins, face["age"],
                                                      face["pred_age"]))
    return shown


def _image(photo_of, row):
    """A face as a data URL, or None if it cannot be read."""
    try:
        face = Image.fromarray(np.asarray(photo_of(row), dtype=np.uint8))
    except (OSError, ValueError):
        return None
    buffer = io.BytesIO()
    face.resize((PHOTO_SIZE, PHOTO_SIZE)).save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _labels_beyond(exact):
    """How many true ages lie outside the predicted bins."""
    if exact.age_bins is None:
        return 0
    rounded = np.floor(exact.faces["age"] + 0.5)
    return int(((rounded < exact.age_bins[0]) | (rounded > exact.age_bins[-1])).sum())


def _flattened(provenance):
    """List of (title, text, whether it is long), with dicts and lists as lines of text."""
    rows = []
    for title, content in provenance.items():
        if isinstance(content, dict):
            content = "\n".join(f"{key}: {value}" for key, value in content.items())
        elif isinstance(content, (list, tuple)):
            content = "\n".join(map(str, content))
        text = str(content).strip()
        rows.append((title, text, text.count("\n") > 12))
    return rows

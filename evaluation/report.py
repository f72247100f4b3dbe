"""Write an Evaluation as a page, a JSON file and tables: report.html, metrics.json, CSV.

The page is complete in itself: to read it takes no other file and no network.
"""

import base64
import io
import json
import platform
import re
from datetime import datetime
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

import metrics
from evaluation import bootstrap, figures, wording
from evaluation.audit import AUDIT
from evaluation.groups import BANDS, FAMILIES, MIN_FACES, MIN_IN_BAND
from evaluation.predictions import write_predictions
from evaluation.scores import (
    COVERAGES,
    INTERVAL_METRICS,
    METRICS,
    MIN_EPSILON_STD,
    NO_DISTRIBUTION,
    TOLERATED,
)
from utils.cli import count_text
from utils.files import replaced

# Each other model gets a table of its own name as well, see _write_tables().
REPORT_FILES = ("report.html", "metrics.json", "predictions.csv")
PACKAGES = ("torch", "torchvision", "timm", "pretrainedmodels", "facenet-pytorch", "onnxruntime",
            "opencv-python", "numpy", "pandas", "pillow", "matplotlib")
WORST, BEST = 20, 5  # faces shown
PHOTO_SIZE = 128  # pixels, of the faces in the page


def write_report(evaluation, out_dir, provenance=None, photo_of=None,
                 title="Age estimation report"):
    """Write report.html, metrics.json and predictions.csv.

    Args:
        evaluation: Evaluation, from scores.evaluate_all().
        out_dir: folder, created if it is missing; an earlier report in it is replaced.
        provenance: {title: text, number, list or dict} that says how the predictions were made.
        photo_of: function (row of the described model's table) -> (S, S, 3) uint8 RGB face, or
            None.
        title: text at the top of the page.
    Returns:
        dict, the content of metrics.json.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    earlier = _earlier_tables(out_dir)
    tables = _write_tables(evaluation.models, out_dir)  # first what took longest to make
    for path in earlier - {out_dir / name for name in tables}:
        path.unlink(missing_ok=True)
    results = evaluation.results | {"provenance": _with_versions(provenance) | {"Tables": tables}}
    _write(out_dir / "metrics.json",
           json.dumps(results, indent=1, allow_nan=False, default=str) + "\n")
    _write(out_dir / "report.html", _render(title, results, evaluation, photo_of))
    return results


def _write(path, text):
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _earlier_tables(out_dir):
    """Paths of the tables that an earlier report in the folder wrote, and nobody has changed."""
    results = out_dir / "metrics.json"
    try:
        names = json.loads(results.read_text(encoding="utf-8"))["provenance"]["Tables"]
        return {path for path in map(out_dir.joinpath, names) if path.parent == out_dir
                and path.stat().st_mtime_ns <= results.stat().st_mtime_ns}
    except (OSError, ValueError, LookupError, TypeError):  # no report, an older or a damaged one
        return set()


def _write_tables(models, out_dir):
    """Write predictions.csv and a table for each further model and seed.

    Args:
        models: {name: [Predictions, ...]}.
        out_dir: Path of the folder.
    Returns:
        {name of the file: the model, and its seed if there are several}.
    """
    tables = {}
    for k, (name, seeds) in enumerate(models.items()):
        for s, one in enumerate(seeds):
            stem = "predictions"
            if (k, s) != (0, 0):
                stem += "_" + re.sub(r"[^\w.-]+", "_", name) + (
                    f"_{s + 1}" if len(seeds) > 1 else "")
            stem = _unused(stem, tables)
            write_predictions(one, out_dir / f"{stem}.csv")
            tables[f"{stem}.csv"] = f"{name}, seed {s + 1}" if len(seeds) > 1 else name
    return tables


def _unused(stem, tables):
    """The name, with a number behind it if a table has the name already, in any letter case."""
    used, number, found = {name.lower() for name in tables}, 1, stem
    while f"{found}.csv".lower() in used:
        number += 1
        found = f"{stem}_{number}"
    return found


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
    environment.filters |= {
        "show": wording.show, "value": wording.value_text, "interval": wording.interval_text,
        "count": count_text, "thousands": "{:,}".format,
        "temperature": partial(wording.temperature_text, bins=evaluation.described.age_bins)}
    exact = evaluation.described.exact
    return environment.get_template("report.html.jinja").render(
        title=title, results=results, metrics=METRICS, all_metrics=METRICS | INTERVAL_METRICS,
        why_left_out=wording.why_left_out, compared_faces=wording.compared_faces,
        families=FAMILIES, tolerated=TOLERATED, coverages=COVERAGES, min_faces=MIN_FACES,
        min_in_band=MIN_IN_BAND, min_persons=bootstrap.MIN_UNITS, audit=AUDIT,
        min_epsilon_std=MIN_EPSILON_STD, no_distribution=NO_DISTRIBUTION,
        findings=wording.findings(results), figures=_figures(results, evaluation.runs, exact),
        cell_table=_cell_table(results["groups"].get("gender_race_age_band", {})),
        gap_sentences=wording.gap_sentences(results["gaps"]), verdicts=wording.verdicts(results),
        missing=wording.reasons(results["models"]), faces=_extreme_faces(exact, photo_of),
        beyond=_labels_beyond(exact), provenance=_flattened(results["provenance"]))


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
                                                      "in the right range (%)",
                                                      intervals["all"]["all"][
                                                          "interval_accuracy"]["value"])
            for family, groups in (intervals or {}).items() if family != "all"}


def _cell_table(cells):
    """Columns of (gender, race), and rows of age bands of {"n", "mae", "bias", "shade"}."""
    if not cells:
        return None
    keys = {(cell["gender"], cell["race"], cell["age_band"]): cell for cell in cells.values()}
    columns = sorted({key[:2] for key in keys})
    bands = [band for band, _ in BANDS if any(key[2] == band for key in keys)]
    highest = max(cell["mae"]["value"] for cell in cells.values()) or 1
    return {"columns": columns, "rows": {band: [_shaded(keys.get((*column, band)), highest)
                                                for column in columns] for band in bands}}


def _shaded(cell, highest):
    return None if cell is None else cell | {"shade": round(60 * cell["mae"]["value"] / highest)}


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
        low, high = metrics.central_interval(exact.probs[[k]], exact.age_bins,
                                             metrics.INTERVAL_SHARE)
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
    rounded = metrics.nearest_years(exact.faces["age"])
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

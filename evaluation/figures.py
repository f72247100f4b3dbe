"""The figures of the report: inline SVG whose colours are CSS variables of the page.

Matplotlib draws with placeholder colours. Afterwards each is replaced by `var(--name)`, so that
one figure serves a light and a dark page. A search chose the page's series colours: any two differ
by at least 22 (CIE76), with full colour vision and without any one kind of cone (Machado et al.,
2009). Lines also differ in their dashes.
"""

import io
import re
import warnings

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

INK, MUTED, GRID = "#010101", "#020202", "#030303"
SERIES = ("#040404", "#050505", "#060606", "#070707", "#080808", "#090909")
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid",
             **{colour: f"--series-{k}" for k, colour in enumerate(SERIES, 1)}}
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
MARKERS = "osD^vP"
STYLE = {"svg.fonttype": "none", "font.size": 10, "axes.titlesize": 10, "axes.labelsize": 10,
         "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED, "xtick.color": MUTED,
         "ytick.color": MUTED, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
         "grid.color": GRID, "axes.grid": True, "axes.axisbelow": True, "axes.facecolor": "none",
         "figure.facecolor": "none", "axes.spines.top": False, "axes.spines.right": False,
         "legend.frameon": False, "legend.labelcolor": INK, "figure.constrained_layout.use": True}
WIDTH, HEIGHT = 5.0, 3.4  # inches; 10 pt text stays readable when this fills a phone
BIN_YEARS = 2  # side of the squares in predicted against true age
MAX_YEARS_OUTSIDE = 50  # predictions farther from all true ages are drawn at this distance


def drawing(description, height=HEIGHT):
    """Decorator of a function that fills axes: the result returns a figure as SVG text.

    Args:
        description: text for readers who cannot see the figure.
        height: inches, or a function of the decorated function's arguments.
    """
    def wrap(fill):
        def draw(*args, **kwargs):
            with matplotlib.rc_context(STYLE | {"svg.hashsalt": fill.__name__ + repr(kwargs)}):
                tall = height(*args) if callable(height) else height
                figure = Figure(figsize=(WIDTH, tall))
                fill(figure.subplots(), *args, **kwargs)
                return _to_svg(figure, description)
        draw.__doc__ = fill.__doc__
        return draw
    return wrap


def _to_svg(figure, description):
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with warnings.catch_warnings():  # the text is kept as text; the reader's fonts draw it
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg"):]
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font: \1 system-ui, sans-serif", svg)
    referenced = set(re.findall(r"#([\w-]+)", svg))
    svg = re.sub(r' id="([\w-]+)"', lambda m: m[0] if m[1] in referenced else "", svg)
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>',
                 rf'<svg viewBox="\1" role="img" aria-label="{description}" '
                 'xmlns:xlink="http://www.w3.org/1999/xlink">', svg, count=1)
    return re.sub(r"\n\s*", "\n", svg)


@drawing("Predicted against true age, how many faces in each square", height=4.4)
def draw_predicted_against_true(axes, ages, pred_ages):
    """(B,) ages and predictions in years as squares of BIN_YEARS, darker for more faces."""
    pred_ages = pred_ages.clip(ages.min() - MAX_YEARS_OUTSIDE, ages.max() + MAX_YEARS_OUTSIDE)
    low, high = np.floor(min(ages.min(), pred_ages.min())), max(ages.max(), pred_ages.max()) + 1
    squares = np.floor((np.column_stack([ages, pred_ages]) - low) / BIN_YEARS)
    squares, counts = np.unique(squares, axis=0, return_counts=True)
    shades = np.log1p(counts) / np.log1p(counts.max())
    for corner, shade in zip(low + BIN_YEARS * squares, shades, strict=True):
        axes.add_patch(Rectangle(corner, BIN_YEARS, BIN_YEARS, linewidth=0, facecolor=SERIES[0],
                                 alpha=round(0.1 + 0.9 * shade, 2)))
    axes.plot([low, high], [low, high], color=INK, linewidth=1, linestyle="--")
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal", xlabel="true age (years)",
             ylabel="predicted age (years)")


@drawing("Cumulative score by allowed error")
def draw_cs_curves(axes, curves):
    """{name: {"limits_years", "cs_percent"}} as lines."""
    for k, curve in enumerate(curves.values()):
        axes.plot(curve["limits_years"], curve["cs_percent"], **_line(k))
    axes.set(xlabel="allowed error n (years)", ylabel="CS(n): error ≤ n (%)", ylim=(0, 100),
             xlim=(0, 15))
    _legend(axes, curves)


@drawing("A metric of each group with its 95% interval",
         height=lambda groups, *_: 1.0 + 0.3 * len(groups))
def draw_groups(axes, groups, key, label, overall=None):
    """{group: {"n", key: measured number}} as dots with intervals, first on top."""
    rows = np.arange(len(groups))[::-1]
    for row, group in zip(rows, groups.values(), strict=True):
        number = group[key]
        if number["low"] is not None:
            axes.plot([number["low"], number["high"]], [row, row], color=SERIES[0], linewidth=2)
        axes.plot(number["value"], row, "o", color=SERIES[0], markersize=5)
    if overall is not None:
        axes.axvline(overall, color=INK, linewidth=1, linestyle="--")
    axes.set_yticks(rows, [f"{_plain(name)} (n {group['n']:,})" for name, group in groups.items()])
    axes.set(xlabel=label, ylim=(-0.6, len(groups) - 0.4))
    axes.grid(axis="y", visible=False)


@drawing("PIT histogram")
def draw_pit(axes, shares):
    """(num_bars,) shares as bars relative to flat, which is 1."""
    edges = np.linspace(0, 1, len(shares) + 1)
    axes.bar(edges[:-1], np.asarray(shares) * len(shares), np.diff(edges), align="edge",
             color=SERIES[0], alpha=0.75, edgecolor=INK, linewidth=0.4)
    axes.axhline(1, color=INK, linewidth=1, linestyle="--")
    axes.set(xlabel="share of the predicted distribution below the true age",
             ylabel="faces relative to a flat histogram", xlim=(0, 1))


@drawing("Measured against promised coverage of central intervals", height=4.0)
def draw_coverage(axes, curves):
    """{name: {"nominal_percent", "coverage_percent"}} as lines; exact coverage is the diagonal."""
    for k, curve in enumerate(curves.values()):
        axes.plot(curve["nominal_percent"], curve["coverage_percent"],
                  marker=MARKERS[k % len(MARKERS)], markersize=3.5, **_line(k))
    axes.plot([0, 100], [0, 100], color=INK, linewidth=1, linestyle="--", zorder=1)
    axes.set(xlabel="central interval (%)", ylabel="true ages inside (%)", xlim=(0, 100),
             ylim=(0, 100), aspect="equal")
    _legend(axes, curves)


@drawing("MAE of the faces kept as the least certain are refused")
def draw_risk_coverage(axes, curves):
    """{name: {"kept_percent", "mae_years"}} as lines."""
    for k, curve in enumerate(curves.values()):
        axes.plot(curve["kept_percent"], curve["mae_years"], **_line(k))
    axes.set(xlabel="faces kept, most certain first (%)", ylabel="MAE of those kept (years)",
             xlim=(0, 100), ylim=(0, None))
    _legend(axes, curves)


@drawing("Error rate of an age threshold as its margin grows")
def draw_decisions(axes, curves, xlabel, ylabel):
    """{name: (x, percent)} as lines."""
    for k, (x, percent) in enumerate(curves.values()):
        axes.plot(x, percent, **_line(k))
    axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, None))
    axes.margins(x=0)
    _legend(axes, curves)


def _line(k):
    return {"color": SERIES[k % len(SERIES)], "linestyle": DASHES[k % len(DASHES)],
            "linewidth": 1.8}


def _legend(axes, names):
    """A legend of the first lines drawn, if there are several names."""
    if len(names) > 1:
        # Given explicitly, since matplotlib hides a line whose own label starts with "_".
        axes.figure.legend(axes.lines[:len(names)], list(map(_plain, names)),
                           loc="outside upper left", ncols=2 if len(names) < 5 else 3, fontsize=9)


def _plain(name):
    """A name in which matplotlib finds no formula."""
    return name.replace("$", r"\$")


def sparkline(probs, age_bins, age, pred_age):
    """A small SVG of one distribution with the true and the predicted age marked."""
    width, height = 200, 60
    span = max(len(age_bins) - 1, 1)

    def x(years):
        return (min(max(years, age_bins[0]), age_bins[-1]) - age_bins[0]) / span * width

    top = max(probs.max(), 1e-9)
    line = " ".join(f"{x(a):.1f},{height - 4 - p / top * (height - 12):.1f}"
                    for a, p in zip(age_bins, probs, strict=True))
    return (f'<svg class="spark" viewBox="0 0 {width} {height}" role="img" '
            f'aria-label="predicted distribution, true age {age:g}, predicted {pred_age:.1f}">'
            f'<polygon points="0,{height - 4} {line} {width},{height - 4}" '
            'style="fill: var(--series-1); opacity: 0.35"/>'
            f'<polyline points="{line}" style="fill: none; stroke: var(--series-1); '
            'stroke-width: 1.5"/>'
            f'<path d="M{x(age):.1f} 2V{height}" style="stroke: var(--ink); stroke-width: 2"/>'
            f'<path d="M{x(pred_age):.1f} 2V{height}" style="stroke: var(--series-2); '
            'stroke-width: 2; stroke-dasharray: 4 3"/></svg>')

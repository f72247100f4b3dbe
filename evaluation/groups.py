"""Errors of groups: age bands, genders, races and their cells, and the gaps between them."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

import metrics
from evaluation import bootstrap
from evaluation.bootstrap import measured
from evaluation.predictions import Predictions

BANDS = (("0-2", 0), ("3-9", 3), *((f"{a}-{a + 9}", a) for a in range(10, 80, 10)), ("80+", 80))
MIN_FACES = 30  # in a gender x race x age cell, and in a group that enters a gap
MIN_IN_BAND = 5  # faces, or persons, of every group in an age band, for the same mix of ages
MIN_SHARE_COMPARED = 0.5  # share of all faces that these age bands must hold
FAMILIES = {"age_band": "age band", "gender": "gender", "race": "race",
            "gender_race_age_band": "gender × race × age band"}
UNKNOWN = "unknown"  # name of the group whose gender or race is not given


def age_bands(ages):
    """(B,) index into BANDS of each age, rounded to whole years."""
    rounded = metrics.nearest_years(np.asarray(ages, dtype=np.float64))
    return np.searchsorted([first for _, first in BANDS], rounded, side="right").clip(min=1) - 1


def score_groups(exact, samples=1000, seed=0):
    """MAE and bias by age band, by gender, by race and by cells of all three.

    A cell needs MIN_FACES faces. A group enters a gap if it has MIN_FACES faces of at least
    bootstrap.MIN_UNITS persons.

    Returns:
        groups: {family: {group: {"n", "mae", "bias"}}}, without the families whose column is
            missing. Cells also have their gender, race and age_band. Groups of gender and race
            also have `mae_same_ages`, their MAE at the same mix of ages (see _at_same_ages), if
            enough faces can be compared.
        gaps: {family: {"mae", "bias", "mae_same_ages": see bootstrap.largest_gap}}, without the
            families in which fewer than two groups are large enough. `mae_same_ages` also has
            the `bands` compared and their `share_percent` of all faces.
    """
    if not len(exact.faces):
        return {}, {}
    errors = metrics.signed_error(exact.faces["age"], exact.faces["pred_age"])
    labels = _group_labels(exact.faces)
    cells, cell_keys = _finest_cells(labels)
    values = np.column_stack([exact.abs_errors, errors])
    sums, numbers = bootstrap.bootstrap_sums(values, cells, len(cell_keys), samples,
                                             exact.subjects, seed)
    cell_sums = np.stack([np.bincount(cells, v, len(cell_keys)) for v in values.T], axis=1)
    cell_counts = np.bincount(cells, minlength=len(cell_keys))
    table = _CellTable(exact, cells, cell_keys, cell_sums, cell_counts, sums, numbers)
    groups, gaps = {}, {}
    for family in _families(labels):
        groups[family], gap = _score_family(table, family)
        if gap:
            gaps[family] = gap
    return groups, gaps


@dataclass(frozen=True)
class _CellTable:
    """Sums over the finest cells, of the faces and of each bootstrap sample.

    exact: Predictions of the B faces.
    cells: (B,) index of each face's cell.
    keys: DataFrame (C rows) with the age_band, gender and race of each cell.
    sums: (C, 2) of |error| and error.
    counts: (C,) faces.
    boot_sums, boot_numbers: (R, C, 2), from bootstrap.bootstrap_sums.
    """

    exact: Predictions
    cells: np.ndarray
    keys: pd.DataFrame
    sums: np.ndarray
    counts: np.ndarray
    boot_sums: np.ndarray
    boot_numbers: np.ndarray

    def units(self, cells):
        """Independent units in a union of cells, see Predictions.count_units."""
        return self.exact.count_units(np.isin(self.cells, cells))

    def means(self, cells):
        """(2,) MAE and bias of a union of cells, and (R, 2) its bootstrap samples."""
        return (self.sums[cells].sum(axis=0) / self.counts[cells].sum(),
                bootstrap.pooled_means(self.boot_sums, self.boot_numbers, cells))


def _group_labels(faces):
    labels = pd.DataFrame({"age_band": [BANDS[k][0] for k in age_bands(faces["age"])]})
    for column in ("gender", "race"):
        if column in faces and faces[column].notna().any():
            labels[column] = faces[column].astype("string").fillna(UNKNOWN).to_numpy()
    return labels


def _finest_cells(labels):
    grouped = labels.groupby(list(labels), sort=True)
    keys = pd.DataFrame(list(grouped.groups), columns=list(labels)) if labels.shape[1] > 1 else (
        pd.DataFrame({"age_band": list(grouped.groups)}))
    return grouped.ngroup().to_numpy(), keys.map(lambda k: k[0] if isinstance(k, tuple) else k)


def _families(labels):
    families = [family for family in ("age_band", "gender", "race") if family in labels]
    return [*families, "gender_race_age_band"] if len(families) == 3 else families


def _members(table, family):
    """{group: indices of its cells}, age bands in their order."""
    if family == "gender_race_age_band":
        names = table.keys["gender"] + ", " + table.keys["race"] + ", " + table.keys["age_band"]
        return {name: [k] for k, name in enumerate(names) if table.counts[k] >= MIN_FACES
                and UNKNOWN not in (table.keys["gender"][k], table.keys["race"][k])}
    found = table.keys[family]
    names = [n for n, _ in BANDS if n in set(found)] if family == "age_band" else (
        sorted(found.unique()))
    return {name: np.flatnonzero(found == name).tolist() for name in names}


def _score_family(table, family):
    groups, large = {}, {}
    for name, cells in _members(table, family).items():
        (mae, bias), replicates = table.means(cells)
        n, units = int(table.counts[cells].sum()), table.units(cells)
        groups[name] = {"n": n, "mae": measured(mae, replicates[:, 0], units),
                        "bias": measured(bias, replicates[:, 1], units)}
        if family == "gender_race_age_band":
            groups[name] |= table.keys.loc[cells[0]].to_dict()
        if n >= MIN_FACES and units >= bootstrap.MIN_UNITS and name != UNKNOWN:
            large[name] = cells
    gaps = {}
    if len(large) > 1:
        both = {name: table.means(cells) for name, cells in large.items()}
        gaps = {key: _gap({name: (means[column], replicates[:, column])
                           for name, (means, replicates) in both.items()})
                for column, key in enumerate(("mae", "bias"))}
    if family in ("gender", "race") and len(large) > 1:
        same_ages, bands, share = _at_same_ages(table, large)
        if same_ages:
            gaps["mae_same_ages"] = _gap(same_ages) | {"bands": bands, "share_percent": share}
        for name, (value, replicates) in same_ages.items():
            groups[name]["mae_same_ages"] = measured(value, replicates, table.units(large[name]))
    return groups, gaps


def _gap(groups):
    names = list(groups)
    gap = bootstrap.largest_gap([value for value, _ in groups.values()],
                                np.column_stack([replicates for _, replicates in groups.values()]))
    return gap | {"highest": names[gap["highest"]], "lowest": names[gap["lowest"]]}


def _at_same_ages(table, groups):
    """The MAE of each group if all had the same mix of ages (direct standardisation).

    The MAE of a group in each age band is weighted by the band's share of the whole set. Only
    bands in which every group has MIN_IN_BAND faces (or persons) count; together they must hold
    MIN_SHARE_COMPARED of all faces.

    Returns:
        {group: (MAE, its bootstrap samples)}, empty if too few faces can be compared; the names
        of the age bands that count; the percentage of all faces in them.
    """
    bands = table.keys["age_band"].to_numpy()
    cells_of = {band: {name: [k for k in cells if bands[k] == band]
                       for name, cells in groups.items()} for band in np.unique(bands)}
    common = [band for band, by_group in cells_of.items()
              if all(table.units(cells) >= MIN_IN_BAND for cells in by_group.values())]
    share = table.counts[np.isin(bands, common)].sum() / table.counts.sum()
    if share < MIN_SHARE_COMPARED:
        return {}, [], 0.0
    weights = np.array([table.counts[bands == band].sum() for band in common], dtype=float)
    weights /= weights.sum()
    mixed = {}
    for name in groups:
        means = [table.means(cells_of[band][name]) for band in common]
        mixed[name] = (weights @ [value[0] for value, _ in means],
                       np.column_stack([replicates[:, 0] for _, replicates in means]) @ weights)
    return mixed, [name for name, _ in BANDS if name in common], 100 * float(share)

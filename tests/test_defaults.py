"""The config: overrides, recipes, what they refuse; and the command lines that carry them."""

import re
from pathlib import Path

import pytest

from benchmarks.plan import BASE
from defaults import (
    CHOICES,
    RANGES,
    age_bins,
    known_keys,
    load_cfg,
    override_cfg,
    parse_cfg,
    value_of,
)
from losses import LOSSES
from metrics import DECODES

ROOT = Path(__file__).parent.parent
FAMILY = {  # names and values that users of this family of repositories know
    "MODEL.ARCH": "se_resnext50_32x4d", "MODEL.IMG_SIZE": 224, "TRAIN.OPT": "adam",
    "TRAIN.LR": 0.001, "TRAIN.LR_DECAY_STEP": 20, "TRAIN.LR_DECAY_RATE": 0.2,
    "TRAIN.MOMENTUM": 0.9, "TRAIN.WEIGHT_DECAY": 0.0, "TRAIN.BATCH_SIZE": 128,
    "TRAIN.EPOCHS": 80, "TRAIN.AGE_STDDEV": 2.0, "DATA.MARGIN": 0.0, "LOSS.NAME": "kl_l1",
    "LOSS.LABEL": "gaussian", "MODEL.PRETRAINED": "imagenet", "TEST.TTA": False,
}


@pytest.mark.parametrize(("key", "value"), FAMILY.items())
def test_defaults_keep_the_familiar_values(key, value):
    assert value_of(load_cfg(), key) == value


def test_overrides_merge_over_the_recipe_over_the_defaults(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("TRAIN:\n  LR: 1e-2\n  EPOCHS: 5\n")
    cfg = load_cfg(recipe, ["TRAIN.EPOCHS", "7"])
    assert (cfg.TRAIN.LR, cfg.TRAIN.EPOCHS, cfg.TRAIN.MOMENTUM) == (0.01, 7, 0.9)


@pytest.mark.parametrize(("text", "value"), [("1", 1.0), ("1e-3", 0.001), ("0.1", 0.1)])
def test_a_float_may_be_written_as_an_int(text, value):
    rate = load_cfg(None, ["TRAIN.LR", text]).TRAIN.LR
    assert rate == value
    assert type(rate) is float


@pytest.mark.parametrize("recipe", [*sorted(ROOT.glob("configs/*.yaml")), BASE],
                         ids=lambda path: path.name)
def test_recipes_are_of_known_keys_and_values(recipe):
    load_cfg(recipe)


def test_documents_name_keys_that_there_are():
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("configs/*.*"),
                 *ROOT.glob("configs/benchmark/*")):
        named = re.findall(r"\b(?:MODEL|DATA|AUG|LOSS|TRAIN|TEST)\.[A-Z0-9_]+",
                           path.read_text(encoding="utf-8"))
        assert {key for key in named if not key.endswith("KEY")} <= set(known_keys()), path


def test_off_is_a_word_and_not_false():
    assert load_cfg(None, ["TRAIN.AMP", "off"]).TRAIN.AMP == "off"


def test_the_config_is_frozen_and_fresh():
    cfg = load_cfg(None, ["TRAIN.LR", "0.5"])
    with pytest.raises(AttributeError):
        cfg.TRAIN.LR = 1.0
    assert load_cfg().TRAIN.LR == 0.001


def test_a_dumped_config_parses_to_itself():
    cfg = load_cfg(None, ["TRAIN.AMP", "off", "DATA.EXCLUDE", "", "TRAIN.WEIGHT_DECAY", "1e-4"])
    assert parse_cfg(cfg.dump()) == cfg


@pytest.mark.parametrize(("opts", "words"), [
    (["TRAIN.LRR", "1"], ["TRAIN.LRR", "TRAIN.LR"]),
    (["TRAIN.OPT", "rmsprop"], ["TRAIN.OPT", "rmsprop", "adamw"]),
    (["TRAIN.LR", "fast"], ["TRAIN.LR", "float", "fast"]),
    (["TRAIN.LR", "-1"], ["TRAIN.LR", "positive"]),
    (["TRAIN.EPOCHS", "1.5"], ["TRAIN.EPOCHS", "int"]),
    (["TEST.TTA", "3"], ["TEST.TTA", "bool"]),
    (["TRAIN.LR"], ["TRAIN.LR", "no value"]),
    (["AUG.FLIP", "2"], ["AUG.FLIP", "0..1"]),
    (["DATA.AGE_MAX", "0"], ["DATA.AGE_MAX"]),
    (["DATA.MARGIN", "-0.5"], ["DATA.MARGIN"]),
    (["DATA.AGE_MIN", "-5"], ["DATA.AGE_MIN", "negative"]),
    (["TRAIN.SEED", "4294967296"], ["TRAIN.SEED", "0..4294967295"]),
    (["TRAIN.BACKBONE_LR_SCALE", "-1"], ["TRAIN.BACKBONE_LR_SCALE", "0..1000000"]),
    (["TRAIN.LR_DECAY_RATE", "-1"], ["TRAIN.LR_DECAY_RATE", "0..10"]),
    (["TRAIN.MOMENTUM", "-2"], ["TRAIN.MOMENTUM", "negative"]),
    (["TRAIN.LR", ".inf"], ["TRAIN.LR", "finite"]),
    (["TRAIN.CLIP_NORM", "nan"], ["TRAIN.CLIP_NORM", "finite"]),
    (["TRAIN.LR", "1e38"], ["TRAIN.LR", "not exceed 1e+30", "1e+38"]),
    (["TRAIN.AGE_STDDEV", "1e39"], ["TRAIN.AGE_STDDEV", "not exceed 1e+30"]),
    (["LOSS.L1_WEIGHT", "1e20"], ["LOSS.L1_WEIGHT", "0..1000000"]),
    (["DATA.MARGIN", "100"], ["DATA.MARGIN", "up to 5"]),
    (["TRAIN.AGE_STDDEV", "1e-300"], ["TRAIN.AGE_STDDEV", "at least 0.01"]),
    (["AUG.STRENGTH", "1e6"], ["AUG.STRENGTH", "0..10"]),
    (["LOSS.RARE_AGE_POWER", "35"], ["LOSS.RARE_AGE_POWER", "0..4"]),
])
def test_bad_overrides_name_the_key_and_the_way_out(opts, words):
    with pytest.raises(ValueError) as raised:
        load_cfg(None, opts)
    assert "\n" not in str(raised.value)
    for word in words:
        assert word in str(raised.value)


@pytest.mark.parametrize("text", [
    "TRAIN: [", "TRAIN: 3", "- 1", "TRAIN:\n  NOTHING: 1", "TRAIN:\n  LR: 2024-13-45",
    "TRAIN: " + "[" * 3000, "TRAIN:\n  LR: " + "9" * 400, "TRAIN:\n  LR: " + "9" * 5000,
    "DATA:\n  AGE_MAX: 9999999999", "MODEL:\n  IMG_SIZE: 100000",
    "photo,age\n" + "somebody.jpg,31\n" * 10_000])
def test_bad_recipes_are_refused_in_one_line(tmp_path, text):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    with pytest.raises(ValueError) as raised:
        load_cfg(recipe)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500  # also of a table of 160 KB, named by mistake


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        load_cfg(tmp_path / "nowhere.yaml")


def test_a_checkpoints_config_takes_overrides_of_some_sections_only():
    cfg = load_cfg(None, ["MODEL.IMG_SIZE", "64"])
    changed = override_cfg(cfg, ["TEST.TTA", "True"], "TEST")
    assert changed.TEST.TTA
    assert changed.MODEL.IMG_SIZE == 64
    assert override_cfg(cfg, ["MODEL.IMG_SIZE", "64"], "TEST") == cfg
    assert not override_cfg(cfg, ["DATA.CACHE", "False"], "TEST", "DATA.CACHE").DATA.CACHE
    with pytest.raises(ValueError, match=r"MODEL\.IMG_SIZE.*TEST"):
        override_cfg(cfg, ["MODEL.IMG_SIZE", "32"], "TEST")


def test_choices_are_those_of_the_code():
    assert set(CHOICES["LOSS.NAME"]) == set(LOSSES)
    assert set(CHOICES["TEST.DECODE"]) == set(DECODES)
    assert set(CHOICES) | set(RANGES) <= set(known_keys())


def test_every_number_but_the_last_age_has_a_range():
    numbers = {key for key in known_keys() if type(value_of(load_cfg(), key)) in (int, float)}
    assert numbers - set(RANGES) == {"DATA.AGE_MAX"}


@pytest.mark.parametrize("path", ["runs #2/best.pth", "a: b.pth", "2024", "off"])
def test_a_path_is_taken_as_it_is_written(path):
    cfg = load_cfg(None, ["MODEL.PRETRAINED", path])
    assert path == cfg.MODEL.PRETRAINED


def test_age_bins_follow_the_config():
    assert age_bins(load_cfg()) == list(range(101))
    assert age_bins(load_cfg(None, ["DATA.AGE_MIN", "16", "DATA.AGE_MAX", "18"])) == [16, 17, 18]

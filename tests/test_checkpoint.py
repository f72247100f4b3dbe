"""Checkpoints: written whole, read without running code, refused in one line."""

import hashlib
import io
import math
import os
import pickle
import zipfile

import pytest
import torch
from faces import write_dataset

from checkpoint import FORMAT_VERSION, load_checkpoint, save_checkpoint
from crop_cache import cached_crops
from dataset import FaceCrops
from defaults import load_cfg, parse_cfg
from lists import Source, read_faces
from training.folder import RunFolder
from training.release import release_checkpoint
from utils.download import MISC
from utils.locks import only_writer
from utils.precision import MIN_HALVED

PLAIN = {"cfg": "TRAIN:\n  LR: 0.1\n", "model": {"w": torch.arange(3.0)}, "epochs_done": 2,
         "best": {"metric": "val_mae", "value": 5.2, "epoch": 2}, "random_state": None}


def test_a_checkpoint_survives_a_round_trip(tmp_path):
    save_checkpoint(tmp_path / "a.pth", PLAIN)
    loaded = load_checkpoint(tmp_path / "a.pth")
    torch.testing.assert_close(loaded.pop("model"), PLAIN["model"])
    assert loaded == {"version": FORMAT_VERSION, **{k: v for k, v in PLAIN.items() if k != "model"}}
    torch.load(tmp_path / "a.pth", weights_only=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


@pytest.fixture
def on_disk(monkeypatch):
    """List of (inode, size) of the files that the operating system was told to write out."""
    files, fsync = [], os.fsync

    def noted(number):
        fsync(number)
        files.append((os.fstat(number).st_ino, os.fstat(number).st_size))

    monkeypatch.setattr(os, "fsync", noted)
    return files


def test_a_file_is_on_the_disk_before_it_replaces_another(tmp_path, on_disk):
    folder = RunFolder(tmp_path)
    folder.save(PLAIN, kept_as="epoch001.pth", is_best=True)
    folder.write_config(load_cfg())
    write_dataset(tmp_path, [10, 60])
    faces = read_faces(Source(tmp_path, "drawn", tmp_path), "train", load_cfg())
    cached_crops(FaceCrops(faces, 0.0, 32), tmp_path, 0)
    (crops,) = tmp_path.glob("*.u8")
    for path in (folder.last, folder.best, tmp_path / "epoch001.pth", tmp_path / "config.yaml",
                 crops):
        assert (path.stat().st_ino, path.stat().st_size) in on_disk, path.name


def test_a_failed_save_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "a.pth"
    save_checkpoint(path, PLAIN)
    before = path.read_bytes()
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint(path, {**PLAIN, "bad": lambda: 0})
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


class RunsCode:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_a_file_that_would_run_code_is_refused(tmp_path, capsys):
    torch.save({**PLAIN, "version": 1, "x": RunsCode()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="run code"):
        load_checkpoint(tmp_path / "evil.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(RunsCode()))
    with pytest.raises(ValueError, match=r"bare\.pth"):
        load_checkpoint(tmp_path / "bare.pth")
    assert "must not run" not in capsys.readouterr().out


def zip_of_text():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.txt", "hello")
    return buffer.getvalue()


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n", b'{"a": 1}', b"\x1f\x8b\x08",
                                     b"\x08\x08\x12\x07pytorch"])
def test_a_file_of_another_kind_is_not_called_a_danger(tmp_path, content):
    (tmp_path / "other.pth").write_bytes(content * 100)
    with pytest.raises(ValueError, match=r"other\.pth' is not a checkpoint"):
        load_checkpoint(tmp_path / "other.pth")


@pytest.mark.parametrize("content", [b"", b"hello", zip_of_text(), b"\x80\x02."])
def test_other_files_are_refused_in_one_line(tmp_path, content):
    path = tmp_path / "other.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError) as raised:
        load_checkpoint(path)
    assert "other.pth" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_same_checkpoint_has_the_same_bytes_in_any_file(tmp_path):
    for name in ("a.pth", "other.pth"):
        save_checkpoint(tmp_path / name, PLAIN)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "other.pth").read_bytes()


def test_a_truncated_checkpoint_is_refused(tmp_path):
    save_checkpoint(tmp_path / "a.pth", PLAIN)
    content = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(content[:len(content) // 2])
    with pytest.raises(ValueError, match="truncated"):
        load_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("stored", [
    {"state_dict": {}}, [1, 2], {"version": 1, "model": {}}, {**PLAIN, "version": "1.0"},
    {**PLAIN, "version": 1, "cfg": {"model": "resnet"}}, {**PLAIN, "version": 1, "model": [1]},
    {**PLAIN, "version": 1, "model": {"w": 1.0}}, {**PLAIN, "version": 1, "temperature": "warm"},
    {**PLAIN, "version": 1, "temperature": [1.0, -1.0]},
    {**PLAIN, "version": 1, "temperature": [1.0, 2.0, 3.0]}])
def test_other_projects_checkpoints_are_refused(tmp_path, stored):
    torch.save(stored, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="not a checkpoint of this project"):
        load_checkpoint(tmp_path / "other.pth")


@pytest.mark.parametrize(("content", "named"), [
    (b"<!DOCTYPE html><html>404</html>", "web page"), (b"\n<html>", "web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n", "git lfs pull")])
def test_what_a_download_left_instead_is_named(tmp_path, content, named):
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(ValueError, match=named):
        load_checkpoint(tmp_path / "model.pth")


def test_a_checkpoint_of_which_a_bit_has_changed_is_refused(tmp_path):
    path = tmp_path / "a.pth"
    save_checkpoint(path, PLAIN)
    whole = path.read_bytes()
    place = whole.index(PLAIN["model"]["w"].numpy().tobytes()) + 2
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1:])
    with pytest.raises(ValueError, match=r"a\.pth' is damaged"):
        load_checkpoint(path)
    path.write_bytes(whole)
    load_checkpoint(path)


def test_weights_saved_through_data_parallel_are_accepted(tmp_path):
    model = {f"module.{name}": tensor for name, tensor in PLAIN["model"].items()}
    save_checkpoint(tmp_path / "a.pth", PLAIN | {"model": model})
    torch.testing.assert_close(load_checkpoint(tmp_path / "a.pth")["model"], PLAIN["model"])


def test_a_full_disk_leaves_the_earlier_file_and_names_the_space(tmp_path, small_disk):
    path = small_disk / "a.pth"
    save_checkpoint(path, PLAIN)
    before = path.read_bytes()
    for count in (250_000, 900_000):  # beside other files, and larger than the disk
        (small_disk / "other").write_bytes(bytes(1_500_000))
        with pytest.raises(OSError, match=rf"no space left to write '{path}': .* free") as raised:
            save_checkpoint(path, PLAIN | {"model": {"w": torch.zeros(count)}})
        assert "\n" not in str(raised.value)
        assert path.read_bytes() == before
        assert {file.name for file in small_disk.iterdir()} == {"a.pth", "other"}
        with pytest.raises(OSError, match="no space left to write"):
            release_checkpoint([write_large(tmp_path / "large.pth", count)],
                               small_disk / "model.pth")


def write_large(path, count):
    save_checkpoint(path, PLAIN | {"model": {"w": torch.full((count,), 1e9)}})
    return path


def test_a_newer_version_is_refused(tmp_path):
    torch.save({**PLAIN, "version": 99}, tmp_path / "new.pth")
    with pytest.raises(ValueError, match="version 99"):
        load_checkpoint(tmp_path / "new.pth")


def test_an_onnx_file_in_the_place_of_a_checkpoint_is_told_what_measures_it():
    with pytest.raises(ValueError, match=r"model\.onnx' is an ONNX model.*export\.py --verify"):
        load_checkpoint(MISC / "model.onnx")


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.pth"):
        load_checkpoint(tmp_path / "gone.pth")


def test_a_released_checkpoint_keeps_large_weights_in_half_precision(tmp_path):
    large = torch.linspace(-1, 1, MIN_HALVED)
    model = PLAIN["model"] | {"kernel": large, "scale": large[1:] / 3,
                              "variance": 1e5 * large}  # beyond half precision
    save_checkpoint(tmp_path / "a.pth", {**PLAIN, "model": model,
                                         "optimizer": {"state": torch.zeros(1000)}})
    sha256 = release_checkpoint([tmp_path / "a.pth"], tmp_path / "b.pth")
    released = load_checkpoint(tmp_path / "b.pth")
    assert released["model"]["kernel"].dtype == torch.float16
    assert torch.equal(released["model"]["kernel"], large.half())
    assert torch.equal(released["model"]["scale"], large[1:] / 3)
    assert torch.equal(released["model"]["variance"], 1e5 * large)
    assert "optimizer" not in released
    assert released["best"] == PLAIN["best"]
    assert hashlib.sha256((tmp_path / "b.pth").read_bytes()).hexdigest() == sha256


def test_a_released_checkpoint_names_no_place_on_the_machine(tmp_path):
    cfg = ("DATA:\n  EXCLUDE: out.csv\n  MARGIN: 0.3\n"
           "MODEL:\n  PRETRAINED: /home/me/run/best.pth\nLOSS:\n  TEACHER: ../my/tables\n")
    save_checkpoint(tmp_path / "a.pth", {**PLAIN, "cfg": cfg})
    release_checkpoint([tmp_path / "a.pth"], tmp_path / "b.pth")
    released = parse_cfg(load_checkpoint(tmp_path / "b.pth")["cfg"])
    assert released.DATA.EXCLUDE == ""
    assert (released.MODEL.PRETRAINED, released.LOSS.TEACHER) == ("best.pth", "tables")
    assert released.DATA.MARGIN == 0.3


def test_several_checkpoints_are_released_as_their_mean(tmp_path):
    for name, value in (("a", 1.0), ("b", 4.0)):
        save_checkpoint(tmp_path / f"{name}.pth", {**PLAIN, "temperature": 0.7, "model": {
            "w": torch.full((2,), value), "steps": torch.tensor(3)}})
    save_checkpoint(tmp_path / "other.pth", {**load_checkpoint(tmp_path / "b.pth"),
                                             "cfg": "MODEL:\n  IMG_SIZE: 96\n"})
    release_checkpoint([tmp_path / "a.pth", tmp_path / "b.pth"], tmp_path / "mean.pth")
    mean = load_checkpoint(tmp_path / "mean.pth")
    assert mean["model"]["w"].tolist() == [2.5, 2.5] and mean["model"]["steps"] == 3
    assert not {"best", "epochs_done", "temperature"} & mean.keys()  # those of one run
    save_checkpoint(tmp_path / "longer.pth", {**PLAIN, "model": {"w": torch.ones(3)}})
    for name in ("longer.pth", "other.pth"):
        with pytest.raises(ValueError, match=rf"{name}' is of another network than .*a\.pth'"):
            release_checkpoint([tmp_path / "a.pth", tmp_path / name], tmp_path / "mean.pth")


def test_a_mean_of_runs_that_have_nothing_in_common_is_told(tmp_path, recwarn):
    start, other = (torch.randn((16, 8, 3, 3), generator=torch.Generator().manual_seed(seed))
                    for seed in (0, 1))
    for name, kernel in (("a", start), ("b", start + 0.5 * other), ("other", other)):
        save_checkpoint(tmp_path / f"{name}.pth", {**PLAIN, "model": {"kernel": kernel}})
    release_checkpoint([tmp_path / "a.pth", tmp_path / "b.pth"], tmp_path / "mean.pth")
    assert not recwarn
    with pytest.warns(UserWarning, match=r"other\.pth' and .*a\.pth' did not start from the same"):
        release_checkpoint([tmp_path / "a.pth", tmp_path / "other.pth"], tmp_path / "mean.pth")


def test_a_mean_names_the_data_sets_and_the_commits_of_all_its_runs(tmp_path):
    for name, keys in {"a": {"datasets": ["utkface", "fairface"], "commit": "abc1234"},
                       "b": {"datasets": ["fairface", "agedb"], "commit": "def5678"},
                       "old": {}}.items():
        save_checkpoint(tmp_path / f"{name}.pth", {**PLAIN, **keys})

    def origin_of_mean(*names):
        release_checkpoint([tmp_path / f"{name}.pth" for name in names], tmp_path / "mean.pth")
        mean = load_checkpoint(tmp_path / "mean.pth")
        return mean.get("datasets"), mean["commit"]

    both = (["utkface", "fairface", "agedb"], "abc1234, def5678")
    assert origin_of_mean("a", "b") == both
    assert origin_of_mean("mean", "b") == both
    assert origin_of_mean("a", "old") == (None, "abc1234, unknown")  # half of them would mislead


def test_a_release_leaves_a_folder_alone_that_another_process_writes_to(tmp_path):
    save_checkpoint(tmp_path / "a.pth", PLAIN)
    with only_writer(tmp_path / "out", "wait"):
        with pytest.raises(ValueError, match="another process writes to '.*out': process"):
            release_checkpoint([tmp_path / "a.pth"], tmp_path / "out" / "b.pth")
        assert not (tmp_path / "out" / "b.pth").exists()
    release_checkpoint([tmp_path / "a.pth"], tmp_path / "out" / "b.pth")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.pth"]


def write_trained(path, loss="kl", **keys):
    """A checkpoint of a head over four ages, the last one nine times rarer than the second."""
    save_checkpoint(path, {
        **PLAIN, "cfg": f"LOSS:\n  NAME: {loss}\n", "temperature": 0.7,
        "age_share": torch.tensor([0.2, 0.9, 0.3, 0.1]) / 1.5,
        "model": {"head.bias": torch.arange(4.0)}, **keys})
    return path


def test_a_release_favours_the_ages_that_were_common(tmp_path):
    source = write_trained(tmp_path / "a.pth")
    release_checkpoint([source], tmp_path / "b.pth", age_power=0.3)
    released = load_checkpoint(tmp_path / "b.pth")
    moved = released["model"]["head.bias"] - torch.arange(4.0)
    taken_as = torch.tensor([0.9, 0.9, 0.3, 0.15 * 0.9])  # both ends are rarer
    torch.testing.assert_close(moved, 0.3 * (taken_as / 0.9).log(), rtol=0, atol=1e-6)
    assert not {"best", "epochs_done", "temperature"} & released.keys()  # of the other bias
    release_checkpoint([source], tmp_path / "c.pth")
    kept = load_checkpoint(tmp_path / "c.pth")
    assert torch.equal(kept["model"]["head.bias"], torch.arange(4.0)) and kept["temperature"] == 0.7


@pytest.mark.parametrize("power, keys, message", [
    (math.nan, {}, r" must be a finite number, got nan"),
    (0.1, {"age_share": None}, r": '.*a\.pth' does not say which ages .*--resume"),
    (0.1, {"loss": "or_cnn"}, r": '.*a\.pth' has binary outputs \(LOSS\.NAME or_cnn\)")])
def test_a_power_that_does_not_suit_a_model_is_refused(tmp_path, power, keys, message):
    with pytest.raises(ValueError, match=f"^--age_power{message}"):
        release_checkpoint([write_trained(tmp_path / "a.pth", **keys)], tmp_path / "b.pth", power)
    assert not (tmp_path / "b.pth").exists()


def test_a_forgotten_target_does_not_cost_a_training(tmp_path):
    for name in ("a", "b"):
        save_checkpoint(tmp_path / f"{name}.pth", {**PLAIN, "optimizer": {}})
    before = (tmp_path / "b.pth").read_bytes()
    with pytest.raises(ValueError, match=r"b\.pth' is of a training run .*; name the file"):
        release_checkpoint([tmp_path / "a.pth"], tmp_path / "b.pth")
    assert (tmp_path / "b.pth").read_bytes() == before


def test_a_checkpoint_written_again_has_this_version(tmp_path):
    save_checkpoint(tmp_path / "a.pth", {**PLAIN, "version": 1})
    assert load_checkpoint(tmp_path / "a.pth")["version"] == FORMAT_VERSION

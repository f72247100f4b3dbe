"""utils/files.py and utils/locks.py: temporary files, walks of folders, who may write."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils import locks, pipeline
from utils.files import cache_dir, files_below, remove_leftovers, replaced, writable_folder
from utils.locks import one_maker, one_of_writers, only_writer

ROOT = Path(__file__).parent.parent


def test_only_our_temporary_files_are_removed(tmp_path):
    with replaced(tmp_path / "a.csv") as temporary:
        temporary.touch()
        left = temporary.name
    (tmp_path / left).write_text("left by a killed process")
    (tmp_path / ".cache.tmp").mkdir()
    (tmp_path / ".notes.tmp").write_text("of another program")
    (tmp_path / f".{'0' * 32}.tmp").mkdir()
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f".{'0' * 32}.tmp", ".cache.tmp", ".notes.tmp", "a.csv"]


def test_trying_a_folder_leaves_its_files_alone(tmp_path):
    (tmp_path / ".writable").write_text("mine")
    writable_folder(tmp_path, "--output_dir")
    assert [path.name for path in tmp_path.iterdir()] == [".writable"]


def test_a_file_that_cannot_be_written_is_named_as_the_user_did(tmp_path):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "missing" / "a.csv"):
        with pytest.raises(OSError) as raised, replaced(path) as temporary:
            temporary.write_text("new")
        assert str(path) in str(raised.value) and ".tmp" not in str(raised.value)


def test_the_file_behind_a_link_is_replaced_and_the_link_stays(tmp_path):
    shared, own = tmp_path / "shared", tmp_path / "own"
    shared.mkdir()
    own.mkdir()
    (shared / "a.csv").write_text("old")
    (own / "a.csv").symlink_to("../shared/a.csv")
    (own / "new.csv").symlink_to(shared / "new.csv")  # there is no such file yet
    for name in ("a.csv", "new.csv"):
        with replaced(own / name) as temporary:
            temporary.write_text("new")
        assert (own / name).is_symlink() and (shared / name).read_text() == "new"
    with pytest.raises(KeyboardInterrupt), replaced(own / "a.csv") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert (shared / "a.csv").read_text() == "new"
    (own / "loop.csv").symlink_to("loop.csv")
    with replaced(own / "loop.csv") as temporary:
        temporary.write_text("new")
    assert (own / "loop.csv").read_text() == "new"
    assert sorted(path.name for path in tmp_path.glob("*/*")) == [
        "a.csv", "a.csv", "loop.csv", "new.csv", "new.csv"]


def test_a_read_only_file_behind_a_link_is_not_replaced(tmp_path):
    (tmp_path / "shared.csv").write_text("old")
    (tmp_path / "shared.csv").chmod(0o444)
    if os.access(tmp_path / "shared.csv", os.W_OK):
        pytest.skip("this user may write to read-only files")
    (tmp_path / "a.csv").symlink_to("shared.csv")
    with pytest.raises(PermissionError, match="shared.csv"), replaced(tmp_path / "a.csv") as path:
        path.write_text("new")
    assert (tmp_path / "shared.csv").read_text() == "old"


def test_a_folder_that_cannot_be_written_to_is_named(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for held in (only_writer(small_disk, "wait"), one_of_writers(small_disk, "a", "wait")):
        with pytest.raises(OSError, match=f"^folder '{small_disk}' cannot be written to"), held:
            pass


def test_a_disk_without_locks_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)  # as a network disk without a lock daemon does
    with pytest.raises(OSError, match=f"^folder '{tmp_path}' is on a disk that has no file lock"), \
            only_writer(tmp_path, "wait"):
        pass
    with pytest.raises(OSError, match=f"^folder '{tmp_path}' .* local disk with --cache_dir$"), \
            one_maker(tmp_path / "a.u8", "works"):
        pass


def test_a_user_without_a_home_is_told_how_to_name_a_cache(monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54_321)  # as in a container
    with pytest.raises(OSError, match="no home folder .* XDG_CACHE_HOME"):
        cache_dir()


def test_a_container_s_quota_limits_the_threads(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(64))
    for text, cores in (("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1),
                        ("max 100000", 64), ("nonsense", 64)):
        (tmp_path / "cpu.max").write_text(f"{text}\n")
        monkeypatch.setattr(pipeline, "CPU_QUOTA", tmp_path / "cpu.max")
        assert pipeline.available_cores() == cores
    monkeypatch.setattr(pipeline, "CPU_QUOTA", tmp_path / "none")
    assert pipeline.available_cores() == 64


def test_processes_of_one_work_write_together_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "MAX_ENTRY_SECONDS", 0)
    (tmp_path / ".lock-a-killed").write_text("")
    with one_of_writers(tmp_path, "a", "wait"), one_of_writers(tmp_path, "a", "wait"):
        for other in (one_of_writers(tmp_path, "b", "wait"), only_writer(tmp_path, "wait")):
            with pytest.raises(ValueError, match="share their work write to .*: wait"), other:
                pass
    with (only_writer(tmp_path, "wait"), pytest.raises(ValueError, match=f"process {os.getpid()}"),
          one_of_writers(tmp_path, "a", "wait")):
        pass
    with one_of_writers(tmp_path, "b", "wait"):
        pass
    with only_writer(tmp_path / "new" / "one", "wait"):
        pass
    assert not list((tmp_path / "new").iterdir())
    with only_writer(tmp_path / "new", "wait"):
        pass
    with pytest.raises(RuntimeError), only_writer(tmp_path / "failed", "wait"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == [tmp_path / "new"]  # it was there before


RACE = """
import os, sys
from pathlib import Path
from utils.locks import one_of_writers, only_writer
folder, inside, number = Path(sys.argv[1], "out"), Path(sys.argv[1], "inside"), sys.argv[2]
entered = 0
for turn in range(150):
    try:
        with only_writer(folder, "") if turn % 2 else one_of_writers(folder, number, ""):
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # fails while another is inside
            entered += 1
            inside.unlink()
    except ValueError:
        pass  # refused
print(entered)
"""


def test_of_many_processes_that_race_for_a_folder_one_is_inside(tmp_path):
    """Each comes and goes as fast as it can, so that locks are removed while others want them."""
    racers = [subprocess.Popen([sys.executable, "-c", RACE, tmp_path, str(number)], cwd=ROOT,
                               text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
              for number in range(6)]
    printed = [racer.communicate(timeout=300) for racer in racers]
    assert [errors for _, errors in printed] == [""] * 6
    assert all(int(entered) > 0 for entered, _ in printed)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_folder_is_walked_once_and_the_one_left_out_never(tmp_path):
    for name in ("a", "a/b", "out"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b", target_is_directory=True)
    (tmp_path / "other").symlink_to(tmp_path / "out", target_is_directory=True)
    (tmp_path / "nothing").symlink_to(tmp_path / "none")
    (tmp_path / "itself").symlink_to(tmp_path / "itself")

    def names(leave_out):
        return sorted(path.relative_to(tmp_path).as_posix()
                      for path in files_below(tmp_path, leave_out))

    assert names(tmp_path / "out") == ["a/b/file", "a/file"]
    assert names(tmp_path) == names(None) == names(tmp_path / "none") == [
        "a/b/file", "a/file", "out/file"]

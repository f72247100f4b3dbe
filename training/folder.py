"""Which files a run keeps in its folder, and when one replaces another."""

import shutil
from contextlib import ExitStack, contextmanager
from pathlib import Path

from checkpoint import load_checkpoint, save_checkpoint
from utils import distributed
from utils.files import remove_leftovers, replaced
from utils.locks import only_writer


class RunFolder:
    """The folder of a run. Only the main process writes there.

    last.pth    where the run stands; --resume continues from it
    best.pth    the best epoch by validation
    epochNNN_LOSS_METRIC.pth    every epoch that improved a validation metric
    config.yaml, log.jsonl      the config; one line of figures an epoch
    earlier-N/  the files of a run that used this folder before, or where this run stood before it
                went on from an earlier epoch

    Args:
        path: where the folder lies.
    """

    def __init__(self, path):
        self.path = Path(path)
        self.last, self.best = self.path / "last.pth", self.path / "best.pth"

    @contextmanager
    def locked(self):
        """Create the folder, and let no other run use it within the context.

        Raises:
            ValueError: another process trains there; names that process.
        """
        writer = only_writer(self.path, "name another folder with --checkpoint")
        with ExitStack() as stack:
            distributed.call_in_main(lambda: stack.enter_context(writer))
            if distributed.is_main():
                remove_leftovers(self.path)
            yield

    def write_config(self, cfg):
        """Write config.yaml."""
        with replaced(self.path / "config.yaml") as temporary:
            temporary.write_text(cfg.dump(), encoding="utf-8")

    def set_aside_earlier_run(self):
        """Move the files of an earlier run to earlier-N, so that none is lost."""
        files = [path for pattern in ("*.pth", "log.jsonl", "config.yaml")
                 for path in self.path.glob(pattern)]
        if not files:
            return
        earlier = self._new_earlier()
        for path in files:
            path.rename(earlier / path.name)
        print(f"{self.path}/ held an earlier run; its files are now in {earlier}/")

    def keep_further_state(self, resumed, checkpoint):
        """Keep where the run stood in earlier-N, if it goes on from an earlier checkpoint.

        The checkpoints of later epochs are moved there: others of their number will follow.

        Args:
            resumed: Path of the checkpoint in this folder that the run goes on from.
            checkpoint: its dict.
        """
        if not self.last.is_file() or self.last.samefile(resumed):
            return
        last = load_checkpoint(self.last)
        if _steps_done(last) <= _steps_done(checkpoint):
            return
        earlier = self._new_earlier()
        for path in (self.last, self.best, self.path / "log.jsonl"):
            if path.is_file():
                shutil.copyfile(path, earlier / path.name)
        for path in self.path.glob("epoch*.pth"):
            number = path.name.removeprefix("epoch").partition("_")[0]
            if number.isdecimal() and int(number) > checkpoint["epochs_done"]:
                path.rename(earlier / path.name)
        print(f"{self.last} was further than {resumed}, with {last['epochs_done']} epochs done; it "
              f"is kept in {earlier}/")

    def _new_earlier(self):
        """A new folder earlier-N."""
        number = 1
        while (self.path / f"earlier-{number}").exists():
            number += 1
        earlier = self.path / f"earlier-{number}"
        earlier.mkdir()
        return earlier

    def save(self, checkpoint, kept_as=None, is_best=False):
        """Write last.pth.

        It comes after the other files: a run that is killed in between resumes from the last.pth
        before, and then writes all of them.

        Args:
            checkpoint: dict, see checkpoint.py.
            kept_as: name of a file to keep the checkpoint in as well, or None.
            is_best: write best.pth too.
        """
        path = self.path / kept_as if kept_as else self.last
        save_checkpoint(path, checkpoint)
        if is_best:
            _copy(path, self.best)
        if path != self.last:
            _copy(path, self.last)

    def go_back(self, to_best):
        """After a divergence: replace last.pth by best.pth, or remove it if there is no best."""
        if to_best:
            _copy(self.best, self.last)
        else:
            self.last.unlink(missing_ok=True)

    def restore_best(self, run_name, epoch, resumed):
        """Make best.pth the checkpoint of the best epoch, also in a new folder or after going back.

        Args:
            run_name: name of the run.
            epoch: the best epoch so far.
            resumed: Path of the checkpoint that the run continues; the best is beside it.
        Returns:
            Whether the checkpoint was found.
        """
        for candidate in (self.best, resumed, resumed.with_name("best.pth"),
                          *resumed.parent.glob(f"epoch{epoch:03d}_*.pth")):
            if not candidate.is_file():
                continue
            found = load_checkpoint(candidate)
            if (found.get("run_name"), found.get("epochs_done"), found.get("progress")) == (
                    run_name, epoch, None):
                if candidate != self.best:
                    _copy(candidate, self.best)
                return True
        return False


def _steps_done(checkpoint):
    """(whole epochs, batches of the next one)."""
    return checkpoint["epochs_done"], (checkpoint["progress"] or {"steps": 0})["steps"]


def _copy(source, target):
    with replaced(target) as temporary:
        shutil.copyfile(source, temporary)

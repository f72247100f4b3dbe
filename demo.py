"""Estimate the age of every face in a folder of photos, a clip or a camera's picture.

    python demo.py                                    the camera, in a window
    python demo.py --img_dir PHOTOS                   a window for each photo: any key for the next
    python demo.py --img_dir PHOTOS --output_dir OUT  annotated photos and tables, no window
    python demo.py --video CLIP.mp4 --output_dir OUT  annotated clip and tables, no window

ESC, q (camera and clip), closing the window or Ctrl-C ends it. A stopped run over a folder goes on
when it is started again. Several processes or machines share a folder if each is started with its
own number: RANK=0 WORLD_SIZE=4 python demo.py ..., RANK=1 WORLD_SIZE=4 ...
"""

import argparse
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from media.drawing import age_text, draw_corner_text, draw_faces
from media.outputs import claim_files, clip_name
from media.photos import find_images, picture_names, save_picture
from media.results import (
    FIELDS,
    LINES_NAME,
    NO_FACE,
    NOT_DRAWN,
    OK,
    RESULTS_NAME,
    UNREADABLE,
    VIDEO_FIELDS,
    PhotoResults,
    ResultFiles,
    forget_other_work,
    with_threshold,
    work_digest,
)
from media.tracking import FaceTracker
from media.video import ESC, ClipWriter, FrameRate, Frames, ScreenWindow
from predictor import MIN_CONFIDENCE, MIN_FACE, AgeEstimator
from preprocess.face import IMAGE_ENDINGS
from utils import cli
from utils.files import (
    file_sha256,
    named_full_disk,
    refuse_overwriting,
    remove_leftovers,
    writable_folder,
)
from utils.locks import one_of_writers, only_writer
from utils.pipeline import map_ahead
from utils.share import process_share, share_of

MAX_TABLE_ROWS = 20  # shown at the end; all of them are in results.csv
MAX_NAME = 60  # characters of a file name in this table
WINDOW_TITLE = "age estimation"
OTHER_OUTPUT = "wait for it, or choose another --output_dir"
STREAM_MIN_FACE_RATIO = 0.1  # of the shorter side: smaller faces in a stream are not looked for


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--img_dir", type=Path, help="folder of photos, or one photo")
    source.add_argument("--video", help="clip, or an rtsp:// or http(s):// address")
    source.add_argument("--camera", type=int, default=0, help="number of the camera")
    parser.add_argument("--output_dir", type=Path,
                        help="write annotated pictures, results.csv and results.jsonl here "
                             "instead of opening a window; results of an earlier run there are "
                             "overwritten, other files never are")
    parser.add_argument("--tables_only", action="store_true",
                        help="write results.csv and results.jsonl, but no pictures")
    parser.add_argument("--recursive", action="store_true",
                        help="also the photos in folders within --img_dir")
    parser.add_argument("--resume", help="checkpoint, .onnx file, name from misc/models.yaml, or "
                        "https URL ending in #sha256=HEX; by default the model in misc/")
    parser.add_argument("--threshold", type=int, metavar="YEARS",
                        help="also give the probability of being at least so old; read the "
                             "warning in MODEL_CARD.md first")
    parser.add_argument("--no_plot", action="store_true",
                        help="do not draw the age distribution beside each face")
    parser.add_argument("--min_face", type=int, help="pixels, smallest face looked for; a larger "
                        f"value is faster on large photos; by default {MIN_FACE}, in a stream "
                        "also a tenth of the shorter side")
    parser.add_argument("--min_confidence", type=float, default=MIN_CONFIDENCE,
                        help="of the face detector, 0..1; a lower one finds more faces, and more "
                             "that are none")
    parser.add_argument("--any_rotation", action="store_true",
                        help="find faces that lie on their side or upside down too, all of a "
                             "photo in the same way; about three times as slow")
    cli.add_device_flag(parser)
    return cli.parse_with_overrides(parser, argv,
                                    "TEST.* only, for example TEST.DECODE median")


def main(argv=None):
    args = parse_args(argv)
    if args.recursive and args.img_dir is None:
        raise ValueError("--recursive is for photos; name their folder with --img_dir")
    if args.tables_only and args.output_dir is None:
        raise ValueError("--tables_only writes tables; name their folder with --output_dir")
    return run_stream(args) if args.img_dir is None else run_photos(args)


def build_estimator(args, min_face_ratio=0.0):
    if args.min_face is not None:
        min_face_ratio = 0.0
    estimator = AgeEstimator(args.resume, args.device, args.opts,
                             MIN_FACE if args.min_face is None else args.min_face, min_face_ratio,
                             args.min_confidence, any_rotation=args.any_rotation)
    first, last = estimator.age_bins[0], estimator.age_bins[-1]
    if args.threshold is not None and not first < args.threshold <= last:
        raise ValueError(f"--threshold must lie in {first + 1}..{last}, the ages that the model "
                         f"knows; got {args.threshold}")
    return estimator


def print_warning(threshold):
    """Beside the probabilities of being at least so old."""
    if threshold is not None:
        print(f"p_at_least_{threshold} is an estimate from a face. Do not decide by it what "
              "somebody may buy or do; MODEL_CARD.md says how often it is wrong")


# ---- Photos


def run_photos(args):
    folder, names = list_photos(args)
    if args.output_dir is None:
        with ScreenWindow(WINDOW_TITLE) as window:
            summary = show_photos(build_estimator(args), folder, names, window, args)
    else:
        rank, process_count = process_share()
        estimator = build_estimator(args)
        writable_folder(args.output_dir, "--output_dir")
        work = work_digest(settings_text(estimator, args), photo_fields(args))
        is_alone = process_count == 1
        with only_writer(args.output_dir, OTHER_OUTPUT) if is_alone else \
                one_of_writers(args.output_dir, work, OTHER_OUTPUT), \
                named_full_disk(args.output_dir):
            summary = write_photos(estimator, folder, names, args, work, rank, process_count)
        if not is_alone:
            return 0  # the other processes may have read images
    if summary.unreadable_count and not (summary.read_count or summary.earlier_count):
        raise ValueError(f"none of the images in '{args.img_dir}' could be read")
    return 0


def photo_fields(args):
    """Columns of results.csv for photos."""
    return with_threshold(FIELDS, args.threshold)


def list_photos(args):
    """(folder, names in it) of the photos asked for; none of them will be overwritten."""
    if args.img_dir.is_file():
        if args.output_dir is not None and args.img_dir.suffix.lower() not in IMAGE_ENDINGS:
            raise ValueError(f"'{args.img_dir}' is no image that can be read; a clip is given with "
                             f"--video, images end in {', '.join(IMAGE_ENDINGS)}")
        folder, names = args.img_dir.parent, [Path(args.img_dir.name)]
    elif args.img_dir.is_dir():
        folder = args.img_dir
        names, others = find_images(folder, args.recursive, leave_out=args.output_dir)
        if others:
            shown = ", ".join(f"'{name}'" for name in others[:5])
            print(f"warning: {len(others)} files look like pictures but are not read: {shown}"
                  f"{', ...' if others[5:] else ''}; convert them to JPEG or PNG",
                  file=sys.stderr)
    else:
        raise FileNotFoundError(f"--img_dir '{args.img_dir}' not found")
    if args.output_dir is not None and not args.tables_only:
        inputs = {(folder / name).resolve() for name in names}
        pictures = {(args.output_dir / name).resolve() for name in picture_names(names).values()}
        if clash := sorted(inputs & pictures):
            raise ValueError(f"'{clash[0]}' would be overwritten; choose another --output_dir")
    return folder, names


def show_photos(estimator, folder, names, window, args):
    """One photo after the other, until ESC."""
    summary = PhotoSummary(args.threshold)
    paths = [folder / name for name in names]
    for name, reading in zip(names, estimator.stream(paths, batch_photos=1), strict=True):
        print(summary.add(name.as_posix(), reading))
        if reading.problem:
            continue
        window.show(draw_faces(reading.photo, reading.faces, not args.no_plot,
                               threshold=args.threshold))
        if window.wait_key() == ESC:
            break
    print_warning(args.threshold)
    return summary


def write_photos(estimator, folder, names, args, work, rank, process_count):
    """Annotated photos, results.csv and results.jsonl; this process's share of them."""
    def annotate(job):
        name, reading = job
        if reading.problem:
            return name, reading, f"{UNREADABLE}: {reading.problem}"
        try:
            if not args.tables_only:
                picture = draw_faces(reading.photo, reading.faces, not args.no_plot,
                                     threshold=args.threshold)
                save_picture(picture, args.output_dir / pictures[name])
        except ValueError as error:
            return name, reading, f"{NOT_DRAWN}: {error}"
        return name, reading, OK

    summary = PhotoSummary(args.threshold)
    mine = [name for name in names if share_of(name.as_posix(), process_count) == rank]
    if not mine:
        print(f"none of the {len(names)} images is in share {rank} of {process_count}")
        return summary
    pictures, paths = picture_names(names), {name.as_posix(): folder / name for name in names}
    claim_files(args.output_dir, [] if args.tables_only else pictures.values())
    if process_count == 1:  # nobody else writes there
        for place in {args.output_dir, *((args.output_dir / name).parent for name in
                                         pictures.values())}:
            remove_leftovers(place)
        if not args.tables_only:  # the pictures of other work will be overwritten
            forget_other_work(args.output_dir, work)
    started = time.perf_counter()
    with (PhotoResults(args.output_dir, work, photo_fields(args),
                       is_shared=process_count > 1) as results,
          ThreadPoolExecutor(2) as savers):
        todo = [name for name in mine
                if not results.is_done(name.as_posix(), paths[name.as_posix()])]
        summary.earlier_count = len(mine) - len(todo)
        jobs = zip(todo, estimator.stream(folder / name for name in todo), strict=True)
        bar = tqdm(map_ahead(partial(savers.submit, annotate), jobs, 4), total=len(mine),
                   initial=summary.earlier_count, unit="image")
        try:
            for name, reading, status in bar:
                line = summary.add(name.as_posix(), reading, status)
                if status != OK:
                    bar.write(line, file=sys.stderr)
                results.add(name.as_posix(), folder / name, reading.faces, status)
        finally:
            missing = results.write_tables(paths, only_complete=process_count > 1)
    summary.print(time.perf_counter() - started, args, missing)
    print_warning(args.threshold)
    return summary


def settings_text(estimator, args):
    """Text that changes with everything that changes the results of a photo.

    It is equal on all machines that share the work: the model counts by its weights, not by its
    file, because a CPU takes the .onnx file and a GPU the checkpoint that it was made from.
    """
    metadata = getattr(estimator.network, "metadata", {})
    weights = metadata.get("source_sha256") or file_sha256(estimator.network.path)
    return repr((weights, estimator.cfg.TEST.TTA, estimator.cfg.TEST.DECODE, args.min_face,
                 args.min_confidence, args.any_rotation, args.tables_only, args.no_plot))


class PhotoSummary:
    """Counts of a run over photos, and the first lines of its results.

    Args:
        threshold: years, or None, see age_text().
    """

    def __init__(self, threshold=None):
        self.threshold, self.lines = threshold, []
        self.read_count = self.unreadable_count = self.face_count = self.faceless_count = 0
        self.earlier_count = 0  # done by an earlier run

    def add(self, name, reading, status=OK):
        """Count a photo; its results in words."""
        if reading.problem:
            self.unreadable_count += 1
            words = f"{UNREADABLE}: {reading.problem}"
        else:
            self.read_count += 1
            self.face_count += len(reading.faces)
            self.faceless_count += not reading.faces
            words = "; ".join(age_text(face, self.threshold) for face in reading.faces) or NO_FACE
            if status != OK:
                words += f" ({status})"
        if len(self.lines) < MAX_TABLE_ROWS:
            self.lines.append((shortened(name), words))
        return f"{printable(name)}: {words}"

    def print(self, seconds, args, missing):
        count = self.read_count + self.unreadable_count
        width = max([len("file"), *(len(name) for name, _ in self.lines)])
        print(f"{'file':{width}}  age, 80% interval")
        for name, words in self.lines:
            print(f"{name:{width}}  {words}")
        if count > len(self.lines):
            print(f"... and {count - len(self.lines)} more in {args.output_dir / RESULTS_NAME}")
        print(f"images: {count} in {seconds:.1f} s, {count / seconds:.1f} images/s; faces: "
              f"{self.face_count}; images without a face: {self.faceless_count}; unreadable: "
              f"{self.unreadable_count}")
        if self.earlier_count:
            print(f"{self.earlier_count} more images were done by an earlier run")
        if missing:
            print(f"not done yet: {cli.count_text(missing, 'image')}, in other shares or missing "
                  "there; when no share runs, start the same command without RANK and WORLD_SIZE")
            return
        pictures = "" if args.tables_only else "annotated images, "
        print(f"{pictures}results.csv and results.jsonl are in {args.output_dir}/")


def shortened(name):
    """A file name for a table: a long one with its middle left out."""
    half = (MAX_NAME - 3) // 2
    return printable(name if len(name) <= MAX_NAME else f"{name[:half]}...{name[-half:]}")


def printable(name):
    """A file name without line breaks and other characters that steer a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)


# ---- Camera and clip


def run_stream(args):
    with ExitStack() as stack:
        stack.enter_context(interrupted_by_a_termination())
        frames = stack.enter_context(Frames(args.camera if args.video is None else args.video))
        window = None if args.output_dir else stack.enter_context(ScreenWindow(WINDOW_TITLE))
        estimator = build_estimator(args, STREAM_MIN_FACE_RATIO)
        tracker = stack.enter_context(FaceTracker(
            estimator, estimator.age_bins, estimator.cfg.TEST.DECODE, wait=not frames.is_camera,
            min_face=estimator.detector.smallest_face(frames.size)))
        summary = StreamSummary(args.threshold)
        stream = annotated_frames(frames, tracker, summary, not args.no_plot,
                                  draw=not args.tables_only)
        try:
            if window:
                show_stream(stream, frames, window)
            else:
                writable_folder(args.output_dir, "--output_dir")
                stack.enter_context(only_writer(args.output_dir, OTHER_OUTPUT))
                with named_full_disk(args.output_dir):
                    write_stream(stream, frames, args)
        except KeyboardInterrupt:
            pass  # the usual end of a camera without a window; everything is closed below
    summary.print()
    print_warning(args.threshold)
    if frames.lost:
        print(f"warning: {frames.lost} frames of {frames.name} could not be read and are left out; "
              "is the file damaged?", file=sys.stderr)
    if frames.has_broken_off:
        print(f"warning: only {frames.seconds:.1f} of {frames.duration:.1f} s of {frames.name} "
              "could be read; is the file damaged or incomplete?", file=sys.stderr)
    if frames.has_stream_ended:
        print(f"warning: the stream {frames.name} ended after {frames.seconds:.1f} s; start again "
              "if it should have gone on", file=sys.stderr)
    return 0


@contextmanager
def interrupted_by_a_termination():
    """Let SIGTERM and a terminal that closes end a stream as Ctrl-C does: with a whole clip."""
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers
              if signal.getsignal(number) == signal.SIG_DFL}  # nohup has it ignored
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def annotated_frames(frames, tracker, summary, plot, draw=True):
    """Yields (annotated PIL.Image, [(track number, Face)]) for each frame.

    Without `draw` there is None in the place of the picture.
    """
    for frame in frames:
        tracked = tracker.update(frame)
        summary.add(tracked)
        yield draw_faces(Image.fromarray(frame), [face for _, face in tracked], plot,
                         [number for number, _ in tracked],
                         summary.threshold) if draw else None, tracked


def show_stream(stream, frames, window):
    """In a window, a clip no faster than its own speed, until ESC or q."""
    rate = FrameRate()
    started = time.perf_counter()
    for picture, _ in stream:
        draw_corner_text(picture, f"{rate.tick():.0f} frames/s")
        window.show(picture)
        early = 0 if frames.is_camera else started + frames.seconds - time.perf_counter()
        if window.key(max(1, round(1000 * early))) in (ESC, ord("q")):
            return


def write_stream(stream, frames, args):
    """Annotated clip, results.csv and results.jsonl."""
    path = args.output_dir / clip_name(frames.stem)
    if not args.tables_only and args.video is not None and "://" not in args.video:
        refuse_overwriting([path], [args.video], "--output_dir")
    claim_files(args.output_dir, [] if args.tables_only else [clip_name(frames.stem)], frames.name)
    started = time.perf_counter()
    with (nullcontext() if args.tables_only else ClipWriter(path, frames.size, frames.fps) as clip,
          ResultFiles(args.output_dir / RESULTS_NAME, args.output_dir / LINES_NAME,
                      with_threshold(VIDEO_FIELDS, args.threshold)) as results):
        for picture, tracked in tqdm(stream, total=frames.count or None, unit="frame"):
            seconds = time.perf_counter() - started if frames.is_camera else frames.seconds
            if clip is not None:
                clip.write(picture, seconds)
            results.write({"file": frames.name, "frame": frames.number, "time_s": seconds}, tracked)
    clip_words = "" if args.tables_only else f"annotated clip {path}, "
    print(f"{clip_words}results.csv and results.jsonl are in {args.output_dir}/")


class StreamSummary:
    """Counts of frames and tracks; for the first tracks their frames and the latest face.

    Args:
        threshold: years, or None, see age_text().
    """

    def __init__(self, threshold=None):
        self.threshold = threshold
        self.started, self.frame_count, self.track_count = time.perf_counter(), 0, 0
        self.tracks = {}

    def add(self, tracked):
        self.frame_count += 1
        for number, face in tracked:
            self.track_count = max(self.track_count, number)
            if number in self.tracks or len(self.tracks) < MAX_TABLE_ROWS:
                seen, _ = self.tracks.get(number, (0, None))
                self.tracks[number] = seen + 1, face

    def print(self):
        seconds = time.perf_counter() - self.started
        print("face  frames  age, 80% interval")
        for number, (seen, face) in self.tracks.items():
            print(f"{'#' + str(number):4}  {seen:6}  {age_text(face, self.threshold)}")
        print(f"frames: {self.frame_count} in {seconds:.1f} s, "
              f"{self.frame_count / seconds:.1f} frames/s; faces: {self.track_count}")


if __name__ == "__main__":
    cli.run_main(main)

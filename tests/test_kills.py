"""Killed in the middle, or two at once: no half file under a final name, and the end is that of one quiet run.

A process is killed (SIGKILL) by itself just before its n-th step that touches the output folder: opening, renaming or
removing a file, making a folder. LIVERSEG_KILL_POINTS sets how many such points are tried for each job, spread from the
first step to the last (10 for the full matrix). Without it each job is killed once: prediction and evaluation halfway,
training and export, which take long, at their most delicate step; `tests/training/test_train.py` compares the weights
of a resumed training in any case.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.processes import Fork

pytestmark = pytest.mark.slow

FULL = "LIVERSEG_KILL_POINTS" in os.environ
POINTS = int(os.environ.get("LIVERSEG_KILL_POINTS", 1))
# Jobs that take long are killed once, just before this file or folder gets its final name, if not FULL.
BEFORE = {"train": "run/checkpoint.npz", "export": "liver/1"}
STEPS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")


# In the process that is killed ---------------------------------------------------------------------------------------


def train(data: Path, model: Path, output: Path) -> None:
    import liverseg_tf as ls

    recipe = ls.Recipe(
        name="tiny",
        image_size=32,
        batch_size=2,
        backbone="tiny",
        epochs=1 + FULL,
        augmentation=False,
        frozen_epochs=0,
    )
    cases = ls.find_cases(data)[:3]
    ls.train(cases, output / "run", recipe, steps_per_epoch=1, xla=False, precision="float32", seed=1, resume=True)


def predict(data: Path, model: Path, output: Path) -> None:
    _command("predict", data, "-o", output / "masks", "--model", model, "--resume", "--probabilities")


def export(data: Path, model: Path, output: Path) -> None:
    _command("export", model, "-o", output / "liver")
    if FULL:
        _command("export", model, "-o", output / "liver", "--format", "tflite")


def evaluate(data: Path, model: Path, output: Path) -> None:
    files = ("-o", output / "scores.json", "--csv", output / "cases.csv", "--figure", output / "scores.png")
    _command("evaluate", "--truth", data, "--prediction", data, "--resamples", 20, *files)


def _command(*words) -> None:
    from liverseg_tf.cli.main import main

    assert main([str(word) for word in words]) == 0


JOBS = {job.__name__: job for job in (train, predict, export, evaluate)}


def nursery(name: str, data: str, model: str, folder: str, points: int) -> None:
    """Run a job whole and counted, then killed at each point and once more; without points, killed before `BEFORE`.

    Forks, so that imports are paid for once.

    Nothing of TensorFlow runs in this process itself, so forking it is safe.
    """
    import matplotlib.figure  # noqa: F401

    import liverseg_tf.evaluation.evaluate  # noqa: F401

    if name in ("train", "export"):
        import liverseg_tf.exporting.export
        import liverseg_tf.training.train
    elif name == "predict":
        import liverseg_tf.inference.jobs  # noqa: F401

    count_file = Path(folder, "count")

    def start(output: Path, kill_at: int | str = 0) -> int:
        """Start the job in a child; it notes down how many steps there were.

        It is killed before a step, counted from 1, or before a file gets its final name.
        """
        child = os.fork()
        if child == 0:
            steps = 0

            def watch(event, arguments):
                nonlocal steps
                if event in STEPS and str(output) in str(arguments[0]) and not _reads(event, arguments):
                    steps += 1
                    renamed = event == "os.rename" and str(arguments[1]) == str(output / str(kill_at))
                    if steps == kill_at or renamed:
                        os.kill(os.getpid(), signal.SIGKILL)

            try:
                sys.addaudithook(watch)
                JOBS[name](Path(data), Path(model), output)
                count_file.write_text(str(steps))
                os._exit(0)
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(1)
        return child

    def end(child: int) -> int:
        """Exit status."""
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def kill_and_finish(point: int | str, of: int | None = None) -> None:
        number = point if of else 0
        output, left = (Path(folder, f"{what}-{number}") for what in ("killed", "left"))
        killed = end(start(output, point))
        shutil.copytree(output, left) if output.exists() else left.mkdir()
        again = end(start(output))
        print(json.dumps({"point": number, "of": of, "killed": killed, "again": again}), flush=True)  # noqa: T201

    if not points:
        return kill_and_finish(BEFORE[name])
    assert end(start(Path(folder, "whole"))) == 0, "the job fails by itself"
    steps = int(count_file.read_text())
    if name == "predict":
        children = [start(Path(folder, "both")) for _ in range(2)]
        print(json.dumps({"both": [end(child) for child in children]}), flush=True)  # noqa: T201
    for point in sorted(set(np.linspace(1, steps, points + 2).round().astype(int)[1:-1].tolist())):
        kill_and_finish(point, steps)
    return None


def _reads(event, arguments) -> bool:
    return event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)


# In the test's process -----------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, object]:
    """What a reader makes of each file that has a final name; fails for half a file."""
    from liverseg_tf.data.volume import CTVolume, MaskVolume

    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if any(part.startswith(".") for part in Path(name).parts):
            continue
        if path.suffix == ".json":
            found[name] = _timeless(json.loads(path.read_text()))
        elif path.suffix == ".jsonl":
            found[name] = [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.suffix == ".csv":
            with path.open() as file:
                found[name] = [sorted(_timeless(row).items()) for row in csv.DictReader(file)]
        elif path.suffix == ".png":
            assert path.read_bytes().endswith(b"IEND\xaeB`\x82")
            found[name] = "picture"
        elif path.suffix in (".keras", ".npz"):
            with zipfile.ZipFile(path) as archive:
                assert archive.testzip() is None
            found[name] = "archive"
        elif "_liver" in name or "_tumour" in name:
            found[name] = CTVolume.load(path, hu_range=None).hu.tobytes()
        elif name.endswith(".nii.gz"):
            found[name] = MaskVolume.load(path).labels.tobytes()
        else:
            found[name] = "of a model"
    return found


def _timeless(value):
    """Without what differs from run to run."""
    if isinstance(value, dict):
        dropped = ("seconds", "first_step_seconds", "output", "input", "command", "created", "sha256", "digest")
        dropped += ("prediction",)
        return {k: _timeless(v) for k, v in value.items() if k not in dropped and not k.startswith("date")}
    if isinstance(value, list):
        return [_timeless(v) for v in value]
    return value


@pytest.mark.filterwarnings("ignore::liverseg_tf.errors.LiverSegWarning")
@pytest.mark.parametrize("job", JOBS)
def test_killed_jobs_leave_whole_files_and_the_next_run_finishes(
    job, phantom_folder, small_model_file, tflite_file, tmp_path
):
    data = tmp_path / "data"
    data.mkdir()
    for number in (0, 1, 2):
        for kind in ("volume", "segmentation"):
            shutil.copy(phantom_folder / f"{kind}-{number}.nii.gz", data)
    once = not FULL and job in BEFORE
    model = tflite_file if job == "predict" else small_model_file  # of a model that is soon open
    arguments = (job, str(data), str(model), str(tmp_path), 0 if once else POINTS)
    result = Fork(nursery, *arguments, environment={"CUDA_VISIBLE_DEVICES": ""}).end(300 + 300 * POINTS)
    assert result.status == 0, result.errors[-3000:]
    rows = [json.loads(line) for line in result.output.splitlines() if line.startswith("{")]
    if once:
        (row,) = rows
        assert (row["killed"], row["again"]) == (-signal.SIGKILL, 0), result.errors[-3000:]
        left, finished = contents(tmp_path / "left-0"), contents(tmp_path / "killed-0")
        assert BEFORE[job] not in left
        if job == "export":
            assert not left
            assert "liver/1/saved_model.pb" in finished
        else:
            assert set(left) == {"run/run.json", "run/model.keras"}
            assert set(finished) == {*left, "run/history.csv", "run/curves.png"}
            assert finished["run/run.json"]["finished"] is True
        return
    whole = contents(tmp_path / "whole")
    assert whole
    if job == "predict":  # two processes that write into one folder
        assert rows.pop(0) == {"both": [0, 0]}, result.errors[-3000:]
        assert contents(tmp_path / "both") == whole
        assert not [p for p in (tmp_path / "both").rglob("*") if p.name.startswith(".")]
    assert len(rows) >= min(POINTS, 1)
    for row in rows:
        assert (row["killed"], row["again"]) == (-signal.SIGKILL, 0), f"{row}\n{result.errors[-3000:]}"
        left = contents(tmp_path / f"left-{row['point']}")
        assert set(left) <= set(whole) | {"run/checkpoint.npz"}
        finished = contents(tmp_path / f"killed-{row['point']}")
        if job == "export":  # a version that was complete stays, and the next run makes another
            assert any(name.endswith("saved_model.pb") for name in finished)
            _runs(tmp_path / f"killed-{row['point']}" / "liver")
            continue
        assert set(finished) == set(whole)
        for name, value in whole.items():
            if job == "train" and name.endswith("run.json"):
                value, finished[name] = value["history"], finished[name]["history"]
            assert finished[name] == value, f"point {row['point']}: {name} differs"
        if job == "train":
            from liverseg_tf.models.saving import load_model

            ends = [load_model(tmp_path / where / "run").get_weights() for where in ("whole", f"killed-{row['point']}")]
            assert all(np.array_equal(a, b) for a, b in zip(*ends, strict=True))


def _runs(folder: Path) -> None:
    from liverseg_tf.inference.runtimes import open_runtime

    hu = np.random.default_rng(0).normal(0, 200, (1, 40, 36)).astype(np.float32)
    labels = [open_runtime(path).labels(hu) for path in (folder, next(folder.glob("*.tflite")))]
    assert (labels[0] == labels[1]).mean() > 0.99

"""Figures: what they show, and that they touch no global state."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from liverseg_tf.data.volume import CTVolume
from liverseg_tf.drawing import save_figure
from liverseg_tf.errors import ConfigError, GeometryError, LabelError, OutputError
from liverseg_tf.labels import CLASSES, color_mask
from liverseg_tf.reporting import figures


@pytest.fixture(scope="module")
def volume() -> CTVolume:
    hu = np.random.default_rng(0).normal(40, 60, (40, 32, 6)).astype(np.int16)
    return CTVolume.from_array(hu, spacing_mm=(1.0, 2.0, 5.0))


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    mask = np.zeros((40, 32, 6), np.uint8)
    mask[8:30, 4:20, 1:5] = 1
    mask[12:18, 8:14, 3] = 2
    return mask


def pixels(figure: Figure) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]


def has_color(image: np.ndarray, color: tuple[int, int, int]) -> bool:
    return bool((np.abs(image.astype(int) - color).max(axis=-1) <= 2).sum() > 20)


def test_sample_shows_the_slice_with_most_tumour_in_the_class_colors(volume, labels):
    figure = figures.sample_figure(volume, labels, safe_colors=False)
    assert "slice 4 of 6" in figure.axes[0].get_xlabel()
    image = pixels(figure)
    assert all(has_color(image, c.color) for c in CLASSES)
    assert not has_color(image, (230, 159, 0))


def test_safe_colors_replace_the_class_colors(volume, labels):
    image = pixels(figures.sample_figure(volume, labels))
    assert all(has_color(image, c.safe_color) for c in CLASSES)
    assert not has_color(image, CLASSES[2].color)


def test_pixels_have_the_shape_that_spacing_gives_them(volume, labels):
    figure = figures.sample_figure(volume, labels)
    figure.canvas.draw()
    box = figure.axes[1].get_window_extent()
    # 40 rows of 1 mm over 32 columns of 2 mm
    assert box.height / box.width == pytest.approx(40 / 64, rel=0.02)


def test_the_patients_right_is_on_the_left_and_anterior_up(volume):
    hu = np.full((40, 32, 1), -1000, np.int16)
    hu[:10, :8] = 1000  # anterior right
    figure = figures.sample_figure(CTVolume.from_array(hu, (1, 1, 1)))
    letters = {t.get_text(): t.get_position() for t in figure.axes[0].texts}
    assert letters["R"][0] < letters["L"][0] and letters["A"][1] > letters["P"][1]
    figure.canvas.draw()
    box = figure.axes[0].get_window_extent()
    image = pixels(figure)[::-1]  # window coordinates count from below

    def gray(x, y):
        return image[int(box.y0 + y * box.height), int(box.x0 + x * box.width)].mean()

    assert gray(0.1, 0.9) > 250 and gray(0.9, 0.1) < 5


def test_channels_are_drawn_over_their_histograms(volume):
    figure = figures.channels_figure(volume.hu[..., 0], spacing_mm=volume.spacing_mm)
    assert len(figure.axes) == 8
    assert "histogram-scaled" in figure.axes[3].get_title()
    after = np.array([bar.get_height() for bar in figure.axes[7].patches])
    before = np.array([bar.get_height() for bar in figure.axes[4].patches])
    assert after.std() / after.mean() < before.std() / before.mean() / 2  # scaled to be flat


def test_batch_names_what_each_slice_shows(labels):
    planes = np.moveaxis(labels, 2, 0)[:4, :32]
    figure = figures.batch_figure(np.random.default_rng(0).random((4, 32, 32, 3)), planes, columns=2)
    assert [a.get_title() for a in figure.axes[1::2]] == [
        "neither",
        "liver",
        "liver",
        "liver, tumour",
    ]


def test_prediction_writes_dice_and_iou(volume, labels):
    truth, shifted = labels[..., 3], np.roll(labels[..., 3], 6, axis=0)
    figure = figures.prediction_figure(volume.hu[..., 3], truth, shifted)
    title = figure.axes[2].get_title()
    assert "liver: Dice 0.727, IoU 0.571" in title  # 16 of 22 rows are shared
    assert "tumour: Dice 0.000, IoU 0.000" in title


def test_prediction_gives_a_dash_where_there_is_nothing_to_compare(volume, labels):
    empty = np.zeros_like(labels[..., 0])
    title = figures.prediction_figure(volume.hu[..., 0], empty, empty).axes[2].get_title()
    assert "liver: \N{EN DASH}" in title


def test_history_draws_every_figure_and_leaves_gaps():
    rows = [
        {
            "epoch": i,
            "loss": 1 / i,
            "val_loss": 2 / i,
            "accuracy": 0.5,
            "lr": 1e-3,
            "seconds": 3,
        }
        for i in (1, 2, 3)
    ]
    del rows[1]["val_loss"]
    figure = figures.history_figure(rows)
    assert [a.get_title() for a in figure.axes] == ["loss", "score", "learning rate"]
    curves = {line.get_label(): line.get_ydata() for a in figure.axes for line in a.lines}
    assert set(curves) == {"training", "validation", "accuracy", "learning rate"}
    assert np.isnan(curves["validation"][1]) and curves["validation"][2] == pytest.approx(2 / 3)


def test_history_of_a_training_shows_the_dice_of_liver_and_tumour_alone():
    row = {"epoch": 1, "loss": 1.0, "val_loss": 1.1, "learning_rate": 1e-3, "val_accuracy": 0.9, "accuracy": 0.9}
    row |= {"val_case_liver_dice": 0.8, "val_case_tumour_dice": 0.4, "seconds": 400.0, "first_step_seconds": 20.0}
    figure = figures.history_figure([row, {**row, "epoch": 2, "val_case_tumour_dice": 0.5}])
    assert [a.get_title() for a in figure.axes] == ["loss", "validation Dice", "learning rate"]
    labels = [[line.get_label() for line in a.lines] for a in figure.axes]
    assert labels == [["training", "validation"], ["liver", "tumour"], ["learning rate"]]
    assert figure.axes[1].lines[1].get_ydata().tolist() == [0.4, 0.5]
    smallest = min(
        t.get_fontsize()
        for a in figure.axes
        for t in (a.title, *a.get_xticklabels(), *a.get_legend_handles_labels()[0])
        if hasattr(t, "get_fontsize")
    )
    pixels_at_800 = smallest / 72 * 800 / figure.get_size_inches()[0]
    assert pixels_at_800 >= 12


def test_history_without_figures_is_an_error():
    with pytest.raises(ConfigError, match="got none"):
        figures.history_figure([{"epoch": 1}])


def test_learning_rate_marks_the_suggestion():
    axis = figures.learning_rate_figure([1e-4, 1e-3, 1e-2], [1, 0.5, 3], 1e-3).axes[0]
    assert axis.lines[1].get_xdata()[0] == 1e-3
    assert (axis.lines[2].get_xdata()[0], axis.lines[2].get_ydata()[0]) == (1e-3, 0.5)
    assert axis.texts[0].get_text() == "suggested 0.001"
    assert "still falls" not in axis.get_title()
    assert "still falls" in figures.learning_rate_figure([1e-4, 1e-3, 1e-2], [1, 0.5, 0.3], 1e-3).axes[0].get_title()


@pytest.mark.parametrize(
    "counts",
    [{"background": 6, "liver": 3, "tumour": 1}, np.array([0] * 6 + [1] * 3 + [2])],
)
def test_counts_are_written_on_the_bars(counts):
    texts = [t.get_text() for t in figures.counts_figure(counts).axes[0].texts]
    assert texts == ["6 (60.00 %)", "3 (30.00 %)", "1 (10.00 %)"]


def test_wrong_shapes_are_named(volume, labels):
    with pytest.raises(GeometryError, match=r"\(40, 32, 6\), got \(2, 2, 2\)"):
        figures.sample_figure(volume, np.zeros((2, 2, 2)))
    with pytest.raises(GeometryError, match="slice from 0 to 5, got 6"):
        figures.sample_figure(volume, labels, slice_index=6)
    with pytest.raises(GeometryError, match="batch_figure"):
        figures.batch_figure(np.zeros((2, 8, 8, 3)), np.zeros((3, 8, 8)))
    with pytest.raises(GeometryError, match="prediction_figure"):
        figures.prediction_figure(np.zeros((8, 8)), np.zeros((8, 8)), np.zeros((8, 9)))
    with pytest.raises(GeometryError, match="one slice"):
        figures.channels_figure(volume.hu)


@pytest.mark.parametrize("wrong", [3, 255, -1, 0.5])
def test_labels_that_are_no_class_are_named(volume, labels, wrong):
    bad = np.where(labels == 2, wrong, labels.astype(np.float32 if isinstance(wrong, float) else np.int16))
    plane = bad[..., 3]
    for draw in (
        lambda: figures.sample_figure(volume, bad),
        lambda: figures.batch_figure(np.zeros((1, *plane.shape, 3)), plane[None]),
        lambda: figures.prediction_figure(np.zeros(plane.shape), plane, labels[..., 3]),
        lambda: figures.counts_figure(bad),
        lambda: color_mask(plane),
    ):
        with pytest.raises(LabelError, match="expected labels 0 background, 1 liver, 2 tumour"):
            draw()


def test_no_pictures_at_all_are_an_error():
    for options in ({"columns": 0}, {"limit": 0}):
        with pytest.raises(ConfigError, match="at least 1"):
            figures.batch_figure(np.zeros((1, 8, 8, 3)), np.zeros((1, 8, 8), np.uint8), **options)


def test_a_saved_figure_is_whole_and_a_failed_one_leaves_nothing(volume, tmp_path):
    figure = figures.sample_figure(volume)
    save_figure(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().endswith(b"IEND\xaeB`\x82")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        save_figure(figure, tmp_path / "file" / "b.png")
    assert sorted(p.name for p in tmp_path.glob("[!.]*")) == ["a.png", "file"]


@pytest.mark.slow
def test_figures_leave_pyplot_alone():
    import subprocess

    code = (
        "import sys, numpy as np; from liverseg_tf.reporting.figures import counts_figure;"
        "counts_figure(np.zeros(3, int)).canvas.draw(); sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

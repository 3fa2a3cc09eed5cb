import pytest

from liverseg_tf.errors import ConfigError
from liverseg_tf.windows import WINDOWS, resolve_window, window_bounds, window_name


def test_there_are_the_originals_twelve_windows():
    assert len(WINDOWS) == 12
    assert WINDOWS["liver"] == (150, 30)
    assert window_bounds("liver") == (-45, 105)
    assert window_bounds("custom") == (-40, 160)
    assert window_bounds((375, 40)) == (-147, 227)  # an odd width loses half a unit below, as fastai's does


@pytest.mark.parametrize("bad", ["spleen", (0, 40), (1, 40), (1.9, 40), (float("nan"), 0), (1,), 7])
def test_a_bad_window_is_told(bad):
    with pytest.raises(ConfigError):
        resolve_window(bad)


def test_numbers_of_a_preset_have_its_name():
    assert [window_name(w) for w in (*WINDOWS.values(), (150.0, 31), (99.5, -3))] == [*WINDOWS, "150/31", "99.5/-3"]

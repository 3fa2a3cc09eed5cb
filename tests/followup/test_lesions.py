"""Lesions are linked by where they are, and the confidence says how sure that is."""

import numpy as np

from liverseg_tf.followup.lesions import Cloud, find_fragments, link_lesions


def ball(center, radius, step=1.0):
    grid = np.stack(np.meshgrid(*[np.arange(-radius, radius + step, step)] * 3, indexing="ij"), -1).reshape(-1, 3)
    points = grid[(grid**2).sum(axis=1) <= radius**2] + center
    return Cloud.of(points, len(points) * step**3 / 1000, step / 2)


def pairs(before, now, error_mm=1.0):
    return [(link.before, link.now) for link in link_lesions(before, now, error_mm)]


def test_kept_new_and_vanished():
    before = [ball((0, 0, 0), 10), ball((60, 0, 0), 6)]
    now = [ball((0, 60, 0), 6), ball((1, 1, 0), 14)]
    assert pairs(before, now) == [(0, 1)]
    assert pairs([], now) == [] and pairs(before, []) == []


def test_what_grew_and_what_shrank_within_itself_is_the_same():
    assert pairs([ball((0, 0, 0), 4)], [ball((3, 0, 0), 20)]) == [(0, 0)]
    assert pairs([ball((0, 0, 0), 20)], [ball((10, 0, 0), 4)]) == [(0, 0)]


def test_a_split_and_a_merger():
    parts = [ball((-8, 0, 0), 6), ball((8, 0, 0), 6)]
    assert pairs([ball((0, 0, 0), 15)], parts) == [(0, 0), (0, 1)]
    assert pairs(parts, [ball((0, 0, 0), 15)]) == [(0, 0), (1, 0)]


def test_neighbours_are_not_mixed_up_and_doubt_is_told():
    before = [ball((0, 0, 0), 4), ball((12, 0, 0), 4)]
    now = [ball((13, 0, 0), 4), ball((1, 0, 0), 4)]
    assert pairs(before, now) == [(0, 1), (1, 0)]
    sure = [link.confidence for link in link_lesions(before, now, 0.5)]
    unsure = [link.confidence for link in link_lesions(before, now, 8.0)]
    assert min(sure) == 1.0 and max(unsure) < 0.9


def test_a_new_lesion_beside_an_old_one_is_no_fragment():
    assert pairs([ball((0, 0, 0), 12)], [ball((0, 0, 0), 12), ball((18, 0, 0), 5)]) == [(0, 0)]


def test_specks_beside_a_lesion_are_its_own_but_lesions_are_not():
    numbered = np.zeros((30, 30, 12), int)
    numbered[5:12, 5:12, 3:8] = 1
    numbered[13, 8, 5] = 2  # one voxel between
    numbered[12, 12, 8] = 3  # touches at a corner
    numbered[8, 8, 9] = 4  # a slice between
    numbered[15, 8, 5] = 5  # beside a speck, but not beside the lesion
    numbered[14:16, 3:5, 4:6] = 6  # of 8 voxels
    assert find_fragments(numbered) == {2: 1, 3: 1}
    assert find_fragments(np.zeros((0, 0, 0), np.int32)) == {}
    numbered[12:19, 14:20, 5] = 7
    numbered[13, 8, 5] = 0
    assert find_fragments(numbered) == {3: 1}

"""Metrics add up, leave out undefined numbers, and refuse impossible arguments."""

import math

import numpy as np
import pytest
import scipy.stats as stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vitlab.metrics import depth, detection, disparity, ranking, regression, restoration, segmentation

RNG = np.random.default_rng(0)


def test_counts_of_parts_add_up_to_those_of_the_whole():
    prediction, label = RNG.integers(0, 5, (2, 8, 9, 10)).astype(np.uint8)
    label[0, 0] = segmentation.VOID
    whole = segmentation.pixel_counts(prediction, label, num_classes=5)
    parts = [segmentation.pixel_counts(p, x, num_classes=5) for p, x in zip(prediction, label, strict=True)]
    np.testing.assert_array_equal(sum(parts), whole)


def test_a_class_that_is_only_predicted_has_an_iou_of_zero_and_one_that_is_absent_none():
    counts = segmentation.pixel_counts(np.array([0, 0, 1]), np.array([0, 0, 0]), num_classes=3)
    assert segmentation.segmentation_scores(counts) == pytest.approx(
        {"pixel_accuracy": 2 / 3, "mean_iou": (2 / 3 + 0) / 2, "mean_accuracy": 2 / 3, "mean_dice": (4 / 5 + 0) / 2}
    )


def test_nothing_but_void_has_no_score():
    void = np.full((4, 4), segmentation.VOID)
    assert segmentation.segmentation_scores(segmentation.pixel_counts(np.zeros((4, 4), int), void, num_classes=2)) == {}


@pytest.mark.parametrize("label", [7, -1])
def test_a_label_that_is_no_class_is_refused(label):
    with pytest.raises(ValueError, match="must be in"):
        segmentation.pixel_counts(np.zeros(3, int), np.array([0, label, 1]), num_classes=3)


def test_a_constant_side_has_no_correlation_and_a_zero_target_no_relative_error():
    assert regression.correlations(np.ones(5), np.arange(5.0)) == {}
    assert set(regression.errors(np.arange(3.0), np.zeros(3))) == {"mae", "rmse"}
    assert regression.errors(np.zeros(0), np.zeros(0)) == {}
    with pytest.raises(ValueError, match="finite"):
        regression.errors(np.array([np.nan]), np.zeros(1))


@given(arrays(np.float64, st.tuples(st.just(2), st.integers(2, 30)), elements=st.integers(-3, 3).map(float)))
def test_rank_correlations_are_those_of_scipy(numbers):
    x, y = numbers
    ours = regression.correlations(x, y)
    if len(set(x)) > 1 and len(set(y)) > 1:
        expected = {"srcc": stats.spearmanr(x, y)[0], "krcc": stats.kendalltau(x, y)[0]}
        assert {name: ours[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    else:
        assert ours == {}


def test_equal_images_are_infinitely_near_and_ssim_is_that_of_scikit_image():
    skimage = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed (extra `dev`)")
    a, b = RNG.integers(0, 256, (2, 40, 50, 3)).astype(np.uint8)
    assert restoration.image_quality(a, a) == {"psnr": math.inf, "ssim": 1.0}
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255, "channel_axis": -1}
    _, maps = skimage.structural_similarity(a.astype(float), b.astype(float), full=True, **options)
    assert restoration.image_quality(a, b)["ssim"] == pytest.approx(maps[5:-5, 5:-5].mean(), abs=1e-9)
    with pytest.raises(ValueError, match="at least 11"):
        restoration.image_quality(a, b, border=16)


def test_depth_of_hand_made_pixels():
    valid = np.array([True, True, False])
    record = depth.depth_record(np.array([1.0, 3.0, -1.0]), np.array([2.0, 3.0, 0.0]), valid)
    assert record["abs_rel"] == 0.25 and record["delta1"] == 0.5 and record["delta3"] == 0.5
    assert record["rmse"] == pytest.approx(math.sqrt(0.5)) and record["rmse_log"] == pytest.approx(math.log(2) / math.sqrt(2))
    assert depth.depth_record(np.ones(2), np.ones(2), np.zeros(2, bool)) == {}
    with pytest.raises(ValueError, match="above zero"):
        depth.depth_record(np.zeros(1), np.ones(1), np.ones(1, bool))


def test_sums_of_disparities_add_up():
    x, y = RNG.normal(size=(2, 3, 5, 6)) * 5
    valid = RNG.random((3, 5, 6)) > 0.3
    whole = disparity.disparity_sums(x, y, valid)
    parts = [disparity.disparity_sums(*image) for image in zip(x, y, valid, strict=True)]
    assert {name: sum(part[name] for part in parts) for name in whole} == pytest.approx(whole)
    assert disparity.disparity_scores(disparity.disparity_sums(x, y, np.zeros_like(valid))) == {}


def test_average_precision_is_that_of_scikit_learn_with_ties():
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed (extra `dev`)")
    scores, labels = RNG.integers(0, 6, (50, 4)) / 5, RNG.random((50, 4)) < 0.3
    labels[:, 3] = False
    ours = ranking.average_precisions(scores, labels)
    assert ours[:3] == pytest.approx([metrics.average_precision_score(labels[:, i], scores[:, i]) for i in range(3)])
    assert np.isnan(ours[3])
    assert ranking.mean_average_precision(scores, labels) == {"map": pytest.approx(ours[:3].mean())}
    assert ranking.mean_average_precision(scores, np.zeros_like(labels)) == {}


def test_recall_looks_at_the_nearest_and_leaves_out_queries_without_a_match():
    gallery = np.eye(3)
    query = np.array([[1.0, 0.5, 0.0], [0.0, 0.2, 1.0], [1.0, 1.0, 1.0]])
    matches = np.array([[True, False, False], [False, True, False], [False, False, False]])
    assert ranking.recalls(query, gallery, matches=matches, at=(1, 2, 10)) == {"recall_at_1": 0.5, "recall_at_2": 1.0}
    assert ranking.recalls(query, gallery, matches=np.zeros((3, 3), bool)) == {}


def test_a_rank_counts_equal_logits_of_lower_classes():
    np.testing.assert_array_equal(ranking.ranks(np.array([[1.0, 2.0, 2.0], [3.0, 1.0, 0.0]]), np.array([2, 0])), [1, 0])


def test_detection_without_annotations_has_no_score_and_without_detections_a_score_of_zero():
    pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed (extra `detection`)")
    none = detection.Found(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))
    nothing = detection.Truth(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0), np.zeros(0, bool))
    one = detection.Truth(np.array([[1.0, 2.0, 30.0, 40.0]]), np.array([0]), np.array([1200.0]), np.array([False]))
    assert detection.coco_scores([nothing], [none], num_classes=2) == {}
    assert detection.coco_scores([one], [none], num_classes=2)["ap"] == 0
    found = detection.Found(one.boxes, one.classes, np.array([0.9]))
    assert detection.coco_scores([one, nothing], [found, none], num_classes=2)["ap"] == 1
    with pytest.raises(ValueError, match="images"):
        detection.coco_scores([one], [], num_classes=2)

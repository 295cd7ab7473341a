"""Metrics against recordings of mmsegmentation, BasicSR, pycocotools and scipy."""

import json

import numpy as np
import pytest

from vitlab.metrics import detection, disparity, regression, restoration, segmentation

EXACT = 1e-12  # counts are integers, and few divisions follow
CORRELATION = 1e-9
FLOAT32_LUMA = 1e-6  # Y is float32 in BasicSR
FLOAT32_FLOW = 1e-7  # the recording subtracts flow vectors in float32


@pytest.fixture
def recorded(golden_file):
    with np.load(golden_file) as file:
        yield json.loads(str(file["meta"])), {name: file[name] for name in file.files if name != "meta"}


@pytest.mark.goldens("metrics_seg")
def test_segmentation_counts_and_scores_as_mmsegmentation(recorded):
    meta, arrays = recorded
    counts = segmentation.pixel_counts(arrays["pred"], arrays["label"], num_classes=meta["num_classes"])
    both, predicted, labelled = counts
    np.testing.assert_array_equal(np.stack([both, predicted + labelled - both, predicted, labelled]), arrays["areas"])
    classes, means = segmentation.class_scores(counts), segmentation.segmentation_scores(counts)
    for ours, theirs in {"iou": "mIoU/IoU", "accuracy": "mIoU/Acc", "dice": "mDice/Dice", "precision": "mFscore/Precision"}.items():
        np.testing.assert_allclose(classes[ours], arrays[theirs], rtol=EXACT)
    rounded = {"aAcc": "pixel_accuracy", "mIoU": "mean_iou", "mAcc": "mean_accuracy"}
    assert {theirs: round(100 * means[ours], 2) for theirs, ours in rounded.items()} == meta["summary"]


@pytest.mark.goldens("metrics_image")
def test_psnr_and_ssim_as_basicsr(recorded):
    meta, arrays = recorded
    target, restored = (arrays[x][..., ::-1] for x in "ab")  # the images were recorded as BGR
    for border in (0, 2, 4):
        for kind in ("rgb", "y"):
            ours = restoration.image_quality(restored, target, border=border, luma=kind == "y")
            for metric in ("psnr", "ssim"):
                assert ours[metric] == pytest.approx(meta["values"][f"{metric}/{kind}_{border}"], rel=FLOAT32_LUMA), (kind, border)


@pytest.mark.goldens("metrics_misc")
def test_errors_and_correlations_as_scipy(recorded):
    meta, arrays = recorded
    values = meta["values"]
    counting = regression.errors(arrays["count_pred"], arrays["count_gt"])
    assert counting == pytest.approx({name: values[name] for name in ("mae", "rmse", "mape", "r2")}, rel=CORRELATION)
    quality = regression.correlations(arrays["quality"], arrays["mos"])
    assert quality == pytest.approx({name: values[name] for name in ("plcc", "srcc", "krcc")}, rel=CORRELATION)


@pytest.mark.goldens("metrics_misc")
def test_stereo_and_flow_by_their_definitions(recorded):
    meta, arrays = recorded
    values = meta["values"]
    stereo = disparity.disparity_scores(disparity.disparity_sums(arrays["disp_pred"], arrays["disp"], arrays["disp_valid"]))
    expected = {name: values[name] for name in ("epe", "bad1", "bad2", "bad3", "bad4", "d1")} | {"rms": values["rms_disp"]}
    assert stereo == pytest.approx(expected, rel=CORRELATION)
    flow, flow_pred = (np.moveaxis(arrays[name], 1, -1) for name in ("flow", "flow_pred"))
    ours = disparity.flow_scores(disparity.flow_sums(flow_pred, flow, np.ones(flow.shape[:-1], bool)))
    expected = {"epe": values["flow_epe"], "fl": values["flow_fl"]} | {f"{x}px": values[f"flow_{x}px"] for x in (1, 3, 5)}
    assert ours == pytest.approx(expected, rel=FLOAT32_FLOW)


@pytest.mark.goldens("metrics_coco")
def test_average_precision_as_pycocotools(recorded):
    pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed (extra `detection`)")
    meta, arrays = recorded
    truths, found = arrays["gt"], arrays["det"]
    images = np.unique(np.concatenate([truths[:, 0], found[:, 0]]))
    ours = detection.coco_scores(
        [detection.Truth(x[:, 2:6], x[:, 1].astype(int) - 1, x[:, 6], x[:, 7] == 1) for x in (truths[truths[:, 0] == i] for i in images)],
        [detection.Found(x[:, 2:6], x[:, 1].astype(int) - 1, x[:, 6]) for x in (found[found[:, 0] == i] for i in images)],
        num_classes=meta["categories"],
    )
    np.testing.assert_allclose([ours.get(name, -1) for name in detection.NAMES], arrays["stats"], atol=EXACT)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitlab.config import DistillationConfig, LossConfig
from vitlab.losses import LOSSES, class_weights, cross_entropy, distilled_loss, label_loss, sigmoid_cross_entropy, soft_targets

LOGITS, LABELS = jnp.array([[2.0, 0.0, -1.0]]), jnp.array([1])


def test_label_smoothing_spreads_its_share_over_all_classes():
    log_probs = np.log(np.exp([2.0, 0, -1]) / np.exp([2.0, 0, -1]).sum())
    expected = -(0.7 * log_probs[1] + 0.3 * log_probs.mean())
    loss = LOSSES["softmax"](LOGITS, soft_targets(LABELS, 3, label_smoothing=0.3))
    np.testing.assert_allclose(loss, [expected], rtol=1e-6)
    np.testing.assert_allclose(cross_entropy(LOGITS, LABELS), [-log_probs[1]], rtol=1e-6)


def test_the_sigmoid_loss_is_the_mean_over_classes_of_the_binary_one():
    p = 1 / (1 + np.exp([-2.0, 0, 1]))
    expected = -np.mean([np.log(1 - p[0]), np.log(p[1]), np.log(1 - p[2])])
    np.testing.assert_allclose(sigmoid_cross_entropy(LOGITS, soft_targets(LABELS, 3)), [expected], rtol=1e-6)


CLASS_HEAD, DISTILLATION_HEAD = np.array([[2.0, 0, -1], [0.5, 1, 0]]), np.array([[0.0, 1, 3], [-1, 2, 0.3]])
TEACHER, TARGETS = np.array([[0.1, 2, -2], [3, 0, 1.0]]), np.array([[0.0, 1, 0], [0.2, 0, 0.8]])


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def distilled(heads, **options):
    arrays = [jnp.asarray(x, jnp.float32) for x in (TARGETS, TEACHER)]
    config = LossConfig(distillation=DistillationConfig(**options))
    return distilled_loss([jnp.asarray(x, jnp.float32) for x in heads], *arrays, config)


@pytest.mark.parametrize("heads", [(CLASS_HEAD,), (CLASS_HEAD, DISTILLATION_HEAD)])
def test_soft_distillation_is_the_divergence_from_the_teacher_at_that_temperature_over_the_classes(heads):
    log_p, log_q = log_softmax(TEACHER / 3), log_softmax(heads[-1] / 3)
    divergence = 3**2 * (np.exp(log_p) * (log_p - log_q)).sum(-1) / 3
    expected = 0.9 * -(TARGETS * log_softmax(heads[0])).sum(-1) + 0.1 * divergence
    np.testing.assert_allclose(distilled(heads, kind="soft", alpha=0.1, temperature=3.0), expected, rtol=1e-6)


@pytest.mark.parametrize("heads", [(CLASS_HEAD,), (CLASS_HEAD, DISTILLATION_HEAD)])
def test_hard_distillation_takes_the_teachers_likeliest_class_for_the_label(heads):
    log_q = log_softmax(heads[-1])
    expected = 0.7 * -(TARGETS * log_softmax(heads[0])).sum(-1) - 0.3 * np.array([log_q[0, 1], log_q[1, 0]])
    np.testing.assert_allclose(distilled(heads, kind="hard", alpha=0.3, temperature=3.0), expected, rtol=1e-6)


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_no_gradient_flows_to_the_teacher_and_one_does_to_the_student(kind):
    config = LossConfig(distillation=DistillationConfig(kind=kind, alpha=1.0))
    logits, teacher = jnp.asarray(CLASS_HEAD), jnp.asarray(TEACHER)
    to_student, to_teacher = jax.grad(lambda x, y: distilled_loss([x], jnp.asarray(TARGETS), y, config).sum(), argnums=(0, 1))(
        logits, teacher
    )
    assert np.abs(to_student).min() > 0 and not np.any(to_teacher)


def test_class_weights_follow_the_counts_and_are_one_on_average():
    counts = np.array([1, 3, 0])
    np.testing.assert_allclose(class_weights("inverse", counts), [2, 2 / 3, 1], rtol=1e-6)
    np.testing.assert_allclose(class_weights("inverse_sqrt", counts), [4 / (1 + 3**0.5), 4 / (3 + 3**0.5), 1], rtol=1e-6)
    for kind in ("inverse", "inverse_sqrt"):
        many = np.array([5, 70, 900])
        np.testing.assert_allclose((class_weights(kind, many) * many).sum(), many.sum(), rtol=1e-5)


def test_an_image_mixed_of_two_classes_has_the_weight_of_each_share():
    weights = np.array([2.0, 0.5, 1.0], np.float32)
    log_p = log_softmax(np.array([[2.0, 0.0, -1.0]]))[0]
    mixed = jnp.array([[0.3, 0.0, 0.7]])
    np.testing.assert_allclose(label_loss(LOGITS, mixed, "softmax", weights), [-(0.3 * 2 * log_p[0] + 0.7 * log_p[2])], rtol=1e-6)
    plain = sigmoid_cross_entropy(LOGITS, mixed)
    np.testing.assert_allclose(label_loss(LOGITS, mixed, "sigmoid", weights), plain * (0.3 * 2 + 0.7), rtol=1e-6)
    for kind in ("softmax", "sigmoid"):
        np.testing.assert_allclose(label_loss(LOGITS, mixed, kind, np.ones(3, np.float32)), label_loss(LOGITS, mixed, kind), rtol=1e-6)


def test_weights_of_classes_leave_the_teachers_part_alone():
    weights, config = np.array([2.0, 0.5, 1.0], np.float32), LossConfig(distillation=DistillationConfig(alpha=1.0))
    arrays = [jnp.asarray(x, jnp.float32) for x in (TARGETS, TEACHER)]
    heads = [jnp.asarray(CLASS_HEAD, jnp.float32)]
    np.testing.assert_allclose(distilled_loss(heads, *arrays, config, weights), distilled_loss(heads, *arrays, config), rtol=1e-6)
    labels_only = LossConfig(distillation=DistillationConfig(alpha=0.0))
    np.testing.assert_allclose(distilled_loss(heads, *arrays, labels_only, weights), label_loss(heads[0], arrays[0], "softmax", weights))

import jax.numpy as jnp
import numpy as np

from vitlab.train.losses import cross_entropy, sigmoid_cross_entropy, soft_targets, softmax_cross_entropy

LOGITS, LABELS = jnp.array([[2.0, 0.0, -1.0]]), jnp.array([1])


def test_label_smoothing_spreads_its_share_over_all_classes():
    log_probs = np.log(np.exp([2.0, 0, -1]) / np.exp([2.0, 0, -1]).sum())
    expected = -(0.7 * log_probs[1] + 0.3 * log_probs.mean())
    loss = softmax_cross_entropy(LOGITS, soft_targets(LABELS, 3, label_smoothing=0.3))
    np.testing.assert_allclose(loss, [expected], rtol=1e-6)
    np.testing.assert_allclose(cross_entropy(LOGITS, LABELS), [-log_probs[1]], rtol=1e-6)


def test_the_sigmoid_loss_is_the_mean_over_classes_of_the_binary_one():
    p = 1 / (1 + np.exp([-2.0, 0, 1]))
    expected = -np.mean([np.log(1 - p[0]), np.log(p[1]), np.log(1 - p[2])])
    np.testing.assert_allclose(sigmoid_cross_entropy(LOGITS, soft_targets(LABELS, 3)), [expected], rtol=1e-6)

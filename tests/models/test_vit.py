import jax
import numpy as np

from vitlab.models.registry import create_model


def test_a_distilled_vit_gives_each_head_and_their_mean():
    model = create_model("deit_tiny_distilled_patch16", num_classes=3, image_size=28, patch_size=14, dim=16, depth=1, num_heads=2)
    images = jax.random.normal(jax.random.key(0), (2, 28, 28, 3))
    heads = model.head_logits(images)
    assert len(heads) == 2 and not np.allclose(heads[0], heads[1])
    np.testing.assert_allclose(model(images), (heads[0] + heads[1]) / 2, rtol=1e-6)

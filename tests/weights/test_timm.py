"""timm loads exported files, and this project loads timm's."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is in the extra `parity`")


def _timm():
    """Returns the module timm, or skips if it is missing.

    timm imports torchvision, which cannot register its operators beside a torch of another build;
    the failure is ignored.
    """
    register = torch.library.register_fake
    torch.library.register_fake = lambda *args, **options: lambda fn: _tried(register, args, options, fn)
    try:
        return pytest.importorskip("timm", reason="timm is in the extra `parity`", exc_type=ImportError)
    finally:
        torch.library.register_fake = register


def _tried(register, args, options, fn):
    try:
        return register(*args, **options)(fn)
    except RuntimeError:
        return fn


timm = _timm()

from safetensors.numpy import save_file  # noqa: E402

from vitlab.models.registry import abstract_model  # noqa: E402
from vitlab.weights.load import load_weights  # noqa: E402
from vitlab.weights.save import save_weights  # noqa: E402

# A small variant of each family that timm has -> its name there.
NAMES = {
    "vit_tiny_patch16": "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16": "deit_tiny_distilled_patch16_224",
    "swin_tiny": "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256": "swinv2_tiny_window8_256",
    "maxvit_tiny": "maxvit_tiny_tf_224",
    "coatnet_0": "coatnet_0_224",
    "convnext_tiny": "convnext_tiny",
    "convnextv2_atto": "convnextv2_atto",
    "halonet26t": "halonet26t",
    "poolformer_s12": "poolformer_s12",
    "pvt_v2_b0": "pvt_v2_b0",
    "focalnet_tiny_srf": "focalnet_tiny_srf",
    "davit_tiny": "davit_tiny",
    "efficientvit_m0": "efficientvit_m0",
    "shvit_s1": "shvit_s1",
    "halonet_h1": "halonet_h1",
    "mambaout_femto": "mambaout_femto",
    "nextvit_small": "nextvit_small",
    "crossvit_tiny": "crossvit_tiny_240",
}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_timms_weights_come_back_to_timm(name, tmp_path):
    torch.manual_seed(0)
    state = {k: v.numpy() for k, v in timm.create_model(NAMES[name], num_classes=7).state_dict().items()}
    save_file({k: np.ascontiguousarray(v) for k, v in state.items()}, tmp_path / "timm.safetensors")
    model = abstract_model(name, num_classes=7)
    report = load_weights(model, tmp_path / "timm.safetensors")
    assert report.name_map == "timm" and not report.resampled
    save_weights(model, tmp_path / "here.safetensors")
    torch.manual_seed(1)
    again = timm.create_model(NAMES[name], num_classes=7, checkpoint_path=str(tmp_path / "here.safetensors")).state_dict()
    for key, value in state.items():
        np.testing.assert_array_equal(again[key].numpy(), value, err_msg=key)

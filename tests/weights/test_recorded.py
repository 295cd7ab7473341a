"""Names of recordings, in the authors' and in timm's words, lead to the zoo's models."""

import pytest

from tests.weights.recorded import model_of


@pytest.mark.parametrize(
    ("stem", "kwargs", "expected"),
    [
        ("swin_small_patch4_window7_224_rect", {}, ("swin_small", {})),
        ("swin_base_patch4_window12_384", {}, ("swin_base", {"window_size": 12})),
        ("swinv2_base_window8_256", {}, ("swinv2_base_window8_256", {})),
        ("focalnet_s_lrf", {}, ("focalnet_small_lrf", {})),
        ("dinat_s_tiny", {}, ("dinat_s_tiny", {})),
        ("nat_mini_192x256", {}, ("nat_mini", {})),
        ("crossvit_9_dagger_240", {}, ("crossvit_9_dagger", {})),
        ("crossvit_15_dagger_408", {}, ("crossvit_15_dagger_408", {})),
        ("coatnet_1_224_rect", {"img_size": [192, 256]}, ("coatnet_1", {})),
        (
            "agent_cswin_s",
            {"depth": [3, 6, 29, 2], "attn_type": "AAAB", "agent_num": ["9", "16", "49", "49"]},
            ("agent_cswin_small", {"linear_depths": (3, 6, 29, 0)}),
        ),
        ("inline_cswin_b", {"attn_type": "IISS"}, ("inline_cswin_base", {})),
        ("pvt_v2_b2_li_192x256", {}, ("pvt_v2_b2_li", {})),
        ("pvt_small_rect", {}, ("pvt_small", {})),
        ("sgformer_m_f64", {}, ("sgformer_medium", {})),
        ("halonet50ts", {}, ("halonet50ts", {})),
        ("spectformer_h_b_plain", {"token_label": False}, ("spectformerh_base", {"token_labels": False})),
        ("maxvit_small_tf_224", {}, ("maxvit_small", {})),
        ("vit_small_patch16_224", {"depth": 3}, ("vit_small_patch16", {"depth": 3})),
        ("spectformer_h_b", {}, ("spectformerh_base", {})),
        ("spectformer_ti", {}, ("spectformer_tiny", {})),
        ("overlock_xt_320", {}, ("overlock_xt", {})),
        ("litv2_m", {"alpha": 0.5, "local_ws": [0, 0, 2, 1]}, ("litv2_medium", {"alpha": 0.5})),
        ("evit_deit_s_k05_rect", {"base_keep_rate": 0.5, "fuse_token": False}, ("evit_deit_small_k05", {"fuse": False})),
        ("evit_deit_b", {"base_keep_rate": 0.9, "drop_loc": [2, 4]}, ("evit_deit_base_k07", {"keep_rate": 0.9, "reduce_at": (2, 4)})),
        ("sparsifiner_lvvit_s", {"attn_keep_rate": 0.5}, ("sparsifiner_lvvit_small", {"keep_rate": 0.5})),
        ("moh_transnext_base_50_256", {}, ("moh_transnext_base_50", {})),
        ("illama_s", {}, ("illama_small", {})),
        (
            "dynperceiver_reg800m_t256",
            {"depth_factor": [1, 1, 1, 1]},
            ("dynperceiver_reg800m_t128", {"num_latents": 256, "depths": (3, 3, 9, 3)}),
        ),
        (
            "terminator_cifar10",
            {"cfg": {"kernel_g": {"no_hidden": 32}, "kernel_l": {"sizes": [3, 5, 5, 7]}}},
            ("terminator_cifar10", {"hidden": 32, "kernel_sizes": (3, 5, 5, 7)}),
        ),
        (
            "agent_swin_s",
            {"depths": [2, 2, 18, 2], "attn_type": "AAAB", "agent_num": [9, 16, 49, 49]},
            ("agent_swin_small", {"agent_depths": (2, 2, 18, 0)}),
        ),
    ],
)
def test_a_name_leads_to_its_model(stem, kwargs, expected):
    assert model_of(stem, {"kwargs": kwargs}) == expected


def test_the_entry_point_helps_where_the_name_does_not():
    assert model_of("recording_7", {"entrypoint": "stvit_small"}) == ("svit_small", {})


def test_an_unknown_name_is_said():
    with pytest.raises(LookupError, match="no model of the zoo is called xcit_nano"):
        model_of("xcit_nano", {})

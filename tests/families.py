"""Tiny members of the families of vision transformers, under names that timm then knows.

Four blocks of 48 channels with random weights; other options are those of the family's own members.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.models import beit, deit, eva, hiera, swin_transformer_v2, vision_transformer
from timm.models import register_model as register

_SIZE = {"embed_dim": 48, "depth": 4, "num_heads": 4}
_LAYER_SCALE = (
    0.5  # of pretrained members 1e-5: blocks would change nothing before they are trained
)
_PE = {
    **_SIZE, "patch_size": 16, "attn_type": "rope", "use_pre_transformer_norm": True,
    "use_rot_pos_emb": True, "ref_feat_shape": (4, 4), "rope_grid_offset": 1.0,
    "rope_grid_indexing": "xy",
}  # fmt: skip

default_cfgs: dict[str, dict[str, Any]] = {}  # where timm looks for them


def _register(name: str, create: Callable[..., Any], **options: Any) -> None:
    def entry(pretrained: bool = False, **changes: Any) -> Any:
        return create(name, pretrained=pretrained, **{**options, **changes})

    entry.__name__ = name
    default_cfgs[name] = {
        "url": "", "num_classes": 5, "input_size": (3, 64, 64), "fixed_input_size": True,
        "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3,
        "first_conv": "patch_embed.proj", "classifier": "head",
    }  # fmt: skip
    register(entry)


_vit, _eva = vision_transformer._create_vision_transformer, eva._create_eva
_register("family_vit", _vit, **_SIZE, patch_size=16)
_register("family_deit", deit._create_deit, **_SIZE, patch_size=16, distilled=True)
_register(
    "family_eva02", _eva, **_SIZE, patch_size=14, mlp_ratio=8 / 3, swiglu_mlp=True,
    use_rot_pos_emb=True, ref_feat_shape=(4, 4),
)  # fmt: skip
_register(
    "family_dinov2", _vit, **_SIZE, patch_size=14, reg_tokens=4, no_embed_class=True,
    init_values=_LAYER_SCALE,
)  # fmt: skip
_register(
    "family_dinov3", _eva, **_SIZE, patch_size=16, qkv_bias=False, init_values=_LAYER_SCALE,
    rope_type="dinov3", rope_temperature=100, rope_rotate_half=True, use_rot_pos_emb=True,
    use_abs_pos_emb=False, num_reg_tokens=4, use_fc_norm=False,
)  # fmt: skip
_register(
    "family_siglip2", _vit, **_SIZE, patch_size=16, class_token=False, global_pool="map",
    act_layer="gelu_tanh",
)  # fmt: skip
_register("family_pe_core", _eva, **_PE, global_pool="map", attn_pool_num_heads=4)
_register("family_pe_spatial", _eva, **_PE, use_post_transformer_norm=False, use_fc_norm=False)
_register(
    "family_beit", beit._create_beit, **_SIZE, patch_size=16, use_abs_pos_emb=False,
    use_rel_pos_bias=True, init_values=_LAYER_SCALE,
)  # fmt: skip
_register(
    "family_hiera", hiera._create_hiera, embed_dim=12, num_heads=1, stages=(1, 1, 1, 1),
)  # fmt: skip
_register(
    "family_swinv2", swin_transformer_v2._create_swin_transformer_v2, embed_dim=12, window_size=4,
    depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8),
)  # fmt: skip

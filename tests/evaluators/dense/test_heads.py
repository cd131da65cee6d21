"""The linear head of dense prediction."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from multissl.evaluators.dense.heads import LinearSegmentationHead


def test_scores_of_pixels_are_a_linear_map_of_normed_patches_enlarged() -> None:
    torch.manual_seed(0)
    head, x = LinearSegmentationHead(5, 3).eval(), torch.randn(2, 5, 2, 3)
    head.batchnorm_layer.running_mean, head.batchnorm_layer.running_var = torch.randn(5), torch.rand(5)
    norm = head.batchnorm_layer
    assert norm.running_mean is not None
    assert norm.running_var is not None
    normed = (x - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + 1e-5).sqrt()
    scores = torch.einsum("rdhw,cd->rchw", normed, head.conv.weight[:, :, 0, 0])
    expected = F.interpolate(scores, (8, 9), mode="bilinear", align_corners=False)
    torch.testing.assert_close(head.predict(x, (8, 9)), expected)


def test_channels_are_dropped_before_the_norm_sees_them() -> None:
    torch.manual_seed(0)
    head = LinearSegmentationHead(200, 3, dropout=0.5).train()
    head(torch.ones(4, 200, 2, 2))
    assert head.batchnorm_layer.running_var is not None
    assert (
        head.batchnorm_layer.running_var > 0.95
    ).float().mean() > 0.5  # 0.9 and a tenth of a variance of about 1

"""The mask branch of Mask R-CNN (arXiv 1703.06870) on P levels.

Letters: N images, R RoIs of all images, C channels, K classes, S cells of a RoI's side,
M gt boxes of an image, D detections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from cachedet.data.masks import decode_mask, is_blank
from cachedet.detector.layers import LayerStyle, init_he
from cachedet.detector.roi_align import PyramidRoIAlign
from cachedet.detector.towers import Tower, full_precision, init_normal
from cachedet.distributed.collective import count_over_ranks
from cachedet.structures import Detections, Features, TargetMasks, Targets


class MaskHead(nn.Module):
    """Convolutions, a transposed convolution to twice the side, one map of logits a class."""

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        num_convs: int,
        channels: int,
        style: LayerStyle,
    ) -> None:
        super().__init__()
        self.tower = Tower(
            in_channels=in_channels,
            channels=channels,
            num_levels=1,
            num_convs=num_convs,
            style=style,
            init_std=None,
        )
        self.enlarge = nn.ConvTranspose2d(self.tower.out_channels, channels, 2, stride=2)
        self.activation = style.make_activation()
        self.logits = nn.Conv2d(channels, num_classes, 1)
        init_he(self.enlarge)
        init_normal(self.logits, std=0.001)

    def forward(self, cells: Tensor) -> Tensor:
        """(R, C, S, S) -> (R, K, 2 S, 2 S) logits."""
        maps = self.activation(self.enlarge(self.tower(cells)))
        return full_precision(self.logits(maps))


class MaskBranch(nn.Module):
    """Learns the masks of the RoIs that matched, predicts those of the boxes that were found."""

    def __init__(self, *, head: MaskHead, roi_align: PyramidRoIAlign) -> None:
        super().__init__()
        self.head = head
        self.roi_align = roi_align

    def loss(
        self,
        pyramid: Features,
        targets: Sequence[Targets],
        *,
        boxes: Tensor,
        image: Tensor,
        matched: Tensor,
    ) -> Tensor:
        """Mean binary cross-entropy over the cells of each RoI's own class (section 3).

        RoIs whose gt box has no mask, or one without a pixel, teach nothing.

        Args:
            pyramid, targets: P levels and ground truth of N images.
            boxes: (R, 4) RoIs that matched a box.
            image: (R,) which image each lies in.
            matched: (R,) which of that image's M boxes it matched.
        """
        has_mask = torch.tensor(
            [
                (masks := targets[n].masks) is not None and not is_blank(masks.codes[m])
                for n, m in zip(image.tolist(), matched.tolist(), strict=True)
            ],
            dtype=torch.bool,
            device=boxes.device,
        )
        boxes, image, matched = boxes[has_mask], image[has_mask], matched[has_mask]
        logits: Tensor = self.head(self.roi_align(pyramid, boxes, image))
        side, wanted, labels = logits.shape[-1], [], []
        for n, of_image in enumerate(targets):
            in_image = image == n
            wanted.append(crop_masks(of_image, boxes[in_image], matched[in_image], side=side))
            labels.append(of_image.labels[matched[in_image]])
        order = torch.argsort(image, stable=True)
        rows = torch.arange(len(order), device=logits.device)
        class_logits = logits[order][rows, torch.cat(labels)]
        loss = F.binary_cross_entropy_with_logits(class_logits, torch.cat(wanted), reduction="sum")
        mean: Tensor = loss / max(count_over_ranks(class_logits.numel()), 1)
        return mean

    def predict(self, pyramid: Features, detections: Sequence[Detections]) -> list[Detections]:
        """The same detections with `masks` (D, 2 S, 2 S), probabilities of their own class."""
        counts = [len(of_image) for of_image in detections]
        boxes = torch.cat([of_image.boxes for of_image in detections])
        labels = torch.cat([of_image.labels for of_image in detections])
        image = torch.repeat_interleave(
            torch.arange(len(counts), device=boxes.device),
            torch.tensor(counts, device=boxes.device),
        )
        probabilities = self.of_boxes(pyramid, boxes, image, labels)
        return [
            replace(of_image, masks=masks)
            for of_image, masks in zip(detections, torch.split(probabilities, counts), strict=True)
        ]

    def of_boxes(self, pyramid: Features, boxes: Tensor, image: Tensor, labels: Tensor) -> Tensor:
        """Probabilities (R, 2 S, 2 S) of boxes (R, 4), each of an image and a class (R,)."""
        logits = self.head(self.roi_align(pyramid, boxes, image)).float()
        rows = torch.arange(labels.shape[0], device=labels.device)
        probabilities: Tensor = logits[rows, labels].sigmoid()
        return probabilities


def crop_masks(targets: Targets, boxes: Tensor, matched: Tensor, *, side: int) -> Tensor:
    """What the cells of RoIs (R, 4) of one image should say: (R, side, side) float32 of 0 and 1.

    A cell is 1 where half of it lies on the object, which is gt box `matched` (R,). Boxes are in
    pixels of the view, masks are bitmaps of the image.
    """
    masks = targets.masks
    if masks is None or len(boxes) == 0:
        return boxes.new_zeros(len(boxes), side, side)
    used, mask_index = torch.unique(matched, return_inverse=True)
    bitmaps = np.stack([decode_mask(masks.codes[m], masks.image_hw) for m in used.tolist()])
    rois = torch.cat([mask_index[:, None].to(boxes.dtype), _in_image(boxes, masks)], dim=1)
    cells = roi_align(
        torch.from_numpy(bitmaps).to(boxes.device, boxes.dtype)[:, None],
        rois,
        output_size=side,
        spatial_scale=1.0,
        sampling_ratio=-1,
        aligned=True,
    )[:, 0]
    cells = cells.flip(2) if masks.scale_xy[0] < 0 else cells
    wanted: Tensor = (cells >= 0.5).to(boxes.dtype)
    return wanted


def _in_image(boxes: Tensor, masks: TargetMasks) -> Tensor:
    """Boxes of the view -> boxes of the image the view was made from."""
    mapped = boxes * boxes.new_tensor(masks.scale_xy * 2) + boxes.new_tensor(masks.origin_xy * 2)
    return mapped[:, [2, 1, 0, 3]] if masks.scale_xy[0] < 0 else mapped

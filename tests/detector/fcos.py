"""A foreign head: anchor-free, in the manner of FCOS (arXiv 1904.01355), knowing torch and no more.

It has the two methods a detector needs, and nothing of what is optional.
Letters: N images, T cells of all levels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms, generalized_box_iou_loss, sigmoid_focal_loss

from cachedet.structures import Detections, Features, FeatureSpec, SizeHW, Targets


class FCOSHead(nn.Module):
    """One tower for all levels; each cell inside a box learns the smallest one around it."""

    def __init__(self, spec: FeatureSpec, num_classes: int, channels: int = 16) -> None:
        super().__init__()
        self.strides = [level.stride for level in spec]
        self.num_classes = num_classes
        self.laterals = nn.ModuleList(nn.Conv2d(level.channels, channels, 1) for level in spec)
        self.tower = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(4, channels), nn.ReLU()
        )
        self.logits = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.sides = nn.Conv2d(channels, 4, 3, padding=1)
        nn.init.constant_(self.logits.bias, -4.0)  # type: ignore[arg-type]

    def predict(self, features: Features) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (N, T, K), boxes (N, T, 4) and centres (T, 2) of all cells, in pixels."""
        logits, boxes, centres = [], [], []
        maps_of = zip(self.strides, self.laterals, features.values(), strict=True)
        for stride, lateral, maps in maps_of:
            level = self.tower(lateral(maps))
            ys, xs = torch.meshgrid(
                *(torch.arange(n, device=maps.device) for n in maps.shape[2:]), indexing="ij"
            )
            centre = (torch.stack([xs, ys], dim=-1).flatten(0, 1) + 0.5) * stride
            sides = F.softplus(self.sides(level)).flatten(2).transpose(1, 2) * stride * 2
            logits.append(self.logits(level).flatten(2).transpose(1, 2))
            boxes.append(torch.cat([centre - sides[..., :2], centre + sides[..., 2:]], dim=-1))
            centres.append(centre)
        return torch.cat(logits, dim=1), torch.cat(boxes, dim=1), torch.cat(centres)

    def forward(self, features: Features, targets: Sequence[Targets]) -> dict[str, Tensor]:
        logits, boxes, centres = self.predict(features)
        wanted = torch.zeros_like(logits)
        box_loss, positives = boxes.sum() * 0, 0
        for n, of_image in enumerate(targets):
            real = of_image.boxes[~of_image.crowd]
            if len(real) == 0:
                continue
            inside = ((centres[:, None] > real[:, :2]) & (centres[:, None] < real[:, 2:])).all(-1)
            areas = (real[:, 2:] - real[:, :2]).prod(dim=1).expand_as(inside)
            area, chosen = torch.where(inside, areas, torch.inf).min(dim=1)
            taught = area.isfinite()
            wanted[n, taught, of_image.labels[~of_image.crowd][chosen[taught]]] = 1.0
            box_loss = box_loss + generalized_box_iou_loss(
                boxes[n, taught], real[chosen[taught]], reduction="sum"
            )
            positives += int(taught.sum())
        class_loss = sigmoid_focal_loss(logits, wanted, reduction="sum")
        return {"class": class_loss / (positives + 1), "box": box_loss / (positives + 1)}

    @torch.no_grad()
    def detect(
        self, features: Features, *, sizes_hw: Sequence[SizeHW], image_ids: Sequence[int]
    ) -> list[Detections]:
        logits, all_boxes, _ = self.predict(features)
        results = []
        for n, ((height, width), image_id) in enumerate(zip(sizes_hw, image_ids, strict=True)):
            scores, labels = logits[n].sigmoid().max(dim=1)
            limits = all_boxes.new_tensor([width, height, width, height])
            boxes = all_boxes[n].clamp(min=0).minimum(limits)
            solid = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(dim=1) & (scores > 0.001)
            boxes, scores, labels = boxes[solid], scores[solid], labels[solid]
            kept = batched_nms(boxes, scores, labels, 0.6)[:50]
            results.append(
                Detections(
                    image_id=image_id, boxes=boxes[kept], scores=scores[kept], labels=labels[kept]
                )
            )
        return results

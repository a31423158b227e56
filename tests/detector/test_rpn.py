from __future__ import annotations

import torch
import torch.nn.functional as F
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import AnchorGenerator as TorchvisionAnchors
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.rpn import RPNHead as TorchvisionHead

from cachedet.detector.anchors import AnchorGenerator
from cachedet.detector.boxes import encode_deltas
from cachedet.detector.layers import LayerStyle
from cachedet.detector.matching import MatchRule, match_boxes, pad_ground_truth
from cachedet.detector.rpn import RPN, ProposalCounts, RPNHead
from cachedet.structures import Features, Targets

STRIDES = (8, 16)
RULE = MatchRule(foreground_iou=0.7, background_iou=0.3, allow_low_quality="one")


def make_rpn(**changes: object) -> RPN:
    torch.manual_seed(1)
    anchors = AnchorGenerator(
        strides=STRIDES, size_factor=4.0, scales_per_octave=1, aspect_ratios=(0.5, 1.0, 2.0)
    )
    head = RPNHead(
        in_channels=6, channels=6, num_levels=2, num_anchors=anchors.num_anchors, num_convs=1,
        style=LayerStyle(norm="none", activation="relu"),
    )  # fmt: skip
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    values = {
        "match_rule": RULE, "samples": 256,
        "positive_fraction": 0.5, "class_weight": 0.5, "huber_delta": 1 / 9, "box_weight": 1.0,
        "nms_iou": 0.7, "train_counts": ProposalCounts(pre_nms=2000, post_nms=1000),
        "test_counts": ProposalCounts(pre_nms=1000, post_nms=1000),
    }  # fmt: skip
    return RPN(head=head, anchors=anchors, **(values | changes))  # type: ignore[arg-type]


def make_pyramid(side: int = 64) -> Features:
    generator = torch.Generator().manual_seed(2)
    return {
        f"P{n}": torch.randn(2, 6, side // s, side // s, generator=generator)
        for n, s in enumerate(STRIDES, start=3)
    }


def make_targets() -> list[Targets]:
    boxes = torch.tensor([[4.0, 4.0, 40.0, 44.0], [20.0, 10.0, 60.0, 60.0], [0.0, 40, 20, 64]])
    return [
        Targets(
            image_id=n,
            size_hw=(64, 64),
            boxes=own,
            labels=torch.zeros(len(own), dtype=torch.int64),
            crowd=torch.zeros(len(own), dtype=torch.bool),
        )
        for n, own in enumerate((boxes, boxes[:0]))
    ]


def test_proposals_equal_torchvisions_on_the_same_weights() -> None:
    """Same head, and our anchors: torchvision would put its own at the corners of cells."""
    counts = ProposalCounts(pre_nms=40, post_nms=30)
    ours = make_rpn(test_counts=counts).eval()
    pyramid = make_pyramid()
    head = TorchvisionHead(6, 3)
    head.conv[0][0].load_state_dict(ours.head.tower.convs[0].state_dict())
    head.cls_logits.load_state_dict(ours.head.objectness.state_dict())
    head.bbox_pred.load_state_dict(ours.head.box_deltas.state_dict())
    number = {"training": 30, "testing": 30}
    theirs = RegionProposalNetwork(
        TorchvisionAnchors(((32,), (64,)), ((0.5, 1.0, 2.0),) * 2), head, 0.7, 0.3, 256, 0.5,
        {"training": 40, "testing": 40}, number, 0.7,
    ).eval()  # fmt: skip
    anchors = ours.anchors(pyramid)
    theirs.anchor_generator.forward = lambda images, maps: [anchors, anchors]
    images = ImageList(torch.zeros(2, 3, 64, 64), [(64, 64), (50, 60)])
    expected, _ = theirs(images, pyramid)
    found = ours.propose(ours(pyramid), pyramid, sizes_hw=[(64, 64), (50, 60)])
    for n in range(2):
        own = found.boxes[n, found.is_valid[n]]
        assert len(own) > 10
        torch.testing.assert_close(own, expected[n], rtol=1e-4, atol=1e-3)
        scores = found.scores[n, found.is_valid[n]]
        assert bool((scores.diff() <= 0).all())
        assert bool((found.scores[n, ~found.is_valid[n]] == 0).all())


def test_a_weighted_box_loss_is_torchs_smooth_l1() -> None:
    """Huber's divided by its delta; the paper's weight is 1."""
    rpn = make_rpn(samples=10_000, box_weight=9.0)
    pyramid, ground_truth = make_pyramid(), pad_ground_truth(make_targets())
    output = rpn(pyramid)
    anchors = rpn.anchors(pyramid)
    matched = match_boxes(anchors, ground_truth, RULE)
    image, place = (matched >= 0).nonzero(as_tuple=True)
    wanted = encode_deltas(ground_truth.boxes[image, matched[image, place]], anchors[place])
    deltas = torch.cat(output.deltas, dim=1)[image, place]
    expected = F.smooth_l1_loss(deltas, wanted, beta=1 / 9)
    torch.testing.assert_close(rpn.losses(output, pyramid, ground_truth)["rpn_box"], expected)


def test_losses_by_plain_loops_where_every_anchor_is_sampled() -> None:
    rpn = make_rpn(samples=10_000, positive_fraction=0.5, huber_delta=0.2, class_weight=0.7)
    pyramid, ground_truth = make_pyramid(), pad_ground_truth(make_targets())
    output = rpn(pyramid)
    losses = rpn.losses(output, pyramid, ground_truth)
    anchors = rpn.anchors(pyramid)
    matched = match_boxes(anchors, ground_truth, RULE)
    logits, deltas = torch.cat(output.logits, dim=1), torch.cat(output.deltas, dim=1)
    class_sum, box_sum, positives = 0.0, 0.0, 0
    for n in range(2):
        for t, match in enumerate(matched[n].tolist()):
            if match == -2:
                continue
            target = torch.tensor(float(match >= 0))
            class_sum += F.binary_cross_entropy_with_logits(logits[n, t], target).item()
            if match >= 0:
                positives += 1
                box, anchor = ground_truth.boxes[n, match], anchors[t]
                size, wanted = anchor[2:] - anchor[:2], box[2:] - box[:2]
                shift = ((box[:2] + box[2:]) - (anchor[:2] + anchor[2:])) / 2 / size
                error = (deltas[n, t] - torch.cat([shift, (wanted / size).log()])).abs()
                small = torch.where(error <= 0.2, error**2 / 2, 0.2 * (error - 0.1))
                box_sum += small.sum().item()
    assert positives > 3
    torch.testing.assert_close(
        losses["rpn_class"].item(), class_sum * 0.7 / 20_000, rtol=1e-5, atol=0
    )
    torch.testing.assert_close(
        losses["rpn_box"].item(), box_sum / (4 * positives), rtol=1e-5, atol=0
    )


def test_images_without_boxes() -> None:
    rpn, pyramid = make_rpn(), make_pyramid()
    losses = rpn.losses(rpn(pyramid), pyramid, pad_ground_truth([make_targets()[1]] * 2))
    assert losses["rpn_box"].item() == 0.0
    assert 0 < losses["rpn_class"].item() < 10


def test_fewer_anchors_than_wanted_and_images_without_room() -> None:
    """An image clipped to nothing has no proposals; nothing is NaN."""
    rpn, pyramid = make_rpn(), make_pyramid(32)
    found = rpn.eval().propose(rpn(pyramid), pyramid, sizes_hw=[(32, 32), (0, 0)])
    assert found.boxes.shape == (2, 1000, 4)
    assert 0 < int(found.is_valid[0].sum()) <= (16 + 4) * 3
    assert int(found.is_valid[1].sum()) == 0
    assert bool(found.boxes.isfinite().all())


def test_counts_differ_between_training_and_testing() -> None:
    rpn = make_rpn(
        train_counts=ProposalCounts(pre_nms=50, post_nms=12),
        test_counts=ProposalCounts(pre_nms=50, post_nms=7),
        nms_iou=1.0,
    )
    pyramid = make_pyramid()
    for training, expected in ((True, 12), (False, 7)):
        rpn.train(training)
        found = rpn.propose(rpn(pyramid), pyramid, sizes_hw=[(64, 64)] * 2)
        assert found.is_valid.sum(dim=1).tolist() == [expected] * 2

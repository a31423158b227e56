"""What every detector must do, whoever wrote it; see cachedet/detector/protocol.py.

For a head of your own, in a test of yours (it needs cachedet and torch alone):

    spec = importlib.util.spec_from_file_location("contract", "tests/detector/contract.py")
    ...
    contract.check_detector(lambda spec, num_classes: MyHead(spec, num_classes))

Letters: N images, D detections.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from cachedet.detector.protocol import compute_losses, require_detector, run_detector
from cachedet.structures import Detections, Features, FeatureSpec, LevelSpec, SizeHW, Targets

MakeDetector = Callable[[FeatureSpec, int], nn.Module]

SPEC = FeatureSpec(
    (LevelSpec(name="C3", channels=4, stride=8), LevelSpec(name="C4", channels=6, stride=16))
)
NUM_CLASSES = 3
SIZE: SizeHW = (64, 96)
BOXES: dict[str, list[list[float]]] = {
    "nothing": [],
    "one box": [[10.0, 10.0, 40.0, 40.0]],
    "boxes smaller than a cell": [[x, x, x + 2.0, x + 1.0] for x in range(10, 60, 7)],
    "seventy boxes": [[float(x), 0.0, x + 20.0, 30.0] for x in range(70)],
    "the whole image": [[0.0, 0.0, 96.0, 64.0]],
    "one box twice": [[10.0, 10.0, 40.0, 40.0]] * 2,
}


def check_detector(make: MakeDetector, *, spec: FeatureSpec = SPEC) -> None:
    """Every check in turn; an AssertionError or DetectorError says what is broken."""
    for check in CHECKS:
        torch.manual_seed(3)
        check(make, spec)


def losses_are_finite_whatever_the_boxes(make: MakeDetector, spec: FeatureSpec) -> None:
    detector = require_detector(make(spec, NUM_CLASSES)).train()
    for name, boxes in BOXES.items():
        for crowd in (False, True):
            targets = [targets_of(boxes, image_id=n, crowd=crowd) for n in range(2)]
            losses = compute_losses(detector, features_of(spec), targets)
            bad = {key: float(loss) for key, loss in losses.items() if not loss.isfinite()}
            assert not bad, f"{name}, crowd {crowd}: losses {bad}"


def loss_names_never_change(make: MakeDetector, spec: FeatureSpec) -> None:
    """metrics.csv has one column for each."""
    detector = make(spec, NUM_CLASSES).train()
    names = {
        tuple(compute_losses(detector, features_of(spec), [targets_of(boxes)] * 2))
        for boxes in BOXES.values()
    }
    assert len(names) == 1, f"the losses are {names}, depending on the boxes"


def every_parameter_has_a_gradient(make: MakeDetector, spec: FeatureSpec) -> None:
    """Also where there is nothing to find: processes that train together sum them all."""
    detector = make(spec, NUM_CLASSES).train()
    for boxes in (BOXES["one box"], BOXES["nothing"]):
        detector.zero_grad(set_to_none=True)
        total(compute_losses(detector, features_of(spec), [targets_of(boxes)] * 2)).backward()
        without = [
            name for name, p in detector.named_parameters() if p.requires_grad and p.grad is None
        ]
        assert without == [], f"no gradient reaches {without} with {len(boxes)} boxes"


def training_lowers_the_loss(make: MakeDetector, spec: FeatureSpec) -> None:
    detector = make(spec, NUM_CLASSES).train()
    features, targets = (
        features_of(spec),
        [targets_of(BOXES["one box"], image_id=n) for n in (0, 1)],
    )
    optimizer = torch.optim.Adam(detector.parameters(), lr=1e-3)
    reached = []
    for _ in range(12):
        loss = total(compute_losses(detector, features, targets))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        reached.append(loss.item())
    assert reached[-1] < reached[0], f"12 steps went from {reached[0]:.3g} to {reached[-1]:.3g}"


def detections_are_sorted_and_inside(make: MakeDetector, spec: FeatureSpec) -> None:
    detector = make(spec, NUM_CLASSES).eval()
    sizes = [SIZE, (50, 70)]
    for n, detections in enumerate(detect(detector, features_of(spec), sizes)):
        assert detections.image_id == 10 + n
        assert detections.boxes.dtype == detections.scores.dtype == torch.float32
        assert detections.labels.dtype == torch.int64
        assert not detections.boxes.requires_grad, "detect must not keep the graph"
        assert not detections.scores.requires_grad, "detect must not keep the graph"
        scores, labels = detections.scores, detections.labels
        assert bool((scores[:-1] >= scores[1:]).all()), "the best must come first"
        assert bool(((scores >= 0) & (scores <= 1)).all())
        assert bool(((labels >= 0) & (labels < NUM_CLASSES)).all())
        assert bool((detections.boxes[:, 2:] > detections.boxes[:, :2]).all())


def detections_repeat(make: MakeDetector, spec: FeatureSpec) -> None:
    """In eval mode, and training in between leaves them alone but for what it trains."""
    detector = make(spec, NUM_CLASSES).eval()
    first, again = (detect(detector, features_of(spec), [SIZE] * 2) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.boxes, other.boxes)
        assert torch.equal(one.scores, other.scores)


def images_do_not_see_each_other(make: MakeDetector, spec: FeatureSpec) -> None:
    """Law L5 for heads: a detection does not depend on what else is in the batch."""
    detector = make(spec, NUM_CLASSES).eval()
    features = features_of(spec)
    together = detect(detector, features, [SIZE] * 2)
    for n in range(2):
        alone = detect(detector, {k: maps[n : n + 1] for k, maps in features.items()}, [SIZE])[0]
        torch.testing.assert_close(together[n].scores, alone.scores, rtol=1e-4, atol=1e-5)


def the_state_is_all_there_is(make: MakeDetector, spec: FeatureSpec) -> None:
    """A checkpoint holds `state_dict` and nothing else; averages and copies go through it too."""
    detector, other = make(spec, NUM_CLASSES).train(), make(spec, NUM_CLASSES)
    for _ in range(2):  # moves running statistics
        compute_losses(detector, features_of(spec), [targets_of(BOXES["one box"])] * 2)
    other.load_state_dict(copy.deepcopy(detector).state_dict())
    one, two = (detect(d.eval(), features_of(spec), [SIZE] * 2) for d in (detector, other))
    for ours, theirs in zip(one, two, strict=True):
        assert torch.equal(ours.boxes, theirs.boxes)
        assert torch.equal(ours.scores, theirs.scores)


CHECKS = (
    losses_are_finite_whatever_the_boxes,
    loss_names_never_change,
    every_parameter_has_a_gradient,
    training_lowers_the_loss,
    detections_are_sorted_and_inside,
    detections_repeat,
    images_do_not_see_each_other,
    the_state_is_all_there_is,
)


def detect(detector: nn.Module, features: Features, sizes: Sequence[SizeHW]) -> list[Detections]:
    ids = list(range(10, 10 + len(sizes)))
    return run_detector(detector, features, sizes_hw=sizes, image_ids=ids)


def features_of(spec: FeatureSpec, *, images: int = 2) -> Features:
    generator = torch.Generator().manual_seed(5)
    return {
        name: torch.randn(images, *shape, generator=generator)
        for name, shape in spec.map_shapes(SIZE).items()
    }


def targets_of(boxes: list[list[float]], *, image_id: int = 0, crowd: bool = False) -> Targets:
    return Targets(
        image_id=image_id,
        size_hw=SIZE,
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.arange(len(boxes)) % NUM_CLASSES,
        crowd=torch.full((len(boxes),), crowd, dtype=torch.bool),
    )


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()

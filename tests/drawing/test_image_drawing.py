from __future__ import annotations

import numpy as np

from cachedet.drawing.image_drawing import Drawing, colour_of, draw_boxes


def drawing(*boxes: list[float], caption: str = "") -> Drawing:
    return Drawing(
        boxes=np.array(boxes), labels=np.arange(len(boxes)), captions=tuple(caption for _ in boxes)
    )


def test_outlines_have_the_colour_of_their_class() -> None:
    grey = np.full((100, 200, 3), 128, dtype=np.uint8)
    image = np.asarray(draw_boxes(grey, drawing([20, 30, 80, 90], [100, 30, 160, 90])))
    assert tuple(image[60, 20]) == colour_of(0)
    assert tuple(image[60, 100]) == colour_of(1)
    assert tuple(image[60, 50]) == (128, 128, 128)
    np.testing.assert_array_equal(grey, 128)  # law L8: the input is not drawn on


def test_captions_stay_inside() -> None:
    black = np.zeros((60, 90, 3), dtype=np.uint8)
    for box in ([80.0, 0, 89, 10], [0.0, 50, 10, 59], [-20.0, -20, 200, 200]):
        image = np.asarray(draw_boxes(black, drawing(box, caption="wallaby é 0.98")))
        assert image.shape == (60, 90, 3)
        filled = (image == colour_of(0)).all(axis=2)
        assert filled.sum() > 200


def test_lines_follow_the_size_of_image_and_box() -> None:
    """A large photo has thick lines; a small box is not filled by them."""
    for side, box, expected in ((200, 100, 2), (4000, 1000, 16), (4000, 24, 2), (200, 4, 1)):
        black = np.zeros((side, side, 3), dtype=np.uint8)
        image = np.asarray(draw_boxes(black, drawing([50, 50, 50 + box, 50 + box])))
        row = (image[50 + box // 2] == colour_of(0)).all(axis=1)
        assert int(row.sum()) == 2 * expected


def test_no_caption_hides_another() -> None:
    """Of twelve boxes at one place each colour of a caption is seen, as large as when alone."""
    grey = np.full((600, 600, 3), 128, dtype=np.uint8)
    boxes = [[200.0, 300, 400, 400]] * 8
    image = np.asarray(draw_boxes(grey, drawing(*boxes, caption="wallaby 0.98")))
    alone = np.asarray(draw_boxes(grey, drawing(boxes[0], caption="wallaby 0.98")))
    wanted = (alone[:299] == colour_of(0)).all(axis=2).sum()
    for label in range(8):
        assert (image == colour_of(label)).all(axis=2).sum() > 0.9 * wanted


def test_boxes_without_a_side_and_beyond_the_image_are_drawn() -> None:
    black = np.zeros((40, 40, 3), dtype=np.uint8)
    boxes = ([5.0, 5, 5, 5], [30.0, 10, 29.5, 20], [-90.0, -90, 190, 190])
    image = np.asarray(draw_boxes(black, drawing(*boxes, caption="a")))
    assert image.any()


def test_classes_of_one_colour_have_other_lines() -> None:
    """The ninth class and those behind it are dashed, each eight in another way."""
    black = np.zeros((80, 200, 3), dtype=np.uint8)
    lines = []
    for label in (0, 8, 16, 24):
        boxes = np.array([[10.0, 20, 190, 70]])
        one = Drawing(boxes=boxes, labels=np.array([label]), captions=("",))
        image = np.asarray(draw_boxes(black, one))
        lines.append((image[20, 10:190] == colour_of(0)).all(axis=1))
    shares = [float(line.mean()) for line in lines]
    assert shares[0] == 1.0
    assert all(0.3 < share < 0.9 for share in shares[1:])
    assert len({line.tobytes() for line in lines}) == 4

import numpy as np
import pytest

from distill.classes import OCC3D_CLASSES, SURROUNDOCC_CLASSES
from distill.grids import OCC3D, SURROUNDOCC
from distill.pictures.view import INK, UNSEEN
from distill.pictures.voxels import Painter

FREE, CAR, PEDESTRIAN, BUS = 17, 4, 7, 3
SIZE = (300, 200)
PAINTER = Painter(OCC3D, OCC3D_CLASSES)


@pytest.fixture
def empty():
    return np.full(OCC3D.shape, FREE, dtype=np.uint8)


def is_hue(pixels: np.ndarray, class_id: int) -> np.ndarray:
    """Where a picture shows the class's colour in whatever brightness."""
    colour = np.array(OCC3D_CLASSES.colours[class_id])
    brightest = colour.argmax()
    brightness = pixels[..., brightest, None] / colour[brightest]
    return (np.abs(pixels - brightness * colour) < 4).all(-1) & (brightness[..., 0] > 0.4)


class TestBirdsEye:
    def test_forward_is_up_and_left_is_left(self, empty):
        empty[199, 199, 5] = CAR
        empty[0, 199, 5] = BUS
        image = PAINTER.bev_image(empty, None, 2)
        assert image.shape == (400, 400, 3)
        assert is_hue(image[:2, :2], CAR).all()
        assert is_hue(image[-2:, :2], BUS).all()
        assert is_hue(image, CAR).sum() == is_hue(image, BUS).sum() == 4

    def test_the_topmost_voxel_shows_and_higher_is_brighter(self, empty):
        empty[10, 10, :3] = CAR
        empty[10, 10, 3] = BUS
        empty[20, 20, 9] = BUS
        low, high = (PAINTER.bev_image(empty, None, 1)[199 - i, 199 - i].astype(int) for i in (10, 20))
        assert is_hue(low, BUS)
        assert low.sum() < high.sum()

    def test_voxels_outside_the_mask_are_not_drawn_and_unseen_columns_are_grey(self, empty):
        empty[10, 10, 2] = CAR
        empty[10, 10, 8] = BUS
        empty[20, 20, 2] = CAR
        mask = np.zeros(OCC3D.shape, dtype=bool)
        mask[10, 10, :5] = True
        image = PAINTER.bev_image(empty, mask, 1)
        assert is_hue(image[189, 189], CAR)
        assert tuple(image[179, 179]) == UNSEEN


class TestPerspective:
    @pytest.mark.parametrize(
        ("where", "row", "column"),
        [
            ((180, 100), "upper", None),
            ((30, 100), "lower", None),
            ((100, 180), None, "left"),
            ((100, 20), None, "right"),
        ],
    )
    def test_forward_is_up_and_left_is_left(self, empty, where, row, column):
        empty[where[0] - 3 : where[0] + 3, where[1] - 3 : where[1] + 3, :4] = CAR
        rows, columns = np.nonzero(is_hue(PAINTER.perspective_image(empty, None, SIZE), CAR))
        assert len(rows) > 20
        assert {"upper": rows.max() < 100, "lower": rows.min() > 100, None: True}[row]
        assert {"left": columns.max() < 150, "right": columns.min() > 150, None: True}[column]

    def test_voxels_outside_the_mask_are_not_drawn(self, empty):
        empty[150:160, 100:110, :4] = CAR
        mask = np.ones(OCC3D.shape, dtype=bool)
        mask[150:160] = False
        assert is_hue(PAINTER.perspective_image(empty, None, SIZE), CAR).any()
        assert not is_hue(PAINTER.perspective_image(empty, mask, SIZE), CAR).any()

    def test_every_pixel_shows_the_nearest_voxel_on_its_ray(self, empty):
        """The painter's order against intersecting each ray with every box of a random cloud."""
        random = np.random.default_rng(0)
        index_K3 = np.unique(random.integers((60, 130, 0), (76, 146, 16), (600, 3)), axis=0)
        classes_K = random.choice(np.array([CAR, PEDESTRIAN], dtype=np.uint8), len(index_K3))
        empty[tuple(index_K3.T)] = classes_K
        size = (1500, 1000)
        image = PAINTER.perspective_image(empty, None, size)
        lower_K3 = np.array(OCC3D.lower) + index_K3 * OCC3D.voxel_size
        checked = 0
        for point in random.uniform(lower_K3.min(0), lower_K3.max(0) + 0.4, (3000, 3)):
            column, row = np.floor(PAINTER.view.project(point, size)).astype(int)
            nearest = _nearest_box(point, lower_K3)
            shows_car, shows_pedestrian = (is_hue(image[row, column], class_id) for class_id in (CAR, PEDESTRIAN))
            # pixels on an edge blend two faces and show neither colour
            if nearest is not None and shows_car != shows_pedestrian:
                checked += 1
                assert shows_car == (classes_K[nearest] == CAR)
        assert checked > 200


def _nearest_box(point: np.ndarray, lower_K3: np.ndarray) -> int | None:
    """The voxel that the ray from the eye through `point` enters first; None if it passes within 10 cm of an edge."""
    eye = PAINTER.view.eye
    direction = point - eye
    hits = []
    for shrink in (0.1, -0.1):
        near_K3, far_K3 = ((lower_K3 + offset - eye) / direction for offset in (shrink, OCC3D.voxel_size - shrink))
        enter_K = np.minimum(near_K3, far_K3).max(1)
        leave_K = np.maximum(near_K3, far_K3).min(1)
        hit_K = enter_K < leave_K
        hits.append(np.where(hit_K, enter_K, np.inf).argmin() if hit_K.any() else None)
    return hits[0] if hits[0] == hits[1] else None


class TestSurroundOcc:
    """The LIDAR_TOP frame looks along y: array axis 1 is forward, axis 0 points right."""

    painter = Painter(SURROUNDOCC, SURROUNDOCC_CLASSES)

    def test_birds_eye(self, empty):
        empty[0, 199, 5] = CAR
        empty[199, 0, 5] = BUS
        image = self.painter.bev_image(empty, None, 1)
        assert is_hue(image[0, 0], CAR)
        assert is_hue(image[-1, -1], BUS)

    def test_the_mask_turns_too(self, empty):
        empty[10, 150] = CAR
        mask = np.zeros(SURROUNDOCC.shape, dtype=bool)
        mask[10, 150] = True
        image = self.painter.bev_image(empty, mask, 1)
        assert is_hue(image[49, 10], CAR)
        assert tuple(image[49, 11]) == UNSEEN

    @pytest.mark.parametrize(
        ("where", "row", "column"),
        [
            ((100, 180), "upper", None),
            ((100, 30), "lower", None),
            ((20, 100), None, "left"),
            ((180, 100), None, "right"),
        ],
    )
    def test_perspective(self, empty, where, row, column):
        empty[where[0] - 3 : where[0] + 3, where[1] - 3 : where[1] + 3, 6:10] = CAR
        rows, columns = np.nonzero(is_hue(self.painter.perspective_image(empty, None, SIZE), CAR))
        assert len(rows) > 20
        assert {"upper": rows.max() < 100, "lower": rows.min() > 100, None: True}[row]
        assert {"left": columns.max() < 150, "right": columns.min() > 150, None: True}[column]

    def test_the_ego_car_stands_behind_its_lidar(self):
        behind = []
        for painter in (PAINTER, self.painter):
            image = painter.bev_image(np.full(painter.view.grid.shape, FREE, np.uint8), None, 5)
            rows, columns = np.nonzero((image == INK).all(-1))
            assert columns.mean() == pytest.approx(500, abs=1)
            behind.append((rows.mean() - 500) / 5 * painter.view.grid.voxel_size)
        assert behind[1] - behind[0] == pytest.approx(0.94, abs=0.05)

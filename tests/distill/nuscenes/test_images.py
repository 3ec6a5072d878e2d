from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image

from distill.augment import Augmentation, ImageTransform, Transform
from distill.errors import InputError
from distill.nuscenes.images import read_images

STRONG = Augmentation(resize=(0.25, 1.6), image_flip=0.5, rotation=0.0, colour=0.0, bev_flip=0.0)


def source_sizes(keyframe):
    return [(camera.height, camera.width) for camera in keyframe.cameras]


def seen_in_source(keyframe, intrinsics, size):
    """Where the calibration says each pixel centre of the result lies in the source, (6, H, W, 2)."""
    height, width = size
    u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    pixels = np.stack([u, v, np.ones_like(u)], axis=-1)
    source = [
        pixels @ np.linalg.inv(result.astype(np.float64)).T @ camera.intrinsics.T
        for camera, result in zip(keyframe.cameras, intrinsics, strict=True)
    ]
    return np.stack(source)[..., :2]


@pytest.mark.parametrize(("seed", "rotation"), [*((seed, 0.0) for seed in range(8)), (8, 12.0), (9, 30.0), (10, 80.0)])
def test_intrinsics_follow_the_pixels(index, seed, rotation):
    """The source encodes its own coordinates (red = column, green = row): read them back, to 0.05 result pixels."""
    keyframe, size = index.keyframe("late"), (48, 112)
    transform = replace(STRONG, rotation=rotation).draw(np.random.default_rng(seed), source_sizes(keyframe), size)
    images, intrinsics, shown = read_images(keyframe, transform.images, size)
    expected = seen_in_source(keyframe, intrinsics, size)
    found = images.transpose(0, 2, 3, 1)[..., :2] + 0.5
    height, width = source_sizes(keyframe)[0]
    reach = 2 / min(image.scale for image in transform.images)  # of the resampling filter at the border
    inner = ((expected > reach) & (expected < np.array([width, height]) - reach)).all(-1) & shown
    for camera in range(6):
        error = (found - expected)[camera][inner[camera]]
        assert len(error) > 100
        np.testing.assert_allclose(error.mean(axis=0) * transform.images[camera].scale, 0, atol=0.05)
        nearest = 0.75 / transform.images[camera].scale if rotation else 0.0  # images are turned to whole pixels
        np.testing.assert_allclose(error, 0, atol=2.5 + nearest)


def test_fit_is_flashocc_geometry():
    """1600x900 to 704x256: scale 0.44, 140 rows cut off at the top (docs/formulas.md 5.1)."""
    fit = ImageTransform.fit((900, 1600), (256, 704))
    np.testing.assert_allclose(fit.matrix((256, 704)), [[0.44, 0, 0], [0, 0.44, -140], [0, 0, 1]])


@pytest.mark.parametrize("flip", [False, True])
def test_around_the_content_it_is_black(index, flip):
    keyframe, size = index.keyframe("late"), (64, 96)
    small = ImageTransform(scale=0.2, offset=(-10.0, -20.0), flip=flip)  # 250x141 becomes 50x28.2
    images, _, shown = read_images(keyframe, [small] * 6, size)
    left, right = (36, 86) if flip else (10, 60)
    assert shown[:, 20:48, left:right].all() and shown.sum() == 6 * 28 * 50
    assert (images[:, 2, 20:48, left:right] > 90).all()
    for outside in (images[..., :20, :], images[..., 48:, :], images[..., :left], images[..., right:]):
        assert not outside.any()


def test_around_a_turned_image_it_is_black(index):
    turned = replace(ImageTransform.fit((141, 250), (64, 112)), rotation=30.0)
    images, _, shown = read_images(index.keyframe("late"), [turned] * 6, (64, 112))
    np.testing.assert_array_equal(images.any(1), shown)
    assert not shown[:, [0, 0, -1, -1], [0, -1, 0, -1]].any() and 0.6 < shown.mean() < 0.95


def test_colour_factors(index):
    keyframe, size = index.keyframe("late"), (64, 112)
    plain = ImageTransform.fit((141, 250), size)

    def read(**factors):
        transform = ImageTransform(plain.scale, plain.offset, flip=False, **factors)
        images, intrinsics, _ = read_images(keyframe, [transform] * 6, size)
        return images.astype(float), intrinsics

    original, intrinsics = read()
    darker, same_intrinsics = read(brightness=0.5)
    np.testing.assert_array_equal(intrinsics, same_intrinsics)
    np.testing.assert_allclose(darker, original / 2, atol=1)
    assert read(contrast=0.5)[0].std() == pytest.approx(original.std() / 2, rel=0.2)
    grey = read(saturation=0.0)[0]
    np.testing.assert_array_equal(grey[:, 0], grey[:, 1])


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "is missing"),
        (cut, "cannot be decoded"),
        (lambda path: path.write_text("<html>not found</html>"), "cannot be decoded"),
        (lambda path: Image.new("RGB", (125, 70)).save(path), "125x70 pixels, but .* calibrated for 250x141"),
    ],
)
def test_damaged_image_is_named(dataroot, tmp_path, damage, message):
    from distill.nuscenes.index import load_index

    keyframe = load_index(dataroot, "v1.0-tiny", tmp_path).keyframe("late")
    damage(keyframe.cameras[3].path)
    with pytest.raises(InputError, match=message) as caught:
        read_images(keyframe, Transform.fit(source_sizes(keyframe), (64, 112)).images, (64, 112))
    assert "CAM_BACK_LEFT/late.jpg" in str(caught.value)
    assert "keyframe late" in str(caught.value)


def read_front_left(index, write):
    """Read keyframe "late" with another CAM_FRONT_LEFT at full size, RGB uint8 (H, W, 3)."""
    keyframe = index.keyframe("late")
    write(keyframe.cameras[0].path)
    sizes = source_sizes(keyframe)
    return read_images(keyframe, Transform.fit(sizes, sizes[0]).images, sizes[0])[0][0].transpose(1, 2, 0)


@pytest.fixture
def tiny(dataroot, tmp_path):
    from distill.nuscenes.index import load_index

    return load_index(dataroot, "v1.0-tiny", tmp_path / "cache")


RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (141, 250, 3), dtype=np.uint8)
GREY = Image.fromarray(RGB[..., 0])


def with_alpha(alpha):
    return Image.fromarray(np.dstack([RGB, np.broadcast_to(np.uint8(alpha), (141, 250))]))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(RGB), RGB),
        (GREY, RGB[..., :1].repeat(3, 2)),
        (GREY.convert("P"), RGB[..., :1].repeat(3, 2)),
        (Image.merge("LA", [GREY, Image.new("L", GREY.size, 255)]), RGB[..., :1].repeat(3, 2)),
        (with_alpha(255), RGB),
        (with_alpha(0), RGB),
        (Image.new("RGB", GREY.size), 0 * RGB),
        (Image.new("RGB", GREY.size, "white"), 0 * RGB + 255),
    ],
    ids=["RGB", "L", "P", "LA", "RGBA", "RGBx", "black", "white"],
)
def test_images_of_8_bits_a_channel(tiny, image, expected):
    np.testing.assert_array_equal(read_front_left(tiny, lambda path: image.save(path, "png")), expected)


@pytest.mark.parametrize("mode", ["CMYK", "L", "RGB"])
def test_jpegs_of_other_colours(tiny, mode):
    smooth = Image.fromarray(RGB).resize((25, 14)).resize((250, 141))

    def write(path):
        smooth.convert(mode).save(path, "jpeg", quality=100, subsampling=0)

    expected = np.asarray(smooth.convert(mode).convert("RGB")).astype(int)
    assert np.abs(read_front_left(tiny, write) - expected).max() < 8


DEEP = RNG.integers(0, 65536, (141, 250), dtype=np.uint16)


def write_png16(path):
    """Three channels of 16 bits, which Pillow opens as RGB."""
    assert cv2.imwrite(str(path.with_suffix(".png")), np.dstack([DEEP] * 3))
    path.with_suffix(".png").rename(path)


@pytest.mark.parametrize(
    ("write", "kind"),
    [
        (lambda path: Image.fromarray(DEEP).save(path, "png"), "I;16B"),
        (write_png16, "RGB;16B"),
        (lambda path: Image.fromarray(DEEP).save(path, "tiff"), "I;16"),
        (lambda path: Image.fromarray(DEEP.astype(np.int32)).save(path, "tiff"), "I"),
        (lambda path: Image.fromarray(DEEP.astype(np.float32)).save(path, "tiff"), "F"),
        (lambda path: GREY.convert("1").save(path, "png"), "1"),
    ],
    ids=["I;16", "RGB;16", "TIFF", "int32", "float", "1-bit"],
)
def test_images_of_other_depths_are_refused(tiny, write, kind):
    with pytest.raises(
        InputError, match=f"CAM_FRONT_LEFT/late.jpg: image of keyframe late is of kind {kind}, not 8 bits"
    ):
        read_front_left(tiny, write)


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_transparency_is_refused(tiny, mode):
    halves = with_alpha(np.where(np.arange(250) < 125, 0, 255))
    with pytest.raises(InputError, match=r"late\.jpg: image of keyframe late is transparent in places"):
        read_front_left(tiny, lambda path: halves.convert(mode).save(path, "png"))


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_images_that_viewers_turn_are_refused(tiny, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation

    def write(path):
        GREY.save(path, "jpeg", exif=exif)

    if orientation == 1:
        read_front_left(tiny, write)
        return
    with pytest.raises(InputError, match=rf"late\.jpg: .* to be turned \(EXIF orientation {orientation}\)"):
        read_front_left(tiny, write)


@pytest.mark.parametrize(
    "size", [(864, 1600), (448, 800), (256, 704), (64, 192), (896, 1632), (576, 1024), (512, 768), (576, 704)]
)
def test_covering_is_the_test_pipeline_of_gaussianformer(index, tmp_path, size):
    """Whole images decoded and resized bicubically, then cropped at whole pixels (docs/formulas.md 8.1)."""
    height, width = size
    noise = np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)
    path = tmp_path / "camera.jpg"
    Image.fromarray(noise).resize((1600, 900)).save(path, quality=95)
    original = index.keyframe("late")
    keyframe = replace(
        original,
        cameras=tuple(replace(camera, path=path, width=1600, height=900) for camera in original.cameras),
    )
    scale = max(height / 900, width / 1600)
    resized = Image.open(path).resize((int(1600 * scale), int(900 * scale)), Image.Resampling.BICUBIC)
    left, top = (resized.width - width) // 2, resized.height - height
    expected = np.asarray(resized.crop((left, top, left + width, top + height))).transpose(2, 0, 1)

    images, intrinsics, shown = read_images(keyframe, Transform.fit([(900, 1600)] * 6, size, bicubic=True).images, size)
    np.testing.assert_array_equal(images, np.broadcast_to(expected, images.shape))
    matrix = np.array([[scale, 0, -left], [0, scale, -top], [0, 0, 1]])
    np.testing.assert_allclose(intrinsics[2], matrix @ original.cameras[2].intrinsics, rtol=1e-6)
    assert shown.all()


def test_full_size_images_are_cropped_and_nothing_else(real_data, tmp_path):
    """1600x900 to 1600x864: the decoded pixels without the top 36 rows, the test pipeline of docs/formulas.md 8.1."""
    from distill.nuscenes.index import load_index

    size = (864, 1600)
    for keyframe in load_index(real_data / "nuscenes", "v1.0-mini", tmp_path).keyframes("all"):
        images, intrinsics, shown = read_images(keyframe, Transform.fit(source_sizes(keyframe), size).images, size)
        for camera, image, found in zip(keyframe.cameras, images, intrinsics, strict=True):
            with Image.open(camera.path) as file:
                np.testing.assert_array_equal(image.transpose(1, 2, 0), np.asarray(file.convert("RGB"))[36:])
            shifted = camera.intrinsics - [[0, 0, 0], [0, 0, 36], [0, 0, 0]]
            np.testing.assert_array_equal(found, shifted.astype(np.float32))
        assert shown.all()

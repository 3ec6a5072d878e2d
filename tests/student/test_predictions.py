import csv
import os
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.classes import OCC3D_CLASSES, SURROUNDOCC_CLASSES
from distill.errors import InputError
from distill.grids import OCC3D, VoxelGrid
from student.evaluation.predictions import PredictionsFolder, write_prediction

SMALL = VoxelGrid("small", "ego", (-2.0, -1.6, -0.8), 0.4, (10, 8, 4))


def volume(seed=0, grid=SMALL):
    return np.random.default_rng(seed).integers(0, 18, grid.shape, np.uint8)


class Labels:
    """On a grid, of the keyframes that are given any."""

    def __init__(self, grid=SMALL, **labels):
        self.grid, self.labels = grid, labels

    def read(self, keyframe):
        return self.labels.get(keyframe.token)


def check(folder, tokens=("a",), known=("a", "b", "c"), labels=None, classes=OCC3D_CLASSES):
    keyframes = [SimpleNamespace(token=token) for token in tokens]
    return PredictionsFolder(folder).check(keyframes, known, labels or Labels(), classes, folder.parent / "bad.csv")


def refusal(folder, **options):
    """The line, and {(token, file): problem} of the list."""
    with pytest.raises(InputError) as caught:
        check(folder, **options)
    line = str(caught.value)
    assert "\n" not in line and str(folder) in line and str(folder.parent / "bad.csv") in line
    with open(folder.parent / "bad.csv") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["token", "file", "problem"]
    return line, {(token, name): problem for token, name, problem in rows[1:]}


def save(folder, token, save=np.savez_compressed, **arrays):
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / f"{token}.npz", **arrays)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "predictions"


# --- good folders


def test_what_is_written_is_read_and_passes(folder):
    for seed, token in enumerate("ab"):
        write_prediction(folder, token, volume(seed))
    assert check(folder, tokens=["a", "b"]) == 0
    for seed, token in enumerate("ab"):
        found = PredictionsFolder(folder).read(token)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, volume(seed))
    assert sorted(os.listdir(folder)) == ["a.npz", "b.npz"]
    assert not (folder.parent / "bad.csv").exists()


def test_the_official_scorer_reads_what_is_written(folder):
    """It asks for `pred` in `<sample token>.npz` and reshapes it to the grid."""
    write_prediction(folder, "a", volume(grid=OCC3D))
    official = np.load(folder / "a.npz", allow_pickle=True)
    assert (
        official.files == ["pred"] and official["pred"].shape == (200, 200, 16) and official["pred"].dtype == np.uint8
    )


@pytest.mark.parametrize("save_as", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, ">i2"])
def test_whole_numbers_of_any_type_in_any_folder_and_order(folder, save_as, dtype):
    semantics = volume().astype(dtype)
    save(folder / "deep/er", "a", save_as, pred=np.asfortranarray(semantics), instances=np.zeros(3))
    assert check(folder) == 0
    found = PredictionsFolder(folder).read("a")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, semantics)


def test_predictions_for_other_keyframes_are_counted_not_read(folder):
    write_prediction(folder, "a", volume())
    save(folder, "b", pred=np.zeros(3))
    (folder / "c.npz").write_bytes(b"never opened")
    (folder / "notes.txt").write_text("not a prediction")
    assert check(folder) == 2


def test_names_as_flashocc_writes_them(folder):
    save(folder / "scene-0001/a", "pred", pred=volume(0), sample_token="a")
    write_prediction(folder, "b", volume(1))
    assert check(folder, tokens=["a", "b"]) == 0
    for seed, token in enumerate("ab"):
        np.testing.assert_array_equal(PredictionsFolder(folder).read(token), volume(seed))
    write_prediction(folder, "a", volume(0))
    assert "(2 token twice)" in refusal(folder)[0]


def test_links_to_folders_are_followed_and_hidden_files_are_none(folder, tmp_path):
    save(tmp_path / "disk2" / "scene-0001" / "a", "pred", pred=volume())
    folder.mkdir()
    (folder / "scene-0001").symlink_to(tmp_path / "disk2" / "scene-0001")
    (folder / "._a.npz").write_bytes(b"of a Mac")
    assert check(folder) == 0
    np.testing.assert_array_equal(PredictionsFolder(folder).read("a"), volume())


def test_a_pred_of_no_keyframe_is_refused(folder):
    save(folder, "pred", pred=volume())
    line, listed = refusal(folder)
    assert "<sample token>/pred.npz" in line and ("predictions", "pred.npz") in listed


def test_writing_again_replaces_and_what_is_interrupted_leaves_the_old_one(folder, monkeypatch):
    write_prediction(folder, "a", volume(0))
    write_prediction(folder, "a", volume(1))
    np.testing.assert_array_equal(PredictionsFolder(folder).read("a"), volume(1))

    def interrupted(file, **_):
        file.write(b"PK half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_prediction(folder, "a", volume(2))
    assert check(folder) == 0
    np.testing.assert_array_equal(PredictionsFolder(folder).read("a"), volume(1))


def test_what_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write the prediction of a to"):
        write_prediction(tmp_path / "file", "a", volume())


# --- bad folders


def test_a_folder_that_is_not_there_or_empty(folder):
    with pytest.raises(InputError, match="no such folder"):
        PredictionsFolder(folder)
    folder.mkdir()
    (folder / "a.npy").touch()
    with pytest.raises(InputError, match="no npz file below it"):
        PredictionsFolder(folder)


NAN = np.where(volume() == 3, np.nan, 1.0).astype(np.float32)


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"pred": volume()[..., :3]}, "wrong shape: uint8 (10, 8, 3), class ids on small are (10, 8, 4)"),
        (
            {"pred": volume().transpose(2, 0, 1)},
            "wrong shape: uint8 (4, 10, 8), class ids on small are (10, 8, 4): other axes, give x forward, y left",
        ),
        (
            {"pred": volume()[None]},
            "wrong shape: uint8 (1, 10, 8, 4), class ids on small are (10, 8, 4): a batch of one, give pred[0]",
        ),
        ({"pred": volume().ravel()}, "wrong shape: uint8 (320,), class ids"),
        (
            {"pred": np.zeros((*SMALL.shape, 18), np.float16)},
            "wrong shape: float16 (10, 8, 4, 18), class ids on small are (10, 8, 4): of scores, give the argmax",
        ),
        ({"pred": np.ones(SMALL.shape)}, "not class ids: float64 values: give the argmax, as uint8"),
        ({"pred": NAN}, f"not class ids: float32 values, {np.isnan(NAN).sum()} of them NaN or infinite: give"),
        ({"pred": np.full(SMALL.shape, np.inf)}, "not class ids: float64 values, 320 of them NaN or infinite: give"),
        ({"pred": np.zeros(SMALL.shape, complex)}, "not class ids: complex128 values: give class ids as uint8"),
        ({"pred": np.full(SMALL.shape, "car")}, "not class ids: <U3 values"),
        ({"pred": volume() != 17}, "not class ids: bool values: give class ids as uint8, 17 where it is free"),
        ({"pred": np.full(SMALL.shape, None)}, "unreadable: ValueError: Object arrays cannot be loaded"),
        ({"pred": np.full(SMALL.shape, 18, np.uint8)}, "class beyond the class set: class 18, occ3d has 0 to 17"),
        ({"pred": volume().astype(np.int8) - 1}, "class beyond the class set: class -1, occ3d has 0 to 17"),
        ({"pred": np.full(SMALL.shape, 2**40)}, f"class beyond the class set: class {2**40}, occ3d"),
        (
            {"semantics": volume(), "mask": volume()},
            "no pred: its keys are semantics, mask: save the class ids as `pred`",
        ),
        ({"arr_0": volume()}, "no pred: its keys are arr_0: save the class ids as `pred`"),
        ({}, "no pred: its keys are none"),
    ],
)
def test_a_bad_file_is_refused_with_its_problem(folder, arrays, problem):
    write_prediction(folder, "b", volume())
    save(folder / "scene", "a", **arrays)
    line, listed = refusal(folder, tokens=["a", "b"])
    assert list(listed) == [("a", "scene/a.npz")]
    assert listed["a", "scene/a.npz"].startswith(problem) and problem in line
    assert f"(1 {problem.partition(':')[0]})" in line


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", None], ids=["empty", "no archive", "array"])
def test_what_is_no_archive_is_refused(folder, content):
    folder.mkdir()
    if content is None:
        with open(folder / "a.npz", "wb") as file:
            np.save(file, volume())
    else:
        (folder / "a.npz").write_bytes(content)
    line, listed = refusal(folder)
    assert "(1 unreadable)" in line and listed["a", "a.npz"].startswith("unreadable: BadZipFile")


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**31), compressed=st.booleans(), cut=st.booleans())
def test_a_damaged_file_is_refused_or_harmless(tmp_path_factory, seed, compressed, cut):
    """Damage to a date inside the archive does not matter; damage to the array never goes unnoticed."""
    random = np.random.default_rng(seed)
    folder = tmp_path_factory.mktemp("damaged") / "predictions"
    save(folder, "a", np.savez_compressed if compressed else np.savez, pred=volume())
    content = np.frombuffer((folder / "a.npz").read_bytes(), np.uint8).copy()
    content[random.integers(0, len(content), 3)] ^= random.integers(1, 256, 3).astype(np.uint8)
    (folder / "a.npz").write_bytes(content[: random.integers(len(content)) if cut else None].tobytes())
    try:
        check(folder)
    except InputError:
        assert len(refusal(folder)[1]) == 1
    else:
        np.testing.assert_array_equal(PredictionsFolder(folder).read("a"), volume())


def test_all_offenders_are_listed_and_each_kind_is_counted(folder):
    known = [f"t{i}" for i in range(40)]
    for token in known[:20]:
        write_prediction(folder, token, volume())
    for token in known[:3]:
        save(folder, token, pred=np.zeros((2, 2, 2), np.uint8))
    (folder / "t5.npz").write_bytes((folder / "t5.npz").read_bytes()[:-40])
    for name in ("again", "and again"):
        write_prediction(folder / name, "t7", volume())
    write_prediction(folder, "t7 copy", volume())
    write_prediction(folder, "t39", volume())
    line, listed = refusal(folder, tokens=known[:25], known=known)
    assert "(1 unknown token, 5 missing, 3 token twice, 3 wrong shape, 1 unreadable)" in line
    assert len(line) < 600 and len(listed) == 13
    assert {token for token, file in listed if not file} == {f"t{i}" for i in range(20, 25)}
    assert {file for token, file in listed if token == "t7"} == {"again/t7.npz", "and again/t7.npz", "t7.npz"}
    assert listed["t7 copy", "t7 copy.npz"].startswith("unknown token")
    assert listed["t22", ""] == "missing: no file t22.npz or t22/pred.npz"


def test_a_token_twice_is_refused_even_if_both_files_agree_and_in_another_split(folder):
    for token in ("a", "b"):
        write_prediction(folder, token, volume())
    write_prediction(folder / "copy", "b", volume())
    line, listed = refusal(folder)
    assert "(2 token twice)" in line
    assert listed == dict.fromkeys([("b", "b.npz"), ("b", "copy/b.npz")], "token twice: one of 2 files for this token")


def test_the_class_set_and_the_grid_decide(folder):
    write_prediction(folder, "a", volume(grid=OCC3D))
    on_occ3d = Labels(OCC3D)
    assert check(folder, labels=on_occ3d) == check(folder, labels=on_occ3d, classes=SURROUNDOCC_CLASSES) == 0
    assert "class ids on small are (10, 8, 4)" in refusal(folder)[0]


def street(free=17):
    """A road below, a few cars on it, and free space above; the cameras see half of it."""
    semantics = np.full(SMALL.shape, free, np.uint8)
    semantics[:, :, 0], semantics[2:4, 2:4, 1] = 11, 4
    seen = np.zeros(SMALL.shape, bool)
    seen[:5] = True
    return {"semantics": semantics, "mask_camera": seen}


def shifted(semantics):
    """Classes from 0, free = 16."""
    return np.where(semantics == 0, 15, semantics - 1).astype(np.uint8)


CONVENTIONS = {
    "0 is empty": lambda semantics: np.where(semantics == 17, 0, semantics),
    "free is 16": shifted,
    "occupied or not": lambda semantics: semantics != 17,
    "all the same": lambda semantics: np.full_like(semantics, 15),
}


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_class_ids_of_another_convention_are_refused(folder, convention, labelled):
    labels = Labels(a=street()) if labelled else Labels()
    write_prediction(folder, "a", street()["semantics"])
    assert check(folder, labels=labels) == 0
    write_prediction(folder, "a", CONVENTIONS[convention](street()["semantics"]).astype(np.uint8))
    line, _ = refusal(folder, labels=labels)
    assert "(1 another convention)" in line and "0.0% of the voxels are free" in line
    assert "Give 17 where it is free" in line


SQUARE = VoxelGrid("square", "ego", (-2.0, -2.0, -0.8), 0.4, (10, 10, 4))


def corner():
    """What looks otherwise from each side: a road and a car in one corner."""
    semantics = np.full(SQUARE.shape, 17, np.uint8)
    semantics[:4, :7, 0], semantics[1, 2:4, 1] = 11, 4
    return {"semantics": semantics, "mask_camera": np.ones(SQUARE.shape, bool)}


TURNED = {  # how it was turned, and the advice that turns it back
    "pred[::-1]": lambda pred: pred[::-1],
    "pred[:, ::-1]": lambda pred: pred[:, ::-1],
    "pred[:, :, ::-1]": lambda pred: pred[:, :, ::-1],
    "pred.swapaxes(0, 1)": lambda pred: pred.swapaxes(0, 1),
    "np.rot90(pred)": lambda pred: np.rot90(pred, -1),
    "np.rot90(pred, 2)": lambda pred: np.rot90(pred, 2),
    "np.rot90(pred, 3)": lambda pred: np.rot90(pred),
    "np.rot90(pred, 2).swapaxes(0, 1)": lambda pred: np.rot90(pred, 2).swapaxes(0, 1),
}


@pytest.mark.parametrize("advice", TURNED)
def test_turned_axes_are_refused_with_how_to_turn_them_back(folder, advice):
    labels = corner()
    write_prediction(folder, "a", labels["semantics"])
    assert check(folder, labels=Labels(SQUARE, a=labels)) == 0
    turned = TURNED[advice](labels["semantics"])
    np.testing.assert_array_equal(eval(advice, {"np": np, "pred": turned}), labels["semantics"])
    write_prediction(folder, "a", turned)
    with pytest.raises(InputError, match="predictions with turned axes") as caught:
        check(folder, labels=Labels(SQUARE, a=labels))
    assert f"and 100% after {advice}: save them so" in str(caught.value)


@pytest.mark.parametrize("wrong", ["all free", "all road", "half of the road", "noise"])
def test_predictions_that_are_only_bad_have_no_turned_axes(folder, wrong):
    labels = corner()
    pred = labels["semantics"].copy()
    if wrong == "noise":
        pred = np.random.default_rng(0).integers(0, 18, SQUARE.shape, np.uint8)
        pred[..., 1:] = 17
    elif wrong == "half of the road":
        pred[::2] = 17
    else:
        pred[..., 0] = 17 if wrong == "all free" else 11
    write_prediction(folder, "a", pred)
    assert check(folder, labels=Labels(SQUARE, a=labels)) == 0


def test_what_cameras_see_decides_where_it_is_known(folder):
    """A network that was trained on visible voxels alone says anything of the others."""
    pred = street()["semantics"]
    pred[5:] = 15
    write_prediction(folder, "a", pred)
    assert check(folder, labels=Labels(a=street())) == 0
    pred = np.full(SMALL.shape, 17, np.uint8)
    pred[:5] = 15
    write_prediction(folder, "a", pred)
    assert "0.0% of the voxels are free" in refusal(folder, labels=Labels(a=street()))[0]


def test_free_space_that_is_mostly_another_class_is_another_convention(folder):
    """Also where some voxels happen to be class 17, and no other class is most of what is seen."""
    pred = street()["semantics"]
    pred[pred == 17] = 12
    pred[:, :3, 1:] = 17
    write_prediction(folder, "a", pred)
    line, _ = refusal(folder, labels=Labels(a=street()))
    assert "of the visible free voxels are class 12 (other_flat)" in line


def test_a_keyframe_that_shows_no_free_space_says_nothing(folder):
    labels = street()
    labels["mask_camera"] = labels["semantics"] == 11
    write_prediction(folder, "a", labels["semantics"])
    assert check(folder, labels=Labels(a=labels)) == 0


def test_a_list_that_cannot_be_written_is_said(folder):
    save(folder, "a", pred=np.zeros(3))
    keyframes = [SimpleNamespace(token="a")]
    with pytest.raises(InputError, match=r"a\.npz: cannot write here"):
        PredictionsFolder(folder).check(keyframes, ["a"], Labels(), OCC3D_CLASSES, folder / "a.npz/bad.csv")


def test_a_file_that_goes_away_while_scoring_is_said(folder):
    write_prediction(folder, "a", volume())
    predictions = PredictionsFolder(folder)
    os.unlink(folder / "a.npz")
    with pytest.raises(InputError, match=r"a\.npz: can no longer be read"):
        predictions.read("a")


def test_the_header_of_a_wrong_shape_decides_before_its_values_are_read(folder):
    """Scores of thousands of keyframes are refused in seconds: here is a header alone, of an array of 23 TB."""
    folder.mkdir()
    with zipfile.ZipFile(folder / "a.npz", "w") as archive, archive.open("pred.npy", "w") as member:
        shape = (200, 200, 16, 18_000_000)
        np.lib.format.write_array_header_1_0(member, {"descr": "<f2", "fortran_order": False, "shape": shape})
    assert refusal(folder)[1]["a", "a.npz"].startswith("wrong shape: float16 (200, 200, 16, 18000000)")

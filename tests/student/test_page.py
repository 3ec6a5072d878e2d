"""The report page: self-contained, complete, escaped."""

import base64
import json
import re
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
from report_page import GRID, a_keyframe, a_verdict, page_of, results_of

from distill.classes import SURROUNDOCC_CLASSES
from distill.grids import VoxelGrid
from student.evaluation.page import encode_volume


class Elements(HTMLParser):
    """Tags with attributes, text, and whether every tag is closed by its own."""

    VOID = frozenset({"meta", "link", "img", "input", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def words_of(page):
    return " ".join(" ".join(Elements(page).text).split())


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    results = results_of("student", "teacher")
    page = page_of(tmp_path, results, [a_keyframe(results)])
    elements = Elements(page)
    assert elements.open == []
    addresses = [tag[1][name] for tag in elements.tags for name in ("src", "href") if name in tag[1]]
    assert len(addresses) > 6 * 3
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "http:" not in page and "https:" not in page and "@import" not in page and "url(" not in page
    ids = {attributes["id"] for _, attributes in elements.tags if "id" in attributes}
    assert {address[1:] for address in addresses if address.startswith("#")} <= ids
    policy = [attributes["content"] for tag, attributes in elements.tags if "http-equiv" in attributes]
    assert policy[0].startswith("default-src 'none'; img-src data:;")


def shown_numbers(source):
    """Every number of a source, but for its facts, cost and robustness, as it must stand on the page."""
    values = [*source["metrics"].values(), *(count for row in source["confusion"] for count in row)]
    for table in source["per_class"].values():
        values += table.values()
    for table in (source["bands"]["distance"], *source["reliability"].values()):
        values += [value for name, column in table.items() if name != "labels" for value in column]
    return ["–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.2f}" for value in values]


def test_every_number_is_shown(tmp_path):
    results = results_of("student", "teacher")
    page = page_of(tmp_path, results)
    text = words_of(page)
    titles = [attributes.get("title") or "" for _, attributes in Elements(page).tags]
    shown = set(" ".join([text, *titles]).split())
    for source in results["sources"].values():
        numbers = shown_numbers(source)
        assert len(numbers) > 400
        assert not set(numbers) - shown
        for fact in (*source["facts"].values(), source["path"], source["kind"]):
            assert (", ".join(fact) if isinstance(fact, list) else fact) in text
    for fact in ("6,432,178", "21.35", "188.41 median, 203.97 p95 of 20 runs", "128 × 352", "a processor", "float32"):
        assert fact in text
    for fact in ("dropped CAM_FRONT", "31.25", "44.50", "−8.75", "1,234", "0 to 10 m"):
        assert fact in text
    for fact in results["scored"].values():
        assert isinstance(fact, (list, int)) or fact in text


def test_differences_are_against_the_first_and_know_what_is_better(tmp_path):
    results = results_of("a", "b")
    results["sources"]["a"]["metrics"] = {"Occ3D-17 mIoU": 20.0, "ECE": 5.0, "flicker pairs": 3}
    results["sources"]["b"]["metrics"] = {"Occ3D-17 mIoU": 22.5, "ECE": 6.25, "flicker pairs": 3}
    page = page_of(tmp_path, results)
    changes = re.findall(r'class="change (\w*)"\s+title="(\w+)">([^<]+)<', page)
    assert changes == [("better", "better", "+2.50"), ("worse", "worse", "+1.25")]
    best = re.findall(r'class="value best">([^<]+)<', page)
    assert best == ["22.50", "5.00"]


@pytest.mark.parametrize("missing", ["reliability", "cost", "robustness"])
def test_a_section_without_data_is_left_out(tmp_path, missing):
    results = results_of("a", "b")
    del results["sources"]["a"][missing]
    assert f'id="{missing}"' in page_of(tmp_path, results)
    del results["sources"]["b"][missing]
    page = page_of(tmp_path, results)
    assert f'id="{missing}"' not in page and f'href="#{missing}"' not in page
    assert 'id="keyframes"' not in page


@pytest.mark.parametrize("count", [1, 6])
def test_one_source_and_six(tmp_path, count):
    results = results_of(*(f"source {place}" for place in range(count)))
    results["sources"]["source 0"]["metrics"]["new"] = None
    results["sources"]["source 0"]["confusion"][3] = [0] * 18
    page = page_of(tmp_path, results, [a_keyframe(results)])
    assert page.count('<li class="card">') == count
    assert page.count("<figure data-pane") == count
    assert ('class="change' in page) == (count > 1)
    assert "None" not in words_of(page) and "nan" not in words_of(page)


def test_it_begins_with_the_verdict_where_there_is_one(tmp_path):
    results = results_of("student", "teacher", "control")
    assert 'id="verdict"' not in page_of(tmp_path, results)
    page = page_of(tmp_path, {"verdict": a_verdict(), **results})
    assert Elements(page).open == []
    assert page.index('id="verdict"') < page.index('class="card"')
    text = words_of(page)
    assert "Distilling gains +1.90 mIoU over the control [+0.80, +3.00], 6 % of the gap to the teacher" in text
    assert "RayIoU: no difference that 18 keyframes can show, −0.20 [−1.00, +0.60]" in text
    assert "construction vehicle −4.00 [−6.00, −2.00] in 18 keyframes" in text
    assert "ONE seed per arm" in text and "unlearnt: construction vehicle" in text
    assert len(re.findall('<li class="shown">', page)) == 1
    lines = re.findall(r'<svg class="interval( \w+)?".*?<path d="M([\d.]+) 4H([\d.]+)"/>', page)
    assert lines[0] == (" better", "63.33", "100.00") and lines[2] == ("", "33.33", "60.00")
    assert lines[3] == (" worse", "0.00", "33.33") and lines[4] == ("", "41.67", "41.67")


def test_names_and_paths_are_escaped(tmp_path):
    harmless, evil = "name", '</script><b title="x">&amp;'
    pages = []
    for name in (harmless, evil):
        results = results_of(name, "b")
        results["sources"][name] |= {"path": name, "facts": {name: name}}
        results["scored"]["command"] = name
        pages.append(page_of(tmp_path, results, [a_keyframe(results)]))
    plain, page = map(Elements, pages)
    assert evil not in pages[1]
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert " ".join(page.text).count(evil) > 20


def volumes_of(page):
    return re.findall(r'<script type="text/plain" data-volume="(\w+)">([^<]*)</script>', page)


def test_voxels_arrive_as_they_left(tmp_path):
    volume = np.random.default_rng(0).integers(0, 18, (5, 4, 3), dtype=np.uint8)
    decoded = np.frombuffer(zlib.decompress(base64.b64decode(encode_volume(volume))), dtype=np.uint8)
    assert (decoded.reshape(5, 4, 3) == volume).all()
    results = results_of("a")
    keyframe = a_keyframe(results)
    found = volumes_of(page_of(tmp_path, results, [keyframe]))
    assert [name for name, _ in found] == ["0", "1", "mask"]
    arrays = [np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(GRID.shape) for _, text in found]
    assert (arrays[0] == keyframe.volumes["ground truth"]).all()
    assert (arrays[2] == keyframe.mask_XYZ).all()


def test_a_lidar_grid_is_turned_so_that_forward_is_ahead(tmp_path):
    grid = VoxelGrid("lidar", "lidar", (-6.0, -8.0, -3.0), 1.0, (12, 16, 4))
    results = results_of("a")
    results["scored"] |= {"classes": list(SURROUNDOCC_CLASSES.names)}
    results["sources"]["a"]["per_class"] = {"Occ3D-17 IoU": dict.fromkeys(SURROUNDOCC_CLASSES.names, 1.0)}
    # 4.5 m ahead (y), 2.5 m to the right (x)
    page = page_of(tmp_path, results, [a_keyframe(results, grid, (8, 12, 1))], SURROUNDOCC_CLASSES, grid)
    scene = json.loads(re.search(r'id="scene">(.*?)</script>', page)[1])
    assert scene["shape"] == [16, 12, 4] and scene["lower"] == [-8.0, -6.0, -3.0]
    text = volumes_of(page)[0][1]
    turned = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(scene["shape"])
    (index,) = np.argwhere(turned == 7)
    assert (np.array(scene["lower"]) + (index + 0.5)).tolist() == [4.5, -2.5, -1.5]
    assert scene["car"][0]["lower"] == pytest.approx([-0.9 - 0.94, -0.9, 0.25 - 1.84])

"""The report page, visited with a headless Chromium."""

import json
import os
import queue
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from report_page import a_keyframe, page_of, results_of

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--window-size=3300,700",
)


# What a visitor does, run inside the page: before anything else, and after everything.
BEFORE = """<script>
const trouble = [];
addEventListener("error", (event) => trouble.push(event.message));
addEventListener("unhandledrejection", (event) => trouble.push(String(event.reason)));
document.addEventListener("securitypolicyviolation", (event) => trouble.push(event.blockedURI));
%s
</script>"""
AFTER = """<script>
const until = async (test) => {
  for (let i = 0; i < 200 && !test(); i++) await new Promise((go) => setTimeout(go, 20));
};
const pixels = (canvas) => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height), colours = new Set();
  let drawn = 0, sum = 0;
  for (let i = 0; i < data.length; i += 4) {
    if (data[i + 3]) drawn++;
    colours.add((data[i] << 16) | (data[i + 1] << 8) | data[i + 2]);
    sum = (sum * 31 + data[i] + data[i + 1] + data[i + 2]) %% 1e9;
  }
  return { share: drawn * 4 / data.length, colours: colours.size, sum };
};
const shown = () => [...document.querySelectorAll("[data-picture]:not([hidden])")].map((img) => img.dataset.picture);
(async () => {
  const canvas = document.querySelector("canvas"), message = document.querySelector(".message");
  const faces = () => Number(canvas.dataset.faces ?? 0), result = { early: faces(), trouble };
  canvas.scrollIntoView();
  await until(() => faces() || message.textContent.startsWith("No"));
  result.message = message.hidden ? null : message.textContent;
  result.too_wide = document.documentElement.scrollWidth - innerWidth;
  document.querySelectorAll("details").forEach((details) => { details.open = true; });
  result.sideways = [...document.querySelectorAll("body *")]
    .filter((one) => getComputedStyle(one).overflowX === "auto" && one.scrollWidth > one.clientWidth)
    .map((one) => one.getAttribute("aria-label") ?? one.className);
  if (faces()) {
    result.masked = faces();
    result.first = pixels(canvas);
    canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft", cancelable: true }));
    await until(() => pixels(canvas).sum !== result.first.sum);
    result.turned = pixels(canvas);
    document.querySelector("[data-masked]").click();
    await until(() => faces() !== result.masked);
    result.all = faces();
    result.pictures = [shown()];
    document.querySelectorAll(".keyframe [data-show]")[1].click();
    result.pictures.push(shown());
    await until(() => faces() !== result.all);
    result.student = faces();
    document.querySelector("[data-overlay]").click();
    result.pictures.push(shown());
    result.hidden_panes = [...document.querySelectorAll("[data-pane]")].map((pane) => pane.hidden);
  }
  parent.postMessage({ name: "%s", ...result }, "*");
})();
</script>"""
FRAMES = """<script>
const options = { method: "POST", mode: "no-cors" };
addEventListener("message", ({ data }) => fetch("%s", { ...options, body: JSON.stringify(data) }));
</script>"""
NO_WEBGL = """
const { getContext } = HTMLCanvasElement.prototype;
HTMLCanvasElement.prototype.getContext = function (kind) {
  return kind === "webgl2" ? null : getContext.call(this, kind);
};
"""


class Told(BaseHTTPRequestHandler):
    """Puts what is posted into the server's `found`."""

    def do_POST(self):
        self.server.found.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


def visit(tmp_path, page, visitors):
    """What the visitors find, by name; all in one start of the browser, which opens files and posts what it finds.

    Args:
        tmp_path: for files.
        page: the HTML.
        visitors: name -> width of the window, and what is run first.
    """
    with ThreadingHTTPServer(("127.0.0.1", 0), Told) as server:
        server.found = queue.Queue()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        frames = FRAMES % f"http://127.0.0.1:{server.server_port}"
        for name, (width, first) in visitors.items():
            visited = page.replace("<body>", "<body>" + BEFORE % first).replace("</body>", AFTER % name + "</body>")
            (tmp_path / f"{name}.html").write_text(visited, encoding="utf-8")
            frames += f'<iframe src="{name}.html" style="border:0;width:{width}px;height:600px"></iframe>'
        (tmp_path / "frames.html").write_text(frames)
        command = [
            str(CHROMIUM),
            *FLAGS,
            f"--user-data-dir={tmp_path / 'profile'}",
            (tmp_path / "frames.html").as_uri(),
        ]
        browser = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ | {"HOME": str(tmp_path)})
        try:
            found = [server.found.get(timeout=120) for _ in visitors]
        finally:
            browser.terminate()
            browser.wait(30)
            server.shutdown()
    return {one["name"]: one for one in found}


def exposed_faces(solid_XYZ):
    padded_XYZ = np.pad(solid_XYZ, 1).astype(np.int8)
    return sum(int(np.abs(np.diff(padded_XYZ, axis=axis)).sum()) for axis in range(3))


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH: apt-get install chromium")
def test_the_page_in_a_browser(tmp_path):
    results = results_of("student", "a teacher with quite a long name_that_has_no_gaps_to_break_at")
    keyframe = a_keyframe(results)
    truth = keyframe.volumes["ground truth"]
    keyframe.volumes["student"] = np.where(np.arange(16)[:, None, None] < 8, truth, np.uint8(17))
    visitors = {"desktop": (1280, ""), "laptop": (1024, ""), "phone": (360, ""), "old": (500, NO_WEBGL)}
    found = visit(tmp_path, page_of(tmp_path, results, [keyframe]), visitors)
    assert found.keys() == visitors.keys()
    for visitor in found.values():
        assert visitor["trouble"] == []
        assert visitor["early"] == 0  # the view waits until it is in sight
        assert visitor["too_wide"] <= 0
    assert found["desktop"]["sideways"] == found["laptop"]["sideways"] == []
    assert found["phone"]["sideways"] != []  # there, tables scroll in their boxes
    assert found["old"]["message"] == "No 3D view: this browser offers no WebGL 2."
    for name in ("desktop", "phone"):
        visitor = found[name]
        assert visitor["message"] is None
        assert visitor["masked"] == exposed_faces((truth != 17) & keyframe.mask_XYZ)
        assert visitor["all"] == exposed_faces(truth != 17)
        assert visitor["student"] == exposed_faces(keyframe.volumes["student"] != 17)
        assert visitor["first"]["share"] > 0.1 and visitor["first"]["colours"] > 10
        assert visitor["turned"]["sum"] != visitor["first"]["sum"]
        assert visitor["pictures"] == [["1"] * 6, ["2"] * 6, ["0"] * 6]
        assert visitor["hidden_panes"] == [False, True]

"use strict";
// Buttons that choose what is shown, and the 3D views of the keyframes.
// All views share one WebGL 2 context (browsers allow few) and copy its picture into a 2D canvas of their own.
// Comes after page.voxels.js.

function onChoice(root, show) {
  const buttons = [...root.querySelectorAll("[data-show]")];
  for (const button of buttons) {
    button.addEventListener("click", () => {
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      show(Number(button.dataset.show));
    });
  }
  show(0);
}

for (const section of document.querySelectorAll("[data-panes]")) {
  const panes = [...section.querySelectorAll("[data-pane]")];
  onChoice(section, (chosen) => panes.forEach((pane, place) => { pane.hidden = place !== chosen; }));
  const tell = (event) => {
    const cell = event.target.closest("td[title]");
    if (cell) cell.closest("[data-pane]").querySelector("output").textContent = cell.title;
  };
  section.addEventListener("pointerover", tell);
  section.addEventListener("click", tell);
}

async function inflate(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

const views = [];
let renderer = null; // made for the first view that comes into sight

function theRenderer() {
  if (renderer) return renderer;
  renderer = new Renderer();
  renderer.canvas.addEventListener("webglcontextlost", () => {
    renderer = null;
    for (const view of views) Object.assign(view, { mesh: null }).load();
  });
  return renderer;
}

class View {
  constructor(article) {
    const find = (selector) => article.querySelector(selector);
    [this.canvas, this.message, this.masked] = [find("canvas"), find(".message"), find("[data-masked]")];
    this.volume = (name) => inflate(find(`[data-volume="${name}"]`).textContent);
    this.chosen = 0;
    this.seen = false;
    this.reset();
    this.masked.addEventListener("change", () => this.load());
    this.listen();
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    new IntersectionObserver(([entry], observer) => {
      if (!entry.isIntersecting) return;
      observer.disconnect();
      this.seen = true;
      this.load();
    }, { rootMargin: "300px" }).observe(this.canvas);
  }

  reset() {
    const [x, y, z] = minus(scene.eye, scene.target);
    this.distance = Math.hypot(x, y, z);
    Object.assign(this, { azimuth: Math.atan2(y, x), lift: Math.asin(z / this.distance) });
    this.draw();
  }

  async load() {
    if (!this.seen) return;
    const { chosen } = this, masked = this.masked.checked;
    try {
      const classes = await this.volume(chosen), mask = masked && await this.volume("mask");
      if (chosen !== this.chosen || masked !== this.masked.checked) return; // chosen anew in the meantime
      const old = this.mesh;
      this.mesh = theRenderer().mesh(exposedFaces(classes, mask));
      if (old) theRenderer().drop(old);
      this.message.hidden = true;
      this.draw();
    } catch (error) {
      Object.assign(this.message, { hidden: false, textContent: error.message });
    }
  }

  draw() {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.paint());
  }

  paint() {
    const { canvas, azimuth, lift } = this, sharp = Math.min(window.devicePixelRatio, 2);
    const width = Math.round(canvas.clientWidth * sharp), height = Math.round(canvas.clientHeight * sharp);
    if (!this.mesh || !width || !height) return;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const away = [Math.cos(lift) * Math.cos(azimuth), Math.cos(lift) * Math.sin(azimuth), Math.sin(lift)];
    const distance = this.distance * Math.max(1, 1.5 * height / width); // all of it on a narrow canvas, too
    const eye = scene.target.map((value, i) => value + distance * away[i]);
    const floor = getComputedStyle(canvas).getPropertyValue("--floor").trim().split(" ").map((part) => part / 255);
    const paper = canvas.getContext("2d");
    paper.clearRect(0, 0, width, height);
    paper.drawImage(theRenderer().draw(width, height, eye, this.mesh, floor), 0, 0);
    canvas.dataset.faces = this.mesh.faces;
  }

  turn(right, up, closer) {
    this.azimuth -= right;
    this.lift = Math.min(1.55, Math.max(0.03, this.lift + up));
    this.distance = Math.min(400, Math.max(5, this.distance / closer));
    this.draw();
  }

  listen() {
    const { canvas } = this, fingers = new Map(), on = (kind, act) => canvas.addEventListener(kind, act);
    const span = ([a, b]) => Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
    const lift = (event) => fingers.delete(event.pointerId);
    on("pointerdown", (event) => {
      canvas.focus({ preventScroll: true });
      canvas.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, event);
    });
    on("pointermove", (event) => {
      const last = fingers.get(event.pointerId), before = [...fingers.values()];
      if (!last) return;
      fingers.set(event.pointerId, event);
      if (before.length === 2) this.turn(0, 0, span([...fingers.values()]) / Math.max(1, span(before)));
      else this.turn((event.clientX - last.clientX) * 0.008, (event.clientY - last.clientY) * 0.006, 1);
    });
    on("pointerup", lift);
    on("pointercancel", lift);
    on("wheel", (event) => {
      if (document.activeElement !== canvas) return; // the page scrolls on
      event.preventDefault();
      this.turn(0, 0, Math.exp(-event.deltaY * 0.0012));
    });
    on("dblclick", () => this.reset());
    const keys = { ArrowLeft: [-0.1, 0, 1], ArrowRight: [0.1, 0, 1], ArrowUp: [0, 0.1, 1], ArrowDown: [0, -0.1, 1],
      "+": [0, 0, 1.15], "=": [0, 0, 1.15], "-": [0, 0, 1 / 1.15] };
    on("keydown", (event) => {
      if (!(event.key in keys) || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      this.turn(...keys[event.key]);
    });
  }
}

for (const article of document.querySelectorAll(".keyframe")) {
  const view = new View(article), overlay = article.querySelector("[data-overlay]");
  const pictures = [...article.querySelectorAll("[data-picture]")];
  const refresh = () => {
    const shown = String(overlay.checked ? view.chosen + 1 : 0);
    for (const picture of pictures) picture.hidden = picture.dataset.picture !== shown;
  };
  views.push(view);
  overlay.addEventListener("change", refresh);
  onChoice(article, (chosen) => {
    view.chosen = chosen;
    view.load();
    refresh();
  });
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => views.forEach((view) => view.draw()));

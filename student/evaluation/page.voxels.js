"use strict";
// Voxels as pictures, by WebGL 2: which faces are seen, where the camera stands, and one renderer for all views.
// A face is x, y, z, side (2 * axis + upper) as 16 bits each; red, green, blue, openness of its four corners as 8.

const scene = JSON.parse(document.getElementById("scene").textContent);
const FACE_BYTES = 12;

function packFaces(faces) {
  const words = new Uint16Array(faces.length * FACE_BYTES / 2), bytes = new Uint8Array(words.buffer);
  faces.forEach(({ x, y, z, side, colour, open }, place) => {
    words.set([x, y, z, side], place * FACE_BYTES / 2);
    bytes.set(colour, place * FACE_BYTES + 8);
    bytes[place * FACE_BYTES + 11] = open;
  });
  return bytes;
}

// The faces between a voxel that is shown and one that is not.
function exposedFaces(classes, mask) {
  const [X, Y, Z] = scene.shape, steps = [(Y + 2) * (Z + 2), Z + 2, 1];
  const solid = new Uint8Array((X + 2) * (Y + 2) * (Z + 2)); // with a border of one empty voxel
  const shown = [];
  for (let x = 0, index = 0; x < X; x++) {
    for (let y = 0; y < Y; y++) {
      for (let z = 0; z < Z; z++, index++) {
        if (classes[index] === scene.free || (mask && !mask[index])) continue;
        const here = (x + 1) * steps[0] + (y + 1) * steps[1] + z + 1;
        solid[here] = 1;
        shown.push({ x, y, z, here, colour: scene.palette[classes[index]] });
      }
    }
  }
  const faces = [];
  for (const { x, y, z, here, colour } of shown) {
    for (let side = 0; side < 6; side++) {
      const axis = side >> 1, beside = here + (side & 1 ? 1 : -1) * steps[axis];
      if (solid[beside]) continue;
      const open = openness(solid, beside, steps[(axis + 1) % 3], steps[(axis + 2) % 3]);
      faces.push({ x, y, z, side, colour, open });
    }
  }
  return packFaces(faces);
}

// Two bits for each corner of a face: 3 in the open, less beside voxels that take light from it.
function openness(solid, beside, stepU, stepV) {
  let open = 0;
  for (let corner = 0; corner < 4; corner++) {
    const u = corner & 1 ? stepU : -stepU, v = corner & 2 ? stepV : -stepV;
    const a = solid[beside + u], b = solid[beside + v];
    open |= (a && b ? 0 : 3 - a - b - solid[beside + u + v]) << (2 * corner);
  }
  return open;
}

const boxFaces = (colour) =>
  packFaces([0, 1, 2, 3, 4, 5].map((side) => ({ x: 0, y: 0, z: 0, side, colour, open: 255 })));

function floorFaces([columns, rows]) {
  const cells = Array.from({ length: columns * rows }, (_, cell) => [cell % columns, Math.floor(cell / columns)]);
  return packFaces(cells.map(([x, y]) => ({ x, y, z: 0, side: 5, colour: [255, 255, 255], open: 255 })));
}

// ---- camera ----

const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const minus = (a, b) => a.map((value, axis) => value - b[axis]);
const cross = (a, b) => [0, 1, 2].map((i) => a[(i + 1) % 3] * b[(i + 2) % 3] - a[(i + 2) % 3] * b[(i + 1) % 3]);
const unit = (a) => a.map((value) => value / Math.sqrt(dot(a, a)));

// Metres to clip space, column by column.
function cameraMatrix(eye, target, aspect) {
  const forward = unit(minus(target, eye)), right = unit(cross(forward, [0, 0, 1])), up = cross(right, forward);
  const focal = 1 / Math.tan(scene.field_of_view * Math.PI / 360), near = 1, far = 1000;
  const scale = (far + near) / (far - near), shift = -2 * far * near / (far - near), depth = -dot(forward, eye);
  const columns = [0, 1, 2].map((i) => [focal / aspect * right[i], focal * up[i], scale * forward[i], forward[i]]);
  return [...columns.flat(), -focal / aspect * dot(right, eye), -focal * dot(up, eye), scale * depth + shift, depth];
}

// ---- drawing ----

const VERTEX = `#version 300 es
layout(location = 0) in uvec4 face;
layout(location = 1) in uvec4 paint;
uniform mat4 camera;
uniform vec3 lower, size, tint;
out vec3 colour;
out vec2 place;
const float SHADES[6] = float[6](0.76, 0.62, 0.66, 0.60, 0.50, 1.0);
void main() {
  vec2 uv = vec2(gl_VertexID & 1, gl_VertexID >> 1);
  float upper = float(face.w & 1u);
  uint axis = face.w >> 1;
  vec3 corner = axis == 0u ? vec3(upper, uv) : axis == 1u ? vec3(uv.y, upper, uv.x) : vec3(uv, upper);
  float open = float((paint.w >> uint(2 * gl_VertexID)) & 3u) / 3.0;
  colour = vec3(paint.rgb) / 255.0 * tint * SHADES[face.w] * mix(0.72, 1.0, open);
  place = uv;
  gl_Position = camera * vec4(lower + (vec3(face.xyz) + corner) * size, 1.0);
}`;

// The edges of a face are darker, unless it is too small for them.
const FRAGMENT = `#version 300 es
precision highp float;
in vec3 colour;
in vec2 place;
uniform float ink;
out vec4 result;
void main() {
  vec2 pixel = fwidth(place), away = min(place, 1.0 - place) / pixel;
  float line = 1.0 - smoothstep(0.3, 1.3, min(away.x, away.y));
  float large = 1.0 - smoothstep(0.15, 0.5, max(pixel.x, pixel.y));
  result = vec4(colour * (1.0 - ink * line * large), 1.0);
}`;

class Renderer {
  constructor() {
    this.canvas = document.createElement("canvas");
    const gl = this.gl = this.canvas.getContext("webgl2", { antialias: true });
    if (!gl) throw new Error("No 3D view: this browser offers no WebGL 2.");
    const program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
    gl.useProgram(program);
    gl.enable(gl.DEPTH_TEST);
    this.at = (name) => gl.getUniformLocation(program, name);
    const [x, y, z] = scene.lower, cell = scene.floor.map((count, i) => scene.shape[i] * scene.voxel_size / count);
    this.floor = { mesh: this.mesh(floorFaces(scene.floor)), lower: [x, y, z - 0.05], size: [...cell, 0], ink: 0.14 };
    this.car = scene.car.map((box) => ({ ...box, mesh: this.mesh(boxFaces(box.colour)), ink: 0.25, tint: [1, 1, 1] }));
  }

  mesh(bytes) {
    const gl = this.gl, layout = gl.createVertexArray(), buffer = gl.createBuffer();
    gl.bindVertexArray(layout);
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
    gl.bufferData(gl.ARRAY_BUFFER, bytes, gl.STATIC_DRAW);
    for (const [location, kind, offset] of [[0, gl.UNSIGNED_SHORT, 0], [1, gl.UNSIGNED_BYTE, 8]]) {
      gl.enableVertexAttribArray(location);
      gl.vertexAttribIPointer(location, 4, kind, FACE_BYTES, offset);
      gl.vertexAttribDivisor(location, 1);
    }
    return { layout, buffer, faces: bytes.length / FACE_BYTES };
  }

  drop(mesh) {
    this.gl.deleteVertexArray(mesh.layout);
    this.gl.deleteBuffer(mesh.buffer);
  }

  draw(width, height, eye, voxels, floorColour) {
    const gl = this.gl, size = Array(3).fill(scene.voxel_size);
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    gl.viewport(0, 0, width, height);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.uniformMatrix4fv(this.at("camera"), false, cameraMatrix(eye, scene.target, width / height));
    const parts = [{ ...this.floor, tint: floorColour }, ...this.car,
      { mesh: voxels, lower: scene.lower, size, ink: 0.3, tint: [1, 1, 1] }];
    for (const { mesh, ink, ...vectors } of parts) {
      for (const name of ["lower", "size", "tint"]) gl.uniform3fv(this.at(name), vectors[name]);
      gl.uniform1f(this.at("ink"), ink);
      gl.bindVertexArray(mesh.layout);
      gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, mesh.faces);
    }
    return this.canvas;
  }
}

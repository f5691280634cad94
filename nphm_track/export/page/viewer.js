// The head in WebGL 2: orbit by dragging, zoom by scrolling. It performs along with the video or is the neutral one, keeps
// still or takes the pose seen by the camera, is shaded or coloured by its normals.
function showHead(figure, mesh) {
  const canvas = figure.querySelector("canvas");
  const gl = canvas.getContext("webgl2", { antialias: true, preserveDrawingBuffer: true });
  if (!gl) {
    canvas.replaceWith(Object.assign(document.createElement("p"), { textContent: "This browser shows no WebGL 2." }));
    return;
  }
  const neutral = floats(mesh.vertices), faces = new Uint32Array(bytes(mesh.faces).buffer), points = neutral.slice();
  const targets = new Int8Array(bytes(mesh.targets).buffer), places = bytes(mesh.moved).buffer;
  const moved = 3 * places.byteLength > 2 * targets.length ? new Uint32Array(places) : new Uint16Array(places);
  const weights = floats(mesh.weights), turns = floats(mesh.turns), counts = mesh.counts;
  const motions = counts.length, on = { performs: motions > 0, pose: false, normals: false };
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, `#version 300 es
    in vec3 point; in vec3 normal; in vec3 paint; uniform mat4 view; uniform mat3 turn; out vec3 n; out vec3 own; out vec3 skin;
    void main() { gl_Position = view * vec4(point, 1.0); n = turn * normal; own = normal; skin = paint; }`],
  [gl.FRAGMENT_SHADER, `#version 300 es
    precision highp float; in vec3 n; in vec3 own; in vec3 skin; uniform bool coloured; out vec4 colour;
    void main() {
      vec3 d = normalize(gl_FrontFacing ? n : -n);
      float key = max(dot(d, normalize(vec3(-0.4, 0.6, 0.8))), 0.0), fill = max(dot(d, normalize(vec3(0.8, 0.1, 0.5))), 0.0);
      vec3 lit = skin * (0.18 + 0.72 * key + 0.22 * fill);
      colour = vec4(coloured ? 0.5 + 0.5 * normalize(own) : lit, 1.0);
    }`]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  gl.useProgram(program);
  const [send, sendNormals, sendPaint] = ["point", "normal", "paint"].map((name) => {
    const place = gl.getAttribLocation(program, name), buffer = gl.createBuffer();
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
    gl.enableVertexAttribArray(place);
    gl.vertexAttribPointer(place, 3, gl.FLOAT, false, 0, 0);
    return (values) => { gl.bindBuffer(gl.ARRAY_BUFFER, buffer); gl.bufferData(gl.ARRAY_BUFFER, values, gl.DYNAMIC_DRAW); };
  });
  const paint = bytes(mesh.colours), skin = [0.80, 0.75, 0.70];
  sendPaint(neutral.map((_, i) => (paint.length ? paint[i] / 255 : skin[i % 3])));
  gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
  gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, faces, gl.STATIC_DRAW);
  gl.enable(gl.DEPTH_TEST);

  const low = [Infinity, Infinity, Infinity], high = [-Infinity, -Infinity, -Infinity];
  neutral.forEach((value, i) => { low[i % 3] = Math.min(low[i % 3], value); high[i % 3] = Math.max(high[i % 3], value); });
  const centre = low.map((value, axis) => (value + high[axis]) / 2), radius = Math.hypot(...low.map((v, a) => high[a] - v)) / 2;
  let yaw = 0.5, pitch = 0.1, zoom = 1, seen = -1, shaped = null; // seen: the last row with a head

  function shape() { // the vertices of the row; they stay while the head is lost
    if (!Number.isNaN(turns[9 * row])) seen = row;
    const wanted = on.performs ? seen : -1;
    if (wanted === shaped) return;
    shaped = wanted;
    points.set(neutral);
    for (let k = 0, from = 0; k < motions && wanted >= 0; from += counts[k++]) {
      const weight = weights[wanted * motions + k];
      if (weight === 0) continue;
      for (let i = from; i < from + counts[k]; i++) {
        for (let axis = 0; axis < 3; axis++) points[3 * moved[i] + axis] += weight * targets[3 * i + axis];
      }
    }
    send(points);
    sendNormals(vertexNormals(points, faces));
  }

  function draw() {
    shape();
    const ratio = window.devicePixelRatio || 1;
    canvas.width = canvas.clientWidth * ratio; canvas.height = canvas.clientHeight * ratio;
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    const [cy, sy, cp, sp] = [Math.cos(yaw), Math.sin(yaw), Math.cos(pitch), Math.sin(pitch)];
    let rows = [[cy, 0, sy], [sp * sy, cp, -sp * cy], [-cp * sy, sp, cp * cy]];
    if (on.pose && seen >= 0) {
      const R = turns.subarray(9 * seen, 9 * seen + 9);
      rows = rows.map((r) => [0, 1, 2].map((c) => r[0] * R[c] + r[1] * R[3 + c] + r[2] * R[6 + c]));
    }
    const away = (3.1 * radius) / zoom, near = away - 1.5 * radius > 0.05 * radius ? away - 1.5 * radius : 0.05 * radius, far = away + 2 * radius;
    const lens = 3.4, aspect = canvas.width / canvas.height, narrow = Math.min(1, aspect);
    const shift = rows.map((r) => -(r[0] * centre[0] + r[1] * centre[1] + r[2] * centre[2]));
    const [a, b] = [(far + near) / (near - far), (2 * far * near) / (near - far)];
    const view = new Float32Array(16), sx = (lens * narrow) / aspect, syy = lens * narrow;
    for (let column = 0; column < 3; column++) {
      view.set([sx * rows[0][column], syy * rows[1][column], a * rows[2][column], -rows[2][column]], 4 * column);
    }
    const depth = shift[2] - away;
    view.set([sx * shift[0], syy * shift[1], a * depth + b, -depth], 12);
    gl.uniformMatrix4fv(gl.getUniformLocation(program, "view"), false, view);
    gl.uniformMatrix3fv(gl.getUniformLocation(program, "turn"), true, new Float32Array(rows.flat()));
    gl.uniform1i(gl.getUniformLocation(program, "coloured"), on.normals);
    gl.drawElements(gl.TRIANGLES, faces.length, gl.UNSIGNED_INT, 0);
  }

  canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
  canvas.addEventListener("pointermove", (event) => {
    if (!event.buttons) return;
    yaw += event.movementX / 150;
    pitch = Math.max(-1.5, Math.min(1.5, pitch + event.movementY / 150));
    draw();
  });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom = Math.max(0.5, Math.min(6, zoom * Math.exp(-event.deltaY / 600)));
    draw();
  }, { passive: false });
  figure.querySelectorAll("button").forEach((button) => {
    const name = button.dataset.switch;
    button.ariaPressed = on[name];
    button.hidden = name === "performs" && !motions;
    button.addEventListener("click", () => {
      button.ariaPressed = on[name] = !on[name];
      if (name === "pose") [yaw, pitch] = on.pose ? [0, 0] : [0.5, 0.1];
      draw();
    });
  });
  let due = false; // a video may ask faster than the screen shows
  followers.push(() => {
    if (!due) requestAnimationFrame(() => { due = false; draw(); });
    due = true;
  });
  new ResizeObserver(draw).observe(canvas);
  draw();
}

function vertexNormals(points, faces) {
  const normals = new Float32Array(points.length);
  for (let i = 0; i < faces.length; i += 3) {
    const a = 3 * faces[i], b = 3 * faces[i + 1], c = 3 * faces[i + 2];
    const ux = points[b] - points[a], uy = points[b + 1] - points[a + 1], uz = points[b + 2] - points[a + 2];
    const vx = points[c] - points[a], vy = points[c + 1] - points[a + 1], vz = points[c + 2] - points[a + 2];
    const x = uy * vz - uz * vy, y = uz * vx - ux * vz, z = ux * vy - uy * vx;
    normals[a] += x; normals[a + 1] += y; normals[a + 2] += z;
    normals[b] += x; normals[b + 1] += y; normals[b + 2] += z;
    normals[c] += x; normals[c + 1] += y; normals[c + 2] += z;
  }
  for (let i = 0; i < normals.length; i += 3) {
    const length = Math.hypot(normals[i], normals[i + 1], normals[i + 2]) || 1;
    for (let k = 0; k < 3; k++) normals[i + k] /= length;
  }
  return normals;
}

if (data.mesh) showHead(find("#head"), data.mesh); else find("#head").remove();

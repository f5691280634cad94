"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const floats = (text) => new Float32Array(bytes(text).buffer);
const find = (selector) => document.querySelector(selector);
function make(tag, parent, properties = {}) {
  const element = Object.assign(document.createElement(tag), properties);
  parent.append(element);
  return element;
}

const STATUS = ["tracked", "filled in", "lost"], STATUS_COLOURS = ["#3f9b6c", "#e0a92e", "#cf4b42"];
const css = (name) => getComputedStyle(document.body).getPropertyValue(name).trim(); // follows light and dark
const clock = floats(data.time), status = bytes(data.status), count = clock.length; // seconds from the first frame
const shapes = bytes(data.blendshapes); // [T, 52], 0..254 for 0..1, 255 where unknown
const lanes = [
  { name: "confidence", values: floats(data.confidence), unit: "", top: 1 },
  { name: "landmark error", values: floats(data.landmark_error_px), unit: " px" },
  { name: "normal error", values: floats(data.normal_error_deg), unit: "°" },
].filter((lane) => lane.values.some(Number.isFinite));

let row = 0;
const followers = []; // called with the row that is shown

// Player

const player = find("#player");
let video = null;
if (data.overlay && data.overlay.kind === "video") {
  video = make("video", player, { controls: true, loop: true, muted: true, playsInline: true, preload: "auto" });
  video.src = data.overlay.base64
    ? URL.createObjectURL(new Blob([bytes(data.overlay.base64)], { type: "video/mp4" })) : data.overlay.href;
  video.addEventListener("error", () => make("p", player, { textContent: "The overlay video cannot be played." }));
  const follow = (seconds) => { if (!video.seeking) show(rowAt(seconds), false); }; // while it seeks, the old frame is told
  if (video.requestVideoFrameCallback) {
    const step = (_, frame) => { follow(frame.mediaTime); video.requestVideoFrameCallback(step); };
    video.requestVideoFrameCallback(step);
  } else video.addEventListener("timeupdate", () => follow(video.currentTime));
  video.addEventListener("seeked", () => follow(video.currentTime));
  if (data.overlay.href) make("p", player, { textContent: `The video is too large to be inside this page; keep ${data.overlay.href} beside it.` });
} else if (data.overlay) {
  make("img", player, { src: `data:image/png;base64,${data.overlay.base64}`, alt: "The head over the image" });
} else make("p", player, { textContent: "This run has no overlay." });

function rowAt(seconds) { // the last frame that has begun
  let low = 0, high = count - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (clock[middle] <= seconds + 1e-3) low = middle; else high = middle - 1;
  }
  return low;
}

function show(next, seek = true) {
  row = Math.max(0, Math.min(count - 1, next));
  if (seek && video) { video.pause(); video.currentTime = clock[row] + 2e-3; }
  followers.forEach((follower) => follower(row));
}

// Time line

const canvas = find("#timeline canvas"), readout = find("output"), LEFT = 130, RIGHT = 8, STRIP = 22, LANE = 64;
const chosen = new Set(data.lively);
if (chosen.size) lanes.push({ name: "blendshapes", curves: true, unit: "", top: 1 });
const laneHeight = (lane) => (lane.curves ? 2 * LANE : LANE);
const height = STRIP + 20 + lanes.reduce((sum, lane) => sum + laneHeight(lane) + 12, 0);
let picture = null; // the lanes without the play head
const scale = () => window.devicePixelRatio || 1;
const last = Math.max(clock[count - 1], 1e-6);
const xOf = (seconds, width) => LEFT + (seconds / last) * (width - LEFT - RIGHT);
const colourOf = (shape) => { const colours = css("--curves").split(" "); return colours[[...chosen].indexOf(shape) % colours.length]; };

function line(context, width, top, tall, peak, value, colour) {
  context.strokeStyle = colour;
  context.beginPath();
  let open = false;
  for (let i = 0; i < count; i++) {
    const y = value(i);
    if (!Number.isFinite(y)) { open = false; continue; }
    const point = [xOf(clock[i], width), top + tall - (Math.min(y, peak) / peak) * tall];
    if (open) context.lineTo(...point); else { context.moveTo(...point); context.lineTo(point[0] + 0.5, point[1]); }
    open = true;
  }
  context.stroke();
}

function drawLanes() {
  const width = canvas.clientWidth, ratio = scale();
  if (!width) return; // not laid out, as in a page that is being left
  canvas.style.height = `${height}px`;
  canvas.width = width * ratio; canvas.height = height * ratio;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.scale(ratio, ratio);
  context.font = "12px system-ui, sans-serif"; context.lineWidth = 1.25; context.textBaseline = "middle";
  const ink = css("--dim"), rule = css("--line");
  context.fillStyle = ink; context.fillText("status", 0, STRIP / 2);
  for (let i = 0; i < count; i++) {
    context.fillStyle = STATUS_COLOURS[status[i]];
    const x = xOf(clock[i], width), end = i + 1 < count ? xOf(clock[i + 1], width) : width - RIGHT;
    context.fillRect(x, 2, Math.max(end - x + 0.3, 2), STRIP - 6);
  }
  let top = STRIP + 8;
  for (const lane of lanes) {
    const tall = laneHeight(lane);
    const peak = lane.top || Math.max(...Array.from(lane.values).filter(Number.isFinite), 1e-6);
    context.strokeStyle = rule; context.strokeRect(LEFT, top, width - LEFT - RIGHT, tall);
    context.fillStyle = ink; context.fillText(lane.name, 0, top + tall / 2);
    context.textAlign = "right"; context.fillText(`${+peak.toPrecision(2)}${lane.unit}`, LEFT - 6, top + 6);
    context.fillText("0", LEFT - 6, top + tall - 4); context.textAlign = "left";
    if (!lane.curves) line(context, width, top, tall, peak, (i) => lane.values[i], css("--accent"));
    else for (const shape of chosen) line(context, width, top, tall, 1, (i) => shapeAt(i, shape), colourOf(shape));
    top += tall + 12;
  }
  picture = context.getImageData(0, 0, canvas.width, canvas.height);
  drawPlayHead();
}

const shapeAt = (i, shape) => { const value = shapes[i * data.shape_names.length + shape]; return value === 255 ? NaN : value / 254; };

function drawPlayHead() {
  if (!picture) return;
  const context = canvas.getContext("2d"), x = xOf(clock[row], canvas.clientWidth) * scale();
  context.putImageData(picture, 0, 0);
  context.save(); context.setTransform(1, 0, 0, 1, 0, 0);
  context.fillStyle = getComputedStyle(document.body).color;
  context.fillRect(Math.round(x), 0, Math.max(1, scale()), canvas.height);
  context.restore();
  const numbers = lanes.filter((lane) => !lane.curves && Number.isFinite(lane.values[row]))
    .map((lane) => `${lane.name} ${lane.values[row].toFixed(2)}${lane.unit}`);
  const weights = [...chosen].map((shape) => [shape, shapeAt(row, shape)]).filter((pair) => pair[1] > 0.05)
    .map(([shape, value]) => `${data.shape_names[shape]} ${value.toFixed(2)}`);
  readout.textContent = [`frame ${data.frame[row]}`, `${(data.start + clock[row]).toFixed(3)} s`, STATUS[status[row]],
    ...numbers, ...weights].join("  ·  ");
}

function seekTo(event) {
  const box = canvas.getBoundingClientRect(), part = (event.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT);
  const seconds = Math.max(0, Math.min(1, part)) * last, before = rowAt(seconds);
  const nearer = before + 1 < count && clock[before + 1] - seconds < seconds - clock[before] ? before + 1 : before;
  show(nearer);
}
canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); seekTo(event); });
canvas.addEventListener("pointermove", (event) => { if (event.buttons) seekTo(event); });
document.addEventListener("keydown", (event) => {
  if (event.target !== document.body) return;
  if (event.key === "ArrowLeft") show(row - 1);
  if (event.key === "ArrowRight") show(row + 1);
});
followers.push(drawPlayHead);
new ResizeObserver(drawLanes).observe(find("#timeline"));
const paintCurves = () => { document.querySelectorAll("#curves button").forEach((chip) => chip.dispatchEvent(new Event("paint"))); drawLanes(); };
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paintCurves);

if (data.lively.length) data.shape_names.forEach((name, shape) => {
  const chip = make("button", find("#curves"), { type: "button", textContent: name });
  const paint = () => { chip.ariaPressed = chosen.has(shape); chip.style.color = chosen.has(shape) ? colourOf(shape) : ""; };
  chip.addEventListener("click", () => {
    if (!chosen.delete(shape)) chosen.add(shape);
    paintCurves();
  });
  chip.addEventListener("paint", paint);
  paint();
});

// Worst frames and facts

find("#summary").textContent = data.summary;
for (const frame of data.worst) {
  const card = make("figure", find("#worst div"), { tabIndex: 0 });
  if (frame.jpeg) make("img", card, { src: `data:image/jpeg;base64,${frame.jpeg}`, alt: `frame ${data.frame[frame.row]}` });
  make("figcaption", card, { textContent: `frame ${data.frame[frame.row]}, ${(data.start + clock[frame.row]).toFixed(2)} s: ${frame.why}` });
  card.addEventListener("click", () => show(frame.row));
  card.addEventListener("keydown", (event) => { if (event.key === "Enter") show(frame.row); });
}
find("#worst").hidden = !data.worst.length;
for (const [title, facts] of Object.entries(data.facts)) {
  const card = make("div", find("#facts"));
  make("h2", card, { textContent: title });
  const list = make("dl", card);
  for (const [name, value] of facts) { make("dt", list, { textContent: name }); make("dd", list, { textContent: value }); }
}
show(0, false);

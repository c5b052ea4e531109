// The page: where pictures come from, and how answers and sampling points are shown.

import { Mistake, classify, loadClassifier, pointsAt } from "./classifier.js";

const LARGEST = 2 ** 24; // pixels of a canvas on phones
const element = (id) => document.getElementById(id);

/** What the page shows: the model, the picture, its answer, the probed pixel of the network's input; and what is due. */
export const state = { classifier: null, image: null, answer: null, probe: null, queue: Promise.resolve() };

/** Do `job` after the others; a mistake is shown, and the page stays as it was. */
function enqueue(job) {
  state.queue = state.queue.then(job).then(() => (element("error").hidden = true), (error) => {
    if (!(error instanceof Mistake)) console.error(error);
    element("error").textContent = error.message;
    element("error").hidden = false;
  });
}

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

// Models

async function useModel(bytes, name) {
  try {
    state.classifier = await loadClassifier(bytes);
  } catch (error) {
    throw error instanceof Mistake ? new Mistake(`${name}: ${error.message}.`) : error;
  }
  element("model").textContent = `${name} (${(bytes.length / 1e6).toFixed(1)} MB)`;
  state.probe = null;
  if (state.image) await answer(state.image);
  else element("status").textContent = "Choose a picture.";
}

/** The model beside the page and its sample pictures. */
async function useOwnModel() {
  const response = await fetch("model.onnx");
  if (!response.ok) {
    element("status").textContent = "Choose a model below.";
    throw new Mistake("There is no model beside this page: run `make web`, or choose an exported classifier below.");
  }
  await useModel(new Uint8Array(await response.arrayBuffer()), "model.onnx");
  for (const name of state.classifier.meta.class_names) {
    const image = make("img", { src: `samples/${name}.png`, alt: `Sample: ${name}` });
    const button = make("button", { type: "button", ariaPressed: "false" }, image);
    image.onerror = () => button.remove();
    button.onclick = () => enqueue(async () => {
      await usePicture(await (await fetch(image.src)).blob(), name);
      button.ariaPressed = "true";
    });
    element("samples").append(button);
  }
  element("samples").firstChild?.click();
}

// Pictures

async function usePicture(blob, name) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  } catch {
    throw new Mistake(`${name} is not an image that this browser can read; choose a PNG, JPEG or WebP file.`);
  }
  const scale = Math.min(1, Math.sqrt(LARGEST / (bitmap.width * bitmap.height)));
  const side = (length) => Math.max(1, Math.floor(length * scale));
  const canvas = make("canvas", { width: side(bitmap.width), height: side(bitmap.height) });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white"; // behind transparent pixels
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  await answer(context.getImageData(0, 0, canvas.width, canvas.height));
}

async function answer(image) {
  if (!state.classifier) throw new Mistake("Choose a model first.");
  const start = performance.now();
  state.answer = await classify(state.classifier, image);
  const milliseconds = (performance.now() - start).toFixed(0);
  state.image = image;
  const { seen, probabilities } = state.answer;
  state.probe ??= [Math.floor(seen.width / 2), Math.floor(seen.height / 2)];
  for (const button of element("samples").children) button.ariaPressed = "false";
  const order = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]).slice(0, 5);
  const percent = (index) => `${(100 * probabilities[index]).toFixed(1)}%`;
  const names = state.classifier.meta.class_names;
  element("status").textContent = `${names[order[0]]}, ${percent(order[0])} (${milliseconds} ms)`;
  element("top").replaceChildren(...order.map((index) => {
    const bar = make("span", { className: "bar" });
    bar.style.width = percent(index);
    return make("li", {}, bar, make("span", { textContent: names[index] }), make("span", { textContent: percent(index) }));
  }));
  show();
}

// Sampling points

/** Draw the picture with the probed pixel, and each level's points. */
function show() {
  if (!state.answer) return;
  const { seen, levels } = state.answer;
  const [x, y] = state.probe;
  const picture = make("canvas", { width: seen.width, height: seen.height });
  picture.getContext("2d").putImageData(new ImageData(seen.data, seen.width, seen.height), 0, 0);
  const large = element("picture");
  large.height = Math.round((large.width * seen.height) / seen.width);
  const view = viewOf(large, picture, [0, 0, seen.width, seen.height]);
  star(view, [x, y]);
  element("legend").hidden = !levels.length;
  element("probe").textContent = levels.length
    ? `Column ${x}, row ${y} of ${seen.width} x ${seen.height} pixels.`
    : "This model has no sampling points; export it with --sampling-points to see them.";
  const figures = element("levels").children;
  if (figures.length !== levels.length) {
    element("levels").replaceChildren(...levels.map(() =>
      make("figure", {}, make("canvas", { width: 440, ariaHidden: "true" }), make("figcaption"))));
  }
  levels.forEach((level, number) => {
    const [canvas, caption] = figures[number].children;
    const points = pointsAt(level, x, y);
    caption.textContent = `Level ${number + 1}, stride ${level.stride}: `
      + `${points.groups.length}\u00a0×\u00a0${points.grid.length} points` + drawLevel(canvas, picture, level, points);
  });
}

/** Draw one level; returns what to say about points outside of the frame. */
function drawLevel(canvas, picture, level, { center, grid, groups }) {
  // Two steps of the level's grid around the image, at most half its size.
  const room = Math.min(2 * level.stride, picture.width / 2, picture.height / 2);
  const frame = [-room, -room, picture.width + room, picture.height + room];
  canvas.height = Math.round((canvas.width * (frame[3] - frame[1])) / (frame[2] - frame[0]));
  const view = viewOf(canvas, picture, frame);
  const { context } = view;
  for (const [width, color] of [[5, "black"], [2, "white"]]) { // visible on any picture
    context.lineWidth = width;
    context.strokeStyle = color;
    context.beginPath();
    for (const [px, py] of grid.map(view.place)) {
      context.moveTo(px - 7, py);
      context.lineTo(px + 7, py);
      context.moveTo(px, py - 7);
      context.lineTo(px, py + 7);
    }
    context.stroke();
  }
  let total = 0;
  let beyond = 0;
  groups.forEach((points, group) => {
    context.fillStyle = `hsl(${(group * 137.5) % 360} 85% 55% / 0.8)`;
    for (const [x, y, weight] of points) {
      const [px, py] = view.place([x, y]);
      total += weight;
      if (px < 0 || py < 0 || px > canvas.width || py > canvas.height) beyond += weight;
      context.beginPath();
      context.arc(px, py, 6 * Math.sqrt(weight * points.length), 0, 2 * Math.PI);
      context.fill();
    }
  });
  star(view, center);
  return beyond ? `; ${Math.max(1, Math.round((100 * beyond) / total))}% of the weight is outside of this view` : "";
}

/** Draw the part `frame` (left, top, right, bottom) of the picture; `place` takes the centre of pixel 0 as 0. */
function viewOf(canvas, picture, [left, top, right]) {
  canvas.onclick = (event) => {
    const pixels = (right - left) / canvas.getBoundingClientRect().width;
    probe(left + event.offsetX * pixels, top + event.offsetY * pixels);
  };
  const context = canvas.getContext("2d");
  const scale = canvas.width / (right - left);
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingEnabled = false;
  context.drawImage(picture, -left * scale, -top * scale, picture.width * scale, picture.height * scale);
  return { context, place: ([x, y]) => [(x + 0.5 - left) * scale, (y + 0.5 - top) * scale] };
}

const STAR = new Path2D("M0-13 4-5 13-4 6 2 8 11 0 7-8 11-6 2-13-4-4-5Z");

function star({ context, place }, pixel) {
  context.save();
  context.translate(...place(pixel));
  Object.assign(context, { lineWidth: 2, fillStyle: "gold", strokeStyle: "black" });
  context.fill(STAR);
  context.stroke(STAR);
  context.restore();
}

// What the reader does

function probe(x, y) {
  const { width, height } = state.answer.seen;
  const inside = (value, size) => Math.min(Math.max(Math.floor(value), 0), size - 1);
  state.probe = [inside(x, width), inside(y, height)];
  show();
}

element("picture").onkeydown = (event) => {
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!step || !state.answer) return;
  event.preventDefault();
  const length = event.shiftKey ? 8 : 1;
  probe(state.probe[0] + length * step[0], state.probe[1] + length * step[1]);
};

async function useFile(file, isModel = file.name.toLowerCase().endsWith(".onnx")) {
  if (isModel) await useModel(new Uint8Array(await file.arrayBuffer()), file.name);
  else await usePicture(file, file.name);
}

for (const input of [element("image-file"), element("model-file")]) {
  input.onchange = () => {
    const [file] = input.files;
    if (file) enqueue(() => useFile(file, input.id === "model-file"));
    input.value = ""; // so that the same file can be chosen again
  };
}

document.ondragover = (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
};
document.ondragleave = () => document.body.classList.remove("dropping");
document.ondrop = (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  const [file] = event.dataTransfer.files;
  enqueue(() => {
    if (!file) throw new Mistake("What was dropped is not a file; save the image first, then drop the file.");
    return useFile(file);
  });
};

// Drawing: white on black, as in Fashion-MNIST

const pad = element("pad");
const pen = pad.getContext("2d", { willReadFrequently: true });

function clear() {
  pen.fillStyle = "black";
  pen.fillRect(0, 0, pad.width, pad.height);
}

clear();
element("clear").onclick = clear;
element("draw").onclick = () => {
  const box = element("pad-box");
  box.hidden = !box.hidden;
  element("draw").ariaExpanded = String(!box.hidden);
};
Object.assign(pen, { lineWidth: 26, lineCap: "round", lineJoin: "round", strokeStyle: "white" });
pad.onpointerdown = (event) => {
  pad.setPointerCapture(event.pointerId);
  pen.beginPath();
  pad.onpointermove(event);
};
pad.onpointermove = (event) => {
  if (!event.buttons) return;
  const scale = pad.width / pad.getBoundingClientRect().width;
  pen.lineTo(event.offsetX * scale, event.offsetY * scale);
  pen.stroke();
};
pad.onpointerup = () => enqueue(() => answer(pen.getImageData(0, 0, pad.width, pad.height)));

enqueue(useOwnModel);

// A classifier exported by classification/export.py, run by ONNX Runtime Web. No access to the page here.

import * as ort from "./ort.wasm.bundle.min.mjs";

ort.env.wasm.numThreads = 1; // several need headers that a plain static server does not send
ort.env.logLevel = "error";

/** Bad input. The message is one line for the reader of the page. */
export class Mistake extends Error {}

// Metadata: ONNX Runtime Web does not return them, so they are read from the protobuf message.

/** The `metadata_props` of an ONNX file, an object of strings. */
function readMetadata(bytes) {
  const text = new TextDecoder();
  const METADATA_PROPS = 14; // field of ModelProto, with messages of (1: key, 2: value)
  const result = {};
  for (const [field, entry] of fields(bytes)) {
    if (field === METADATA_PROPS) {
      const pair = Object.fromEntries(fields(entry));
      result[text.decode(pair[1])] = text.decode(pair[2]);
    }
  }
  return result;
}

/** The fields of a protobuf message with a length, as [number, bytes]. */
function* fields(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let scale = 1; at < bytes.length; scale *= 128) {
      const byte = bytes[at++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
    throw new Mistake("it is not an ONNX file");
  };
  while (at < bytes.length) {
    const tag = varint();
    const kind = tag % 8;
    if (kind === 0) varint();
    else if (kind === 1) at += 8;
    else if (kind === 5) at += 4;
    else if (kind === 2) {
      const length = varint();
      yield [Math.floor(tag / 8), bytes.subarray(at, at + length)];
      at += length;
    } else throw new Mistake("it is not an ONNX file");
  }
}

/** Load a classifier from the bytes of its file; throws a Mistake that says what is wrong with the file. */
export async function loadClassifier(bytes) {
  const strings = readMetadata(bytes);
  const advice = "export it with classification/export.py of this project";
  if (strings.task && strings.task !== "classification") {
    throw new Mistake(`it is a model for ${strings.task}; this page shows classifiers`);
  }
  const meta = { resize: strings.resize, interpolation: strings.interpolation };
  for (const key of ["class_names", "mean", "std", "size"]) {
    if (!strings[key]) throw new Mistake(`its metadata have no ${key}; ${advice}`);
    meta[key] = JSON.parse(strings[key]);
  }
  meta.points = strings.points ? JSON.parse(strings.points) : [];
  if (!KERNELS[meta.interpolation]) {
    throw new Mistake(`its interpolation is ${meta.interpolation}; supported: ${Object.keys(KERNELS).join(", ")}`);
  }
  let session;
  try {
    session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  } catch (error) {
    throw new Mistake(`ONNX Runtime Web cannot run it: ${String(error.message ?? error).split("\n")[0]}`);
  }
  const shape = session.inputMetadata[0].shape;
  const channels = meta.mean.length;
  const fixed = (axis, allowed) => typeof shape[axis] !== "number" || allowed(shape[axis]);
  if (shape.length !== 4 || !fixed(0, (n) => n === 1) || !fixed(1, (n) => n === channels)) {
    throw new Mistake(`its input is ${shape.join(" x ")}, expected 1 x ${channels} x height x width; ${advice}`);
  }
  if (!session.outputNames.includes("logits")) {
    throw new Mistake(`its outputs are ${session.outputNames.join(", ")}, expected logits; ${advice}`);
  }
  [2, 3].forEach((axis) => fixed(axis, (length) => (meta.size[axis - 2] = length)));
  return { session, meta };
}

/**
 * Probabilities of an image `{width, height, data}` (RGBA bytes), what the network saw of it, and for each level
 * `{stride, grid, dims, data}`: the points without offsets, and the sampling points `(1, Ho, Wo, G, P, 3)`.
 */
export async function classify({ session, meta }, image) {
  const [height, width] = meta.size;
  const seen = toSize(image, width, height, meta);
  const input = new ort.Tensor("float32", normalise(seen, meta), [1, meta.mean.length, height, width]);
  let outputs;
  try {
    outputs = await session.run({ [session.inputNames[0]]: input });
  } catch (error) {
    throw new Mistake(`The model cannot run on ${width} x ${height} pixels: ${error.message.split("\n")[0]}`);
  }
  const levels = meta.points.map((level, number) => {
    const { dims, data } = outputs[`points_${number}`];
    return { ...level, dims, data };
  });
  return { seen, probabilities: softmax(outputs.logits.data), levels };
}

function softmax(logits) {
  const largest = logits.reduce((a, b) => Math.max(a, b));
  const exponentials = Array.from(logits, (value) => Math.exp(value - largest));
  const sum = exponentials.reduce((a, b) => a + b);
  return exponentials.map((value) => value / sum);
}

/** What a level reads for its pixel nearest to image pixel (x, y), in image pixels: centre, grid, groups of points. */
export function pointsAt(level, x, y) {
  const { stride, dims: [, rows, columns, groups, points], data } = level;
  const nearest = (value, count) => Math.min(Math.max(roundToEven(value / stride), 0), count - 1);
  const column = nearest(x, columns);
  const row = nearest(y, rows);
  const start = (row * columns + column) * groups * points * 3;
  const triple = (index) => Array.from(data.subarray(start + 3 * index, start + 3 * index + 3));
  const center = [column * stride, row * stride];
  return {
    center,
    grid: level.grid.map(([dx, dy]) => [center[0] + dx, center[1] + dy]),
    groups: Array.from({ length: groups }, (_, group) =>
      Array.from({ length: points }, (_, point) => triple(group * points + point))),
  };
}

// From pictures to tensors, with the numbers of Pillow and torchvision, with which the models were trained.

/** As Python rounds. */
function roundToEven(value) {
  const rounded = Math.round(value);
  return Math.abs(value % 1) === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}

const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
const KERNELS = {
  bilinear: { support: 1, at: (x) => 1 - x },
  bicubic: { support: 2, at: (x) => (x < 1 ? 1.5 * x ** 3 - 2.5 * x ** 2 + 1 : -0.5 * x ** 3 + 2.5 * x ** 2 - 4 * x + 2) },
  lanczos: { support: 3, at: (x) => sinc(x) * sinc(x / 3) },
};

/** Resize and crop an image as the metadata say. */
function toSize(image, width, height, { resize, interpolation }) {
  if (resize === "stretch") return resample(image, width, height, KERNELS[interpolation]);
  const scale = Math.max(width / image.width, height / image.height);
  const side = (own, wanted) => Math.max(wanted, Math.floor(own * scale + 1e-6));
  const resized = resample(image, side(image.width, width), side(image.height, height), KERNELS[interpolation]);
  const left = roundToEven((resized.width - width) / 2);
  const top = roundToEven((resized.height - height) / 2);
  const data = new Uint8ClampedArray(width * height * 4);
  for (let y = 0; y < height; y++) {
    const start = ((top + y) * resized.width + left) * 4;
    data.set(resized.data.subarray(start, start + width * 4), y * width * 4);
  }
  return { width, height, data };
}

/** Antialiased resizing, first along rows, then along columns, with bytes in between. */
function resample(image, width, height, kernel) {
  const wide = resampleAxis(image.data, image.width, width, image.height, 4, image.width * 4, width * 4, kernel);
  const data = resampleAxis(wide, image.height, height, width, width * 4, 4, 4, kernel);
  return { width, height, data };
}

/** `step`: bytes between pixels of a line; `lineIn`, `lineOut`: between lines. */
function resampleAxis(source, size, newSize, lines, step, lineIn, lineOut, kernel) {
  if (size === newSize) return source;
  const ONE = 2 ** 22; // weights are integers, as in Pillow
  const scale = size / newSize;
  const stretch = Math.max(scale, 1);
  const result = new Uint8ClampedArray(newSize * lines * 4);
  for (let i = 0; i < newSize; i++) {
    const center = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - kernel.support * stretch + 0.5));
    const last = Math.min(size, Math.trunc(center + kernel.support * stretch + 0.5));
    const weights = Array.from({ length: last - first }, (_, k) => {
      const distance = Math.abs(first + k - center + 0.5) / stretch;
      return distance < kernel.support ? kernel.at(distance) : 0;
    });
    const sum = weights.reduce((a, b) => a + b);
    const whole = weights.map((weight) => Math.round((weight / sum) * ONE));
    for (let line = 0; line < lines; line++) {
      for (let channel = 0; channel < 4; channel++) {
        let value = ONE / 2;
        const start = first * step + line * lineIn + channel;
        for (let k = 0; k < whole.length; k++) value += whole[k] * source[start + k * step];
        result[i * step + line * lineOut + channel] = Math.floor(value / ONE);
      }
    }
  }
  return result;
}

/** RGBA bytes to normalised planes of RGB, or of grey if the model has one channel. */
function normalise({ width, height, data }, { mean, std }) {
  const area = width * height;
  const planes = new Float32Array(mean.length * area);
  for (let i = 0; i < area; i++) {
    const [red, green, blue] = data.subarray(4 * i, 4 * i + 3);
    const grey = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16; // ITU-R 601, as in Pillow
    (mean.length === 1 ? [grey] : [red, green, blue]).forEach((value, channel) => {
      planes[channel * area + i] = (value / 255 - mean[channel]) / std[channel];
    });
  }
  return planes;
}

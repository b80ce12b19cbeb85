// Appended to page.js by `mlimages export --page`: runs the exported file in one thread of onnxruntime-web.
const RUNTIME = /* runtime */;
const MAX_PIXELS = 16e6;  // limit of a canvas on iOS; larger images are scaled down
const PLACES = [["top left", "top", "top right"], ["left", "centre", "right"], ["bottom left", "bottom", "bottom right"]];
const UNDECODABLE = "this browser cannot decode it. It may be damaged, too large, or in a format that browsers do not read, "
  + "such as HEIC or TIFF: use JPEG or PNG";
let ort, model, session, turn = Promise.resolve();

function unreachable(path, error) {
  const advice = path.startsWith("https:") ? "export with --ort-web to include onnxruntime-web in the folder"
    : "upload the whole folder again";
  return new Error(path + " could not be loaded, or has unexpected contents (" + error.message + "). Check the connection, or "
    + advice);
}

// An error that says what the host returned instead of an exported file.
function wrongFile(path, file, problem) {
  const text = new TextDecoder().decode(file.slice(0, 200)).trimStart();
  if (text.startsWith("version https://git-lfs")) {
    return new Error(path + ": the host returned a Git LFS pointer. Run 'git lfs pull' before uploading the folder, "
      + "or commit the file without Git LFS");
  }
  if (text.startsWith("<")) problem = "the host returned a web page, perhaps because the file is missing";
  return new Error(path + ": " + problem + ". Upload the whole folder again");
}

// `no-cache`: otherwise the browser might go on using the previous contents of a file that was uploaded again.
async function read(path, options) {
  const response = await fetch(path, {cache: "no-cache", ...options}).catch(error => { throw unreachable(path, error); });
  if (!response.ok) throw unreachable(path, {message: "HTTP " + response.status});
  return response.arrayBuffer().catch(error => { throw unreachable(path, error); });
}

async function readMetadata() {
  const file = await read("model.json");
  try {
    const metadata = JSON.parse(new TextDecoder().decode(file));
    if (metadata.sha256) return metadata;
  } catch { /* not JSON */ }
  throw wrongFile("model.json", file, "the file is incomplete, or from another export than the page");
}

async function readNetwork() {
  const file = await read("model.onnx"), size = file.byteLength;
  if (size === model.bytes && await hasHash(file, model.sha256)) return file;
  const difference = size === model.bytes ? "different SHA-256" : size + " bytes, expected " + model.bytes;
  const problem = "the file is " + (size < model.bytes ? "incomplete" : "damaged") + ", or from another export than model.json";
  throw wrongFile("model.onnx", file, problem + " (" + difference + ")");
}

// Over HTTP, except on localhost, browsers have no `crypto.subtle`: there only the size is compared.
async function hasHash(file, sha256) {
  if (!crypto.subtle) return true;
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", file));
  return Array.from(hash, byte => byte.toString(16).padStart(2, "0")).join("") === sha256;
}

async function load() {
  if (location.protocol === "file:") {
    throw new Error("browsers do not allow a page opened from disk to load the model. Serve the folder with a web "
      + "server, for example: python3 -m http.server -d FOLDER, and open http://localhost:8000/");
  }
  model = await readMetadata();
  describe(model);
  say("Loading the model, " + (model.bytes / 1e6).toFixed(0) + " MB …");
  const [module, wasm, file] = await Promise.all([
    import(RUNTIME.script).catch(error => { throw unreachable(RUNTIME.script, error); }),
    read(RUNTIME.wasm, {integrity: RUNTIME.integrity}),
    readNetwork(),
  ]);
  ort = module;
  Object.assign(ort.env.wasm, {numThreads: 1, wasmBinary: wasm});
  session = await ort.InferenceSession.create(file, {executionProviders: ["wasm"]});
  await checkProbe();
  say("");
}

// Compares the logits of the small image in every exported file with the expected ones.
async function checkProbe() {
  const {width, height, pixels, logits, tolerance} = model.probe;
  const found = await run(Uint8Array.from(atob(pixels), letter => letter.charCodeAt(0)), width, height);
  const largest = Math.max(...logits.map(Math.abs), 1e-6);
  if (!logits.every((want, n) => Math.abs(found.logits[n] - want) <= tolerance * largest)) {
    const advice = crypto.subtle ? "" : ", or upload the whole folder again, as model.onnx may be from another export";
    throw new Error("the outputs of the model in this browser differ from the expected ones: try another browser" + advice);
  }
}

// RGB pixels in row order -> the outputs of the file by name; calls run one after another.
function run(pixels, width, height) {
  const call = async () => {
    const outputs = await session.run({image: new ort.Tensor("uint8", pixels, [1, height, width, 3])});
    return Object.fromEntries(Object.entries(outputs).map(([name, tensor]) => [name, [...tensor.data]]));
  };
  return turn = turn.then(call, call);
}

// Like images.load_rgb: upright, transparent pixels on white, colour profiles ignored. Returns {pixels, width, height}.
async function decode(file) {
  if (!file.size) throw {code: "empty"};
  const options = {imageOrientation: "from-image", colorSpaceConversion: "none"};
  const bitmap = await createImageBitmap(file, options).catch(() => { throw {message: UNDECODABLE}; });
  const scale = Math.min(1, Math.sqrt(MAX_PIXELS / (bitmap.width * bitmap.height)));
  const [width, height] = [bitmap.width, bitmap.height].map(side => Math.max(1, Math.floor(side * scale)));
  const context = blank(width, height).getContext("2d", {willReadFrequently: true});
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  const {data} = context.getImageData(0, 0, width, height), pixels = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; to < pixels.length; from += 4) {
    const [r, g, b] = [data[from], data[from + 1], data[from + 2]];
    const luma = model.image.gray_scale ? (r * 19595 + g * 38470 + b * 7471 + 32768) >> 16 : -1;
    pixels[to++] = luma < 0 ? r : luma;
    pixels[to++] = luma < 0 ? g : luma;
    pixels[to++] = luma < 0 ? b : luma;
  }
  return {pixels, width, height};
}

function blank(width, height) {
  return Object.assign(document.createElement("canvas"), {width, height});
}

const rint = x => Math.abs(x % 1) === .5 ? 2 * Math.round(x / 2) : Math.round(x);  // halves to even, as in Python

// Like images.prepare_pixels.
function prepare(image) {
  const {width, height, resize, shorter_px, position} = model.image;
  const covered = image.width >= width && image.height >= height;
  if (resize === "downscale" && covered) {
    const w = Math.min(image.width, Math.floor(image.height * width / height));
    const h = Math.min(image.height, Math.floor(image.width * height / width));
    image = cut(image, Math.floor((image.width - w) / 2), Math.floor((image.height - h) / 2), w, h);
  }
  let size = [image.width, image.height];
  if (resize === "shorter") size = size.map(side => Math.floor(shorter_px * side / Math.min(image.width, image.height)));
  if (resize === "squash" || (resize === "downscale" && covered)) size = [width, height];
  if (resize === "letterbox") {
    const scale = Math.min(width / image.width, height / image.height);
    size = size.map(side => Math.max(1, rint(side * scale)));
  }
  if (size[0] * size[1] > model.max_pixels) throw {code: "too-many-pixels"};
  const resized = resample(image, ...size);
  const start = (side, crop) => side >= crop ? rint((side - crop) / 2) : -Math.floor((crop - side) / 2);
  const [left, top] = resize === "position" ? position : [start(size[0], width), start(size[1], height)];
  return cut(resized, left, top, width, height);
}

// A rectangle of an image, black outside the image.
function cut(image, left, top, width, height) {
  const pixels = new Uint8Array(width * height * 3);
  const [from, to] = [Math.max(0, left), Math.min(image.width, left + width)];
  for (let y = Math.max(0, -top); y < Math.min(height, image.height - top) && from < to; y++) {
    const row = (y + top) * image.width;
    pixels.set(image.pixels.subarray(3 * (row + from), 3 * (row + to)), 3 * (y * width + from - left));
  }
  return {pixels, width, height};
}

// Pillow's resize, bit for bit: 8-bit levels in two passes (ImagingResampleInner in libImaging/Resample.c).
function resample(image, width, height) {
  const shrink = [image.width - width, image.height - height];
  const heightFirst = shrink[1] > 0 && shrink[1] > 2 * shrink[0];
  const across = one => resampleSide(one, width, one.height, true);
  const down = one => resampleSide(one, one.width, height, false);
  return heightFirst ? across(down(image)) : down(across(image));
}

// One pass, along the width or the height.
function resampleSide(image, width, height, isWidth) {
  if (width === image.width && height === image.height) return image;
  const source = image.pixels, step = isWidth ? 3 : 3 * image.width;  // from one value to the next of the sum
  const taps = weights(isWidth ? image.width : image.height, isWidth ? width : height);
  const pixels = new Uint8ClampedArray(width * height * 3);
  for (let y = 0, to = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const {start, fixed} = taps[isWidth ? x : y];
      const first = 3 * (isWidth ? y * image.width + start : start * image.width + x);
      for (let channel = 0; channel < 3; channel++) {
        let sum = 2 ** 21;
        for (let n = 0, from = first + channel; n < fixed.length; n++, from += step) sum += source[from] * fixed[n];
        pixels[to++] = Math.floor(sum / 2 ** 22);
      }
    }
  }
  return {pixels: new Uint8Array(pixels.buffer), width, height};
}

// For each output pixel: its first input pixel, and the weights from there in 22-bit fixed point.
function weights(from, to) {
  const bicubic = model.image.interpolation === "bicubic", scale = from / to, widen = Math.max(scale, 1);
  const kernel = x => !bicubic ? Math.max(0, 1 - x) : x < 1 ? (1.5 * x - 2.5) * x * x + 1
    : x < 2 ? ((-.5 * x + 2.5) * x - 4) * x + 2 : 0;  // a = -0.5
  const support = (bicubic ? 2 : 1) * widen;
  return Array.from({length: to}, (_, n) => {
    const center = (n + .5) * scale;
    const start = Math.max(0, Math.trunc(center - support + .5)), end = Math.min(from, Math.trunc(center + support + .5));
    const real = Array.from({length: end - start}, (_, x) => kernel(Math.abs((x + start - center + .5) / widen)));
    const total = real.reduce((sum, one) => sum + one, 0);
    const round = one => Math.trunc(one / total * 2 ** 22 + (one < 0 ? -.5 : .5));
    return {start, fixed: Int32Array.from(real, round)};
  });
}

// Like inference.to_graph_input: adds a border, so that the resize and crop in the file return the prepared pixels.
function runPrepared(image) {
  const {width, height, resize, shorter_px, position: [left, top]} = model.image;
  if (resize === "shorter") {
    image = cut(image, -rint((shorter_px - width) / 2), -rint((shorter_px - height) / 2), shorter_px, shorter_px);
  } else if (resize === "position") {
    image = cut(image, -left, -top, Math.max(1, width + left), Math.max(1, height + top));
  }
  return run(image.pixels, image.width, image.height);
}

async function classify(file) {
  await ready;
  const {logits, probabilities, known} = await runPrepared(prepare(await decode(file)));
  const order = probabilities.map((_, label) => label).sort((a, b) => probabilities[b] - probabilities[a] || a - b);
  const name = label => ({class_name: model.classes[label], label, probability: probabilities[label]});
  let set = null;
  if (model.set_threshold !== null) {
    const largest = Math.max(...logits), odds = logits.map(logit => Math.exp(logit - largest));
    const total = odds.reduce((sum, one) => sum + one);
    set = order.filter(label => odds[label] / total >= model.set_threshold);
    if (!set.length) set = order.slice(0, 1);
  }
  if (model.thresholds) {
    const reached = order.filter(label => probabilities[label] >= model.thresholds[label]);
    return {labels: reached.map(name), top: order.slice(0, model.top).map(name)};
  }
  return {
    known: known || model.threshold
      ? (!known || known[0] >= model.known_at) && probabilities[order[0]] >= model.threshold : null,
    prediction_set: set && set.map(label => model.classes[label]),
    top: order.slice(0, model.top).map(name),
  };
}

// Like inference.explain: one pass for the whole image, and one for each of grid * grid masked regions.
async function explain(file) {
  await ready;
  const image = prepare(await decode(file)), {pixels, width, height} = image, {grid, window: side} = model;
  const probabilities = async one => {
    await new Promise(done => setTimeout(done));  // let the page respond between two passes
    return (await runPrepared(one)).probabilities;
  };
  const whole = await probabilities(image), label = whole.indexOf(Math.max(...whole));
  const sums = [0, 0, 0];
  pixels.forEach((level, n) => { sums[n % 3] += level; });
  const mean = sums.map(sum => rint(sum / (width * height)));
  const windows = size => Array.from({length: grid}, (_, n) => {
    const step = size / (grid + side - 1), from = rint(n * step);
    return [from, Math.max(from + 1, rint((n + side) * step))];
  });
  const hidden = [];
  for (const [top, bottom] of windows(height)) {
    for (const [left, right] of windows(width)) {
      const masked = pixels.slice();
      for (let y = top; y < bottom; y++) for (let x = left; x < right; x++) masked.set(mean, 3 * (y * width + x));
      hidden.push((await probabilities({pixels: masked, width, height}))[label]);
    }
  }
  const lowest = Math.min(...hidden), at = hidden.indexOf(lowest);
  const third = n => Math.floor(3 * (2 * n + side) / (2 * (grid + side - 1)));
  return {
    class_name: model.classes[label], probability: whole[label], lowest,
    place: PLACES[third(Math.floor(at / grid))][third(at % grid)],
    overlay: overlay(image, hidden.map(one => whole[label] - one)),
  };
}

// Like inference.Explanation.overlay.
function overlay({pixels, width, height}, falls) {
  const paint = (w, h, fill) => {
    const canvas = blank(w, h), data = new ImageData(w, h);
    for (let n = 0; n < w * h; n++) data.data.set(fill(n), 4 * n);
    canvas.getContext("2d").putImageData(data, 0, 0);
    return canvas;
  };
  const scale = Math.max(1, Math.floor(224 / Math.max(width, height)));
  const canvas = blank(width * scale, height * scale), context = canvas.getContext("2d");
  const strength = fall => 180 * Math.max(0, fall) / Math.max(...falls, .05);
  context.imageSmoothingEnabled = false;
  context.drawImage(paint(width, height, n => [...pixels.subarray(3 * n, 3 * n + 3), 255]), 0, 0, canvas.width, canvas.height);
  context.imageSmoothingEnabled = true;
  context.drawImage(paint(model.grid, model.grid, n => [220, 30, 30, strength(falls[n])]), 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL();
}

const ready = load();
ready.catch(error => {
  say("This page cannot run the model: " + error.message);
  $("status").classList.add("bad");
});
start({classify, explain, canExplain: () => true, ask: () => false});
ready.then(async () => {  // after loading, so as not to delay the first prediction
  if (!navigator.serviceWorker) return;
  await navigator.serviceWorker.register("service_worker.js");
  await navigator.serviceWorker.ready;
  $("offline").hidden = false;
}, () => {});

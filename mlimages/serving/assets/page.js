"use strict";
// Script of the pages of `mlimages serve` and `mlimages export --page`. `start` takes an object that differs between them:
//   classify(file) -> a prediction in the format of /predict; throws {code, message} on failure
//   explain(file)  -> {class_name, probability, lowest, place, overlay}; overlay is the URL of an image
//   canExplain()   -> whether `explain` is available
//   ask(error, retry) -> true if the page asks for a token and then calls `retry`
const $ = id => document.getElementById(id);

function element(name, text, attributes = {}) {
  const node = document.createElement(name);
  if (text) node.textContent = text;
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

const MESSAGES = {
  "empty": "the file is empty",
  "not-an-image": "the file is not an image in a supported format",
  "truncated": "the image is truncated",
  "corrupt": "the image is corrupt",
  "too-many-pixels": "the image has too many pixels",
  "too-large": "the file is too large",
  "busy": "the server is busy, try again in a moment",
};

const reason = error => (MESSAGES[error.code] || error.message) + (error.code ? " (" + error.code + ")" : "");
const percent = share => (share * 100).toFixed(1) + " %";
const noneOfThese = score => "none of these (nearest: " + score.class_name + ")";
const say = text => { $("status").textContent = text; };

function bars(scores) {
  const list = element("ol");
  for (const score of scores) {
    const item = element("li");
    const track = element("div", "", {"aria-hidden": "true"});
    const bar = element("i");
    bar.style.width = (score.probability * 100) + "%";
    track.append(bar);
    item.append(element("span", score.class_name), element("span", percent(score.probability)), track);
    list.append(item);
  }
  return list;
}

function show(file, fill) {
  const figure = element("figure"), details = element("div");
  const image = element("img", "", {alt: ""});
  image.src = URL.createObjectURL(file);
  image.onload = () => URL.revokeObjectURL(image.src);
  image.onerror = () => { URL.revokeObjectURL(image.src); image.remove(); };
  details.append(element("h2", file.name || "pasted image"));
  fill(details, image);
  figure.append(image, details);
  $("results").prepend(figure);
}

function describe({model, classes, threshold, thresholds}) {
  const names = classes.slice(0, 10).join(", ") + (classes.length > 10 ? ", …" : "");
  const unknown = thresholds ? "; an image may have several" : threshold ? "; unknown below " + percent(threshold) : "";
  $("model").textContent = model + ", " + classes.length + (classes.length === 1 ? " class: " : " classes: ") + names + unknown;
  $("model").hidden = false;
}

function explainButton(backend, file, image, isUnknown) {
  const button = element("button", "Explain this prediction", {class: "plain"}), message = element("p", "", {role: "status"});
  const box = element("div", "", {class: "why"});
  button.addEventListener("click", async () => {
    button.disabled = true;
    message.textContent = "Predicting with one region hidden at a time …";
    try {
      const found = await backend.explain(file);
      image.onload = null;
      image.src = found.overlay;
      box.closest("figure").prepend(image);  // the image was removed if the browser could not display the file
      image.alt = "Regions in red lower the probability when they are hidden";
      const [whole, lowest] = [found.probability.toFixed(2), found.lowest.toFixed(2)];
      const subject = isUnknown ? noneOfThese(found) + ": probability of " + found.class_name : found.class_name + ": probability";
      message.textContent = subject + " " + (lowest < whole
        ? "falls from " + whole + " to " + lowest + " if the " + found.place + " is hidden (red: the regions that matter)"
        : whole + "; hiding a region does not lower it");
      button.remove();
    } catch (error) {
      message.textContent = "Cannot explain the prediction: " + reason(error);
      button.disabled = false;
    }
  });
  box.append(button, message);
  return box;
}

// `labels` only for a multi-label model; if empty, or `known` is false, the nearest classes are shown.
function showPrediction(backend, file, {labels, known, prediction_set, top}) {
  const isUnknown = labels ? !labels.length : known === false;
  const set = !isUnknown && prediction_set && prediction_set.length > 1 ? prediction_set.join(" or ") : "";
  const scores = isUnknown ? top : labels || top;
  show(file, (details, image) => {
    if (isUnknown) details.append(element("p", "Probably none of the model's classes. The most similar classes:"));
    if (set) details.append(element("p", set));
    details.append(bars(scores));
    if (backend.canExplain()) details.append(explainButton(backend, file, image, isUnknown));
  });
  const shown = (labels || top.slice(0, 1)).map(score => score.class_name + ", " + percent(score.probability)).join("; ");
  say((file.name || "The image") + ": " + (isUnknown ? noneOfThese(top[0]) : set || shown));
}

function start(backend) {
  async function classify(files) {
    for (const [number, file] of files.entries()) {
      say("Classifying " + (file.name || "the image") + " …");
      try {
        showPrediction(backend, file, await backend.classify(file));
      } catch (error) {
        if (backend.ask(error, () => classify(files.slice(number)))) return;
        show(file, details => details.append(element("p", "Cannot classify this file: " + reason(error), {class: "bad"})));
        say("Cannot classify " + (file.name || "the image") + ": " + reason(error));
      }
    }
  }
  for (const id of ["file", "camera"]) {
    $(id).addEventListener("change", event => { classify([...event.target.files]); event.target.value = ""; });
  }
  document.addEventListener("dragover", event => { event.preventDefault(); $("drop").classList.add("over"); });
  document.addEventListener("dragleave", () => $("drop").classList.remove("over"));
  document.addEventListener("drop", event => {
    event.preventDefault();
    $("drop").classList.remove("over");
    classify([...event.dataTransfer.files]);
  });
  document.addEventListener("paste", event => {
    const files = [...event.clipboardData.files];
    if (files.length) classify(files);
  });
}

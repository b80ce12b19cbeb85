"use strict";
// The page of `mlimages serve` and of `mlimages export --page`. `start` takes what differs between the two:
//   classify(file) -> the prediction, as /predict returns it; throws {code, message} if there is none
//   explain(file)  -> {class_name, probability, lowest, place, overlay}; overlay is the URL of an image
//   canExplain()   -> whether there is `explain`
//   ask(error, retry) -> true if the error is handled and `retry` will be called
const $ = id => document.getElementById(id);

function element(name, text, attributes = {}) {
  const node = document.createElement(name);
  if (text) node.textContent = text;
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

const MESSAGES = {
  "empty": "the file is empty",
  "not-an-image": "this is not an image that can be read",
  "truncated": "the image is truncated",
  "corrupt": "the image is corrupt",
  "too-many-pixels": "the image has too many pixels",
  "too-large": "the file is too large",
  "busy": "the server is busy, try again in a moment",
};

const reason = error => (MESSAGES[error.code] || error.message) + (error.code ? " (" + error.code + ")" : "");
const percent = share => (share * 100).toFixed(1) + " %";
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
  const unknown = thresholds ? "; any number of them" : threshold ? "; unknown below " + percent(threshold) : "";
  $("model").textContent = model + ", " + classes.length + " classes: " + names + unknown;
  $("model").hidden = false;
}

function explainButton(backend, file, image) {
  const button = element("button", "Where does it look?", {class: "plain"}), message = element("p", "", {role: "status"});
  const box = element("div", "", {class: "why"});
  button.addEventListener("click", async () => {
    button.disabled = true;
    message.textContent = "Hiding one part after the other …";
    try {
      const found = await backend.explain(file);
      image.onload = null;
      image.src = found.overlay;
      box.closest("figure").prepend(image);  // again, where the browser could not show the file itself
      image.alt = "In red: what lowers the probability when it is hidden";
      const [whole, lowest] = [found.probability.toFixed(2), found.lowest.toFixed(2)];
      message.textContent = found.class_name + ": probability " + (lowest < whole
        ? "falls from " + whole + " to " + lowest + " when the " + found.place + " is hidden (red: the parts that matter)"
        : whole + "; hiding a region does not lower it");
      button.remove();
    } catch (error) {
      message.textContent = "No explanation: " + reason(error);
      button.disabled = false;
    }
  });
  box.append(button, message);
  return box;
}

// The labels of an image, or what it is most like where it has none.
function answerLabels(backend, file, {labels, top}) {
  show(file, (details, image) => {
    if (!labels.length) details.append(element("p", "Probably none of the model's classes. The most similar classes:"));
    details.append(bars(labels.length ? labels : top));
    if (backend.canExplain()) details.append(explainButton(backend, file, image));
  });
  const names = labels.map(score => score.class_name + ", " + percent(score.probability)).join("; ");
  say((file.name || "The image") + ": " + (names || "none of these (nearest: " + top[0].class_name + ")"));
}

function answer(backend, file, prediction) {
  if (prediction.labels) return answerLabels(backend, file, prediction);
  const set = prediction.prediction_set || [], best = prediction.top[0];
  const name = set.length > 1 ? set.join(" or ") : best.class_name + ", " + percent(best.probability);
  show(file, (details, image) => {
    if (prediction.known === false) details.append(element("p", "Probably none of the model's classes. The most similar classes:"));
    else if (set.length > 1) details.append(element("p", set.join(" or ")));
    details.append(bars(prediction.top));
    if (backend.canExplain()) details.append(explainButton(backend, file, image));
  });
  say((file.name || "The image") + ": " + (prediction.known === false ? "none of these (nearest: " + best.class_name + ")" : name));
}

function start(backend) {
  async function classify(files) {
    for (const [number, file] of files.entries()) {
      say("Classifying " + (file.name || "the image") + " …");
      try {
        answer(backend, file, await backend.classify(file));
      } catch (error) {
        if (backend.ask(error, () => classify(files.slice(number)))) return;
        show(file, details => details.append(element("p", "Cannot be used: " + reason(error), {class: "bad"})));
        say((file.name || "The image") + " cannot be used: " + reason(error));
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

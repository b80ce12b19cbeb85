// Appended to page.js by `mlimages serve`: requests to the server, and its token.
let token = "", explains = false;

async function call(path, file) {
  const headers = token ? {Authorization: "Bearer " + token} : {};
  if (file) headers["Content-Type"] = "application/octet-stream";
  let response;
  try {
    response = await fetch(path, {method: file ? "POST" : "GET", body: file, headers});
  } catch {
    throw {code: "unreachable", message: "the server does not respond"};
  }
  const answer = await response.json().catch(() => {  // HTML of a proxy
    throw {code: response.status, message: "a proxy in front of mlimages rejected the request"};
  });
  if (answer.error) throw answer.error;
  $("ask").hidden = true;
  return answer;
}

async function describeServer() {
  try {
    const model = await call("healthz");
    explains = Boolean(model.explain);
    if (model.classes) describe(model);
  } catch { /* the first image shows the error */ }
}

let retry = () => {};
$("ask").addEventListener("submit", event => {
  event.preventDefault();
  token = $("token").value;
  describeServer().then(retry);
});

start({
  classify: async file => (await call("predict", file)).predictions[0],
  explain: async file => {
    const found = await call("explain", file);
    return {...found, overlay: "data:image/png;base64," + found.overlay};
  },
  canExplain: () => explains,
  ask: (error, again) => {
    if (error.code !== "unauthorized") return false;
    retry = again;
    $("ask").hidden = false;
    say(token ? "The token is wrong." : "");
    $("token").focus();
    return true;
  },
});
describeServer();

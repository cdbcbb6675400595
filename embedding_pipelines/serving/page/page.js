// The search page: it asks POST /search, and the map of the live release's documents.
// Whatever comes from documents is set as text, never as HTML.
"use strict";

const get = (id) => document.getElementById(id);
const make = (tag, className, text) => {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
};
let key = sessionStorage.getItem("key");
let map = null; // of the pipeline that is chosen: places, documents, ids
let hits = [];
let lit = -1; // the hit that is pointed at
let asking = null; // the search on its way
let mapping = null; // the map on its way
let sought = null; // what is searched for in place of words: {image}, a data URL, or {like}, an id
let shown = []; // addresses of thumbnails, to be given back
const takers = new Map(); // by pipeline: whether its model takes images
const MOST_SECONDS = 120; // that the page waits for a map behind others
const MOST_BYTES = 20 * 2 ** 20; // of an image, as the server has it
// What of an image's metadata is for programs.
const UNTOLD = new Set(["image", "uri", "perceptual", "file", "format", "width", "height", "label_scores"]);

async function ask(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  const options = body ? { method: "POST", body: JSON.stringify(body) } : {};
  const reply = await fetch(path, { ...options, headers, signal });
  if (reply.status === 401) {
    get("access").hidden = false;
    get("key").focus();
  }
  const answer = await reply.json().catch(() => ({}));
  if (!reply.ok) {
    const error = new Error(answer.error || `The server answered ${reply.status}.`);
    error.seconds = Number(reply.headers.get("Retry-After")); // after which it may be asked again
    throw error;
  }
  return answer;
}

function say(words, isWrong = false) {
  get("status").textContent = words;
  get("status").classList.toggle("wrong", isWrong);
}

// ---------------------------------------------------------------- pipelines
async function listPipelines() {
  const select = get("pipeline");
  const pipelines = await ask("page/pipelines");
  for (const { name, takes_images: takes } of pipelines) takers.set(name, takes);
  select.replaceChildren(...pipelines.map(({ name }) => new Option(name, name)));
  get("access").hidden = true;
  const wanted = new URLSearchParams(location.search).get("pipeline");
  if (pipelines.some(({ name }) => name === wanted)) select.value = wanted;
  for (const id of ["query", "go"]) get(id).disabled = !pipelines.length;
  if (!pipelines.length) {
    say("No pipeline has a release that can be searched. `embedding-pipelines status` says why.");
    return;
  }
  choosePipeline();
}

async function choosePipeline() {
  const name = get("pipeline").value;
  get("release").textContent = "";
  get("by-image").hidden = !takers.get(name);
  if (sought?.image && !takers.get(name)) forget();
  map = null;
  get("map").hidden = true;
  mapping?.abort();
  const own = (mapping = new AbortController());
  try {
    const answer = await askMap(name, own.signal);
    get("release").textContent = `release ${answer.release}, ${answer.rows.toLocaleString()} chunks`;
    if (answer.x.length) {
      map = answer;
      map.place = new Map(map.chunks.map((id, number) => [id, number]));
      get("map").hidden = false;
      draw();
    }
  } catch (error) {
    if (own.signal.aborted) return;
    get("release").textContent = "";
    say(error.message, true);
  }
}

// The map of a pipeline. While the server makes others, it says when to ask again.
async function askMap(name, signal) {
  for (let left = MOST_SECONDS; ; ) {
    try {
      return await ask(`page/map?pipeline=${encodeURIComponent(name)}`, null, signal);
    } catch (error) {
      left -= error.seconds;
      if (!error.seconds || left < 0) throw error;
      get("release").textContent = "the map waits for others …";
      await new Promise((go) => setTimeout(go, error.seconds * 1000));
      signal.throwIfAborted();
    }
  }
}

// ---------------------------------------------------------------- search
async function search(event) {
  event?.preventDefault();
  const query = get("query").value.trim();
  if (event && query) forget(); // who asks in words means these
  if (!query && !sought) return;
  const body = { pipeline: get("pipeline").value, k: Number(get("k").value) || 10 };
  if (get("filter").value.trim()) body.filter = get("filter").value.trim();
  if (sought) Object.assign(body, sought);
  else {
    body.query = query;
    if (get("mode").value) body.mode = get("mode").value;
  }
  if (!body.image) remember(body);
  asking?.abort();
  const own = (asking = new AbortController());
  say("Searching …");
  try {
    const answer = await ask("search", body, own.signal);
    hits = answer.hits;
    show(answer, sought ? "" : query);
  } catch (error) {
    if (error.name === "AbortError") return;
    hits = [];
    get("hits").replaceChildren();
    say(error instanceof TypeError ? "The server does not answer. Is it running?" : error.message, true);
  }
  lit = -1;
  draw();
}

function show(answer, query) {
  const count = hits.length === 1 ? "1 result" : `${hits.length} results`;
  const path = answer.mode ? `, by ${answer.mode}` : "";
  const found = hits.length ? count : "Nothing was found. Ask in other words, or take the filter away";
  say([`${found}${hits.length ? `${path}, in ${Math.round(answer.milliseconds)} ms` : ""}.`, ...(answer.notes || [])].join(" "));
  shown.forEach((address) => URL.revokeObjectURL(address));
  shown = [];
  get("hits").classList.toggle("pictures", hits.some(({ metadata }) => metadata.image));
  get("hits").replaceChildren(...hits.map((hit, number) => card(hit, number, words(query))));
  get("in-force").textContent = get("filter").value.trim() ? "· a filter is in force" : "";
}

function card(hit, number, sought) {
  const item = make("li");
  item.tabIndex = 0;
  const head = make("div", "head");
  head.append(make("span", "number", number + 1), make("span", "document", hit.document_id));
  const score = make("span", "score", hit.score.toFixed(3));
  score.title = "How near it is";
  head.append(score);
  const text = make("p", "text");
  text.append(...marked(hit.text, sought));
  const metadata = make("div", "metadata");
  if (hit.metadata.image) {
    const { width, height, format } = hit.metadata;
    metadata.append(make("span", "quiet", `${width} × ${height} ${format}`));
  }
  for (const [name, value] of Object.entries(hit.metadata)) {
    if (Array.isArray(value)) {
      if (!UNTOLD.has(name)) metadata.append(make("span", "quiet", `${name}: ${value.join(", ")}`));
      continue;
    }
    if (value === null || (hit.metadata.image && UNTOLD.has(name))) continue;
    const chip = make("button", "", `${name}: ${value}`);
    chip.type = "button";
    chip.title = `Search only where ${name} is ${value}`;
    chip.addEventListener("click", (event) => {
      event.stopPropagation();
      narrow(name, value);
    });
    metadata.append(chip);
  }
  const like = make("button", "like", "more like this");
  like.type = "button";
  like.title = `Search for what is like ${hit.document_id}`;
  like.addEventListener("click", (event) => {
    event.stopPropagation();
    seekLike(hit.document_id);
  });
  metadata.append(like);
  if (hit.metadata.image) item.append(thumbnail(hit));
  item.append(head, text, metadata);
  item.addEventListener("focusin", () => light(number));
  item.addEventListener("mouseenter", () => light(number));
  item.addEventListener("click", () => {
    if (!getSelection().toString()) item.classList.toggle("whole");
  });
  return item;
}

// A small picture of a document, which the server makes of the image that the release knows.
function thumbnail({ document_id: document, text }) {
  const image = make("img", "thumbnail");
  image.alt = text || document;
  const address = `page/thumbnail?${new URLSearchParams({ pipeline: get("pipeline").value, document })}`;
  fetch(address, { headers: key ? { Authorization: `Bearer ${key}` } : {} })
    .then((reply) => (reply.ok ? reply.blob() : Promise.reject(reply.status)))
    .then((blob) => {
      const place = URL.createObjectURL(blob);
      shown.push(place);
      image.src = place;
    })
    .catch(() => image.replaceWith(make("div", "thumbnail missing", "no longer there")));
  return image;
}

function takeImage(file) {
  if (!file || get("by-image").hidden) return;
  // Without a type it is one that the browser does not know; the server may.
  if (file.type && !file.type.startsWith("image/")) return say(`${file.name} is no image.`, true);
  if (file.size > MOST_BYTES) return say(`${file.name} is larger than ${MOST_BYTES >> 20} MB. Reduce it.`, true);
  const reader = new FileReader();
  reader.addEventListener("load", () => {
    seek({ image: reader.result }, file.name);
    search();
  });
  reader.addEventListener("error", () =>
    say(`${file.name} cannot be read. Is it a file, still there, and may you open it?`, true));
  reader.readAsDataURL(file.type ? file : new Blob([file], { type: "image/unknown" }));
}

// Search for something in place of words, from now on; the page shows it by its name.
function seek(what, name) {
  sought = what;
  get("sought-image").hidden = !what.image;
  if (what.image) get("sought-image").src = what.image;
  else get("sought-image").removeAttribute("src");
  get("sought-name").textContent = name;
  get("sought").hidden = false;
  get("query").value = "";
}

async function seekLike(id) {
  seek({ like: id }, `like ${id}`);
  await search();
  get("hits").firstElementChild?.focus(); // in place of the hit that was chosen, which is gone
}

function forget() {
  sought = null;
  get("sought").hidden = true;
  get("sought-image").removeAttribute("src");
}

// Short words say little; they count where the query has no others.
function words(query) {
  const all = (query.match(/[\p{L}\p{N}]+/gu) || []).map((word) => word.toLowerCase());
  const long = all.filter((word) => word.length > 3);
  return long.length ? long : all;
}

// The parts of a text, with the words of the query in <mark>; a word counts from its beginning.
function marked(text, sought) {
  if (!sought.length) return [text];
  const parts = [];
  let end = 0;
  for (const { 0: word, index } of text.matchAll(/[\p{L}\p{N}]+/gu)) {
    const lower = word.toLowerCase();
    if (!sought.some((part) => lower === part || (part.length > 3 && lower.startsWith(part)))) continue;
    parts.push(text.slice(end, index), make("mark", "", word));
    end = index + word.length;
  }
  return [...parts, text.slice(end)];
}

function narrow(name, value) {
  const column = /^[A-Za-z_]\w*$/.test(name) ? name : `\`${name}\``;
  const literal = typeof value === "string" ? `'${value.replaceAll("'", "''")}'` : String(value);
  const before = get("filter").value.trim();
  const condition = `${column} = ${literal}`;
  get("filter").value = !before || before === condition ? condition : `(${before}) AND ${condition}`;
  get("options").open = true;
  search();
}

function remember({ pipeline, query, like, filter, mode, k }) {
  const parameters = new URLSearchParams(like ? { pipeline, like } : { pipeline, q: query });
  if (filter) parameters.set("filter", filter);
  if (mode) parameters.set("mode", mode);
  if (k !== 10) parameters.set("k", k);
  const address = `?${parameters}`;
  if (address !== location.search) history.pushState(null, "", address);
}

function recall() {
  const parameters = new URLSearchParams(location.search);
  for (const [id, name, otherwise] of [["query", "q", ""], ["filter", "filter", ""], ["mode", "mode", ""], ["k", "k", "10"]]) {
    get(id).value = parameters.get(name) ?? otherwise;
  }
  if (get("filter").value || get("mode").value) get("options").open = true;
  const like = parameters.get("like");
  if (like) seek({ like }, `like ${like}`);
  else forget();
}

// ---------------------------------------------------------------- map
function light(number) {
  if (number === lit) return;
  lit = number;
  [...get("hits").children].forEach((item, own) => item.classList.toggle("lit", own === number));
  draw();
}

function scale() {
  const canvas = get("canvas");
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  const [left, right] = extent(map.x);
  const [bottom, top] = extent(map.y);
  const margin = 14;
  const by = Math.min((width - 2 * margin) / (right - left || 1), (height - 2 * margin) / (top - bottom || 1));
  const across = (width - (right - left) * by) / 2;
  const down = (height - (top - bottom) * by) / 2;
  return { width, height, at: (n) => [across + (map.x[n] - left) * by, height - down - (map.y[n] - bottom) * by] };
}

function extent(values) {
  let [least, most] = [Infinity, -Infinity];
  for (const value of values) {
    if (value < least) least = value;
    if (value > most) most = value;
  }
  return [least, most];
}

function draw() {
  if (!map || get("map").hidden) return;
  const canvas = get("canvas");
  const { width, height, at } = scale();
  if (!width) return;
  const dense = devicePixelRatio || 1;
  canvas.width = width * dense;
  canvas.height = height * dense;
  const pen = canvas.getContext("2d");
  const colour = (name) => {
    pen.fillStyle = getComputedStyle(probe(name)).color;
    return pen.fillStyle;
  };
  pen.scale(dense, dense);
  pen.fillStyle = colour("--point");
  const size = map.x.length > 5000 ? 1.5 : 2.5;
  for (let n = 0; n < map.x.length; n++) {
    const [x, y] = at(n);
    pen.fillRect(x - size / 2, y - size / 2, size, size);
  }
  const accent = colour("--accent");
  const inner = colour("--on-accent");
  pen.font = "600 11px system-ui, sans-serif";
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  let away = 0;
  const order = hits.map((_, number) => number).sort((a, b) => (a === lit) - (b === lit) || b - a);
  for (const number of order) {
    const n = map.place.get(hits[number].chunk_id);
    if (n === undefined) {
      away += 1;
      continue;
    }
    const [x, y] = at(n);
    pen.beginPath();
    pen.arc(x, y, number === lit ? 12 : 9, 0, 2 * Math.PI);
    pen.fillStyle = accent;
    pen.fill();
    pen.strokeStyle = inner;
    pen.stroke();
    pen.fillStyle = inner;
    pen.fillText(number + 1, x, y + 0.5);
  }
  const words = [];
  if (map.x.length < map.rows) words.push(`${map.x.length.toLocaleString()} of ${map.rows.toLocaleString()} chunks are drawn.`);
  if (away) words.push(`${away} of the results ${away === 1 ? "is" : "are"} not among them.`);
  get("map-words").textContent = lit < 0 ? words.join(" ") : `${lit + 1}: ${hits[lit].document_id}`;
}

// An element whose text has the colour of a custom property, whatever the theme.
function probe(name) {
  const element = (probe.element ??= document.body.appendChild(make("i")));
  element.hidden = true;
  element.style.color = `var(${name})`;
  return element;
}

function near(event) {
  const canvas = get("canvas");
  const box = canvas.getBoundingClientRect();
  const { at } = scale();
  let [best, distance] = [-1, 12 ** 2];
  for (let n = 0; n < map.x.length; n++) {
    const [x, y] = at(n);
    const own = (x - (event.clientX - box.left)) ** 2 + (y - (event.clientY - box.top)) ** 2;
    if (own < distance) [best, distance] = [n, own];
  }
  return best;
}

// ---------------------------------------------------------------- what people do
get("search").addEventListener("submit", search);
get("file").addEventListener("change", () => {
  takeImage(get("file").files[0]);
  get("file").value = ""; // so that the same one may be chosen again
});
get("sought-image").addEventListener("error", () => {
  get("sought-image").hidden = true; // HEIC and TIFF are read by the server, not by every browser
});
get("forget").addEventListener("click", () => {
  forget();
  get("query").focus();
});
addEventListener("dragover", (event) => {
  if (get("by-image").hidden || !event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  document.body.classList.add("dropping");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
addEventListener("drop", (event) => {
  document.body.classList.remove("dropping");
  if (get("by-image").hidden || !event.dataTransfer.files.length) return;
  event.preventDefault();
  takeImage(event.dataTransfer.files[0]);
});
addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find(({ type }) => type.startsWith("image/"));
  if (file) takeImage(file);
});
get("pipeline").addEventListener("change", () => {
  if (sought?.like) forget(); // another pipeline has no such document
  hits = [];
  get("hits").replaceChildren();
  say("");
  choosePipeline();
  search();
});
get("access").addEventListener("submit", (event) => {
  event.preventDefault();
  key = get("key").value.trim();
  sessionStorage.setItem("key", key);
  start();
});
get("canvas").addEventListener("pointermove", (event) => {
  const n = near(event);
  if (n < 0) return draw();
  get("map-words").textContent = `${map.documents[n]}: ${map.texts[n]}`;
});
get("canvas").addEventListener("pointerleave", draw);
get("canvas").addEventListener("click", (event) => {
  const n = near(event);
  const number = hits.findIndex((hit) => n >= 0 && hit.chunk_id === map.chunks[n]);
  if (number >= 0) get("hits").children[number].focus();
});
addEventListener("resize", draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
addEventListener("popstate", () => {
  recall();
  search();
});
addEventListener("keydown", (event) => {
  const items = [...get("hits").children];
  const here = items.indexOf(document.activeElement);
  const isTyping = document.activeElement.matches("input, select, textarea");
  if (event.key === "/" && !isTyping) get("query").focus(), get("query").select();
  else if (event.key === "Escape" && here >= 0) get("query").focus();
  else if (event.key === "Enter" && here >= 0) items[here].classList.toggle("whole");
  else if (event.key === "m" && here >= 0) seekLike(hits[here].document_id);
  else if (event.key === "ArrowDown" && (here >= 0 || document.activeElement === get("query")))
    items[Math.min(here + 1, items.length - 1)]?.focus();
  else if (event.key === "ArrowUp" && here >= 0) (items[here - 1] || get("query")).focus();
  else return;
  event.preventDefault();
});

async function start() {
  try {
    await listPipelines();
    if (get("query").value || sought) await search();
  } catch (error) {
    say(error.message, true);
  }
}
recall();
start();

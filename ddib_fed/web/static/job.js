// The page of one translation: progress, results as they come, and the comparison of source and translation.
import { $, ask, complain, element } from "./page.js";

const job = $("job").dataset.job;
const results = new Map();
let order = []; // items as the list shows them
let slices = []; // items by name, or by their place in a volume: what the slider of pictures goes through
let shown = null;
let studies = []; // series, volumes and maps
let group = null; // whose results are shown: the number of a study, or -1 for the files of their own

const byName = new Intl.Collator("en", { numeric: true });
const view = (item, part) => `${job}/${item}/${part}/view`;
const file = (item, part) => `${job}/${item}/${part}/file`;

// --- Progress

const events = new EventSource(`${job}/events`);
events.addEventListener("result", (event) => {
  const result = JSON.parse(event.data);
  results.set(result.item, result);
  later();
});
let failures = 0;
events.addEventListener("progress", (event) => {
  failures = 0;
  progress(JSON.parse(event.data));
});
events.addEventListener("end", (event) => {
  events.close();
  progress(JSON.parse(event.data));
});
events.addEventListener("error", () => {
  failures += 1; // the browser tries again by itself
  if (failures < 3 && events.readyState !== EventSource.CLOSED) return;
  events.close();
  complain({ detail: "ddib web does not answer: it was stopped.", hint: "start it again in its terminal, and open its new link; the translation goes on at the node" });
});

let spoken = "";
function progress(state) {
  $("bar").max = state.items || 1;
  $("bar").value = Math.max(state.done, state.written);
  $("now").textContent = state.now;
  const { ended, error, files, here, stopped, written } = state;
  const count = `${here} of ${files} ${files === 1 ? "result is" : "results are"} here.`;
  const said = ended && stopped ? `Stopped; ${count}`
    : ended ? (error ? `Ended with a problem; ${count}` : `Finished: ${count}`)
    : here ? count : "Translating.";
  if (said !== spoken) $("said").textContent = spoken = said;
  $("cancel").hidden = ended;
  $("zip").hidden = !written;
  missing(state.missing);
  volumes(state.studies);
  if (error && !state.job_id) error.hint = `${error.hint ? `${error.hint}. ` : ""}Your pictures are still on the start page.`;
  if (error) complain(error);
}

function missing(lines) {
  $("missing").hidden = !lines.length;
  if ($("missing-list").children.length !== lines.length) {
    $("missing-list").replaceChildren(...lines.map((line) => element("li", {}, line)));
  }
}

let drawnVolumes = "";
function volumes(found) {
  studies = found;
  $("volumes").hidden = !found.length;
  const text = JSON.stringify(found);
  if (text === drawnVolumes) return; // what has the focus keeps it
  drawnVolumes = text;
  $("volumes-list").replaceChildren(...found.map((each, number) => {
    const count = each.items === each.planes ? `${each.planes}` : `${each.items} of ${each.planes}`;
    const what = each.planes > 1 ? `${each.kind}, ${count} ${each.plane_word}s` : each.kind;
    return element("li", {},
      element("p", {}, element("strong", {}, each.label), ` ${what}: `, each.files ? element("a", { href: `${job}/studies/${number}/file`, download: true },
        each.files > 1 ? `download ${each.files} files (zip)` : "download") : element("span", { class: "hint" }, "not put together yet")),
      ...each.warnings.map((line) => element("p", { class: "warning" }, `Warning: ${line}`)),
      ...each.said.map((line) => element("p", { class: "hint" }, line)));
  }));
  if (results.size) later();
}

$("cancel").addEventListener("click", async () => {
  $("cancel").disabled = true;
  try {
    await ask(`${job}/cancel`, { method: "POST" });
  } catch (error) {
    complain(error);
    $("cancel").disabled = false;
  }
});

// --- The list

let waiting = false;
function later() { // many results at once are drawn once
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; draw(); });
}

const cards = new Map();
function card(result) {
  const { item, label, doubtful } = result;
  if (cards.has(item)) return cards.get(item);
  const button = element("button", { type: "button", class: "card" },
    element("span", { class: "pair" },
      element("img", { src: view(item, "source"), alt: "", loading: "lazy" }),
      element("img", { src: view(item, "translation"), alt: "", loading: "lazy" })),
    element("span", { class: "label" }, inVolume(result) ? `${studies[result.study].plane_word} ${result.plane}` : label),
    ...(doubtful ? [" ", element("span", { class: "mark" }, "doubtful")] : []));
  button.addEventListener("click", () => {
    show(item);
    if (!inSight($("stage"))) $("h-view").scrollIntoView();
  });
  cards.set(item, element("li", {}, button));
  return cards.get(item);
}

/** Whether a result is one of several slices. */
const inVolume = ({ study }) => study !== null && studies[study]?.plane_word === "slice" && studies[study].planes > 1;
const groupOf = (result) => (inVolume(result) ? result.study : -1);

/** Which results there are to choose from: each volume, and all other files together. */
function groups(all) {
  const found = [...new Set(all.map(groupOf))].sort((a, b) => a - b);
  if (!found.includes(group)) group = found.includes(-1) && found.length === 1 ? -1 : found.find((each) => each >= 0);
  $("group-line").hidden = found.length < 2;
  const names = found.map((each) => (each < 0 ? "files of their own" : studies[each].label));
  const before = [...$("group").options].map((each) => each.textContent);
  if (before.join("\n") !== names.join("\n")) {
    $("group").replaceChildren(...found.map((each, at) => element("option", { value: each }, names[at])));
  }
  $("group").value = group;
}

$("group").addEventListener("change", () => {
  group = Number($("group").value);
  cards.get(shown)?.firstChild.removeAttribute("aria-current");
  picked = true;
  shown = null;
  draw();
});

const inSight = (place) => {
  const { top, bottom } = place.getBoundingClientRect();
  return bottom > 80 && top < innerHeight - 80;
};

function draw() {
  groups([...results.values()]);
  const all = [...results.values()].filter((each) => groupOf(each) === group);
  const volume = group >= 0;
  slices = all.toSorted((a, b) => (volume ? a.plane - b.plane : byName.compare(a.label, b.label))).map((each) => each.item);
  const doubtfulFirst = document.querySelector("input[name=order]:checked").value === "doubtful";
  order = doubtfulFirst ? all.toSorted((a, b) => b.severity - a.severity).map((each) => each.item) : slices;
  const focused = document.activeElement;
  $("cards").replaceChildren(...order.map((item) => card(results.get(item))));
  if (focused?.classList.contains("card")) focused.focus();
  const doubtful = all.filter((each) => each.doubtful).length;
  const noun = volume ? "slices" : "pictures";
  $("tally").textContent = doubtful ? `${doubtful} of ${all.length} ${noun} doubtful: look at these first.` : `None of ${all.length} ${noun} doubtful.`;
  $("results").hidden = !all.length;
  $("scroll-word").textContent = volume ? "Slice" : "Picture";
  $("wheel-hint").hidden = !volume || slices.length < 2;
  $("scroll").max = slices.length;
  $("scroll-line").hidden = slices.length < 2;
  if (shown === null || !picked) show(order[0]); // until somebody chooses, the most doubtful one
  else place();
  offer();
}

let picked = false;
for (const radio of document.querySelectorAll("input[name=order]")) radio.addEventListener("change", draw);

// --- The comparison

function show(item) {
  const result = results.get(item);
  if (!result) return;
  picked = picked || document.activeElement?.closest("#results") != null;
  if (shown !== item) {
    cards.get(shown)?.firstChild.removeAttribute("aria-current");
    shown = item;
    cards.get(item).firstChild.setAttribute("aria-current", "true");
    $("h-view").textContent = result.label;
    picture("source", item, `${result.label}: the source`);
    picture("translation", item, `${result.label}: the translation`);
    const returned = result.parts.includes("returned");
    $("returned-figure").hidden = !returned;
    if (returned) picture("returned", item, `${result.label}: translated back`);
    offer();
    $("doubts").hidden = !result.doubts.length;
    $("doubts").replaceChildren(...result.doubts.map((each) => element("p", {}, `Doubtful: ${each}`)));
    $("figures").replaceChildren(...result.figures.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
  }
  place();
}

/** What the button below the comparison downloads. */
function offer() {
  const { item, study } = results.get(shown);
  const whole = study !== null;
  $("one").href = whole ? `${job}/studies/${study}/file` : file(item, "translation");
  $("one").textContent = !whole ? "Download this translation" : inVolume(results.get(shown)) ? "Download this volume" : "Download this file";
  $("one").hidden = whole && !studies[study].files;
}

function picture(part, item, text) {
  $(part).src = view(item, part);
  $(part).alt = text;
}

function place() {
  const at = slices.indexOf(shown) + 1;
  $("scroll").value = at;
  const result = results.get(shown);
  const slice = group >= 0 && slices.length !== studies[group].planes ? ` (number ${result.plane} of ${studies[group].planes})` : "";
  $("place").textContent = `${at} of ${slices.length}${slice}`;
  $("scroll").setAttribute("aria-valuetext", `${at} of ${slices.length}, ${result.label}`);
  for (const near of [slices[at], slices[at - 2]]) { // so that scrolling does not wait
    if (near !== undefined) for (const part of ["source", "translation"]) ahead(view(near, part));
  }
}

const AHEAD = 64;
const held = new Map(); // pictures that are shown next; the page keeps them, and the disk does not
function ahead(url) {
  if (held.has(url)) return;
  if (held.size >= AHEAD) held.delete(held.keys().next().value);
  held.set(url, element("img", { src: url, alt: "" }));
}

function cut(percent) {
  const value = Math.min(100, Math.max(0, Math.round(percent)));
  $("cut").value = value;
  $("cut").setAttribute("aria-valuetext", `source up to ${value} percent of the width, translation from there`);
  $("stage").style.setProperty("--cut", `${value}%`);
}

/** Shows the next or the one before; false at the end. */
function go(step) {
  const next = slices[slices.indexOf(shown) + step];
  if (next === undefined) return false;
  picked = true;
  show(next);
  return true;
}

$("cut").addEventListener("input", () => cut($("cut").valueAsNumber));
$("scroll").addEventListener("input", () => { picked = true; show(slices[$("scroll").valueAsNumber - 1]); });
const stage = $("stage");
const drag = (event) => {
  if (stage.classList.contains("beside") || !(event.buttons & 1)) return;
  const { left, width } = stage.getBoundingClientRect();
  cut(((event.clientX - left) / width) * 100);
};
stage.addEventListener("pointerdown", (event) => { stage.setPointerCapture(event.pointerId); drag(event); });
stage.addEventListener("pointermove", drag);
for (const radio of document.querySelectorAll("input[name=mode]")) {
  radio.addEventListener("change", () => {
    const beside = document.querySelector("input[name=mode]:checked").value === "beside";
    stage.classList.toggle("beside", beside);
    $("cut").disabled = beside;
  });
}
document.addEventListener("keydown", (event) => {
  const step = { PageDown: 1, PageUp: -1 }[event.key];
  if (!step || event.target.type === "range" || !event.target.closest("#results")) return;
  if (go(step)) event.preventDefault();
});
$("scroll").addEventListener("keydown", (event) => { // a slider's own Page Up makes steps of a tenth
  const step = { PageDown: 1, PageUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  go(step);
});
const WHEEL = 60; // a notch of a wheel is about 100 pixels; a touch pad sends many small ones
let rolled = 0;
stage.addEventListener("wheel", (event) => { // through a volume; at its ends the page scrolls as ever
  if (group < 0 || event.ctrlKey || !event.deltaY) return;
  const way = Math.sign(event.deltaY);
  if (slices[slices.indexOf(shown) + way] === undefined) return;
  event.preventDefault();
  rolled = Math.sign(rolled) === way ? rolled : 0;
  rolled += event.deltaMode ? way * WHEEL : event.deltaY;
  if (Math.abs(rolled) < WHEEL) return;
  rolled = 0;
  go(way);
}, { passive: false });
cut(50);

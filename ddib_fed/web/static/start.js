// The first page: files to be uploaded, the domains that the node offers, and the order.
import { $, ask, bytes, complain, element, unreadable } from "./page.js";

const AT_ONCE = 4;
let files = [];
let reading = 0;

// --- Files

/** [name with folders, File] of what was dropped, folders opened. */
async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files].map((file) => [file.name, file]);
  const found = [];
  for (const entry of entries) await walk(entry, "", found);
  return found;
}

/** Puts the files below an entry into `found`; one that cannot be read is listed, and does not stop the others. */
async function walk(entry, folder, found) {
  const name = folder + entry.name;
  try {
    if (entry.isFile) {
      found.push([name, await new Promise((done, failed) => entry.file(done, failed))]);
      return;
    }
    const reader = entry.createReader();
    for (;;) { // a reader gives its entries in parts
      const part = await new Promise((done, failed) => reader.readEntries(done, failed));
      if (!part.length) return;
      for (const each of part) await walk(each, `${name}/`, found);
    }
  } catch (error) {
    refuse(name, unreadable(error));
  }
}

const hidden = (name) => name.split("/").some((part) => part.startsWith(".") || part === "Thumbs.db");

async function add(named) {
  const wanted = named.filter(([name]) => !hidden(name));
  const bar = $("upload");
  let next = 0, done = 0;
  reading += 1;
  complain(null);
  bar.hidden = false;
  bar.max = wanted.length || 1;
  bar.value = 0;
  const work = async () => {
    while (next < wanted.length) {
      const [name, file] = wanted[next++];
      try {
        files.push(await ask(`files?name=${encodeURIComponent(name)}`, { method: "POST", body: file }));
      } catch (error) {
        refuse(name, error);
      }
      bar.value = ++done;
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, work));
  reading -= 1;
  bar.hidden = true;
  await list();
}

function refuse(name, error) {
  const said = [error.detail, error.hint].filter(Boolean).join("; ");
  $("refused").hidden = false;
  $("refused-list").append(element("li", {}, said.includes(name) ? said : `${name}: ${said}`));
}

async function list() {
  files = await ask("files");
  const total = files.reduce((sum, each) => sum + each.size, 0);
  $("count").textContent = files.length
    ? `${files.length} ${files.length === 1 ? "file" : "files"}, ${bytes(total)}` : "No files yet.";
  $("details").hidden = $("clear").hidden = !files.length;
  $("formats").hidden = files.every((each) => each.plain);
  const warnings = [...new Set(files.flatMap((each) => each.warnings))];
  $("warnings").replaceChildren(...warnings.map((line) => element("p", { class: "warning" }, `Warning: ${line}`)));
  $("files").replaceChildren(...files.map((each) => {
    const button = element("button", { type: "button", class: "quiet small", "aria-label": `Remove ${each.label}` }, "Remove");
    button.addEventListener("click", async () => {
      const next = button.closest("li").nextElementSibling?.querySelector("button") ?? $("pick-files");
      const label = next.getAttribute("aria-label");
      await attempt(() => ask(`files/${each.file}`, { method: "DELETE" }));
      await list();
      (label && document.querySelector(`[aria-label="${CSS.escape(label)}"]`) || $("pick-files")).focus();
    });
    return element("li", {}, element("span", {}, each.label), element("span", { class: "hint" }, bytes(each.size)), button);
  }));
  ready();
}

async function attempt(action) {
  try {
    return await action();
  } catch (error) {
    complain(error);
    return undefined;
  }
}

// --- Domains

async function domains() {
  const hint = $("domains-hint");
  $("again").hidden = true;
  hint.textContent = "Asking the node which domains are there…";
  let found;
  try {
    found = await ask("domains");
  } catch (error) {
    hint.textContent = "The node did not say which domains are there.";
    $("again").hidden = false;
    complain(error);
    return;
  }
  complain(null);
  hint.textContent = `From ${found.own.domain} of ${found.own.institution} to:`;
  if (!found.targets.length) hint.textContent = "No institution is admitted yet: ask the operator of your node.";
  const first = found.targets.find((each) => each.ready);
  $("domains").replaceChildren(...found.targets.map((each) => {
    const radio = element("input", { type: "radio", name: "target", value: each.target, ".disabled": !each.ready, ".checked": each === first });
    radio.addEventListener("change", () => choose(each));
    const more = each.ready ? (each.calibration ? `calibrated (${each.calibration})` : "ready") : `not now: ${each.why}`;
    return element("label", { class: "choice" }, radio, element("span", {},
      element("strong", {}, each.domain || "unknown"), ` of ${each.institution}`, element("span", { class: "hint" }, more)));
  }));
  if (first) choose(first);
  ready();
}

function choose(domain) {
  $("classes").hidden = !domain.classes.length;
  $("class").replaceChildren(element("option", { value: "" }, "any"),
    ...domain.classes.map((name) => element("option", { value: name }, name)));
  ready();
}

// --- The order

const target = () => document.querySelector("input[name=target]:checked")?.value;

function ready() {
  const why = reading ? "The files are still being read." : !files.length ? "Choose pictures first."
    : !target() ? "No domain can be translated to now." : "";
  $("go").disabled = Boolean(why);
  $("why").textContent = why;
}

$("order").addEventListener("submit", async (event) => {
  event.preventDefault();
  $("go").disabled = true;
  const order = {
    target: target(),
    quality: document.querySelector("input[name=quality]:checked").value,
    cycle: $("cycle").checked,
    target_class: $("classes").hidden ? "" : $("class").value,
    slices: $("slices").value,
    intensity: $("intensity").value.trim() || "auto",
  };
  const started = await attempt(() => ask("jobs", { method: "POST", body: JSON.stringify(order) }));
  if (started) location.assign(`jobs/${started.job}`);
  else ready();
});

const picked = (event) => {
  const chosen = [...event.target.files].map((file) => [file.webkitRelativePath || file.name, file]);
  event.target.value = "";
  add(chosen);
};
$("pick-files").addEventListener("change", picked);
$("pick-folder").addEventListener("change", picked);
$("clear").addEventListener("click", async () => {
  await attempt(() => ask("files", { method: "DELETE" }));
  $("refused").hidden = true;
  $("refused-list").replaceChildren();
  await list();
  $("pick-files").focus();
});
$("again").addEventListener("click", domains);
const drop = $("drop");
for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
}
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
document.addEventListener("drop", async (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  const named = await attempt(() => dropped(event.dataTransfer));
  if (named) await add(named);
});
window.addEventListener("pageshow", (event) => { if (event.persisted) { list(); domains(); } });
attempt(list);
domains();

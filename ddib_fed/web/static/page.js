// What both of the researcher's pages use: requests, errors in words, elements.

export const $ = (id) => document.getElementById(id);

/** An element with attributes, properties that begin with a dot, and children; text is never read as markup. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith(".")) made[key.slice(1)] = value;
    else if (value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

/** What the browser says of a file that it cannot read, as an error of ours. */
export const unreadable = (error) => ({
  detail: `cannot be read (${error.name}); it may have been changed or removed since, or its permissions forbid it`,
  hint: "choose it again",
});

/** What the server answers as JSON; throws what it says went wrong, or that the file which was to be sent cannot be read. */
export async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    if (options.body instanceof Blob) {
      await options.body.slice(0, 1).arrayBuffer().catch((error) => { throw unreadable(error); });
    }
    throw { detail: "ddib web does not answer: it was stopped.", hint: "start it again, and open its new link" };
  }
  if (answer.status === 204) return null;
  const type = answer.headers.get("content-type") ?? "";
  if (!type.startsWith("application/json")) {
    throw { detail: `this page is no longer valid (${answer.status}).`, hint: "open the link that ddib web printed" };
  }
  const value = await answer.json();
  if (!answer.ok) throw value;
  return value;
}

/** Shows an error where it is read out at once; null removes it. */
export function complain(error) {
  const place = $("problem");
  place.replaceChildren();
  place.hidden = !error;
  if (!error) return;
  const lines = [error.detail ?? String(error)];
  if (error.hop) lines.push(`At: ${error.hop}`);
  if (error.hint) lines.push(`Try: ${error.hint}`);
  if (error.incident) lines.push(`Incident: ${error.incident}`);
  place.append(...lines.map((line) => element("p", {}, line)));
}

export function bytes(count) {
  for (const unit of ["bytes", "KiB", "MiB"]) {
    if (count < 1024) return `${unit === "bytes" ? count : count.toFixed(1)} ${unit}`;
    count /= 1024;
  }
  return `${count.toFixed(1)} GiB`;
}

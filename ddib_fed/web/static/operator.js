// Brings the part of the operator's page that changes up to date; tables that are open stay open.

const EVERY_MS = 5000;
const live = document.getElementById("live");
const follow = document.getElementById("follow");
const stale = document.getElementById("stale");

async function update() {
  const inside = live.contains(document.activeElement); // a table that is scrolled, or a summary, keeps the focus
  stale.textContent = follow.checked && inside ? "Held still while the focus is in it." : "";
  if (!follow.checked || document.hidden || inside) return;
  try {
    const answer = await fetch("live");
    if (!answer.ok) throw new Error(String(answer.status));
    const text = await answer.text();
    const open = [...live.querySelectorAll("details")].map((each) => each.open);
    live.innerHTML = text;
    live.querySelectorAll("details").forEach((each, at) => { each.open = open[at] ?? false; });
    stale.textContent = "";
  } catch {
    stale.textContent = "ddib status --web does not answer: what is shown is old.";
  }
}

setInterval(update, EVERY_MS);
follow.addEventListener("change", update);

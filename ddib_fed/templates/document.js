"use strict";
const value = (row, column) => {
  const text = row.cells[column].textContent.trim();
  const number = Number(text.replaceAll(",", ""));
  return text === "" || text === "\u2013" ? null : Number.isNaN(number) ? text : number;
};
const compare = (a, b) => typeof a === "number" && typeof b === "number"
  ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
for (const table of document.querySelectorAll("table.sort")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (!head.textContent || !body.rows.length || body.rows[0].cells[column].querySelector("img")) return;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach(each => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const rows = [...body.rows].map(row => [value(row, column), row]);
      rows.sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null) : sign * compare(a, b));
      body.append(...rows.map(([, row]) => row));
    });
  });
}
const dialog = document.createElement("dialog");
dialog.setAttribute("aria-label", "Enlarged pictures");
let shown = null;
const show = row => {
  if (!row) return;
  shown = row;
  const caption = document.createElement("p"), close = document.createElement("button");
  caption.textContent = row.cells[0].textContent;
  close.type = "button";
  close.textContent = "Close";
  close.addEventListener("click", () => dialog.close());
  const pictures = [...row.querySelectorAll("img")].map(each => {
    const figure = document.createElement("figure"), image = each.cloneNode();
    const text = document.createElement("figcaption");
    image.removeAttribute("width");
    image.removeAttribute("class");
    text.textContent = each.alt;
    figure.append(image, text);
    figure.style.display = "inline-block";
    return figure;
  });
  dialog.replaceChildren(close, caption, ...pictures);
  if (!dialog.open) dialog.showModal();
};
dialog.addEventListener("keydown", event => {
  if (event.key === "ArrowRight") show(shown.nextElementSibling);
  if (event.key === "ArrowLeft") show(shown.previousElementSibling);
});
document.body.append(dialog);
for (const image of document.querySelectorAll("img.zoom")) {
  const button = document.createElement("button");
  button.type = "button";
  button.setAttribute("aria-label", "Enlarge " + image.alt);
  image.replaceWith(button);
  button.append(image);
  button.addEventListener("click", () => show(button.closest("tr")));
}

"use strict";

// Figures take the colours of the page, which change with its light or dark form
const ink = "currentColor";
const axis = {
  labelColor: ink, titleColor: ink, domainColor: ink, tickColor: ink, gridColor: ink,
  labelOpacity: 0.8, domainOpacity: 0.4, tickOpacity: 0.4, gridOpacity: 0.12,
  titleFontWeight: "normal",
};
const config = {
  background: null, font: "system-ui, sans-serif", view: { stroke: null }, axis,
  legend: { labelColor: ink, titleColor: ink }, rule: { color: ink }, text: { color: ink },
};
const escaped = text => new Option(text).innerHTML;
for (const figure of document.querySelectorAll("figure.drawn")) {
  const spec = JSON.parse(figure.querySelector("script").textContent);
  const names = spec.usermeta?.names ?? {};
  const row = ([key, value]) =>
    `<tr><td class="key">${escaped(names[key] ?? key)}</td><td class="value">${escaped(value)}</td></tr>`;
  const has = ([key, value]) => !(key in names) || value !== "NaN"; // a line without this epoch
  const tooltip = {
    formatTooltip: value => `<table>${Object.entries(value).filter(has).map(row).join("")}</table>`,
  };
  const options = { renderer: "svg", actions: false, config, tooltip };
  vegaEmbed(figure.querySelector(".canvas"), spec, options)
    .then(() => figure.dataset.state = "drawn");
}

// A click on a heading sorts by its column, the next one the other way round; empty cells are last
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.querySelectorAll("th")];
  const key = (row, column) => {
    const text = row.cells[column].dataset.value;
    return text === undefined || text === "" || isNaN(text) ? text : Number(text);
  };
  const compare = (a, b) => typeof a === "number" && typeof b === "number"
    ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
  headings.forEach((heading, column) => heading.addEventListener("click", () => {
    const before = heading.getAttribute("aria-sort");
    const descending = before ? before === "ascending" : column > 0;
    headings.forEach(other => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const rows = [...table.tBodies[0].rows].map(row => [key(row, column), row]);
    const empty = rows.filter(([value]) => value === undefined);
    const full = rows.filter(([value]) => value !== undefined)
      .sort(([a], [b]) => descending ? compare(b, a) : compare(a, b));
    table.tBodies[0].append(...[...full, ...empty].map(([, row]) => row));
  }));
}

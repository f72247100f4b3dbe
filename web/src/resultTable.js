// The table of one photo, to read, to copy and to save.

import { announce, button, element } from "./dom.js";
import { FIELDS, toCsv, toJsonLines, toTabs } from "./results.js";
import { copyText, saveFile } from "./saving.js";

const SHOWN_MS = 2000; // how long a button says that it has copied

/** Buttons that copy and save rows. `rows` is a function, so that the latest ones are taken. */
export function resultButtons(rows, name) {
  return [
    button("Copy table", async ({ currentTarget }) => {
      const copied = await copyText(toTabs(rows()));
      sayBriefly(currentTarget, copied ? "Copied" : "The browser refused");
    }),
    button("Save CSV", () => saveFile(`${name}.csv`, toCsv(rows()), "text/csv")),
    button("Save JSON", () => saveFile(`${name}.jsonl`, toJsonLines(rows()), "application/json")),
  ];
}

/** The rows as a table that can be unfolded. */
export function resultTable(rows, file) {
  const head = FIELDS.map((name) => element("th", { scope: "col" }, name));
  const body = rows.map((values) => element("tr", {},
    ...FIELDS.map((name) => element("td", {}, String(values[name] ?? "")))));
  const table = element("table", {},
    element("caption.visually-hidden", {}, `Results of ${file}`),
    element("thead", {}, element("tr", {}, ...head)),
    element("tbody", {}, ...body));
  // What scrolls sideways must be reachable with the keyboard.
  const scroller = element("div.scroller", { tabIndex: 0, role: "region",
                                             aria: { label: `Table of ${file}` } }, table);
  return element("details.table", {}, element("summary", {}, "Table"), scroller);
}

function sayBriefly(clicked, text) {
  const usual = clicked.textContent;
  if (usual === text) return;
  clicked.textContent = text;
  announce(text);
  setTimeout(() => { clicked.textContent = usual; }, SHOWN_MS);
}

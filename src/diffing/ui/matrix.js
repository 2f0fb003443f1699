// Organisms by methods. Every cell is a link: a click opens it here, a middle click in a new tab.
const make = (tag, name, text) => {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  return element;
};

const cellOf = (cell, open) => {
  const box = make("td", cell ? cell.status : "none");
  if (!cell) { box.append(make("span", "", "–")); return box; }
  const link = make("a", "cell");
  link.href = cell.href;
  const glyph = make("span", "glyph", cell.glyph);
  glyph.setAttribute("aria-hidden", "true");
  link.append(glyph, make("span", "value", cell.text));
  for (const line of cell.small) link.append(make("span", "small" + (line.isReason ? " reason" : ""), line.text));
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
    event.preventDefault();
    open(cell.id);
  });
  box.append(link);
  return box;
};

export default function (component) {
  const { data: [data], parentElement, setTriggerValue } = component;
  const root = parentElement.querySelector(".root");
  const shown = JSON.stringify(data);
  if (root.dataset.shown === shown) return;
  root.dataset.shown = shown;
  const table = make("table");
  table.setAttribute("aria-label", data.label);
  const head = make("thead"), top = make("tr");
  for (const name of [data.corner, ...data.columns]) {
    const th = make("th", "", name);
    th.scope = "col";
    top.append(th);
  }
  head.append(top);
  const body = make("tbody");
  for (const row of data.rows) {
    const line = make("tr"), th = make("th", "", row.name);
    th.scope = "row";
    if (row.links.length) {
      const links = make("span", "links");
      for (const link of row.links) {
        const a = make("a", "", link.text + " ↗");
        a.href = link.url; a.target = "_blank"; a.rel = "noopener noreferrer";
        links.append(a);
      }
      th.append(links);
    }
    line.append(th, ...row.cells.map((cell) => cellOf(cell, (id) => setTriggerValue("open", id))));
    body.append(line);
  }
  table.append(head, body);
  const scroll = make("div", "scroll");
  scroll.tabIndex = 0;
  scroll.append(table);
  root.replaceChildren(scroll);
}

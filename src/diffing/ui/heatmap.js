// Tokens coloured by value. The line under an example follows the pointer, a tap or the arrow keys;
// all text is set as text, never as markup.
const make = (tag, name, text) => {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  return element;
};

const legend = (data) => {
  const box = make("div", "legend");
  const scale = make("div", "scale");
  const bar = make("div", "bar");
  for (const name of data.scale) bar.append(make("i", name));
  const ticks = make("div", "ticks");
  for (const tick of data.ticks) ticks.append(make("span", "", tick));
  scale.append(bar, ticks);
  box.append(make("span", "", data.unit), scale);
  box.setAttribute("role", "img");
  box.setAttribute("aria-label", `Colour scale from ${data.ticks[0]} to ${data.ticks[data.ticks.length - 1]} ${data.unit}`);
  return box;
};

const onLine = (token, direction) => {
  const here = token.getBoundingClientRect();
  const middle = (rect) => (rect.left + rect.right) / 2;
  let best = null, score = Infinity;
  for (const other of token.parentElement.querySelectorAll(".t")) {
    const rect = other.getBoundingClientRect();
    const away = direction * (rect.top - here.top);
    if (away < here.height / 2) continue;
    const distance = 1000 * away + Math.abs(middle(rect) - middle(here));
    if (distance < score) { best = other; score = distance; }
  }
  return best;
};

const moves = {
  ArrowRight: (t) => t.nextElementSibling,
  ArrowLeft: (t) => t.previousElementSibling,
  ArrowDown: (t) => onLine(t, 1),
  ArrowUp: (t) => onLine(t, -1),
  Home: (t) => t.parentElement.firstElementChild,
  End: (t) => t.parentElement.lastElementChild,
};

const example = (item, choose) => {
  const box = make("figure", "map");
  if (item.title) box.append(make("figcaption", "title", item.title));
  const tokens = make("div", "tokens");
  tokens.setAttribute("role", "listbox");
  tokens.setAttribute("aria-label", item.title || "tokens");
  const detail = make("div", "detail");
  detail.setAttribute("role", "status");
  let at = null;
  const show = (token) => {
    if (at) { at.classList.remove("at"); at.tabIndex = -1; at.setAttribute("aria-selected", "false"); }
    at = token;
    at.classList.add("at");
    at.tabIndex = 0;
    at.setAttribute("aria-selected", "true");
    detail.replaceChildren(...item.tokens[at.dataset.i].lines.map((line) => make("span", "", line)));
  };
  item.tokens.forEach((token, i) => {
    const span = make("span", "t " + token.colour);
    for (const [text, isMark] of token.parts) span.append(isMark ? make("span", "mark", text) : text);
    span.dataset.i = i;
    span.tabIndex = -1;
    span.setAttribute("role", "option");
    span.setAttribute("aria-selected", "false");
    tokens.append(span);
  });
  const of = (event) => event.target.closest && event.target.closest(".t");
  tokens.addEventListener("pointerover", (event) => {
    const token = of(event);
    if (!token || choose) return;
    const hadFocus = tokens.contains(tokens.getRootNode().activeElement);
    show(token);
    if (hadFocus) token.focus({ preventScroll: true });
  });
  tokens.addEventListener("focusin", (event) => { if (of(event)) show(of(event)); });
  tokens.addEventListener("click", (event) => {
    const token = of(event);
    if (!token) return;
    show(token);
    token.focus({ preventScroll: true });
    if (choose) choose(Number(token.dataset.i));
  });
  tokens.addEventListener("keydown", (event) => {
    const token = of(event);
    if (!token || event.ctrlKey || event.metaKey || event.altKey) return;
    if (choose && (event.key === "Enter" || event.key === " ")) { event.preventDefault(); choose(Number(token.dataset.i)); }
    if (!moves[event.key]) return;
    event.preventDefault();
    const next = moves[event.key](token);
    if (next) { show(next); next.focus(); }
  });
  box.append(tokens, detail);
  const first = tokens.children[item.at];
  if (first) show(first);
  return box;
};

export default function (component) {
  const { data, parentElement, setStateValue } = component;
  const root = parentElement.querySelector(".root");
  // The chosen token comes back from the server; drawing anew because of it would take the focus away.
  const shown = JSON.stringify({ ...data, items: data.items.map(({ at, ...rest }) => rest) });
  if (root.dataset.shown === shown) return;
  root.dataset.shown = shown;
  const choose = data.selectable ? (i) => setStateValue("selected", i) : null;
  root.replaceChildren(legend(data), ...data.items.map((item) => example(item, choose)));
}

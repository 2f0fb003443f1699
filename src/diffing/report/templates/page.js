"use strict";
// Heat maps: the line under an example follows the pointer, a tap, or the arrow keys.
(() => {
  const linesOf = (token) => {
    if (token.hasAttribute("title")) {
      token.dataset.lines = token.title;
      token.removeAttribute("title"); // the browser's own tooltip would cover the text
    }
    return (token.dataset.lines || "").split("\n");
  };

  const show = (token) => {
    const map = token.closest(".heatmap");
    const detail = map && map.querySelector(".detail");
    if (!detail) return;
    const before = map.querySelector(".at");
    if (before && before !== token) {
      before.classList.remove("at");
      before.removeAttribute("tabindex");
      before.removeAttribute("aria-describedby");
    }
    token.classList.add("at");
    token.tabIndex = 0;
    token.setAttribute("aria-describedby", detail.id);
    detail.replaceChildren(...linesOf(token).map((line) => {
      const span = document.createElement("span");
      span.textContent = line;
      return span;
    }));
  };

  const onLine = (token, direction) => {
    const here = token.getBoundingClientRect();
    const middle = (box) => (box.left + box.right) / 2;
    let best = null, score = Infinity;
    for (const other of token.parentElement.children) {
      const box = other.getBoundingClientRect();
      const away = direction * (box.top - here.top);
      if (away < here.height / 2) continue;
      const distance = 1000 * away + Math.abs(middle(box) - middle(here));
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

  const tokenAt = (event) => event.target.closest && event.target.closest(".tokens .t");
  document.addEventListener("pointerover", (event) => {
    const token = tokenAt(event);
    if (!token) return;
    const hadFocus = token.parentElement.contains(document.activeElement);
    show(token);
    if (hadFocus) token.focus({ preventScroll: true });
  });
  document.addEventListener("focusin", (event) => { const token = tokenAt(event); if (token) show(token); });
  document.addEventListener("click", (event) => {
    const token = tokenAt(event);
    if (token) { show(token); token.focus({ preventScroll: true }); }
  });
  document.addEventListener("keydown", (event) => {
    const token = tokenAt(event);
    if (!token || !moves[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const next = moves[event.key](token);
    if (next) { show(next); next.focus(); }
  });
})();

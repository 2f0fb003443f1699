"use strict";
// Figures: drawn when they come into view, in the colours of the page's theme.
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(pointer: coarse)");
  const colourway = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]; // Okabe and Ito 2008
  const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const channels = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  const luminance = (rgb) => rgb
    .map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const contrast = (a, b) => {
    const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  };
  // A line keeps its hue and moves towards the text's colour until it stands out from the page.
  const readable = (colour) => {
    if (typeof colour !== "string" || !/^#[0-9a-f]{6}$/i.test(colour)) return colour;
    const page = channels(variable("--page")), ink = channels(variable("--ink")), start = channels(colour);
    for (let w = 0; w <= 1; w += 0.05) {
      const mixed = start.map((c, i) => Math.round(c + w * (ink[i] - c)));
      if (contrast(mixed, page) >= 4) return `rgb(${mixed.join(",")})`;
    }
    return variable("--ink");
  };

  const recoloured = (trace) => {
    const copy = { ...trace };
    for (const part of ["line", "marker"]) if (copy[part]) copy[part] = { ...copy[part], color: readable(copy[part].color) };
    if (copy.fillcolor) copy.fillcolor = readable(copy.fillcolor);
    return copy;
  };

  const template = () => {
    const ink = variable("--ink"), muted = variable("--muted"), line = variable("--line"), page = variable("--page");
    const axis = {
      gridcolor: line, linecolor: muted, zerolinecolor: muted, tickcolor: muted, zerolinewidth: 1, automargin: true,
      exponentformat: "power", tickfont: { color: muted, size: 12 }, title: { font: { size: 13 }, standoff: 10 },
    };
    return {
      data: {},
      layout: {
        colorway: colourway.map(readable), paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        font: { family: getComputedStyle(document.body).fontFamily, color: ink, size: 13 },
        xaxis: axis, yaxis: axis, hovermode: "closest",
        hoverlabel: { bgcolor: variable("--raised"), bordercolor: line, font: { color: ink } },
        legend: { orientation: "h", x: 0, y: 1.02, xanchor: "left", yanchor: "bottom", bgcolor: "rgba(0,0,0,0)" },
        colorscale: { sequential: "Cividis", sequentialminus: "Cividis", diverging: "PuOr" },
        shapedefaults: { line: { color: muted } },
        annotationdefaults: { font: { color: muted }, arrowcolor: muted, bgcolor: page },
        margin: { l: 8, r: 8, t: 24, b: 8 },
      },
    };
  };

  const layoutOf = (figure, box) => {
    const layout = { ...figure.layout, template: template(), autosize: true };
    delete layout.width;
    if (!layout.height) layout.height = box.clientWidth < 560 ? 300 : 380;
    if (touch.matches) layout.dragmode = false; // a finger scrolls the page
    for (const key of Object.keys(layout)) {
      const axis = layout[key];
      if (/^[xy]axis/.test(key) && axis && axis.type === "log" && !axis.dtick) {
        layout[key] = { tickangle: 0, ...axis, dtick: key[0] === "x" && box.clientWidth < 560 ? 2 : 1 };
      }
    }
    return layout;
  };

  const sources = new Map();
  document.querySelectorAll("script[data-figure]").forEach((s) => sources.set(s.dataset.figure, s));
  const boxes = [...document.querySelectorAll("[data-plot]")];
  boxes.forEach((box) => box.classList.add("ready"));

  const draw = (box) => {
    const figure = JSON.parse(sources.get(box.dataset.plot).textContent);
    const config = { responsive: true, displayModeBar: false };
    if (!box.classList.contains("drawn")) box.replaceChildren();
    box.classList.add("drawn");
    Plotly.react(box, figure.data.map(recoloured), layoutOf(figure, box), config);
  };

  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { seen.unobserve(entry.target); draw(entry.target); }
  }, { rootMargin: "400px" });
  boxes.forEach((box) => seen.observe(box));
  dark.addEventListener("change", () => boxes.filter((box) => box.classList.contains("drawn")).forEach(draw));
  addEventListener("beforeprint", () => boxes.forEach(draw));
})();

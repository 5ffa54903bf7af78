// What can be clicked on a report: classes, points, curves and headings of tables. Text from the data is set as text only.
"use strict";
const data = JSON.parse(document.getElementById("values").textContent);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const element = (name, text = "", kind = "") => {
  const made = document.createElement(name);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
};
const digits = value => value === null ? "–" : value.toFixed(3);

// Pictures: each is held once and may be shown in several places.
const picture = (img, position) => {
  const address = (data.pictures || {})[position];
  if (!address) { img.remove(); return; }
  img.onload = () => img.classList.toggle("small", img.naturalWidth <= 48);
  img.src = address;
};
all("img[data-s]").forEach(img => picture(img, img.dataset.s));

// A class: its measures, its pictures, what it is taken for, and its points.
const panel = document.getElementById("opened");
const pick = label => {
  all(".plane").forEach(plane => {
    plane.classList.toggle("picks", label !== null);
    all("circle", plane).forEach(point => {
      const isPicked = point.dataset.class === label;
      point.classList.toggle("picked", isPicked);
    });
  });
  panel.hidden = label === null;
};
const show = label => {
  const entry = (data.classes || {})[label];
  if (!entry) return;
  const [name, samples, recall, map, positions, takenFor] = entry;
  panel.replaceChildren(element("h3", name), element("p", `${samples} samples, R@1 ${digits(recall)}, MAP@R ${digits(map)}`));
  const close = element("button", "×", "close");
  close.type = "button";
  close.setAttribute("aria-label", "Close");
  close.onclick = () => pick(null);
  panel.prepend(close);
  const row = element("div", "", "pictures");
  positions.forEach(position => {
    const img = element("img");
    img.alt = "";
    picture(img, position);
    row.append(img);
  });
  if (positions.length) panel.append(row);
  else if (data.hasPictures) panel.append(element("p", "This page keeps no pictures of this class."));
  if (takenFor.length) {
    const line = element("p", "Nearest neighbours of other classes: ");
    takenFor.forEach(([other, count], index) => {
      const button = element("button", data.classes[other] ? data.classes[other][0] : "", "of-class");
      button.type = "button";
      button.dataset.class = other;
      line.append(index ? ", " : "", button, ` (${count})`);
    });
    panel.append(line);
  }
  pick(String(label));
};
document.addEventListener("click", event => {
  const target = event.target.closest("[data-class]");
  if (target) show(target.dataset.class);
});
document.addEventListener("keydown", event => { if (event.key === "Escape") pick(null); });

// An address such as report.html#class-12 opens a class.
if (location.hash.startsWith("#class-")) show(location.hash.slice(7));

// Points of the embedding.
const read = document.getElementById("point");
all(".plane svg").forEach(svg => {
  svg.addEventListener("pointermove", event => {
    const entry = (data.classes || {})[event.target.dataset.class];
    read.textContent = entry ? entry[0] : "\u00a0";
  });
});
all("button.switch").forEach(button => button.addEventListener("click", () => {
  all(".plane").forEach(plane => { plane.hidden = !plane.hidden; });
}));

// Curves: values under the pointer, and curves that are switched off by their name.
all("figure.chart").forEach(figure => {
  const curves = data.charts[figure.dataset.chart];
  const [low, high, left, right, width] = figure.dataset.x.split(",").map(Number);
  const svg = figure.querySelector("svg"), at = figure.querySelector(".at"), line = figure.querySelector(".read");
  const isOff = row => figure.querySelector(`.curve[data-row="${row}"]`).classList.contains("off");
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect();
    const place = (event.clientX - box.left) / box.width * width;
    const step = low + (place - left) / (right - left) * (high - low);
    let nearest = null;
    const values = curves.flatMap(([name, steps, numbers], row) => {
      if (isOff(row)) return [];
      let index = 0;
      steps.forEach((s, i) => { if (Math.abs(s - step) < Math.abs(steps[index] - step)) index = i; });
      if (nearest === null || Math.abs(steps[index] - step) < Math.abs(nearest - step)) nearest = steps[index];
      return [`${name} ${numbers[index]}`];
    });
    if (nearest === null) return;
    const x = high > low ? left + (nearest - low) / (high - low) * (right - left) : left;
    at.setAttribute("x1", x);
    at.setAttribute("x2", x);
    line.textContent = `step ${nearest}: ${values.join(", ")}`;
  });
  all(".legend button", figure).forEach(button => button.addEventListener("click", () => {
    button.classList.toggle("off");
    figure.querySelector(`.curve[data-row="${button.dataset.row}"]`).classList.toggle("off");
  }));
});

// Tables that sort: numbers by value, dashes last, text by the alphabet.
all("table.sorts").forEach(table => all("th", table).forEach((head, column) => {
  head.querySelector("button").addEventListener("click", () => {
    const value = row => {
      const cell = row.cells[column];
      if (cell.dataset.v === undefined) return cell.textContent;
      return cell.dataset.v === "" ? null : Number(cell.dataset.v);
    };
    const isUp = head.getAttribute("aria-sort") === "descending" || (!head.hasAttribute("aria-sort") && column === 0);
    const compare = (a, b) => typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });
    const rows = [...table.tBodies[0].rows].sort((first, second) => {
      const a = value(first), b = value(second);
      if (a === null || b === null) return (a === null) - (b === null);
      return isUp ? compare(a, b) : compare(b, a);
    });
    all("th", table).forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", isUp ? "ascending" : "descending");
    table.tBodies[0].append(...rows);
  });
}));

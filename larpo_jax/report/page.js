"use strict";

// Tables: a click on a column sorts by it, a second one the other way; a text keeps rows that have it.
const key = (row, column) => {
  const cell = row.cells[column];
  return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent.trim();
};

const compare = (a, b) => {
  if (typeof a === "number" && typeof b === "number") return a - b;
  if (typeof a === typeof b) return a.localeCompare(b, undefined, { numeric: true });
  return typeof a === "number" ? -1 : 1;
};

for (const box of document.querySelectorAll(".table")) {
  const body = box.querySelector("tbody");
  const heads = [...box.querySelectorAll("th")];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const way = head.getAttribute("aria-sort") === "descending" ? "ascending" : "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", way);
      const sign = way === "ascending" ? 1 : -1;
      const empty = (row) => row.cells[column].textContent.trim() === "";
      const rows = [...body.rows].sort(
        (a, b) => empty(a) - empty(b) || sign * compare(key(a, column), key(b, column)),
      );
      body.append(...rows);
    });
  });
  const words = box.querySelector("input");
  words.addEventListener("input", () => {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !wanted.every((word) => text.includes(word));
    }
  });
}

// Answers: a prompt of a seed, and what each arm answered.
const make = (tag, text, name = "") => {
  const element = document.createElement(tag);
  element.textContent = text;
  element.className = name;
  return element;
};

const number = (value) => (typeof value === "number" ? Number(value.toPrecision(4)).toString() : value);

const card = (arm, answers) => {
  const box = make("div", "", "answer");
  box.append(make("h3", arm));
  for (const answer of answers) {
    const numbers = Object.entries(answer.numbers).map(([name, value]) => `${name} ${number(value)}`);
    box.append(make("p", [answer.kind, ...numbers].join(" \u00b7 "), "kind"));
    box.append(make("pre", answer.text || "(empty)"));
  }
  return box;
};

const browse = (data) => {
  const seeds = document.getElementById("sample-seed");
  const prompts = document.getElementById("sample-prompt");
  const show = () => {
    const chosen = data[Number(prompts.value)];
    document.getElementById("sample-text").textContent = chosen.prompt;
    const arms = new Map(chosen.answers.map((answer) => [answer.arm, []]));
    chosen.answers.forEach((answer) => arms.get(answer.arm).push(answer));
    document.getElementById("sample-answers").replaceChildren(
      ...[...arms].map(([arm, answers]) => card(arm, answers)));
  };
  const fill = () => {
    prompts.replaceChildren();
    data.forEach((each, index) => {
      if (String(each.seed) !== seeds.value) return;
      const option = make("option", `${each.row}: ${each.prompt.slice(0, 60)}`);
      option.value = index;
      prompts.append(option);
    });
    show();
  };
  for (const seed of new Set(data.map((each) => String(each.seed)))) {
    seeds.append(make("option", seed));
  }
  const step = (by) => {
    const count = prompts.options.length;
    prompts.selectedIndex = (prompts.selectedIndex + by + count) % count;
    show();
  };
  seeds.addEventListener("change", fill);
  prompts.addEventListener("change", show);
  document.getElementById("sample-back").addEventListener("click", () => step(-1));
  document.getElementById("sample-next").addEventListener("click", () => step(1));
  fill();
};

const data = document.getElementById("sample-data");
if (data) browse(JSON.parse(data.textContent));

"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const steps = data.steps;
  const cells = Array.from(document.querySelectorAll("#canvas .t"));
  const by = (id) => document.getElementById(id);
  const slider = by("slider"), play = by("play"), speed = by("speed"), now = by("now"), about = by("about");
  let at = steps.length - 1, timer = 0;

  // After forward n: which token stands at each position, and since when.
  const canvas = (n) => {
    const since = new Array(cells.length).fill(-1), shown = new Array(cells.length).fill(null);
    for (let i = 0; i <= n; i++) {
      steps[i].at.forEach((position, k) => { since[position] = i; shown[position] = k; });
    }
    return { since, shown };
  };

  const write = (cell, text) => {
    cell.textContent = "";
    text.split("\n").forEach((part, i) => {
      if (i) {
        const sign = cell.appendChild(document.createElement("span"));
        sign.className = "nl";
        sign.textContent = "\u23ce";
        cell.append("\n");
      }
      cell.append(part);
    });
  };

  const texts = cells.map(() => null);
  const drawTokens = () => {
    const { since, shown } = canvas(at), step = steps[at];
    cells.forEach((cell, p) => {
      const open = since[p] < 0;
      const text = open ? data.final[p] : steps[since[p]].text[shown[p]];
      if (texts[p] !== null && texts[p] !== text) write(cell, text);
      texts[p] = text;
      const fresh = since[p] === at;
      cell.classList.toggle("open", open);
      cell.classList.toggle("fresh", fresh);
      cell.classList.toggle("in", p >= step.first && p < step.first + step.span);
      if (fresh) {
        const shade = step.shade[shown[p]];
        cell.style.setProperty("--fill", `var(--${shade})`);
        cell.style.setProperty("--on", `var(--on-${shade})`);
      }
    });
    by("canvas").style.setProperty("--at", `var(--${step.kind})`);
  };

  const drawNow = () => {
    const step = steps[at];
    now.textContent = "";
    now.style.setProperty("--at", `var(--${step.kind})`);
    const line = now.appendChild(document.createElement("div"));
    line.append(document.createElement("i"));
    const head = line.appendChild(document.createElement("b"));
    head.textContent = `Forward ${at + 1} of ${steps.length}: ${step.kind}`;
    const rest = line.appendChild(document.createElement("span"));
    rest.textContent = ` · ${step.about}`;
    slider.value = String(at + 1);
    slider.setAttribute("aria-valuetext", `${head.textContent}, ${step.about}`);
  };

  const drawChart = () => {
    const { top, row, bottom } = data.chart;
    const edge = top + (at + 1) * row;
    document.querySelectorAll(".veil").forEach((veil) => {
      veil.setAttribute("y", edge);
      veil.setAttribute("height", Math.max(bottom - edge, 0));
    });
    document.querySelectorAll(".cursor").forEach((cursor) => cursor.setAttribute("y", edge - row));
  };

  // Long answers and wide charts scroll inside their boxes, so that what happens stays in sight.
  const follow = () => {
    const step = steps[at], first = step.at.length ? Math.min(...step.at) : Math.max(step.first, 0);
    const box = by("canvas"), cell = cells[Math.min(first, cells.length - 1)];
    const y = cell.offsetTop - box.scrollTop;
    if (y < 0 || y > box.clientHeight - 40) box.scrollTop += y - box.clientHeight / 3;
    const scroller = by("scroller"), { axis, gutter, cell: wide, top, row } = data.chart;
    const cache = scroller.querySelector(".cache"), free = getComputedStyle(cache).position === "sticky" ? cache.clientWidth : 0;
    const x = gutter + first * wide - scroller.scrollLeft, room = scroller.clientWidth - axis - free;
    if (x < 0 || x > room - 40) scroller.scrollLeft += x - room / 4;
    const down = top + at * row - scroller.scrollTop;
    if (down < 0 || down > scroller.clientHeight - 40) scroller.scrollTop += down - scroller.clientHeight / 3;
  };

  const show = (n) => {
    at = Math.min(Math.max(n, 0), steps.length - 1);
    drawTokens();
    drawNow();
    drawChart();
  };

  const stop = () => {
    clearInterval(timer);
    timer = 0;
    play.textContent = "Play";
  };
  const start = () => {
    if (at === steps.length - 1) { show(0); follow(); }
    play.textContent = "Pause";
    timer = setInterval(() => {
      if (at < steps.length - 1) { show(at + 1); follow(); }
      if (at === steps.length - 1) stop();
    }, 1000 / Number(speed.value));
  };
  const go = (n) => { stop(); show(n); follow(); };

  play.addEventListener("click", () => (timer ? stop() : start()));
  by("back").addEventListener("click", () => go(at - 1));
  by("on").addEventListener("click", () => go(at + 1));
  slider.addEventListener("input", () => go(Number(slider.value) - 1));
  speed.addEventListener("change", () => { if (timer) { stop(); start(); } });
  const chart = by("chart");
  chart.addEventListener("click", (event) => {
    const svg = event.target.closest("svg");
    if (!svg) return;
    const n = Math.floor((event.clientY - svg.getBoundingClientRect().top - data.chart.top) / data.chart.row);
    if (n >= 0 && n < steps.length) { stop(); show(n); }
  });
  const read = (event) => {
    const title = event.target.querySelector && event.target.querySelector(":scope > title");
    if (title) about.textContent = title.textContent;
  };
  chart.addEventListener("pointerover", read);
  chart.addEventListener("pointerdown", read);

  speed.value = steps.length > 200 ? "30" : steps.length > 60 ? "10" : "4";
  document.body.classList.add("ready");
  const asked = parseInt(location.hash.slice(1), 10); // page.html#5 opens at forward 5
  if (asked > 0) go(asked - 1); else show(at);
})();

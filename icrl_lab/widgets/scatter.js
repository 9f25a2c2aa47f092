// Panels of the same points on canvases. A drag draws a lasso, a click pins, arrows walk through the points; see scatter.py.
const SIZE = 230; // pixels of a panel, as in scatter.css
const EDGE = 11; // pixels between a panel's frame and its outermost points
const NEAR = 9; // pixels within which a point is pointed at
const FADED = 0.12;
const RING = "#D55E00";

function outline(pen, shape, x, y, r) {
  pen.beginPath();
  switch (shape) {
    case "square": pen.rect(x - r * 0.9, y - r * 0.9, r * 1.8, r * 1.8); break;
    case "diamond": pen.moveTo(x, y - r * 1.25); pen.lineTo(x + r * 1.25, y); pen.lineTo(x, y + r * 1.25); pen.lineTo(x - r * 1.25, y); break;
    case "triangle-up": pen.moveTo(x, y - r * 1.2); pen.lineTo(x + r * 1.15, y + r * 0.9); pen.lineTo(x - r * 1.15, y + r * 0.9); break;
    case "x": for (const s of [-1, 1]) { pen.moveTo(x - r, y - s * r); pen.lineTo(x + r, y + s * r); } break;
    case "cross": pen.moveTo(x - r * 1.2, y); pen.lineTo(x + r * 1.2, y); pen.moveTo(x, y - r * 1.2); pen.lineTo(x, y + r * 1.2); break;
    case "star": for (let k = 0; k < 10; k++) { const q = k % 2 ? r * 0.55 : r * 1.35, a = (k * Math.PI) / 5 - Math.PI / 2; pen.lineTo(x + q * Math.cos(a), y + q * Math.sin(a)); } break;
    default: pen.arc(x, y, r, 0, 2 * Math.PI);
  }
  pen.closePath();
}

function stamp(colour, shape, radius, ratio) {
  const side = Math.ceil(2 * (radius * 1.4 + 1)), made = document.createElement("canvas");
  made.width = made.height = side * ratio;
  const pen = made.getContext("2d");
  pen.scale(ratio, ratio);
  outline(pen, shape, side / 2, side / 2, radius);
  if (shape === "x" || shape === "cross") { pen.strokeStyle = colour; pen.lineWidth = 1.8; pen.stroke(); }
  else { // the edge keeps dark points on a dark page, and light ones on a light page, in sight
    pen.fillStyle = colour; pen.fill();
    pen.strokeStyle = "rgba(128,128,128,.9)"; pen.lineWidth = radius > 2.5 ? 0.9 : 0.5; pen.stroke();
  }
  return { made, side };
}

function inside(path, x, y) { // by counting crossings
  let odd = false;
  for (let i = 0, j = path.length - 1; i < path.length; j = i++) {
    const [ax, ay] = path[i], [bx, by] = path[j];
    if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) odd = !odd;
  }
  return odd;
}

const element = (kind, name, text) => { const made = document.createElement(kind); if (name) made.className = name; if (text !== undefined) made.textContent = text; return made; };
const bytes = (value) => new Uint8Array(value.buffer, value.byteOffset, value.byteLength);

function render({ model, el }) {
  const root = element("div", "icrl-scatter"), ratio = globalThis.devicePixelRatio || 1;
  el.append(root);
  let panels = [], places = new Float32Array(0), paints = new Uint8Array(0), wait = 0;
  const count = () => paints.length;

  const take = () => {
    places = new Float32Array(bytes(model.get("places")).slice().buffer);
    paints = bytes(model.get("paints"));
  };
  const spot = (k, i) => {
    const at = 2 * (k * count() + i), room = SIZE - 2 * EDGE;
    return [EDGE + places[at] * room, SIZE - EDGE - places[at + 1] * room];
  };
  const set = (name, value) => { model.set(name, value); model.save_changes(); };
  const point = (i) => { // told once the mouse rests, so that nothing waits behind what it passed
    clearTimeout(wait);
    wait = setTimeout(() => { if (model.get("pointed") !== i) set("pointed", i); }, 120);
  };

  const draw = () => {
    const n = count(), radius = n > 4000 ? 2 : n > 800 ? 2.8 : 3.6;
    const looks = model.get("palette").map(([colour, shape]) => stamp(colour, shape, radius, ratio));
    const chosen = model.get("chosen"), lit = new Uint8Array(n);
    for (const i of chosen || []) lit[i] = 1;
    for (const [k, { back }] of panels.entries()) {
      back.width = back.height = SIZE * ratio;
      const pen = back.getContext("2d");
      pen.scale(ratio, ratio);
      for (const pass of chosen ? [0, 1] : [1]) { // the faded lie below
        pen.globalAlpha = pass ? 0.9 : FADED;
        for (let i = 0; i < n; i++) {
          if (chosen && lit[i] !== pass) continue;
          const look = looks[paints[i]], [x, y] = spot(k, i);
          pen.drawImage(look.made, x - look.side / 2, y - look.side / 2, look.side, look.side);
        }
      }
    }
    ring();
  };
  const ring = (path, on) => { // the upper canvas: rings and the lasso
    const pinned = model.get("pinned"), pointed = model.get("pointed");
    for (const [k, { front }] of panels.entries()) {
      front.width = front.height = SIZE * ratio;
      const pen = front.getContext("2d");
      pen.scale(ratio, ratio);
      for (const [i, r, wide] of [[pinned, 8, 2.5], [pointed, 7, 1.2]]) {
        if (i < 0 || i >= count()) continue;
        outline(pen, "circle", ...spot(k, i), r);
        pen.strokeStyle = RING; pen.lineWidth = wide; pen.stroke();
      }
      if (path && on === k) {
        pen.beginPath();
        for (const [x, y] of path) pen.lineTo(x, y);
        pen.setLineDash([4, 3]); pen.strokeStyle = "#888888"; pen.lineWidth = 1.5; pen.stroke();
        pen.fillStyle = "rgba(128,128,128,.12)"; pen.fill();
      }
    }
  };

  const nearest = (k, x, y) => {
    let best = -1, least = NEAR * NEAR;
    for (let i = 0; i < count(); i++) {
      const [a, b] = spot(k, i), d = (a - x) ** 2 + (b - y) ** 2;
      if (d < least) { least = d; best = i; }
    }
    return best;
  };
  const lasso = (k, path) => {
    const caught = [];
    for (let i = 0; i < count(); i++) if (inside(path, ...spot(k, i))) caught.push(i);
    if (caught.length) set("chosen", caught); // nothing caught: what was selected stays
  };

  const listen = (k, { field, tip }) => {
    let path = null;
    const here = (event) => { const box = field.getBoundingClientRect(); return [event.clientX - box.left - field.clientLeft, event.clientY - box.top - field.clientTop]; };
    const show = (i, x, y) => {
      tip.hidden = i < 0;
      if (i < 0) return;
      tip.textContent = model.get("names")[i];
      tip.style.left = `${Math.min(x + 10, 110)}px`;
      tip.style.top = `${y + 14}px`;
    };
    field.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      path = [here(event)];
      field.setPointerCapture(event.pointerId);
    });
    field.addEventListener("pointermove", (event) => {
      const [x, y] = here(event);
      if (path) {
        path.push([x, y]);
        tip.hidden = true;
        requestAnimationFrame(() => path && ring(path, k));
        return;
      }
      const i = nearest(k, x, y);
      show(i, x, y);
      point(i);
    });
    field.addEventListener("pointerup", (event) => {
      if (!path) return;
      const drawn = path, [x, y] = here(event);
      path = null;
      const far = drawn.some(([a, b]) => Math.hypot(a - drawn[0][0], b - drawn[0][1]) > 5);
      if (far) lasso(k, drawn);
      else {
        const i = nearest(k, x, y);
        if (i >= 0) set("pinned", i);
      }
      ring();
    });
    field.addEventListener("pointercancel", () => { path = null; ring(); });
    field.addEventListener("pointerleave", () => { if (!path) { tip.hidden = true; point(-1); } });
    field.addEventListener("blur", () => { tip.hidden = true; point(-1); });
    field.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key], n = count();
      const now = model.get("pointed") >= 0 ? model.get("pointed") : model.get("pinned");
      if (step && n) {
        const i = now < 0 && step < 0 ? n - 1 : (now + step + n) % n; // from nowhere, back is the last
        set("pointed", i);
        show(i, ...spot(k, i));
      } else if ((event.key === "Enter" || event.key === " ") && now >= 0) set("pinned", now);
      else if (event.key === "Escape") set("chosen", null);
      else return;
      event.preventDefault();
      event.stopPropagation(); // a notebook has keys of its own
    });
  };

  const legend = (key) => {
    const made = element("div", "icrl-key");
    if (key.title) made.append(element("span", "", key.title));
    if (key.gradient) {
      const bar = element("span", "icrl-gradient");
      bar.style.background = `linear-gradient(to right, ${key.gradient.join(",")})`;
      made.append(element("span", "", key.low), bar, element("span", "", key.high));
    }
    for (const [name, colour, shape] of key.classes || []) {
      const entry = element("span", "icrl-class"), { made: picture } = stamp(colour, shape, 5, 2);
      entry.append(picture, element("span", "", name));
      made.append(entry);
    }
    return made;
  };

  const name = (field, head) => field.setAttribute("aria-label", `${model.get("label")}, ${head}. Drag around points to select them, click one to pin it; arrows walk through them, Enter pins, Escape selects all.`);
  const build = () => {
    const titles = model.get("titles");
    if (titles.length === panels.length) {
      for (const [k, [head, line]] of titles.entries()) { panels[k].head.textContent = head; panels[k].line.textContent = line; name(panels[k].field, head); }
      return;
    }
    root.replaceChildren();
    panels = titles.map(([head, line], k) => {
      const panel = element("div", "icrl-panel"), field = element("div", "icrl-field");
      const made = { field, back: element("canvas"), front: element("canvas"), tip: element("div", "icrl-tip"), head: element("b", "", head), line: element("small", "", line) };
      made.tip.hidden = true;
      field.tabIndex = 0;
      field.setAttribute("role", "group");
      name(field, head);
      made.tip.setAttribute("role", "status");
      field.append(made.back, made.front, made.tip);
      panel.append(made.head, made.line, field);
      root.append(panel);
      listen(k, made);
      return made;
    });
    root.append(element("div"));
  };
  const again = () => { take(); build(); root.lastChild.replaceWith(legend(model.get("key"))); draw(); };

  let asked = false;
  const soon = () => { // many changes, one drawing
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; again(); });
  };
  const watched = ["change:places", "change:paints", "change:palette", "change:titles", "change:key", "change:names"];
  const redrawn = () => draw(), ringed = () => ring();
  for (const name of watched) model.on(name, soon);
  model.on("change:chosen", redrawn);
  model.on("change:pinned", ringed);
  model.on("change:pointed", ringed);
  again();
  return () => {
    clearTimeout(wait);
    for (const name of watched) model.off(name, soon);
    model.off("change:chosen", redrawn);
    model.off("change:pinned", ringed);
    model.off("change:pointed", ringed);
  };
}

export default { render };

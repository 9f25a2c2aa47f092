// A list of shots as cards. What a person does goes back as indices: `order` (which card stands where) and presses.
const MOVES = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 };

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text; // never markup
  return node;
}

function render({ model, el }) {
  const list = make("ol", "icrl-shots");
  const said = make("div", "icrl-unseen");
  said.setAttribute("aria-live", "assertive");
  el.append(list, said);
  el.dataset.lmSuppressShortcuts = "true"; // JupyterLab leaves the keys to the list
  let cards = []; // by the number that indices speak of
  let grabbed = null, before = null, focused = 0, drag = null;

  const shown = () => [...list.children].map((card) => Number(card.dataset.card));
  const placeOf = (card) => [...list.children].indexOf(card);
  const movable = () => model.get("movable");

  function build() {
    list.textContent = "";
    list.setAttribute("aria-label", model.get("label"));
    cards = model.get("cards").map((told, number) => {
      const card = make("li", "icrl-shot");
      card.dataset.card = number;
      card.append(make("span", "icrl-place"));
      if (/^data:image\/svg\+xml;base64,/.test(told.picture || "")) {
        const image = make("img");
        image.src = told.picture;
        image.alt = told.text;
        image.draggable = false;
        card.append(image);
      } else card.append(make("div", "icrl-text", told.text));
      card.append(make("div", "icrl-label", told.label), make("div", "icrl-note", told.note));
      const bar = make("div", "icrl-bar");
      bar.append(make("span", "icrl-whole"), make("span", "icrl-part"));
      card.append(bar, make("div", "icrl-share"));
      const row = make("div", "icrl-buttons");
      for (const [which, name] of model.get("buttons").entries()) {
        const button = make("button", "", name);
        button.type = "button";
        button.setAttribute("aria-label", `${name}: ${told.name}`);
        button.addEventListener("click", () => model.send({ card: number, button: which }));
        row.append(button);
      }
      if (row.children.length) card.append(row);
      card.title = `${told.name}: ${told.text}`;
      card.addEventListener("keydown", (event) => pressed(event, card));
      card.addEventListener("focusin", () => { focused = number; rove(); });
      card.addEventListener("pointerdown", (event) => take(event, card));
      return card;
    });
    arrange();
    measure();
  }

  function arrange() {
    for (const number of model.get("order")) if (cards[number]) list.append(cards[number]);
    tell();
  }

  function tell() {
    const told = model.get("cards");
    [...list.children].forEach((card, place) => {
      const mine = told[Number(card.dataset.card)];
      card.querySelector(".icrl-place").textContent = String(place + 1);
      card.setAttribute("aria-label", `shot ${place + 1} of ${cards.length}: ${mine.name}, label ${mine.label}. ${mine.note}`);
    });
    list.classList.toggle("icrl-fixed", !movable());
    rove();
  }

  function rove() {
    if (!cards[focused]) focused = 0;
    cards.forEach((card, number) => {
      card.tabIndex = number === focused ? 0 : -1;
      const off = model.get("disabled");
      card.querySelectorAll("button").forEach((b) => { b.tabIndex = card.tabIndex; b.disabled = off; });
    });
  }

  function measure() {
    const bars = model.get("bars");
    const most = Math.max(1e-9, ...bars.map((b) => b[0]));
    cards.forEach((card, number) => {
      const [whole, part] = bars[number] || [0, 0];
      card.querySelector(".icrl-bar").hidden = !bars.length;
      card.querySelector(".icrl-whole").style.width = `${(100 * whole) / most}%`;
      card.querySelector(".icrl-part").style.width = `${(100 * part) / most}%`;
      card.querySelector(".icrl-share").textContent = bars.length ? `attention ${(100 * whole).toFixed(1)} %` : "";
    });
  }

  function settle() {
    tell();
    const order = shown();
    if (order.join() !== model.get("order").join()) {
      model.set("order", order);
      model.save_changes();
    }
  }

  function move(card, place) {
    const at = Math.max(0, Math.min(place, list.children.length - 1)), from = placeOf(card);
    if (at === from) return;
    list.insertBefore(card, at > from ? list.children[at].nextSibling : list.children[at]);
    tell();
    card.focus();
    said.textContent = `${model.get("cards")[Number(card.dataset.card)].name} moved to place ${at + 1} of ${list.children.length}`;
  }

  function release(keep) {
    if (!grabbed) return;
    const card = grabbed;
    card.classList.remove("icrl-grabbed");
    grabbed = null;
    if (!keep) for (const number of before) list.append(cards[number]);
    said.textContent = keep ? `dropped at place ${placeOf(card) + 1}` : "put back";
    settle();
    card.focus();
  }

  function pressed(event, card) {
    if (event.target !== card) return; // a button of the card has its own keys
    const step = MOVES[event.key];
    const end = { Home: 0, End: list.children.length - 1 }[event.key];
    if (step === undefined && end === undefined && ![" ", "Enter", "Escape"].includes(event.key)) return;
    event.preventDefault();
    event.stopPropagation();
    const to = end !== undefined ? end : placeOf(card) + (step || 0);
    if (step !== undefined || end !== undefined) {
      if (grabbed === card) move(card, to);
      else if (event.altKey && movable()) { move(card, to); settle(); }
      else {
        release(true);
        list.children[Math.max(0, Math.min(to, list.children.length - 1))]?.focus();
      }
    } else if (event.key === "Escape") release(false);
    else if (grabbed) release(true);
    else if (movable()) {
      grabbed = card;
      before = shown();
      card.classList.add("icrl-grabbed");
      said.textContent = "grabbed: arrow keys move it, space drops it, escape puts it back";
    } else said.textContent = "these shots cannot be moved here";
  }

  function take(event, card) {
    if (event.button !== 0 || !movable() || event.target.closest("button")) return;
    release(true);
    drag = { card, x: event.clientX, y: event.clientY, on: false, before: shown(), pointer: event.pointerId };
  }

  function follow(event) {
    if (!drag || event.pointerId !== drag.pointer) return;
    if (!drag.on) {
      if (Math.hypot(event.clientX - drag.x, event.clientY - drag.y) < 5) return;
      drag.on = true;
      drag.card.classList.add("icrl-dragged");
    }
    event.preventDefault();
    let nearest = null, least = Infinity;
    for (const other of list.children) {
      const box = other.getBoundingClientRect();
      const far = Math.hypot(event.clientX - box.x - box.width / 2, event.clientY - box.y - box.height / 2);
      if (far < least) [nearest, least] = [other, far];
    }
    if (nearest && nearest !== drag.card) {
      list.insertBefore(drag.card, placeOf(nearest) > placeOf(drag.card) ? nearest.nextSibling : nearest);
      tell();
    }
  }

  function drop(event, keep) {
    if (!drag) return;
    const { card, on, before: old } = drag;
    drag = null;
    card.classList.remove("icrl-dragged");
    if (!on) return;
    if (!keep) for (const number of old) list.append(cards[number]);
    said.textContent = `dropped at place ${placeOf(card) + 1} of ${list.children.length}`;
    settle();
  }

  const up = (event) => drop(event, true), cancel = (event) => drop(event, false);
  const escape = (event) => { if (drag && event.key === "Escape") drop(event, false); };
  window.addEventListener("pointermove", follow);
  window.addEventListener("pointerup", up);
  window.addEventListener("pointercancel", cancel);
  window.addEventListener("keydown", escape);
  const again = () => {
    const had = document.activeElement;
    const mine = list.contains(had), which = mine && had.tagName === "BUTTON" ? [...had.parentNode.children].indexOf(had) : -1;
    grabbed = null;
    drag = null;
    build();
    if (mine) (which < 0 ? cards[focused] : cards[focused]?.querySelectorAll("button")[which])?.focus();
  };
  model.on("change:cards change:buttons change:label", again);
  const moved = () => {
    if (drag || shown().join() === model.get("order").join()) return;
    const had = list.contains(document.activeElement) ? document.activeElement : null;
    arrange();
    had?.focus();
  };
  model.on("change:order", moved);
  model.on("change:bars", measure);
  model.on("change:movable change:disabled", tell);
  build();
  return () => {
    window.removeEventListener("pointermove", follow);
    window.removeEventListener("pointerup", up);
    window.removeEventListener("pointercancel", cancel);
    window.removeEventListener("keydown", escape);
    model.off("change:cards change:buttons change:label", again);
    model.off("change:order", moved);
    model.off("change:bars", measure);
    model.off("change:movable change:disabled", tell);
  };
}

export default { render };

// The prompt as one sees it: text as text, items as chips. Hover or focus previews an item, a click or Enter pins it, arrow keys go
// from chip to chip. What comes from data goes in as textContent or as the source of an <img>, so that nothing in it can run.

const make = (tag, name, text) => {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
};

const picture = (card, height) => {
  const image = make("img", "icrl-molecule");
  image.src = card.picture;
  image.alt = card.text || card.item;
  image.height = height;
  return image;
};

const visible = (text) => text.replace(/\n/g, "⏎\n");

function render({ model, el }) {
  const page = make("div", "icrl-prompt");
  const prompt = make("div", "icrl-prompt-text");
  prompt.setAttribute("role", "group");
  prompt.setAttribute("aria-label", "prompt; arrow keys go from item to item, Enter pins one");
  const preview = make("div", "icrl-prompt-preview");
  preview.setAttribute("role", "status");
  preview.setAttribute("aria-live", "polite");
  page.append(prompt, preview);
  el.append(page);
  let chips = [];
  let current = 0; // the chip that Tab reaches

  const show = (number) => {
    preview.replaceChildren();
    const card = model.get("cards")[number];
    if (!card) {
      preview.append(make("p", "icrl-hint", "Point at an item to see it; click it, or press Enter, to pin it for all views."));
      return;
    }
    if (card.picture) preview.append(picture(card, 140));
    preview.append(make("b", "", card.item));
    for (const line of card.lines) preview.append(make("div", "", line));
    if (model.get("pinned").includes(number)) preview.append(make("div", "icrl-pin", "● pinned"));
  };
  const rest = () => {
    const pinned = model.get("pinned");
    const focused = chips.find((chip) => chip.node === document.activeElement);
    show(focused ? focused.card : model.get("seen") >= 0 ? model.get("seen") : pinned.length ? pinned[0] : -1);
  };
  const bring = () => {
    // into view of its own box: neither the page nor the focus moves
    const place = chips.findIndex((chip) => chip.card === model.get("seen"));
    if (place < 0 || chips[place].node === document.activeElement) return;
    const [box, node] = [prompt.getBoundingClientRect(), chips[place].node.getBoundingClientRect()];
    if (node.top < box.top || node.bottom > box.bottom) prompt.scrollTop += node.top - box.top - (box.height - node.height) / 2;
    if (!prompt.contains(document.activeElement)) reach(place, false);
  };
  const reach = (place, focus) => {
    current = Math.max(0, Math.min(place, chips.length - 1));
    chips.forEach((chip, i) => (chip.node.tabIndex = i === current ? 0 : -1));
    if (focus && chips[current]) chips[current].node.focus();
  };
  const mark = () => {
    const pinned = model.get("pinned");
    for (const chip of chips) chip.node.setAttribute("aria-pressed", String(pinned.includes(chip.card)));
    rest();
  };
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity };

  const chip = (role, tokens, number) => {
    const card = model.get("cards")[number];
    const node = make("button", `icrl-chip icrl-${role}`);
    node.type = "button";
    node.setAttribute("aria-label", [card.item, ...card.lines].join(", "));
    if (role === "slot") {
      if (card.picture) node.append(picture(card, 46));
      node.append(make("span", "icrl-name", card.item));
      if (model.get("tokens")) node.append(make("span", "icrl-count", tokens.join(" ")));
    } else {
      fill(node, tokens);
    }
    const place = chips.length;
    node.addEventListener("mouseenter", () => show(number));
    node.addEventListener("mouseleave", rest);
    node.addEventListener("focus", () => (reach(place, false), show(number)));
    node.addEventListener("click", () => model.send({ pin: number })); // Enter and Space click a button
    node.addEventListener("keydown", (event) => {
      if (!(event.key in steps) || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      event.stopPropagation();
      reach(place + steps[event.key], true);
    });
    chips.push({ node, card: number });
    return node;
  };
  const fill = (node, tokens) => {
    if (!model.get("tokens")) node.append(document.createTextNode(tokens.join("")));
    else for (const token of tokens) node.append(make("span", "icrl-token", visible(token)));
  };
  const draw = () => {
    const focused = prompt.contains(document.activeElement);
    chips = [];
    prompt.replaceChildren();
    for (const [role, tokens, card, clickable] of model.get("pieces")) {
      if (clickable) {
        prompt.append(chip(role, tokens, card));
      } else {
        const node = make("span", `icrl-${role}`);
        fill(node, tokens);
        prompt.append(node);
      }
    }
    reach(current, focused);
    mark();
  };
  draw();
  requestAnimationFrame(bring); // once it is on the page
  // cards and pieces change together, and a change of one alone could point beside the other: they arrive in one message
  const events = ["change:pieces", "change:cards", "change:tokens"];
  let waiting = false;
  const soon = () => {
    if (waiting) return;
    waiting = true;
    queueMicrotask(() => ((waiting = false), draw(), bring()));
  };
  for (const event of events) model.on(event, soon);
  const turn = () => (rest(), bring());
  model.on("change:pinned", mark);
  model.on("change:seen", turn);
  return () => {
    for (const event of events) model.off(event, soon);
    model.off("change:pinned", mark);
    model.off("change:seen", turn);
  };
}

export default { render };

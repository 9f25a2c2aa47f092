// A plotly figure that takes plotly from the page's one `Library` instead of bringing five megabytes of its own.
const KEY = Symbol.for("icrl-lab:plotly");

function shelf() {
  if (!globalThis[KEY]) {
    let give;
    const ready = new Promise((resolve) => (give = resolve));
    globalThis[KEY] = { ready, give, taken: false, models: new WeakMap() };
  }
  return globalThis[KEY];
}

async function load(code) {
  const address = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  const module = await import(address);
  URL.revokeObjectURL(address);
  return module.default; // a function: what it makes holds one figure's state
}

export default {
  initialize({ model }) {
    const place = shelf();
    if (model.get("_model_role") === "library" && !place.taken) {
      place.taken = true;
      load(model.get("code")).then(place.give); // not waited for: a slow machine may take seconds
    }
  },
  async render(context) {
    if (context.model.get("_model_role") === "library") return;
    const make = await shelf().ready;
    const { models } = shelf();
    if (!models.has(context.model)) {
      const plotly = make(); // once a model, however many views it has
      models.set(context.model, plotly);
      plotly.initialize(context);
    }
    return models.get(context.model).render(context);
  },
};

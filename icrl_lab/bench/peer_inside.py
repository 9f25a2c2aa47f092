"""The side of a peer that looks inside, as `peer.py` is of those that score: run under another interpreter, beside peer.py.

`python peer_inside.py FOLDER` reads what peer.py reads and patches.f32, and writes what was seen (attention.f32, states.f32,
patched.f32) and answer.json: (wall, CPU) seconds of each round for seeing (`seen`) and for a table of patches (`patched`).
"""

from peer import embeddings, floats, main, timed


class Looker:
    """A tool that looks inside: the same weights and embeddings, all queries in one batch, and nothing kept but what is asked.

    see    attention (queries, layers, heads, rows, columns) and states (queries, layers + 1, rows, width) of one forward pass
    patch  log-probabilities (queries, labels) with one position of one layer's input set to a value
    """

    def __init__(self, spec, folder):
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(spec["threads"] or torch.get_num_threads())
        dtype, self.device = getattr(torch, spec["dtype"]), spec["device"]
        self.model = AutoModelForCausalLM.from_pretrained(
            folder / "model", dtype=dtype, attn_implementation="eager", local_files_only=True
        )
        self.model = self.model.eval().requires_grad_(False).to(self.device)
        self.prompts = embeddings(spec, folder).to(self.device)
        self.rows, self.columns, self.labels = spec["rows"], spec["columns"], spec["labels"]
        self.layers = range(spec["layers"])
        self.how = {"use_cache": False, "logits_to_keep": 1}

    def read(self, logits):
        return logits[:, -1].float().log_softmax(-1)[:, self.labels].cpu()


class TransformerLens(Looker):
    """A TransformerBridge around the model, and hooks; a tensor of floats is taken as input embeddings."""

    def __init__(self, spec, folder):
        super().__init__(spec, folder)
        from importlib.metadata import version

        from transformer_lens.model_bridge.sources import build_bridge_from_module

        self.name = f"TransformerLens {version('transformer-lens')}"
        self.bridge = build_bridge_from_module(self.model, "LlamaForCausalLM", hf_config=self.model.config)

    def run(self, hooks):
        return self.bridge.run_with_hooks(self.prompts, fwd_hooks=hooks, **self.how)

    def see(self):
        import torch

        attention: dict[int, torch.Tensor] = {}
        states: dict[int, torch.Tensor] = {}

        def keep(where, at, cut):
            def hook(tensor, hook):
                where[at] = cut(tensor).float().cpu()

            return hook

        weights = lambda t: t[:, :, self.rows][..., self.columns]  # noqa: E731
        stream = lambda t: t[:, self.rows]  # noqa: E731
        hooks = [(f"blocks.{i}.attn.hook_pattern", keep(attention, i, weights)) for i in self.layers]
        hooks += [(f"blocks.{i}.hook_resid_pre", keep(states, i, stream)) for i in self.layers]
        last = self.layers[-1]
        hooks += [(f"blocks.{last}.hook_resid_post", keep(states, last + 1, stream))]
        self.run(hooks)
        return [torch.stack([found[i] for i in sorted(found)], 1) for found in (attention, states)]

    def patch(self, layer, position, value):
        def hook(tensor, hook):
            tensor = tensor.clone()  # block 0 reads the injected embeddings themselves
            tensor[:, position] = value
            return tensor

        return self.read(self.run([(f"blocks.{layer}.hook_resid_pre", hook)]))

    def embedding(self):
        """What a hook on the embeddings does when embeddings are injected."""
        import warnings

        calls: list[int] = []

        def zero(tensor, hook):
            calls.append(1)
            return tensor * 0

        plain = self.run([])
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            zeroed = self.run([("hook_embed", zero)])
        if calls:
            return "a hook on hook_embed fires on injected embeddings"
        found = "the result is as without it" if (plain == zeroed).all() else "yet the result changed"
        warned = f"it warned: {said[0].message}" if said else "it neither raised nor warned"
        return f"a hook on hook_embed that zeroes injected embeddings never fired, {found}, and {warned}"


class NNsight(Looker):
    """The model wrapped as it is, and traces."""

    def __init__(self, spec, folder):
        super().__init__(spec, folder)
        import nnsight

        self.name = f"nnsight {nnsight.__version__}"
        self.lens = nnsight.NNsight(self.model)

    def see(self):
        import nnsight
        import torch

        rows, columns = self.rows, self.columns
        with self.lens.trace(inputs_embeds=self.prompts, **self.how):
            attention, states = nnsight.save([]), nnsight.save([])
            for layer in self.lens.model.layers:
                states.append(layer.input[:, rows].float().cpu())
                attention.append(layer.self_attn.output[1][:, :, rows][..., columns].float().cpu())
            states.append(self.lens.model.norm.input[:, rows].float().cpu())
        return [torch.stack(list(found), 1) for found in (attention, states)]

    def patch(self, layer, position, value):
        with self.lens.trace(inputs_embeds=self.prompts, **self.how):
            hidden = self.lens.model.layers[layer].input.clone()  # block 0 reads the injected embeddings themselves
            hidden[:, position] = value
            self.lens.model.layers[layer].input = hidden
            logits = self.lens.lm_head.output.save()
        return self.read(logits)

    def embedding(self):
        """What asking for the embeddings does when embeddings are injected."""
        try:
            with self.lens.trace(inputs_embeds=self.prompts, **self.how):
                found = self.lens.model.embed_tokens.output.save()
            return f"the embeddings are seen when they are injected: {tuple(found.shape)}"
        except Exception as error:
            return f"asking for embed_tokens.output with injected embeddings raises {type(error).__name__}"


def look(kind):
    """Time a tool's two jobs and write what it saw."""

    def job(spec, folder):
        import torch

        with torch.no_grad():
            tool = kind(spec, folder)
            values = floats(folder, "patches", len(spec["cells"]), spec["width"]).to(tool.prompts)
            cells = [(layer, position, values[i]) for i, (layer, position) in enumerate(spec["cells"])]
            tables = lambda: torch.stack([tool.patch(*cell) for cell in cells])  # noqa: E731
            attention, states = tool.see()
            for name, found in (("attention", attention), ("states", states), ("patched", tables())):
                (folder / f"{name}.f32").write_bytes(found.contiguous().numpy().tobytes())
            note = tool.embedding()
            seen = [timed(tool.see) for _ in range(spec["rounds"])]
            patched = [timed(tables) for _ in range(spec["rounds"])]
        return {"name": tool.name, "dtype": spec["dtype"], "seen": seen, "patched": patched, "notes": [note]}

    return job


if __name__ == "__main__":
    main({"transformer-lens": look(TransformerLens), "nnsight": look(NNsight)})

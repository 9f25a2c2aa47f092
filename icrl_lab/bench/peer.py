"""A peer's side of `icrl-lab bench --peer`: run under another interpreter, with nothing but the peer and the standard library.

`python peer.py FOLDER` reads spec.json, prefix.f32 and suffixes.f32 there and writes answer.json: medians of wall and CPU
seconds for all queries, with the prefix computed (`whole`) and with it there already (`ready`). After each round it says `TURN`
and waits for a line on its input: the other side measures meanwhile, so that both see the same minutes.
"""

import array
import json
import os
import statistics
import sys
import time
from pathlib import Path

TURN, PAUSE = "== your turn", 0.5  # seconds in which the threads of the other side go to sleep


def timed(call):
    """(wall seconds, CPU seconds) of one call, children of this process not counted."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def turn():
    """Have the other side measure."""
    print("\n" + TURN, flush=True)
    sys.stdin.readline()
    time.sleep(PAUSE)


def rounds(count, prefix, queries):
    """Measure `prefix()` and then `queries()` that many times, after one round to warm up, in turn with the other side."""
    prefix()
    queries()
    once, after = [], []
    for _ in range(count):
        once.append(timed(prefix))
        after.append(timed(queries))
        turn()
    middle = lambda pairs, i: statistics.median(p[i] for p in pairs)  # noqa: E731
    ready = {"seconds": middle(after, 0), "cpu": middle(after, 1)}
    whole = {"seconds": middle(once, 0) + ready["seconds"], "cpu": middle(once, 1) + ready["cpu"]}
    return {"whole": whole, "ready": ready, "rounds": {"prefix": once, "queries": after}}


def floats(folder, name, *shape):
    """A torch tensor of one file."""
    import torch

    return torch.frombuffer(bytearray((folder / f"{name}.f32").read_bytes()), dtype=torch.float32).view(*shape)


def embeddings(spec, folder):
    """(queries, T + S, width) input embeddings of all prompts, in the model's dtype."""
    import torch

    prefix = floats(folder, "prefix", 1, spec["prefix"], spec["width"]).expand(spec["queries"], -1, -1)
    suffixes = floats(folder, "suffixes", spec["queries"], spec["suffix"], spec["width"])
    return torch.cat([prefix, suffixes], 1).to(getattr(torch, spec["dtype"]))


def has_amx():
    """Whether Linux says so of the CPU."""
    try:
        return "amx_tile" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def llama_cpp(spec, folder):
    """Q4_0 weights; the prefix in sequence 0, copied by reference to one sequence a query, packs of 32."""
    import ctypes

    import llama_cpp as lc

    prefix, suffix, width = spec["prefix"], spec["suffix"], spec["width"]
    quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    lc.llama_log_set(quiet, None)
    lc.llama_backend_init()
    small = str(folder / "q4_0.gguf")
    how = lc.llama_model_quantize_default_params()
    how.ftype, how.allow_requantize, how.nthread = lc.LLAMA_FTYPE_MOSTLY_Q4_0, True, spec["threads"]
    if lc.llama_model_quantize(spec["gguf"].encode(), small.encode(), ctypes.byref(how)):
        raise SystemExit("llama.cpp could not write Q4_0 weights")
    options = lc.llama_model_default_params()
    options.n_gpu_layers = 0
    options.use_extra_bufts = not has_amx()  # weights repacked for AMX refuse embeddings
    model = lc.llama_model_load_from_file(small.encode(), options)
    pack = 32
    context = lc.llama_context_default_params()
    context.n_ctx, context.n_batch, context.n_ubatch = prefix + pack * suffix + 64, 2048, 512
    context.n_seq_max, context.kv_unified = pack + 1, True
    context.n_threads = context.n_threads_batch = spec["threads"]
    ctx = lc.llama_init_from_model(model, context)
    if lc.llama_model_n_embd(model) != width:
        raise SystemExit("the GGUF is of another geometry")
    memory = lc.llama_get_memory(ctx)
    values = {name: array.array("f", (folder / f"{name}.f32").read_bytes()) for name in ("prefix", "suffixes")}
    vocabulary = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(model))

    def decode(floats, places):
        batch = lc.llama_batch_init(len(places), width, 1)
        ctypes.memmove(batch.embd, (ctypes.c_float * len(floats)).from_buffer(floats), 4 * len(floats))
        batch.n_tokens = len(places)
        for i, (position, sequence, read) in enumerate(places):
            batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = position, 1, sequence, read
        status = lc.llama_decode(ctx, batch)
        lc.llama_batch_free(batch)
        if status:
            raise SystemExit(f"llama_decode ended with status {status}")

    def once():
        lc.llama_memory_clear(memory, True)
        for start in range(0, prefix, 2048):
            stop = min(start + 2048, prefix)
            decode(
                values["prefix"][start * width : stop * width], [(p, 0, p == prefix - 1) for p in range(start, stop)]
            )

    def queries():
        size = suffix * width
        for start in range(0, spec["queries"], pack):
            count = min(pack, spec["queries"] - start)
            places = []
            for i in range(count):
                lc.llama_memory_seq_cp(memory, 0, i + 1, 0, prefix)
                places += [(prefix + p, i + 1, p == suffix - 1) for p in range(suffix)]
            decode(values["suffixes"][start * size : (start + count) * size], places)
            for i in range(count):
                row = lc.llama_get_logits_ith(ctx, (i + 1) * suffix - 1)
                total = sum(row[label] for label in spec["labels"] if label < vocabulary)
                assert total == total
                lc.llama_memory_seq_rm(memory, i + 1, -1, -1)

    out = rounds(spec["rounds"], once, queries)
    return {"name": f"llama.cpp ({lc.__version__})", "dtype": "Q4_0", **out}


def vllm(spec, folder):
    """Prompt embeddings with prefix caching; the model's own dtype."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    cores = sorted(os.sched_getaffinity(0))[: spec["threads"]]
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, cores)))
    os.environ["OMP_NUM_THREADS"] = str(spec["threads"])
    import torch
    import vllm as package

    llm = package.LLM(
        model=str(folder / "model"), skip_tokenizer_init=True, enable_prompt_embeds=True, enable_prefix_caching=True,
        dtype=spec["dtype"], max_model_len=spec["prefix"] + spec["suffix"] + 16, max_num_seqs=64, seed=0,
    )  # fmt: skip
    torch.set_num_threads(spec["threads"])  # it may have set one
    prompts = [{"prompt_embeds": row.clone()} for row in embeddings(spec, folder)]
    how = package.SamplingParams(max_tokens=1, temperature=0.0, logprobs=10, detokenize=False)

    def once():
        llm.reset_prefix_cache()
        llm.generate(prompts[:1], how, use_tqdm=False)

    def queries():
        answers = llm.generate(prompts, how, use_tqdm=False)
        assert len(answers) == spec["queries"]

    out = rounds(spec["rounds"], once, queries)
    return {"name": f"vllm-cpu {package.__version__}", "dtype": spec["dtype"], **out}


def main(peers):
    """Do what spec.json asks, by the peer of that name."""
    where = Path(sys.argv[1])
    spec = json.loads((where / "spec.json").read_text())
    (where / "answer.json").write_text(json.dumps(peers[spec["peer"]](spec, where)))


if __name__ == "__main__":
    main({"llama-cpp": llama_cpp, "vllm": vllm})

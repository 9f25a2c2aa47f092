"""Small tokenizers of the families that differ where it matters: digits, spaces, word marks, BOS, and their chat templates."""

from functools import cache

CORPUS = [
    "The aqueous solubility of each molecule below is given in log mol/L from 0 to 9.\nmolecule: CC(=O)Oc1ccccc1C(=O)O -> 57",
    "Answer 1: -3.25\nAnswer: 0.5\nQuestion 1. What is the property of this item? Output format: Answer 1: <number>",
    "\n".join(f"c1ccccc{i % 9} -> {i:02d}" for i in range(100)),
    "\n".join(f"CCO logS: {i / 7 - 5:.3g}" for i in range(100)),
    "You are an expert. [REP] [/REP] ( ) Vector: Representation: toxic non-toxic yes no",
    " ".join(chr(i) for i in range(33, 127)),
] * 3
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + (m['content'] | trim) + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' }}{% endif %}"
)
INST = (  # no system role, and white space that its control tokens swallow
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endfor %}"
)
FAMILIES = ("digits", "gpt2", "unigram", "llama2")


@cache
def family(name: str):
    """digits: byte-level BPE that splits digits singly (SmolLM2). gpt2: byte-level BPE with tokens like " 57".
    unigram: word marks, several digits a piece, BOS. llama2: no pre-tokenizer, a mark put before every section, BOS."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    if name in ("digits", "gpt2"):
        tok = Tokenizer(models.BPE())
        steps = [pre_tokenizers.Digits(individual_digits=True)] if name == "digits" else []
        tok.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        tok.decoder = decoders.ByteLevel()
        tok.post_processor = processors.ByteLevel(trim_offsets=True)
        special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        trainer = trainers.BpeTrainer(
            vocab_size=700,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tok.train_from_iterator(CORPUS, trainer)
        tok.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
        return PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="<|im_end|>", chat_template=CHATML)

    special = ["<unk>", "<s>", "</s>"]
    if name == "unigram":
        tok = Tokenizer(models.Unigram())
        lines = pre_tokenizers.Split("\n", "isolated")  # SentencePiece has no piece across lines
        tok.pre_tokenizer = pre_tokenizers.Sequence([lines, pre_tokenizers.Metaspace(prepend_scheme="first")])
        tok.decoder = decoders.Metaspace(prepend_scheme="first")
        tok.train_from_iterator(
            CORPUS,
            trainers.UnigramTrainer(vocab_size=500, special_tokens=special, unk_token="<unk>", show_progress=False),
        )
    else:
        tok = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tok.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        # for training only: merges stay inside words and lines, as SentencePiece's do
        split = [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split("▁", "merged_with_next")]
        tok.pre_tokenizer = pre_tokenizers.Sequence(split)
        alphabet = [chr(i) for i in range(33, 127)]
        words = [f"<0x{i:02X}>" for i in range(256)]
        tok.train_from_iterator(
            CORPUS,
            trainers.BpeTrainer(
                vocab_size=700, special_tokens=special + words, initial_alphabet=alphabet, show_progress=False
            ),
        )
        tok.pre_tokenizer = None
    tok.add_special_tokens([AddedToken("[INST]", lstrip=True, rstrip=True), AddedToken("[/INST]", lstrip=True)])
    tok.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tok.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tok, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=INST
    )

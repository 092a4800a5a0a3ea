"""Pixels that stored results rest on: whoever changes one raises a version in DECODING_VERSIONS."""

import base64
import hashlib
import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdtable.data import load, resolve
from kdtable.data.formats import tiny_imagenet
from kdtable.data.spec import BUILT_IN
from kdtable.data.streamed import StreamedSet
from kdtable.recipes.recipe import Recipe
from tests.data.photos import photo

#: 29 x 23 pixels, with half of the colours' resolution. A file, since encoders differ.
JPEG = base64.b85decode(
    "|JeWF01!$>Nk#wx0RR9200961|JwjV01XKW3knDg3knMk4h;_zAQcl55)&sJ9v2`kDKRiEDJ?8BI!Zn>HbyrrEkIX6ModmpQ&KWMT47pHU`kO^"
    "PygEhLjevB4iga*CKVMXPc<zyPft%zPft%zPft%zPft%zPft%zPft%zPft%zPft%zPft%zPft%zPft%zPft%zPf!2A01*fP7XTdt0U`hb5di}c"
    "0sq7R82|tR0|5X40000000000000040tE&G|HJ?x5C8!L0s;a9000000000000IC30|W&T5+M^Y6cr->!~hoo00RL40000000000000000|W&I"
    "|HJ?w5dZ=L0R#g90000000000009C30|XKjAu$CJ6C(fG01N{G00I#M5dc2`)>yPO$C<xMvP)r**+%=)rI#rAHu00|Y9Tk)1Bkx%m|QH1TTmRx"
    "xvYfzmUq9Bje+ZL_33A%#z`r;vvlaPB`vR!+GsL_0>iIJST<RV&9?0KD%ZC)s0XNxc^)#@rruYX+n;DcEq6J{0GXp)T1_R2^BxEV;PjI!;mP_!"
    "65d>zoM_|R%;zXZ{LlZ{"
)


def palette() -> Image.Image:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 16, (30, 26), dtype=np.uint8), "P")
    image.putpalette(np.random.default_rng(2).integers(0, 256, 48, dtype=np.uint8).tobytes())
    return image


def transparent() -> Image.Image:
    image = photo(3, 40, 25).convert("RGBA")
    image.putalpha(Image.fromarray(np.random.default_rng(3).integers(0, 256, (25, 40), dtype=np.uint8)))
    return image


IMAGES = {
    "colour": lambda: photo(0, 61, 17),
    "grey": lambda: photo(1, 19, 33).convert("L"),
    "palette": palette,
    "transparent": transparent,
    "black and white": lambda: photo(4).convert("1", dither=Image.Dither.NONE),
}


def write(root: Path, size: int | None = None) -> Path:
    for part in ("train", "val"):
        for label in ("a", "b"):
            (root / part / label).mkdir(parents=True)
            if size is None:
                (root / part / label / "0.jpg").write_bytes(JPEG)
            for name, make in IMAGES.items():
                image = make() if size is None else make().crop((0, 0, size, size))
                image.save(root / part / label / f"{name}.png")
    return root


def digest(*tensors: torch.Tensor) -> str:
    return hashlib.sha256(b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)).hexdigest()[:16]


def test_views_of_photographs(tmp_path: Path) -> None:
    images = StreamedSet.of(resolve(f"imagenet:{write(tmp_path)}", 48), 0)
    cpu, recipe = torch.device("cpu"), Recipe(epochs=1, batch_size=5, lr=0.1, milestones=())
    epochs = [batch for epoch in (1, 2) for batch in images.stream(recipe, cpu).epoch(3, "main", epoch)]
    assert digest(*(batch.images for batch in epochs)) == "0c888233e176b63f"
    assert digest(*(batch.images for batch in images.evaluation_batches("test", 12, cpu))) == "dad94fd881df08b1"


def test_a_folder(tmp_path: Path) -> None:
    images = load(resolve(f"folder:{write(tmp_path, 16)}"), tmp_path)
    assert digest(images.train_images, images.train_labels, images.test_images) == "9e730493c72062e1"


def test_tiny_imagenet(tmp_path: Path) -> None:
    spec = replace(BUILT_IN["tiny-imagenet"], num_classes=2, train_count=2, test_count=2, image_size=16)
    image = Image.open(io.BytesIO(JPEG)).convert("RGB").crop((0, 0, 16, 16))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    with zipfile.ZipFile(tmp_path / tiny_imagenet.ARCHIVE, "w") as archive:
        for name in ("train/n1/images/0.JPEG", "train/n2/images/0.JPEG", "val/images/0.JPEG", "val/images/1.JPEG"):
            archive.writestr(f"{tiny_imagenet.FOLDER}/{name}", buffer.getvalue())
        lines = "".join(f"{n}.JPEG\tn{2 - n}\t0\t0\t9\t9\n" for n in (0, 1))
        archive.writestr(f"{tiny_imagenet.FOLDER}/{tiny_imagenet.ANNOTATIONS}", lines)
    images = load(spec, tmp_path)
    assert digest(images.train_images, images.test_images, images.test_labels) == "0ea21a91dae985e8"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_is_known_by_its_bytes(save, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 8), dtype=np.uint8)
    labels = np.array([0, 1, 2, 0, 1, 2])
    path = tmp_path / "a.npz"
    save(path, train_images=images, train_labels=labels, test_images=images[:3], test_labels=labels[:3])
    spec = resolve(f"npz:{path}")
    assert spec.identity() == {
        "kind": "npz",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "num_classes": 3,
        "mean": [0.49545547385620914, 0.496844362745098, 0.47639910130718954],
        "std": [0.29231667490336577, 0.2908269997103309, 0.3029687964911179],
        "flip": True,
    }

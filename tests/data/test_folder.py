import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdtable.data import contents, load, resolve
from kdtable.data import spec as data_spec
from kdtable.errors import BadRequest


def picture(seed: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def make(root: Path, test: str = "test") -> Path:
    """Three training and two test images of the classes a and b."""
    for seed, place in enumerate(
        ["train/b/0.png", "train/a/0.png", "train/a/1.PNG", f"{test}/a/x.png", f"{test}/b/x.png"]
    ):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        picture(seed).save(root / place)
    return root


def channels_first(image: Image.Image) -> np.ndarray:
    return np.asarray(image).transpose(2, 0, 1)


@pytest.mark.parametrize("test", ["test", "val"])
def test_images_and_labels(test, tmp_path):
    spec = resolve(f"folder:{make(tmp_path / 'set.v1', test)}")
    content = load(spec, tmp_path)
    assert (spec.kind, spec.name, spec.key) == ("folder", "set.v1", f"set_v1-{spec.sha256[:8]}")
    assert (spec.num_classes, spec.train_count, spec.test_count, spec.image_size) == (2, 3, 2, 8)
    assert content.train_labels.tolist() == [0, 0, 1]
    assert content.test_labels.tolist() == [0, 1]
    for got, seed in zip(content.train_images, [1, 2, 0], strict=True):
        np.testing.assert_array_equal(got.numpy(), channels_first(picture(seed)))
    for got, seed in zip(content.test_images, [3, 4], strict=True):
        np.testing.assert_array_equal(got.numpy(), channels_first(picture(seed)))
    np.testing.assert_allclose(spec.mean, (content.train_images.double() / 255).mean((0, 2, 3)), rtol=1e-12)


def test_grey_and_jpeg_images_become_rgb(tmp_path):
    root = make(tmp_path)
    picture(9).convert("L").save(root / "train/a/grey.png")
    picture(9).save(root / "train/a/photo.jpeg")
    content = load(resolve(f"folder:{root}"), tmp_path)
    grey = content.train_images[2]  # after 0.png and 1.PNG
    np.testing.assert_array_equal(grey.numpy(), np.stack([np.asarray(picture(9).convert("L"))] * 3))
    np.testing.assert_array_equal(
        content.train_images[3].numpy(), channels_first(Image.open(root / "train/a/photo.jpeg"))
    )


def test_palette_bilevel_and_grey_images_with_alpha_become_rgb(tmp_path):
    root, grey = make(tmp_path), picture(9).convert("L")
    palette = picture(9).quantize(16)
    palette.save(root / "train/a/2.png")
    grey.convert("1").save(root / "train/a/3.png")
    Image.merge("LA", (grey, grey)).save(root / "train/a/4.png")
    first, second, third = load(resolve(f"folder:{root}"), tmp_path).train_images[2:5].numpy()
    np.testing.assert_array_equal(first, channels_first(palette.convert("RGB")))
    np.testing.assert_array_equal(second, np.stack([np.asarray(grey.convert("1").convert("L"))] * 3))
    assert (third <= np.asarray(grey)).all(), "transparent pixels are put over black"
    assert (third[0] == third[1]).all()


def several_sizes(root: Path) -> Path:
    make(root)
    picture(5, (12, 20)).save(root / "train/a/tall.png")
    picture(6, (20, 8)).convert("L").save(root / "test/b/wide.png")
    picture(7, (5, 5)).quantize(8).save(root / "test/b/small.png")
    return root


def test_images_of_several_sizes_are_scaled_and_cropped_as_told(tmp_path):
    root = several_sizes(tmp_path)
    spec = resolve(f"folder:{root}", image_size=8)
    content = load(spec, tmp_path)
    assert (spec.image_size, spec.train_count, spec.test_count) == (8, 4, 4)
    assert spec.key == f"{root.name.replace('.', '_')}-{spec.sha256[:8]}-8"
    assert spec.identity()["image_size"] == 8
    assert "3 images of other sizes scaled and cropped to 8 x 8 pixels" in spec.notes
    np.testing.assert_array_equal(content.train_images[0].numpy(), channels_first(picture(1)))
    scaled = picture(5, (12, 20)).resize((8, 13), Image.Resampling.BILINEAR).crop((0, 2, 8, 10))
    np.testing.assert_array_equal(content.train_images[2].numpy(), channels_first(scaled))
    wide = picture(6, (20, 8)).convert("L").crop((6, 0, 14, 8)).convert("RGB")
    np.testing.assert_array_equal(content.test_images[2].numpy(), channels_first(wide))
    small = picture(7, (5, 5)).quantize(8).convert("RGB").resize((8, 8), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(content.test_images[1].numpy(), channels_first(small))
    other = resolve(f"folder:{root}", image_size=9)
    assert (other.sha256, other.key == spec.key) == (spec.sha256, False)


def test_a_size_that_all_images_have_changes_nothing(tmp_path):
    root = make(tmp_path)
    assert resolve(f"folder:{root}", image_size=8) == resolve(f"folder:{root}")


def test_a_size_that_is_refused(tmp_path):
    root = several_sizes(tmp_path)
    with pytest.raises(BadRequest, match=r"--image-size N scales and crops all to N x N"):
        resolve(f"folder:{root}")
    with pytest.raises(BadRequest, match=r"--image-size is from 8 to 1024 pixels, not 7"):
        resolve(f"folder:{root}", image_size=7)
    with pytest.raises(BadRequest, match=r"'cifar10' have one size: leave out --image-size"):
        resolve("cifar10", image_size=16)


def test_the_meaning_is_of_the_content_not_of_the_place(tmp_path):
    first = resolve(f"folder:{make(tmp_path / 'one')}")
    assert resolve(f"folder:{make(tmp_path / 'two')}").identity() == first.identity()
    (tmp_path / "one" / "train" / "a" / "notes.txt").write_text("not an image")
    (tmp_path / "one" / "train" / ".hidden").mkdir()
    assert resolve(f"folder:{tmp_path / 'one'}").identity() == first.identity()
    picture(77).save(tmp_path / "one/test/a/x.png")
    changed = resolve(f"folder:{tmp_path / 'one'}")
    assert changed.identity() != first.identity()
    (tmp_path / "one/test/a/x.png").rename(tmp_path / "one/test/a/y.png")
    assert resolve(f"folder:{tmp_path / 'one'}").identity() != changed.identity()


def test_a_link_inside_the_folder_is_followed(tmp_path):
    root = make(tmp_path)
    (root / "train/a/2.png").symlink_to(root / "train/a/0.png")
    assert resolve(f"folder:{root}").train_count == 4


@pytest.mark.parametrize(("ending", "options"), [("webp", {"lossless": True}), ("BMP", {}), ("tif", {}), ("ppm", {})])
def test_images_of_other_formats_and_in_deeper_folders_are_read(ending, options, tmp_path):
    root = make(tmp_path)
    (root / "train/a/more").mkdir()
    picture(11).save(root / f"train/a/more/0.{ending}", **options)
    spec = resolve(f"folder:{root}")
    assert (spec.train_count, spec.notes) == (4, ("4 training and 2 test images of 2 classes",))
    np.testing.assert_array_equal(load(spec, tmp_path).train_images[2].numpy(), channels_first(picture(11)))


def test_what_is_left_out_is_told(tmp_path):
    root = make(tmp_path)
    for name in ("a/._0.png", "a/Thumbs.db", "b/.DS_Store"):  # what operating systems leave is not worth a word
        (root / "train" / name).write_bytes(b"x")
    assert resolve(f"folder:{root}").notes == ("3 training and 2 test images of 2 classes",)
    for number in range(5):
        (root / f"train/b/{number}.gif").write_bytes(b"x")
    (note,) = resolve(f"folder:{root}").notes
    assert note == (
        "3 training and 2 test images of 2 classes; left out for endings that are none of an image: train/b/0.gif, "
        "train/b/1.gif, train/b/2.gif and 2 more"
    )


def test_a_deeper_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    """``os.walk``, and so torchvision's ``make_dataset``, leaves it out in silence."""
    root = make(tmp_path)
    (root / "train/a/more").mkdir()
    real = os.scandir

    def forbidden(path):
        if os.fsdecode(path).endswith("more"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(BadRequest, match=r"train/a/more: cannot be read \(Permission denied\)"):
        resolve(f"folder:{root}")


def test_the_version_of_decoding_enters_the_identity_when_it_is_not_the_first(tmp_path, monkeypatch):
    before = resolve(f"folder:{make(tmp_path)}").identity()
    assert before["decoding"] == 2
    monkeypatch.setattr(data_spec, "DECODING_VERSIONS", {"folder": 3, "tiny-imagenet": 2})
    assert resolve(f"folder:{tmp_path}").identity() == before | {"decoding": 3}
    assert resolve("tiny-imagenet").identity()["decoding"] == 2
    assert "decoding" not in resolve("cifar100").identity()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_a_viewer_shows_them(orientation, tmp_path):
    """Cameras store the sensor's pixels and say in EXIF which side is up."""
    root, stored = make(tmp_path), Image.fromarray(np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(root / "train/a/0.png", exif=exif)
    turned = np.asarray(stored)
    if orientation >= 5:
        turned = turned.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        turned = turned[:, ::-1]
    if orientation in (3, 4, 7, 8):
        turned = turned[::-1]
    image = load(resolve(f"folder:{root}"), tmp_path).train_images[0]
    assert torch.equal(image, torch.from_numpy(turned.copy()).permute(2, 0, 1))


def transparent(mode: str) -> Image.Image:
    """An image of 8 x 8 pixels that are all fully transparent."""
    if mode == "P":
        image = Image.new("P", (8, 8), 0)
        image.putpalette([200, 100, 50])
        image.info["transparency"] = 0
        return image
    return Image.new(mode, (8, 8), {"LA": (200, 0), "RGBA": (200, 100, 50, 0)}[mode])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_put_over_black(mode, tmp_path):
    root = make(tmp_path)
    transparent(mode).save(root / "train/a/0.png")
    half = Image.new("RGBA", (8, 8), (200, 100, 50, 128))
    half.save(root / "train/a/1.PNG")
    images = load(resolve(f"folder:{root}"), tmp_path).train_images
    assert images[0].count_nonzero() == 0
    assert images[1, :, 0, 0].tolist() == [100, 50, 25]


def empty_class(root: Path) -> str:
    (root / "train/c").mkdir()
    (root / "test/c").mkdir()
    (root / "test/c/note.txt").write_text("no image")
    return "train/c: has no images"


def class_without_test(root: Path) -> str:
    (root / "train/c").mkdir()
    picture(0).save(root / "train/c/0.png")
    return "train and test differ in their classes: only one of them has c"


def no_training_part(root: Path) -> str:
    (root / "train").rename(root / "training")
    return "has no folder train"


def no_test_part(root: Path) -> str:
    (root / "test").rename(root / "evaluation")
    return "has no folder test"


def no_classes(root: Path) -> str:
    (root / "train").rename(root / "other")
    (root / "train").mkdir()
    return "train: has no class folders"


def another_size(root: Path) -> str:
    picture(0, (9, 9)).save(root / "test/b/large.png")
    return "test/b/large.png: 9 x 9 pixels; expected 8 x 8"


def not_square(root: Path) -> str:
    picture(0, (9, 8)).save(root / "train/a/0.png")
    return "train/a/0.png: 9 x 8 pixels; expected a square image"


def unreadable(root: Path) -> str:
    (root / "train/b/0.png").write_bytes(b"not an image")
    return "train/b/0.png: not an image that can be read"


def cut_short(root: Path) -> str:
    whole = (root / "train/b/0.png").read_bytes()
    (root / "train/b/0.png").write_bytes(whole[: len(whole) // 2])
    return "train/b/0.png: not an image that can be read"


def sixteen_bits(root: Path) -> str:
    Image.fromarray(np.zeros((8, 8), dtype=np.uint16)).save(root / "train/a/deep.png")
    return "train/a/deep.png: has pixels of more than 8 bits"


def constant(root: Path) -> str:
    for file in (root / "train").glob("*/*"):
        Image.new("RGB", (8, 8), "white").save(file)
    return "std is .0.0, 0.0, 0.0.; expected three numbers above zero"


def link_to_a_file_outside(root: Path) -> str:
    picture(0).save(root.parent / "outside.png")
    (root / "train/a/link.png").symlink_to(root.parent / "outside.png")
    return "train/a/link.png: is a link that leads outside"


def link_to_a_folder_outside(root: Path) -> str:
    (root / "test/b").rename(root.parent / "b")
    (root / "test/b").symlink_to(root.parent / "b")
    return "test/b: is a link that leads outside"


def link_to_a_folder_around_it(root: Path) -> str:
    (root / "train/a/ring").symlink_to(root / "train/a")
    return "train/a/ring: is a link to a folder that is read already; remove it"


def broken_link(root: Path) -> str:
    (root / "train/a/link.png").symlink_to(root / "nothing.png")
    return "train/a/link.png: is not a file that can be read"


def link_to_itself(root: Path) -> str:
    (root / "train/a/link.png").symlink_to(root / "train/a/link.png")
    return "train/a/link.png: (is not a file that can be read|cannot be read)"


FAULTS = [
    empty_class, class_without_test, no_training_part, no_test_part, no_classes, another_size, not_square,
    unreadable, cut_short, sixteen_bits, constant, link_to_a_file_outside, link_to_a_folder_outside,
    link_to_a_folder_around_it, broken_link, link_to_itself,
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_folders_are_refused(fault, tmp_path):
    root = make(tmp_path / "set")
    message = fault(root)
    with pytest.raises(BadRequest, match=message):
        resolve(f"folder:{root}")


def test_a_set_too_large_for_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "MAX_BYTES", 5 * 3 * 8 * 8 - 1)
    with pytest.raises(BadRequest, match="once decoded"):
        resolve(f"folder:{make(tmp_path)}")

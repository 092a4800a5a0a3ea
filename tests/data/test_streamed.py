"""Sets that are decoded when they are needed: the right views, in the right order, by any number of processes."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from kdtable import seeding
from kdtable.data import Batch, decoding, resolve, streamed, unreadable
from kdtable.data.crops import DRAWS, central_view, training_view
from kdtable.data.decoding import default_workers, with_room
from kdtable.data.mixing import Mixing
from kdtable.data.randaugment import RandAugment
from kdtable.data.streamed import StreamedSet
from kdtable.distributed import SINGLE_PROCESS, Ranks
from kdtable.errors import BadRequest, Trouble
from kdtable.numerics.layout import to_device
from kdtable.numerics.precision import Precision
from kdtable.recipes.recipe import Recipe
from kdtable.tasks.classification import Classification
from kdtable.training.build import build_student
from tests import engine
from tests.data.photos import SIZE, TRAIN, VAL, cub_folder, image_folder, photo, png

CPU = torch.device("cpu")
RECIPE = Recipe(epochs=1, batch_size=2, lr=0.1, milestones=())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "set")


def opened(root: Path, workers: int = 0, kind: str = "imagenet") -> StreamedSet:
    return StreamedSet.of(resolve(f"{kind}:{root}", SIZE), workers)


def scaled(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(255))


def stored(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB")


def equal(ours: list[Batch], theirs: list[Batch]) -> bool:
    return all(
        torch.equal(a.images, b.images)
        and torch.equal(a.labels, b.labels)
        and torch.equal(a.index, b.index)
        and a.epoch == b.epoch
        for a, b in zip(ours, theirs, strict=True)
    )


def forbidden(*args: object) -> None:
    raise AssertionError("an image was decoded")


def test_an_epoch_is_that_of_a_slow_twin(root: Path) -> None:
    batches = list(opened(root).stream(RECIPE, CPU).epoch(3, "main", 2))
    order = torch.randperm(5, generator=seeding.generator("batches", 3, "main", 2)).tolist()
    seeds = torch.randint(2**63 - 1, (5,), generator=seeding.generator("crops", 3, "main", 2)).tolist()
    assert [batch.index.tolist() for batch in batches] == [order[:2], order[2:]]  # a single one joins those before
    assert torch.cat([batch.labels for batch in batches]).tolist() == [[0, 0, 0, 1, 1][position] for position in order]
    for position, image in zip(order, torch.cat([batch.images for batch in batches]), strict=True):
        draws = torch.rand(DRAWS, dtype=torch.float64, generator=torch.Generator().manual_seed(seeds[position]))
        view = training_view(stored(root / "train" / TRAIN[position]), SIZE, draws.tolist(), flip=True)
        assert torch.equal(image, scaled(view))
    for batch in batches:
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert (batch.images.dtype, batch.epoch, batch.view) == (torch.float32, 2, None)


def test_views_change_with_seed_stage_and_epoch_and_not_with_the_batch_size(root: Path) -> None:
    images = opened(root)

    def views(batch_size: int, *key: str | int) -> torch.Tensor:
        recipe = Recipe(epochs=1, batch_size=batch_size, lr=0.1, milestones=())
        batches = list(images.stream(recipe, CPU).epoch(*key))
        order = torch.cat([batch.index for batch in batches]).argsort()
        return torch.cat([batch.images for batch in batches])[order]

    first = views(2, 0, "main", 1)
    assert torch.equal(views(5, 0, "main", 1), first)
    others = [views(2, *key) for key in ((1, "main", 1), (0, "hint", 1), (0, "main", 2))]
    assert not any(torch.equal(other, first) for other in others)


def test_the_test_view_in_order(root: Path) -> None:
    images = opened(root)
    batches = list(images.evaluation_batches("test", 2, CPU))
    assert [len(batch.labels) for batch in batches] == [2, 1]
    assert {batch.epoch for batch in batches} == {0}
    assert torch.cat([batch.labels for batch in batches]).tolist() == images.test_labels.tolist() == [0, 1, 1]
    for name, image in zip(VAL, torch.cat([batch.images for batch in batches]), strict=True):
        assert torch.equal(image, scaled(central_view(stored(root / "val" / name), SIZE)))


def test_kept_test_images_are_decoded_once_and_are_the_same(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, never = opened(root), opened(root)
    first = list(kept.evaluation_batches("test", 2, CPU))
    with monkeypatch.context() as changed:
        changed.setattr(decoding, "decode_image", forbidden)
        assert equal(first, list(kept.evaluation_batches("test", 2, CPU)))
        with pytest.raises(AssertionError):  # training images are not kept
            list(kept.evaluation_batches("train", 2, CPU))
    monkeypatch.setattr(streamed, "KEEP_BYTES", 3 * 3 * SIZE**2 - 1)
    for _ in range(2):
        assert equal(first, list(never.evaluation_batches("test", 2, CPU)))
    assert never._kept is None


def test_students_that_are_measured_at_the_same_time_decode_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, decoded = opened(root), []
    decode_image = decoding.decode_image
    monkeypatch.setattr(decoding, "decode_image", lambda *args: decoded.append(args[0]) or decode_image(*args))
    threads = [threading.Thread(target=lambda: list(images.evaluation_batches("test", 2, CPU))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(decoded) == 3


@pytest.mark.parametrize("memory", [False, True])
def test_a_sweep_has_every_training_image_once_in_the_test_view(memory: bool, root: Path) -> None:
    images = engine.image_set(train=5) if memory else opened(root)
    task = Classification(images, RECIPE, 7, Precision("fp32", CPU))
    batches = list(task.sweep(3))
    order = torch.randperm(5, generator=seeding.generator("sweep", 7, 3))
    assert [batch.index.tolist() for batch in batches] == [part.tolist() for part in order.split(2)]
    assert [len(batch.labels) for batch in batches] == [2, 2, 1]
    assert {batch.epoch for batch in batches} == {0}
    plain = torch.cat([batch.images for batch in images.evaluation_batches("train", 5, CPU)])
    assert torch.equal(torch.cat([batch.images for batch in batches]), plain[order])
    assert torch.equal(torch.cat([batch.labels for batch in batches]), images.train_labels[order])
    others = [torch.cat([batch.index for batch in task.sweep(epoch)]).tolist() for epoch in range(4, 8)]
    assert any(other != order.tolist() for other in others)


def test_cub_is_read_by_its_index(tmp_path: Path) -> None:
    images = opened(cub_folder(tmp_path), kind="cub200")
    assert images.train_labels.tolist() == [0, 1, 2, 0, 1]
    (batch,) = images.evaluation_batches("test", 4, CPU)
    third = stored(tmp_path / "images/003.Bird_2/Bird_5.jpg")
    assert torch.equal(batch.images[0], scaled(central_view(third, SIZE)))


def test_a_network_is_measured_on_it(root: Path) -> None:
    images = StreamedSet.of(resolve(f"imagenet:{root}", 32), 0)
    task = Classification(images, RECIPE, 0, Precision("fp32", CPU))
    network = to_device(build_student("resnet8", images.spec, 1), CPU)
    pixels = torch.stack([scaled(central_view(stored(root / "val" / name), 32)) for name in VAL])
    with torch.no_grad():
        right = network.eval()(pixels, frozenset()).logits.argmax(dim=1) == images.test_labels
    assert task.evaluate(network)["top1"] == pytest.approx(right.double().mean().item())
    assert task.waited == 0
    list(task.batches("main", 1))
    assert task.waited > 0


# --- processes -------------------------------------------------------------------------------------------------------


def everything(images: StreamedSet) -> list[Batch]:
    stream = images.stream(RECIPE, CPU)
    order = seeding.generator("any")
    return [
        *stream.epoch(0, "main", 1),
        *stream.epoch(0, "main", 2),
        *images.evaluation_batches("train", 2, CPU, order),
        *images.evaluation_batches("test", 2, CPU),
    ]


def test_processes_change_nothing(root: Path) -> None:
    """One set of two processes for all of this: each takes a second to start."""
    expected = everything(opened(root))
    images = opened(root, workers=2)
    state = torch.random.get_rng_state()
    assert equal(expected, everything(images))
    assert torch.equal(torch.random.get_rng_state(), state)

    # a pass that is given up, and one beside a pass that is not at its end
    given_up = images.stream(RECIPE, CPU).epoch(0, "main", 5)
    next(given_up)
    assert equal(expected, everything(images))
    given_up.close()
    assert equal(expected, everything(images))

    # what cannot be read is told as from this process
    name = root / "train" / TRAIN[0]
    content = name.read_bytes()
    name.write_bytes(content[:200])
    with pytest.raises(BadRequest) as caught:
        everything(images)
    assert str(caught.value).startswith(f"{name}: not an image that can be read")
    assert "Traceback" not in str(caught.value)
    name.write_bytes(content)
    assert equal(expected, everything(images))


def test_a_process_that_was_killed_is_one_sentence(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(self: decoding.Loader) -> None:
        raise RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")

    images = opened(root, workers=2)
    monkeypatch.setattr(decoding.Loader, "_processes", killed)
    with pytest.raises(Trouble, match=r"ended before its time.*pid\(s\) 7"):
        everything(images)
    assert images._loaders[False]._busy.acquire(blocking=False)  # who comes next can have others


@pytest.mark.parametrize("memory", [False, True])
def test_processes_that_share_a_batch_decode_only_their_shares(memory: bool, root: Path) -> None:
    def of_rank(ranks: Ranks) -> list[Batch]:
        images = engine.image_set(train=5, test=3) if memory else opened(root)
        order = seeding.generator("any")
        return [
            *images.stream(RECIPE, CPU, ranks).epoch(0, "main", 1),
            *images.evaluation_batches("train", 2, CPU, order, ranks),
            *images.evaluation_batches("test", 2, CPU, None, ranks),
        ]

    whole, first, second = of_rank(SINGLE_PROCESS), of_rank(Ranks(0, 2)), of_rank(Ranks(1, 2))
    assert [len(batch.labels) for batch in whole] == [2, 3, 2, 2, 1, 2, 1]
    assert [len(batch.labels) for batch in second] == [1, 1, 1, 1, 0, 1, 0]
    for batch, one, other in zip(whole, first, second, strict=True):
        assert one.whole == other.whole == batch.whole == len(batch.labels)
        assert torch.equal(torch.cat([one.images, other.images]), batch.images)
        assert torch.equal(torch.cat([one.labels, other.labels]), batch.labels)
        assert torch.equal(torch.cat([one.index, other.index]), batch.index)


def test_how_many_processes() -> None:
    assert [default_workers(cores) for cores in (1, 2, 8, 17, 200)] == [0, 1, 7, 16, 16]


def test_as_many_processes_as_have_room_for_their_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding.shutil, "disk_usage", lambda path: SimpleNamespace(free=64 * 2**20))
    assert [with_room(4, size * 2**20, tmp_path) for size in (1, 10, 22)] == [4, 2, 0]
    assert with_room(4, 22 * 2**20, tmp_path / "nothing") == 4


def test_waiting_is_counted(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(streamed.time, "perf_counter", lambda: next(clock))
    stream = opened(root).stream(RECIPE, CPU)
    assert stream.waited == 0
    batches = stream.epoch(0, "main", 1)
    next(batches)
    assert stream.waited == 1
    list(batches)
    assert stream.waited == 3  # the end is waited for too


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_sees_the_same_batches(root: Path) -> None:
    images = opened(root)
    for here, there in zip(
        images.stream(RECIPE, CPU).epoch(0, "main", 1),
        images.stream(RECIPE, torch.device("cuda")).epoch(0, "main", 1),
        strict=True,
    ):
        assert torch.equal(here.images, there.images.cpu())
        assert torch.equal(here.labels, there.labels.cpu())


# --- images that cannot be read ----------------------------------------------------------------------------------


def cut_short(path: Path) -> str:
    path.write_bytes(path.read_bytes()[:-60])
    return "not an image that can be read"


def no_image(path: Path) -> str:
    path.write_bytes(b"<html>")
    return "not an image that can be read"


def sixteen_bits(path: Path) -> str:
    Image.fromarray(np.zeros((8, 8), dtype=np.uint16)).save(path, "PNG")
    return "has pixels of more than 8 bits"


def a_strip(path: Path) -> str:
    Image.new("RGB", (1, 51)).save(path, "PNG")
    return "1 x 51 pixels are a strip"


def a_bomb(path: Path) -> str:
    path.write_bytes(png(10_000, 9_000))
    return "90000000 pixels are more than"


@pytest.mark.parametrize("damage", [cut_short, no_image, sixteen_bits, a_strip, a_bomb])
def test_an_image_that_cannot_be_read_is_named_when_it_is_met(damage, root: Path) -> None:
    name = root / "train" / TRAIN[0]
    message = damage(name)
    images = opened(root)
    with pytest.raises(BadRequest, match=f"train/{TRAIN[0]}: .*{message}.*leave out .* with --skip-unreadable"):
        list(images.stream(RECIPE, CPU).epoch(0, "main", 1))


def test_an_image_that_went_away_is_named(root: Path) -> None:
    images = opened(root)
    (root / "val" / VAL[0]).unlink()
    with pytest.raises(BadRequest, match=f"val/{VAL[0]}: cannot be read"):
        list(images.evaluation_batches("test", 2, CPU))


def test_grey_cmyk_and_transparent_images_become_rgb(root: Path) -> None:
    grey = photo(3).convert("L")
    grey.save(root / "val" / VAL[0])
    photo(4).convert("CMYK").save(root / "val" / VAL[1])
    photo(5).convert("RGBA").save(root / "val" / VAL[2], "PNG")  # whatever it is called
    (batch,) = opened(root).evaluation_batches("test", 3, CPU)
    assert torch.equal(batch.images[0, 0], batch.images[0, 2])
    assert torch.equal(batch.images[1], scaled(central_view(stored(root / "val" / VAL[1]), SIZE)))
    assert torch.equal(batch.images[2], scaled(central_view(photo(5), SIZE)))


@pytest.fixture
def damaged(root: Path) -> Iterator[Path]:
    cut_short(root / "train" / TRAIN[1])
    no_image(root / "val" / VAL[2])
    return root


def skipping(root: Path, **words: object):
    return resolve(f"imagenet:{root}", SIZE, skip_unreadable=True, **words)


def test_they_are_left_out_on_request(damaged: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    spec = skipping(damaged, on_progress=lambda *progress: told.append(progress))
    assert spec.skipped == (f"train/{TRAIN[1]}", f"val/{VAL[2]}")
    assert (spec.train_count, spec.test_count, told[-1]) == (4, 2, (8, 8))
    images = StreamedSet.of(spec, 0)
    assert images.train_labels.tolist() == [0, 0, 1, 1]
    indices = torch.cat([batch.index for batch in images.stream(RECIPE, CPU).epoch(0, "main", 1)])
    assert sorted(indices.tolist()) == [0, 1, 2, 3]
    assert spec.notes == (
        f"2 images that cannot be read are left out: train/{TRAIN[1]}, val/{VAL[2]}",
        "4 training and 2 test images of 2 classes",
    )
    # the same as if they had never been there
    clean = image_folder(tmp_path / "clean")
    (clean / spec.skipped[0]).unlink()
    (clean / spec.skipped[1]).unlink()
    assert resolve(f"imagenet:{clean}", SIZE).identity() == spec.identity()
    assert resolve(f"imagenet:{clean}").notes == spec.notes[1:]


def test_they_are_looked_for_once(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = skipping(damaged)
    with monkeypatch.context() as changed:
        changed.setattr(unreadable, "decode_image", forbidden)
        assert skipping(damaged) == spec
    (damaged / unreadable.KEPT).write_text("{damaged")
    assert skipping(damaged) == spec
    photo(9).save(damaged / spec.skipped[0])  # repaired, of another size
    assert skipping(damaged).skipped == spec.skipped[1:]


def test_a_folder_that_cannot_be_written_is_looked_through_each_time(
    damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(unreadable, "written_whole", read_only)
    assert skipping(damaged) == skipping(damaged)
    assert not (damaged / unreadable.KEPT).exists()


def test_a_class_of_which_nothing_can_be_read(root: Path) -> None:
    for name in TRAIN[3:]:
        no_image(root / "train" / name)
    with pytest.raises(
        BadRequest, match=f"2 images cannot be read, among them all of a class .the first: train/{TRAIN[3]}"
    ):
        skipping(root)


@pytest.mark.parametrize(("device", "pins"), [("cuda:1", 2), ("cpu", 0)])
def test_what_a_gpu_receives_is_copied_from_pinned_memory_while_the_host_goes_on(
    device: str, pins: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels and positions too; what the decoding processes pinned is not pinned again."""
    copies: list[dict[str, object]] = []
    pinned: list[int] = []
    images = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    move = torch.Tensor.to

    def to(tensor: torch.Tensor, *arguments: object, **options: object) -> torch.Tensor:
        if arguments == (torch.device(device),):
            copies.append(options)
            return tensor
        return move(tensor, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: tensor is images)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(len(tensor)) or tensor)
    streamed._batch(images, torch.arange(5), torch.tensor([3, 4]), 2, 1, torch.device(device))
    assert copies == [{"non_blocking": device != "cpu"}] * 3
    assert len(pinned) == pins


def test_operations_and_mixes_of_decoded_images_are_those_of_a_slow_twin(root: Path) -> None:
    images = opened(root)
    recipe = replace(RECIPE, randaugment=2, mixup=0.5)
    plain = list(images.stream(replace(RECIPE, mixup=0.5), CPU).epoch(3, "main", 2))
    found = list(images.stream(recipe, CPU).epoch(3, "main", 2))
    seeds = torch.randint(2**63 - 1, (5,), generator=seeding.generator("crops", 3, "main", 2)).tolist()
    augment, mixing = RandAugment.of(recipe), Mixing.of(recipe, 2, SIZE)
    assert augment is not None
    assert mixing is not None

    def view(position: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seeds[position])
        draws, further = (
            torch.rand(count, dtype=torch.float64, generator=generator).tolist() for count in (DRAWS, augment.draws)
        )
        crop = training_view(stored(root / "train" / TRAIN[position]), SIZE, draws, flip=True)
        return scaled(np.asarray(augment(Image.fromarray(crop), further)))

    for before, batch, mix in zip(plain, found, mixing.drawn(3, "main", 2, 2), strict=True):
        own = [view(position) for position in batch.index.tolist()]
        assert torch.equal(batch.images, mix.images(torch.stack([own[-1], *own])))
        assert torch.equal(batch.index, before.index)
        assert torch.equal(batch.labels, before.labels)
        assert (batch.of, batch.view) == (None, None)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_shards_of_mixed_images_are_those_of_the_batch(root: Path) -> None:
    images, recipe = opened(root), replace(RECIPE, batch_size=5, cutmix=1.0, mixup=0.5, randaugment=1)
    (whole,) = images.stream(recipe, CPU).epoch(3, "main", 2)
    shards = [next(images.stream(recipe, CPU, Ranks(rank, 2)).epoch(3, "main", 2)) for rank in range(2)]
    assert torch.equal(torch.cat([shard.images for shard in shards]), whole.images)
    assert torch.equal(torch.cat([shard.labels for shard in shards]), whole.labels)
    assert torch.equal(torch.cat([shard.index for shard in shards]), whole.index)
    assert [(len(shard), shard.of) for shard in shards] == [(3, 5), (2, 5)]

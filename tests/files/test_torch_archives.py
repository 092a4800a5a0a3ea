"""Archives of torch that claim what they do not hold."""

import io
import struct
import zipfile

import pytest
import torch

from kdtable.files import zips
from kdtable.files.tensor_file import BadTensorFile
from tests.files.reading import CLAIMS, HUGE, read, read_in_little
from tests.tensor_files import Claim, described, forged, forged_stream


def test_a_forged_file_is_like_a_real_one_but_for_the_forgery() -> None:
    file = forged({"w": Claim((2, 3), (3, 1))})
    assert torch.equal(read(file)["w"], torch.zeros(2, 3))
    assert torch.equal(torch.load(io.BytesIO(file), weights_only=True)["w"], torch.zeros(2, 3))


@pytest.mark.parametrize("case", CLAIMS)
def test_a_tensor_that_claims_what_is_not_there_is_refused_before_it_takes_memory(case: str) -> None:
    file = forged({"w": CLAIMS[case]})
    with pytest.raises(BadTensorFile):
        read_in_little(file)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_shape_spread_over_one_number_takes_no_memory(zipped: bool) -> None:
    """Whoever uses it compares it with the shape that is expected."""
    claim = {"w": Claim((HUGE,), (0,))}
    file = forged(claim) if zipped else forged_stream(claim, struct.pack("<q", 6), bytes(24))
    assert read_in_little(file)["w"].shape == (HUGE,)


def test_storages_described_in_two_ways_are_refused() -> None:
    two = [Claim((6,), (1,)), Claim((6,), (1,), kind=torch.IntStorage)]
    for file in (forged(two), forged_stream(two, struct.pack("<q", 6), bytes(24))):
        with pytest.raises(BadTensorFile, match="two ways"):
            read(file)


def test_a_compressed_archive_is_refused() -> None:
    """A thousandth of the bytes would do for it."""
    claim = {"w": Claim((6_000_000,), (1,), numel=6_000_000)}
    file = forged(claim, storages={"0": bytes(24_000_000)}, compressed=True)
    assert len(file) < 50_000
    with pytest.raises(BadTensorFile, match="compressed"):
        read_in_little(file)


def test_entries_that_torch_may_take_for_each_other_are_refused() -> None:
    """It finds entries in any case, and in the folder of the first one."""
    for name in ("archive/BYTEORDER", "other/byteorder"):
        buffer = io.BytesIO(forged({"w": Claim((6,), (1,))}))
        with zipfile.ZipFile(buffer, "a") as archive:
            archive.writestr(name, b"big")
        with pytest.raises(BadTensorFile, match="in two ways"):
            read(buffer.getvalue())


def test_entries_on_top_of_each_other_are_refused() -> None:
    """Many entries of one stretch of bytes would unfold to many times its size."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", described({"w": Claim((6,), (1,))}))
        archive.writestr("archive/data/0", bytes(100_000))
        (entry,) = (e for e in archive.infolist() if e.filename.endswith("/0"))
        for number in range(1, 50):
            copy = zipfile.ZipInfo(f"archive/data/{number}")
            copy.header_offset, copy.CRC = entry.header_offset, entry.CRC
            copy.compress_size = copy.file_size = entry.file_size
            archive.filelist.append(copy)
    with pytest.raises(BadTensorFile):
        read_in_little(buffer.getvalue())


def test_two_entries_of_one_name_are_refused() -> None:
    buffer = io.BytesIO(forged({"w": Claim((6,), (1,))}))
    with zipfile.ZipFile(buffer, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("archive/data/0", b"\x01" * 24)
    with pytest.raises(BadTensorFile, match="one name"):
        read(buffer.getvalue())


def test_a_directory_of_millions_of_entries_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zips, "MAX_DIRECTORY", 1000)
    file = forged({}, storages={str(number): b"" for number in range(100)})
    with pytest.raises(BadTensorFile, match="its directory claims"):
        read(file)


def test_numbers_of_another_byte_order_are_refused() -> None:
    with pytest.raises(BadTensorFile, match="byte order"):
        read(forged({"w": Claim((6,), (1,))}, byteorder=b"big"))

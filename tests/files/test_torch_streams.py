"""Files from before torch 1.6."""

import io
import struct

import pytest
import torch

from kdtable.files.tensor_file import BadTensorFile
from tests.files.reading import CLAIMS, read, read_in_little
from tests.tensor_files import Claim, forged_stream, saved


def test_a_stream_must_hold_exactly_what_it_claims() -> None:
    whole = saved({"w": torch.arange(6.0)}, zipped=False)
    place = whole.index(struct.pack("<q", 6), len(whole) - 40)
    for content in (
        whole + b"\0",
        whole[:-1],
        whole[:place] + struct.pack("<q", 7) + whole[place + 8 :],
        whole[:place] + struct.pack("<q", -1) + whole[place + 8 :],
    ):
        with pytest.raises(BadTensorFile):
            read(content)


def test_a_forged_stream_is_like_a_real_one_but_for_the_forgery() -> None:
    file = forged_stream({"w": Claim((2, 3), (3, 1))}, struct.pack("<q", 6), bytes(24))
    assert torch.equal(read(file)["w"], torch.zeros(2, 3))
    assert torch.equal(torch.load(io.BytesIO(file), weights_only=True)["w"], torch.zeros(2, 3))


@pytest.mark.parametrize("case", CLAIMS)
def test_a_stream_that_claims_what_is_not_there_is_refused_before_it_takes_memory(case: str) -> None:
    claim = CLAIMS[case]
    for numel in (6, min(claim.numel, 2**62)):
        with pytest.raises(BadTensorFile):
            read_in_little(forged_stream({"w": claim}, struct.pack("<q", numel), bytes(24)))


@pytest.mark.parametrize("keys", [(), ["0", "1"], ["1"], ["0", "0"], "0", 5, {"0": 1, "1": 2}, [0], [[["0"]]]])
def test_a_stream_whose_list_of_storages_is_wrong_is_refused(keys: object) -> None:
    file = forged_stream({"w": Claim((6,), (1,))}, struct.pack("<q", 6), bytes(24), keys=keys)
    with pytest.raises(BadTensorFile):
        read(file)

"""Every family of networks as ONNX, its input normalisation inside."""

import io
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from kdtable import models
from kdtable.checkpoints.student import Origin
from kdtable.export.files import FORMATS, load_network

NETWORKS = ["resnet8", "resnet20_a", "wrn_16_1", "MobileNetV2", "ShuffleV1", "ShuffleV2", "vgg8", "wide_resnet18"]
NETWORKS += ["dih_vgg11", "cifar_resnet50", "tv_resnet18", "tv_mobilenetv2", "tv_shufflenetv2", "resnet8+tofd"]


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_equal_torchs(name: str) -> None:
    torch.manual_seed(0)
    size = 64 if name.startswith("tv_") else 32
    trained = models.build(name, 10, image_size=size)
    trained(torch.rand(8, 3, size, size))  # statistics other than the initial ones
    origin = Origin(models.canonical(name), 10, size, (0.1, 0.5, 0.9), (0.2, 0.2, 0.5), "digits", "r1", {}, [])
    network, file = load_network(trained.state_dict(), origin), io.BytesIO()
    FORMATS[".onnx"](file, Path(), network, origin)
    session = onnxruntime.InferenceSession(file.getvalue())
    images = torch.rand(3, 3, size, size)
    (found,) = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        expected = network(images).logits.numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * max(1.0, np.abs(expected).max()))
    assert not network.training

"""What other libraries set, or callers do to the weights, changes no picture and no figure."""

import numpy as np
import pytest
import torch

import igpt
from igpt.model import native
from tests.networks import pixel_model

TYPES = (torch.float16, torch.bfloat16, torch.float64)


@pytest.fixture(params=["compiled", "plain"])
def decoder(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setattr(native, "library", lambda _name: None)
    elif native.library("decode") is None:
        pytest.skip("no C++ compiler")


@pytest.fixture
def default_type(request):
    torch.set_default_dtype(request.param)
    yield
    torch.set_default_dtype(torch.float32)


def everything(model, images):
    """Whatever a model answers."""
    found = {
        "complete": model.complete(images, keep_rows=0.5, seed=1),
        "nats": model.nats(images),
        "features": model.features(images),
        "bands": model.features(images, pooling="bands"),
        "logits": model.logits(model.encode(images)).float().numpy(),
    }
    if model.network.objective == "ar":
        found["sample"] = model.sample(3, seed=1)
    return found


def pictures():
    return np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)


@pytest.mark.parametrize("objective", ["ar", "bert"])
@pytest.mark.parametrize("default_type", TYPES, indirect=True, ids=str)
def test_the_default_type_of_the_process_changes_nothing(
    default_type, decoder, objective, tmp_path
):
    torch_type = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    expected = everything(pixel_model(objective=objective), pictures())
    folder = pixel_model(objective=objective).save(tmp_path / "m")
    torch.set_default_dtype(torch_type)
    found = everything(igpt.load(folder), pictures())
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    assert torch.get_default_dtype() == torch_type


@pytest.mark.parametrize("torch_type", TYPES, ids=str)
def test_pictures_of_weights_of_another_type_are_those_of_the_weights(decoder, torch_type):
    rounded, model = pixel_model(), pixel_model()
    rounded.network.to(torch_type).float()
    model.network.to(torch_type)
    np.testing.assert_array_equal(model.sample(3, seed=1), rounded.sample(3, seed=1))
    given = pictures()
    np.testing.assert_array_equal(
        model.complete(given, keep_rows=0.5, seed=1), rounded.complete(given, keep_rows=0.5, seed=1)
    )
    for name in ("nats", "features"):
        found = getattr(model, name)(given)
        expected = getattr(rounded, name)(given)
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=0.1, atol=0.05, err_msg=name)
    assert next(model.network.parameters()).dtype == torch_type

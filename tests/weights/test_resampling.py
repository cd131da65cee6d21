"""Position tables of another grid: resampled where both codes agree, else refused with a way out that works."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from multissl.build import build
from multissl.configs.image import dino
from multissl.contract.data import Views
from multissl.contract.encoder import Encoders
from multissl.contract.plans import StreamSpec
from multissl.encoders.transformer import TransformerEncoder
from multissl.layers.positions import Position
from multissl.options import apply, read
from multissl.recipe import Recipe
from multissl.weights.files import save_weights
from multissl.weights.layouts.dinov2 import to_dinov2
from multissl.weights.layouts.huggingface_dinov2 import to_huggingface
from multissl.weights.loading import load_state, load_weights

OFFICIAL = Position(offset=0.1, antialias=False)
PLAIN = Position(offset=0.0, antialias=False)
SMOOTH = Position(offset=0.0, antialias=True)
NATIVE = 98  # pixels: 7 x 7 patches


def encoder(
    side: int, position: Position = OFFICIAL, registers: int = 0, seed: int = 0, layerscale: float = 0.5
) -> TransformerEncoder:
    torch.manual_seed(seed)
    spec = StreamSpec(kind="grid", shape=(3, side, side), num_tokens=(side // 14) ** 2, patch=(14, 14))
    cfg = TransformerEncoder.Config(
        dim=24, depth=2, heads=3, layerscale=layerscale, registers=registers, position=position
    )
    made = TransformerEncoder(cfg, spec).eval()
    for parameter in made.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return made


def features(model: TransformerEncoder, x: Tensor) -> Tensor:
    with torch.no_grad():
        (found,) = model([Views(x=x, stream="image", role="clean")])
    return torch.cat([found.pooled[:, None], found.tokens], 1)


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def timm_model() -> tuple[Any, dict[str, Tensor]]:
    """timm's DINOv2 and its state, which has no mask token."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    sizes = {"img_size": NATIVE, "embed_dim": 24, "depth": 2, "num_heads": 3}
    model = timm.create_model(
        "vit_small_patch14_dinov2", dynamic_img_size=True, num_classes=0, **sizes
    ).eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model, model.state_dict()


def face_model(registers: int) -> Any:
    """Hugging Face's DINOv2."""
    transformers = pytest.importorskip("transformers")
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    sizes: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
    sizes |= {"patch_size": 14, "image_size": NATIVE} | (
        {"num_register_tokens": registers} if registers else {}
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**sizes)).eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


# what is accepted equals the code that the file comes from, what is refused would have differed


@pytest.mark.reference
@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("size", [56, 154])
def test_files_of_hugging_face_are_resampled_as_theirs_or_refused(registers: int, size: int) -> None:
    theirs = face_model(registers)
    right, wrong = (SMOOTH, PLAIN) if registers else (PLAIN, SMOOTH)
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = theirs(x).last_hidden_state
    expected = torch.cat([expected[:, :1], expected[:, 1 + registers :]], 1)
    for side, position in (
        (size, right),
        (NATIVE, right),
        (size, Position(offset=0.0, antialias=registers > 0, grid=(7, 7))),
    ):
        ours = encoder(side, position, registers, seed=1)
        load_state(ours, theirs.state_dict())
        assert largest_difference(features(ours, x), expected) < 1e-5
    for position in (OFFICIAL, wrong, Position(offset=0.1, antialias=registers > 0)):
        before = (ours := encoder(size, position, registers)).tokenizer.pos_embed
        assert before is not None
        before = before.clone()
        with pytest.raises(
            ValueError, match=r"Hugging Face's DINOv2 and ask for .*position\.(offset|antialias)"
        ):
            load_state(ours, theirs.state_dict())
        assert ours.tokenizer.pos_embed is not None
        assert torch.equal(ours.tokenizer.pos_embed, before)
        off = encoder(
            NATIVE, position, registers
        )  # on its own grid as well: other views are resampled in time
        with pytest.raises(ValueError, match=r"position\.(offset|antialias)"):
            load_state(off, theirs.state_dict())
        off.load_state_dict(encoder(NATIVE, right, registers).state_dict())
        load_state(same := encoder(NATIVE, right, registers), theirs.state_dict())
        off.load_state_dict(same.state_dict())
        assert largest_difference(features(off, x), expected) > 1e-3


@pytest.mark.reference
@pytest.mark.parametrize("size", [56, 154])
def test_files_of_timm_are_resampled_where_they_are_said_to_be_timms(size: int) -> None:
    theirs, state = timm_model()
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = theirs.forward_features(x)
    for position in (OFFICIAL, PLAIN, SMOOTH):
        with pytest.raises(
            ValueError, match=r"7 x 7 and would be resampled .* names do not tell .*--init dino:FILE"
        ):
            load_state(encoder(size, position), state)
    for position in (OFFICIAL, PLAIN):
        with pytest.raises(ValueError, match=r"timm's DINOv2 and ask for .*position\."):
            load_state(encoder(size, position), state, layout="timm_dinov2")
    for side in (size, NATIVE):
        ours = encoder(side, SMOOTH)
        load_state(ours, state, layout="timm_dinov2")
        assert largest_difference(features(ours, x), expected) < 1e-5
    native = encoder(NATIVE)
    load_state(native, state)  # nothing is resampled as it is loaded
    x = torch.randn(2, 3, NATIVE, NATIVE)
    with torch.no_grad():
        assert largest_difference(features(native, x), theirs.forward_features(x)) < 1e-5


@pytest.mark.reference
def test_a_table_kept_on_its_grid_is_resampled_by_the_options_that_say_so() -> None:
    theirs, state = timm_model()
    x = torch.randn(2, 3, 56, 56)
    kept = encoder(56, Position(offset=0.0, antialias=True, grid=(7, 7)))
    load_state(kept, state)
    with torch.no_grad():
        assert largest_difference(features(kept, x), theirs.forward_features(x)) < 1e-5
    # Where the names do tell, a table that every view resamples is held to them as well.
    with pytest.raises(ValueError, match=r"ask for .*position\.offset 0\.0 \(here 0\.1\)"):
        load_state(encoder(56, Position(grid=(7, 7))), to_huggingface(encoder(NATIVE)))


# the official names


@pytest.mark.parametrize(("registers", "right"), [(0, OFFICIAL), (4, SMOOTH)])
@pytest.mark.parametrize("prefix", ["", "teacher.module.backbone."])
def test_official_files_are_resampled_as_the_release_does(
    registers: int, right: Position, prefix: str
) -> None:
    large = encoder(NATIVE, right, registers)
    state = {prefix + name: tensor for name, tensor in to_dinov2(large).items()}
    small = encoder(56, right, registers, seed=1)
    load_state(small, state)
    x = torch.randn(2, 3, 56, 56)
    torch.testing.assert_close(features(small, x), features(large, x))
    for other in {id(p): p for p in (OFFICIAL, PLAIN, SMOOTH) if p != right}.values():
        with pytest.raises(ValueError, match=r"resampled to 4 x 4.*DINOv2.*position\.(offset|antialias)"):
            load_state(encoder(56, other, registers), state)
        # its code takes them as options: on the table's own grid another choice is a network that it could train
        load_state(chosen := encoder(NATIVE, other, registers), state)
        whole = torch.randn(2, 3, NATIVE, NATIVE)
        torch.testing.assert_close(features(chosen, whole), features(large, whole))


@pytest.mark.parametrize("change", ["mask", "scale"])
def test_names_that_several_projects_share_tell_nothing(change: str) -> None:
    layerscale = 0.0 if change == "scale" else 0.5
    large, small = (encoder(side, layerscale=layerscale) for side in (NATIVE, 56))
    state = to_dinov2(large)
    if change == "mask":
        state["mask_token"] = torch.zeros(1, 24)
    with pytest.raises(ValueError, match="names do not tell"):
        load_state(small, state)
    load_state(encoder(NATIVE, layerscale=layerscale), state)


# our own runs


def written(path: Path, model: nn.Module, position: Position | None = None) -> Path:
    """A run's folder with its encoder, and its recipe where it says how positions are resampled."""
    save_weights(path / "encoder.safetensors", model.state_dict())
    if position:
        how = {"kind": "learned", "offset": position.offset, "antialias": position.antialias}
        (path / "recipe.json").write_text(
            json.dumps({"encoders": {"image": {"kind": "transformer", "position": how}}})
        )
    return path


@pytest.mark.parametrize("position", [OFFICIAL, PLAIN, SMOOTH], ids=["official", "plain", "smooth"])
@pytest.mark.parametrize("recorded", [True, False])
def test_a_run_loads_at_another_size(tmp_path: Path, position: Position, recorded: bool) -> None:
    large, small = encoder(NATIVE, position), encoder(56, position, seed=1)
    run = written(tmp_path / "run", Encoders({"image": large}), position if recorded else None)
    for path in (run, run / "encoder.safetensors"):
        load_weights(Encoders({"image": small}), path)
        x = torch.randn(2, 3, 56, 56)
        torch.testing.assert_close(features(small, x), features(large, x))


def test_a_run_that_resampled_otherwise_is_refused(tmp_path: Path) -> None:
    run = written(tmp_path / "run", Encoders({"image": encoder(NATIVE, SMOOTH)}), SMOOTH)
    with pytest.raises(
        ValueError, match=r"--init .*the run that made it with 0\.0 and True: take --encoders\.image"
    ):
        load_weights(Encoders({"image": encoder(56)}), run)
    load_weights(Encoders({"image": encoder(NATIVE)}), run)  # on the same grid as ever


def test_a_run_on_pictures_starts_one_on_clips_under_the_same_rule() -> None:
    cfg = TransformerEncoder.Config(dim=24, depth=2, heads=3, layerscale=0.5)
    spec = StreamSpec(kind="grid", shape=(3, 4, 56, 56), num_tokens=32, patch=(2, 14, 14))
    load_state(cfg.build(spec), encoder(NATIVE).state_dict())
    with pytest.raises(
        ValueError, match=r"Dinov2WithRegistersModel with 0\.0 and True: take views of 98 x 98"
    ):
        load_state(cfg.replace(registers=4).build(spec), to_huggingface(encoder(NATIVE, registers=4)))
    plain = cfg.replace(position=PLAIN)
    load_state(plain.build(spec), to_huggingface(encoder(NATIVE)))


# the message


def recipe_for(path: str) -> Recipe:
    recipe = dino.default()
    recipe.modality = recipe.modality.replace(size=56, local_size=28, patch=14)
    recipe.encoders["image"] = TransformerEncoder.Config(dim=24, depth=2, heads=3, layerscale=0.5)
    recipe.init = path
    return recipe


def test_every_way_out_of_the_message_works(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_weights(file, to_dinov2(encoder(NATIVE)) | {"mask_token": torch.zeros(1, 24)})
    with pytest.raises(ValueError, match="would be resampled") as error:
        build(recipe_for(str(file)), torch.device("cpu"))
    said = str(error.value)
    for part in (f"--init {file}: ", "7 x 7", "4 x 4", "position.offset=0.1 and position.antialias=False"):
        assert part in said
    assert "\n" not in said
    build(recipe_for(f"dino:{file}"), torch.device("cpu"))
    for args in (["--modality.size", "98"], ["--encoders.image.position.grid", "7", "7"]):
        assert " ".join(args) in said
        build(apply(recipe_for(str(file)), read(args)), torch.device("cpu"))


def test_the_options_that_a_refusal_names_are_taken(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_weights(file, to_huggingface(encoder(NATIVE)))
    with pytest.raises(ValueError, match="ask for") as error:
        build(recipe_for(str(file)), torch.device("cpu"))
    said = str(error.value)
    assert "\n" not in said
    ways = re.findall(r"(--encoders[\w.]+) ([\d.]+|True|False) \(here", said)
    assert ways == [("--encoders.image.position.offset", "0.0")]
    build(apply(recipe_for(str(file)), read([word for way in ways for word in way])), torch.device("cpu"))

"""A classifier as a run of its own: its net, its labels, its training, and what is made of its scores."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from timm.layers.cbam import CbamModule
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from steel_seg.model import ClassModel, build_classifier, checkpoint_encoder, load_model, save_model, verify_model

ENCODER = "test_resnet.r160_in1k"

pytestmark = pytest.mark.usefixtures("one_thread")


def strips(n=2, h=32, w=64):
    return torch.randint(0, 256, (n, 1, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def class_logits(model, images):
    with torch.no_grad():
        masks, classes = model(images)
    assert masks is None
    return classes


def residual_blocks(model):
    return [m for m in model.modules() if isinstance(m, (BasicBlock, Bottleneck))]


# ---- the net


@pytest.mark.parametrize(
    "encoder, blocks", [("resnet34", 16), ("tu-resnet18", 8), (ENCODER, 4), ("resnext50_32x4d", 16)]
)
def test_every_residual_block_has_cbam(encoder, blocks):
    torch.manual_seed(0)
    model = build_classifier(encoder, attention="cbam")
    found = residual_blocks(model)
    assert len(found) == blocks and all(isinstance(block.se, CbamModule) for block in found)
    assert not any(isinstance(m, CbamModule) for m in build_classifier(encoder).modules())


@pytest.mark.parametrize("encoder, blocks", [("resnet34", 16), (ENCODER, 4)])
def test_the_attention_is_alive_from_the_second_step_on(encoder, blocks):
    "Its weights are trained, its gradients are not 0, and each block's attention changes the output."
    torch.manual_seed(2)  # with 0 all hidden units of one block's channel attention (3 or 4) are dead from the start
    model, truth = build_classifier(encoder, attention="cbam"), torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, 0]])
    before = {name: p.detach().clone() for name, p in model.named_parameters() if ".se." in name}
    assert len(before) == 5 * blocks  # two layers for the channels, and one with its norm for the places
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(model(strips())[1], truth).backward()
        optimizer.step()
    own = dict(model.named_parameters())
    for name, old in before.items():
        assert own[name].grad.abs().sum() > 0 and not torch.equal(own[name], old), name
    model.eval()
    logits = class_logits(model, strips())
    for k in range(blocks):
        without = copy.deepcopy(model)
        residual_blocks(without)[k].se = nn.Identity()
        assert (class_logits(without, strips()) - logits).abs().max() > 1e-4


@pytest.mark.parametrize(
    "wrong, says",
    [
        (dict(attention="CBAM"), "attention='CBAM' with a classifier: it is None or \"cbam\", in small letters"),
        (dict(attention="scse"), "attention='scse'"),
        (dict(encoder="test_efficientnet.r160_in1k", attention="cbam"), "made of timm's residual blocks"),
        (dict(encoder="convnext_atto", attention="cbam"), "made of timm's residual blocks"),
        (dict(encoder="resnet43"), "no encoder of timm is called 'resnet43'; similar names: resnet34"),
        (dict(encoder="se_resnext50_32x4d"), "similar names: seresnext50_32x4d"),
        (dict(in_channels=2), "in_channels is 2"),
        (dict(n_classes=0), "n_classes is 0"),
        (dict(std=0), "std above 0"),
        (dict(block_args={}), "block_args: cannot be set"),
        (dict(depth=3), "no classifier over"),
        (dict(encoder_weights="ssl"), "names its weights itself"),
        (dict(encoder_weights="no/such/file.pth"), "no such file or folder"),
    ],
)
def test_what_cannot_be_built_is_refused(wrong, says):
    with pytest.raises(ValueError, match=says.replace("(", r"\(")):
        build_classifier(**{"encoder": ENCODER, **wrong})


@pytest.mark.parametrize("encoder", [ENCODER, "test_efficientnet.r160_in1k", "test_convnext.r160_in1k", "regnety_002"])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_and_a_logit_for_each_class(encoder, channels):
    torch.manual_seed(0)
    model = build_classifier(encoder, 3, channels).eval()
    for h, w in ((32, 200), (37, 61), (64, 64)):
        assert class_logits(model, strips(2, h, w)).shape == (2, 3)
    one_by_one = torch.cat([class_logits(model, image[None]) for image in strips()])
    torch.testing.assert_close(class_logits(model, strips()), one_by_one)


def test_grey_levels_are_normalised_and_bytes_and_floats_are_the_same():
    torch.manual_seed(0)
    model = build_classifier(ENCODER, in_channels=3, mean=0.25, std=0.5).eval()
    x = (strips().float() / 255 - 0.25) / 0.5
    with torch.no_grad():
        torch.testing.assert_close(class_logits(model, strips()), model.net(x.expand(-1, 3, -1, -1)))
    assert torch.equal(class_logits(model, strips()), class_logits(model, strips().float()))


def test_saved_and_loaded_it_is_the_same_net(tmp_path):
    torch.manual_seed(0)
    model = build_classifier("tu-" + ENCODER, 3, attention="cbam", global_pool="catavgmax", drop_rate=0.1).eval()
    model.to(memory_format=torch.channels_last)
    again = load_model(save_model(model, tmp_path / "net", {"fold": 1, "train_ids": ["a.jpg"]}))
    assert isinstance(again, ClassModel) and again.meta == {"fold": 1, "train_ids": ["a.jpg"]}
    assert again.spec == model.spec and again.spec["task"] == "classify" and not again.training
    again.to(memory_format=torch.channels_last)
    assert torch.equal(class_logits(again, strips()), class_logits(model, strips()))


def test_a_damaged_or_missing_file_is_named(tmp_path):
    folder = save_model(build_classifier(ENCODER), tmp_path / "net")
    assert set(verify_model(folder)) == {"model.safetensors", "steel_seg.json"}
    for name in ("model.safetensors", "steel_seg.json"):
        good = (folder / name).read_bytes()
        (folder / name).write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            load_model(folder)
        (folder / name).unlink()
        with pytest.raises(ValueError, match=f"{name} is missing"):
            load_model(folder)
        (folder / name).write_bytes(good)
    load_model(folder)


def test_weights_of_a_file_and_pretrained_ones_without_cbam(tmp_path, monkeypatch):
    "timm's own loader is given a file in place of the hub; CBAM keeps the weights it began with."
    import timm

    from steel_seg import model as model_module

    torch.manual_seed(0)
    theirs = timm.create_model("test_resnet", num_classes=1000)  # three channels and a classifier, as on the hub
    for p in theirs.parameters():
        nn.init.normal_(p)
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    overlay = {"pretrained_cfg_overlay": {"file": str(tmp_path / "model.safetensors")}}
    monkeypatch.setattr(model_module, "_pretrained", lambda encoder, weights: overlay)
    for weights in ("imagenet", str(tmp_path / "model.safetensors")):
        net = build_classifier(ENCODER, attention="cbam", encoder_weights=weights).net
        own = net.encoder.state_dict()
        torch.testing.assert_close(own["conv1.0.weight"], theirs.conv1[0].weight.sum(1, keepdim=True).detach())
        for name, t in theirs.state_dict().items():
            if name != "conv1.0.weight" and not name.startswith("fc."):
                assert torch.equal(own[name], t), name
        assert own["layer1.0.se.channel.fc1.weight"].abs().max() > 0  # of its own: the file has none


def test_blocks_computed_again_give_the_same_gradients():
    torch.manual_seed(0)
    model = build_classifier(ENCODER, attention="cbam")
    less = copy.deepcopy(model)
    checkpoint_encoder(less)
    for net in (model, less):
        net(strips(4))[1].square().sum().backward()
    for (name, a), b in zip(model.named_parameters(), less.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    assert all(map(torch.equal, model.buffers(), less.buffers()))

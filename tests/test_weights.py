"""Weights of anyone: found under any wrapper, refused with one clear error, and it is said what was taken."""

import argparse
import gzip
import random
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from steel_seg.model import build_classifier, build_model, cbam_weights, save_model
from steel_seg.weights import load_encoder, load_net, read_weights, weights_file

TINY = "tu-test_resnet.r160_in1k"
WRAPPERS = ["module", "_orig_mod", "model", "net", "student", "backbone", "_fsdp_wrapped_module"]
KEYS = ["state_dict", "model_state_dict", "model", "net", "params", "state_dict_ema", "weights"]

pytestmark = pytest.mark.usefixtures("one_thread")


def unet(seed=0, **more):
    torch.manual_seed(seed)
    return build_model("unet", TINY, **{"encoder_depth": 3, "decoder_channels": [16, 8, 8], **more}).net


@pytest.fixture(scope="module")
def source():
    return unet(seed=1, n_classes=3).state_dict()


def equal(a, b):
    return all(torch.equal(t, b[name]) for name, t in a.items())


def part(tensors, name):
    return {n.removeprefix(name + "."): t for n, t in tensors.items() if n.startswith(name + ".")}


def wrapped(tensors, rng):
    "A file's content: the names with up to four words before them, in up to two keys, beside other things."
    before = ".".join(rng.choices(WRAPPERS, k=rng.randint(0, 4)))
    content = {(f"{before}.{name}" if before else name): t for name, t in tensors.items()}
    for key in rng.sample(KEYS, rng.randint(0, 2)):
        content = {"epoch": 3, key: content, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}, "lr": [0.1]}
    return content


# ---- found


@pytest.mark.parametrize("seed", range(30))
def test_a_whole_net_is_found_under_any_wrappers(seed, source, tmp_path):
    "All of it but the head for other classes; the first layer too, where the encoder was wrapped once more."
    rng, net = random.Random(seed), unet(n_classes=1)
    names = source
    if rng.random() < 0.3:  # a part that was compiled or made parallel by itself
        word = rng.choice(["module", "_orig_mod"])
        names = {
            n.replace("encoder.", f"encoder.{word}.", 1).replace("decoder.", f"decoder.{word}.", 1): t
            for n, t in source.items()
        }
    torch.save(wrapped(names, rng), tmp_path / "a.ckpt")
    head = part(net.state_dict(), "segmentation_head")
    said = load_net(net, tmp_path / "a.ckpt")
    for name in ("encoder", "decoder"):
        assert equal(part(net.state_dict(), name), part(source, name)), said
    assert equal(part(net.state_dict(), "segmentation_head"), head)
    assert list(said.random) == ["segmentation_head"] and not said.left and set(said.taken) == {"encoder", "decoder"}
    assert "segmentation_head.0.weight is (3, 8, 3, 3) there, (1, 8, 3, 3) here" in said.lines()[1]


@pytest.mark.parametrize("seed", range(10))
def test_an_encoder_alone_is_found_under_any_wrappers(seed, source, tmp_path):
    rng, net = random.Random(seed), unet()
    bare = {name.removeprefix("model."): t for name, t in part(source, "encoder").items()}
    content = wrapped({**bare, "fc.weight": torch.ones(9, 2), "fc.bias": torch.ones(9)}, rng)
    torch.save(content, tmp_path / "a.pt")
    rest = part(net.state_dict(), "decoder")
    said = load_net(net, tmp_path / "a.pt") if seed % 2 else load_encoder(net, tmp_path / "a.pt")
    assert equal(part(net.state_dict(), "encoder"), part(source, "encoder")) and equal(
        part(net.state_dict(), "decoder"), rest
    )
    assert list(said.random) == ["decoder", "segmentation_head"]
    assert [name.rpartition("fc.")[2] for name in said.left] == ["weight", "bias"]


def test_parts_under_keys_of_their_own(source, tmp_path):
    net = unet(n_classes=3)
    torch.save({name: part(source, name) for name in ("segmentation_head", "decoder", "encoder")}, tmp_path / "a.pth")
    said = load_net(net, tmp_path / "a.pth")
    assert equal(source, net.state_dict()) and not said.random and len(said.lines()) == 1


def test_every_format_and_precision(source, tmp_path):
    "safetensors under another name, torch's older format, half precision, names with a dot for an underscore."
    save_file({n: t.contiguous() for n, t in source.items()}, tmp_path / "a.bin")
    torch.save(source, tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    half = {n: t.half() if t.is_floating_point() else t for n, t in source.items()}
    torch.save(half, tmp_path / "c.pth")
    torch.save({n.replace("layer1_0", "layer1.0"): t for n, t in source.items()}, tmp_path / "d.pth")
    for name, exact in (("a.bin", True), ("b.pth", True), ("c.pth", False), ("d.pth", True)):
        net = unet(n_classes=3)
        assert not load_net(net, tmp_path / name).random
        assert equal(source, net.state_dict()) == exact
        assert all(torch.allclose(t, net.state_dict()[n].to(t.dtype), atol=1e-3) for n, t in source.items())


@pytest.mark.parametrize("there, here", [(3, 1), (1, 3)])
def test_another_number_of_channels(there, here, tmp_path):
    "The net of three channels on a grey picture three times is the net of one channel."
    a, b = unet(seed=1, in_channels=there).eval(), unet(in_channels=here).eval()
    torch.save(a.state_dict(), tmp_path / "a.pth")
    said = load_net(b, tmp_path / "a.pth")
    assert f"has {there} input channels there and {here} here" in said.lines()[0] and not said.random
    x = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        out = [net(x.expand(-1, n, -1, -1)) for net, n in ((a, there), (b, here))]
    torch.testing.assert_close(out[0], out[1], rtol=1e-4, atol=1e-4)


def test_another_decoder_and_a_class_head(source, tmp_path):
    "A decoder that is wider in one block takes the others; a class head that is not there begins at random."
    torch.save(source, tmp_path / "a.pth")
    net = unet(n_classes=3, decoder_channels=[16, 8, 4], class_head=True)
    said = load_net(net, tmp_path / "a.pth")
    assert said.taken["decoder"] > 0 and set(said.random) == {"decoder", "segmentation_head", "classification_head"}
    assert "classification_head (not in the file)" in said.lines()[1]
    taken = net.state_dict()
    assert torch.equal(taken["decoder.blocks.0.conv1.0.weight"], source["decoder.blocks.0.conv1.0.weight"])
    for name in taken:  # a layer is taken whole or not at all
        if name.endswith("num_batches_tracked") or name.startswith("encoder."):
            continue
        layer = name.rpartition(".")[0]
        of_layer = [n for n in taken if n.rpartition(".")[0] == layer and not n.endswith("num_batches_tracked")]
        assert len({n in said.random.get(name.partition(".")[0], ()) for n in of_layer}) == 1


def test_a_classifier_and_a_net_of_masks(source, tmp_path):
    classifier = build_classifier(TINY, attention="cbam").net
    torch.save(unet(encoder_depth=5, decoder_channels=[16, 8, 8, 8, 8]).state_dict(), tmp_path / "a.pth")
    said = load_net(classifier, tmp_path / "a.pth", cbam_weights(classifier.encoder))
    assert set(said.random) == {"encoder", "head"} and all(".se." in name for name in said.random["encoder"])
    torch.save(classifier.state_dict(), tmp_path / "b.pth")
    plain = build_classifier(TINY, n_classes=2).net
    with pytest.raises(ValueError, match="these are the weights of a longer one"):
        load_net(plain, tmp_path / "b.pth")


def test_the_moving_average_is_taken(source, tmp_path):
    average = {name: t + 1 if t.is_floating_point() else t for name, t in source.items()}
    torch.save({"state_dict": source, "state_dict_ema": average}, tmp_path / "a.pth")
    net = unet(n_classes=3)
    said = load_net(net, tmp_path / "a.pth")
    assert equal(average, net.state_dict()) and said.under == "state_dict_ema_encoder_model_"
    torch.save({"teacher": source, "student": average}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match="2 different nets that fit in the same way.*'student_.*'teacher_"):
        load_net(net, tmp_path / "b.pth")
    torch.save({"model": source, "best": source}, tmp_path / "c.pth")  # the same weights twice
    load_net(net, tmp_path / "c.pth")
    assert equal(source, net.state_dict())


def test_nothing_is_changed_where_it_does_not_fit(source, tmp_path):
    "No tensor, few tensors, another type, not a number: the net is as it was."
    net = unet()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    first = next(name for name in source if name.startswith("encoder.model.conv1") and name.endswith("weight"))
    for content, says in (
        (
            {"layers.0.weight": torch.ones(2)},
            "none of its .* names is there. Needed: conv1.0.weight.*The file has: layers.0",
        ),
        (part(source, "decoder"), "does not fit the encoder"),
        (dict(list(source.items())[:9]), "of its .* weights are missing: "),
        ({**source, first: source[first].to(torch.int8)}, "int8 there, .* float32 here"),
        ({**source, first: source[first][:1]}, r"is \(1, .* there"),
        ({**source, first: source[first] * torch.nan}, "no finite numbers"),
        (
            {**source, "decoder.blocks.0.conv1.0.weight": source["decoder.blocks.0.conv1.0.weight"] / 0},
            "no finite numbers",
        ),
    ):
        torch.save(content, tmp_path / "a.pth")
        with pytest.raises(ValueError, match=f"a.pth.*{says}"):
            load_net(net, tmp_path / "a.pth")
        assert equal(before, net.state_dict())


# ---- refused


class Code:
    "What a file may not do: its tensors would be made by a call."

    def __reduce__(self):
        return (open, ("/dev/null",))


def bad_files(folder, source):
    "(name, what is said) of files that are no weights, each made in the folder."
    torch.save(source, folder / "whole.pth")
    content = (folder / "whole.pth").read_bytes()
    torch.save(source, folder / "old.pth", _use_new_zipfile_serialization=False)
    old = (folder / "old.pth").read_bytes()
    save_file({n: t.contiguous() for n, t in source.items()}, folder / "whole.safetensors")
    tensors = (folder / "whole.safetensors").read_bytes()
    place = content.find(source["decoder.blocks.0.conv1.0.weight"].numpy().tobytes())
    flipped = content[: place + 7] + bytes([content[place + 7] ^ 1]) + content[place + 8 :]
    raw = {
        "empty.pth": (b"", "is empty"),
        "half.pth": (content[: len(content) // 2], "is incomplete or damaged: copy or download it again"),
        "flipped.pth": (flipped, "checksum"),
        "old_half.pth": (old[: len(old) // 2], "is incomplete or damaged"),
        "old_less.pth": (old[:-4], "is incomplete or damaged"),
        "half.safetensors": (tensors[: len(tensors) // 2], "is incomplete or damaged"),
        "head.safetensors": (tensors[:40], "is incomplete or damaged"),
        "lfs.pth": (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", "git lfs pull"),
        "page.bin": (b"<!DOCTYPE html><html>Sign in</html>", "a web page"),
        "keras.pt": (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5"),
        "zipped.pth": (gzip.compress(content[:99]), "unpack it first"),
        "text.ckpt": (b"epoch,loss\n1,0.5\n", "not readable as weights"),
    }
    for name, (data, says) in raw.items():
        (folder / name).write_bytes(data)
        yield name, says
    objects = {
        "net.pth": (torch.nn.Conv2d(1, 1, 1), "needs pickle.*holds torch.nn.modules.conv.Conv2d.*state_dict"),
        "args.ckpt": ({"state_dict": source, "args": argparse.Namespace(lr=1)}, "needs pickle.*argparse.Namespace"),
        "score.pth": ({"state_dict": source, "best": np.float64(0.5)}, "needs pickle.*numpy"),
        "code.pth": ({"w": Code()}, "needs pickle"),
        "list.pth": ([torch.ones(2)], "does not contain a dict of tensors, but a list"),
        "nothing.pth": ({"epoch": 3}, "does not contain a dict of tensors"),
        "adam.pth": ({"state": {0: {"exp_avg": torch.ones(2), "step": torch.ones(1)}}}, "only what an optimiser keeps"),
    }
    for name, (content, says) in objects.items():
        torch.save(content, folder / name)
        yield name, says
    with zipfile.ZipFile(folder / "release.pth", "w") as archive:
        archive.writestr("release/net.pth", "")
    yield "release.pth", "a zip archive of other files .release/net.pth."
    yield "no.pth", "no such file or folder"


def test_what_is_no_weights_says_what_it_is(source, tmp_path):
    for name, says in bad_files(tmp_path, source):
        with pytest.raises(ValueError, match=f"{name}.*{says}") as e:
            read_weights(tmp_path / name)
        assert "\n" not in str(e.value), name


def test_the_advice_for_pickle_works(source, tmp_path, monkeypatch):
    "What the message says to run makes a file that is read."
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": source, "best": np.float64(0.5)}, "score.pth")
    with pytest.raises(ValueError, match="needs pickle") as e:
        read_weights("score.pth")
    code = str(e.value).split('python -c "')[1].split('"')[0]
    exec(code, {})
    assert equal(source, read_weights("weights.pth"))


def test_a_program_of_torchscript_is_not_run(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        for name in ("a/data.pkl", "a/constants.pkl", "a/code/net.py"):
            archive.writestr(name, "")
    with pytest.raises(ValueError, match="TorchScript program, which is code and is not run here"):
        read_weights(tmp_path / "a.pt")


def test_a_folder_has_one_file(source, tmp_path):
    folder = save_model(build_model("unet", TINY, encoder_depth=3), tmp_path / "run/fold_0/best")
    assert weights_file(folder) == folder / "model.safetensors"
    (tmp_path / "run/config.json").write_text("{}")
    with pytest.raises(ValueError, match="run is a run: give one of its nets"):
        weights_file(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="0 files of weights"):
        weights_file(tmp_path / "empty")

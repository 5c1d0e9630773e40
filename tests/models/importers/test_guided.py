"""Public checkpoints become bundles of the network of their flags; anything else is refused by what differs."""

import functools

import pytest
import torch

from ddib_fed.errors import BundleInvalid, DdibError, SettingsInvalid
from ddib_fed.importers import guided
from ddib_fed.importers.guided import parse_flags
from ddib_fed.importing import ImportOptions, read_tensors
from ddib_fed.models.bundle import load_bundle, save_bundle
from ddib_fed.networks.build import build_network, network_shapes
from ddib_fed.networks.config import ClassifierConfig, SyntheticConfig, UNetConfig
from tests.models.examples import state

ADM = "--learn_sigma True --resblock_updown True --use_fp16 True --use_scale_shift_norm True"
SMALL = UNetConfig(
    image_size=16, model_channels=32, out_channels=6, num_res_blocks=1, attention_resolutions=(2,), num_classes=7,
    channel_mult=(1.0, 2.0), num_head_channels=16, use_scale_shift_norm=True, resblock_updown=True,
)  # fmt: skip
FLAGS = (
    "--image_size 16 --num_channels 32 --num_res_blocks 1 --attention_resolutions 8 --channel_mult 1,2 "
    "--num_head_channels 16 --class_cond True --num_classes 7 --classifier_width 64 --classifier_depth 1 "
    "--classifier_attention_resolutions 8 --out_channels 7 " + ADM
)
HALF = ClassifierConfig(
    image_size=16, model_channels=64, out_channels=7, num_res_blocks=1, attention_resolutions=(2,),
    channel_mult=(1.0, 2.0), num_head_channels=64, use_scale_shift_norm=True, resblock_updown=True, pool="attention",
)  # fmt: skip


@functools.cache
def shapes_of(config):
    return network_shapes(config)


def random_state(config, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = shapes_of(config)
    return {key: 0.1 * torch.randn(value.shape, generator=generator) for key, value in shapes.items()}


def saved(tmp_path, content, name="model.pt"):
    torch.save(content, tmp_path / name)
    return tmp_path / name


def test_an_imported_model_computes_what_its_weights_compute(tmp_path):
    """Saved, loaded and asked; eps at integer steps, pictures of 0 to 255 cropped."""
    state = random_state(SMALL)
    network = build_network(SMALL).eval()
    network.load_state_dict(state)
    x, y, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 6]), torch.tensor([17.0])
    found = guided.read(saved(tmp_path, state, "ema_0.9999_500000.pt"), ImportOptions("cats", flags=FLAGS))
    save_bundle(tmp_path / "bundle", found.manifest, found.state)
    read = load_bundle(tmp_path / "bundle")
    with torch.no_grad():
        assert torch.equal(read.network()(x, t, y=y), network(x, t, y=y))
    made = read.manifest
    assert (made.parameterisation, made.time_input, made.sample_shape) == ("eps", "timestep", (3, 16, 16))
    assert (made.picture.low, made.picture.high, made.picture.fit) == (0.0, 255.0, "crop")
    assert (made.num_classes, made.training.steps) == (7, 500_000)
    assert any("averaged" in remark for remark in found.remarks)


@pytest.mark.parametrize(
    ("right", "wrong", "named"),
    [
        ("--num_channels 32", "--num_channels 64", "time_embed.0.weight"),
        ("--class_cond True", "--class_cond False", "label_emb.weight"),
        ("--channel_mult 1,2", "--channel_mult 1,2,2,2,2,2", "image_size 16 does not divide by 32"),
    ],
)
def test_flags_of_another_network_are_refused_by_the_first_tensor_that_differs(right, wrong, named, tmp_path):
    """The hint says where flags stand."""
    line = FLAGS.replace(right, wrong)
    with pytest.raises(DdibError, match=named.replace(".", r"\.")) as caught:
        guided.read(saved(tmp_path, random_state(SMALL)), ImportOptions("cats", flags=line))
    assert "--flags" in caught.value.hint


@pytest.mark.parametrize(("config", "classifier"), [(SMALL, True), (HALF, False)])
def test_a_classifier_is_imported_as_one_and_nothing_else_is(config, classifier, tmp_path):
    """The hint says which option is wrong."""
    with pytest.raises(SettingsInvalid, match="by its tensors") as caught:
        guided.read(saved(tmp_path, random_state(config)), ImportOptions("cats", classifier=classifier))
    assert "--classifier" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: s.pop("middle_block.1.qkv.weight"), "middle_block.1.qkv.weight"),
        (lambda s: s.update({"extra": torch.zeros(1)}), "extra"),
        (lambda s: s.update({"out.2.bias": torch.full((6,), torch.nan)}), "out.2.bias"),
        (lambda s: s.update({"input_blocks.0.0.weight": torch.zeros(32, 6, 3, 3)}), "6 channels"),
        (lambda s: s.update({"input_blocks.0.0.weight": torch.zeros(32, 2)}), "network for points"),
    ],
)
def test_names_the_first_tensor_that_differs(change, named, tmp_path):
    """Missing, extra, not finite, of an upsampler, of points."""
    state = random_state(SMALL)
    change(state)
    with pytest.raises(BundleInvalid, match=named.replace(".", r"\.")):
        guided.read(saved(tmp_path, state), ImportOptions("cats", flags=FLAGS))


@pytest.mark.parametrize("prefix", ["model.", "diffusion.module.", "_orig_mod.", "model._orig_mod."])
def test_names_that_trainers_put_before_tensors_are_taken_off(prefix, tmp_path):
    """Read those of Lightning, compiled and parallel runs."""
    state = random_state(SMALL)
    wrapped = {"state_dict": {f"{prefix}{key}": value for key, value in state.items()}, "epoch": 3}
    rule = "percentile:1,99@0:255"
    found = guided.read(saved(tmp_path, wrapped), ImportOptions("cats", intensity=rule, flags=FLAGS))
    assert found.state.keys() == state.keys()
    assert (found.manifest.picture.intensity, found.manifest.picture.bits) == (rule, 8)


@pytest.mark.parametrize("name", ["opt500000.pt", "other.pt"])
def test_an_optimisers_state_is_refused_with_a_hint_at_the_weights(name, tmp_path):
    parameter = torch.nn.Parameter(torch.zeros(1))
    content = torch.optim.AdamW([parameter]).state_dict() if name == "other.pt" else {"a": torch.zeros(1)}
    with pytest.raises(BundleInvalid, match="optimiser") as caught:
        read_tensors(saved(tmp_path, content, name))
    assert "ema_0.9999" in caught.value.hint


LINE = "--attention_resolutions 32,16,8 --class_cond True --image_size 256 --channel_mult 0.5,1"


@pytest.mark.parametrize(
    "line",
    [
        LINE,
        f'MODEL_FLAGS="{LINE}"',
        "--attention_resolutions=32,16,8 --class_cond=yes --image_size=256 --channel_mult=0.5,1",
        f"--image_size 64 {LINE}",
    ],
)
def test_a_line_is_read_however_it_was_copied(line):
    assert dict(parse_flags(line).given) == {
        "attention_resolutions": (32, 16, 8),
        "class_cond": True,
        "image_size": 256,
        "channel_mult": (0.5, 1.0),
    }


@pytest.mark.parametrize(
    ("line", "named", "hinted"),
    [
        ("--image_sizes 256", "--image_sizes", "--image_size?"),
        ("--image_size big", "--image_size", ""),
        ("--large_size 256 --small_size 64", "--large_size", "upsampler"),
        ("image_size 256", "'image_size'", ""),
        ("--image_size '256", "quotation mark", ""),
    ],
)
def test_what_is_no_flag_is_refused_by_name(line, named, hinted):
    """Unknown, without value, of another kind, of an upsampler, no flag at all."""
    with pytest.raises(SettingsInvalid) as caught:
        parse_flags(line)
    assert named in caught.value.detail
    assert hinted in caught.value.hint


NETWORK = SyntheticConfig(num_channels=64, num_res_blocks=2)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"ema": s, "model": {"other": torch.zeros(1)}},
        lambda s: {f"module.{key}": value for key, value in s.items()},
    ],
)
def test_sizes_are_inferred_wherever_the_weights_lie(wrap, tmp_path):
    """Channels, blocks and coordinates come from the shapes; it predicts eps at 4,000 linear steps."""
    weights = state(NETWORK)
    bundle = guided.read(saved(tmp_path, wrap(weights)), ImportOptions("moons", synthetic=True))
    assert bundle.manifest.network == NETWORK
    assert all(torch.equal(bundle.state[key], value) for key, value in weights.items())
    made = bundle.manifest
    assert (made.parameterisation, made.time_input) == ("eps", "timestep")
    assert (made.schedule.name, made.schedule.steps) == ("linear", 4000)


class Payload:
    """What a hostile checkpoint would run."""

    def __reduce__(self):
        return (print, ("this must not run",))


@pytest.mark.parametrize("content", [Payload(), [1, 2], {}, {"state_dict": {"a": 1}}, torch.zeros(2)])
def test_refuses_what_is_no_state_dict_and_runs_nothing(content, tmp_path, capsys):
    """Only tensors are read; code in a pickle is not executed."""
    with pytest.raises(BundleInvalid):
        guided.read(saved(tmp_path, content), ImportOptions("moons", synthetic=True))
    assert capsys.readouterr().out == ""

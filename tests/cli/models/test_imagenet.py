"""The public code's ImageNet translation, small: two checkpoints, its flags, class 260 to 261, its file names."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.imagenet import SMALL, checkpoint, pictures
from ddib_fed.cli.model import model
from ddib_fed.cli.translate import translate
from ddib_fed.data.pictures import encode_png, read_image
from ddib_fed.errors import JobFailed


@pytest.mark.slow
def test_classes_are_translated_from_checkpoints_under_the_public_codes_names(ddib, tmp_path, monkeypatch):
    """`python -m benchmarks.imagenet` does the same with networks of the published size."""
    monkeypatch.chdir(tmp_path)
    checkpoint(SMALL.network, tmp_path / "diffusion.pt", seed=0)
    checkpoint(SMALL.classifier, tmp_path / "classifier.pt", seed=1)
    pictures(tmp_path / "val")
    ddib(model, "import", "diffusion.pt", "--out", "diffusion", "--flags", SMALL.flags)
    ddib(model, "import", "classifier.pt", "--out", "classifier", "--classifier", "--flags", SMALL.flags)
    both = ("--source", "diffusion", "--target", "diffusion", "--classifier", "classifier")
    how = ("--pairs", "260:261", "--classifier-scale", "1.0")
    (tmp_path / "smooth" / "260").mkdir(parents=True)
    slope = np.linspace(0, 255, 64).astype(np.uint8)
    (tmp_path / "smooth" / "260" / "0.png").write_bytes(
        encode_png(np.broadcast_to(slope[:, None, None], (64, 64, 3)))
    )
    with pytest.raises(JobFailed, match="LATENT_NOT_GAUSSIAN"):  # these networks make noise of noise alone
        ddib(translate, "smooth", *both, *how, "--evaluations", "3", "--out", "refused")
    public = ("--flags", "--timestep_respacing ddim3")
    ddib(translate, "val", *both, *how, *public, "--out", "out")
    names = {path.name for path in (tmp_path / "out").glob("*.PNG")}
    assert names == {"260_1.PNG", "260_2.PNG", "260_1_translated_261.PNG", "260_2_translated_261.PNG"}
    # As the public code keeps them: cropped to the network's size.
    assert read_image(tmp_path / "out" / "260_1.PNG").pixels.shape == (32, 32, 3)

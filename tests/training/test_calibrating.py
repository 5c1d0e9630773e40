"""A calibration's pictures, what an aggregate counts, and what is measured of a calibration."""

import math
from pathlib import Path

import numpy as np
import pytest

from ddib_fed.calibration.aggregate import QUANTUM
from ddib_fed.calibration.record import leg_map, units_of
from ddib_fed.data.pictures import encode_png
from ddib_fed.errors import CalibrationModel, ImageUnreadable, InputError, UsageError
from ddib_fed.metrics import picture_rule
from ddib_fed.models.bundle import pretrained
from ddib_fed.training.calibrating import (
    CalibrationRequest,
    Ends,
    LocalTarget,
    anchors_of,
    count_pictures,
    ignore,
    make_calibration,
    side,
)
from tests.engine.latent_models import CHANNELS, autoencoder, latent_model
from tests.runs.tiny_models import tiny

SIZE = 4
RELIEF = tiny("relief", channels=3, size=SIZE)


def picture(rng: np.random.Generator, *, size: int = SIZE) -> bytes:
    colour = rng.integers(0, 256, 3)
    return encode_png(np.clip(colour + rng.integers(-9, 10, (size, size, 3)), 0, 255).astype(np.uint8))


def replaced(rng: np.random.Generator, other: Path) -> bytes:
    """Another picture, a blank one, one of another size or scale, a copy of a neighbour, or no picture at all."""
    blank = encode_png(np.full((SIZE, SIZE, 3), rng.choice([0, 255]), np.uint8))
    deep = encode_png(np.full((SIZE, SIZE, 1), 60_000, np.uint16))
    choices = (
        picture(rng), picture(rng), blank, picture(rng, size=7), deep, other.read_bytes(), blank[:40],
        b"no picture",
    )  # fmt: skip
    return choices[rng.integers(len(choices))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("files", "groups", "at_most", "replacements"), [(300, None, 250, 20), (300, 200, 4_000, 12)]
)
def test_one_file_moves_the_histogram_by_no_more_than_is_stated(
    tmp_path: Path, files: int, groups: int | None, at_most: int, replacements: int
) -> None:
    """Neither what is counted, nor M, nor anybody else's part follows from its pixels: some 30 replacements in all."""
    rng = np.random.default_rng(files)
    paths = [tmp_path / (f"g{i % groups:03}/{i:05}.png" if groups else f"{i:05}.png") for i in range(files)]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture(rng))

    def counted():
        group_by = None if groups is None else "folder"
        return count_pictures(RELIEF, str(tmp_path), epsilon=1.0, at_most=at_most, group_by=group_by)

    before = counted()
    units = groups or files
    assert before.units == min(units, at_most)
    published = before.noised(1.0, 1e-5)
    assert (published.counted, published.unit) == (before.units, "group" if groups else "picture")
    stated, moves = math.sqrt(2) / published.counted, []
    for _ in range(replacements):
        which, other = rng.choice(files, 2, replace=False)
        # All that belong to one unit are replaced together.
        unit = [path for path in paths if groups and path.parent == paths[which].parent] or [paths[which]]
        kept = {path: path.read_bytes() for path in unit}
        for path in unit:
            path.write_bytes(replaced(rng, paths[other]))
        after = counted()
        for path, content in kept.items():
            path.write_bytes(content)
        assert after.units == before.units
        assert after.cells == before.cells
        moves.append(float(np.linalg.norm(after.shares - before.shares)))
    assert max(moves) <= stated * (1 + 1e-9)
    assert max(moves) > stated / 2


def test_what_is_published_is_the_histogram_of_every_file(tmp_path: Path) -> None:
    """No file is held out, and of a hundred thousandth of each share nothing but the noise is added."""
    rng = np.random.default_rng(0)
    for i in range(200):
        (tmp_path / f"{i:03}.png").write_bytes(encode_png(np.full((SIZE, SIZE, 3), 255 * (i % 2), np.uint8)))
    found = count_pictures(RELIEF, str(tmp_path), epsilon=1.0)
    assert np.isclose(sorted(found.shares.ravel())[-2:], 0.5).all()
    made = found.noised(8.0, 1e-3, rng)
    assert np.abs(made.shares - found.shares).max() < 6 * made.sigma + QUANTUM


def test_groups_are_named_by_the_first_folder_or_by_a_pattern(tmp_path: Path) -> None:
    """A group counts once, whatever the number of its pictures; a file in no group is refused, and not read."""
    for i in range(210):
        for k in range(1 + i % 3):
            path = tmp_path / f"patient-{i:03}" / "scan" / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(np.full((SIZE, SIZE, 3), 255 * (i == 0), np.uint8)))
    for group_by in ("folder", "patient-[0-9]+", "patient-([0-9]{3})/scan"):
        found = count_pictures(RELIEF, str(tmp_path), epsilon=1.0, group_by=group_by)
        assert (found.units, found.unit) == (210, "group")
        assert np.allclose(sorted(found.shares.ravel())[-2:], [1 / 210, 209 / 210])
    with pytest.raises(InputError, match="at least 200 groups, and there are 3"):
        count_pictures(RELIEF, str(tmp_path), epsilon=1.0, group_by="/([0-2]).png")
    (tmp_path / "alone.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"alone\.png lies in no group"):
        count_pictures(RELIEF, str(tmp_path), epsilon=1.0, group_by="folder")
    with pytest.raises(UsageError, match="no regular expression"):
        count_pictures(RELIEF, str(tmp_path), epsilon=1.0, group_by="(")


def test_the_operator_is_told_what_does_not_count(tmp_path: Path) -> None:
    """Files that cannot be used, by name and reason; files of other names; and that not all are counted."""
    rng = np.random.default_rng(1)
    for i in range(250):
        (tmp_path / f"{i:03}.png").write_bytes(picture(rng))
    (tmp_path / "007.png").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("")
    found = count_pictures(RELIEF, str(tmp_path), epsilon=1.0)
    told = "\n".join(found.notes)
    assert found.units == 250
    assert np.isclose(found.shares.sum(), 249 / 250)
    assert "1 files, which count with no colour: " in told
    assert "007.png" in told
    assert "1 files whose names do not end as a picture's" in told
    few = count_pictures(RELIEF, str(tmp_path), epsilon=1.0, at_most=200)
    assert "200 of 250 pictures, evenly spaced by name" in few.notes[0]
    for i in range(30):
        (tmp_path / f"{i:03}.png").write_bytes(b"no picture")
    with pytest.raises(ImageUnreadable, match="30 of 250 pictures cannot be used"):
        count_pictures(RELIEF, str(tmp_path), epsilon=1.0)


def write(folder: Path, names: list[str], value: int = 0) -> None:
    for number, name in enumerate(names):
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((32, 32, 3), value + number, np.uint8)
        path.write_bytes(encode_png(pixels))


RULES = picture_rule(pretrained("satellite").manifest), picture_rule(pretrained("relief").manifest)


def test_anchors_are_paired_by_their_names_below_the_folders(tmp_path: Path) -> None:
    """The order of files does not matter, and neither do suffixes."""
    write(tmp_path / "a", ["two/x", "one"], 10)
    write(tmp_path / "b", ["one", "two/x"], 100)
    found = anchors_of(RULES, (tmp_path / "a", tmp_path / "b"))
    assert found.names == ("one", "two/x")
    levels = [np.rint((x[:, 0, 0, 0] + 1) * 127.5).tolist() for x in (found.source, found.target)]
    assert levels == [[11, 10], [100, 101]]


@pytest.mark.parametrize("lonely", ["a", "b"])
def test_an_anchor_without_partner_is_named(tmp_path: Path, lonely: str) -> None:
    """In either folder: a pair that is missing must not be left out in silence."""
    for folder in ("a", "b"):
        write(tmp_path / folder, ["both", *(["alone"] if folder == lonely else [])])
    with pytest.raises(InputError, match=r"1 pictures of .*alone"):
        anchors_of(RULES, (tmp_path / "a", tmp_path / "b"))


def test_a_rotation_of_latents_is_fitted_to_an_aggregate_of_latents(tmp_path: Path, monkeypatch) -> None:
    """Both models have one autoencoder; the aggregate's cells are of its channels, and its units name it."""
    monkeypatch.setattr("ddib_fed.calibration.fit.FINE", 1000)
    monkeypatch.setattr("ddib_fed.calibration.fit.KEPT", 6)
    own = autoencoder(1)
    north, south = (latent_model(seed, own, name) for seed, name in ((1, "north"), (2, "south")))
    folders, rng = (tmp_path / "north", tmp_path / "south"), np.random.default_rng(0)
    for number, folder in enumerate(folders):
        folder.mkdir()
        for file in range(210):
            ground = rng.normal(90 + 40 * number, 20, (4, 4)).repeat(8, 0).repeat(8, 1) + rng.normal(
                0, 9, (32, 32)
            )
            (folder / f"{file}.png").write_bytes(encode_png(ground.clip(0, 255).astype(np.uint8)[..., None]))
    request = CalibrationRequest(
        pictures=folders[0], target_pictures=folders[1], epsilon=8.0, days=30, force=True
    )
    target = LocalTarget(south, request, ignore, latents=True)
    published = target.aggregate()
    assert (published.cells.channels, published.units_sha256) == (CHANNELS, units_of(south.manifest)[1])
    made = make_calibration(
        request, Ends(side(north.manifest, latents=True), ("", "south"), ""), north, target
    )
    assert (made.map.channels, made.alone) == (CHANNELS, None)
    assert leg_map(made, north.manifest) == made.map
    with pytest.raises(CalibrationModel, match="does not have"):
        leg_map(made, RELIEF.manifest)
    with pytest.raises(UsageError, match="has no autoencoder"):
        count_pictures(RELIEF, str(folders[1]), epsilon=1.0, latents=True)

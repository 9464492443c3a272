"""Of a state nothing leaves but its coordinates in the directions, noised."""

from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from experiments.experts.split.directions import Directions, DirectionSettings
from experiments.experts.split.privatization import Privatization, PrivatizationSettings
from search.privacy.private_noise import SecretNoise

WIDTH, COUNT = 24, 3
DRAW = torch.Generator().manual_seed(0)
MIX = torch.randn(WIDTH, WIDTH, generator=DRAW)
TOLD = torch.randn(WIDTH, generator=DRAW)
TOKENS = torch.arange(6)


def texts(count: int) -> list[Tensor]:
    return [torch.randn(6, WIDTH, generator=DRAW) @ MIX for _ in range(count)]


PUBLIC = torch.cat(texts(200))


@pytest.fixture(scope="module")
def directions() -> Directions:
    labels = [i % 2 for i in range(300)]
    states = [h + (2 * c - 1) * TOLD for h, c in zip(texts(300), labels, strict=True)]
    settings = DirectionSettings(count=COUNT, steps=150, batch=32)
    reader = settings.reader(states, labels, classes=2, public=PUBLIC)
    fresh = [h + (2 * c - 1) * TOLD for h, c in zip(texts(300), labels, strict=True)]
    with torch.no_grad():
        right = reader(fresh).argmax(dim=1) == torch.tensor(labels)
    assert right.float().mean() > 0.8
    return reader.directions(PUBLIC)


def fitted(directions: Directions, ratio: float, key: bytes = b"k" * 32) -> Privatization:
    return PrivatizationSettings(ratio).fitted(
        PUBLIC,
        measured_on="texts",
        space="states",
        noise=SecretNoise(key),
        directions=directions,
    )


def test_public_states_have_variance_one_along_each(directions: Directions) -> None:
    y = directions.coordinates(PUBLIC.double())
    assert torch.allclose(y.T @ y / len(y), torch.eye(COUNT, dtype=y.dtype), atol=1e-6)
    assert torch.allclose(directions.coordinates(directions.states(y)), y)


def test_what_else_a_state_holds_changes_nothing_that_is_sent(directions: Directions) -> None:
    noise, states = fitted(directions, 1.0), texts(1)[0].double()
    _, _, rows = torch.linalg.svd(directions.into)
    beside = states + 100 * rows[COUNT]  # orthogonal to all directions
    one, other = (noise.privatize(each, TOKENS, "a") for each in (states, beside))
    assert (states - beside).norm() > 100
    assert torch.allclose(one, other, atol=1e-8)
    assert torch.linalg.matrix_rank(one - directions.mean) == COUNT


def test_noise_is_as_long_as_the_directions_are_many(directions: Directions) -> None:
    noise = fitted(directions, 2.0)
    tokens = torch.zeros(4000, dtype=torch.int64)
    states = PUBLIC[:1].double().expand(4000, -1)
    drawn = noise.seen(noise.privatize(states, tokens, "a")) - noise.seen(states)
    assert float(drawn.norm(dim=1).mean()) == pytest.approx(COUNT / noise.eta, rel=0.05)
    assert COUNT / noise.eta == pytest.approx(2.0 * noise.unit, rel=1e-3)


def test_the_record_says_whence_they_are(directions: Directions, tmp_path: Path) -> None:
    directions.save(tmp_path / "directions")
    again = Directions.read(tmp_path / "directions")
    space = fitted(again, 1.0).metric.space
    assert space == fitted(directions, 1.0).metric.space
    assert "in 3 directions" in space
    assert "follow from the labelled sentences" in space
    assert fitted(again, 1.0).metric.learned


def test_the_record_confirms_no_guess_of_the_labelled_sentences(directions: Directions) -> None:
    """Without the key nothing in it can be had from the directions but two digits."""
    near = replace(directions, into=directions.into * (1 + 1e-4))
    mine, theirs, other = (
        fitted(directions, 1.5),
        fitted(directions, 1.5, b"l" * 32),
        fitted(near, 1.5),
    )
    assert len({each.metric.space for each in (mine, theirs, other)}) == 3
    assert directions.digest not in mine.metric.space
    for each in (mine, other):
        assert each.metric.neighbours == float(f"{each.metric.neighbours:.2g}")
        assert each.metric.eta == float(f"{COUNT / (1.5 * each.metric.neighbours):.4g}")


def test_a_file_is_whole_or_refused(
    directions: Directions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, write = tmp_path / "directions.safetensors", safetensors.torch.save_file

    def half(named: dict[str, Tensor], path: Path) -> None:
        write(named, path)
        path.write_bytes(path.read_bytes()[:100])
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(safetensors.torch, "save_file", half)
        with pytest.raises(KeyboardInterrupt):
            directions.save(file)
    assert not file.exists()
    directions.save(file)
    assert [*tmp_path.iterdir()] == [file]
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"is damaged .*: put it back, or start in an empty"):
        Directions.read(file)


def test_what_has_no_meaning_is_refused() -> None:
    with pytest.raises(ValueError, match=r"set privatization\.where=states"):
        PrivatizationSettings(1.0, where="embedding", directions=DirectionSettings())
    with pytest.raises(ValueError, match=r"directions\.count=25 is more than the 24 dimensions"):
        DirectionSettings(count=25).reader(texts(2), [0, 1], classes=2, public=PUBLIC)
    same = PUBLIC[:3].repeat(9, 1)
    with pytest.raises(ValueError, match="the 2 dimensions that the states of 27 public tokens"):
        DirectionSettings(count=3, steps=1).reader(texts(2), [0, 1], classes=2, public=same)

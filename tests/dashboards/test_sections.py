"""Sections and headline of a dashboard, by hand."""

from fiber.dashboards.sections import headline, headline_figures, sectioned


def test_figures_of_the_headline_are_the_wanted_ones_first() -> None:
    names = ["images", "b/ap", "a/ap", "ap50", "apm", "grounding_r1", "x1", "chance"]
    assert headline_figures(names, ["grounding_r1", "ap"]) == ["grounding_r1", "b/ap", "a/ap"]
    assert headline_figures(names, []) == []
    assert len(headline_figures([f"{n}/ap" for n in range(20)], ["ap"])) == 6
    assert sectioned({"eval/apm": -1.0, "eval/ap": 0.5, "gate/i2t/0": -1.0, "lr/base": 0.1}) == {
        "eval/ap": 0.5, "gates/i2t/0": -1.0, "train/lr/base": 0.1,
    }  # fmt: skip


def test_shares_of_the_headline() -> None:
    """Half a second of two waits for data, and 3 of 200 samples could not be used."""
    metrics = {"loss/total": 1.5, "seconds/step": 2.0, "seconds/data": 0.5, "faults/a": 1.0, "faults/b": 2.0}
    assert headline(metrics, 200) == {
        "headline/loss": 1.5, "headline/data_wait": 0.25, "headline/fault_share": 0.015,
    }  # fmt: skip
    assert headline({"eval/ap": 0.5}, 200) == {}

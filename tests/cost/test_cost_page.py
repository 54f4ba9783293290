"""docs/cost.md: recompute each table row from its inputs, the price table and the run in docs/cost.csv."""

import csv
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from restorer.cost import benchmark, pricing
from restorer.cost.pricing import Work
from restorer.models import compat

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "cost.md").read_text()
PRICES = pricing.prices()
RUN = list(csv.DictReader((DOCS / "cost.csv").read_text().splitlines()))
LARGE = "RealESRGAN_x4plus"
# Inputs of the planning table: fastest and slowest seconds, dollars per second
SECONDS = {
    ("A10G", "90 kB"): (2, 2),
    ("A10G", "276 kB"): (7, 7),
    ("T4", "90 kB"): (3, 4),
    ("T4", "276 kB"): (10, 14),
}
THEN = {"A10G": 0.0003, "T4": 0.00018}
NOW = {name: PRICES[name].usd_per_second for name in THEN}


def value_range(low: float, high: float, to_text: Callable[[float], str]) -> str:
    first, last = to_text(low), to_text(high)
    return first if first == last else f"{first} to {last}"


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def planning_rows(prices: dict[str, float]) -> Iterator[str]:
    for (gpu, photo), (fast, slow) in SECONDS.items():
        price = prices[gpu]
        most, least = (pricing.images_per_dollar(seconds, price) for seconds in (fast, slow))
        yield row(
            gpu,
            photo,
            value_range(fast, slow, str),
            value_range(pricing.dollars(fast, price), pricing.dollars(slow, price), "{:.6f}".format),
            value_range(least, most, "{:,.0f}".format),
        )


def budget_rows(prices: dict[str, float]) -> Iterator[str]:
    for name, large_share in (("worst case", 1), ("typical mix", 0.5), ("small images", 0)):
        costs = [
            prices[gpu]
            * ((1 - large_share) * SECONDS[gpu, "90 kB"][end] + large_share * SECONDS[gpu, "276 kB"][end])
            for gpu in prices
            for end in (0, 1)
        ]
        yield row(
            name,
            f"{large_share:.0%}",
            value_range(1 / max(costs), 1 / min(costs), "{:,.0f}".format),
            value_range(1e6 * min(costs), 1e6 * max(costs), "{:,.0f}".format),
        )


def price_rows() -> Iterator[str]:
    for price in PRICES.values():
        peaks = (f"{peak:g}" if peak else "" for peak in (price.fp16_tflops, price.gb_per_second))
        per_second = f"{price.usd_per_second:.7f}".rstrip("0")
        yield row(price.name, per_second, f"{3600 * price.usd_per_second:.3f}", *peaks)


def run_rows() -> Iterator[str]:
    for entry in RUN:
        if entry["device"] in ("CPU", "T4", "A10G"):
            yield row(
                entry["model"].removeprefix("custom/"),
                f"{entry['width']} x {entry['height']}",
                entry["device"],
                f"{float(entry['seconds']):.3f}",
                entry["how"],
                f"{float(entry['usd_per_image']):.7f}",
                f"{float(entry['images_per_usd']):,.0f}",
            )


def large_network_work() -> Work:
    flops, traffic = re.findall(r"is ([\d.]+) million operations and ([\d.]+) bytes of traffic", PAGE)[0]
    return Work(float(flops) * 1e6, float(traffic))


def entries(model: str, width: str) -> dict[str, dict[str, str]]:
    """The run's rows of a model and size, by device."""
    return {row["device"]: row for row in RUN if (row["model"], row["width"]) == (model, width)}


def comparison_rows() -> Iterator[str]:
    for width, height, photo in ((720, 540, "90 kB"), (1254, 940, "276 kB")):
        for gpu in THEN:
            seconds = float(entries(LARGE, str(width))[gpu]["seconds"])
            fast, slow = SECONDS[gpu, photo]
            yield row(
                gpu,
                f"{width} x {height}",
                f"{seconds:.2f}",
                value_range(fast, slow, str),
                value_range(fast / seconds, slow / seconds, "{:.1f}".format),
                f"{pricing.images_per_dollar(seconds, NOW[gpu]):,.0f}",
            )


def test_every_table_row_follows_from_its_inputs():
    then, now = [*planning_rows(THEN), *budget_rows(THEN)], [*planning_rows(NOW), *budget_rows(NOW)]
    lines = PAGE.splitlines()
    headers = {lines[index - 1] for index, line in enumerate(lines) if line.startswith("|---")}
    shown = [line for line in lines if line.startswith("| ") and line not in headers]
    assert shown == [*price_rows(), *then, *now, *run_rows(), *comparison_rows()]


def test_csv_rows_are_consistent():
    for entry in RUN:
        seconds, price = float(entry["seconds"]), PRICES[entry["device"]]
        if entry["how"] == "estimated":
            work = Work(float(entry["teraflop"]) * 1e12, float(entry["gigabytes"]) * 1e9)
            assert seconds == pytest.approx(
                pricing.estimate_seconds(work, price, codec_seconds=float(entry["codec"]))
            )
        paid = float(entry["usd_per_second"])
        assert paid == pytest.approx(price.usd_per_second * (2 if entry["device"] == "CPU" else 1))
        assert float(entry["usd_per_image"]) == pytest.approx(seconds * paid)
        assert float(entry["images_per_usd"]) == pytest.approx(1 / (seconds * paid))
        data = benchmark.sample(int(entry["width"]), int(entry["height"]), face=False)
        assert round(len(data) / 1000) == pytest.approx(int(entry["kB"]), abs=3)


@pytest.mark.slow
def test_stated_work_of_the_large_network_matches_the_count():
    import torch

    network = (
        compat.load_attribute("basicsr.archs.rrdbnet_arch", "RRDBNet")(3, 3, num_block=23).eval().to("meta")
    )
    image = torch.zeros(1, 3, 128, 128, device="meta")
    with torch.inference_mode(), benchmark.count_work() as work:
        network(image)
    assert work().flops / 128**2 == pytest.approx(large_network_work().flops, abs=1)
    assert work().bytes / 128**2 == pytest.approx(large_network_work().bytes, rel=0.01)


def test_figures_in_the_text_match_the_run():
    assert f"{pricing._OF_PEAK * 100:.0f} % and {pricing._OF_BANDWIDTH * 100:.0f} % are taken" in PAGE
    cold = [
        float(entry["cold_start"]) for entry in RUN if entry["how"] == "measured" and entry["width"] == "720"
    ]
    assert f"Cold starts: {cold[0]:.1f} s and {cold[1]:.1f} s." in PAGE
    assert [entry["kB"] for entry in RUN if entry["how"] == "measured"] == ["92", "280"] * 2
    for name, peak in (("A10G", 70), ("T4", 65)):
        assert PRICES[name].fp16_tflops == peak
    for width in ("720", "1254"):
        costs = {name: float(entries(LARGE, width)[name]["usd_per_image"]) for name in THEN}
        assert costs["T4"] / costs["A10G"] == pytest.approx(0.75, abs=0.05), "a quarter less"
    whole = large_network_work()
    for entry in (entries(LARGE, width)["CPU"] for width in ("720", "1254")):
        pixels = int(entry["width"]) * int(entry["height"])
        assert float(entry["teraflop"]) * 1e12 / pixels == pytest.approx(1.08 * whole.flops, rel=0.005)
        assert float(entry["gigabytes"]) * 1e9 / pixels == pytest.approx(1.23 * whole.bytes, rel=0.005)


# docs/scale.md


def test_scale_page_follows_from_the_cost_page():
    page = (DOCS / "scale.md").read_text()
    rows = entries(LARGE, "720")
    expected = []
    for price in PRICES.values():
        if price.fp16_tflops:
            seconds = float(rows[price.name]["seconds"])
            expected.append(
                row(
                    price.name,
                    f"{seconds:.3f}",
                    f"{3600 / seconds:,.0f}",
                    f"{1e6 * seconds / 3600 / 16:.1f}",
                    f"{1e6 * pricing.dollars(seconds, price.usd_per_second):,.0f}",
                )
            )
    t4, codec = float(rows["T4"]["seconds"]), float(rows["T4"]["codec"])
    cores = f"{codec:.3f} core seconds | {t4 / codec:.0f}"
    expected += [
        f"| what | per photo of 720 x 540 | room for, with t = {t4:.2f} s on a T4 |",
        f"| processor: decode and encode | {cores} GPUs for each core |",
        f"| storage and network: photo and result | 1.3 MB | {t4 * 125 / 1.3:.0f} GPUs for each Gbit/s |",
        f"| driver: noting a record | 0.2 ms | {t4 / 0.0002:.0f} GPUs |",
    ]
    lines = page.splitlines()
    assert [line for line in expected if line not in lines] == []
